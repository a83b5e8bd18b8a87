"""Distil a PaiNN student from labelled structures: data in, a checkpoint that `painn-deploy export` takes out.

    python scripts/make_dataset.py --output data
    python scripts/train_student.py --data data --size base --output runs/base

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
from ase import Atoms
from ase.data import chemical_symbols
from jaxtyping import Float, Float32, Float64, Int64
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from painn_deploy.export.aggregation import CLOSED_FORM
from painn_deploy.export.errors import DatasetError, OutputError
from painn_deploy.export.force_head import forces_of, tensors
from painn_deploy.export.manifest import prepare_output
from painn_deploy.export.painn import PaiNN
from painn_deploy.export.student import Configuration, NeighbourGraph
from painn_deploy.runtime.neighbours import Pairs, SlotLayout, find_pairs
from painn_deploy.scripts.entry import run_command

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


class Split:
    """One split of a dataset, with the neighbours of every structure found once.

    Args:
        path: npz of `make_dataset.py`: numbers, positions (Å), forces (eV/Å), energies (eV), offsets, kinds.
        cutoff: Å.
    """

    def __init__(self, path: Path, cutoff: float) -> None:
        try:
            with np.load(path) as file:
                data = {key: file[key] for key in file.files}
        except (OSError, ValueError) as error:
            raise DatasetError(f"Cannot read {path}: {error}. Make it with scripts/make_dataset.py.") from error
        if len(data["energies"]) == 0:
            raise DatasetError(f"{path} is empty. Add molecules, or change the split.")
        self.numbers: Int64[np.ndarray, " all_atoms"] = data["numbers"].astype(np.int64)
        self.positions: Float64[np.ndarray, "all_atoms 3"] = data["positions"]
        self.forces: Float32[np.ndarray, "all_atoms 3"] = data["forces"]
        self.energies: Float64[np.ndarray, " structures"] = data["energies"]
        self.offsets: Int64[np.ndarray, " structures_and_one"] = data["offsets"]
        self.kinds: np.ndarray = data["kinds"]
        self.pairs: list[Pairs] = [find_pairs(self.atoms(i), cutoff)[0] for i in range(len(self))]
        self.slots = np.array([self._slots(i) for i in range(len(self))])

    def __len__(self) -> int:
        return len(self.energies)

    def rows(self, index: int) -> slice:
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def atoms(self, index: int) -> Atoms:
        rows = self.rows(index)
        return Atoms(self.numbers[rows], self.positions[rows])

    def _slots(self, index: int) -> int:
        pairs = self.pairs[index]
        return int(np.bincount(np.concatenate([pairs.first, pairs.second]), minlength=1).max(initial=1))

    def sizes(self) -> Int64[np.ndarray, " structures"]:
        """Atoms of each structure."""
        return np.diff(self.offsets)

    def composition(self, species: list[int]) -> Float64[np.ndarray, "structures species"]:
        """How many atoms of each element each structure has."""
        structure = np.repeat(np.arange(len(self)), self.sizes())
        counts = np.zeros((len(self), len(species)))
        for column, z in enumerate(species):
            counts[:, column] = np.bincount(structure[self.numbers == z], minlength=len(self))
        return counts

    def batches(self, budget: int, rng: np.random.Generator | None) -> list[Int64[np.ndarray, " batch"]]:
        """Structures of like size together, about `budget` slots in each batch; shuffled where there is a generator."""
        jitter = rng.uniform(0, 4, len(self)) if rng is not None else np.zeros(len(self))
        order = np.argsort(self.slots + jitter, kind="stable")
        batches: list[np.ndarray] = []
        batch: list[int] = []
        atoms, slots = 0, 0
        for index, size in zip(order, self.sizes()[order], strict=True):
            slots = max(slots, int(self.slots[index]))
            if batch and (atoms + size) * slots > budget:
                batches.append(np.array(batch))
                batch, atoms, slots = [], 0, int(self.slots[index])
            batch.append(int(index))
            atoms += int(size)
        batches.append(np.array(batch))
        if rng is not None:
            rng.shuffle(batches)
        return batches


@dataclass(frozen=True)
class Batch:
    """A graph and its labels: energies without atomic references [structures], forces [atoms, 3]."""

    graph: NeighbourGraph
    structure: Tensor
    sizes: Tensor
    energies: Tensor
    forces: Tensor

    @classmethod
    def of(cls, split: Split, indices: Int64[np.ndarray, " batch"], residuals: np.ndarray, device: str) -> "Batch":
        sizes = split.sizes()[indices]
        starts = np.cumsum(sizes) - sizes
        first = np.concatenate([split.pairs[i].first + s for i, s in zip(indices, starts, strict=True)])
        second = np.concatenate([split.pairs[i].second + s for i, s in zip(indices, starts, strict=True)])
        rows = np.concatenate([np.arange(split.offsets[i], split.offsets[i + 1]) for i in indices])
        layout = SlotLayout.of(first, second, len(rows))
        positions = split.positions[rows]
        displacements, mask = layout.scatter(positions[second] - positions[first])
        graph = tensors((split.numbers[rows], displacements, layout.neighbours, layout.reverse, mask), torch.float32)
        return cls(
            NeighbourGraph(*(t.to(device) for t in graph)),
            torch.as_tensor(np.repeat(np.arange(len(indices)), sizes)).to(device),
            torch.as_tensor(sizes).to(device),
            torch.as_tensor(residuals[indices], dtype=torch.float32).to(device),
            torch.as_tensor(split.forces[rows]).to(device),
        )


def predict(student: PaiNN, batch: Batch, *, training: bool) -> tuple[Float[Tensor, " structures"], Tensor]:
    """Energies (eV, without atomic references) and forces (eV/Å), differentiable again while training."""
    displacements = batch.graph.displacements.requires_grad_()
    atomic = student(batch.graph, CLOSED_FORM)
    (gradient,) = torch.autograd.grad(atomic.sum(), displacements, create_graph=training)
    energies = torch.zeros_like(batch.energies).index_add(0, batch.structure, atomic)
    return energies, forces_of(gradient, batch.graph.reverse)


def loss_of(student: PaiNN, batch: Batch, energy_weight: float) -> Tensor:
    """Mean length of the force errors plus weighted energy errors per atom: robust, as what we report is."""
    energies, forces = predict(student, batch, training=True)
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


def fit_references(split: Split) -> tuple[list[int], Float64[np.ndarray, " species"]]:
    """Energy of each element, by least squares over molecules: what is left for the student is chemistry."""
    species = sorted(set(split.numbers.tolist()))
    bound = split.sizes() > 1
    if not bound.any():
        raise DatasetError("The training split holds single atoms alone; add molecules.")
    composition = split.composition(species) / split.sizes()[:, None]
    per_atom = split.energies / split.sizes()
    references, *_ = np.linalg.lstsq(composition[bound], per_atom[bound], rcond=None)
    return species, references


class Run:
    """Everything that a run needs to go on where it stopped."""

    def __init__(self, settings: Settings, output: Path, species: list[int], references: np.ndarray) -> None:
        self.settings, self.output, self.species, self.references = settings, output, species, references
        torch.manual_seed(settings.seed)
        configuration = Configuration(
            "painn", settings.features, settings.interactions, settings.num_rbf, settings.cutoff, tuple(species)
        )
        self.student = PaiNN(configuration, rows=max(species) + 1).to(settings.device)
        self.average = PaiNN(configuration, rows=max(species) + 1).to(settings.device)
        self.average.load_state_dict(self.student.state_dict())
        self.optimiser = torch.optim.AdamW(self.student.parameters(), lr=settings.learning_rate, weight_decay=1e-6)
        self.step = 0

    @property
    def state_path(self) -> Path:
        return self.output / "state.pt"

    def save(self) -> None:
        """Write the state under another name first, so that a kill leaves the old one or the new one."""
        partial = self.state_path.with_suffix(".partial")
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        torch.save(state, partial)
        partial.replace(self.state_path)

    def resume(self) -> None:
        """Go on from a state that is there.

        Raises:
            DatasetError: it belongs to a run with other settings.
        """
        if not self.state_path.is_file():
            return
        state = torch.load(self.state_path, weights_only=True, map_location=self.settings.device)
        now = asdict(self.settings)
        if different := [
            f"{k}: {state['settings'].get(k)} then, {v} now" for k, v in now.items() if state["settings"].get(k) != v
        ]:
            raise OutputError(
                f"{self.output} holds a run with other settings ({'; '.join(different)}). "
                "Give the same settings to resume it, or another --output."
            )
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]

    def learning_rate(self) -> float:
        """A short warm-up, then half a cosine down to a hundredth."""
        warm = min(1.0, (self.step + 1) / 200)
        return (
            self.settings.learning_rate
            * warm
            * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step / self.settings.steps)))
        )

    def train_step(self, batch: Batch) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.zero_grad(set_to_none=True)
        loss = loss_of(self.student, batch, self.settings.energy_weight)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.settings.ema, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
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

    with log.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for ax, key, label in (
        (axes[0], "force_mae_meV_per_A", "force MAE (meV/Å)"),
        (axes[1], "energy_mae_meV_per_atom", "energy MAE (meV/atom)"),
    ):
        ax.plot([int(r["step"]) for r in rows], [float(r[key]) for r in rows], marker=".")
        ax.set(xlabel="step", ylabel=label, yscale="log", title="validation molecules, never trained on")
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
        threads, device,
    )  # fmt: skip
    prepare_output(output)
    training, validation = Split(data / "train.npz", cutoff), Split(data / "validation.npz", cutoff)
    species, references = fit_references(training)
    run = Run(settings, output, species, references)
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
    path = run.write_checkpoint({"name": f"student-{size}", "metrics": errors, "training": asdict(settings)})
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


def main() -> None:
    """Run from a shell."""
    run_command(train)


if __name__ == "__main__":
    main()
