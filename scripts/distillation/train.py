"""Distil a PaiNN student from labelled structures: data in, a checkpoint that `painn-deploy export` takes out.

    python scripts/make_dataset.py --output data
    python scripts/train_student.py --data data --size base --output runs/base

Any teacher that ASE can call does: `make_dataset.py --teacher package.module:factory` lets it lead the dynamics too,
and `train_student.py --teacher package.module:factory` labels the structures that are there anew.

    python scripts/train_student.py --quantise int8 --start-from best_model --structures frames.extxyz --output int8

trains a PaiNN of any origin for INT8: its products are computed as an INT8 engine does, and it learns to give what it
gave before. Frames need no labels; with --data, labels count beside that.

Stop it at any moment and start it again with the same command: it goes on from the last checkpoint, to the bit.
"""

import csv
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase.data import chemical_symbols
from jaxtyping import Int64
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from painn_deploy.calibration.report.drawing import drawn
from painn_deploy.calibration.structures import check_species
from painn_deploy.export.checkpoint import LARGEST_JSON, load_checkpoint, resolve_checkpoint
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import DatasetError
from painn_deploy.export.files import prepare_output, remove_partial
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.export.reading import read_json
from painn_deploy.runtime.matrix import join
from painn_deploy.scripts.commands.choices import EnergyUnit, LengthUnit, Species
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.distillation.batches import Batch, Split, fit_references
from painn_deploy.scripts.distillation.fake_int8 import FakeInt8
from painn_deploy.scripts.distillation.losses import evaluate
from painn_deploy.scripts.distillation.relabel import relabel, teacher_of
from painn_deploy.scripts.distillation.run import Run, Settings, fresh_student
from painn_deploy.scripts.distillation.self_labels import label_by_itself

MAX_FORCE = 50.0
"""eV/Å, of a label that another teacher gives."""

NUM_RBF = 20
AVERAGE_DECAY = 0.999
LEARNING_RATE, QUANTISED_LEARNING_RATE = 2e-3, 3e-7
"""Adam's steps are as long where there is little to gain: at 2e-5 they undo more than INT8 costs."""
SCALED_ON = 240
"""Structures of the training split that the scales of INT8 are found on."""
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
    title = "validation structures, never trained on"
    with drawn(output, (9.0, 3.2), columns=2) as axes:
        for ax, (key, label) in zip(axes, keys.items(), strict=True):
            ax.plot([int(r["step"]) for r in rows], [float(r[key]) for r in rows], marker=".")
            ax.set(xlabel="step", ylabel=label, yscale="log", title=title)
            ax.yaxis.set_major_formatter(LogFormatter())
            ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))  # 58 and not 5.8 x 10


def train(
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint, the log and the state.")],
    data: Annotated[Path | None, typer.Option(help="Folder that make_dataset.py wrote.")] = None,
    size: Annotated[str, typer.Option(help="small, base or large.")] = "base",
    steps: Annotated[int, typer.Option(help="Batches to train on.")] = 20_000,
    cutoff: Annotated[float, typer.Option(help="Å.")] = 5.0,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its highest; 2e-3 if not given, 3e-7 with --quantise.")
    ] = None,
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
        str | None, typer.Option(help="A student to begin with, of the same size or narrower; any with --quantise.")
    ] = None,
    decay_from: Annotated[float, typer.Option(help="Share of the steps before the learning rate falls.")] = 0.0,
    compiled: Annotated[bool, typer.Option(help="Compile the sums over neighbours; wants a C++ compiler.")] = False,
    epsilon: Annotated[float, typer.Option(help="Inside the norms; 1e-8 leaves cusps on symmetric molecules.")] = 1e-3,
    evaluate_every: int = 1_000,
    quantise: Annotated[
        str | None, typer.Option(help="int8: train --start-from for INT8; its sizes and cutoff are kept.")
    ] = None,
    structures: Annotated[
        Path | None, typer.Option(help="With --quantise: frames, in any format that ASE reads, in the place of --data.")
    ] = None,
    distil: Annotated[
        float, typer.Option(min=0.0, help="With --quantise and --data: weight of what --start-from gave.")
    ] = 1.0,
    energy_unit: EnergyUnit = None,
    length_unit: LengthUnit = None,
    species: Species = None,
) -> Path:
    """Train a student and write SIZE.safetensors and SIZE.json; errors on the test split are in the JSON.

    With --quantise the files are NAME-int8.safetensors and NAME-int8.json.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    begun = None
    if quantise is not None or structures is not None:
        declared = Declaration.of(energy_unit, length_unit, species)
        begun = _to_quantise(quantise, start_from, declared, data=data, structures=structures, teacher=teacher)
    elif size not in SIZES:
        raise DatasetError(f"There is no size {size!r}; there are {', '.join(SIZES)}.")
    data = _training_set(data, output, begun, teacher)
    if begun is None:
        features, interactions = SIZES[size]
        kind: dict[str, Any] = {"size": size, "features": features, "interactions": interactions, "num_rbf": NUM_RBF}
        kind |= {"cutoff": cutoff, "epsilon": epsilon}
    else:
        kind = begun.kind()
    if learning_rate is None:
        learning_rate = LEARNING_RATE if begun is None else QUANTISED_LEARNING_RATE
    training, validation = (Split(data / f"{split}.npz", kind["cutoff"]) for split in ("train", "validation"))
    settings = Settings(
        **kind,
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
        quantise=quantise,
        distil=None if begun is None or begun.frames is not None else distil,
        frames=None if structures is None else sha256(training.positions.tobytes()).hexdigest(),
    )
    size, cutoff = settings.size, settings.cutoff
    if begun is None:
        run = _fresh_run(settings, output, training, start_from)
    else:
        check_species([training.atoms(i) for i in range(len(training))], begun.student.species, str(data))
        run = Run(settings, output, begun.student.float(), begun.student.atomic_references.numpy())
    run.resume()
    elements = sorted(set(training.numbers.tolist()))
    print(
        f"{size}: {run.student.num_parameters:,} parameters; {len(training):,} structures to train on, "
        f"{len(validation):,} to validate; elements {' '.join(chemical_symbols[z] for z in elements)}"
    )
    residuals = {id(s): s.energies - s.composition(elements) @ run.references[elements] for s in (training, validation)}
    spread = np.linspace(0, len(training) - 1, min(SCALED_ON, len(training)), dtype=int)
    scaled_on = [join([training.graphs[i]]) for i in spread]

    def measured(split: Split, fake: FakeInt8 | None, student: PaiNN = run.average) -> dict[str, float]:
        return evaluate(student, split, residuals[id(split)], 2 * slots_per_batch, device, fake)

    log = output / "log.csv"
    started = time.perf_counter()
    fake = run.rescale(scaled_on)
    if fake is not None and run.step == 0:
        print(f"before: {_in_words(measured(validation, fake))}")
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
                fake = run.rescale(scaled_on)
                errors = measured(validation, fake)
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
    residuals[id(test)] = test.energies - test.composition(elements) @ run.references[elements]
    errors = measured(test, fake)
    facts = {"name": f"student-{size}", "teacher": teacher_of(data), "metrics": errors, "training": asdict(settings)}
    gained = True
    if begun is not None and run.before is not None and run.scales is not None:
        facts["name"] = size
        if begun.frames is not None:
            facts["teacher"] = f"itself, {start_from}"
        before = measured(test, FakeInt8(run.before, run.scales.scales_of(run.before, scaled_on)), run.before)
        facts["metrics"] = errors | {f"before_{key}": value for key, value in before.items()}
        gained = errors["force_rmse_meV_per_A"] < before["force_rmse_meV_per_A"]
        print(f"test structures before: {_in_words(before)}")
    path = run.write_checkpoint(facts)
    print(f"test structures, never trained on: {_in_words(errors)}\nwrote {path}")
    if not gained:
        print(f"Training gained nothing: export {start_from} itself in int8, or try another learning rate.")
    return path


@dataclass(frozen=True)
class _Begun:
    """A student to be quantised.

    Attributes:
        student: in float64.
        name: of what comes of it.
        frames: that it labels itself; None where there are labels.
        declared: what its owner said of it.
    """

    student: PaiNN
    name: str
    frames: Path | None
    declared: Declaration | None

    def kind(self) -> dict[str, Any]:
        """What of a run's settings follows from it; see `Settings`."""
        shape = self.student.configuration
        return {
            "size": self.name,
            "features": shape.hidden_dim,
            "interactions": shape.num_interactions,
            "num_rbf": shape.num_rbf,
            "cutoff": shape.cutoff,
            "epsilon": shape.epsilon,
            "declared": None if self.declared is None else self.declared.as_dict(),
        }


def _to_quantise(
    quantise: str | None,
    start_from: str | None,
    declared: Declaration | None,
    *,
    data: Path | None,
    structures: Path | None,
    teacher: str | None,
) -> _Begun:
    """Load what is to be quantised.

    Raises:
        DatasetError: options do not go together, or the student cannot be trained for INT8, or is already.
    """
    if quantise != "int8":
        raise DatasetError(
            f"--quantise {quantise} is nothing that students are trained for; there is int8."
            if quantise
            else "--structures are frames without labels: give --quantise int8 with them, or --data to train on labels."
        )
    if start_from is None:
        raise DatasetError("--quantise int8 begins with a student that was trained: give it with --start-from.")
    if (data is None) == (structures is None):
        raise DatasetError("Give --data, with labels, or --structures, frames without; one of both.")
    if structures is not None and teacher is not None:
        raise DatasetError("--structures are labelled by --start-from itself. For the labels of --teacher give --data.")
    student, made = load_checkpoint(start_from, dtype=torch.float64, declared=declared)
    if not isinstance(student, PaiNN):
        raise DatasetError(
            f"{start_from} is a {student.configuration.architecture}, and painn alone is trained here. Export it in "
            "int8 as it is; the search leaves out what costs too much."
        )
    beside = made.path.with_suffix(".json")
    facts = read_json(beside, LARGEST_JSON) if made.path.suffix == ".safetensors" and beside.is_file() else {}
    if isinstance(said := facts.get("training"), dict) and said.get("quantise"):
        raise DatasetError(
            f"{start_from} was trained for INT8 already. Export it with --precision int8, or start from the student "
            "that it was made from."
        )
    return _Begun(student, f"{made.name}-int8", structures, declared)


def _training_set(data: Path | None, output: Path, begun: _Begun | None, teacher: str | None) -> Path:
    """The folder of the labels to train on, made first where they are a student's own or another teacher's.

    Raises:
        DatasetError: there is nothing to train on, or it cannot be labelled.
    """
    own = output / "labels"
    if begun is not None and begun.frames is not None:
        prepare_output(own)
        remove_partial(output)
        label_by_itself(begun.student, begun.frames, own, MAX_FORCE)
        return own
    if data is None:
        raise DatasetError("There is nothing to train on. Give --data, a folder that make_dataset.py wrote.")
    prepare_output(output)
    remove_partial(output)
    if teacher is not None and teacher != teacher_of(data):
        relabel(data, own, teacher, max_force=MAX_FORCE)
        return own
    return data


def _fresh_run(settings: Settings, output: Path, training: Split, start_from: str | None) -> Run:
    """A run from new weights, or from those of `start_from`, with atomic references fitted to the data or its own."""
    species, fitted = fit_references(training)
    references = np.zeros(max(species) + 1)
    references[species] = fitted
    run = Run(settings, output, fresh_student(settings, species), references)
    if start_from is not None:
        run.start_from(start_from)
    return run


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
    words = (
        f"energy {errors['energy_mae_meV_per_atom']:.2f} meV/atom, forces {errors['force_mae_meV_per_A']:.1f} (MAE) "
        f"and {errors['force_rmse_meV_per_A']:.1f} meV/Å (RMSE)"
    )
    if "own_fp32_force_rmse_meV_per_A" not in errors:
        return words
    return (
        f"INT8 {words}; against its own FP32 energy {errors['own_fp32_energy_mae_meV_per_atom']:.2f} meV/atom, forces "
        f"{errors['own_fp32_force_rmse_meV_per_A']:.1f} meV/Å (RMSE)"
    )


if __name__ == "__main__":
    run_command(train)
