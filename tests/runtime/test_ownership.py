"""An open engine belongs to one thread of one process, and what it hands out belongs to whoever has it."""

import contextlib
import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from painn_deploy.engines.owner import SoleUse
from painn_deploy.export.errors import BundleError, EngineError, OwnershipError, StructureError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.evaluator import Evaluator
from tests import students

THREADS, CALLS = 4, 60


@pytest.fixture
def calculator(bundle: Path) -> Iterator[PaiNNCalculator]:
    with PaiNNCalculator(bundle) as opened:
        yield opened


def moved(seed: int) -> Atoms:
    return students.perturbed(molecule(("H2O", "CH4", "NH3", "CH3OH")[seed % 4]), seed, 0.05)


def forces_by_calculate(calculator: PaiNNCalculator, atoms: Atoms) -> np.ndarray:
    calculator.calculate(atoms)
    return calculator.results["forces"]


def forces_by_atoms(calculator: PaiNNCalculator, atoms: Atoms) -> np.ndarray:
    atoms.calc = calculator
    return atoms.get_forces()


def forces_by_properties(calculator: PaiNNCalculator, atoms: Atoms) -> np.ndarray:
    return calculator.calculate_properties(atoms, ["energy", "forces"])["forces"]


def forces_by_batch(calculator: PaiNNCalculator, atoms: Atoms) -> np.ndarray:
    return calculator.calculate_batch([atoms])[0]["forces"]


def forces_by_stream(calculator: PaiNNCalculator, atoms: Atoms) -> np.ndarray:
    (outcome,) = calculator.stream([atoms])
    assert outcome.results is not None, "an engine in use by another thread is no structure's fault"
    return outcome.results["forces"]


@pytest.mark.parametrize(
    "ask", [forces_by_calculate, forces_by_atoms, forces_by_properties, forces_by_batch, forces_by_stream]
)
def test_f1b_field_20_a_shared_calculator_is_right_or_raises(
    calculator: PaiNNCalculator, bundle: Path, ask: Callable[[PaiNNCalculator, Atoms], np.ndarray]
) -> None:
    with PaiNNCalculator(bundle) as alone:
        want = [alone.calculate_batch([moved(seed)])[0]["forces"] for seed in range(THREADS)]
    wrong, refused, right, odd = [], [0] * THREADS, [0] * THREADS, list[BaseException]()
    together = threading.Barrier(THREADS)

    def work(seed: int) -> None:
        together.wait()
        for _ in range(CALLS):
            try:
                got = ask(calculator, moved(seed))
            except OwnershipError:
                refused[seed] += 1
                continue
            except BaseException as error:
                odd.append(error)
                raise
            if got.shape == want[seed].shape and np.allclose(got, want[seed], rtol=0, atol=1e-5):
                right[seed] += 1
            else:
                wrong.append(seed)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not odd
    assert not wrong, f"{len(wrong)} of {THREADS * CALLS} answers are another structure's"
    assert sum(right) + sum(refused) == THREADS * CALLS
    got = ask(calculator, moved(0))  # nothing of it stays
    np.testing.assert_allclose(got, want[0], rtol=0, atol=1e-5)


def test_who_enters_while_another_is_inside_gets_an_error() -> None:
    sole, inside, done = SoleUse("This thing"), threading.Event(), threading.Event()

    def hold() -> None:
        with sole, sole:  # the same thread may enter again
            inside.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(20)
    with pytest.raises(
        OwnershipError, match=r"^This thing is in use by another thread.*Open one for each thread"
    ) as told:
        sole.__enter__()
    assert isinstance(told.value, EngineError)
    done.set()
    thread.join()
    with sole:  # one after another is no fault
        pass


def test_a_generator_that_another_thread_ends_lets_go() -> None:
    sole = SoleUse("This thing")

    def guarded() -> Iterator[int]:
        with sole:
            yield 1

    generator = guarded()
    in_a_thread(lambda: next(generator))
    with pytest.raises(OwnershipError, match="in use"):
        sole.__enter__()
    generator.close()
    with sole:
        pass


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_results_that_another_thread_replaced_are_not_handed_out(calculator: PaiNNCalculator) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(calculator.calculate, moved(0)).result()
        assert calculator.results["forces"].shape == (3, 3), "whoever has not calculated may look"
        calculator.calculate(moved(1))
        pool.submit(calculator.calculate, moved(0)).result()
        for name in ("results", "atoms"):
            with pytest.raises(OwnershipError, match="another thread's"):
                getattr(calculator, name)
        atoms = moved(0)
        atoms.calc = calculator
        assert not calculator.calculation_required(atoms, ["energy"])
        assert atoms.get_forces().shape == (3, 3), "asked for a structure, it is known whose they are"
        assert calculator.results["forces"].shape == (3, 3), "and from then on"
        calculator.calculate(moved(1))
        assert calculator.results["forces"].shape == (5, 3)
        pool.submit(calculator.calculate, moved(0)).result()
    assert calculator.results["forces"].shape == (3, 3), "a thread that has ended interferes with nobody"


def test_threads_that_look_while_another_calculates_see_no_mixture(calculator: PaiNNCalculator) -> None:
    """Each result that can be read is whole, and so is the structure that it is of."""
    sizes, wrong, stop = {3: molecule("H2O"), 5: molecule("CH4")}, list[str](), threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                results, atoms = calculator.results, calculator.atoms
            except OwnershipError:
                continue
            if results and len(results["forces"]) != len(results["energies"]):
                wrong.append("results of two structures")
            if atoms is not None and atoms != sizes[len(atoms)]:
                wrong.append("half of a structure")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=look) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for number in range(150):
            with contextlib.suppress(OwnershipError):  # another one is looking
                calculator.calculate(sizes[3 + 2 * (number % 2)])
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert not wrong


def test_an_atoms_object_that_moves_on_while_it_is_streamed(calculator: PaiNNCalculator) -> None:
    box = students.perturbed(bulk("C", "diamond", a=3.57, cubic=True), 1, 0.02)
    (want,) = calculator.calculate_batch([box])
    moving = box.copy()

    def structures() -> Iterator[Atoms]:
        yield moving
        moving.set_cell(1.2 * moving.cell, scale_atoms=True)
        yield moving

    first, _ = calculator.stream(structures())
    assert first.results is not None
    np.testing.assert_allclose(first.results["stress"], want["stress"], rtol=0, atol=1e-6)


def test_a_torchsim_model_can_be_copied(bundle: Path) -> None:
    torchsim = pytest.importorskip("painn_deploy.runtime.torchsim")
    model = torchsim.PaiNNModel(bundle, device="cpu")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.evaluator.session is not model.evaluator.session


FORKED = """
import os, sys, threading
from ase.build import molecule
from painn_deploy.export.errors import OwnershipError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.evaluator import Evaluator
calculator, evaluator = PaiNNCalculator(sys.argv[1], threads=2), Evaluator(sys.argv[1], threads=2)
for _ in range(20):
    calculator.calculate(molecule("CH3CH2OH"))
    evaluator.calculate_batch([molecule("CH3CH2OH")] * 30)
energy = calculator.results["energy"]
if os.fork() == 0:
    told = 0
    for ask in (
        lambda: calculator.calculate(molecule("H2O")),
        lambda: calculator.get_property("energy", molecule("H2O")),
        lambda: calculator.calculate_batch([molecule("H2O")]),
        lambda: list(calculator.stream([molecule("H2O")])),
        lambda: evaluator.calculate_batch([molecule("H2O")]),
    ):
        try:
            ask()
        except OwnershipError as error:
            told += "forked" in str(error) and "spawn" in str(error)
    with PaiNNCalculator(sys.argv[1], threads=1) as own:  # the remedy
        own.calculate(molecule("CH3CH2OH"))
        told += abs(own.results["energy"] - energy) < 1e-4
    evaluator.close()  # its threads are not here to be waited for
    os._exit(told)  # as multiprocessing does; ONNX Runtime would wait for its threads at an exit of another kind
_, status = os.wait()
calculator.calculate(molecule("CH3CH2OH"))
assert calculator.results["energy"] == energy
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_f10_field_6_after_a_fork_an_open_engine_raises(bundle: Path) -> None:
    """In a process of its own, since pytest's must not be forked."""
    ran = subprocess.run(
        [sys.executable, "-c", FORKED, bundle], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 6, ran.stdout + ran.stderr


def _energy(calculator: PaiNNCalculator) -> float:
    calculator.calculate(molecule("H2O"))
    return float(calculator.results["energy"])


def test_field_7_copies_and_pickles_survive_another_folder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / bundle.name)
    monkeypatch.chdir(tmp_path)
    with PaiNNCalculator(bundle.name) as calculator, Evaluator(bundle.name) as evaluator:
        want, pickled = _energy(calculator), pickle.dumps(calculator)
        atoms = molecule("H2O")
        atoms.calc = calculator
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        for other in (
            copy.copy(calculator),
            copy.deepcopy(calculator),
            pickle.loads(pickled),
            copy.deepcopy(atoms).calc,
        ):
            with other:
                assert _energy(other) == want
        with copy.deepcopy(evaluator) as other:
            assert other.calculate_batch([molecule("H2O")])[0]["energy"] == want
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(_energy, (calculator,)) == want
        shutil.rmtree(tmp_path / bundle.name)
        with pytest.raises(BundleError, match="is not a bundle"):
            copy.copy(calculator)


def test_field_7_a_copy_is_of_the_same_engine_or_none(bundle: Path, tmp_path: Path, painn: Path) -> None:
    from painn_deploy.scripts import export_engines

    path = tmp_path / bundle.name
    shutil.copytree(bundle, path)
    with PaiNNCalculator(path) as calculator, Evaluator(path) as evaluator:
        pickled = [pickle.dumps(one) for one in (calculator, evaluator)]
        (other,) = export_engines(painn, tmp_path / "other", structures=[students.water(5)], radial_table=True)
        shutil.rmtree(path)
        shutil.copytree(other, path)
        for one in pickled:
            with pytest.raises(BundleError, match="its engine was replaced. Open the calculator anew"):
                pickle.loads(one)


def test_what_is_handed_out_is_not_what_is_kept(calculator: PaiNNCalculator) -> None:
    first, second = moved(1), moved(5)
    first.info["name"], first.constraints = "first", []
    calculator.calculate(first)
    atoms, results = calculator.atoms, calculator.results
    assert atoms is not None
    assert atoms is calculator.atoms
    assert results is calculator.results
    kept = {name: np.copy(value) for name, value in results.items()}
    for value in results.values():
        if isinstance(value, np.ndarray):
            with pytest.raises(ValueError, match="read-only"):
                value[:] = 7.0
    calculator.calculate(second)
    assert atoms == first, "the structure of a calculation stays as it was"
    assert all(np.array_equal(results[name], kept[name]) for name in kept)
    assert calculator.atoms is not None
    assert not calculator.atoms.info, "nothing of an earlier structure stays"
    calculator.calculate(first)
    calculator.atoms.positions[:] = 7.0  # type: ignore[union-attr]
    calculator.engine_info["device"] = "toaster"
    assert calculator.get_property("energy", first) == kept["energy"]
    assert calculator.engine_info["device"] == "cpu"
    with pytest.raises(ValueError, match="read-only"):
        calculator.evaluator.references(first.numbers)[:] = 0.0
    forces = calculator.get_property("forces", first)
    forces[:] = 7.0
    np.testing.assert_array_equal(calculator.get_property("forces", first), kept["forces"])


class Shifted(PaiNNCalculator):
    """The usual way to extend a calculator of ASE."""

    implemented_properties: ClassVar[list[str]] = [*PaiNNCalculator.implemented_properties, "dipole"]

    def __init__(self, path: Path, shift: float) -> None:
        self.shift = shift
        super().__init__(path)
        self.asked = 0

    def calculate(self, *arguments: Any, **options: Any) -> None:
        super().calculate(*arguments, **options)
        self.asked += 1
        self.results["energy"] += self.shift
        self.results["forces"] = self.results["forces"] + self.shift
        self.results["dipole"] = np.full(3, self.shift)


def test_a_subclass_may_change_and_add_results(bundle: Path, calculator: PaiNNCalculator, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    (plain,) = calculator.calculate_batch([atoms])
    atoms.calc = Shifted(bundle, 2.0)
    for one in (atoms, copy.deepcopy(atoms)):
        with one.calc:
            assert one.get_potential_energy() == pytest.approx(plain["energy"] + 2.0, abs=1e-6)
            np.testing.assert_allclose(one.get_forces(), plain["forces"] + 2.0, rtol=0, atol=1e-5)
            np.testing.assert_array_equal(one.get_dipole_moment(), 2.0)
            ase.io.write(tmp_path / "one.extxyz", one)
            assert ase.io.read(tmp_path / "one.extxyz").get_potential_energy() == one.get_potential_energy()
            assert one.calc.asked == 1
            one.calc.results.clear()  # ASE's way to have it calculated again
            assert one.calc.calculation_required(one, ["energy"])
            assert one.get_potential_energy() == pytest.approx(plain["energy"] + 2.0, abs=1e-6)
            assert one.calc.asked == 2


def test_a_calculation_that_fails_leaves_no_results_of_another(calculator: PaiNNCalculator) -> None:
    calculator.calculate(molecule("H2O"))
    bad = molecule("H2O")
    bad.positions[1] = bad.positions[2]
    for _ in range(2):
        with pytest.raises(StructureError, match="on one spot"):
            calculator.calculate(bad)
        with pytest.raises(StructureError, match="on one spot"):
            calculator.get_property("energy", bad)
    assert calculator.get_property("energy", bad, allow_calculation=False) is None
    assert calculator.get_property("energy", molecule("H2O")) is not None


def test_field_23_properties_may_be_none(calculator: PaiNNCalculator) -> None:
    calculator.calculate(molecule("H2O"), properties=None)
    assert calculator.results["forces"].shape == (3, 3)


def test_threads_with_a_calculator_each_are_right(bundle: Path) -> None:
    with PaiNNCalculator(bundle) as alone:
        want = [alone.calculate_batch([moved(seed)])[0]["energy"] for seed in range(8)]
    got: list[float] = [np.nan] * 8

    def work(seed: int) -> None:
        with PaiNNCalculator(bundle, threads=1) as own:
            for _ in range(20):
                own.calculate(moved(seed))
            got[seed] = own.results["energy"]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_process_that_was_never_forked_is_the_owner() -> None:
    sole = SoleUse("This thing")
    sole._process = os.getpid() + 1
    with pytest.raises(OwnershipError, match=rf"opened in process {os.getpid() + 1}.*forked from it.*spawn"):
        sole.__enter__()
