"""How far optimisers get on an engine's surface: those that search along a line need more digits than float32 has.

`python scripts/studies/line_searches.py BUNDLE ...` relaxes perturbed molecules until no force is above a limit, with
each of ASE's optimisers, on each engine, and counts how many converge and in how many steps. `--reference` names the
checkpoint of the engines: its student in PyTorch and float64 shows how far an optimiser itself gets. A line search
compares energies at points that hardly differ; where their difference is rounding, it fails.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.optimize import BFGS, FIRE, LBFGS, BFGSLineSearch, GPMin, LBFGSLineSearch
from rich.progress import Progress

from painn_deploy.calibration.accuracy.reference import TorchCalculator
from painn_deploy.export import load_student
from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.declaration import declaration_of
from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.machine import machine
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["OPTIMISERS", "Relaxed", "relaxed", "study"]

NOISE = 1e-5
"""eV/Å that GPMin expects on forces. Its default of 1e-3 smooths its model of the surface, so that it does not get to
1e-4 eV/Å, whatever computes forces."""

OPTIMISERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        **{kind.__name__: kind for kind in (LBFGSLineSearch, BFGSLineSearch)},
        "GPMin": partial(GPMin, noise=NOISE),
        **{kind.__name__: kind for kind in (BFGS, LBFGS, FIRE)},
    }
)
MOLECULES = ("H2O", "NH3", "CH3OH", "CH3CH2OH", "C6H6", "CH3COOH", "CH3CHO", "C2H6")
SIGMA = 0.1
"""Å, by which each coordinate is perturbed."""


class Relaxed(NamedTuple):
    """The end of one relaxation.

    Attributes:
        converged: whether every force was within the limit.
        steps: of the optimiser.
        force: eV/Å, the largest at the end; NaN where the optimiser gave up.
    """

    converged: bool
    steps: int
    force: float


def relaxed(atoms: Atoms, optimiser: Callable[..., Any], fmax: float, steps: int) -> Relaxed:
    """Relax a structure in place.

    Args:
        atoms: with a calculator.
        optimiser: a class of ASE's.
        fmax: eV/Å, the largest force at which it has converged.
        steps: at most.
    """
    runs = optimiser(atoms, logfile=None)
    try:
        with warnings.catch_warnings():  # of a search that fails, which is what is counted here
            warnings.simplefilter("ignore")
            converged = bool(runs.run(fmax=fmax, steps=steps))
            force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    except (PaiNNDeployError, RuntimeError, ValueError, ArithmeticError, np.linalg.LinAlgError):
        converged, force = False, float("nan")
    return Relaxed(converged, int(runs.nsteps), force)


def study(
    bundles: list[Path],
    fmax: Annotated[float, typer.Option(help="eV/Å; largest force at which a structure is relaxed.")] = 1e-4,
    steps: Annotated[int, typer.Option(help="Of each relaxation, at most.")] = 300,
    optimiser: Annotated[list[str] | None, typer.Option(help="Of ASE; repeatable; all if not given.")] = None,
    reference: Annotated[str | None, typer.Option(help="Checkpoint of the engines.")] = None,
    molecules: Annotated[int, typer.Option(min=1, max=len(MOLECULES), help="How many are relaxed.")] = len(MOLECULES),
) -> None:
    """Print how many molecules each optimiser relaxes on each engine, and in how many calls."""
    for name in optimiser or ():
        if name not in OPTIMISERS:
            raise typer.BadParameter(f"{name} is none of {', '.join(OPTIMISERS)}.")
    chosen, rows = list(optimiser or OPTIMISERS), []
    with Progress(transient=True) as progress, ExitStack() as stack:
        unique = len({path.stem for path in bundles}) == len(bundles)
        calculators: dict[str, Calculator] = {
            path.stem if unique else str(path): stack.enter_context(PaiNNCalculator(path, threads=1))
            for path in bundles
        }
        if reference is not None:
            declared = declaration_of(read_bundle(bundles[0]).manifest)
            student = load_student(reference, dtype=torch.float64, declared=declared)
            calculators["student in PyTorch, float64"] = TorchCalculator(student)
        task = progress.add_task("", total=len(chosen) * len(calculators) * molecules)
        for name in chosen:
            for label, calculator in calculators.items():
                found = []
                for index, formula in enumerate(MOLECULES[:molecules]):
                    progress.update(task, advance=1, description=f"{name} on {label}: {formula}")
                    atoms = molecule(formula)
                    atoms.positions += np.random.default_rng(index).normal(0, SIGMA, atoms.positions.shape)
                    atoms.calc = calculator
                    found.append(relaxed(atoms, OPTIMISERS[name], fmax, steps))
                rows.append(_row(name, label, found))
    print(markdown(("optimiser", "forces of", f"relaxed to {fmax:g} eV/Å", "steps, median of these"), rows))
    print(f"\n{molecules} molecules, perturbed by {SIGMA} Å, at most {steps} steps; {machine()}")


def _row(name: str, label: str, found: list[Relaxed]) -> list[str]:
    done = [each.steps for each in found if each.converged]
    return [name, label, f"{len(done)} of {len(found)}", f"{np.median(done):.0f}" if done else "-"]


if __name__ == "__main__":
    run_command(study)
