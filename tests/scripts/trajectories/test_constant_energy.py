"""Simulations at constant energy: the dynamics are right, and a run that was stopped gives the bits of another."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from painn_deploy.engines.host_session import HostSession
from painn_deploy.export.errors import OutputError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.trajectories import molecules
from painn_deploy.scripts.trajectories.constant_energy import PICTURE, RESULT, STARTS
from painn_deploy.scripts.trajectories.figures import cells, told
from painn_deploy.scripts.trajectories.molecules import EVERY, Conditions, Run, freedoms, start, turning
from painn_deploy.scripts.trajectories.observables import (
    DISTANCES,
    FARTHEST,
    HIGHEST,
    apart,
    distances,
    spectra,
    wavenumbers,
)
from tests import students
from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "trajectories" / "constant_energy.py"
SHORT = """
import sys
sys.argv[0] = "constant_energy.py"
from painn_deploy.scripts.trajectories import molecules
molecules.SEGMENT = 0.04
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.trajectories.constant_energy import study
run_command(study)
"""
"""The command with segments of 0.04 ps."""


def nothing(_: int) -> None:
    """Progress that nobody watches."""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SHORT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def conditions(monkeypatch: pytest.MonkeyPatch) -> Conditions:
    monkeypatch.setattr(molecules, "SEGMENT", 0.04)
    return Conditions(replicas=2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a student that knows molecules: one with random weights has no minima to start from."""
    (path,) = export_engines("student:small", tmp_path_factory.mktemp("small"), structures=[students.water()])
    return path


@pytest.fixture(scope="module")
def bent(bundle: Path) -> Atoms:
    """A water molecule in the minimum of an engine."""
    atoms = students.water()
    with PaiNNCalculator(bundle) as calculator:
        atoms.calc = calculator
        assert BFGS(atoms, logfile=None).run(fmax=0.01, steps=500)
        atoms.calc = None
    return atoms


def test_replicas_move_as_ase_moves_each(bundle: Path, bent: Atoms, conditions: Conditions) -> None:
    run = Run.begun(bent, conditions)
    velocities = run.velocities.copy()
    with PaiNNCalculator(bundle) as calculator:
        run.advance(calculator.evaluator, bent, conditions, nothing)
        for replica in range(conditions.replicas):
            own = bent.copy()
            own.set_velocities(velocities[replica])
            own.calc = calculator
            dynamics, energies = VelocityVerlet(own, conditions.timestep * units.fs), []
            for _ in range(conditions.frames):
                dynamics.run(EVERY)
                energies.append(own.get_total_energy())
            np.testing.assert_allclose(run.positions[replica], own.positions, atol=1e-4)
            np.testing.assert_allclose(run.velocities[replica], own.get_velocities(), atol=1e-4)
            references = calculator.evaluator.references(bent.numbers).sum()
            assert run.energies[0, replica] == pytest.approx(np.mean(energies) - references, abs=1e-5)
    assert not run.spectra.any(), "the first segment is left out"


def test_a_run_that_is_stopped_gives_the_bits_of_one_that_is_not(
    bundle: Path, bent: Atoms, conditions: Conditions, tmp_path: Path
) -> None:
    path = tmp_path / "run.npz"
    with PaiNNCalculator(bundle) as calculator:
        whole = Run.begun(bent, conditions)
        for _ in range(3):
            whole.advance(calculator.evaluator, bent, conditions, nothing)
    stopped = Run.begun(bent, conditions)
    for _ in range(3):
        with PaiNNCalculator(bundle) as calculator:
            stopped.advance(calculator.evaluator, bent, conditions, nothing)
        stopped.write(path, "this one")
        again = Run.read(path, "this one")
        assert again is not None
        stopped = again
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(stopped, name), value, name)
    assert whole.segments == 3
    assert whole.spectra.any()
    assert whole.distances.sum() == 2 * 2 * 3 * len(range(0, conditions.frames, molecules.SELDOM))


def test_replicas_have_one_energy_and_neither_move_nor_turn(bent: Atoms) -> None:
    conditions = Conditions(temperature=250.0, replicas=3)
    velocities = start(bent, conditions)
    masses = bent.get_masses()
    kinetic = np.einsum("rac,a->r", np.square(velocities), masses) / 2
    np.testing.assert_allclose(
        kinetic, 3 * units.kB * 250, rtol=1e-12
    )  # as much as it will have, kinetic and potential
    np.testing.assert_allclose(np.einsum("rac,a->rc", velocities, masses), 0, atol=1e-12)
    turning = np.cross(bent.positions - bent.get_center_of_mass(), velocities) * masses[:, None]
    np.testing.assert_allclose(turning.sum(1), 0, atol=1e-10)
    assert np.abs(velocities[0] - velocities[1]).max() > 1e-3


def test_a_molecule_that_turns_is_noticed() -> None:
    """About each of its axes, on its way somewhere, and while it vibrates without an angular momentum."""
    atoms = students.perturbed(molecule("CH3CH2OH"), 3)
    masses, own = atoms.get_masses(), atoms.positions - atoms.get_center_of_mass()
    spins = np.array([[0.02, 0.0, 0.0], [0.01, -0.03, 0.02]])
    velocities = np.cross(spins[:, None], own) + np.array([0.3, -0.1, 0.2])
    inertia = np.einsum(
        "a,acd->cd", masses, np.einsum("ac,ac,de->ade", own, own, np.eye(3)) - own[:, :, None] * own[:, None]
    )
    wanted = np.einsum("rc,cd,rd->r", spins, inertia, spins) / 2
    positions = np.repeat(atoms.positions[None], 2, 0)
    np.testing.assert_allclose(turning(positions, velocities, masses), wanted, rtol=1e-9)
    still = start(atoms, Conditions(replicas=2))
    np.testing.assert_allclose(turning(positions, still, masses), 0, atol=1e-12)
    line = molecule("N2")
    across = np.array([[[0.1, 0, 0], [-0.1, 0, 0]]])
    assert turning(line.positions[None], across, line.get_masses()) == pytest.approx(14.007 * 0.01)


@pytest.mark.parametrize(("name", "wanted"), [("H2O", 3), ("CO2", 4), ("N2", 1), ("C6H6", 30), ("HCN", 4)])
def test_vibrations_are_counted(name: str, wanted: int) -> None:
    assert freedoms(molecule(name)) == wanted


def test_a_vibration_is_found_where_it_is() -> None:
    """A mass on a spring of 1,000 1/cm, and one of 3,000 1/cm and a third of the amplitude."""
    interval, frames = 2.0, 2000
    times = interval * np.arange(frames)
    light = 2.99792458e-5  # cm/fs
    velocities = np.zeros((frames, 2, 1, 3))
    velocities[:, 0, 0, 0] = np.cos(2 * np.pi * 1000 * light * times)
    velocities[:, 0, 0, 1] = np.sin(2 * np.pi * 3000 * light * times) / 3
    velocities[:, 1, 0, 2] = np.cos(2 * np.pi * 500 * light * times)
    found, at = spectra(velocities, np.array([2.0]), interval), wavenumbers(frames, interval)
    assert found.shape == (2, len(at))
    assert at[-1] <= HIGHEST < at[-1] + at[1]
    assert at[found[0].argmax()] == pytest.approx(1000, abs=at[1])
    near = (np.abs(at - 3000) < 50, np.abs(at - 1000) < 50)
    assert found[0, near[0]].sum() / found[0, near[1]].sum() == pytest.approx(1 / 9, rel=0.01)
    assert at[found[1].argmax()] == pytest.approx(500, abs=at[1])
    np.testing.assert_allclose(spectra(velocities, np.array([4.0]), interval), 2 * found)


def test_distances_are_those_of_ase() -> None:
    both = [students.perturbed(molecule("CH3CH2OH"), seed) for seed in range(2)]
    counts = distances(np.array([atoms.positions for atoms in both]))
    for own, atoms in zip(counts, both, strict=True):
        lengths = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
        np.testing.assert_array_equal(own, np.histogram(lengths, DISTANCES, (0, FARTHEST))[0])
    apart_by = np.zeros((1, 2, 3))
    apart_by[0, 1, 0] = 30.0
    assert distances(apart_by)[0, -1] == 1


def test_shares_that_are_elsewhere() -> None:
    one = np.array([1.0, 3.0, 0.0])
    assert apart(one, 7 * one) == 0
    assert apart(one, np.array([0.0, 0.0, 2.0])) == 1
    assert apart(one, np.array([2.0, 2.0, 0.0])) == pytest.approx(0.25)


def made(energies: np.ndarray, kinetic: float = 0.1) -> Run:
    replicas = energies.shape[1]
    rng = np.random.default_rng(0)
    still = np.repeat(students.water().positions[None], replicas, 0)
    return Run(
        still, still, energies, np.full_like(energies, kinetic), rng.random((replicas, 9)), rng.random((replicas, 5))
    )


def test_drift_and_its_uncertainty() -> None:
    """Replicas that heat by 2 and 4 meV an atom in a nanosecond."""
    conditions, water = Conditions(replicas=2), students.water()
    times = (np.arange(50) + 0.5) * conditions.length / 1e3
    first = made(np.zeros((50, 2)))
    heated = made(times[:, None] * np.array([2.0, 4.0]) * 3 * 1e-3)
    figures = told(heated, first, water, conditions)
    assert figures.picoseconds == pytest.approx(200)
    assert figures.drift == pytest.approx(3)
    assert figures.uncertainty == pytest.approx(1)
    assert figures.temperature == pytest.approx(0.2 / (3 * units.kB))
    own = told(first, first, water, conditions)
    assert figures.vibrations_elsewhere == own.vibrations_elsewhere > 0.05, "both were made of the same"
    assert cells("water", "int8", figures)[3] == "+3 ± 1"
    assert cells("water", "fp32", own)[-1] == f"{cells('water', 'int8', figures)[-1]} by chance"
    unmoved = told(Run.begun(water, conditions), first, water, conditions)
    assert cells("water", "int8", unmoved)[2:] == ["0", "-", "-", "0", "-", "-"]


def test_the_command_and_its_files(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.engine"
    other.symlink_to(bundle)
    ase.io.write(tmp_path / "given.extxyz", [students.water(), molecule("CH4")])
    arguments = [bundle, other, "--structures", tmp_path / "given.extxyz", "--replicas", 2, "--threads", 1]
    output = tmp_path / "out"
    short = run(*arguments, "--picoseconds", 0.04, "--output", output)
    assert short.returncode == 0, short.stderr
    done = run(*arguments, "--picoseconds", 0.16, "--output", output)
    assert done.returncode == 0, done.stderr
    whole = run(*arguments, "--picoseconds", 0.16, "--output", tmp_path / "whole")
    assert whole.stdout == done.stdout, "the longer one went on where the shorter one ended"
    assert done.stdout.count("| 1-H2O |") == done.stdout.count("| 2-CH4 |") == 2
    result: dict[str, Any] = json.loads((output / RESULT).read_text())
    assert result["replicas"] == 2
    for own in result["molecules"].values():
        fp32, same = own.values()
        assert fp32["energies_eV"] == same["energies_eV"]
        assert (same["distances"], same["vibrations"]) == ([*fp32["distances"]], [*fp32["vibrations"]])
        for which in ("distances_elsewhere", "vibrations_elsewhere"):
            assert 0 < same[which] == fp32[which] < 1
        assert np.shape(fp32["energies_eV"]) == (4, 2)
    assert (output / PICTURE).stat().st_size > 20_000

    changed = run(*arguments, "--picoseconds", 0.16, "--output", output, "--temperature", 400)
    assert changed.returncode == 1
    assert "is of another run" in changed.stderr
    assert "Give another --output" in changed.stderr
    others = run(bundle, "--picoseconds", 0.04, "--output", output)
    assert others.returncode == 1
    assert f"{output / STARTS} is of other structures" in others.stderr
    (damaged,) = output.glob(f"1-H2O-{bundle.stem}.npz")
    damaged.write_bytes(damaged.read_bytes()[:100])
    broken = run(*arguments, "--picoseconds", 0.16, "--output", output)
    assert broken.returncode == 1
    assert f"{damaged} is damaged" in broken.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_run_that_is_killed_goes_on(bundle: Path, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "given.extxyz", students.water())
    arguments = [bundle, "--structures", tmp_path / "given.extxyz", "--replicas", 2, "--threads", 1]
    arguments += ["--picoseconds", 0.4]
    command = [sys.executable, "-c", SHORT, *map(str, [*arguments, "--output", tmp_path / "killed"])]
    kept = tmp_path / "killed" / f"1-H2O-{bundle.stem}.npz"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not kept.is_file():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    resumed = run(*arguments, "--output", tmp_path / "killed")
    whole = run(*arguments, "--output", tmp_path / "whole")
    assert resumed.returncode == whole.returncode == 0, resumed.stderr
    assert resumed.stdout == whole.stdout
    results = [json.loads((tmp_path / name / RESULT).read_text()) for name in ("killed", "whole")]
    assert results[0] == results[1]


def test_a_molecule_that_flies_apart_ends_its_run(
    bundle: Path, bent: Atoms, conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    honest = HostSession.run

    def diverging(self: HostSession, inputs: Any) -> Any:
        calls.append(1)
        outputs = honest(self, inputs)
        if len(calls) > conditions.frames * EVERY + 30:
            outputs.forces[:] = np.nan
        return outputs

    monkeypatch.setattr(HostSession, "run", diverging)
    run = Run.begun(bent, conditions)
    with PaiNNCalculator(bundle) as calculator:
        run.advance(calculator.evaluator, bent, conditions, nothing)
        assert (run.segments, run.ended) == (1, "")
        positions = run.positions.copy()
        run.advance(calculator.evaluator, bent, conditions, nothing)
    assert run.segments == 1
    assert "diverged" in run.ended
    np.testing.assert_array_equal(run.positions, positions)
    figures = told(run, run, bent, conditions)
    assert cells("water", "int8", figures)[2] == "0.04, then diverged"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--picoseconds", "0.05"], "0.05 ps are no whole number of segments of 0.04 ps"),
        (["--picoseconds", "nan"], "no whole number of segments"),
        (["--timestep", "2"], r"'--timestep': .*(x<=|equal to )0\.9"),
        (["--replicas", "1"], r"'--replicas': .*(x>=|equal to )2"),
        (["--structures", "crystal.extxyz"], "give molecules"),
        (["--structures", "nothing.extxyz"], "nothing.extxyz"),
    ],
)
def test_bad_input_is_one_line(bundle: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    ase.io.write(tmp_path / "crystal.extxyz", bulk("C", "diamond", a=3.57))
    arguments = [str(tmp_path / each) if each.endswith(".extxyz") else each for each in arguments]
    done = run(bundle, "--output", tmp_path / "out", *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert re.search(message, " ".join(done.stderr.replace("│", " ").split()))


def test_bundles_of_one_name(bundle: Path, tmp_path: Path) -> None:
    done = run(bundle, bundle, "--output", tmp_path)
    assert done.returncode == 2
    assert "Two bundles are called" in done.stderr


def test_a_file_of_another_run_is_not_read(tmp_path: Path) -> None:
    run = Run.begun(students.water(), Conditions(replicas=2))
    run.write(tmp_path / "run.npz", "one")
    assert Run.read(tmp_path / "none.npz", "one") is None
    with pytest.raises(OutputError, match="it was made with one, and now it is other"):
        Run.read(tmp_path / "run.npz", "other")
