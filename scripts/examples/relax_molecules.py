"""Relaxation of many different molecules with TorchSim's FIRE on an engine; those at rest make room for the next.

    python scripts/examples/relax_molecules.py BUNDLE --count 500 -o relaxed.extxyz

takes molecules of scripts/distillation/molecules.smi, with RDKit's geometries shaken by 0.1 Å.
"""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch_sim
import typer
from ase import Atoms
from ase.io.extxyz import write_xyz

from painn_deploy.export.errors import DatasetError
from painn_deploy.runtime.torchsim import PaiNNModel
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.distillation.molecules import embedded
from painn_deploy.scripts.distillation.plan import MOLECULES, read_molecules

__all__ = ["relax_molecules"]


def relax_molecules(
    model: PaiNNModel, structures: list[Atoms], *, fmax: float = 0.05, steps: int = 1000, atoms_at_once: int = 2000
) -> list[Atoms]:
    """Relaxed structures, in order.

    Args:
        model: an engine.
        structures: molecules.
        fmax: eV/Å.
        steps: of the batch that swaps, at most.
        atoms_at_once: that are moved together.
    """
    batcher = torch_sim.autobatching.InFlightAutoBatcher(
        model, memory_scales_with="n_atoms", max_memory_scaler=atoms_at_once
    )
    state = torch_sim.optimize(
        structures,
        model,
        optimizer=torch_sim.optimizers.fire,
        convergence_fn=torch_sim.runners.generate_force_convergence_fn(fmax, include_cell_forces=False),
        autobatcher=batcher,
        max_steps=steps,
    )
    return list(torch_sim.io.state_to_atoms(state))


def molecules(count: int, seed: int = 0) -> list[Atoms]:
    """Different molecules of molecules.smi, shaken."""
    rng = np.random.default_rng(seed)
    found: list[Atoms] = []
    for name, smiles in read_molecules(MOLECULES).items():
        if len(found) == count:
            break
        try:
            atoms = embedded(smiles, 1, seed).conformers[0]
        except DatasetError:
            continue
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        atoms.info["name"] = name
        found.append(atoms)
    if len(found) < count:
        raise DatasetError(f"molecules.smi holds {len(found)} molecules that RDKit can build, not {count}.")
    return found


def main(
    bundle: Path,
    count: int = 500,
    fmax: float = 0.05,
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("relaxed.extxyz"),
) -> None:
    """Relax, check the forces, and write.

    Args:
        bundle: a folder NAME.engine.
        count: of molecules.
        fmax: eV/Å.
        output: extended XYZ.
    """
    structures = molecules(count)
    model = PaiNNModel(bundle)
    started = time.perf_counter()
    relaxed = relax_molecules(model, structures, fmax=fmax)
    spent = time.perf_counter() - started
    before, after = (model.calculator.calculate_batch(some) for some in (structures, relaxed))
    forces = np.array([np.linalg.norm(result["forces"], axis=1).max() for result in after])
    gained = np.array([one["energy"] - other["energy"] for one, other in zip(before, after, strict=True)])
    with output.open("w", encoding="utf-8") as file:
        for atoms, structure in zip(relaxed, structures, strict=True):
            atoms.info = dict(structure.info)
            write_xyz(file, [atoms])
    print(f"{count} molecules of {sum(map(len, structures))} atoms: {spent:.1f} s, {count / spent:.1f} a second")
    print(f"at rest (largest force below {fmax} eV/Å): {(forces <= 1.01 * fmax).sum()} of {count}")
    print(f"energy gained: median {np.median(gained):.3f} eV, least {gained.min():.3f} eV")
    print(f"wrote {output}")


if __name__ == "__main__":
    run_command(main)
