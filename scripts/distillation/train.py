"""Distil a PaiNN student from labelled structures: data in, a checkpoint that `painn-deploy export` takes out.

    python scripts/make_dataset.py --output data
    python scripts/train_student.py --data data --size base --output runs/base

Any teacher that ASE can call does: `make_dataset.py --teacher package.module:factory` lets it lead the dynamics too,
and `train_student.py --teacher package.module:factory` labels the structures that are there anew.

Stop it at any moment and start it again with the same command: it goes on from the last checkpoint, to the bit.
"""

import csv
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase.data import chemical_symbols
from jaxtyping import Int64
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from painn_deploy.calibration.report.drawing import drawn
from painn_deploy.export.checkpoint import resolve_checkpoint
from painn_deploy.export.errors import DatasetError
from painn_deploy.export.files import prepare_output, remove_partial
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.distillation.batches import Batch, Split, fit_references
from painn_deploy.scripts.distillation.losses import evaluate
from painn_deploy.scripts.distillation.relabel import relabel, teacher_of
from painn_deploy.scripts.distillation.run import Run, Settings

MAX_FORCE = 50.0
"""eV/Å, of a label that another teacher gives."""

NUM_RBF = 20
AVERAGE_DECAY = 0.999
SIZES: Mapping[str, tuple[int, int]] = {"small": (48, 2), "base": (96, 3), "large": (108, 3)}
"""Features and interactions; none has more parameters than the 427,292 of the seed project's student."""


def stream(split: Split, settings: Settings, done: int) -> Iterator[Int64[np.ndarray, " batch"]]:
    """Batches of one epoch after another; epoch e is drawn from (seed, e) alone, so a resumed run sees the same."""
    epoch, seen = 0, 0
    while True:
        for indices in split.batches(settings.slots_per_batch, np.random.default_rng((settings.seed, epoch))):
            if seen >= done:
                yield indices
            seen += 1
        epoch += 1


def plot_curves(log: Path, output: Path) -> None:
    """Draw errors on the validation split against steps.

    Args:
        log: that training wrote.
        output: the picture.
    """
    from matplotlib.ticker import LogFormatter

    with log.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = {"force_mae_meV_per_A": "force MAE (meV/Å)", "energy_mae_meV_per_atom": "energy MAE (meV/atom)"}
    with drawn(output, (9.0, 3.2), columns=2) as axes:
        for ax, (key, label) in zip(axes, keys.items(), strict=True):
            ax.plot([int(r["step"]) for r in rows], [float(r[key]) for r in rows], marker=".")
            ax.set(xlabel="step", ylabel=label, yscale="log", title="validation molecules, never trained on")
            ax.yaxis.set_major_formatter(LogFormatter())
            ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))  # 58 and not 5.8 x 10


def train(
    data: Annotated[Path, typer.Option(help="Folder that make_dataset.py wrote.")],
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint, the log and the state.")],
    size: Annotated[str, typer.Option(help="small, base or large.")] = "base",
    steps: Annotated[int, typer.Option(help="Batches to train on.")] = 20_000,
    cutoff: Annotated[float, typer.Option(help="Å.")] = 5.0,
    learning_rate: float = 2e-3,
    energy_weight: Annotated[float, typer.Option(help="Of eV/atom against eV/Å.")] = 4.0,
    slots_per_batch: Annotated[int, typer.Option(help="Atoms x slots of a batch.")] = 5_000,
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; part of the result's last digits.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    teacher: Annotated[
        str | None,
        typer.Option(help="Label the structures with this one first, tblite:METHOD or package.module:factory."),
    ] = None,
    start_from: Annotated[
        str | None, typer.Option(help="A student to begin with, of the same size or narrower.")
    ] = None,
    decay_from: Annotated[float, typer.Option(help="Share of the steps before the learning rate falls.")] = 0.0,
    compiled: Annotated[bool, typer.Option(help="Compile the sums over neighbours; wants a C++ compiler.")] = False,
    epsilon: Annotated[float, typer.Option(help="Inside the norms; 1e-8 leaves cusps on symmetric molecules.")] = 1e-3,
    evaluate_every: int = 1_000,
) -> Path:
    """Train a student and write SIZE.safetensors and SIZE.json; errors on the test split are in the JSON."""
    if size not in SIZES:
        raise DatasetError(f"There is no size {size!r}; there are {', '.join(SIZES)}.")
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    features, interactions = SIZES[size]
    settings = Settings(
        size=size,
        features=features,
        interactions=interactions,
        num_rbf=NUM_RBF,
        cutoff=cutoff,
        steps=steps,
        slots_per_batch=slots_per_batch,
        learning_rate=learning_rate,
        energy_weight=energy_weight,
        ema=AVERAGE_DECAY,
        seed=seed,
        threads=threads,
        device=device,
        start_from=start_from and resolve_checkpoint(start_from).sha256,
        decay_from=decay_from,
        compiled=compiled,
        epsilon=epsilon,
    )
    prepare_output(output)
    remove_partial(output)
    if teacher is not None and teacher != teacher_of(data):
        relabel(data, output / "labels", teacher, max_force=MAX_FORCE)
        data = output / "labels"
    training, validation = Split(data / "train.npz", cutoff), Split(data / "validation.npz", cutoff)
    species, references = fit_references(training)
    run = Run(settings, output, species, references)
    if start_from is not None:
        run.start_from(start_from)
        references = run.references
    run.resume()
    print(
        f"{size}: {run.student.num_parameters:,} parameters; {len(training):,} structures to train on, "
        f"{len(validation):,} to validate; elements {' '.join(chemical_symbols[z] for z in species)}"
    )
    residuals = {id(s): s.energies - s.composition(species) @ references for s in (training, validation)}

    def measured(split: Split) -> dict[str, float]:
        return evaluate(run.average, split, residuals[id(split)], 2 * slots_per_batch, device)

    log = output / "log.csv"
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=steps, completed=run.step)
        losses: list[float] = []
        for indices in stream(training, settings, run.step):
            if run.step >= steps:
                break
            losses.append(run.train_step(Batch.of(training, indices, residuals[id(training)], device)))
            progress.update(task, completed=run.step)
            if run.step % evaluate_every == 0 or run.step == steps:
                errors = measured(validation)
                row = {"step": run.step, "loss": float(np.mean(losses)), "learning_rate": run.learning_rate(), **errors}
                _append(log, row)
                progress.print(
                    f"step {run.step}: loss {row['loss']:.4f}; validation "
                    + _in_words(errors)
                    + f"; {time.perf_counter() - started:.0f} s"
                )
                losses = []
                run.save()
    plot_curves(log, output / "curves.png")
    test = Split(data / "test.npz", cutoff)
    residuals[id(test)] = test.energies - test.composition(species) @ references
    errors = measured(test)
    facts = {"name": f"student-{size}", "teacher": teacher_of(data), "metrics": errors, "training": asdict(settings)}
    path = run.write_checkpoint(facts)
    print(f"test molecules, never trained on: {_in_words(errors)}\nwrote {path}")
    return path


def _append(log: Path, row: Mapping[str, Any]) -> None:
    """Add a row; rows after it, of a run that was killed before it saved, are dropped."""
    rows: list[Mapping[str, Any]] = []
    if log.is_file():
        with log.open(encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file) if int(r["step"]) < row["step"]]
    with log.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        writer.writeheader()
        writer.writerows([*rows, row])


def _in_words(errors: Mapping[str, float]) -> str:
    return (
        f"energy {errors['energy_mae_meV_per_atom']:.2f} meV/atom, forces {errors['force_mae_meV_per_A']:.1f} (MAE) "
        f"and {errors['force_rmse_meV_per_A']:.1f} meV/Å (RMSE)"
    )


if __name__ == "__main__":
    run_command(train)
