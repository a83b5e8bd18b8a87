"""Ten perturbed structures for codes whose users do catalysis and batteries, and weights in which all matters."""

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator

RATTLED = 0.12
"""Å, so that no atom sits where symmetry makes its vectors vanish."""


def structures(*, boxed: bool = False) -> list[Atoms]:
    """Molecules, crystals with small cells and slabs.

    Args:
        boxed: whether molecules are in a wide periodic box, for a code that reads no others.
    """
    crowded = molecule("CH3CH2OH", vacuum=2.5)
    crowded.pbc = True
    salt = bulk("NaCl", "rocksalt", a=5.6)
    copper = bulk("Cu", "fcc", a=3.6).repeat((2, 1, 1))
    oxide = bulk("FeO", "rocksalt", a=4.3, cubic=True)
    oxide.numbers[:2] = 3
    copper_slab = fcc111("Cu", (2, 2, 2), vacuum=8.0)
    add_adsorbate(copper_slab, molecule("CO"), 1.9, "ontop")
    platinum_slab = fcc100("Pt", (2, 2, 2), vacuum=8.0)
    add_adsorbate(platinum_slab, molecule("H2O"), 2.2, "bridge")
    water = molecule("H2O")
    water.set_cell([[3.3, 0.0, 0.0], [0.7, 3.6, 0.0], [-0.4, 0.5, 3.9]])
    water.pbc = True
    free = [molecule(name) for name in ("CH3CH2OH", "CH3OH", "NH3")]
    if boxed:
        for atoms in free:
            atoms.center(vacuum=10.0)
            atoms.pbc = True
    found = [*free, crowded, salt, copper, oxide, copper_slab, platinum_slab, water]
    for seed, atoms in enumerate(found):
        atoms.rattle(RATTLED, seed=seed)
        atoms.set_constraint()
        atoms.info.clear()
        for name in set(atoms.arrays) - {"numbers", "positions"}:
            del atoms.arrays[name]
    return found


def labelled(found: list[Atoms]) -> list[Atoms]:
    """The same with random labels, which its training code wants to see."""
    random = np.random.default_rng(0)
    for atoms in found:
        count = len(atoms)
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=float(random.normal(-3.7, 0.4) * count),
            forces=random.normal(scale=0.6, size=(count, 3)),
            stress=random.normal(size=6),
            magmoms=random.normal(size=count),
        )
        atoms.arrays["bader_charge"] = random.normal(size=count)
    return found


def seed_weights(model: torch.nn.Module, seed: int) -> None:
    """Give a model weights that are large enough for every term to matter: no bias is zero.

    Args:
        model: whose parameters of two axes are layers' weights or an embedding, and those of one axis biases.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or not name.endswith((".weight", ".bias")):
                continue
            numbers = torch.randn(parameter.shape, generator=generator)
            scale = 0.3 if parameter.dim() == 1 else 0.6 / parameter.shape[-1] ** 0.5
            parameter.copy_(numbers * (1.0 if "embedding" in name else scale))


def arrays(found: list[Atoms], energies: Any, forces: Any, **others: Any) -> dict[str, np.ndarray]:
    """What an .npz of figures holds: structures one after the other, and figures of each.

    Args:
        found: the structures.
        energies: eV, of each.
        forces: eV/Å, of each [atoms, 3].
        others: figures by name, one of each structure.
    """
    return {
        "counts": np.array([len(atoms) for atoms in found]),
        "numbers": np.concatenate([atoms.numbers for atoms in found]).astype(np.int16),
        "positions": np.concatenate([atoms.positions for atoms in found]),
        "cells": np.array([atoms.cell.array for atoms in found]),
        "pbc": np.array([atoms.pbc for atoms in found]),
        "energies": np.array(energies, dtype=float),
        "forces": np.concatenate(forces),
        **{name: np.array(values, dtype=float) for name, values in others.items()},
    }


def strained(atoms: Atoms, i: int, j: int, size: float) -> Atoms:
    """Atoms and cell under a symmetric strain.

    Args:
        atoms: to strain.
        i: an axis.
        j: another, or the same.
        size: of the strain.
    """
    strain = np.eye(3)
    strain[i, j] += size / 2
    strain[j, i] += size / 2
    made = atoms.copy()
    made.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return made


VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def numerical_stress(energy: Any, atoms: Atoms, size: float = 1e-4) -> list[float]:
    """Derivative of an energy by symmetric strain over the volume, in ASE's sign, eV/Å³, Voigt-6; to fourth order.

    Args:
        energy: of atoms, in eV.
        atoms: with a cell.
        size: of the strain.
    """

    def slope(i: int, j: int) -> float:
        at = [energy(strained(atoms, i, j, step * size)) for step in (-2, -1, 1, 2)]
        return float((at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * size))

    return [slope(i, j) / atoms.get_volume() for i, j in VOIGT]
