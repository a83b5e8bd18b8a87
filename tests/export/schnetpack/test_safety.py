"""Whatever a file asks for, nothing in it runs, and what is wrong with it is one clear sentence."""

import os
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from painn_deploy.export import load_student
from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers import pickles
from painn_deploy.export.readers.pickles import read_pickle
from tests.export.schnetpack.edits import FILES, KCAL, edited, packed, records, text, with_pickle

GAUSSIAN = FILES / "gaussian.best_model"


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class OfTheUser(torch.nn.Module):
    pass


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("inside", [False, True])
def test_names_that_no_model_is_made_of_are_refused_by_name(tmp_path: Path, protocol: int, inside: bool) -> None:
    mark = tmp_path / "sprung"
    for thing, name in (
        (Calls(os.system, f"touch {mark}"), "posix.system"),
        (Calls(eval, f"open({str(mark)!r}, 'w')"), "(__builtin__|builtins).eval"),
        (Calls(Path.touch, mark), "Path|getattr"),
        (Calls(torch.load, str(mark)), "torch.serialization.load"),
        (OfTheUser(), "OfTheUser"),
    ):
        torch.save({"state_dict": {"a": thing}} if inside else thing, tmp_path / "x.pt", pickle_protocol=protocol)
        with pytest.raises(CheckpointError, match=rf"names .*({name}).*Nothing was executed"):
            load_student(tmp_path / "x.pt", declared=KCAL)
    assert not mark.exists()


def test_pickles_without_a_zip_around_them_are_refused_by_name(tmp_path: Path) -> None:
    mark, path = tmp_path / "sprung", tmp_path / "x.pkl"
    for thing, name in ((Calls(os.system, f"touch {mark}"), "posix.system"), (OfTheUser(), "OfTheUser")):
        for protocol in (2, 4):
            torch.save(thing, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
            with pytest.raises(CheckpointError, match=rf"names .*{name}.*Nothing was executed"):
                load_student(path, declared=KCAL)
        path.write_bytes(pickle.dumps(thing))
        with pytest.raises(CheckpointError, match=rf"names .*{name}.*Nothing was executed"):
            load_student(path, declared=KCAL)
    assert not mark.exists()
    old = b"\x80\x02cschnetpack.model.base\nNeuralNetworkPotential\n)\x81."
    path.write_bytes(old)
    with pytest.raises(CheckpointError, match=r"Potential\) as torch wrote it before 1\.6.*convert_schnet"):
        load_student(path, declared=KCAL)


def test_a_class_of_the_user_s_own_is_sent_to_the_converter(tmp_path: Path) -> None:
    torch.save(OfTheUser(), tmp_path / "best_model")
    with pytest.raises(CheckpointError, match=r"OfTheUser.*scripts/convert_schnetpack\.py"):
        load_student(tmp_path / "best_model", declared=KCAL)


def test_a_name_hidden_in_a_real_model_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "sprung"
    call = b"cos\nsystem\n" + text(f"touch {mark}") + b"\x85R0"  # called, and its result thrown away
    content = records(GAUSSIAN)
    (name,) = [each for each in content if each.endswith("data.pkl")]
    content[name] = content[name][:2] + call + content[name][2:]
    (tmp_path / "best_model").write_bytes(packed(content))
    with pytest.raises(CheckpointError, match=r"names os\.system"):
        load_student(tmp_path / "best_model", declared=KCAL)
    assert not mark.exists()


def test_known_names_are_not_called_either(tmp_path: Path) -> None:
    """A known package's function would run if it were imported; here it is a stand-in that holds its arguments."""
    made = read_pickle(b"\x80\x02ctorch.nn.functional\nsilu\n" + text("x") + b"\x85R.", "x")
    assert (str(made.name), made.args) == ("torch.nn.functional.silu", ("x",))
    with pytest.raises(CheckpointError, match=r"names schnetpack\.os\.system x"):
        read_pickle(b"\x80\x02cschnetpack.os system\nx\n.", "x")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02(ios\nsystem\n.", "instruction INST"),
        (b"\x80\x02(cos\nsystem\no.", r"names os\.system"),
        (b"\x80\x02Pwhatever\n.", "instruction PERSID"),
        (b"\x80\x02" + text("x") + b"Q.", "no storage of numbers"),
        (b"\x80\x02h\x05.", "corrupt or cut short"),
        (b"\x80\x02}", "corrupt or cut short"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "corrupt or cut short"),
        (b"\x80\x02.", "corrupt or cut short"),
        (b"\x80\x02}}}.", "corrupt or cut short"),
        (b"\x80\x02})" + b"\x85" * 1000 + b"Ns.", "key that is a tuple"),
        (b"\x80\x02\x96" + struct.pack("<Q", 2**60) + b".", "corrupt or cut short|instruction"),
        (b"", "corrupt or cut short"),
    ],
)
def test_pickles_that_are_none_of_torch_s(tmp_path: Path, code: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_student(with_pickle(code, tmp_path / "x"), declared=KCAL)


def test_a_memo_as_large_as_it_says_is_not_made(tmp_path: Path) -> None:
    """Python's own reader allocates a memo up to the largest index: 2**32 - 1 here."""
    assert read_pickle(b"\x80\x02}r\xff\xff\xff\xff.", "x") == {}


def test_nested_and_shared_values_cost_no_more_than_their_bytes(tmp_path: Path) -> None:
    deep = b"\x80\x02)" + b"\x85" * 500_000 + b"."
    with pytest.raises(CheckpointError, match="not a state dict"):
        load_student(with_pickle(deep, tmp_path / "deep"), declared=KCAL)
    doubled = b"\x80\x02)" + b"q\x00h\x00\x86" * 200 + b"."  # (x, x) of (x, x) ... 2**200 in all
    with pytest.raises(CheckpointError, match="not a state dict"):
        load_student(with_pickle(doubled, tmp_path / "doubled"), declared=KCAL)
    itself = b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s" + text("pytorch-lightning_version") + b"Ns."
    with pytest.raises(CheckpointError, match="not that of a NeuralNetworkPotential"):
        load_student(with_pickle(itself, tmp_path / "itself"), declared=KCAL)


def test_a_model_that_is_its_own_part_is_refused(tmp_path: Path) -> None:
    module = (
        b"cschnetpack.model.base\nNeuralNetworkPotential\n)\x81q\x00}" + b"(" + text("representation") + b"h\x00ub."
    )
    with pytest.raises(CheckpointError, match="representation is NeuralNetworkPotential"):
        load_student(with_pickle(b"\x80\x02" + module, tmp_path / "x"), declared=KCAL)


def test_a_pickle_too_large_to_be_a_model_s_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "LARGEST", 1000)
    with pytest.raises(CheckpointError, match="no model's is that large"):
        load_student(GAUSSIAN, declared=KCAL)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
def test_a_file_that_is_cut_short(tmp_path: Path, share: float) -> None:
    whole = GAUSSIAN.read_bytes()
    (tmp_path / "best_model").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="cut short"):
        load_student(tmp_path / "best_model", declared=KCAL)


def test_any_byte_that_is_changed_is_an_error_of_ours_or_none(tmp_path: Path) -> None:
    whole = bytearray(GAUSSIAN.read_bytes())
    for position in range(0, len(whole), 397):
        damaged = whole.copy()
        damaged[position] ^= 0x55
        (tmp_path / "best_model").write_bytes(damaged)
        with suppress(CheckpointError):
            load_student(tmp_path / "best_model", declared=KCAL)


def test_sizes_that_the_file_does_not_hold(tmp_path: Path) -> None:
    shape = b"K\x06\x85"  # (6,), of a bias
    for new, message in ((b"M\xff\xff\x85", "reaches beyond"), (b"J\xff\xff\xff\xff\x85", "makes no sense")):
        path = edited(GAUSSIAN, tmp_path / "x", {b"K\x00" + shape: b"K\x00" + new})
        with pytest.raises(CheckpointError, match=message):
            load_student(path, declared=KCAL)
    path = edited(GAUSSIAN, tmp_path / "x", {b"M\x58\x02t": b"J\x00\x00\x00\x7ft"})  # the embedding's 600 numbers
    with pytest.raises(CheckpointError, match="declares 2,130,706,432 numbers, and the file holds 2,400 bytes"):
        load_student(path, declared=KCAL)


def test_records_that_torch_does_not_write(tmp_path: Path) -> None:
    content = records(GAUSSIAN)
    with zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, data)
    with pytest.raises(CheckpointError, match="packed as torch packs none"):
        load_student(tmp_path / "packed", declared=KCAL)
    order = next(name for name in content if name.endswith("byteorder"))
    (tmp_path / "big").write_bytes(packed(content | {order: b"big"}))
    with pytest.raises(CheckpointError, match="big-endian"):
        load_student(tmp_path / "big", declared=KCAL)
    (tmp_path / "gone").write_bytes(packed({n: d for n, d in content.items() if not n.endswith("data/5")}))
    with pytest.raises(CheckpointError, match="lacks the record 'data/5'"):
        load_student(tmp_path / "gone", declared=KCAL)
    (tmp_path / "other.zip").write_bytes(packed({"a/readme.txt": b"hello"}))
    with pytest.raises(CheckpointError, match=r"no data\.pkl"):
        load_student(tmp_path / "other.zip", declared=KCAL)


def test_entries_that_claim_more_than_the_file(tmp_path: Path) -> None:
    """Many entries that overlap: each is as large as the file, and together they are a bomb."""
    data = GAUSSIAN.read_bytes()
    with zipfile.ZipFile(tmp_path / "bomb", "w") as file:
        file.writestr("a/data.pkl", data)
        first = file.infolist()[0]
        for index in range(50):
            entry = zipfile.ZipInfo(f"a/data/{index}")
            entry.file_size = entry.compress_size = first.file_size
            entry.CRC, entry.header_offset = first.CRC, first.header_offset
            file.filelist.append(entry)
            file.NameToInfo[entry.filename] = entry
    with pytest.raises(CheckpointError, match="more numbers than it has bytes"):
        load_student(tmp_path / "bomb", declared=KCAL)


def test_files_of_no_kind_that_we_know(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello, this is a file")
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "text", "of no kind that we know. What can be read"),
        (tmp_path / "none", "There is no file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_student(path, declared=KCAL)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "old", _use_new_zipfile_serialization=False)
    (tmp_path / "pickled").write_bytes(pickle.dumps({"a": 1}))
    for name, message in (("old", "holds .*Linear, which is no"), ("pickled", "cannot be read as weights only")):
        with pytest.raises(CheckpointError, match=message):
            load_student(tmp_path / name, declared=KCAL)
