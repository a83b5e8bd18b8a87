"""Distil a PaiNN student from labelled structures: data in, a checkpoint that `painn-deploy export` takes out.

    python scripts/make_dataset.py --output data
    python scripts/train_student.py --data data --size base --output runs/base

Any teacher that ASE can call does: `make_dataset.py --teacher package.module:factory` lets it lead the dynamics too,
and `train_student.py --teacher package.module:factory` labels the structures that are there anew.

Stop it at any moment and start it again with the same command: it goes on from the last checkpoint, to the bit.
"""

import csv
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase.data import chemical_symbols
from jaxtyping import Float, Int64
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from painn_deploy.export.checkpoint import load_student, resolve_checkpoint
from painn_deploy.export.errors import DatasetError, OutputError
from painn_deploy.export.files import prepare_output, remove_partial, whole_file
from painn_deploy.export.model.aggregation import CLOSED_FORM, Aggregation
from painn_deploy.export.model.force_head import forces_of
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.export.model.student import Configuration
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.distillation.batches import Batch, Split, fit_references
from painn_deploy.scripts.distillation.fused_sums import compiled_sums
from painn_deploy.scripts.distillation.relabel import relabel, teacher_of

MAX_FORCE = 50.0  # eV/Å, of a label that another teacher gives
SIZES: Mapping[str, tuple[int, int]] = {"small": (48, 2), "base": (96, 3), "large": (108, 3)}
"""Features and interactions; none has more parameters than the 427,292 of the seed project's student."""


@dataclass(frozen=True)
class Settings:
    """What decides a run's result, to the bit; a run is resumed only with the same."""

    size: str
    features: int
    interactions: int
    num_rbf: int
    cutoff: float
    steps: int
    slots_per_batch: int
    learning_rate: float
    energy_weight: float
    ema: float
    seed: int
    threads: int
    device: str
    start_from: str | None
    decay_from: float
    compiled: bool
    epsilon: float


def predict(
    student: PaiNN, batch: Batch, *, training: bool, sums: Aggregation = CLOSED_FORM
) -> tuple[Float[Tensor, " structures"], Tensor]:
    """Energies (eV, without atomic references) and forces (eV/Å), differentiable again while training."""
    displacements = batch.graph.displacements.requires_grad_()
    atomic = student(batch.graph, sums)
    (gradient,) = torch.autograd.grad(atomic.sum(), displacements, create_graph=training)
    energies = torch.zeros_like(batch.energies).index_add(0, batch.structure, atomic)
    return energies, forces_of(gradient, batch.graph.reverse)


def loss_of(student: PaiNN, batch: Batch, energy_weight: float, sums: Aggregation = CLOSED_FORM) -> Tensor:
    """Mean length of the force errors plus weighted energy errors per atom: robust, as what we report is."""
    energies, forces = predict(student, batch, training=True, sums=sums)
    per_atom = (energies - batch.energies).abs() / batch.sizes
    lengths = ((forces - batch.forces).square().sum(-1) + 1e-8).sqrt()
    return lengths.mean() + energy_weight * per_atom.mean()


def evaluate(student: PaiNN, split: Split, residuals: np.ndarray, settings: Settings) -> dict[str, float]:
    """Energy MAE in meV/atom, force MAE and RMSE in meV/Å."""
    energy, absolute, square, components = 0.0, 0.0, 0.0, 0
    for indices in split.batches(settings.slots_per_batch * 2, None):
        batch = Batch.of(split, indices, residuals, settings.device)
        energies, forces = predict(student, batch, training=False)
        error = (forces.detach() - batch.forces).double()
        energy += float(((energies.detach() - batch.energies).abs() / batch.sizes).sum())
        absolute, square, components = (
            absolute + float(error.abs().sum()),
            square + float(error.square().sum()),
            (components + error.numel()),
        )
    return {
        "energy_mae_meV_per_atom": 1e3 * energy / len(split),
        "force_mae_meV_per_A": 1e3 * absolute / components,
        "force_rmse_meV_per_A": 1e3 * math.sqrt(square / components),
    }


def widen(narrow: Tensor, wide: Tensor, old: int, new: int) -> Tensor:
    """A narrow student's parameter in a wide one's place, so that it computes the same.

    Each run of `old` units becomes the first of a run of `new`. No old unit hears a new one, and a new one keeps its
    fresh weights, from which it learns (Chen, Goodfellow & Shlens, Net2Net, 2016, in spirit).

    Args:
        narrow: parameter of the narrow student.
        wide: freshly drawn parameter of the wide one, [rows] or [rows, columns].
        old: half the narrow student's features: its read-out's width, of which every other width is a multiple.
        new: half the wide student's features.
    """
    if narrow.shape == wide.shape:
        return narrow
    places = [
        torch.arange(n) if n == w else (torch.arange(n // old)[:, None] * new + torch.arange(old)).flatten()
        for n, w in zip(narrow.shape, wide.shape, strict=True)
    ]
    widened = wide.clone()
    widened[places[0]] = 0
    widened[torch.meshgrid(*places, indexing="ij")] = narrow
    return widened


class Run:
    """Everything that a run needs to go on where it stopped."""

    def __init__(self, settings: Settings, output: Path, species: list[int], references: np.ndarray) -> None:
        self.settings, self.output, self.species, self.references = settings, output, species, references
        torch.manual_seed(settings.seed)
        configuration = Configuration(
            "painn", settings.features, settings.interactions, settings.num_rbf, settings.cutoff, tuple(species),
            settings.epsilon,
        )  # fmt: skip
        self.student = PaiNN(configuration, rows=max(species) + 1).to(settings.device)
        self.sums = compiled_sums() if settings.compiled else CLOSED_FORM
        self.average = PaiNN(configuration, rows=max(species) + 1).to(settings.device)
        self.average.load_state_dict(self.student.state_dict())
        self.weights: list[Tensor] = list(self.student.parameters())
        self.optimiser = torch.optim.AdamW(self.weights, lr=settings.learning_rate, weight_decay=1e-6, fused=True)
        self.step = 0

    def start_from(self, checkpoint: str) -> None:
        """Begin with what a student of the same width or a narrower one knows, and with its atomic references.

        Raises:
            OutputError: it is another architecture, wider or deeper, or knows other elements.
        """
        student = load_student(checkpoint)
        theirs, ours = student.configuration.as_dict(), self.student.configuration.as_dict()
        # another epsilon smooths what the weights know, and they can be trained on with it
        keys = [key for key in ours if theirs[key] != ours[key] and key != "epsilon"]
        if theirs["hidden_dim"] < ours["hidden_dim"]:
            keys.remove("hidden_dim")
        if differ := [f"{key}: {theirs[key]} there, {ours[key]} here" for key in keys]:
            raise OutputError(
                f"{checkpoint} is another kind of student ({'; '.join(differ)}). "
                "Give its size, or a wider one of as many interactions, its cutoff and data of its elements, "
                "or start without --start-from."
            )
        self.references = student.atomic_references[self.species].numpy()
        state, halves = student.state_dict(), (theirs["hidden_dim"] // 2, ours["hidden_dim"] // 2)
        widened = {key: widen(state[key], fresh, *halves) for key, fresh in self.student.state_dict().items()}
        for copy in (self.student, self.average):
            copy.load_state_dict(widened)

    @property
    def state_path(self) -> Path:
        return self.output / "state.pt"

    def save(self) -> None:
        """Write the state; a kill leaves the old one or the new one."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        with whole_file(self.state_path) as file:
            torch.save(state, file)

    def resume(self) -> None:
        """Go on from a state that is there.

        Raises:
            DatasetError: it belongs to a run with other settings.
        """
        if not self.state_path.is_file():
            return
        state = torch.load(self.state_path, weights_only=True, map_location=self.settings.device)
        now = asdict(self.settings)
        before = {**state["settings"]}
        if state["step"] <= self.settings.decay_from * min(before["steps"], now["steps"]):
            before["steps"] = now["steps"]  # the learning rate has not begun to fall by either plan
        if different := [f"{k}: {before.get(k)} then, {v} now" for k, v in now.items() if before.get(k) != v]:
            raise OutputError(
                f"{self.output} holds a run with other settings ({'; '.join(different)}). "
                "Give the same settings to resume it, or another --output."
            )
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]

    def learning_rate(self) -> float:
        """A short warm-up, a plateau, then half a cosine down to a hundredth.

        As long as the plateau lasts, a run may be resumed with more or fewer steps.
        """
        warm = min(1.0, (self.step + 1) / 200)
        plateau = self.settings.decay_from * self.settings.steps
        fallen = max(0.0, (self.step - plateau) / (self.settings.steps - plateau))
        return self.settings.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fallen)))

    def train_step(self, batch: Batch) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.zero_grad(set_to_none=True)
        loss = loss_of(self.student, batch, self.settings.energy_weight, self.sums)
        loss.backward(inputs=self.weights)  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.settings.ema, self.step / (self.step + 10))
        with torch.no_grad():
            averages: list[Tensor] = list(self.average.parameters())
            torch._foreach_lerp_(averages, self.weights, 1 - decay)
        return float(loss.detach())

    def write_checkpoint(self, facts: Mapping[str, Any]) -> Path:
        """The averaged student as a checkpoint: weights, atomic references, and the configuration beside them."""
        rows = torch.zeros(self.average.embedding.num_embeddings, dtype=torch.float64)
        rows[self.species] = torch.as_tensor(self.references)
        path = self.output / f"{self.settings.size}.safetensors"
        weights = {k: v.detach().cpu().contiguous() for k, v in self.average.state_dict().items()}
        save_file({**weights, "atomic_references": rows}, path)
        configuration = self.average.configuration.as_dict() | dict(facts)
        path.with_suffix(".json").write_text(json.dumps(configuration, indent=1) + "\n", encoding="utf-8")
        return path


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
    """Errors on the validation split against steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogFormatter

    with log.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for ax, key, label in (
        (axes[0], "force_mae_meV_per_A", "force MAE (meV/Å)"),
        (axes[1], "energy_mae_meV_per_atom", "energy MAE (meV/atom)"),
    ):
        ax.plot([int(r["step"]) for r in rows], [float(r[key]) for r in rows], marker=".")
        ax.set(xlabel="step", ylabel=label, yscale="log", title="validation molecules, never trained on")
        ax.yaxis.set_major_formatter(LogFormatter())
        ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))  # 58 and not 5.8 x 10
        ax.grid(alpha=0.3, which="both")
    figure.savefig(output, dpi=150)
    plt.close(figure)


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
        size, features, interactions, 20, cutoff, steps, slots_per_batch, learning_rate, energy_weight, 0.999, seed,
        threads, device, start_from and resolve_checkpoint(start_from).sha256, decay_from, compiled,
        epsilon,
    )  # fmt: skip
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
                errors = evaluate(run.average, validation, residuals[id(validation)], settings)
                row = {"step": run.step, "loss": float(np.mean(losses)), "learning_rate": run.learning_rate(), **errors}
                _append(log, row)
                progress.print(
                    f"step {run.step}: loss {row['loss']:.4f}; validation "
                    + _told(errors)
                    + f"; {time.perf_counter() - started:.0f} s"
                )
                losses = []
                run.save()
    plot_curves(log, output / "curves.png")
    test = Split(data / "test.npz", cutoff)
    errors = evaluate(run.average, test, test.energies - test.composition(species) @ references, settings)
    facts = {"name": f"student-{size}", "teacher": teacher_of(data), "metrics": errors, "training": asdict(settings)}
    path = run.write_checkpoint(facts)
    print(f"test molecules, never trained on: {_told(errors)}\nwrote {path}")
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


def _told(errors: Mapping[str, float]) -> str:
    return (
        f"energy {errors['energy_mae_meV_per_atom']:.2f} meV/atom, forces {errors['force_mae_meV_per_A']:.1f} (MAE) "
        f"and {errors['force_rmse_meV_per_A']:.1f} meV/Å (RMSE)"
    )


if __name__ == "__main__":
    run_command(train)
