"""Molecules at constant energy with each of several engines: what a precision costs in a long simulation.

    python scripts/trajectories/constant_energy.py FP32_BUNDLE INT8_BUNDLE --picoseconds 200 --output nve

simulates replicas of three molecules, or of those of `--structures`, from the same starts with each engine, and prints
the drift of the total energy with its uncertainty, and how much of the distances between atoms and of the vibrational
density of states is elsewhere than with the first engine, beside what is so by chance. A call that is interrupted, or
repeated for longer runs, goes on where the last one ended. So as many cores can be used as there are engines: one call
for each, all into the folder in which the first one has relaxed the molecules, and a last call that names them all.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms
from ase.build import molecule
from ase.io.extxyz import write_xyz
from ase.optimize import BFGS
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from painn_deploy.calibration.structures import read_structures
from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.errors import OutputError, StructureError
from painn_deploy.export.files import prepare_output, write_output
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.machine import machine
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown, names_of, write_result
from painn_deploy.scripts.trajectories.figures import COLUMNS, cells, draw, told
from painn_deploy.scripts.trajectories.molecules import EVERY, LONGEST_STEP, Conditions, Run

__all__ = ["MOLECULES", "study"]

MOLECULES = ("CH3CH2OH", "CH3CONH2", "C6H6")
"""Of ASE's G2 set; where nobody gives structures."""

STARTS, RESULT, PICTURE = "starts.extxyz", "constant_energy.json", "constant_energy.png"
"""Files in the output folder, beside one for each run."""

FMAX, MOST_STEPS = 0.01, 500
"""eV/Å, and steps, of the relaxation before."""


def study(
    bundles: Annotated[list[Path], typer.Argument(help="Engines; the first is what others are compared with.")],
    output: Annotated[Path, typer.Option(help="Folder for runs, JSON and picture.")] = Path("constant_energy"),
    structures: Annotated[Path | None, typer.Option(help="Molecules, in any format that ASE reads.")] = None,
    picoseconds: Annotated[float, typer.Option(help="Of each replica.")] = 200.0,
    replicas: Annotated[int, typer.Option(min=2, help="Of each molecule.")] = 4,
    temperature: Annotated[float, typer.Option(min=1, max=1e4, help="K.")] = 300.0,
    timestep: Annotated[float, typer.Option(min=0.01, max=LONGEST_STEP, help="fs.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of the velocities.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU.")] = None,
    device: Annotated[str, typer.Option(help="That engines run on.")] = "auto",
) -> None:
    """Simulate molecules at constant energy with each engine, and compare."""
    conditions = Conditions(temperature, timestep, replicas, seed)
    segments = round(picoseconds / conditions.length) if 0 < picoseconds < 1e9 else 0
    if not segments or abs(segments * conditions.length - picoseconds) > 1e-6 * picoseconds:
        raise typer.BadParameter(
            f"{picoseconds:g} ps are no whole number of segments of {conditions.length:g} ps. Give a multiple, such as "
            f"{max(1, segments) * conditions.length:g}.",
            param_hint="--picoseconds",
        )
    names = names_of(bundles)
    prepare_output(output)
    given = [molecule(name) for name in MOLECULES] if structures is None else read_structures(structures)
    starts = _starts(given, bundles[0], output / STARTS, device, threads)
    runs: dict[str, dict[str, Run]] = {name: {} for name in starts}
    devices: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(bundles) * len(starts) * segments * conditions.frames * EVERY)
        for bundle, engine in zip(bundles, names, strict=True):
            opened = read_bundle(bundle)
            with PaiNNCalculator(opened, device=device, threads=threads) as calculator:
                devices.append(calculator.engine_info["device"])
                for name, atoms in starts.items():
                    progress.update(task, description=f"{name} with {engine}")
                    path = output / f"{name}-{engine}.npz"
                    made = {"engine": opened.sha256, "device": devices[-1], "start": _sha256([atoms])}
                    identity = json.dumps(made | {"frames": conditions.frames} | asdict(conditions))
                    run = Run.read(path, identity) or Run.begun(atoms, conditions)
                    progress.advance(task, min(run.segments, segments) * conditions.frames * EVERY)
                    while run.segments < segments and not run.ended:
                        run.advance(calculator.evaluator, atoms, conditions, partial(progress.advance, task))
                        run.write(path, identity)
                    runs[name][engine] = run
    rows, result = [], {}
    for name, own in runs.items():
        atoms, first = starts[name], own[names[0]]
        figures = {engine: told(run, first, atoms, conditions) for engine, run in own.items()}
        rows += [cells(name, engine, one) for engine, one in figures.items()]
        result[name] = {engine: asdict(one) | _curves(own[engine], conditions) for engine, one in figures.items()}
    write_result(
        {"machine": machine(devices), "segment_ps": conditions.length, **asdict(conditions), "molecules": result},
        output / RESULT,
    )
    draw(runs, {name: len(atoms) for name, atoms in starts.items()}, conditions, output / PICTURE)
    print(markdown(COLUMNS, rows))
    print(f"\n{replicas} replicas of each molecule at {temperature:g} K, steps of {timestep:g} fs; {machine(devices)}")


def _starts(given: Sequence[Atoms], bundle: Path, path: Path, device: str, threads: int | None) -> Mapping[str, Atoms]:
    """Molecules in their minima by name: those that an earlier call relaxed, or relaxed now with an engine.

    Raises:
        StructureError: one is no molecule, or does not relax.
        OutputError: the earlier call was about others.
    """
    for atoms in given:
        if atoms.pbc.any() or len(atoms) < 2:
            raise StructureError(f"{atoms.get_chemical_formula()}: give molecules, of two atoms or more and no cell.")
    source = _sha256(given)
    if not path.is_file():
        relaxed = []
        with PaiNNCalculator(bundle, device=device, threads=threads) as calculator:
            for atoms in given:
                own = Atoms(atoms.numbers, atoms.positions, masses=atoms.get_masses(), calculator=calculator)
                if not BFGS(own, logfile=None).run(fmax=FMAX, steps=MOST_STEPS):
                    raise StructureError(
                        f"{atoms.get_chemical_formula()} does not relax to {FMAX} eV/Å in {MOST_STEPS} steps with "
                        f"{bundle}. Give a structure that is near a minimum."
                    )
                own.calc, own.info = None, {"source": source}
                relaxed.append(own)
        text = io.StringIO()
        write_xyz(text, relaxed)
        write_output(path, text.getvalue().encode())
    starts = read_structures(path)  # also right after writing: a later call reads these digits
    if len(starts) != len(given) or any(atoms.info.get("source") != source for atoms in starts):
        raise OutputError(f"{path} is of other structures. Give another --output.")
    return {f"{index}-{atoms.get_chemical_formula()}": atoms for index, atoms in enumerate(starts, 1)}


def _sha256(structures: Sequence[Atoms]) -> str:
    digest = hashlib.sha256()
    for atoms in structures:
        digest.update(atoms.numbers.tobytes() + atoms.positions.tobytes() + atoms.get_masses().tobytes())
    return digest.hexdigest()


def _curves(run: Run, conditions: Conditions) -> dict[str, list[float]]:
    """What is drawn, in JSON types."""
    return {
        "energies_eV": run.energies.tolist(),
        "kinetic_eV": run.kinetic.tolist(),
        "distances": run.distances.sum(0).tolist(),
        "vibrations": np.round(run.spectra.sum(0) / max(run.spectra.sum(), 1e-300), 9).tolist(),
        "wavenumbers": np.round(conditions.wavenumbers, 3).tolist(),
    }


if __name__ == "__main__":
    run_command(study)
