"""The training set: the same whatever the workers and interruptions, split by molecule, and clear about bad input."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes

from painn_deploy.export.errors import DatasetError
from painn_deploy.export.files import PARTIAL
from painn_deploy.scripts.distillation import make_dataset as make_dataset_script
from painn_deploy.scripts.distillation.labels import load_teacher
from painn_deploy.scripts.distillation.make_dataset import MOLECULES, SURVEY, Settings, make_dataset
from painn_deploy.scripts.distillation.molecules import Mechanics, embedded
from painn_deploy.scripts.distillation.plan import MONOMERS, TESTED, hashed_split, plan, read_molecules
from painn_deploy.scripts.distillation.structures import Sampler, closest_contact, docked, langevin, pinched

pytest.importorskip("rdkit")
pytest.importorskip("tblite")

TINY = "# a heading\n\nO water\nN=N diazene\nCNO N-methylhydroxylamine\nCO methanol\n"
FEW = Settings(frames=3)
FIRST = 9  # items: four atoms, four molecules, and the water dimer
ARRAYS = {"numbers", "positions", "forces", "energies", "offsets", "names", "kinds"}


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    path = tmp_path_factory.mktemp("list") / "tiny.smi"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, molecules):
    output = tmp_path_factory.mktemp("one-worker") / "data"
    make_dataset(output, molecules, FEW, workers=1, limit=FIRST)
    return output


def content(folder):
    """Every array of the three splits, and the summary and the split as text."""
    arrays = {}
    for split in ("train", "validation", "test"):
        with np.load(folder / f"{split}.npz") as file:
            arrays |= {(split, key): file[key] for key in file.files}
    return arrays, (folder / "summary.json").read_text(), (folder / "split.json").read_text()


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    for key, array in one[0].items():
        np.testing.assert_array_equal(array, other[0][key], err_msg=str(key), strict=True)
    assert one[1:] == other[1:]


def test_two_workers_give_the_same_as_one(dataset, molecules, tmp_path):
    make_dataset(tmp_path / "data", molecules, FEW, workers=2, limit=FIRST)
    assert_same(content(dataset), content(tmp_path / "data"))


def test_a_rerun_finishes_what_is_missing_and_nothing_else(molecules, tmp_path):
    output = tmp_path / "data"
    make_dataset(output, molecules, FEW, limit=FIRST)
    before = content(output)
    parts = sorted((output / "parts").iterdir())
    times = {part: part.stat().st_mtime_ns for part in parts}
    for part in parts[:3]:
        part.unlink()
    (output / "parts" / f".a part{PARTIAL}").write_bytes(b"half an interrupted write")
    make_dataset(output, molecules, FEW, limit=FIRST)
    assert_same(before, content(output))
    assert {part: part.stat().st_mtime_ns for part in parts[3:]} == {part: times[part] for part in parts[3:]}
    assert not list(output.rglob(f"*{PARTIAL}"))


def test_another_seed_gives_other_structures(dataset, molecules, tmp_path):
    make_dataset(tmp_path / "data", molecules, Settings(frames=3, seed=2), limit=FIRST)
    one, other = content(dataset), content(tmp_path / "data")
    assert one[2] == other[2]  # the split does not depend on it
    assert not np.array_equal(one[0]["validation", "energies"], other[0]["validation", "energies"])


def test_the_arrays_fit_together(dataset):
    for split, kinds in json.loads((dataset / "summary.json").read_text())["structures"].items():
        with np.load(dataset / f"{split}.npz") as file:
            arrays = dict(file)
        assert set(arrays) == ARRAYS
        assert {key: array.dtype for key, array in arrays.items() if key not in ("names", "kinds")} == {
            "numbers": np.int8,
            "positions": np.float64,
            "forces": np.float32,
            "energies": np.float64,
            "offsets": np.int64,
        }
        assert len(arrays["energies"]) == len(arrays["names"]) == len(arrays["kinds"]) == len(arrays["offsets"]) - 1
        assert arrays["offsets"][0] == 0
        assert arrays["offsets"][-1] == len(arrays["numbers"]) == len(arrays["positions"]) == len(arrays["forces"])
        assert dict(Counter(arrays["kinds"].tolist())) == kinds
        assert np.linalg.norm(arrays["forces"], axis=1).max() <= FEW.max_force


def test_labels_are_the_teachers_own(dataset):
    with np.load(dataset / "train.npz") as file:
        arrays = dict(file)
    assert {"atom:C", "atom:H", "atom:N", "atom:O", "water", "methanol", "dimer:water*2#0"} == set(arrays["names"])
    for i in range(len(arrays["names"])):
        span = slice(arrays["offsets"][i], arrays["offsets"][i + 1])
        atoms = Atoms(arrays["numbers"][span], arrays["positions"][span], calculator=load_teacher(FEW.teacher)())
        assert atoms.get_potential_energy() == pytest.approx(arrays["energies"][i], abs=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), arrays["forces"][span], atol=1e-4)


def test_the_split_is_by_molecule_and_its_digest_is_of_the_sorted_list(dataset):
    split = json.loads((dataset / "split.json").read_text())
    listing = "\n".join(sorted(f"{name} {part}" for name, part in split["split"].items()))
    assert split["sha256"] == hashlib.sha256(listing.encode()).hexdigest()
    for part in ("train", "validation", "test"):
        with np.load(dataset / f"{part}.npz") as file:
            assert {split["split"][name] for name in file["names"].tolist()} == {part}


def test_the_hash_does_not_change_from_run_to_run():
    assert [hashed_split(key) for key in ("CCC", "CNO", "N=N")] == ["train", "validation", "test"]


def test_the_list_that_comes_along_is_usable_and_nothing_tested_is_in_a_mixture():
    molecules = read_molecules(MOLECULES)
    assert 400 <= len(molecules) <= 600
    items = {item.name: item for item in plan(molecules)}
    assert all(items[name].split == "test" for name in TESTED)
    assert all(items[name].split == "train" for name in MONOMERS)
    shares = Counter(item.split for item in items.values() if item.recipe == "molecule")
    assert shares["train"] > 0.7 * len(molecules)
    assert min(shares.values()) > 0.05 * len(molecules)
    held_out = {item.smiles[0] for item in items.values() if item.recipe == "molecule" and item.split != "train"}
    assert not held_out & {smiles for item in items.values() if item.recipe != "molecule" for smiles in item.smiles}
    assert {item.name for item in items.values() if item.recipe == "atom"} == {"atom:C", "atom:H", "atom:N", "atom:O"}


def test_the_survey_is_trained_on_and_holds_no_molecule_that_validates_or_tests():
    from rdkit import Chem, RDLogger
    from rdkit.Chem.MolStandardize import rdMolStandardize
    from rdkit.Chem.rdMolDescriptors import CalcMolFormula

    RDLogger.DisableLog("rdApp.*")
    molecules, survey = read_molecules(MOLECULES), read_molecules(SURVEY)
    assert 1500 <= len(survey) <= 2500
    items = plan(molecules, survey)
    assert {item.split for item in items if item.recipe in ("survey", "close")} == {"train"}
    before = {item.name: item.split for item in plan(molecules)}
    assert {item.name: item.split for item in items if item.name in before} == before  # a longer list moves nobody
    held_out = [item.smiles[0] for item in items if item.recipe == "molecule" and item.split != "train"]
    enumerator = rdMolStandardize.TautomerEnumerator()
    enumerator.SetMaxTautomers(50)

    def tautomer(smiles):
        return Chem.MolToSmiles(enumerator.Canonicalize(Chem.MolFromSmiles(smiles)), isomericSmiles=False)

    formulas = {CalcMolFormula(Chem.MolFromSmiles(smiles)) for smiles in held_out}
    forbidden = {tautomer(smiles) for smiles in held_out}
    for name, smiles in survey.items():
        if CalcMolFormula(Chem.MolFromSmiles(smiles)) in formulas:
            assert tautomer(smiles) not in forbidden, name


@pytest.mark.parametrize("line", ["CO wood-alcohol", "CCO methanol", "C[C@H](N)C(=O)O L-alanine"])
def test_a_molecule_in_both_lists_is_refused(tmp_path, line):
    (tmp_path / "list.smi").write_text(TINY + "CC(N)C(=O)O alanine\n")
    (tmp_path / "survey.smi").write_text(line + "\n")
    with pytest.raises(DatasetError, match=r"of the survey is in the list of molecules, as (methanol|alanine)"):
        make_dataset(tmp_path / "data", tmp_path / "list.smi", FEW, survey=tmp_path / "survey.smi")


def test_what_an_earlier_folder_has_is_taken_over_and_the_same_as_made_anew(dataset, tmp_path):
    (tmp_path / "longer.smi").write_text("C=C ethylene\n" + TINY)
    (tmp_path / "survey.smi").write_text("CCC propane\nCC#N acetonitrile\n")
    options = {"survey": tmp_path / "survey.smi", "limit": 10}
    make_dataset(tmp_path / "anew", tmp_path / "longer.smi", FEW, **options)
    make_dataset(tmp_path / "grown", tmp_path / "longer.smi", FEW, reuse=dataset, **options)
    assert_same(content(tmp_path / "anew"), content(tmp_path / "grown"))
    parts = {path.name: path.stat().st_ino for path in (tmp_path / "grown" / "parts").iterdir()}
    assert len(parts) == 10
    for message, options in {
        r"made with different settings \(seed\)": {"settings": Settings(frames=3, seed=7)},
        r"made with different settings \(molecules\)": {"molecules": "[2H]O water\nN=N diazene\nCNO N-oxide\nCO m\n"},
        r"holds no training set to reuse": {"reuse": tmp_path},
    }.items():
        (tmp_path / "other.smi").write_text(options.get("molecules", "C=C ethylene\n" + TINY))
        settings, reuse = options.get("settings", FEW), options.get("reuse", dataset)
        with pytest.raises(DatasetError, match=message):
            make_dataset(tmp_path / "refused", tmp_path / "other.smi", settings, reuse=reuse)
        assert not (tmp_path / "refused").exists()


def test_a_longer_survey_labels_only_what_is_new_or_changed(dataset, tmp_path, monkeypatch):
    del dataset
    # without clusters and liquids, whose hundred structures take minutes and are no part of a survey
    few = lambda *lists: [item for item in plan(*lists) if item.recipe not in ("cluster", "liquid")]  # noqa: E731
    monkeypatch.setattr(make_dataset_script, "plan", few)
    (tmp_path / "list.smi").write_text(TINY)
    first, second = tmp_path / "first.smi", tmp_path / "second.smi"
    first.write_text("CCC propane\nCC#N acetonitrile\n")
    second.write_text("CCC propane\nCC=N acetonitrile\nC=C ethylene\n")  # one as before, one changed, one new
    for survey, reuse in ((first, None), (second, tmp_path / "first")):
        make_dataset(tmp_path / survey.stem, tmp_path / "list.smi", FEW, survey=survey, reuse=reuse)
    for name, same in (("propane", True), ("acetonitrile", False)):
        parts = [next((tmp_path / folder / "parts").glob(f"survey_{name}-*")) for folder in ("first", "second")]
        assert (parts[0].read_bytes() == parts[1].read_bytes()) is same
    make_dataset(tmp_path / "anew", tmp_path / "list.smi", FEW, survey=second)
    assert_same(content(tmp_path / "anew"), content(tmp_path / "second"))


def test_molecular_mechanics_gives_the_gradient_of_its_energy_wherever_it_was_before():
    molecule = embedded("CC(=O)NC", 2, 0)
    atoms = molecule.conformers[0].copy()
    atoms.calc = Mechanics(molecule.force_field)
    for seed in range(3):  # the force field keeps distances of the call before
        atoms.positions = molecule.conformers[seed % 2].positions
        atoms.rattle(0.1, seed=seed)
        forces, start = atoms.get_forces(), atoms.positions.copy()
        energies = []
        for sign in (1, -1):
            atoms.positions = start + sign * 1e-5 * forces
            energies.append(atoms.get_potential_energy())
        assert (energies[1] - energies[0]) / 2e-5 == pytest.approx((forces**2).sum(), rel=1e-4)
        assert (forces**2).sum() > 1


@pytest.mark.parametrize(
    ("recipe", "kinds"),
    [("survey", {"conformer", "md", "distorted", "wall"}), ("close", {"conformer", "distorted"})],
)
def test_a_survey_has_every_kind_and_a_neighbourhood_is_near_its_minimum(recipe, kinds):
    sampler = Sampler(load_teacher("tblite:GFN2-xTB"), 6, np.random.default_rng(0), [])
    structures = list(sampler.structures(recipe, ("CC=O",)))
    assert {structure.kind for structure in structures} == kinds
    assert sampler.failures == []
    assert all(sorted(structure.atoms.numbers) == [1] * 4 + [6, 6, 8] for structure in structures)
    if recipe == "close":
        minimum = structures[0].atoms.positions
        spread = [(structure.atoms.positions - minimum).std() for structure in structures[1:]]
        assert len(spread) == 18
        assert 0.005 < min(spread) < 0.05 < max(spread) < 0.15


def test_stereoisomers_are_in_one_split(tmp_path):
    path = tmp_path / "isomers.smi"
    path.write_text("C[C@H](N)C(=O)O left\nC[C@@H](N)C(=O)O right\nC/C=C/C trans\nC/C=C\\C cis\n")
    splits = {item.name: item.split for item in plan(read_molecules(path))}
    assert splits["left"] == splits["right"]
    assert splits["trans"] == splits["cis"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("O water\nC1CC broken-ring\n", r"bad\.smi, line 2: RDKit cannot read the SMILES 'C1CC' of broken-ring"),
        ("O\n", r"bad\.smi, line 1: expected 'SMILES name'"),
        ("# water\n\n", r"bad\.smi lists no molecule"),
        ("O water\n[OH2] again\n", r"bad\.smi, line 2: again is in the list before, as water"),
        ("O water\nC water\n", r"bad\.smi, line 2: water is in the list before"),
        ("[NH4+] ammonium\n", r"bad\.smi, line 1: ammonium is charged or a radical"),
        ("[CH3] methyl\n", r"bad\.smi, line 1: methyl is charged or a radical"),
    ],
)
def test_a_bad_list_is_refused_with_file_and_line(tmp_path, lines, message):
    path = tmp_path / "bad.smi"
    path.write_text(lines)
    with pytest.raises(DatasetError, match=message):
        make_dataset(tmp_path / "data", path, FEW)
    assert not (tmp_path / "data").exists()


def test_a_missing_list_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"no list of molecules at .*gone\.smi: give .* --molecules"):
        make_dataset(tmp_path / "data", tmp_path / "gone.smi", FEW)


@pytest.mark.parametrize("teacher", ["no_such_package.teachers:best", "math:no_such_function"])
def test_a_teacher_that_cannot_be_imported_is_refused(tmp_path, molecules, teacher):
    with pytest.raises(DatasetError, match=r"cannot be imported .*painn-deploy\[train\]"):
        make_dataset(tmp_path / "data", molecules, Settings(teacher=teacher))


def test_a_teacher_without_a_factory_is_refused():
    with pytest.raises(DatasetError, match=r"neither 'tblite:METHOD' nor 'package.module:factory'"):
        load_teacher("tblite")


def test_an_empty_split_is_refused_before_anything_is_written(tmp_path, molecules):
    with pytest.raises(DatasetError, match=r"the validation split is empty: .* raise --limit 5"):
        make_dataset(tmp_path / "data", molecules, FEW, limit=5)
    assert not (tmp_path / "data").exists()


def test_a_folder_of_other_settings_is_refused(dataset, molecules):
    before = content(dataset)
    with pytest.raises(DatasetError, match=r"begun with different settings \(max_force, seed\): repeat them, or"):
        make_dataset(dataset, molecules, Settings(frames=3, seed=5, max_force=9.0), limit=FIRST)
    assert_same(before, content(dataset))


def test_a_folder_of_something_else_is_refused(tmp_path, molecules):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="no folder of a training set: take another --output"):
        make_dataset(tmp_path, molecules, FEW, limit=FIRST)


def test_large_forces_are_dropped_and_counted(dataset, molecules, tmp_path):
    summary = make_dataset(tmp_path / "data", molecules, Settings(frames=3, max_force=8.0), limit=FIRST)
    kept = sum(sum(kinds.values()) for kinds in summary["structures"].values())
    dropped = sum(summary["dropped_for_large_forces"].values())
    before = json.loads((dataset / "summary.json").read_text())
    assert dropped > sum(before["dropped_for_large_forces"].values())
    everything = sum(sum(kinds.values()) for kinds in before["structures"].values())
    assert kept + dropped == everything + sum(before["dropped_for_large_forces"].values())


TEACHERS = '''
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT


class Picky(EMT):
    """Has no answer for ammonia, diazene and lone nitrogen."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if 7 in atoms.numbers and len(atoms) < 5:
            raise RuntimeError("SCF not converged")
        super().calculate(atoms, properties, system_changes)
'''


def test_a_split_that_the_teacher_fails_on_is_an_error_that_says_why(tmp_path, monkeypatch, molecules):
    (tmp_path / "own_teachers.py").write_text(TEACHERS)
    monkeypatch.syspath_prepend(tmp_path)
    settings = Settings(teacher="own_teachers:Picky", frames=3, max_force=1e6)
    with pytest.raises(DatasetError, match=r"no label of the test split is usable \(.*SCF not converged"):
        make_dataset(tmp_path / "data", molecules, settings, limit=FIRST)


def test_what_an_own_teacher_fails_on_is_named_and_the_rest_is_kept(tmp_path, monkeypatch):
    (tmp_path / "own_teachers.py").write_text(TEACHERS)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "list.smi"
    path.write_text("O water\nN ammonia\nCNO N-methylhydroxylamine\nCC(C)=NO acetone-oxime\n")
    settings = Settings(teacher="own_teachers:Picky", frames=3, max_force=1e6)
    summary = make_dataset(tmp_path / "data", path, settings, limit=8)
    assert summary["without_any_label"] == ["ammonia", "atom:N"]
    assert set(summary["failed"]) == {"ammonia", "atom:N"}
    assert "conformer: SCF not converged" in summary["failed"]["ammonia"]
    assert any(note.startswith("dynamics at 300 K") for note in summary["failed"]["ammonia"])


def test_the_environment_is_as_before(dataset, monkeypatch, molecules):
    before = dict(os.environ)
    make_dataset(dataset, molecules, FEW, limit=FIRST)
    assert dict(os.environ) == before


def test_the_command_prints_what_it_made_and_reports_errors_without_a_traceback(dataset, molecules, tmp_path):
    options = ["--output", dataset, "--molecules", molecules, "--frames", 3, "--limit", FIRST]

    def run(*arguments):
        command = [sys.executable, make_dataset_script.__file__, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(*options)
    assert done.returncode == 0, done.stderr
    assert "train: " in done.stdout
    assert "4 atom" in done.stdout
    failed = run(*options, "--seed", 9)
    assert failed.returncode == 1
    assert "begun with different settings (seed)" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_docked_molecules_touch_at_the_ratio_asked_for():
    rng = np.random.default_rng(0)
    water, methane = (embedded(smiles, 1, 0).conformers[0] for smiles in ("O", "C"))
    for ratio in (0.55, 0.8, 1.7):
        assert closest_contact(water, docked(water, methane, ratio, rng)) == pytest.approx(ratio)


def test_pinched_atoms_are_at_the_distance_asked_for_and_others_follow():
    ethane = embedded("CC", 1, 0)
    positions = ethane.conformers[0].positions
    moved = pinched(positions, ethane.bonds_between, 0, 1, 1.0)
    assert np.linalg.norm(moved[1] - moved[0]) == pytest.approx(1.0)
    np.testing.assert_allclose(moved.mean(axis=0), positions.mean(axis=0), atol=1e-9)
    assert (np.linalg.norm(moved - positions, axis=1) > 0.05).all()


class Springs(Calculator):
    """Every atom on a spring of 1 eV/Å^2 to the origin, so that kT = <x^2> 1 eV/Å^2."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("forces",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": (atoms.positions**2).sum() / 2, "forces": -atoms.positions}


def test_langevin_dynamics_has_the_temperature_asked_for():
    atoms = Atoms("H400", positions=np.zeros((400, 3)), calculator=Springs())
    strides = langevin(atoms, 600.0, np.random.default_rng(0))
    squares = [(atoms.positions**2).mean() for _, _ in zip(range(30), strides, strict=False)]
    assert np.mean(squares[20:]) == pytest.approx(600 * units.kB, rel=0.08)


@pytest.mark.parametrize(("recipe", "count"), [("cluster", 4), ("liquid", 4), ("dimer", 2)])
def test_mixtures_hold_all_their_molecules(recipe, count):
    sampler = Sampler(load_teacher("tblite:GFN2-xTB"), 3, np.random.default_rng(0), [])
    structures = list(sampler.structures(recipe, ("O",) * count))
    assert structures
    assert all(sorted(structure.atoms.numbers) == [1] * 2 * count + [8] * count for structure in structures)
    assert sampler.failures == []
