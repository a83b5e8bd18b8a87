"""Files of structures that are none: what ASE would hang on, or take all memory for, is refused before it reads."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import ase.io
import pytest
from ase.build import bulk, molecule

from painn_deploy.calibration.structures import read_known, read_structures
from painn_deploy.export import load_student
from painn_deploy.export.errors import DatasetError
from painn_deploy.runtime.periodicity import PeriodicityWarning, foreign_cell
from painn_deploy.scripts import export_engines
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


@pytest.mark.parametrize(
    "comment",
    [
        "# CELL(abcABC):   10.0 10.0 10.0 90.0 90.0 90.0  Step: 0  Bead: 0 positions{angstrom} cell{angstrom}",
        "# CELL(H): 10 0 0 0 10 0 0 0 10 cell{atomic_unit}",
        'lattice="10 0 0 0 10 0 0 0 10" pbc="T T T"',
        'name="" Lattice="10 0 0 0 10 0 0 0 10"',
        'note="the Lattice" lattice="10 0 0 0 10 0 0 0 10"',
        'a=1,Lattice="10 0 0 0 10 0 0 0 10"',
    ],
)
def test_field_5_a_cell_that_ase_does_not_read_is_an_error(tmp_path: Path, comment: str) -> None:
    (tmp_path / "in.xyz").write_text(f"1\n\nH 0 0 0\n1\n{comment}\nH 0 0 0\n")
    with pytest.raises(DatasetError, match="Structure 1 of .* has a cell that ASE does not read"):
        read_structures(tmp_path / "in.xyz")


def test_a_word_about_a_lattice_is_no_cell(tmp_path: Path) -> None:
    (tmp_path / "in.xyz").write_text("1\nlattice=fcc note=Lattice\nH 0 0 0\n")
    (atoms,) = read_structures(tmp_path / "in.xyz")
    assert atoms.info == {"lattice": "fcc", "note": "Lattice"}


@pytest.mark.parametrize("comment", ["lattice=", 'lattice="1', "Lattice:", 'a=1,Lattice="', "CELL(", "lattice=1 2"])
def test_a_comment_is_gone_through_once(comment: str) -> None:
    """A megabyte of spaces took a day where two patterns could share them."""
    begun = time.process_time()
    foreign_cell(comment + " " * (1 << 20) + "x")
    assert time.process_time() - begun < 5


def test_crystals_without_pbc_are_counted_once(painn: Path, tmp_path: Path) -> None:
    crystal = bulk("C", "diamond", a=3.57, cubic=True)
    crystal.rattle(0.01)
    ase.io.write(tmp_path / "whole.xyz", [molecule("CH4"), crystal])
    crystal.pbc = False
    ase.io.write(tmp_path / "in.xyz", [molecule("CH4"), crystal, molecule("CH4", vacuum=6.0), crystal])
    student = load_student(painn)
    assert len(read_known(tmp_path / "whole.xyz", student)) == 2
    words = r"2 of 4 structures of in.xyz, .* within the cutoff of 4 Å \(structure 1: atom .*atoms.pbc = True"
    with pytest.warns(PeriodicityWarning, match=words) as told:
        export_engines(painn, tmp_path, structures=tmp_path / "in.xyz")
    assert len(told) == 1
