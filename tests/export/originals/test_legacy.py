"""Files as torch wrote them before 1.6 are read like those that it writes today; damaged ones are refused."""

import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from painn_deploy.export import load_student
from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.archive import Archive
from painn_deploy.export.readers.legacy import is_legacy, repacked
from tests.export.originals.test_nff import FILES, KCAL
from tests.export.schnetpack.edits import records

MODEL = FILES / "swish.best_model"
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
CHECKPOINT = FILES / "checkpoints" / "checkpoint-3.pth.tar"


def as_before(protocol: int = 1001, more: tuple[str, ...] = (), **machine: Any) -> bytes:
    """The model in the layout of old: the numbers' names in a pickle of their own, and all their numbers at the end."""
    contents = {name.partition("/")[2]: content for name, content in records(MODEL).items()}
    storages = {name[5:]: content for name, content in contents.items() if name.startswith("data/")}
    first = MAGIC + pickle.dumps(protocol, 2) + pickle.dumps({"little_endian": True} | machine, 2)
    first += contents["data.pkl"] + pickle.dumps([*storages, *more], 2)
    return first + b"".join(struct.pack("<q", len(held) // 4) + held for held in storages.values())  # of float32


def same(path: Path, other: Path) -> bool:
    found, wanted = (load_student(each, dtype=torch.float64, declared=KCAL).state_dict() for each in (path, other))
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_pickled_model_of_old_is_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "best_model").write_bytes(as_before())
    assert same(tmp_path / "best_model", MODEL)


@pytest.mark.parametrize(("alone", "protocol"), [(True, 2), (False, 2), (False, 3), (False, 4), (False, 5)])
def test_a_checkpoint_that_torch_writes_as_of_old_is_the_same(alone: bool, protocol: int, tmp_path: Path) -> None:
    content = torch.load(CHECKPOINT, weights_only=True)
    path = tmp_path / "old.pth.tar"
    saved = content["model"] if alone else content
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    assert is_legacy(path.read_bytes())
    shutil.copy(FILES / "params.json", tmp_path)
    assert same(path, CHECKPOINT)


def test_the_text_of_a_module_s_source_is_passed_over(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 3)
    torch.save(model, tmp_path / "x", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x").read_bytes()
    assert b"def forward" in content
    archive = Archive(repacked(content, "x"), "x")
    tree = archive.tree()
    assert str(tree.name) == "torch.nn.modules.linear.Linear"
    assert torch.equal(archive.tensor(tree.part("weight"), "weight"), model.weight)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (as_before(protocol=1000), "written by a torch before 0.4, or on a big-endian machine"),
        (as_before(little_endian=False), "written by a torch before 0.4, or on a big-endian machine"),
        (as_before(more=("x",)), "lists other numbers than its tensors have"),
        (as_before(more=("0",)), "lists other numbers than its tensors have"),
        (as_before()[:-1], "is cut short: storage 43 of 44 is not whole"),
        (as_before()[:20_000], "is cut short: storage .* is not whole|corrupt or cut short"),
        (as_before()[:5_000], "a pickle in it is corrupt or cut short"),
        (MAGIC, "a pickle in it is corrupt or cut short"),
    ],
    ids=["protocol", "big-endian", "more numbers", "numbers twice", "a byte less", "half", "half a pickle", "nothing"],
)
def test_what_is_damaged_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "best_model").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_student(tmp_path / "best_model", declared=KCAL)


def test_more_numbers_than_the_file_has_take_no_memory(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content[:-20] + struct.pack("<q", 2**60) + content[-12:])
    assert content[-20:] == struct.pack("<q3f", 3, 1, 1, 1)
    with pytest.raises(CheckpointError, match="storage 0 of 1 is not whole"):
        load_student(tmp_path / "x.pt")
