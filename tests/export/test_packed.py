"""Compressed files: what was packed comes out, damage is an error, and a file that was cut gives what is whole."""

import bz2
import gzip
import lzma
import zlib
from io import BufferedReader
from pathlib import Path

import numpy as np
import pytest

from painn_deploy.export import packed as module
from painn_deploy.export.errors import DatasetError
from painn_deploy.export.packed import PACKINGS, Unpacked, packed, packing_of

PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
TEXT = b"".join(b"%d %f\n" % item for item in enumerate(np.random.default_rng(0).random(9000).tolist()))


def unpacked(path: Path, packing: str, content: bytes) -> tuple[bytes, bool]:
    """What a file of this content gives, and whether it was cut."""
    path.write_bytes(content)
    with Unpacked(path, packing) as raw:
        return BufferedReader(raw, 1000).read(), raw.cut


def test_every_packing_has_a_packer() -> None:
    assert PACKERS.keys() == PACKINGS.keys()
    assert [packing_of(Path(name)) for name in ("a.xyz.GZ", "a.xyz", "gz")] == [".gz", "", ""]


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_was_packed_comes_out(tmp_path: Path, packing: str) -> None:
    pack, path = PACKERS[packing], tmp_path / "x"
    one, two = TEXT[:4321], TEXT[4321:]
    for content in (
        pack(TEXT),
        packed(TEXT, packing),
        pack(one) + pack(two),
        packed(one, packing) + packed(b"", packing) + packed(two, packing),
        pack(TEXT) + bytes(512),  # as tapes leave it
    ):
        assert unpacked(path, packing, content) == (TEXT, False)
    assert packed(TEXT, packing) == packed(TEXT, packing)
    for content in (b"", pack(b"")):
        assert unpacked(path, packing, content) == (b"", False)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_file_that_was_cut_gives_what_is_whole(tmp_path: Path, packing: str) -> None:
    content = PACKERS[packing](TEXT[:30_000]) + PACKERS[packing](TEXT[30_000:])
    given = set()
    for cut in (1, 9, 500, len(content) // 2, len(content) * 3 // 4, len(content) - 1):
        found, known = unpacked(tmp_path / "x", packing, content[:cut])
        assert known
        assert TEXT.startswith(found)
        given.add(len(found))
    assert max(given) >= 30_000


@pytest.mark.parametrize("packing", PACKINGS)
def test_damage_and_garbage_are_errors(tmp_path: Path, packing: str) -> None:
    content = PACKERS[packing](TEXT)
    for garbage in (TEXT, b"\xff\xfe\0\0" * 50, bytes(100)):
        with pytest.raises(DatasetError, match="not compressed as its name says"):
            unpacked(tmp_path / "x", packing, garbage)
    with pytest.raises(DatasetError, match="something else than compressed data follows"):
        unpacked(tmp_path / "x", packing, content + b"and this is text")
    said = []
    for place in np.random.default_rng(1).integers(0, len(content), 50).tolist():
        altered = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        try:
            found, cut = unpacked(tmp_path / "x", packing, altered)
        except DatasetError as error:
            said.append(str(error))
        else:  # the time or the system in a header, or a length that is longer now
            assert cut or found == TEXT
    assert len(said) > 40
    assert all("cannot be unpacked" in words for words in said)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_file_that_holds_far_more_than_its_size_is_given_up(
    tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FREE", 1 << 20)
    content = PACKERS[packing](bytes(9 << 20))
    with pytest.raises(DatasetError, match="holds more than 250 times its own size, . MiB so far"):
        unpacked(tmp_path / "x", packing, content)
    alike = zlib.compress(TEXT)
    assert unpacked(tmp_path / "x", packing, PACKERS[packing](alike * 30))[0] == alike * 30
