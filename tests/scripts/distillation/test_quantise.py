"""Training for INT8: what is computed is what the engine computes, and a student of any origin comes back."""

import json
from collections.abc import Mapping
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms

from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export import load_student
from painn_deploy.export.errors import DatasetError, OutputError
from painn_deploy.export.graph.int8 import OperandScale, candidates, to_int8
from painn_deploy.export.graph.onnx_graph import export_onnx
from painn_deploy.export.model.aggregation import CLOSED_FORM
from painn_deploy.export.model.force_head import tensors
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.distillation import fake_int8
from painn_deploy.scripts.distillation.batches import Batch, Split
from painn_deploy.scripts.distillation.fake_int8 import FakeInt8, ScaleFinder
from painn_deploy.scripts.distillation.losses import predict
from painn_deploy.scripts.distillation.self_labels import LEAST_FRAMES
from painn_deploy.scripts.distillation.train import train
from tests import students

STEPS = {"steps": 12, "slots_per_batch": 400, "threads": 1, "evaluate_every": 4, "seed": 3}


@pytest.fixture(scope="module")
def student() -> PaiNN:
    loaded = load_student("student:small")
    assert isinstance(loaded, PaiNN)
    return loaded


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    """Molecules and, every fifth, a periodic box of one."""
    found = []
    for seed in range(20):
        for name in ("water", "ethanol", "benzene"):
            atoms = students.perturbed(students.zoo()[name], seed)
            if len(found) % 5 == 0:
                atoms.set_cell([7.0, 8.0, 9.0])
                atoms.pbc = True
            found.append(atoms)
    return found


@pytest.fixture(scope="module")
def scales(student: PaiNN, frames: list[Atoms]) -> Mapping[str, OperandScale]:
    return ScaleFinder(student).scales_of(
        student, [graph_inputs([atoms], student.configuration.cutoff) for atoms in frames[:30]]
    )


def batch_of(atoms: Atoms, cutoff: float) -> Batch:
    graph = tensors(graph_inputs([atoms], cutoff), torch.float32)
    count = len(graph.atomic_numbers)
    one = torch.zeros(count, dtype=torch.long)
    return Batch(graph, one, torch.tensor([count]), torch.zeros(1), torch.zeros(count, 3))


def results(student: PaiNN, batch: Batch, fake: FakeInt8 | None) -> tuple[np.ndarray, np.ndarray]:
    sums = CLOSED_FORM if fake is None else fake.products(batch.graph, CLOSED_FORM)
    energies, forces = predict(student, batch, training=False, sums=sums)
    return energies.detach().numpy(), forces.detach().numpy()


@pytest.mark.parametrize("which", ["all", "forward", "backward", "three"])
def test_what_is_trained_is_what_the_engine_computes(
    student: PaiNN, frames: list[Atoms], scales: Mapping[str, OperandScale], which: str
) -> None:
    chosen = {
        name: scale
        for number, (name, scale) in enumerate(scales.items())
        if which in ("all", name.split("/")[1]) or (which == "three" and number < 3)
    }
    model = export_onnx(student, {})
    run = open_graph(to_int8(model, chosen).SerializeToString())
    differences, energies_off = [], []
    for atoms in frames[:12]:
        batch = batch_of(atoms, student.configuration.cutoff)
        outputs = run(graph_inputs([atoms], student.configuration.cutoff))
        (_, exact), (energy, forces) = (results(student, batch, fake) for fake in (None, FakeInt8(student, chosen)))
        rounding = float(np.square(outputs[1] - exact).mean()) ** 0.5
        assert rounding > 1e-4, "INT8 must be seen"
        differences.append(float(np.square(outputs[1] - forces).mean()) ** 0.5 / rounding)
        energies_off.append(abs(float(outputs[0].sum()) - float(energy[0])))
    # a value half way between two steps falls to either where sums are taken in another order, and rarely does
    assert np.median(differences) < 0.01
    assert max(differences) < 0.6
    assert np.median(energies_off) < 1e-4


def test_every_product_that_the_graph_has_for_int8_is_trained_in_it(
    student: PaiNN, scales: Mapping[str, OperandScale]
) -> None:
    assert scales.keys() == {product.name for product in candidates(export_onnx(student, {}))}
    layers = {name.removesuffix(".weight") for name, _ in student.named_parameters()}
    assert {name.split(".weight/")[0] for name in scales} <= layers


def test_derivatives_are_those_of_the_student_where_steps_are_small(
    student: PaiNN, frames: list[Atoms], scales: Mapping[str, OperandScale], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, backward and their second derivative: with steps of 2^-20 nothing is left but float32's rounding."""
    monkeypatch.setattr(fake_int8, "LEVELS", 2**20)
    trained = load_student("student:small").requires_grad_(True)
    assert isinstance(trained, PaiNN)
    batch, weights = batch_of(frames[1], trained.configuration.cutoff), list(trained.parameters())
    found = []
    for sums in (CLOSED_FORM, FakeInt8(trained, scales).products(batch.graph, CLOSED_FORM)):
        energies, forces = predict(trained, batch, training=True, sums=sums)
        found.append(torch.autograd.grad(forces.square().mean() + energies.square().sum(), weights))
    for exact, fake in zip(*found, strict=True):
        assert float((fake - exact).norm()) <= 1e-3 * float(exact.norm()) + 1e-7


def test_periodic_structures_of_a_split_have_their_images(student: PaiNN, frames: list[Atoms], tmp_path: Path) -> None:
    ase.io.write(tmp_path / "frames.extxyz", frames)
    train(start_from="student:small", quantise="int8", structures=tmp_path / "frames.extxyz", output=tmp_path / "out",
          **STEPS | {"steps": 1})  # fmt: skip
    split = Split(tmp_path / "out" / "labels" / "train.npz", student.configuration.cutoff)
    periodic = [i for i in range(len(split)) if split.atoms(i).pbc.all()]
    assert periodic
    chosen = np.array([periodic[0], 1, periodic[1]])
    batch = Batch.of(split, chosen, split.energies, "cpu")
    want = graph_inputs([split.atoms(int(i)) for i in chosen], student.configuration.cutoff)
    for got, expected in zip(batch.graph, want, strict=True):
        np.testing.assert_array_equal(got.numpy(), expected)
    assert int(batch.graph.mask[: len(split.atoms(periodic[0]))].sum()) > 0


def quantised(frames: list[Atoms], folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "frames.extxyz"
    ase.io.write(path, frames)
    options = {"start_from": "student:small", "quantise": "int8", "structures": path, "output": folder / "out", **STEPS}
    return train(**{**options, **changes})  # type: ignore[arg-type]


def test_a_student_is_trained_for_int8_on_frames_without_labels(
    frames: list[Atoms], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = quantised(frames, tmp_path)
    assert path.name == "student-small-int8.safetensors"
    before, after = load_student("student:small"), load_student(path)
    assert before.configuration == after.configuration
    assert torch.equal(before.atomic_references, after.atomic_references)
    moved = [key for key, weight in before.state_dict().items() if not torch.equal(weight, after.state_dict()[key])]
    assert {"message.1.0.weight", "mixing.0.weight", "update.0.2.weight", "filters.weight"} <= set(moved)
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["name"] == "student-small-int8"
    assert facts["training"]["quantise"] == "int8"
    assert facts["teacher"] == "itself, student:small"
    assert 0 < facts["metrics"]["own_fp32_force_rmse_meV_per_A"] < 100
    metrics = facts["metrics"]
    began = metrics["before_force_rmse_meV_per_A"]
    assert began == pytest.approx(metrics["before_own_fp32_force_rmse_meV_per_A"], rel=1e-3)
    told = capsys.readouterr().out
    assert "test structures before: INT8" in told
    gained = metrics["force_rmse_meV_per_A"] < began
    assert ("Training gained nothing: export student:small itself" in told) == (not gained)
    assert "before: INT8 energy" in told
    assert "against its own FP32 energy" in told
    with pytest.raises(DatasetError, match="was trained for INT8 already"):
        quantised(frames, tmp_path / "again", start_from=str(path))


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(frames: list[Atoms], tmp_path: Path) -> None:
    whole = quantised(frames, tmp_path, output=tmp_path / "whole")
    from painn_deploy.scripts.distillation.run import Run

    with pytest.MonkeyPatch.context() as patch:
        step = Run.train_step

        def stop_at_seven(self: Run, batch: Batch) -> float:
            if self.step == 7:
                raise KeyboardInterrupt
            return step(self, batch)

        patch.setattr(Run, "train_step", stop_at_seven)
        with pytest.raises(KeyboardInterrupt):
            quantised(frames, tmp_path, output=tmp_path / "stopped")
    assert quantised(frames, tmp_path, output=tmp_path / "stopped").read_bytes() == whole.read_bytes()
    with pytest.raises(OutputError, match="frames: .* then, "):
        quantised(frames[::-1], tmp_path, output=tmp_path / "stopped")
    with pytest.raises(OutputError, match="quantise: int8 then, None now|holds a run with other settings"):
        train(data=tmp_path / "stopped" / "labels", output=tmp_path / "stopped", size="small", **STEPS)  # type: ignore[arg-type]


def test_labels_and_what_it_gave_before_count_together(frames: list[Atoms], tmp_path: Path) -> None:
    quantised(frames, tmp_path)
    labels = tmp_path / "out" / "labels"
    options = {"start_from": "student:small", "quantise": "int8", "data": labels, **STEPS}
    alone, both = (
        train(output=tmp_path / name, distil=weight, **options)  # type: ignore[arg-type]
        for name, weight in (("alone", 0.0), ("both", 1.0))
    )
    assert alone.read_bytes() != both.read_bytes()
    with pytest.raises(OutputError, match=r"distil: 0\.0 then, 1\.0 now"):
        train(output=tmp_path / "alone", distil=1.0, **options)  # type: ignore[arg-type]


def test_what_cannot_be_quantised_is_refused_with_its_remedy(frames: list[Atoms], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"and {LEAST_FRAMES} are the least: of ten in a row"):
        quantised(frames[: LEAST_FRAMES - 1], tmp_path)
    with pytest.raises(DatasetError, match="there is int8"):
        quantised(frames, tmp_path, quantise="int4")
    with pytest.raises(DatasetError, match="give --quantise int8 with them"):
        quantised(frames, tmp_path, quantise=None)
    with pytest.raises(DatasetError, match="give it with --start-from"):
        quantised(frames, tmp_path, start_from=None)
    with pytest.raises(DatasetError, match="one of both"):
        quantised(frames, tmp_path, structures=None)
    with pytest.raises(DatasetError, match="For the labels of --teacher give --data"):
        quantised(frames, tmp_path, teacher="tblite:GFN2-xTB")
    with pytest.raises(DatasetError, match="is a distiller, and painn alone is trained here"):
        quantised(frames, tmp_path, start_from=str(students.write(tmp_path, "distiller")))
    strange = [Atoms("Au2", [[0, 0, 0], [2.5, 0, 0]]) for _ in range(LEAST_FRAMES)]
    with pytest.raises(DatasetError, match="Au"):
        quantised(strange, tmp_path)


def test_a_student_that_schnetpack_trained_comes_back(references: Path, tmp_path: Path) -> None:
    source = references / "schnetpack_trained" / "ethanol_1.best_model"
    units = {"energy_unit": "kcal/mol", "length_unit": "Ang", "species": ["H,C,O"]}
    ethanol = [students.perturbed(students.zoo()["ethanol"], seed, sigma=0.03) for seed in range(60)]
    path = quantised(ethanol, tmp_path, start_from=str(source), **units)
    assert path.name == "ethanol_1-int8.safetensors"
    student = load_student(path)
    assert student.species == (1, 6, 8)
    assert json.loads(path.with_suffix(".json").read_text())["metrics"]["force_rmse_meV_per_A"] < 30
    with pytest.raises(OutputError, match=r"declared: .*kcal/mol.* then, .*kJ/mol"):
        quantised(ethanol, tmp_path, start_from=str(source), **units | {"energy_unit": "kJ/mol"})
