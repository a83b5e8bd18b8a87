"""Faults F12, F14 and F15 of an attack on checkpoints: an error that says what is wrong, before memory is taken."""

import io
import json
import os
import resource
import shutil
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from painn_deploy.export.checkpoint import SHIPPED, load_student, resolve_checkpoint
from painn_deploy.export.errors import CheckpointError, ConfigurationError
from painn_deploy.scripts import export_engines
from tests import students
from tests.export.hostile import nested, replaced, sparse

GIBIBYTE = 2**30
EMBEDDING = "representation.embedding.weight"
WIDTHS, OFFSETS = (f"representation.radial_basis.{name}" for name in ("widths", "offsets"))


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Each ends soon, and within four gibibytes more than there are."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * GIBIBYTE, before[1]))
    started = time.monotonic()
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.monotonic() - started < 60


@pytest.fixture
def painn_file(tmp_path: Path) -> Path:
    return students.write(tmp_path, "painn")


def configured(path: Path, **changes: Any) -> None:
    values = json.loads(path.with_suffix(".json").read_text()) | changes
    path.with_suffix(".json").write_text(json.dumps(values))


def as_torch(path: Path, weights: Mapping[str, Any], **inside: Any) -> Path:
    """The same in torch's format, with what else is inside."""
    made = path.with_suffix(".pt")
    torch.save({"state_dict": dict(weights), **inside}, made)
    return made


# F12


def test_f12_a_checkpoint_is_a_regular_file_of_bounded_size(tmp_path: Path, painn_file: Path) -> None:
    for make, message in (
        (os.mkfifo, "is a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (sparse, r"12,884,901,888 bytes, and no more than 2,147,483,648"),
    ):
        replaced(painn_file, make)
        for use in (load_student, resolve_checkpoint):
            with pytest.raises(CheckpointError, match=message):
                use(painn_file)


def test_f12_what_lies_beside_a_checkpoint_is_a_regular_file_of_bounded_size(painn_file: Path) -> None:
    for make, message in (
        (os.mkfifo, "is a pipe"),
        (Path.mkdir, "is a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (sparse, r"12,884,901,888 bytes, and no more than 1,048,576"),
    ):
        beside = painn_file.with_suffix(".json")
        if beside.is_dir():
            beside.rmdir()
        replaced(beside, make)
        with pytest.raises(ConfigurationError, match=message):
            load_student(painn_file)


def test_a_checkpoint_may_be_a_link_of_its_user(tmp_path: Path, painn_file: Path) -> None:
    (tmp_path / "links").mkdir()
    for suffix in (".safetensors", ".json"):
        (tmp_path / "links" / f"mine{suffix}").symlink_to(painn_file.with_suffix(suffix))
    assert load_student(tmp_path / "links" / "mine.safetensors").configuration.hidden_dim == 16


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "absent"])
def test_f15_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(CheckpointError, match="There is no file"):
        load_student(name)


# F14


@pytest.mark.parametrize("rows", [10**5, 10**8, 10**10, 2**50])
@pytest.mark.parametrize("zipped", [True, False])
def test_f14_an_embedding_of_stride_zero_takes_no_memory(painn_file: Path, rows: int, zipped: bool) -> None:
    weights = load_file(painn_file)
    weights[EMBEDDING] = torch.zeros(1, 16).expand(rows, 16)
    path = painn_file.with_suffix(".pt")
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="reaches beyond|file holds fewer|makes no sense|weights only"):
        load_student(path)


def test_f14_an_embedding_of_more_rows_than_there_are_elements(painn_file: Path) -> None:
    save_file(load_file(painn_file) | {EMBEDDING: torch.zeros(1_025, 16)}, painn_file)
    with pytest.raises(CheckpointError, match=r"1,025 rows.*1,024.*118 elements\. Cut the table after"):
        load_student(painn_file)


@pytest.mark.parametrize("rows", [119, 201, 256, 1_000, 1_024])
def test_an_embedding_may_have_rows_that_no_element_has(painn_file: Path, rows: int) -> None:
    weights = load_file(painn_file)
    embedding = torch.zeros(rows, 16)
    embedding[:20] = weights[EMBEDDING]
    save_file(weights | {EMBEDDING: embedding}, painn_file)
    student = load_student(painn_file)
    assert torch.equal(student.embedding.weight, embedding)
    assert student.species == tuple(range(1, 119))


@pytest.mark.parametrize("kind", ["painn", "distiller"])
@pytest.mark.parametrize("key", ["hidden_dim", "num_interactions", "num_rbf"])
@pytest.mark.parametrize("size", [100, 16_384])
def test_f14_sizes_are_compared_before_the_model_is_made(tmp_path: Path, kind: str, key: str, size: int) -> None:
    path = students.write(tmp_path, kind)
    configured(path, **{key: size})
    tracemalloc.start()
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    try:
        with pytest.raises(CheckpointError):
            load_student(path)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    grown = int(Path("/proc/self/statm").read_text().split()[1]) - resident
    assert grown * resource.getpagesize() < 256 * 2**20


def test_f14_a_read_out_of_any_size_takes_no_memory(painn_file: Path) -> None:
    head = "output_modules.0.outnet"
    weights = {k: v for k, v in load_file(painn_file).items() if not k.startswith(head)}
    for layer in range(3):
        weights |= {f"{head}.{layer}.bias": torch.zeros(200_000), f"{head}.{layer}.weight": torch.zeros(1)}
    save_file(weights, painn_file)
    with pytest.raises(ConfigurationError, match="has the shape"):
        load_student(painn_file)


def test_f14_numbers_that_are_used_over_and_over(painn_file: Path) -> None:
    weights = load_file(painn_file)
    whole = torch.zeros(2**18)
    path = as_torch(painn_file, {**weights, **{f"x{index}": whole[:] for index in range(5_000)}})
    with pytest.raises(CheckpointError, match="over and over"):
        load_student(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_f14_different_views_of_the_same_numbers(painn_file: Path, zipped: bool) -> None:
    """None is like another, so that each would be copied."""
    weights, whole = load_file(painn_file), torch.zeros(2**18)
    views = {f"x{index}": whole[index : 2**18 - 5_000 + index] for index in range(5_000)}
    path = painn_file.with_suffix(".pt")
    torch.save({**weights, **views}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="over and over"):
        load_student(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("layers", [3, 8, 12])
def test_f14_tied_interactions_may_share_their_numbers(tmp_path: Path, layers: int, zipped: bool) -> None:
    """As a state dict of SchNetPack's shared_interactions=True."""
    path = students.write(tmp_path, "painn", num_interactions=layers)
    weights = load_file(path)
    for name in weights:
        if name.split(".")[1] in ("interactions", "mixing"):
            first = name.split(".")
            weights[name] = weights[".".join([*first[:2], "0", *first[3:]])]
    untied = tmp_path / "untied"
    untied.mkdir()
    save_file({name: tensor.clone() for name, tensor in weights.items()}, untied / path.name)
    shutil.copy(path.with_suffix(".json"), untied)
    torch.save(weights, path.with_suffix(".pt"), _use_new_zipfile_serialization=zipped)
    assert path.with_suffix(".pt").stat().st_size < (untied / path.name).stat().st_size or layers == 3
    wanted, found = (load_student(each).state_dict() for each in (untied / path.name, path.with_suffix(".pt")))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_f14_a_zip_bomb_is_not_unpacked(painn_file: Path) -> None:
    """Weights alone, whose records are packed: torch writes none so."""
    path = as_torch(painn_file, load_file(painn_file))
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            record = name.partition("/")[2] == "data/0"
            archive.writestr(name, bytes(2**28) if record else data, None if record else zipfile.ZIP_STORED)
    assert len(bomb.getvalue()) < 2**20
    path.write_bytes(bomb.getvalue())
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="packed as torch packs none"):
            load_student(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_f14_many_records(painn_file: Path) -> None:
    path = as_torch(painn_file, load_file(painn_file))
    with zipfile.ZipFile(path, "a") as archive:
        for index in range(100_001):
            archive.writestr(f"{path.stem}/x{index}", b"")
    with pytest.raises(CheckpointError, match="lists more than 100,000 records"):
        load_student(path)


# F15


DEEP = "[" * 100_000
JSON = {
    "deep": '{"hidden_dim": ' + DEEP,
    "deep but whole": '{"hidden_dim": ' + "[" * 900 + "]" * 900 + "}",
    "a number of 5,000 digits": '{"hidden_dim": ' + "1" * 5_000 + "}",
    "twice": '{"cutoff": 4.0, "cutoff": 5.0}',
    "half of a character": '{"description": "\\ud800"}',
    "a list": "[]",
    "nothing": "",
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON.keys())
def test_f15_a_configuration_that_is_no_json_of_ours(painn_file: Path, text: str) -> None:
    weights = load_file(painn_file)
    save_file(weights, painn_file, {"configuration": text})
    with pytest.raises(ConfigurationError):
        load_student(painn_file)
    save_file(weights, painn_file)
    painn_file.with_suffix(".json").write_text(text)
    with pytest.raises(ConfigurationError):
        load_student(painn_file)
    painn_file.with_suffix(".json").unlink()
    save_file(weights, painn_file, {"architecture": "painn", **dict.fromkeys(("hidden_dim", "cutoff"), text)})
    with pytest.raises(ConfigurationError):
        load_student(painn_file)


ODD: dict[str, Any] = {
    "keys of numbers": {5: 5, "cutoff": 4.0},
    "keys of numbers alone": {5: 5, 6: 6},
    "a key that is none": {None: 5},
    "a vector": {"hidden_dim": torch.ones(3)},
    "a vector for the cutoff": {"cutoff": torch.ones(3)},
    "a list": {"cutoff": [4.0]},
    "deep": {"x": nested(50)},
    "a large number": {"hidden_dim": 10**600},
    "text": {"hidden_dim": "many"},
    "nothing": {"hidden_dim": None},
    "a flag": {"hidden_dim": True},
    "infinity": {"cutoff": float("inf")},
    "far": {"cutoff": 1e9},
    "deep network": {"num_interactions": 10_000},
    "activation of another kind": {"activation": ["silu"]},
    "species of a number": {"species": 5},
    "species in a mapping": {"species": {"H": 1}},
    "half of a character": {"cutoff": "\ud800"},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_f15_a_configuration_inside_of_any_kind(painn_file: Path, odd: Any, beside: bool, zipped: bool) -> None:
    configuration = json.loads(painn_file.with_suffix(".json").read_text())
    if not beside:
        painn_file.with_suffix(".json").unlink()
    path = painn_file.with_suffix(".pt")
    content = {"state_dict": load_file(painn_file), "configuration": configuration | odd}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError):
        load_student(path)


def test_f15_a_number_in_a_tensor_is_that_number(painn_file: Path) -> None:
    configuration = json.loads(painn_file.with_suffix(".json").read_text()) | {"cutoff": torch.tensor(4.0)}
    path = as_torch(painn_file, load_file(painn_file), configuration=configuration)
    assert load_student(path).configuration.cutoff == 4.0


WIDTH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "empty": lambda w: w[:0],
    "one": lambda w: w[:1],
    "two": lambda w: w[:2],
    "one too many": lambda w: torch.cat([w, w[:1]]),
    "rank 2": lambda w: w[None],
    "column": lambda w: w[:, None],
    "a number": lambda w: w[0],
    "zero": lambda w: 0 * w,
    "one is zero": lambda w: torch.cat([w[:-1], 0 * w[:1]]),
    "negative": lambda w: -w,
    "NaN": lambda w: w * torch.nan,
    "infinity": lambda w: w * torch.inf,
}


@pytest.mark.parametrize("edit", WIDTH.values(), ids=WIDTH.keys())
@pytest.mark.parametrize("size", ["small", "distiller"])
def test_f15_widths_of_any_shape(tmp_path: Path, edit: Callable[[torch.Tensor], torch.Tensor], size: str) -> None:
    """`p_widths.py`."""
    if size == "small":
        path = Path(shutil.copy(SHIPPED / "small.safetensors", tmp_path))
        shutil.copy(SHIPPED / "small.json", tmp_path)
    else:
        path = students.write(tmp_path, size)
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("widths"))
    save_file(weights | {name: edit(weights[name]).contiguous()}, path)
    with pytest.raises(CheckpointError, match="radial basis|has the shape"):
        load_student(path)


@pytest.mark.parametrize("edit", [lambda o: o[None], lambda o: o[:0], lambda o: o * torch.nan, lambda o: o[0]])
def test_f15_offsets_of_any_shape(painn_file: Path, edit: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(painn_file)
    save_file(weights | {OFFSETS: edit(weights[OFFSETS]).contiguous()}, painn_file)
    with pytest.raises(CheckpointError, match="radial basis"):
        load_student(painn_file)


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan])
def test_f15_frequencies_of_any_value(tmp_path: Path, value: float) -> None:
    path = students.write(tmp_path, "painn-bessel")
    weights = load_file(path)
    name = "representation.radial_basis.freqs"
    save_file({k: torch.full_like(v, value) if k == name else v for k, v in weights.items() if "cutoff" not in k}, path)
    with pytest.raises(CheckpointError, match="radial basis"):
        load_student(path)


def test_f15_an_export_of_empty_widths_ends_in_a_checkpoint_error(tmp_path: Path, painn_file: Path) -> None:
    """`p_empty_export.py`."""
    weights = load_file(painn_file)
    save_file(weights | {WIDTHS: weights[WIDTHS][:0].contiguous()}, painn_file)
    with pytest.raises(CheckpointError, match="widths of the radial basis is no row of finite numbers"):
        export_engines(painn_file, tmp_path / "out", structures=[students.water()])


def test_f15_a_header_that_is_no_list_of_tensors(painn_file: Path) -> None:
    for header in (b"[]", b"{" * 100_000, b'{"a": 1, "a": 2}', b'{"__metadata__": {"configuration": 5}}', b"\xff\xff"):
        painn_file.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            load_student(painn_file)
    painn_file.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="its header has 1,099,511,627,776 bytes"):
        load_student(painn_file)
