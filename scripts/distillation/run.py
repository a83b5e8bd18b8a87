"""The state of a training run: student, average, optimiser, and how it is saved and resumed to the bit."""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import OutputError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.export.files import whole_file
from painn_deploy.export.model.aggregation import CLOSED_FORM
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.export.model.student import Configuration
from painn_deploy.scripts.distillation.batches import Batch
from painn_deploy.scripts.distillation.fake_int8 import FakeInt8, ScaleFinder
from painn_deploy.scripts.distillation.fused_sums import compiled_sums
from painn_deploy.scripts.distillation.losses import loss_of, predict, squares_of
from painn_deploy.scripts.distillation.widening import widen

__all__ = ["Run", "Settings", "fresh_student"]


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's result, to the bit; a run is resumed only with the same.

    Attributes:
        size: name of the student.
        features: hidden width.
        interactions: number of message passing blocks.
        num_rbf: radial basis functions.
        cutoff: Å.
        steps: batches to train on.
        slots_per_batch: atoms x slots.
        learning_rate: at its plateau.
        energy_weight: of 1 eV/atom against 1 eV/Å.
        ema: decay of the average of the weights.
        seed: of weights and batches.
        threads: of the CPU; they decide the order of sums.
        device: `cpu` or `cuda`.
        start_from: SHA-256 of the checkpoint that it began with.
        decay_from: share of the steps before the learning rate falls.
        compiled: whether the sums over neighbours are.
        epsilon: inside the norms.
        quantise: `int8` where products are computed as an INT8 engine does; None for FP32.
        distil: weight of what the student gave before it was quantised, beside the labels; None where labels are that.
        frames: SHA-256 of the positions that it labels itself.
        declared: what its owner said of the checkpoint that it began with: units and elements.
    """

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
    quantise: str | None = None
    distil: float | None = None
    frames: str | None = None
    declared: Mapping[str, Any] | None = None


def fresh_student(settings: Settings, species: list[int]) -> PaiNN:
    """A student with weights of its seed.

    Args:
        settings: see `Settings`.
        species: atomic numbers that it learns.
    """
    torch.manual_seed(settings.seed)
    configuration = Configuration(
        "painn", settings.features, settings.interactions, settings.num_rbf, settings.cutoff, tuple(species),
        settings.epsilon,
    )  # fmt: skip
    return PaiNN(configuration, rows=max(species) + 1)


class Run:
    """A training run, with everything that it needs to go on where it stopped.

    Args:
        settings: see `Settings`.
        output: folder of the state and the checkpoint.
        student: to train, with its weights of now; it is copied.
        references: energy of an atom of each atomic number of its embedding, eV.

    Attributes:
        before: the student as it was, where it is trained for INT8.
        fake: its INT8 products; see `rescale`.
        scales: finds their scales, where it is trained for INT8.
    """

    def __init__(self, settings: Settings, output: Path, student: PaiNN, references: np.ndarray) -> None:
        self.settings, self.output, self.references = settings, output, references
        self.student = copy.deepcopy(student).to(settings.device).requires_grad_(True)
        self.before = copy.deepcopy(self.student).requires_grad_(False) if settings.quantise else None
        self.sums = compiled_sums() if settings.compiled else CLOSED_FORM
        self.average = copy.deepcopy(self.student)
        self.fake: FakeInt8 | None = None
        self.scales = ScaleFinder(student) if settings.quantise is not None else None
        self.weights: list[Tensor] = list(self.student.parameters())
        self.optimiser = torch.optim.AdamW(self.weights, lr=settings.learning_rate, weight_decay=1e-6, fused=True)
        self.step = 0

    def start_from(self, checkpoint: str) -> None:
        """Begin with the weights of a student of the same width or a narrower one, and with its atomic references.

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
        rows = min(len(self.references), len(student.atomic_references))
        self.references[:rows] = student.atomic_references.numpy()[:rows]
        state, halves = student.state_dict(), (theirs["hidden_dim"] // 2, ours["hidden_dim"] // 2)
        widened = {key: widen(state[key], fresh, *halves) for key, fresh in self.student.state_dict().items()}
        for each in (self.student, self.average):
            each.load_state_dict(widened)

    @property
    def state_path(self) -> Path:
        """The file that a run resumes from."""
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

    def rescale(self, graphs: Sequence[GraphInputs]) -> FakeInt8 | None:
        """Find the scales of INT8 anew, for the weights of now; a run that is resumed does so where it was saved.

        Args:
            graphs: of structures to find them on.

        Returns:
            Those of the average; None where the run is in FP32.
        """
        if self.scales is None:
            return None
        finder = self.scales
        self.fake, average = (FakeInt8(each, finder.scales_of(each, graphs)) for each in (self.student, self.average))
        return average

    def train_step(self, batch: Batch) -> float:
        """One step of the optimiser and of the average; the loss before it."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.zero_grad(set_to_none=True)
        sums = self.sums if self.fake is None else self.fake.products(batch.graph, self.sums)
        energies, forces = predict(self.student, batch, training=True, sums=sums)
        weight = self.settings.energy_weight
        labels_are_its_own = self.before is not None and self.settings.distil is None
        loss = (squares_of if labels_are_its_own else loss_of)(batch, energies, forces, weight)
        if self.before is not None and self.settings.distil:
            before, pulled = predict(self.before, batch, training=False, sums=self.sums)
            there = replace(batch, energies=before.detach(), forces=pulled.detach())
            loss = loss + self.settings.distil * squares_of(there, energies, forces, weight)
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
        path = self.output / f"{self.settings.size}.safetensors"
        weights = {k: v.detach().cpu().contiguous() for k, v in self.average.state_dict().items()}
        save_file({**weights, "atomic_references": torch.as_tensor(self.references)}, path)
        configuration = self.average.configuration.as_dict() | dict(facts)
        path.with_suffix(".json").write_text(json.dumps(configuration, indent=1) + "\n", encoding="utf-8")
        return path
