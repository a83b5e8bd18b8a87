"""Files of structures that are none: what ASE would hang on, or take all memory for, is refused before it reads."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from painn_deploy.calibration.structures import read_structures
from painn_deploy.export.errors import DatasetError
from tests.export.hostile import nested, replaced, sparse


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz", ".db", ".traj", ".json", ".cif", ""])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (sparse, "no more than 4,294,967,296 are read"),
        (lambda path: path.symlink_to(path.name), "cannot be read"),
        (lambda path: path.write_bytes(b""), "Cannot read structures|holds no structures"),
        (lambda path: path.write_bytes(b"\xff\xfe\0\0" * 50), "Cannot read structures"),
        (lambda path: path.write_text("1" * 5_000 + "\n\n"), "Cannot read structures"),
        (lambda path: path.write_text(str(nested(900)) * 20), "Cannot read structures"),
    ],
    ids=["pipe", "device", "holes", "loop", "empty", "bytes", "5,000 digits", "deep"],
)
def test_what_is_no_file_of_structures(
    tmp_path: Path, suffix: str, make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / f"x{suffix}"
    replaced(path, make)
    with pytest.raises(DatasetError, match=message):
        read_structures(path)


def test_names_that_lead_nowhere() -> None:
    for name in ("absent.xyz", "x" * 300, "a\0b"):
        with pytest.raises(DatasetError, match="Cannot read structures"):
            read_structures(name)
