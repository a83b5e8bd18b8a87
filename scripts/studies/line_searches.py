"""How far optimisers get on an engine's surface: those that search along a line need more digits than float32 has.

`python scripts/studies/line_searches.py BUNDLE ...` relaxes perturbed molecules until no force is above a limit, with
each of ASE's optimisers, on each engine, and counts how many converge and in how many steps. A line search compares
energies at points that hardly differ; where their difference is rounding, it fails.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from ase import Atoms
from ase.build import molecule
from ase.optimize import BFGS, FIRE, LBFGS, BFGSLineSearch, GPMin, LBFGSLineSearch
from rich.progress import Progress

from painn_deploy.engines.gpu.machine import machine
from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["OPTIMISERS", "Relaxed", "relaxed", "study"]

OPTIMISERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {kind.__name__: kind for kind in (LBFGSLineSearch, BFGSLineSearch, GPMin, BFGS, LBFGS, FIRE)}
)
MOLECULES = ("H2O", "NH3", "CH3OH", "CH3CH2OH", "C6H6", "CH3COOH", "CH3CHO", "C2H6")
SIGMA = 0.1
"""Å, by which each coordinate is perturbed."""


class Relaxed(NamedTuple):
    """The end of one relaxation.

    Attributes:
        converged: whether every force was within the limit.
        calls: of the engine.
        force: eV/Å, the largest at the end; NaN where the optimiser gave up.
    """

    converged: bool
    calls: int
    force: float


def relaxed(atoms: Atoms, optimiser: Callable[..., Any], fmax: float, steps: int) -> Relaxed:
    """Relax a structure in place.

    Args:
        atoms: with a calculator.
        optimiser: a class of ASE's.
        fmax: eV/Å, the largest force at which it has converged.
        steps: at most.
    """
    calls = atoms.calc.timings.calculations
    try:
        with warnings.catch_warnings():  # of a search that fails, which is what is counted here
            warnings.simplefilter("ignore")
            converged = optimiser(atoms, logfile=None).run(fmax=fmax, steps=steps)
            force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    except (PaiNNDeployError, RuntimeError, ValueError, ArithmeticError, np.linalg.LinAlgError):
        converged, force = False, float("nan")
    return Relaxed(bool(converged), atoms.calc.timings.calculations - calls, force)


def study(
    bundles: list[Path],
    fmax: Annotated[float, typer.Option(help="eV/Å; largest force at which a structure is relaxed.")] = 1e-4,
    steps: Annotated[int, typer.Option(help="Of each relaxation, at most.")] = 300,
    optimiser: Annotated[list[str] | None, typer.Option(help="Of ASE; repeatable; all if not given.")] = None,
    molecules: Annotated[int, typer.Option(min=1, max=len(MOLECULES), help="How many are relaxed.")] = len(MOLECULES),
) -> None:
    """Print how many molecules each optimiser relaxes on each engine, and in how many calls."""
    for name in optimiser or ():
        if name not in OPTIMISERS:
            raise typer.BadParameter(f"{name} is none of {', '.join(OPTIMISERS)}.")
    chosen = list(optimiser or OPTIMISERS)
    rows = []
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(chosen) * len(bundles) * molecules)
        for name in chosen:
            for path in bundles:
                with PaiNNCalculator(path, threads=1) as calculator:
                    found = []
                    for index, formula in enumerate(MOLECULES[:molecules]):
                        progress.update(task, advance=1, description=f"{name} on {path.stem}: {formula}")
                        atoms = molecule(formula)
                        atoms.positions += np.random.default_rng(index).normal(0, SIGMA, atoms.positions.shape)
                        atoms.calc = calculator
                        found.append(relaxed(atoms, OPTIMISERS[name], fmax, steps))
                rows.append(_row(name, path, found))
    print(markdown(("optimiser", "bundle", f"relaxed to {fmax:g} eV/Å", "calls, median of these"), rows))
    print(f"\n{len(MOLECULES[:molecules])} molecules, perturbed by {SIGMA} Å, at most {steps} steps; {machine()}")


def _row(name: str, path: Path, found: list[Relaxed]) -> list[str]:
    done = [each for each in found if each.converged]
    calls = f"{np.median([each.calls for each in done]):.0f}" if done else "-"
    return [name, path.stem, f"{len(done)} of {len(found)}", calls]


if __name__ == "__main__":
    run_command(study)
