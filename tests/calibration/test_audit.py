"""Each property is shown to find a defect that was put into an engine, and to leave a sound engine alone."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress

from painn_deploy.calibration.accuracy.errors import Tolerances
from painn_deploy.calibration.accuracy.reference import TorchCalculator
from painn_deploy.calibration.physics import consistency, continuity, motion, reproducibility, symmetry
from painn_deploy.calibration.physics.audit import References, audit, prepare
from painn_deploy.calibration.physics.resolution import noise_findings
from painn_deploy.calibration.physics.subjects import choose_subjects
from painn_deploy.calibration.physics.verdicts import Finding, Verdict, format_number, format_quantity, judge
from painn_deploy.export import load_student
from painn_deploy.export.errors import EngineError
from tests import students

Change = Callable[[Atoms, dict[str, Any]], dict[str, Any]]


class Changed(TorchCalculator):
    """The student in float32, and something wrong with it."""

    def __init__(self, student: Any, change: Change = lambda _, result: result) -> None:
        super().__init__(student, remember=True)
        self.change = change
        self.count = 0

    def calculate_batch(self, structures: Any) -> list[dict[str, Any]]:
        self.count = len(structures)
        return [self.change(a, r) for a, r in zip(structures, super().calculate_batch(structures), strict=True)]


@pytest.fixture(scope="module")
def invariant(tmp_path_factory: pytest.TempPathFactory) -> References:
    path = students.write(tmp_path_factory.mktemp("audit"), "painn", species=["H", "C", "N", "O"])
    return References.of(load_student(path, dtype=torch.float64))


@pytest.fixture(scope="module")
def directional(tmp_path_factory: pytest.TempPathFactory) -> References:
    path = students.write(tmp_path_factory.mktemp("audit"), "distiller", species=["H", "C", "N", "O"])
    return References.of(load_student(path, dtype=torch.float64))


@pytest.fixture(scope="module")
def sound(invariant: References) -> Any:
    """What a sound engine's precision lets one see: measured once."""
    return prepare(Changed(invariant.single.student), invariant, "fp32")


def adding(energy: Callable[[Atoms], float], forces: Callable[[Atoms], np.ndarray] | None = None) -> Change:
    def change(atoms: Atoms, result: dict[str, Any]) -> dict[str, Any]:
        changed = {**result, "energy": result["energy"] + float(energy(atoms))}
        if forces is not None:
            changed["forces"] = result["forces"] + forces(atoms)
        return changed

    return change


def scaling(key: str, factor: float) -> Change:
    return lambda _, result: {**result, **({key: factor * result[key]} if key in result else {})}


def centred(atoms: Atoms) -> np.ndarray:
    return np.asarray(atoms.positions - atoms.positions.mean(0))


def near_pairs(atoms: Atoms, cutoff: float) -> int:
    distances = atoms.get_all_distances()
    return int(((distances > 0) & (distances < cutoff)).sum()) // 2


def polar(atoms: Atoms) -> np.ndarray:
    """A vector that vanishes where the molecule is symmetric."""
    return np.asarray(atoms.numbers @ centred(atoms))


def cusp_forces(atoms: Atoms) -> np.ndarray:
    vector = polar(atoms)
    weights = atoms.numbers - atoms.numbers.mean()
    return np.asarray(-0.1 * weights[:, None] * vector / max(float(np.linalg.norm(vector)), 1e-12))


def outside(atoms: Atoms) -> int:
    if not atoms.pbc.all():
        return 0
    fractions = atoms.get_scaled_positions(wrap=False)
    return int(((fractions < -0.5) | (fractions > 1.5)).any(1).sum())


def whirl(atoms: Atoms) -> np.ndarray:
    return np.asarray(0.02 * np.cross([0, 0, 1.0], centred(atoms)))


DEFECTS: dict[str, tuple[Callable[[Any], list[Finding]], Change]] = {
    "energy depends on orientation": (symmetry.rotation, adding(lambda a: 1e-3 * np.square(centred(a)[:, 2]).sum())),
    "forces do not turn": (symmetry.rotation, adding(lambda _: 0.0, lambda a: 2e-3 * np.eye(3)[np.arange(len(a)) % 3])),
    "molecules are spun": (symmetry.torque, adding(lambda _: 0.0, whirl)),
    "a net force leaks": (symmetry.net_force, adding(lambda _: 0.0, lambda a: np.full((len(a), 3), 2e-4))),
    "space is not uniform": (symmetry.translation, adding(lambda a: 1e-3 * np.sin(a.positions[0, 0]))),
    "forces feel where they are": (
        symmetry.translation,
        adding(lambda _: 0.0, lambda a: 1e-3 * np.sin(a.positions)),
    ),
    "the first atom is special": (symmetry.permutation, adding(lambda a: 1e-3 * a.numbers[0])),
    "images are missed": (symmetry.lattice_shift, adding(lambda a: 1e-3 * outside(a))),
    "forces are one per cent too large": (consistency.force_gradient, scaling("forces", 1.01)),
    "one force is wrong": (
        consistency.force_gradient,
        adding(lambda _: 0.0, lambda a: 5e-3 * np.eye(len(a), 1) * [[1.0, 0, 0]]),
    ),
    "stress is too large": (consistency.stress_gradient, scaling("stress", 1.05)),
    "the energy jumps at the cutoff": (continuity.cross_cutoff, adding(lambda a: 2e-3 * near_pairs(a, 4.0))),
    "the norm of a vector has a cusp": (
        continuity.cusp,
        adding(lambda a: 0.1 * float(np.linalg.norm(polar(a))), cusp_forces),
    ),
    "the energy has steps": (
        continuity.bond_stretch,
        adding(lambda a: 1e-3 * float(np.floor(10 * a.get_all_distances().max()))),
    ),
    "molecules feel each other from afar": (reproducibility.size_consistency, adding(lambda a: 1e-4 * len(a) ** 2)),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_of_the_engine_is_found(name: str, invariant: References, sound: Any) -> None:
    measure, change = DEFECTS[name]
    engine = Changed(invariant.single.student, change)
    findings = measure(prepare(engine, invariant, "fp32"))
    assert Verdict.BROKEN in [finding.engine_verdict for finding in findings]
    assert all(finding.student_verdict == Verdict.HOLDS for finding in findings)
    broken = next(finding for finding in findings if finding.engine_verdict == Verdict.BROKEN)
    assert broken.verdict == "broken"
    assert broken.subject in broken.sentence
    for finding in measure(sound):  # and the same engine without the defect keeps it
        assert finding.verdict == "holds", finding.sentence


def test_a_rough_surface_is_found(invariant: References) -> None:
    rough = Changed(invariant.single.student, adding(lambda a: 1e-3 * np.sin(1e7 * a.positions.sum())))
    findings = noise_findings(prepare(rough, invariant, "fp32").resolution, Tolerances())
    assert [f.verdict for f in findings] == ["broken", "holds"]
    assert "lower precision than it says" in findings[0].sentence


def test_what_depends_on_the_batch_is_found(invariant: References, sound: Any) -> None:
    engine = Changed(invariant.single.student)
    engine.change = adding(lambda _: 1e-3 if engine.count > 1 else 0.0)
    (finding,) = reproducibility.batch_and_single(prepare(engine, invariant, "fp32"))
    assert finding.verdict == "broken"
    (finding,) = reproducibility.batch_and_single(sound)
    assert finding.verdict == "holds"


def test_two_runs_that_differ_in_the_last_bit_are_found(invariant: References, sound: Any) -> None:
    engine, calls = Changed(invariant.single.student), iter(range(10**9))
    audited = prepare(engine, invariant, "fp32")
    engine.change = adding(lambda _: 1e-12 * next(calls))
    (finding,) = reproducibility.equal_to_the_bit(audited)
    assert finding.verdict == "broken"
    (finding,) = reproducibility.equal_to_the_bit(sound, sound.engine)
    assert finding.verdict == "holds"
    nudged = Changed(invariant.single.student, adding(lambda _: 1e-12))
    (finding,) = reproducibility.equal_to_the_bit(sound, nudged.calculate_batch)
    assert finding.verdict == "broken"


def test_words_of_an_uncertainty_are_compared_too(sound: Any) -> None:
    def told(word: str) -> Any:
        return lambda structures: [each | {"uncertainty_verdict": word} for each in sound.engine(structures)]

    familiar = replace(sound, engine=told("familiar"))
    (finding,) = reproducibility.equal_to_the_bit(familiar, told("familiar"))
    assert finding.verdict == "holds"
    for other in (told("unfamiliar"), sound.engine):
        (finding,) = reproducibility.equal_to_the_bit(familiar, other)
        assert finding.verdict == "broken"


def test_another_minimum_is_found(invariant: References, sound: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Springs to the equilibrium give random weights a minimum; an engine with other springs finds another."""
    monkeypatch.setattr(motion, "MOST_STEPS", 80)
    at_rest = {str(atoms.symbols): atoms.positions for atoms in sound.subjects.molecules}

    def springs(stretch: float, jitter: float = 0.0) -> Change:
        def away(atoms: Atoms) -> np.ndarray:
            return np.asarray(atoms.positions - stretch * at_rest[str(atoms.symbols)])

        return adding(
            lambda a: 20 * np.square(away(a)).sum(), lambda a: -40 * away(a) + jitter * np.sin(1e9 * a.positions)
        )

    student = Changed(invariant.student.student, springs(1.0))
    audited = replace(sound, student=student.calculate_batch)
    for change, verdict in (
        (springs(1.0), "holds"),
        (springs(1.05), "broken"),
        (springs(1.0, jitter=1.0), "broken"),  # never settles
    ):
        (finding,) = motion.relaxation(audited, Changed(invariant.single.student, change), student)
        assert finding.student_verdict == Verdict.HOLDS, finding.sentence
        assert finding.verdict == verdict, finding.sentence


def test_energy_that_is_pumped_into_dynamics_is_found(invariant: References, sound: Any) -> None:
    pumping = Changed(invariant.single.student, adding(lambda _: 0.0, lambda a: 30 * whirl(a)))
    (finding,), drifts = motion.energy_drift(sound, pumping, invariant.student, picoseconds=0.06)
    assert finding.engine_verdict == Verdict.BROKEN
    assert abs(drifts["engine"].slope) > 10 * abs(drifts["student"].slope)
    (finding,), drifts = motion.energy_drift(sound, invariant.single, invariant.student, picoseconds=0.06)
    assert finding.engine_verdict in (Verdict.HOLDS, Verdict.UNRESOLVED)

    def refuse(atoms: Atoms, result: dict[str, Any]) -> dict[str, Any]:
        if np.abs(atoms.positions).max() > 100:
            raise EngineError("NaN")
        return {**result, "forces": 1e3 * atoms.positions}

    exploding = Changed(invariant.single.student, refuse)
    (finding,), _ = motion.energy_drift(sound, exploding, invariant.student, picoseconds=0.05)
    assert finding.engine_verdict == Verdict.BROKEN


def test_the_student_s_own_defects_are_not_the_engine_s(directional: References) -> None:
    engine = Changed(directional.single.student)
    audited = prepare(engine, directional, "fp32")
    for measure, what in ((symmetry.rotation, "lies in space"), (continuity.cross_cutoff, "cross the cutoff")):
        finding = measure(audited)[0]
        assert finding.verdict == "student: broken"
        assert finding.engine_verdict != Verdict.BROKEN
        assert what in finding.sentence
    (finding,) = continuity.cusp(audited)
    assert finding.verdict == "student: broken"
    assert "cusp" in finding.sentence


def test_a_defect_of_the_student_does_not_hide_one_of_the_engine(directional: References) -> None:
    tilted = Changed(directional.single.student, adding(lambda a: 1e-3 * np.square(centred(a)[:, 2]).sum()))
    finding = symmetry.rotation(prepare(tilted, directional, "fp32"))[0]
    assert finding.student_verdict == Verdict.BROKEN
    assert finding.verdict == "broken"
    assert finding.lost < finding.student


def jittery(energy: float, force: float) -> Change:
    """Deterministic noise: other numbers for other geometries."""

    def change(atoms: Atoms, result: dict[str, Any]) -> dict[str, Any]:
        rng = np.random.default_rng(zlib.crc32(atoms.positions.tobytes() + atoms.cell.array.tobytes()))
        noise = rng.normal(0, force, (len(atoms), 3))
        changed = {**result, "energy": result["energy"] + rng.normal(0, energy) * len(atoms) ** 0.5}
        changed["forces"] = result["forces"] + noise - noise.mean(0)
        return changed

    return change


def test_lower_precisions_are_excused_for_their_noise_and_for_nothing_else(invariant: References) -> None:
    noisy, float32 = jittery(1e-4, 1e-3), invariant.single.student
    audited = prepare(Changed(float32, noisy), invariant, "int8")
    assert all(
        f.engine_verdict in (Verdict.HOLDS, Verdict.WITHIN) for f in noise_findings(audited.resolution, Tolerances())
    )
    (finding,) = consistency.force_gradient(audited)
    assert finding.engine_verdict == Verdict.WITHIN
    both = lambda atoms, result: scaling("forces", 1.3)(atoms, noisy(atoms, result))  # noqa: E731
    (finding,) = consistency.force_gradient(prepare(Changed(float32, both), invariant, "int8"))
    assert finding.engine_verdict == Verdict.BROKEN
    assert "broken" in [
        f.verdict for f in noise_findings(prepare(Changed(float32, noisy), invariant, "fp32").resolution, Tolerances())
    ]
    hopeless = prepare(Changed(float32, jittery(8e-3, 1e-3)), invariant, "int8")
    (finding,) = consistency.force_gradient(hopeless)
    assert finding.verdict == "not resolvable"


def test_a_whole_audit_of_a_sound_engine(invariant: References, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "MOST_STEPS", 30)
    told: list[str] = []
    engine = Changed(invariant.single.student)
    # random weights leave what is sane at once: where a user's own frames go, dynamics are judged all the same
    known = replace(invariant, subjects=replace(invariant.subjects, brought=True))
    found = audit(engine, known, precision="fp32", picoseconds=0.01, again=engine.calculate_batch, tell=told.append)
    assert found.lost == []
    names = [finding.name for finding in found.findings]
    assert len(names) == len(set(names)) == 19
    assert len(told) > 15
    plain = found.as_dict()
    assert {f["verdict"] for f in plain["findings"]} <= {
        "holds",
        "not resolvable",
        "student: broken",
        "within precision",
    }
    assert all(f["sentence"] and "{" not in f["sentence"] for f in plain["findings"])


def test_subjects_are_made_of_what_the_student_knows() -> None:
    for species, verified in (((1, 6, 7, 8), True), (tuple(range(1, 95)), False), ((79,), True), ((8, 14), True)):
        subjects = choose_subjects(species, verified=verified)
        assert subjects.shaken
        assert len(subjects.elements) <= (6 if verified else 4)
        for group in (subjects.molecules, subjects.shaken, subjects.crystals, subjects.symmetric):
            for atoms in group:
                assert set(atoms.numbers.tolist()) <= set(species)
                assert atoms.info["name"]
        assert all(len(atoms) > 1 for atoms in subjects.crystals)


def test_verdicts() -> None:
    assert judge(0.5, 0.0, 1.0, 10.0) == Verdict.HOLDS
    assert judge(2.0, 3.0, 1.0, 10.0) == Verdict.WITHIN
    assert judge(2.0, 1.5, 1.0, 10.0) == Verdict.BROKEN
    assert judge(20.0, 30.0, 1.0, 10.0) == Verdict.UNRESOLVED
    assert judge(0.5, 30.0, 1.0, 10.0) == Verdict.HOLDS
    assert judge(0.5, 30.0, 1.0, 10.0, statistical=True) == Verdict.UNRESOLVED
    assert judge(float("nan"), 3.0, 1.0, 10.0) == Verdict.BROKEN
    assert (
        format_number(0.123456),
        format_number(12345.0),
        format_number(1.2e-5),
        format_number(0.0),
        format_number(float("nan")),
    ) == (
        "0.123",
        "12345",
        "1e-5",
        "0",
        "NaN",
    )
    assert (format_quantity(29098.0, "meV/Å"), format_quantity(170.0, "meV")) == ("29.1 eV/Å", "170 meV")


def test_the_stress_of_a_reference_is_the_virial_s(invariant: References) -> None:
    atoms = choose_subjects((1, 6, 7, 8)).crystals[0]
    stress = invariant.student.calculate_batch([atoms])[0]["stress"]
    assert stress.shape == full_3x3_to_voigt_6_stress(np.eye(3)).shape


@pytest.mark.slow
def test_the_seed_s_student_and_its_three_defects(references: Path) -> None:
    student = load_student(references / "distiller" / "original.safetensors", dtype=torch.float64)
    known = References.of(student)
    audited = prepare(Changed(known.single.student), known, "fp32")
    rotation, _ = symmetry.rotation(audited)
    (cutoff,), (cusp,) = continuity.cross_cutoff(audited), continuity.cusp(audited)
    assert {f.verdict for f in (rotation, cutoff, cusp)} == {"student: broken"}
    assert rotation.subject == "H2O"
    assert 150 < rotation.student < 180
    for pair, jump in (("H-H", 253), ("H-O", 314), ("O-O", 309), ("C-C", 803)):
        assert f"{pair} {jump}" in cutoff.sentence
    assert cusp.subject == "CO2"
    assert cusp.student > 1000


def test_the_student_that_ships_has_none_of_them() -> None:
    known = References.of(load_student("student:base", dtype=torch.float64))
    audited = prepare(Changed(known.single.student), known, "fp32")
    findings = [*symmetry.rotation(audited), *continuity.cross_cutoff(audited), *continuity.cusp(audited)]
    assert {f.verdict for f in findings} == {"holds"}
