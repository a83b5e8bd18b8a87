"""An export does its work once, writes nothing before its checks have passed, and says what it left out."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import safetensors

from painn_deploy.calibration.structures import default_structures, trusted_species
from painn_deploy.export import bundle as bundle_module
from painn_deploy.export import load_student, reading
from painn_deploy.export.checkpoint import resolve_checkpoint
from painn_deploy.export.errors import ParityError
from painn_deploy.export.manifest import MODEL, read_bundle
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.commands import measuring
from tests import students


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often files are read and written, by name, sessions built, and engines gated."""
    found: Counter[str] = Counter()
    read, write, session, gate = Path.read_bytes, Path.write_bytes, onnxruntime.InferenceSession, measuring.check_parity
    read_stamped = reading.read_stamped

    def read_here(path: Path) -> bytes:
        found[f"read {path.name}"] += 1
        return read(path)

    def read_by_us(path: Path, most: int, **options: Any) -> Any:
        found[f"read {path.name}"] += 1
        return read_stamped(path, most, **options)

    def writing(path: Path, content: bytes) -> int:
        found[f"write {path.name}"] += 1
        return write(path, content)

    def building(*arguments: Any, **options: Any) -> Any:
        found["session"] += 1
        return session(*arguments, **options)

    def gating(*arguments: Any, **options: Any) -> dict[str, Any]:
        found["gate"] += 1
        assert found["write model.onnx"] == 0, "written before it was gated"
        return gate(*arguments, **options)

    monkeypatch.setattr(Path, "read_bytes", read_here)
    for module in (reading, bundle_module):
        monkeypatch.setattr(module, "read_stamped", read_by_us)
    monkeypatch.setattr(Path, "write_bytes", writing)
    monkeypatch.setattr(onnxruntime, "InferenceSession", building)
    monkeypatch.setattr(measuring, "check_parity", gating)
    monkeypatch.setattr(safetensors, "safe_open", lambda *_, **__: pytest.fail("read beside the bytes that are hashed"))
    return found


@pytest.mark.slow
def test_a_default_export_does_everything_once(
    tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[bytes] = []
    sha256 = hashlib.sha256

    def hashing(content: bytes = b"", **options: Any) -> Any:
        hashed.append(content)
        return sha256(content, **options)

    monkeypatch.setattr(hashlib, "sha256", hashing)
    (path,) = export_engines("student:base", tmp_path / "out", engines=["onnxruntime"])
    checkpoint = resolve_checkpoint("student:base").path
    assert counts["gate"] == 1
    assert counts["session"] == 2, "a session for small graphs and one for large ones, of the one engine"
    assert counts["read base.safetensors"] == 2, "once by the export, once by this test"
    for name in ("model.onnx", "validation.json", "manifest.json"):
        assert (counts[f"read {name}"], counts[f"write {name}"]) == (0, 1)
    model = (path / MODEL).read_bytes()
    assert hashed.count(model) == 1
    assert hashed.count(checkpoint.read_bytes()) == 2, "likewise"
    assert read_bundle(path).file(MODEL) == model
    assert hashed.count(model) == 2, "once more where the written bundle is read back"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out"]


def test_an_engine_that_is_not_the_gate_s_own_passes_it_itself(
    painn: Path, tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ONNX Runtime would choose a GPU, the same graph is another engine than the one that the gate ran."""
    structures = [students.water()]
    export_engines(painn, tmp_path / "cpu", structures=structures)
    assert counts["gate"] == 1
    backend = measuring.get_backend("onnxruntime")
    monkeypatch.setattr(type(backend), "devices", lambda _: ("elsewhere", "cpu"))
    opened: list[str] = []

    class Calculator(measuring.PaiNNCalculator):
        def __init__(self, bundle: Any, *, device: str = "auto") -> None:
            opened.append(device)
            super().__init__(bundle, device="cpu")

    monkeypatch.setattr(measuring, "PaiNNCalculator", Calculator)
    counts.clear()
    export_engines(painn, tmp_path / "gpu", structures=structures)
    assert (counts["gate"], opened) == (2, ["cpu", "auto"])


@pytest.mark.parametrize("failing", [1, 2])
def test_nothing_is_left_of_an_engine_that_fails_the_gate(
    painn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The graph's own gate, and that of an engine which is not the gate's."""
    backend = measuring.get_backend("onnxruntime")
    monkeypatch.setattr(type(backend), "devices", lambda _: ("cpu:0", "cpu"))
    gate, calls = measuring.check_parity, []

    def refuse(*arguments: Any, **options: Any) -> dict[str, Any]:
        calls.append(arguments)
        if len(calls) == failing:
            raise ParityError("wrong forces")
        return gate(*arguments, **options)

    opened = measuring.PaiNNCalculator
    monkeypatch.setattr(measuring, "check_parity", refuse)
    monkeypatch.setattr(measuring, "PaiNNCalculator", lambda bundle, **_: opened(bundle, device="cpu"))
    with pytest.raises(ParityError):
        export_engines(painn, tmp_path / "out", structures=[students.water()])
    assert len(calls) == failing
    assert list((tmp_path / "out").iterdir()) == []


def test_structures_that_are_left_out_are_counted(painn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "within_reach", lambda forces: list(range(len(forces)))[3:])
    limits = measuring.Tolerances(energy=1.0, forces=10.0)
    (path,) = export_engines(painn, tmp_path, precisions=["fp16"], limits=limits)
    validation = json.loads(read_bundle(path).file("validation.json"))
    assert validation["left_out_for_large_forces"] == 3
    species = trusted_species(load_student(painn))
    assert validation["structures"] == len(default_structures(species)) - 3
