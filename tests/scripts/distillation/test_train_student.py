"""Training for real, on a few molecules and a few steps."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export import load_student
from painn_deploy.export.checkpoint import SHIPPED, resolve_checkpoint
from painn_deploy.export.errors import DatasetError, OutputError
from painn_deploy.scripts.distillation import train as train_student
from painn_deploy.scripts.distillation.batches import Split, fit_references
from painn_deploy.scripts.distillation.train import train
from tests import students


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Perturbed molecules with labels that are no force field's: training must run, not learn."""
    folder = tmp_path_factory.mktemp("data")
    zoo, rng = students.zoo(), np.random.default_rng(0)
    for split, seeds in (("train", range(8)), ("validation", range(8, 10)), ("test", range(10, 12))):
        structures = [students.perturbed(zoo[n], s) for s in seeds for n in ("water", "ethanol", "benzene")]
        numbers = np.concatenate([a.numbers for a in structures])
        np.savez(
            folder / f"{split}.npz",
            numbers=numbers.astype(np.int8),
            positions=np.concatenate([a.positions for a in structures]),
            forces=rng.normal(0, 1, (len(numbers), 3)).astype(np.float32),
            energies=np.array([-10.0 * a.numbers.sum() for a in structures]) + rng.normal(0, 0.1, len(structures)),
            offsets=np.cumsum([0, *(len(a) for a in structures)]),
            kinds=np.full(len(structures), "md"),
        )
    return folder


def run(data: Path, output: Path, **changes: object) -> Path:
    options = {"size": "small", "steps": 12, "slots_per_batch": 400, "threads": 1, "evaluate_every": 4, "seed": 3}
    return train(data=data, output=output, **{**options, **changes})  # type: ignore[arg-type]


def test_a_run_leaves_a_checkpoint_that_loads(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run(data, tmp_path)
    student = load_student(path)
    assert student.species == (1, 6, 8)
    assert student.num_parameters <= 427_292
    facts = json.loads(path.with_suffix(".json").read_text())
    assert {"metrics", "training"} <= facts.keys()
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(data, tmp_path / "whole")
    step, steps = train_student.Run.train_step, []

    def stop_at_seven(self: train_student.Run, batch: train_student.Batch) -> float:
        steps.append(self.step)
        if self.step == 7:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(train_student.Run, "train_step", stop_at_seven)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "stopped")
    monkeypatch.setattr(train_student.Run, "train_step", lambda s, b: (steps.append(s.step), step(s, b))[1])
    resumed = run(data, tmp_path / "stopped")
    assert steps == [*range(8), *range(4, 12)]
    assert resumed.read_bytes() == whole.read_bytes()


def test_another_run_s_folder_is_refused(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, steps=4)
    with pytest.raises(OutputError, match="seed: 3 then, 4 now"):
        run(data, tmp_path, steps=4, seed=4)
    with pytest.raises(OutputError, match="size: small then, base now"):
        run(data, tmp_path, steps=4, size="base")


def test_a_run_goes_on_from_a_student_of_the_same_size_and_no_other(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path / "first")
    second = run(data, tmp_path / "second", start_from=str(first), learning_rate=1e-9, steps=2)
    one, two = load_student(first), load_student(second)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=1e-7)
    assert torch.equal(one.atomic_references, two.atomic_references)
    started = json.loads(second.with_suffix(".json").read_text())["training"]["start_from"]
    assert started == hashlib.sha256(first.read_bytes()).hexdigest()
    with pytest.raises(OutputError, match=r"another kind of student \(num_interactions: 2 there, 3 here\)"):
        run(data, tmp_path / "third", start_from=str(first), size="base")


def test_a_run_goes_on_from_a_narrower_student_with_all_that_it_knows(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path / "first", size="base", steps=2)
    wider = run(data, tmp_path / "wider", size="large", start_from=str(first), learning_rate=1e-9, steps=2)
    one, two = load_student(first), load_student(wider)
    assert two.num_parameters > one.num_parameters
    atoms = [students.perturbed(students.zoo()["ethanol"], 5)]
    (narrow,), (wide,) = reference_results(one, atoms), reference_results(two, atoms)
    assert abs(narrow["energy"] - wide["energy"]) < 1e-5
    np.testing.assert_allclose(wide["forces"], narrow["forces"], rtol=0, atol=1e-5)
    unread = [key for key, weight in two.state_dict().items() if not weight.any()]
    assert not unread, "a weight at zero everywhere learns nothing"
    with pytest.raises(OutputError, match="hidden_dim: 108 there, 96 here"):
        run(data, tmp_path / "narrower", size="base", start_from=str(wider))


def test_a_run_may_become_longer_as_long_as_its_learning_rate_has_not_begun_to_fall(data: Path, tmp_path: Path) -> None:
    plan = {"decay_from": 0.5, "evaluate_every": 2}
    whole = run(data, tmp_path / "whole", steps=12, **plan)
    state = torch.load(tmp_path / "whole" / "state.pt", weights_only=True)
    assert state["step"] == 12
    with pytest.raises(OutputError, match="steps: 12 then, 16 now"):
        run(data, tmp_path / "whole", steps=16, **plan)
    stop_after(data, tmp_path / "short", 4, steps=8, **plan)
    longer = run(data, tmp_path / "short", steps=12, **plan)
    assert longer.read_bytes() == whole.read_bytes()


def stop_after(data: Path, output: Path, step: int, **changes: object) -> None:
    """A run that is interrupted once it has saved the state of this step."""
    with pytest.MonkeyPatch.context() as patch:
        save = train_student.Run.save

        def saved(self: train_student.Run) -> None:
            save(self)
            if self.step == step:
                raise KeyboardInterrupt

        patch.setattr(train_student.Run, "save", saved)
        with pytest.raises(KeyboardInterrupt):
            run(data, output, **changes)


def test_another_teacher_labels_the_structures_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lj_for_all.py").write_text("from ase.calculators.lj import LennardJones as teacher\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(train_student, "MAX_FORCE", 1e9)
    path = run(data, tmp_path / "out", teacher="lj_for_all:teacher")
    assert json.loads(path.with_suffix(".json").read_text())["teacher"] == "lj_for_all:teacher"
    assert json.loads((tmp_path / "out" / "labels" / "summary.json").read_text())["test"]["labelled"] == 6


def test_data_that_cannot_be_used(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Cannot read .*make_dataset"):
        run(tmp_path, tmp_path / "out")
    with pytest.raises(DatasetError, match="no size 'huge'"):
        run(data, tmp_path / "out", size="huge")
    with np.load(data / "train.npz") as file:
        empty = {k: file[k][:0] for k in file.files}
    np.savez(tmp_path / "train.npz", **empty)
    with pytest.raises(DatasetError, match="is empty"):
        run(tmp_path, tmp_path / "out")


def test_references_are_those_that_the_energies_were_made_with(data: Path) -> None:
    species, references = fit_references(Split(data / "train.npz", 5.0))
    assert species == [1, 6, 8]
    np.testing.assert_allclose(references, [-10, -60, -80], atol=1.0)


def test_every_size_is_within_the_seed_s() -> None:
    from painn_deploy.export.model.painn import PaiNN
    from painn_deploy.export.model.student import Configuration

    for features, interactions in train_student.SIZES.values():
        configuration = Configuration("painn", features, interactions, 20, 5.0)
        assert PaiNN(configuration, rows=9).num_parameters <= 427_292


def test_batches_hold_every_structure_once(data: Path) -> None:
    split = Split(data / "train.npz", 5.0)
    for rng in (None, np.random.default_rng(1)):
        batches = split.batches(400, rng)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(split)))
        assert len(batches) > 3


@pytest.mark.parametrize("size", sorted(path.stem for path in SHIPPED.glob("*.safetensors")))
def test_the_shipped_students_are_small_and_invariant(size: str) -> None:
    from painn_deploy.export.model.force_head import tensors
    from painn_deploy.runtime.matrix import graph_inputs

    path = resolve_checkpoint(f"student:{size}").path
    assert path.stat().st_size <= 2_000_000
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256 in path.with_suffix(".md").read_text(encoding="utf-8")  # the card is of these weights
    assert path.with_suffix(".log.csv").is_file()
    student = load_student(f"student:{size}", dtype=torch.float64)
    assert student.num_parameters <= 427_292
    assert student.species == (1, 6, 7, 8)
    energies = []
    for angle in (0, 50, 130):
        atoms = students.zoo()["ethanol"].copy()
        atoms.rotate(angle, (1, -2, 0.5))
        energies.append(student(tensors(graph_inputs([atoms], 5.0, np.float64), torch.float64)).sum().item())
    assert np.ptp(energies) < 1e-10
