import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import torch as safetensors_torch
from safetensors.torch import save_file

from painn_deploy.export import load_student
from painn_deploy.export.checkpoint import resolve_checkpoint
from painn_deploy.export.errors import CheckpointError, ConfigurationError
from painn_deploy.export.model.force_head import autograd_forces, explicit_forces, tensors
from painn_deploy.runtime.matrix import graph_inputs
from tests import students
from tests.conftest import Peer


def load_file(path: Path) -> dict[str, torch.Tensor]:
    """Weights that stay what they are when their file is written over, which safetensors before 0.8 only maps."""
    return {key: tensor.clone() for key, tensor in safetensors_torch.load_file(path).items()}


@pytest.mark.parametrize("evaluate", [autograd_forces, explicit_forces])
def test_float64_agrees_with_the_peers(peer: Peer, evaluate: Any) -> None:
    student = load_student(peer.student, dtype=torch.float64)
    for _, atoms, want in peer.systems:
        graph = graph_inputs([atoms], student.configuration.cutoff, np.float64)
        outputs = evaluate(student, tensors(graph, torch.float64))
        assert abs(outputs.atomic_energies.sum().item() - want["energy"]) < 1e-8
        np.testing.assert_allclose(outputs.forces.numpy(), want["forces"], rtol=0, atol=1e-8)
        if "stress" in want:
            stress = outputs.virials.sum(0).numpy() / atoms.get_volume()
            np.testing.assert_allclose(stress, want["stress"], rtol=0, atol=1e-8)


def test_float32_stays_close_to_the_peers(peer: Peer) -> None:
    student = load_student(peer.student)
    for _, atoms, want in peer.systems:
        graph = graph_inputs([atoms], student.configuration.cutoff)
        outputs = explicit_forces(student, tensors(graph, torch.float32))
        assert abs(outputs.atomic_energies.double().sum().item() - want["energy"]) < 2e-6 * len(atoms)
        np.testing.assert_allclose(outputs.forces.numpy(), want["forces"], rtol=0, atol=2e-5)


def test_a_state_dict_and_its_configuration_are_found_wherever_they_are(tmp_path: Path) -> None:
    path = students.write(tmp_path, "painn")
    weights, configuration = load_file(path), json.loads(path.with_suffix(".json").read_text())
    torch.save(weights, tmp_path / "beside.pt")
    (tmp_path / "beside.json").write_text(json.dumps(configuration))
    torch.save({"state_dict": weights, "configuration": configuration}, tmp_path / "inside.pt")
    save_file(weights, tmp_path / "metadata.safetensors", {"configuration": json.dumps(configuration)})
    save_file(weights, tmp_path / "keys.safetensors", {k: json.dumps(v) for k, v in configuration.items()})
    graph = tensors(graph_inputs([students.water()], 4.0), torch.float32)
    want = load_student(path)(graph)
    for name in ("beside.pt", "inside.pt", "metadata.safetensors", "keys.safetensors"):
        assert torch.equal(load_student(tmp_path / name)(graph), want)


def test_other_depths_and_shared_filters_load_or_raise(tmp_path: Path) -> None:
    path = students.write(tmp_path, "painn")
    weights = load_file(path)
    deep = students._layers(torch.Generator().manual_seed(1), "output_modules.0.outnet", [16, 12, 6, 1])
    other = {k: v for k, v in weights.items() if not k.startswith("output_modules")} | deep
    other["representation.filter_net.weight"] = weights["representation.filter_net.weight"][:48].clone()
    other["representation.filter_net.bias"] = weights["representation.filter_net.bias"][:48].clone()
    save_file(other, path)
    student = load_student(path)
    assert [m.out_features for m in student.readout if hasattr(m, "out_features")] == [12, 6, 1]
    assert student.filters.out_features == 48
    other["representation.filter_net.bias"] = weights["representation.filter_net.bias"][:40].clone()
    save_file(other, path)
    with pytest.raises(ConfigurationError, match="shape"):
        load_student(path)


def test_species_come_from_the_configuration_or_the_embedding(tmp_path: Path) -> None:
    assert load_student(students.write(tmp_path, "painn", species=["H", "O", 6])).species == (1, 6, 8)
    unlisted = load_student(students.write(tmp_path, "painn"))
    assert unlisted.configuration.species is None
    assert unlisted.species == tuple(range(1, 20))


def _rewrite(path: Path, **changes: Any) -> None:
    configuration = json.loads(path.with_suffix(".json").read_text()) | changes
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in configuration.items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutoff": ...}, "lacks cutoff"),
        ({"architecture": ...}, "lacks architecture"),
        ({"architecture": "schnet"}, "architecture 'schnet'.*deploys distiller, painn"),
        ({"cutoff": 5.0}, "trained with a cutoff of 4.0"),
        ({"cutoff": "wide"}, "wrong kind"),
        ({"cutoff": -1}, "not a positive number"),
        ({"hidden_dim": 32}, "hidden_dim"),
        ({"hidden_dim": 16.5}, "not a positive integer of"),
        ({"num_interactions": 3}, "lacks tensors"),
        ({"num_interactions": 1}, "no place for"),
        ({"num_rbf": 9}, "8 radial basis functions"),
        ({"activation": "tanh"}, "activation = 'tanh'.*'silu' or 'shifted_softplus' only"),
        ({"cutoff_fn": "bump"}, "cutoff_fn = 'bump'.*'mollifier' or 'switch'"),
        ({"cutoff_fn": "switch"}, "lacks switch_on"),
        ({"switch_on": 1.0}, "has switch_on, which the cutoff function 'switch' has"),
        ({"cutoff_fn": "SwitchFunction", "switch_on": 4.0}, "switch_on is 4.0 Å, and the cutoff 4.0"),
        ({"cutoff_fn": "polynomial", "cutoff_power": 1}, "cutoff_power is 1"),
        ({"cutoff_fn": "polynomial", "cutoff_power": 6.5}, "not a positive integer"),
        ({"epsilon": -1e-8}, "not a number from 0 on"),
        ({"epsilon": True}, "not a number from 0 on"),
        ({"cutoff": True}, "not a positive number"),
        ({"repulsion": "cosine"}, "its repulsion holds nothing; needed are coefficients"),
        ({"repulsion": "hard"}, "repulsion = 'hard'"),
        ({"energy_unit": "kcal/mol"}, "energy_unit"),
        ({"attention_heads": 4}, "does not know: attention_heads"),
        ({"species": ["Xx"]}, "wrong kind"),
        ({"species": [1.7]}, "wrong kind"),
        ({"species": {"H": 1}}, "wrong kind"),
        ({"species": [1, 90]}, "lists element 90"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = students.write(tmp_path, "painn")
    _rewrite(path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_student(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cutoff": 5.0}, "last radial centre"),
        ({"num_rbf": 3}, "radial"),
        ({"num_interactions": 3}, "lacks tensors"),
        ({"activation": "ssp"}, "has activation, which distiller does not"),
        ({"epsilon": 0}, "has epsilon, which distiller does not"),
    ],
)
def test_a_distiller_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = students.write(tmp_path, "distiller")
    _rewrite(path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_student(path)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(_Trap.path),))

    path = ""


def test_pickles_are_never_executed(tmp_path: Path) -> None:
    _Trap.path = str(tmp_path / "sprung")
    for name, save in (
        ("a.pt", lambda p: torch.save(_Trap(), p)),
        ("b.pt", lambda p: p.write_bytes(pickle.dumps(_Trap()))),
    ):
        save(tmp_path / name)
        with pytest.raises(CheckpointError, match="Nothing was executed|never opened"):
            load_student(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = students.write(tmp_path, "painn")
    with pytest.raises(CheckpointError, match="There is no file"):
        load_student(tmp_path / "absent.safetensors")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(CheckpointError, match=r"of no kind that we know. What can be read: \.safetensors"):
        load_student(tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match="student:base|those that do"):
        load_student("student:huge")
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match="not a safetensors file|is empty"):
            load_student(path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="not a state dict"):
        load_student(tmp_path / "list.pt")


def test_configuration_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = students.write(tmp_path, "painn")
    path.with_suffix(".json").write_text("{")
    with pytest.raises(ConfigurationError, match="not JSON"):
        load_student(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ConfigurationError, match="no configuration"):
        load_student(path)
    save_file(load_file(path), path, {"configuration": json.dumps({**students.CONFIGURATION, "architecture": "painn"})})
    path.with_suffix(".json").write_text(json.dumps({**students.CONFIGURATION, "architecture": "painn", "cutoff": 9.0}))
    with pytest.raises(ConfigurationError, match="disagree about cutoff"):
        load_student(path)


def test_weights_that_cannot_be_used(tmp_path: Path) -> None:
    path = students.write(tmp_path, "painn")
    weights = load_file(path)
    save_file(weights | {"postprocessors.0.mean": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"postprocessors\.0\.mean"):
        load_student(path)
    save_file(weights | {"representation.filter_net.bias": torch.full((96,), torch.nan)}, path)
    with pytest.raises(CheckpointError, match="NaN"):
        load_student(path)
    save_file(weights | {"representation.filter_net.bias": torch.ones(96, dtype=torch.int64)}, path)
    with pytest.raises(CheckpointError, match="int64"):
        load_student(path)
    save_file({k: v for k, v in weights.items() if "radial_basis" not in k}, path)
    with pytest.raises(CheckpointError, match="no radial basis"):
        load_student(path)
    with pytest.raises(CheckpointError, match="float32 or float64"):
        load_student(path, dtype=torch.float16)


def test_float64_weights_stay_float64(tmp_path: Path) -> None:
    path = students.write(tmp_path, "painn")
    weights = {key: value.double() + 1e-9 for key, value in load_file(path).items() if "cutoff" not in key}
    save_file(weights, path)
    student = load_student(path, dtype=torch.float64)
    assert torch.equal(student.filters.weight, weights["representation.filter_net.weight"])
    assert load_student(path).dtype == torch.float32
    save_file(weights | {"representation.filter_net.bias": torch.full((96,), 1e300, dtype=torch.float64)}, path)
    with pytest.raises(CheckpointError, match="too large for torch.float32"):
        load_student(path)


def test_weights_that_contradict_each_other(tmp_path: Path) -> None:
    path = students.write(tmp_path, "painn")
    weights = load_file(path)
    for extra, message in (
        ({"representation.cutoff": torch.tensor([9.0])}, "another tensor for the same place"),
        ({"representation.cutoff_fn.cutoff": torch.tensor([torch.nan])}, "cutoff of nan"),
        ({"representation.cutoff_fn.cutoff": torch.tensor([4.0, 4.0])}, "does not hold the tensors"),
        ({"representation.radial_basis.widths": torch.zeros(8)}, "not positive"),
        ({"representation.embedding.weight": torch.zeros(1, 16)}, "hydrogen needs row 1"),
        ({"representation.embedding.weight": torch.tensor(1.0)}, "does not hold the tensors"),
        ({"output_modules.0.outnet.foo.bias": torch.zeros(1)}, "does not hold the tensors"),
    ):
        save_file(weights | extra, path)
        with pytest.raises(CheckpointError, match=message):
            load_student(path)
    save_file({f"model.{key}": value for key, value in weights.items()}, path)
    with pytest.raises(CheckpointError, match="begins with 'model'"):
        load_student(path)
    del weights["representation.cutoff_fn.cutoff"]
    save_file(weights, path)
    _rewrite(path, cutoff=9.0)
    with pytest.raises(ConfigurationError, match=r"reaches to 4\.0000 Å"):
        load_student(path)


@pytest.mark.parametrize("hidden_dim", [float("inf"), 10**400, 10_000_000])
def test_sizes_that_are_slips_of_the_pen(tmp_path: Path, hidden_dim: float) -> None:
    path = students.write(tmp_path, "painn")
    _rewrite(path, hidden_dim=hidden_dim)
    with pytest.raises(ConfigurationError, match="wrong kind"):
        load_student(path)


def test_atomic_references_are_kept_in_float64(tmp_path: Path) -> None:
    path = students.write(tmp_path, "painn")
    references = torch.linspace(-100, 0, 20, dtype=torch.float64)
    save_file(load_file(path) | {"atomic_references": references}, path)
    assert torch.equal(load_student(path).atomic_references, references)
    save_file(load_file(path) | {"atomic_references": references[:5].clone()}, path)
    with pytest.raises(CheckpointError, match="atomic_references"):
        load_student(path)


def test_a_checkpoint_is_known_by_its_bytes(painn: Path) -> None:
    source = resolve_checkpoint(painn)
    assert (source.name, len(source.sha256)) == ("painn", 64)


def test_torch_s_compiler_is_not_loaded_to_read_a_student(checkpoint: Path) -> None:
    program = """
import sys
from painn_deploy.export.checkpoint import load_student
before = set(sys.modules)
load_student(sys.argv[1])
assert not {"torch._dynamo", "sympy"} & (set(sys.modules) - before), "it takes a second"
"""
    subprocess.run([sys.executable, "-c", program, str(checkpoint)], check=True)
