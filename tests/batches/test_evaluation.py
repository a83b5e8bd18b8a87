"""Structures side by side in arrays: the same answers as of `Atoms`, in bounded memory, beside the engine's work."""

import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from painn_deploy.engines import NullSession
from painn_deploy.export.errors import EngineError, ShapeError, SpeciesError, StructureError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.batches import evaluation, windows
from painn_deploy.runtime.batches.frames import Frames
from painn_deploy.runtime.batches.pairs import PairLists
from painn_deploy.runtime.limits import SizeLimits
from painn_deploy.runtime.periodicity import PeriodicityWarning
from tests import students

Arrays = tuple[np.ndarray, ...]


@pytest.fixture
def calculator(bundle: Path) -> Iterator[PaiNNCalculator]:
    with PaiNNCalculator(bundle, device="cpu", threads=1) as opened:
        yield opened


def arrays(structures: list[Atoms]) -> Arrays:
    offsets = np.cumsum([0, *(len(atoms) for atoms in structures)])
    numbers, positions = (np.concatenate([getattr(a, name) for a in structures]) for name in ("numbers", "positions"))
    return (
        numbers,
        positions,
        offsets,
        np.stack([a.cell.array for a in structures]),
        np.stack([a.pbc for a in structures]),
    )


def mixed(count: int) -> list[Atoms]:
    zoo = list(students.zoo().values())
    return [students.perturbed(zoo[index % len(zoo)], index, 0.02) for index in range(count)]


def test_arrays_give_what_structures_give(calculator: PaiNNCalculator) -> None:
    structures = mixed(1300)
    wanted = calculator.calculate_batch(structures)
    answers = calculator.evaluate(*arrays(structures))
    assert len(answers) == 1300
    assert not answers.faults
    for index, results in enumerate(wanted):
        rows = slice(int(answers.offsets[index]), int(answers.offsets[index + 1]))
        assert answers.energy[index] == results["energy"]
        assert np.array_equal(answers.forces[rows], results["forces"])
        assert np.array_equal(answers.energies[rows], results["energies"])
        if "stress" in results:
            assert np.array_equal(answers.stress[index], results["stress"])
            assert np.array_equal(answers.stresses[rows], results["stresses"])
        else:
            assert np.isnan(answers.stress[index]).all()
    for index in (0, 7, 600, 1299):
        calculator.calculate(structures[index])
        np.testing.assert_allclose(wanted[index]["forces"], calculator.results["forces"], rtol=0, atol=1e-5)
        assert wanted[index].keys() == calculator.results.keys()
        if "stress" in wanted[index]:
            np.testing.assert_allclose(wanted[index]["stress"], calculator.results["stress"], rtol=0, atol=1e-6)


def test_arrays_of_other_types_and_shapes(calculator: PaiNNCalculator) -> None:
    two = [molecule("CH4"), molecule("H2O")]
    numbers, positions, offsets, _, _ = arrays(two)
    wanted = calculator.evaluate(numbers, positions, offsets)
    for given in (
        (numbers.astype(np.uint8), positions.astype(">f8"), offsets.astype(np.int32)),
        (numbers.tolist(), positions.tolist(), offsets.tolist()),
        (numbers, np.asfortranarray(positions), offsets, None, False),
        (numbers, positions, offsets, np.zeros((3, 3)), [0, 0, 0]),
    ):
        assert np.array_equal(calculator.evaluate(*given).forces, wanted.forces)
    crystal = bulk("C", "diamond", a=3.57)
    one_cell = calculator.evaluate(
        np.tile(crystal.numbers, 3), np.tile(crystal.positions, (3, 1)), [0, 2, 4, 6], crystal.cell.array, True
    )
    np.testing.assert_allclose(one_cell.stress, np.tile(one_cell.stress[0], (3, 1)), rtol=0, atol=1e-9)
    assert len(calculator.evaluate([], np.empty((0, 3)), [0])) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([1, 1], np.zeros((3, 3)), [0, 2]), r"shape \(2,\) and positions of \(3, 3\)"),
        (([1, 1], np.zeros((2, 3)), [0, 1]), "end with 2"),
        (([1, 1], np.zeros((2, 3)), [1, 2]), "begin with 0"),
        (([1, 1], np.zeros((2, 3)), [0, 2, 1, 2]), "never fall"),
        (([1.5, 1], np.zeros((2, 3)), [0, 2]), "not whole numbers"),
        (([1, 1], np.full((2, 3), "x"), [0, 2]), "not real numbers"),
        (([1, 1], np.zeros((2, 3)), [0, 2], np.zeros((2, 3, 3))), "do not fit 1 structures"),
        (([1, 1], np.zeros((2, 3)), [0, 2], None, [2, 0, 0]), "three times true or false"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(
    calculator: PaiNNCalculator, given: tuple[object, ...], message: str
) -> None:
    with pytest.raises(StructureError, match=message):
        calculator.evaluate(*given)


FAULTY = {
    0: (Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]), StructureError, "NaN"),
    3: (Atoms("HU", [[0, 0, 0], [0, 0, 2.0]]), SpeciesError, "Atom 1 is U"),
    4: (Atoms(), StructureError, "no atoms"),
    5: (Atoms("H2", [[0, 0, 0], [0, 0, 1e-5]]), StructureError, r"Atoms 0 \(H\) and 1 \(H\) are on one spot"),
    9: (Atoms("H", cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]], pbc=True), StructureError, "linearly dependent"),
}


def test_a_fault_is_a_structures_own(calculator: PaiNNCalculator) -> None:
    structures = mixed(20)
    for index, (atoms, _, _) in FAULTY.items():
        structures[index] = atoms
    sound = [atoms for index, atoms in enumerate(structures) if index not in FAULTY]
    wanted = calculator.evaluate(*arrays(sound))
    answers = calculator.evaluate(*arrays(structures), strict=False)
    assert answers.faults.keys() == FAULTY.keys()
    for index, (_, kind, message) in FAULTY.items():
        with pytest.raises(kind, match=message):
            raise answers.faults[index]
        rows = slice(int(answers.offsets[index]), int(answers.offsets[index + 1]))
        assert np.isnan(answers.energy[index])
        assert np.isnan(answers.forces[rows]).all()
        assert np.isnan(answers.energies[rows]).all()
    kept = np.array([index not in FAULTY for index in range(20)])
    np.testing.assert_allclose(answers.energy[kept], wanted.energy, rtol=0, atol=1e-4)
    with pytest.raises(StructureError, match="Structure 0: .*NaN"):
        calculator.evaluate(*arrays(structures))
    with pytest.raises(SpeciesError, match="Structure 1: Atom 1 is U"):
        calculator.evaluate(*arrays([structures[1], structures[3]]))


class Spoiling(NullSession):
    """An engine that gives NaN where there is nitrogen."""

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        outputs = super().run(inputs)
        outputs.forces[inputs.atomic_numbers == 7] = np.nan
        return outputs


def test_numbers_that_are_none_cost_their_structure_alone(calculator: PaiNNCalculator) -> None:
    calculator.with_session(Spoiling())
    structures = [molecule("NH3") if index in (2, 700) else molecule("H2O") for index in range(900)]
    answers = calculator.evaluate(*arrays(structures), strict=False)
    assert sorted(answers.faults) == [2, 700]
    assert "NaN or infinity for NH3" in str(answers.faults[700])
    assert np.isnan(answers.forces).sum() == 2 * 4 * 3
    structures[2] = molecule("H2O")
    for ask in (lambda: calculator.evaluate(*arrays(structures)), lambda: calculator.calculate_batch(structures)):
        with pytest.raises(EngineError, match="Structure 700: The engine gave NaN"):
            ask()


def test_a_structure_beyond_the_profile_is_named(calculator: PaiNNCalculator) -> None:
    profile = {"atoms": [1, 8, 12], "slots": [1, 8, 16]}
    calculator.evaluator.limits = SizeLimits([profile], 16, on_cpu=True)
    structures = [molecule("H2O"), molecule("C60"), molecule("H2O")]
    answers = calculator.evaluate(*arrays(structures), strict=False)
    assert list(answers.faults) == [1]
    assert "outside this engine's profile" in str(answers.faults[1])
    with pytest.raises(ShapeError, match="Structure 1: 60 atoms"):
        calculator.evaluate(*arrays(structures))


def test_crystals_without_directions_are_warned_of(calculator: PaiNNCalculator) -> None:
    lost = bulk("C", "diamond", a=3.57)
    with pytest.warns(PeriodicityWarning, match="C2 is computed as a molecule"):
        calculator.evaluate(lost.numbers, lost.positions, [0, 2], lost.cell.array)


def test_memory_is_bounded(calculator: PaiNNCalculator) -> None:
    calculator.with_session(NullSession())
    ethanol = molecule("CH3CH2OH")
    peaks = []
    for count in (2000, 8000):
        given = arrays([ethanol] * count)
        tracemalloc.start()
        kept = calculator.evaluate(*given)
        own = sum(array.nbytes for array in (kept.energies, kept.forces, kept.stresses, kept.energy, kept.stress))
        peaks.append(tracemalloc.get_traced_memory()[1] - 2 * own)  # parts, and these joined
        tracemalloc.stop()
    assert peaks[1] < 1.5 * max(peaks[0], 2**20)


class Slow(NullSession):
    """An engine that takes its time elsewhere, as one on a GPU does; in the thread that it is asked from."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.threads = seconds, set[int]()

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        return super().run(inputs)


@pytest.mark.timing
def test_structures_are_made_ready_while_the_engine_works(
    calculator: PaiNNCalculator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made ready takes a fixed time here, so that the test holds on a machine that does other work."""
    ready, count = 0.05, 8
    work = evaluation._Work.__init__

    def unhurried(self: object, *arguments: object) -> None:
        time.sleep(ready)
        work(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation._Work, "__init__", unhurried)
    calculator.batch_slots = 10**6
    monkeypatch.setattr(windows, "window_is_full", lambda structures, atoms, slots: structures == 64)
    slow = Slow(0.05)
    calculator.with_session(slow)
    structures = [molecule("CH3CH2OH")] * (64 * count)
    calculator.calculate_batch(structures[:10])
    assert slow.threads == {threading.get_ident()}, "one window has nothing beside it"
    started = time.perf_counter()
    calculator.calculate_batch(structures)
    spent = time.perf_counter() - started
    assert len(slow.threads) == 2
    assert spent < 0.8 * (ready + slow.seconds) * count


def test_turns_are_short_only_while_structures_are_made_ready(calculator: PaiNNCalculator) -> None:
    before = sys.getswitchinterval()
    outcomes = calculator.stream([molecule("H2O")] * 1200)
    next(outcomes)
    assert sys.getswitchinterval() == before
    list(outcomes)
    assert sys.getswitchinterval() == before


def test_a_calculator_answers_others_between_the_outcomes_of_a_stream(calculator: PaiNNCalculator) -> None:
    waters = [students.water(seed) for seed in range(1500)]
    wanted = calculator.calculate_batch(waters[:3])
    for outcome in calculator.stream(waters):
        assert outcome.results is not None
        if outcome.index % 400 == 0:
            assert calculator.calculate_batch(waters[:3])[1]["energy"] == wanted[1]["energy"]
            assert calculator.get_potential_energy(waters[0]) == pytest.approx(wanted[0]["energy"], abs=1e-5)


def test_a_stream_that_is_dropped_leaves_no_thread(calculator: PaiNNCalculator) -> None:
    before = threading.active_count()
    outcomes = calculator.stream(students.water(seed) for seed in range(10**6))
    next(outcomes)
    outcomes.close()
    assert threading.active_count() == before
    assert calculator.calculate_batch([students.water()])


def test_an_error_of_the_input_comes_through(calculator: PaiNNCalculator) -> None:
    def broken() -> Iterator[Atoms]:
        yield from [students.water()] * 1100
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        list(calculator.stream(broken()))
    assert calculator.calculate_batch([students.water()])


def test_a_stream_that_is_dropped_stops_the_engine_after_the_batch_that_runs(calculator: PaiNNCalculator) -> None:
    calculator.batch_slots = 200
    slow = Slow(0.05)
    outcomes = calculator.with_session(slow).stream([molecule("CH3CH2OH")] * 1600)  # hundreds of batches
    next(outcomes)
    started = time.perf_counter()
    outcomes.close()
    assert time.perf_counter() - started < 5.0


def test_a_structure_for_which_there_is_no_memory_is_named(
    calculator: PaiNNCalculator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = PairLists.packed

    def short_of_memory(self: PairLists, frames: Frames, chosen: np.ndarray, *more: object) -> GraphInputs:
        if 60 in frames.counts[chosen]:
            raise MemoryError("as large as it is")
        return pack(self, frames, chosen, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(PairLists, "packed", short_of_memory)
    calculator.batch_slots = 10**6
    structures = [molecule("H2O"), molecule("C60"), molecule("CH4")]
    outcomes = list(calculator.stream(structures))
    assert [outcome.results is None for outcome in outcomes] == [False, True, False]
    assert outcomes[1].reason == "It needs more memory than there is: as large as it is."
    with pytest.raises(EngineError, match="Structure 1: It needs more memory"):
        calculator.calculate_batch(structures)
