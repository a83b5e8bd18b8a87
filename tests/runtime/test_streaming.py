import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from painn_deploy.export.errors import EngineError, ShapeError, StructureError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.limits import SizeLimits, _of_groups, available_memory
from painn_deploy.runtime.streaming import stream
from tests import students

BAD = {
    2: (Atoms(), "no atoms"),
    5: (Atoms("HU", [[0, 0, 0], [0, 0, 2.0]]), "Atom 1 is U"),
    6: (Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]), "NaN"),
    9: ("H2O", "not ase.Atoms"),
    11: (StructureError("line 7 has two columns"), "line 7"),
}


def mixed(count: int) -> Iterator[Atoms]:
    zoo = list(students.zoo().values())
    for index in range(count):
        yield students.perturbed(zoo[index % len(zoo)], index, 0.02)


@pytest.fixture
def calculator(bundle: Path) -> Iterator[PaiNNCalculator]:
    with PaiNNCalculator(bundle) as opened:
        yield opened


def test_order_is_kept_and_results_are_those_of_a_batch(calculator: PaiNNCalculator) -> None:
    structures = list(mixed(40))
    want = calculator.calculate_batch(structures)
    outcomes = list(stream(calculator.evaluator, iter(structures), 300))
    assert [outcome.index for outcome in outcomes] == list(range(40))
    for outcome, result, atoms in zip(outcomes, want, structures, strict=True):
        assert outcome.results is not None
        np.testing.assert_allclose(outcome.results["forces"], result["forces"], rtol=0, atol=1e-5)
        assert abs(outcome.results["energy"] - result["energy"]) < 3e-6 * len(atoms)
    again = list(stream(calculator.evaluator, iter(structures), 300))
    for one, other in zip(outcomes, again, strict=True):
        assert one.results is not None
        assert other.results is not None
        assert np.array_equal(one.results["forces"], other.results["forces"])


def test_what_has_no_answer_is_told_and_does_not_stop_the_rest(calculator: PaiNNCalculator) -> None:
    items = list(mixed(15))
    for index, (item, _) in BAD.items():
        items[index] = item  # type: ignore[call-overload]
    outcomes = list(calculator.stream(iter(items)))
    assert {outcome.index for outcome in outcomes if outcome.results is None} == set(BAD)
    for index, (_, reason) in BAD.items():
        assert reason in outcomes[index].reason


def test_a_stream_starts_answering_before_its_input_ends(calculator: PaiNNCalculator) -> None:
    taken = 0

    def endless() -> Iterator[Atoms]:
        nonlocal taken
        while True:
            taken += 1
            yield students.water(taken)

    calculator.batch_slots = 4096  # another test may have measured it, and a window holds a quarter of a batch
    outcomes = calculator.stream(endless())
    assert [next(outcomes).index for _ in range(1100)] == list(range(1100))
    assert taken <= 2 * 1024


def test_memory_does_not_grow_with_the_input(calculator: PaiNNCalculator) -> None:
    water = students.water()
    peaks = []
    for count in (3 * 2060, 12 * 2060):
        tracemalloc.start()
        for _ in calculator.stream(water for _ in range(count)):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # a window is read, one is in the engine and one made ready: the shorter stream is of three too
    assert peaks[1] < 2 * peaks[0], "of four times as many; one window more may be under way, as threads come to them"


def test_no_batch_is_larger_than_it_may_be(calculator: PaiNNCalculator) -> None:
    sizes, run = [], calculator.session.run
    calculator.session.run = lambda inputs: (sizes.append(inputs.mask.size), run(inputs))[1]  # type: ignore[method-assign]
    calculator.batch_slots = 700
    ethanol = molecule("CH3CH2OH")
    for count in (1, 4, 16, 64, 256):
        calculator.calculate_batch([ethanol] * count)
    assert max(sizes) <= 700
    assert len(sizes) > 5
    with pytest.raises(ValueError, match="atoms x slots"):
        calculator.batch_slots = 0


class Refusing:
    """An engine that fails on graphs that hold a certain element, or on all."""

    def __init__(self, session: object, element: int | None) -> None:
        self.session, self.element, self.info = session, element, session.info  # type: ignore[attr-defined]

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        if self.element is None or self.element in inputs.atomic_numbers:
            raise EngineError("Failed to allocate memory")
        return self.session.run(inputs)  # type: ignore[attr-defined,no-any-return]

    def close(self) -> None:
        """Of the session itself, whoever opened it does so."""


def test_a_batch_that_fails_costs_the_culprit_alone(calculator: PaiNNCalculator) -> None:
    session = calculator.session
    calculator.evaluator.session = Refusing(session, 7)  # type: ignore[assignment]
    structures = [molecule("NH3") if index == 3 else molecule("H2O") for index in range(8)]
    outcomes = list(calculator.stream(structures))
    assert [outcome.index for outcome in outcomes if outcome.results is None] == [3]
    assert "allocate" in outcomes[3].reason
    calculator.evaluator.session = Refusing(session, None)  # type: ignore[assignment]
    with pytest.raises(EngineError, match="allocate"):
        list(calculator.stream(structures))
    calculator.evaluator.session = session


def test_a_structure_too_large_for_the_engine_is_told(bundle: Path) -> None:
    with PaiNNCalculator(bundle) as calculator:
        profile = {"atoms": [1, 8, 12], "slots": [1, 8, 16]}
        calculator.evaluator.limits = SizeLimits([profile], 16, on_cpu=True)
        structures = [molecule("H2O"), molecule("CH3CH2OH"), molecule("C60"), molecule("H2O")]
        outcomes = list(calculator.stream(structures))
        assert [outcome.index for outcome in outcomes if outcome.results is None] == [2]
        assert "outside this engine's profile" in outcomes[2].reason
        with pytest.raises(ShapeError, match="Structure 2: 60 atoms"):
            calculator.calculate_batch(structures)


def test_a_structure_larger_than_memory_is_refused_before_it_is_tried() -> None:
    limits = SizeLimits([], 128, on_cpu=True)
    assert available_memory() is None or available_memory() > 2**20  # type: ignore[operator]
    limits.check(20_000, 3)
    if available_memory() is not None:
        with pytest.raises(ShapeError, match="GiB are free"):
            limits.check(10**9, 60)
    SizeLimits([], 128, on_cpu=False).check(10**9, 60)


def test_memory_that_a_scheduler_or_a_container_leaves(tmp_path: Path) -> None:
    """Control groups of both versions, as files."""
    root, groups = tmp_path / "fs", tmp_path / "cgroup"

    def write(folder: Path, **files: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name.replace("__", ".")).write_text(f"{value}\n")

    groups.write_text("0::/slurm/job_7/step_0\n")
    assert _of_groups(groups, root) is None
    write(
        root / "slurm" / "job_7",
        memory__max=8 * 2**30,
        memory__current=6 * 2**30,
        memory__stat="anon 5\nactive_file 24\ninactive_file 1000",
    )
    write(root / "slurm" / "job_7" / "step_0", memory__max="max", memory__current=2**30)
    assert _of_groups(groups, root) == 2 * 2**30 + 1024
    groups.write_text("3:cpu:/\n4:memory,hugetlb:/docker/abc\n1:name=systemd:/\n")
    nobody = 9223372036854771712
    write(root / "memory", memory__limit_in_bytes=nobody, memory__usage_in_bytes=5)
    assert _of_groups(groups, root) is None
    write(root / "memory", memory__limit_in_bytes=2**30, memory__usage_in_bytes=2**31)
    assert _of_groups(groups, root) == 0
    groups.write_bytes(b"\xff\x00garbage")
    assert _of_groups(groups, root) is None


LIMITED = """
import resource, sys
from ase import Atoms
import numpy as np
from painn_deploy.export.errors import ShapeError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.limits import available_memory
with PaiNNCalculator(sys.argv[1], threads=1) as calculator:
    calculator.calculate(Atoms("C"))
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + 2**28
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    assert 0.9 * 2**28 < available_memory() <= 2**28
    side = 4.2 * np.random.default_rng(0).random((1200, 3))
    for ask in (lambda a: calculator.calculate(a), lambda a: calculator.calculate_batch([a])):
        try:
            ask(Atoms("C1200", side))
        except ShapeError as error:
            print(error)
"""


def test_a_limit_of_the_process_counts_as_memory(bundle: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, bundle], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert [line.startswith("1200 atoms with up to") for line in ran.stdout.splitlines()] == [True, True], ran.stdout
    assert ran.stdout.count("GiB are free") == 2
