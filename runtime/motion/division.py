"""`Division`: a structure whose atoms are divided among MPI ranks, each with an engine of its own."""

import math
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float64, Int, Int64

from painn_deploy.export.errors import EngineError
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.motion.domain import Domain
from painn_deploy.runtime.motion.moving import MovingStructure
from painn_deploy.runtime.motion.owners import Owners
from painn_deploy.runtime.motion.ranks import Ranks
from painn_deploy.runtime.results import not_finite
from painn_deploy.runtime.structures import check_structure
from painn_deploy.runtime.uncertainty.scale import NUMBERS, RATIO

__all__ = ["Division", "Part"]

SYMMETRIC = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
"""Rows and columns of a virial in Voigt's order: xx, yy, zz, yz, xz, xy."""

SUMMED = 10
"""Numbers that are summed over ranks: atoms, energy, virial, ratio and energy uncertainty."""


@dataclass(frozen=True)
class Seen:
    """What a rank sees: its own atoms and, after them, images of others around these.

    Attributes:
        owned: how many are own.
        tags: numbers of the atoms from 1, which their images share.
        numbers: Z.
        positions: Å.
        cell: of the whole structure, Å.
        periodic: directions in which it repeats.
        exchange: of atoms among ranks, the last one: numbers that differ from those of any other one.
    """

    owned: int
    tags: Int[np.ndarray, " atoms"]
    numbers: Int[np.ndarray, " atoms"]
    positions: Float64[np.ndarray, "atoms 3"]
    cell: Float64[np.ndarray, "3 3"]
    periodic: Bool[np.ndarray, "3"]
    exchange: tuple[int, int] = (0, 0)

    def atoms(self, rows: Int64[np.ndarray, " rows"] | slice) -> Atoms:
        """Some of the atoms.

        Args:
            rows: which.
        """
        return Atoms(self.numbers[rows], self.positions[rows], cell=self.cell, pbc=self.periodic)


@dataclass(frozen=True)
class Part:
    """What a rank gives for its own atoms, in the order given, and what all of them give together.

    Attributes:
        energies: of own atoms, eV, atomic references included.
        forces: on own atoms, eV/Å, of the energies of all ranks.
        virials: of own atoms, symmetrised, in Voigt's order and ASE's sign, eV; of all ranks where they were asked for,
            and else what this rank alone has for them.
        energy: of the whole structure, eV.
        virial: of the whole structure, eV.
        uncertainties: of the whole structure, by name, see `painn_deploy.runtime.uncertainty.scale.NUMBERS`; without
            what is not known.
    """

    energies: Float64[np.ndarray, " owned"]
    forces: Float64[np.ndarray, "owned 3"]
    virials: Float64[np.ndarray, "owned 6"]
    energy: float
    virial: Float64[np.ndarray, "6"]
    uncertainties: dict[str, float]


@dataclass(frozen=True)
class _Divided:
    """What a rank was given when atoms last changed hands, and what it evaluates since then."""

    tags: np.ndarray
    exchange: tuple[int, int]
    domain: Domain
    owners: Owners

    def is_of(self, seen: Seen) -> bool:
        """Whether it was given the same atoms, of whatever elements, and they changed hands no more since then."""
        return seen.exchange == self.exchange and np.array_equal(seen.tags, self.tags)


class Division:
    """Forces of a structure of which each rank owns some atoms and sees those around them.

    Every method is called by all ranks together, and what goes wrong on one is raised on all.

    Args:
        ranks: that the structure is divided among.
        evaluator: whose engine answers for this rank's part.
        skin: Å, within which neighbours are kept from step to step; see `PaiNNCalculator`.

    Attributes:
        reach: Å, how far from an own atom the atoms lie that its energy depends on: interactions x cutoff.

    Raises:
        EngineError: the bundle is of a graph without weights, or of a committee.
    """

    def __init__(self, ranks: Ranks, evaluator: Evaluator, skin: float | None) -> None:
        self._ranks, self._evaluator = ranks, evaluator
        manifest = evaluator.manifest
        self._interactions = int(manifest.configuration["num_interactions"])
        self.reach = self._interactions * manifest.cutoff
        if not any(field.name == "weights" for field in manifest.inputs):
            raise EngineError(
                f"This bundle is of format {manifest.format_version}, whose graph takes no weights, and runs on one "
                "MPI rank only: export it again."
            )
        if evaluator.uncertainty is not None and not evaluator.uncertainty.additive:
            raise EngineError(
                "The spread of a committee's forces is not known where each MPI rank has a part of the structure: run "
                "it on one rank, or export one of its members."
            )
        self._moving = MovingStructure(evaluator, skin)
        self._divided: _Divided | None = None

    def answer(self, seen: Seen, margin: float, *, of_atoms: bool) -> Part:
        """Evaluate the structure.

        Args:
            seen: own atoms and all images of others within `reach + margin` of the region that own atoms were in when
                they last changed hands.
            margin: Å.
            of_atoms: whether virials of atoms are asked for.

        Raises:
            StructureError: as `PaiNNCalculator` raises it.
            SpeciesError: likewise.
            EngineError: the engine failed on some rank, or atoms moved by more than half the margin since they last
                changed hands.
        """
        ranks = self._ranks
        divided = self._divided
        if ranks.any(divided is None or not divided.is_of(seen)) or divided is None:
            divided = self._divide(seen, margin)
        domain, owned = divided.domain, seen.owned
        with ranks.agreed():
            atoms = seen.atoms(domain.rows)
            if not domain.covers(atoms):
                raise EngineError(
                    f"Atoms moved by more than {margin / 2:g} Å, half of LAMMPS's skin, since it last exchanged atoms, "
                    "so that some may lack neighbours on other ranks: `neigh_modify every 1 delay 0 check yes`, a "
                    "smaller timestep, or a larger skin (`neighbor`)."
                )
            energies, rows, sums = self._evaluated(atoms, owned)
        own, foreign = rows[:owned].copy(), rows[owned:]
        width = 9 if of_atoms else 3
        divided.owners.add(foreign[:, :width], own[:, :width])
        return self._joined(domain.rows[:owned], energies, own, ranks.total(sums))

    def _divide(self, seen: Seen, margin: float) -> "_Divided":
        """Choose anew what this rank evaluates, after atoms changed hands."""
        self._divided = None
        with self._ranks.agreed():
            if len(seen.tags) and seen.tags.min() < 1:
                raise EngineError("LAMMPS's atoms have no IDs, by which ranks know them: `atom_modify id yes`.")
            structure = seen.atoms(slice(None))
            sound = check_structure(structure) if seen.owned else structure
            cutoff = self._evaluator.manifest.cutoff
            domain = Domain.chosen(sound, seen.tags, seen.owned, cutoff, self._interactions, margin)
        owners = Owners(self._ranks, domain.tags[: seen.owned], domain.tags[seen.owned :])
        self._moving.neighbour_list.weigh((np.arange(len(domain.rows)) < seen.owned).astype(np.float32))
        self._divided = _Divided(seen.tags.copy(), seen.exchange, domain, owners)
        return self._divided

    def _evaluated(self, atoms: Atoms, owned: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies of own atoms, forces and virials of all rows, and what is summed over ranks."""
        if not owned:
            return np.zeros(0), np.zeros((len(atoms), 9)), np.zeros(SUMMED)
        references = self._evaluator.references(atoms.numbers)
        outputs = self._moving.outputs(check_structure(atoms))
        energies = outputs.atomic_energies[:owned].astype(np.float64) + references[:owned]
        virials = outputs.virials.astype(np.float64)
        voigt = (virials + virials.mT)[:, *SYMMETRIC] / 2
        rows = np.concatenate([outputs.forces.astype(np.float64), voigt], axis=1)
        doubts, uncertainty = {}, self._evaluator.uncertainty
        if uncertainty is not None:
            own = {name: values[:owned] for name, values in outputs.extras.items()}
            doubts = uncertainty.results(atoms.numbers[:owned], own)
        # a ratio is a mean over atoms; what is not known is infinite, and stays so in the sum
        ratio, energy = (float(doubts.get(name, math.inf)) for name in NUMBERS)
        sums = np.array([owned, energies.sum(), *voigt.sum(0), owned * ratio, energy])
        if not math.isfinite(float(energies.sum() + rows.sum())) or np.isnan(sums).any():
            raise not_finite(str(atoms.symbols))
        return energies, rows, sums

    def _joined(self, rows: np.ndarray, energies: np.ndarray, own: np.ndarray, sums: np.ndarray) -> Part:
        """The part of this rank, whose own atoms were evaluated in the order of `rows`, with the sums of all."""
        atoms, energy, virial, ratio, doubt = sums[0], float(sums[1]), sums[2:8], sums[8], sums[9]
        found = dict(zip(NUMBERS, (float(ratio / max(atoms, 1)), float(doubt)), strict=True))
        known = {name: value for name, value in found.items() if name == RATIO or math.isfinite(value)}
        uncertainties = {} if self._evaluator.uncertainty is None else known
        made = np.empty((len(own), 10))
        made[rows] = np.column_stack([energies, own])
        return Part(made[:, 0], made[:, 1:4], made[:, 4:], energy, virial, uncertainties)
