"""A student of one system is audited where it lives, and its engine is condemned for nothing else."""

import copy
import dataclasses
import json
import math
import pickle
import types
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from safetensors.torch import save_file

from painn_deploy.calibration.accuracy.domain import Domain, find_domain
from painn_deploy.calibration.accuracy.reference import TorchCalculator
from painn_deploy.calibration.physics import consistency, continuity, motion, reproducibility, symmetry
from painn_deploy.calibration.physics.audit import PROPERTIES, Audit, References, audit, prepare
from painn_deploy.calibration.physics.choosing import chosen_frames
from painn_deploy.calibration.physics.verdicts import Case, Property, Sentences, Verdict
from painn_deploy.export import load_student
from painn_deploy.export.errors import DatasetError
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import export_engines
from tests import students
from tests.conftest import reference_systems

Change = Callable[[Atoms, dict[str, Any]], dict[str, Any]]

MOLECULAR = {"stress and energy", "lattice shift"}
PERIODIC = {"torque", "size consistency", "perfect symmetry"}


class Changed(TorchCalculator):
    """A student in float32, and something wrong with it."""

    def __init__(self, student: Any, change: Change = lambda _, result: result) -> None:
        super().__init__(student, remember=True)
        self.change = change

    def calculate_batch(self, structures: Any) -> list[dict[str, Any]]:
        return [self.change(a, r) for a, r in zip(structures, super().calculate_batch(structures), strict=True)]


class Part(torch.nn.Module):
    """Whatever class of SchNetPack's a part of the model has; only its weights are read."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = module.split(".")[0] in ("torch", "collections", "builtins", "__builtin__", "copy_reg", "_codecs")
        return super().find_class(module, name) if known else type(name, (Part,), {})


@pytest.fixture(scope="module")
def trained(references: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Atoms]]:
    """A PaiNN that SchNetPack trained on ethanol, without atomic energies, and frames of its dynamics at 500 K."""
    source = references / "schnetpack_trained" / "ethanol_1.best_model"
    reader = types.ModuleType("reader")
    vars(reader).update(Unpickler=Unpickler, load=lambda file, **options: Unpickler(file, **options).load())
    weights = torch.load(source, map_location="cpu", pickle_module=reader, weights_only=False).state_dict()
    tensors = {name: tensor for name, tensor in weights.items() if not name.startswith("postprocessors")}
    for name in ("output_modules.0.outnet.1.weight", "output_modules.0.outnet.1.bias"):
        tensors[name] = tensors[name] * 0.0433641  # eV of a kcal/mol
    path = tmp_path_factory.mktemp("ethanol") / "ethanol.safetensors"
    save_file(tensors, path)
    configuration = {"architecture": "painn", "hidden_dim": 128, "num_interactions": 3, "num_rbf": 20, "cutoff": 5.0}
    path.with_suffix(".json").write_text(json.dumps({**configuration, "epsilon": 1e-8, "species": ["H", "C", "O"]}))
    systems = reference_systems(source.with_name("ethanol_1.reference.npz"))
    return path, [atoms for name, atoms, _ in systems if name.startswith("md500K")]


@pytest.fixture(scope="module")
def student(trained: tuple[Path, list[Atoms]]) -> Student:
    return load_student(trained[0], dtype=torch.float64)


@pytest.fixture(scope="module")
def at_home(student: Student, trained: tuple[Path, list[Atoms]]) -> References:
    return References.of(student, domain=find_domain(student, trained[1], "ethanol.extxyz", brought=True))


@pytest.fixture(scope="module")
def abroad(student: Student) -> References:
    return References.of(student)


def figures(values: Any) -> Iterator[float]:
    if isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from figures(value)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield abs(values)


def short(engine: Any, references: References) -> Audit:
    return audit(engine, references, precision="fp32", picoseconds=0.02)


def test_an_engine_of_ethanol_is_faithful_on_ethanol(
    trained: tuple[Path, list[Atoms]], at_home: References, tmp_path: Path
) -> None:
    names = [atoms.info["name"] for atoms in at_home.subjects.molecules]
    assert len(names) == len(set(names)) == 4
    assert not at_home.subjects.crystals
    assert all("C2H6O, frame" in name for name in names)
    assert at_home.subjects.elements == (1, 6, 8)
    with PaiNNCalculator(engine_of(*trained, tmp_path), threads=1) as engine:
        found = short(engine, at_home)
    assert found.lost == found.student_lacks == []
    assert {"relaxation", "energy drift", "bond stretch", "cutoff"} <= {finding.name for finding in found.findings}
    assert not {finding.name for finding in found.findings} & MOLECULAR


def engine_of(path: Path, frames: list[Atoms], folder: Path) -> Path:
    (engine,) = export_engines(path, folder, structures=frames)
    return engine


def test_without_frames_no_number_is_absurd(abroad: References) -> None:
    left_out = {each.structure for each in abroad.subjects.left_out}
    assert {"diamond, 2 atoms", "diamond, 8 atoms"} <= left_out
    found = short(Changed(abroad.single.student), abroad)
    assert found.lost == []
    assert {each["structure"] for each in found.as_dict()["left_out"]} == left_out
    assert max(figures(found.as_dict()["findings"])) < 1e4
    assert max(figures(found.as_dict()["resolution"])) < 1
    for finding in found.findings:
        assert not left_out & set(finding.sentence.replace(".", ",").split(", "))


def noise(atoms: Atoms) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(atoms.positions.tobytes())).normal(0, 1e-3, (len(atoms), 3))


def tilted(atoms: Atoms) -> float:
    return float(1e-3 * np.square(atoms.positions - atoms.positions.mean(0))[:, 2].sum())


BROKEN: dict[str, tuple[set[str], Change]] = {
    "noise of 1 meV/Å": (
        {"smooth forces", "rotation, forces", "net force"},
        lambda a, r: {**r, "forces": r["forces"] + noise(a)},
    ),
    "forces 1/1000 too large": ({"forces and energy"}, lambda _, r: {**r, "forces": 1.001 * r["forces"]}),
    "tilted": ({"rotation, energy"}, lambda a, r: {**r, "energy": r["energy"] + tilted(a)}),
    "steps": (
        {"bond stretch"},
        lambda a, r: {**r, "energy": r["energy"] + 1e-3 * np.floor(10 * a.get_all_distances().max())},
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_engine_of_ethanol_is_found(name: str, at_home: References) -> None:
    lost, change = BROKEN[name]
    found = audit(Changed(at_home.single.student, change), at_home, precision="fp32", picoseconds=0.0)
    assert lost <= {finding.name for finding in found.lost}
    assert found.student_lacks == []


def test_a_graph_without_its_epsilon_is_found_on_molecules_that_are_none_of_the_user_s(at_home: References) -> None:
    assert at_home.subjects.foreign
    lossy = copy.deepcopy(at_home.single.student)
    for module in lossy.modules():
        for name, value in vars(module).items():
            if name == "epsilon":
                module.epsilon = 0.0
            elif name == "configuration":
                module.configuration = dataclasses.replace(value, epsilon=0.0)
    (finding,) = continuity.cusp(prepare(Changed(lossy), at_home, "fp32"))
    assert finding.engine_verdict == Verdict.BROKEN
    (finding,) = continuity.cusp(prepare(Changed(at_home.single.student), at_home, "fp32"))
    assert finding.verdict == "holds"
    assert "the student is not judged there" in finding.sentence


@pytest.mark.parametrize("kind", ["metal", "slab", "large"])
def test_periodic_frames_alone_have_every_property_that_they_can_have(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(motion, "MOST_STEPS", 20)
    if kind == "large":
        monkeypatch.setattr(motion, "MOST_RELAXED", 1)
        monkeypatch.setattr(motion, "MOST_IN_DYNAMICS", 2)
    path = students.write(tmp_path, "painn", species=["C"])
    own = load_student(path, dtype=torch.float64)
    frames = []
    for seed in range(3):
        atoms = bulk("C", "diamond", a=3.57) if seed else bulk("C", "sc", a=1.8)
        atoms.pbc = (True, True, kind != "slab")
        frames.append(students.perturbed(atoms, seed, 0.05))
    domain = find_domain(own, frames, "frames", brought=True)
    known = References.of(own, domain=domain)
    assert not known.subjects.molecules
    assert all(len(atoms) > 1 for atoms in known.subjects.crystals)
    told: list[str] = []
    found = audit(Changed(known.single.student), known, precision="fp32", picoseconds=0.02, tell=told.append)
    assert found.lost == []
    names = {finding.name for finding in found.findings}
    assert not names & PERIODIC
    assert {"rotation, energy", "bond stretch", "energy drift", "lattice shift", "forces and energy"} <= names
    assert ("stress and energy" in names) == (kind != "slab")
    if kind == "large":
        assert "relaxation" not in names
        assert any("not relaxing" in line for line in told)
        assert any("0.01 ps" in line for line in told)


def test_frames_are_chosen_small_first_and_hold_every_element() -> None:
    big = Atoms("C60", np.arange(180.0).reshape(60, 3))
    frames = [
        Atoms("H"),
        big,
        Atoms("H2", [[0, 0, 0], [0, 0, 1]]),
        Atoms("CH", [[0, 0, 0], [0, 0, 1]]),
        big + Atoms("C", [[0, 0, 9]]),
    ]
    frames += [Atoms("OH", [[0, 0, 0], [0, 0, z]]) for z in (0.9, 1.0, 1.1)]
    chosen = chosen_frames(frames)
    assert len(chosen) == 4
    assert frames[chosen[0]].symbols.formula.format() == "CH"
    assert {z for index in chosen for z in frames[index].numbers.tolist()} == {1, 6, 8}
    assert chosen_frames([frames[5], frames[6], frames[7]]) == [0, 1, 2]
    assert chosen_frames([frames[0]]) == []


def test_a_student_that_is_sane_nowhere_asks_for_structures(tmp_path: Path) -> None:
    path = students.write(tmp_path, "painn", species=["H", "C", "N", "O"])
    wild = load_student(path, dtype=torch.float64)
    with torch.no_grad():
        for parameter in wild.parameters():
            parameter.mul_(30)
    with pytest.raises(DatasetError, match="--structures"):
        References.of(wild)
    alone = load_student(path, dtype=torch.float64)
    domain = Domain([Atoms("H")], "atoms", True, [{"forces": np.zeros((1, 3))}], [{"forces": np.zeros((1, 3))}])
    with pytest.raises(DatasetError, match="two atoms"):
        References.of(alone, domain=domain)


def every_sentence() -> list[Sentences]:
    """The sentences of every property, as a whole audit makes them."""
    made: list[Sentences] = []
    original = Property.finding

    def spied(self: Property, cases: Any) -> Any:
        made.append(self.sentences)
        return original(self, cases)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Property, "finding", spied)
        patch.setattr(motion, "MOST_STEPS", 20)
        known = References.of(load_student("student:base", dtype=torch.float64))
        audit(Changed(known.single.student), known, precision="fp32", picoseconds=0.02)
    return made


def test_no_sentence_claims_of_the_student_what_is_not_so() -> None:
    sentences = every_sentence()
    assert len(sentences) >= len(PROPERTIES) + 5
    sound, broken = Case("A", 0.0, 5.0, 5.0, 0.0), Case("A", 7.0, 12.0, 5.0, 0.0)
    endless = Case("B", math.inf, math.inf, 0.0, 0.0)
    for each in sentences:
        judged = Property("p", "symmetry", "meV", 1.0, 1.0, each)
        found = judged.finding([sound])
        assert found.engine_verdict == Verdict.BROKEN
        assert found.sentence.endswith(" Its student does not show this.")
        assert "student does not" not in found.sentence.removesuffix(" Its student does not show this.")
        for cases, figure in (([broken], ", by 7 eV on A"), ([sound, endless], " on B")):
            found = judged.finding(cases)
            assert (found.engine_verdict, found.student_verdict) == (Verdict.BROKEN, Verdict.BROKEN)
            assert "does not show" not in found.sentence
            assert "student's does not" not in found.sentence
            assert f"Its student shows it too{figure}; the engine adds to that." in found.sentence
        assert "{" not in found.sentence


def test_what_float32_costs_at_the_very_geometry_is_excused_up_to_what_the_user_accepts(at_home: References) -> None:
    audited = prepare(Changed(at_home.single.student), at_home, "fp32")
    assert audited.excused(1e-6, 1e-4, 1.0) == pytest.approx(1e-3)
    assert audited.excused(1e-6, 1e-4, 1e-5) == 1e-5
    assert audited.excused(1e-2, 1e-4, 1.0) == 1e-2
    assert audited.excused(1e-6, math.nan, math.inf) == 1e-6
    for measure in (symmetry.torque, consistency.stress_gradient, reproducibility.size_consistency):
        nothing = dataclasses.replace(audited.subjects, molecules=(), shaken=(), crystals=())
        assert measure(dataclasses.replace(audited, subjects=nothing)) == []
