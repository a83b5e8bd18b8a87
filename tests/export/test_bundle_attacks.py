"""Faults F12, F17 and F18 of an attack on bundles: each case ends in a BundleError that says what it is about."""

import io
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console

from painn_deploy.calibration.report.validation import _sensitivity
from painn_deploy.export.bundle import Bundle, read_bundle
from painn_deploy.export.errors import BundleError
from painn_deploy.export.manifest import FORMAT_VERSION, MANIFEST, MODEL, VALIDATION
from painn_deploy.export.onnx_content import OnnxContentError, read_onnx_content
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.familiarity import Judged
from painn_deploy.scripts.commands.inspection import print_bundle
from tests import students
from tests.export.hostile import nested, renewed, replaced, sparse


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "b" / bundle.name))


def refused(path: Path, message: str) -> None:
    """In every way of opening it."""
    for use in (read_bundle, PaiNNCalculator, lambda p: print_bundle(p, Console(quiet=True))):
        with pytest.raises(BundleError, match=message):
            use(path)


# F12


@pytest.mark.parametrize("name", [MANIFEST, MODEL, VALIDATION])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is a pipe"),
        (Path.mkdir, "is a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "is a link"),
        (lambda path: path.symlink_to("/etc/hostname"), "is a link"),
        (sparse, r"has 12,884,901,888 bytes, and no more than [\d,]+ are read"),
    ],
    ids=["pipe", "folder", "device", "link", "holes"],
)
def test_f12_what_is_no_regular_file_of_bounded_size_is_refused(
    copy: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    replaced(copy / name, make)
    refused(copy, message)


@pytest.mark.parametrize("name", [MANIFEST, MODEL, VALIDATION])
def test_f12_a_link_to_the_same_content_is_refused(copy: Path, name: str) -> None:
    (copy / name).rename(copy.parent / "elsewhere")
    (copy / name).symlink_to(copy.parent / "elsewhere")
    refused(copy, rf"{name} is a link.*Copy it with what they lead to \(`cp -rL FROM TO` or `rsync -rL FROM TO`\)")
    read_bundle(shutil.copytree(copy, copy.parent / "copied.engine"))  # it follows links, as `cp -rL` does


@pytest.mark.parametrize("target", ["absent", "/dev/zero", "/"])
def test_f12_a_link_to_no_file_is_not_to_be_copied(copy: Path, target: str) -> None:
    """`cp -rL` would fail, or never end."""
    replaced(copy / MODEL, lambda path: path.symlink_to(target))
    refused(copy, "is a link, and only regular files are read. Copy the bundle whole, or export it again")


def test_line_ends_that_git_changed_are_named(copy: Path) -> None:
    for name in (MANIFEST, VALIDATION):
        content = (copy / name).read_bytes()
        assert b"\r\n" not in content
        (copy / name).write_bytes(content.replace(b"\n", b"\r\n"))
    refused(copy, rf"{VALIDATION} was altered after export.*line ends were changed.*autocrlf.*-text")
    (copy / VALIDATION).write_bytes((copy / VALIDATION).read_bytes().replace(b"\r\n", b"\n"))
    read_bundle(copy)  # a manifest is held against its values, which have none


def test_f12_a_socket_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)  # an address is short
    (copy / MODEL).unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(MODEL)
        refused(copy, "is a socket")


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to("/etc"),
        lambda path: path.symlink_to(path.parent),
        lambda path: path.symlink_to("absent"),
        sparse,
    ],
    ids=["empty folder", "pipe", "link to a folder", "link to itself", "dangling link", "holes"],
)
@pytest.mark.parametrize("name", ["other", ".hidden"])
def test_f12_whatever_lies_there_unlisted_is_foreign(copy: Path, name: str, make: Callable[[Path], object]) -> None:
    make(copy / name)
    refused(copy, f"does not list: {name}")


def test_a_bundle_itself_may_be_reached_by_a_link(copy: Path) -> None:
    (copy.parent / "link").symlink_to(copy.name)
    assert read_bundle(copy.parent / "link").sha256 == read_bundle(copy).sha256


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent.engine", "is not a bundle: there is no such folder")
    refused(tmp_path / "a\0b", "is not a bundle")
    refused(tmp_path / ("x" * 300), "is not a bundle")


# F17


WRONG: dict[str, list[Any]] = {
    "architecture": [None, 5, [], "", "x" * 300, "a\x1b"],
    "checkpoint_sha256": [None, 5, "x", "g" * 64],
    "configuration": [
        *(None, 5, [], "x", {"hidden_dim": "many"}, {"hidden_dim": 0}, {"hidden_dim": True}, {"hidden_dim": 1e5}),
        *({"hidden_dim": 2**70}, {"num_rbf": -1}, {"x": {}}, {"species": [0]}, {"species": 5}, {"cutoff": "5"}),
        {"x": [[]]},
    ],
    "cutoff": [None, "5", [], 0.0, -1.0, 5, True, 1e300, float("nan"), float("inf")],
    "species": [None, 5, [], [1.0], [True], [1, 1], [6, 1], [0], [119], ["H"], [None], [[1]], {"1": 1}, 10**400],
    "species_verified": [None, 5, "yes", []],
    "atomic_references": [None, 5, [], ["x"], [None], [True], [float("nan")], [10**400]],
    "engine": [None, 5, [], {}],
    "engine_version": [None, 5, ["1"]],
    "precision": [None, 5, [], {}, "fp8"],
    "built_at": [None, 5, []],
    "built_with": [None, 5, [], "x", {"torch": 5}, {"torch": None}],
    "compute_capability": [None, 5, [5], [None], "86", [[]], {"86": 1}],
    "radial_table": [5, [], {}, "x", {"rank": 1}, {"rank": 2**80, "max_force_error": 0.1, "structures": 1}],
    "profiles": [None, 5, [5], [None], {}, [{}], [{"atoms": [1, 2, 3]}], [{"atoms": [3, 2, 1], "slots": [1, 2, 3]}]],
    "tf32": [None, 5, "no"],
    "declared": [None, 5, [], {"remarks": 5}, {"species": [5]}, {"x": {}}],
    "units": [None, 5, [], {"energy": "kcal/mol"}],
    "files": [None, 5, [], "x", {MODEL: None}, {MODEL: 5}, {MODEL: "x"}],
    "manifest_sha256": [None, 5],
    "format_version": [None, "1", [], 0, True, 1.5, FORMAT_VERSION + 1],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values], ids=lambda v: str(v)[:24]
)
def test_f17_every_key_of_a_manifest_is_checked_wholly(copy: Path, key: str, value: Any) -> None:
    renewed(copy, lambda manifest: manifest | {key: value}, files=False)
    if key == "manifest_sha256":
        manifest = json.loads((copy / MANIFEST).read_text()) | {key: value}
        (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        read_bundle(copy)


@pytest.mark.parametrize(
    "name",
    ["a\0", "\ud800", "../x", "/x", "a/b", "a\\b", "", ".", "..", ".hidden", "x" * 200, "a\n", " a", "c:x", MANIFEST],
)
def test_f17_names_of_files_are_plain(copy: Path, name: str) -> None:
    renewed(copy, lambda manifest: manifest | {"files": {**manifest["files"], name: "0" * 64}}, files=False)
    refused(copy, "not inside it|half of a character")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a": ' * 500 + "1" + "}" * 500, "nested deeper than 32"),
        ('{"a": ' + "1" * 5_000 + "}", "not JSON"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('{"a": "\\ud800"}', "half of a character"),
        ("[]", "no JSON object"),
        ("", "not JSON"),
    ],
)
def test_f17_json_that_no_two_readers_read_alike(copy: Path, text: str, message: str) -> None:
    (copy / MANIFEST).write_text(text)
    refused(copy, message)


def test_f17_a_manifest_is_small(copy: Path) -> None:
    (copy / MANIFEST).write_text(" " * (2**22 + 1))
    refused(copy, "no more than 4,194,304 are read")


def test_f17_machine_code_is_bound_to_something(copy: Path) -> None:
    (copy / "model.plan").write_bytes(b"code")
    renewed(copy, lambda manifest: manifest | {"files": {**manifest["files"], "model.plan": ""}})
    refused(copy, "does not say what it is bound to")


def with_validation(copy: Path, text: str) -> None:
    (copy / VALIDATION).write_text(text)
    renewed(copy)


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "5", "null", "{", "", '"x"', "{}", '{"energy_mae": "small"}', '{"graph_parity": []}', "[" * 100_000),
        *('{"not_executed": "x"}', '{"not_executed": "x", "graph_parity": {"float32_forces": "x"}}'),
        '{"not_executed": "x", "graph_parity": {"float32_forces": 0}, "left_out": [{"index": 1, "reason": []}]}',
        '{"not_executed": "x", "graph_parity": {"float32_forces": 0}, "chosen_from": [5]}',
        '{"not_executed": "x", "graph_parity": {"float32_forces": 0}, "typed": {"int8_multiply_adds": 5}}',
        '{"not_executed": "x", "graph_parity": {"float32_forces": 1' + "0" * 400 + "}}",
    ],
)
def test_f17_validation_json_of_any_shape(copy: Path, text: str) -> None:
    with_validation(copy, text)
    with pytest.raises(BundleError, match=VALIDATION):
        print_bundle(copy, Console(quiet=True))


def test_f17_a_text_in_validation_json_is_shown_and_not_obeyed(copy: Path) -> None:
    odd = {"not_executed": "[/] [red]\x1b[2J\x07x", "measured_on": "[/]"}
    with_validation(copy, json.dumps(json.loads((copy / VALIDATION).read_text()) | odd))
    shown = io.StringIO()
    print_bundle(copy, Console(width=200, file=shown))
    assert "[/] [red]" in shown.getvalue()
    assert "\x1b[2J" not in shown.getvalue()


@pytest.mark.parametrize(
    "judged",
    [
        *(5, [], "x", {"limits": 5}, {"limits": {"X": 1.0}}, {"limits": {"H": 1.0}, "reach": 1e300}),
        *({"limits": {"H": 1.0}, "reach": "wide"}, {"limits": {"H": 1.0}, "reach": 5.0, "surroundings": {"H": "?"}}),
    ],
)
def test_f17_what_a_bundle_was_judged_on_of_any_shape(copy: Path, judged: Any) -> None:
    values = json.loads((copy / VALIDATION).read_text()) | {"judged_on": judged}
    with_validation(copy, json.dumps(values))
    with pytest.raises(BundleError):
        Judged.in_bundle(read_bundle(copy))


def test_f17_a_deep_value_costs_no_recursion(copy: Path) -> None:
    renewed(copy, lambda manifest: manifest | {"declared": {"x": nested(40)}}, files=False)
    refused(copy, "nested deeper")


# F18


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cutoff": 3.0, "configuration": ...}, "cutoff"),
        ({"cutoff": 3.0}, "cutoff than its configuration"),
        ({"atomic_references": [1.0] * 19}, "atomic_references"),
        ({"species": [*range(2, 21)]}, "species"),
        ({"precision": "int8"}, "precision"),
        ({"precision": "fp16"}, "precision"),
        ({"architecture": "distiller", "configuration": {}}, "architecture and configuration"),
        ({"checkpoint_sha256": "0" * 64}, "checkpoint_sha256"),
    ],
)
def test_f18_a_manifest_is_held_against_its_graph(copy: Path, changes: dict[str, Any], named: str) -> None:
    def edit(manifest: dict[str, Any]) -> dict[str, Any]:
        given = {key: value for key, value in changes.items() if value is not ...}
        if ... in changes.values():
            given["configuration"] = manifest["configuration"] | {"cutoff": 3.0}
        return manifest | given

    renewed(copy, edit, files=False)
    refused(copy, f"says another .*{named}")


def with_model(copy: Path, edit: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.load_from_string((copy / MODEL).read_bytes())
    edit(model)
    content = bytes(model.SerializeToString())
    (copy / MODEL).write_bytes(content)
    renewed(copy)
    return content


def test_an_older_graph_that_says_nothing_is_accepted(copy: Path) -> None:
    with_model(copy, lambda model: model.ClearField("metadata_props"))
    assert read_bundle(copy).manifest.cutoff == 4.0


def outside(tensor: TensorProto) -> bytes:
    """Move a tensor's numbers into another file, as ONNX can."""
    raw = bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "unlisted.bin"), ("offset", "0"), ("length", str(len(raw)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return raw


def largest(model: onnx.ModelProto) -> TensorProto:
    return max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))


def test_f18_weights_in_a_file_of_the_working_folder_are_refused(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw: list[bytes] = []
    content = with_model(copy, lambda model: raw.append(outside(largest(model))))
    (tmp_path / "unlisted.bin").write_bytes((np.frombuffer(raw[0], "f4") * 1.5).tobytes())
    monkeypatch.chdir(tmp_path)
    refused(copy, r"model\.onnx of .* takes numbers from another file \(external data\)")
    manifest = read_bundle_manifest(copy)
    with pytest.raises(BundleError, match="external data"):
        Bundle.in_memory(manifest, {MODEL: content})


def read_bundle_manifest(copy: Path) -> Any:
    from painn_deploy.export.manifest import Manifest

    return Manifest.from_json((copy / MANIFEST).read_text(), copy)


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["unused"], value=tensor)


def external() -> TensorProto:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], b"\0\0\0\0", raw=True)
    outside(tensor)
    return tensor


def entries_alone() -> TensorProto:
    tensor = external()
    tensor.ClearField("data_location")
    return tensor


def location_alone() -> TensorProto:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], b"\0\0\0\0", raw=True)
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def huge() -> TensorProto:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], b"\0\0\0\0", raw=True)
    tensor.dims[0] = 2**40
    return tensor


def branch(inner: onnx.NodeProto) -> onnx.NodeProto:
    graph = helper.make_graph([inner], "g", [], [])
    return helper.make_node("If", ["c"], ["unused"], then_branch=graph, else_branch=graph)


EDITS: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "initialiser, entries alone": (lambda m: m.graph.initializer.append(entries_alone()), "external data"),
    "initialiser, location alone": (lambda m: m.graph.initializer.append(location_alone()), "external data"),
    "attribute": (lambda m: m.graph.node.append(constant(external())), "external data"),
    "attribute of tensors": (
        lambda m: m.graph.node.append(helper.make_node("Constant", [], ["u"], values=[external()])),
        "external data",
    ),
    "subgraph": (lambda m: m.graph.node.append(branch(constant(external()))), "a graph inside a node"),
    "function": (
        lambda m: m.functions.append(
            helper.make_function("own", "f", [], ["u"], [constant(external())], [helper.make_opsetid("", 17)])
        ),
        "functions",
    ),
    "training": (lambda m: m.training_info.add(), "training"),
    "sparse": (lambda m: m.graph.sparse_initializer.add(), "sparse"),
    "operator of another maker": (
        lambda m: m.graph.node.append(helper.make_node("Evil", [], ["u"], domain="com.evil")),
        "operators of 'com.evil'",
    ),
    "opset of another maker": (lambda m: m.opset_import.append(helper.make_opsetid("com.evil", 1)), "com.evil"),
    "huge tensor": (lambda m: m.graph.initializer.append(huge()), "declares a tensor of"),
    "huge tensor in an attribute": (lambda m: m.graph.node.append(constant(huge())), "declares a tensor of"),
    "metadata twice": (lambda m: m.metadata_props.add(key="cutoff", value="9.0"), "'cutoff' twice"),
}


@pytest.mark.parametrize(("edit", "message"), EDITS.values(), ids=EDITS.keys())
def test_f18_a_graph_is_whole_in_itself_and_ours(
    copy: Path, edit: Callable[[onnx.ModelProto], object], message: str
) -> None:
    with_model(copy, edit)
    refused(copy, message)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08", b"\x3a\xff\xff\xff\xff\x7f", b"\x3b", b"\0" * 64, b"\x3a\0\x3a\0", b"\x38\x01", b"\x12\2abORTM\0\0"],
)
def test_f18_what_is_no_onnx_is_refused(content: bytes) -> None:
    with pytest.raises(OnnxContentError):
        read_onnx_content(content)


def test_what_a_graph_says_of_itself_is_what_onnx_reads(bundle: Path) -> None:
    content = (bundle / MODEL).read_bytes()
    model = onnx.load_from_string(content)
    found = read_onnx_content(content)
    assert found.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert found.types == {tensor.data_type for tensor in model.graph.initializer}
    assert found.precision == "fp32"


def test_f18_a_truncated_location_is_seen(bundle: Path) -> None:
    """Of a number that is longer than 32 bits, protocol buffers keep the lower ones: 2**32 + 1 is 1, EXTERNAL."""
    tensor = b"\x08\x01\x10\x01\x70\x81\x80\x80\x80\x10\x4a\x04\0\0\0\0"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    with pytest.raises(OnnxContentError, match="external data"):
        read_onnx_content(b"\x3a" + bytes([len(graph)]) + graph)


def test_right_bundles_still_run(copy: Path) -> None:
    with PaiNNCalculator(copy) as calculator:
        atoms = students.water()
        atoms.calc = calculator
        assert np.isfinite(atoms.get_potential_energy())


@pytest.mark.parametrize(
    "rows",
    [
        *(5, "x", {"a": 1}, [5], [{}], [{"gemm": "a", "precision": "int8", "force_rmse": "x"}]),
        [{"gemm": "a", "precision": "int8", "force_rmse": 10**400}],
        [{"gemm": "a", "precision": "int8", "force_rmse": float("nan")}],
        [{"gemm": "$\\frac", "precision": "int8", "force_rmse": 1.0}],
        [{"gemm": "a", "precision": [], "force_rmse": 1.0}],
        [{"gemm": "a", "precision": "int8", "force_rmse": 1.0, "multiply_adds": "many"}],
    ],
)
def test_f17_a_sensitivity_of_any_shape(copy: Path, rows: Any) -> None:
    values = json.loads((copy / VALIDATION).read_text())
    with_validation(copy, json.dumps(values | {"sensitivity": rows}))
    with pytest.raises(BundleError, match="sensitivity holds what makes no sense"):
        _sensitivity(read_bundle(copy))
    row = {"gemm": "a", "precision": "int8", "force_rmse": 1.0, "multiply_adds": 5}
    with_validation(copy, json.dumps(values | {"sensitivity": [row]}))
    assert _sensitivity(read_bundle(copy)) == [row]
