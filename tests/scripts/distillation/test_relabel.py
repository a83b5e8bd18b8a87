"""Another teacher's labels on the structures of a training set; what it cannot answer is dropped, counted and named."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from painn_deploy.export.errors import DatasetError
from painn_deploy.scripts.distillation.relabel import relabel, teacher_of
from tests import students

TEACHERS = '''
from ase.calculators.lj import LennardJones


class Picky(LennardJones):
    """Fails where there is nitrogen, and knows no limit where there is carbon alone with oxygen."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=("positions",)):
        if 7 in atoms.numbers:
            raise RuntimeError("SCF not converged")
        super().calculate(atoms, properties, system_changes)
        if set(atoms.numbers) == {6, 8}:
            self.results["forces"] = self.results["forces"] * 0 + 1e4
'''


@pytest.fixture
def data(tmp_path: Path) -> Path:
    from ase.build import molecule

    folder, rng = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    for split, names in (("train", ("H2O", "NH3", "CO", "C6H6")), ("validation", ("CH4",)), ("test", ("H2O",))):
        structures = [students.perturbed(molecule(name), seed, 0.03) for seed in range(30) for name in names]
        numbers = np.concatenate([a.numbers for a in structures])
        np.savez(
            folder / f"{split}.npz",
            numbers=numbers.astype(np.int8),
            positions=np.concatenate([a.positions for a in structures]),
            forces=rng.normal(0, 1, (len(numbers), 3)).astype(np.float32),
            energies=np.zeros(len(structures)),
            offsets=np.cumsum([0, *map(len, structures)]),
            kinds=np.full(len(structures), "md"),
            names=np.tile(names, 30),
        )
    return folder


@pytest.fixture
def picky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "lj_teachers.py").write_text(TEACHERS)
    monkeypatch.syspath_prepend(tmp_path)
    return "lj_teachers:Picky"


def test_every_structure_has_the_new_teacher_s_label_or_is_named(data: Path, tmp_path: Path, picky: str) -> None:
    from ase.calculators.lj import LennardJones

    output = tmp_path / "new"
    summary = relabel(data, output, picky, max_force=1e4, workers=2)
    assert {split: (told["labelled"], told["dropped"]) for split, told in summary.items()} == {
        "train": (60, 60),
        "validation": (30, 0),
        "test": (30, 0),
    }
    reasons = summary["train"]["reasons"]
    assert "NH3 (md 1): SCF not converged" in reasons
    assert "CO (md 2): largest force 1.73e+04 eV/Å" in reasons
    assert json.loads((output / "summary.json").read_text()) == summary
    assert teacher_of(output) == picky
    with np.load(output / "train.npz") as new, np.load(data / "train.npz") as old:
        assert set(new["names"].tolist()) == {"H2O", "C6H6"}
        for i, name in enumerate(new["names"]):
            atoms = Atoms(*(new[key][slice(*new["offsets"][i : i + 2])] for key in ("numbers", "positions")))
            atoms.calc = LennardJones()
            assert atoms.get_potential_energy() == pytest.approx(new["energies"][i])
            np.testing.assert_allclose(atoms.get_forces(), new["forces"][slice(*new["offsets"][i : i + 2])], rtol=1e-5)
            assert atoms.get_chemical_formula() == Atoms(str(name) if name != "C6H6" else "C6H6").get_chemical_formula()
        kept = np.isin(np.repeat(old["names"], np.diff(old["offsets"])), ("H2O", "C6H6"))
        np.testing.assert_array_equal(new["positions"], old["positions"][kept])


def test_a_rerun_finishes_what_is_missing(data: Path, tmp_path: Path, picky: str) -> None:
    output = tmp_path / "new"
    relabel(data, output, picky)
    before = {path.name: path.read_bytes() for path in output.glob("*.*")}
    parts = sorted((output / "parts").glob("*.npz"))
    assert len(parts) == 5
    parts[1].unlink()
    relabel(data, output, picky)
    assert {path.name: path.read_bytes() for path in output.glob("*.*")} == before


def test_what_cannot_be_used_is_an_error(data: Path, tmp_path: Path, picky: str) -> None:
    with pytest.raises(DatasetError, match=r"Cannot read .*gone/train.npz"):
        relabel(tmp_path / "gone", tmp_path / "new", picky)
    with pytest.raises(DatasetError, match="cannot be imported"):
        relabel(data, tmp_path / "new", "no_such:thing")
    with pytest.raises(DatasetError, match="no relabelled training set"):
        relabel(data, data, picky)
    relabel(data, tmp_path / "new", picky)
    with pytest.raises(DatasetError, match="begun with another teacher, limit or data"):
        relabel(data, tmp_path / "new", picky, max_force=3.0)
    with pytest.raises(DatasetError, match=r"no usable label for the train split: H2O \(md 0\): largest force"):
        relabel(data, tmp_path / "none", picky, max_force=0.0)
