import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, graphene, molecule
from ase.io import read
from ase.md.verlet import VelocityVerlet

from painn_deploy.export.bundle import Bundle, read_bundle
from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.runtime import PaiNNCalculator, periodicity
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.periodicity import PeriodicityWarning
from tests import students

ZOO = students.zoo()


@pytest.fixture
def evaluator(bundle: Path) -> Iterator[Evaluator]:
    with Evaluator(bundle, device="cpu") as opened:
        yield opened


class Refusing:
    """An engine that gives no answer for a matrix that holds an element."""

    def __init__(self, evaluator: Evaluator, error: type[Exception]) -> None:
        self._session, self._error, self.info = evaluator.session, error, evaluator.session.info

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        if 7 in inputs.atomic_numbers:
            raise self._error("bad_alloc")
        return self._session.run(inputs)

    def close(self) -> None:
        self._session.close()


def test_it_answers_as_the_calculator_does(evaluator: Evaluator, bundle: Path) -> None:
    structures = [molecule("CH3CH2OH"), molecule("H2O"), bulk("C", "diamond", a=3.57)]
    with PaiNNCalculator(bundle, device="cpu") as calculator:
        for one, other in zip(
            evaluator.calculate_batch(structures), calculator.calculate_batch(structures), strict=True
        ):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[name], other[name]) for name in one)


def test_copies_and_pickles_open_the_bundle_again(evaluator: Evaluator) -> None:
    (wanted,) = evaluator.calculate_batch([molecule("H2O")])
    for other in (copy.deepcopy(evaluator), pickle.loads(pickle.dumps(evaluator))):
        assert other.session is not evaluator.session
        with other:
            assert other.calculate_batch([molecule("H2O")])[0]["energy"] == wanted["energy"]


@pytest.mark.parametrize("error", [EngineError, MemoryError])
def test_a_structure_that_the_engine_refuses_is_named(evaluator: Evaluator, error: type[Exception]) -> None:
    structures = [molecule("NH3") if index == 2 else molecule("H2O") for index in range(5)]
    wanted = evaluator.calculate_batch([molecule("H2O")])[0]["energy"]
    evaluator.session = Refusing(evaluator, error)
    with pytest.raises(EngineError, match="Structure 2: It needs more memory than there is: bad_alloc"):
        evaluator.calculate_batch(structures)
    answers = list(evaluator.answer_each(structures))
    assert [isinstance(answer, EngineError) for answer in answers] == [False, False, True, False, False]
    assert all(answer["energy"] == wanted for answer in answers if isinstance(answer, dict))


def test_an_engine_that_refuses_everything_says_so_itself(evaluator: Evaluator) -> None:
    evaluator.session = Refusing(evaluator, EngineError)
    with pytest.raises(EngineError, match=r"^bad_alloc$"):
        evaluator.calculate_batch([molecule("NH3")] * 3)


def without_pbc(atoms: Atoms) -> Atoms:
    copy = atoms.copy()
    copy.pbc = False
    return copy


LACKING = {
    "diamond": without_pbc(bulk("C", "diamond", a=3.57)),
    "one atom": without_pbc(bulk("Al", a=4.05)),
    "slab": without_pbc(graphene(a=2.46, vacuum=8.0)),
    "sheet whose cell has two vectors": without_pbc(graphene(a=2.46)),
    "wire": without_pbc(ZOO["wire"]),
    "supercell": without_pbc(bulk("C", "diamond", a=3.57, cubic=True) * 2),
}
COMPLETE = {
    **ZOO,
    "in a box with room": molecule("CH3CH2OH", vacuum=5.0),
    "in a box that leaves the cutoff free": molecule("CH3CH2OH", vacuum=2.01),
    "unit cell of a molecule": Atoms(molecule("CH4"), cell=[1, 1, 1]),
    "cell of a molecule that would overlap": Atoms(molecule("CH3CH2OH"), cell=[2, 2, 2]),
    "vectors that are one": Atoms(molecule("CH4"), cell=[[9, 0, 0], [9, 0, 0], [0, 0, 9]]),
    "one short vector": Atoms(molecule("CH4"), cell=[1e4, 1e4, 1e-6]),
    "slab periodic in two directions": graphene(a=2.46, vacuum=2.0),
}


def warned(call: Callable[[], object]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call()
    return told


@pytest.mark.parametrize("name", LACKING)
def test_a_crystal_without_pbc_is_warned_of_where_it_is_computed(bundle: Path, name: str) -> None:
    atoms = LACKING[name].copy()
    atoms.calc = PaiNNCalculator(bundle)
    (told,) = warned(lambda: atoms.get_potential_energy())
    assert told.category is PeriodicityWarning
    for words in (atoms.get_chemical_formula(), "as a molecule in vacuum", "image of", "4 Å", "atoms.pbc = True"):
        assert words in str(told.message)
    atoms.rattle(0.01, seed=1)
    assert warned(atoms.get_forces) == []
    for call in ("calculate_batch", "stream"):
        ask = getattr(PaiNNCalculator(bundle), call)
        assert len(warned(lambda ask=ask: list(ask([atoms, ZOO["water"], atoms.copy()])))) == 1
        atoms.rattle(0.01, seed=2)
        assert warned(lambda ask=ask: list(ask([atoms]))) == []
    periodic = Atoms(atoms, pbc=atoms.cell.any(1))
    assert warned(lambda: atoms.calc.calculate_batch([periodic])) == []
    assert atoms.calc.get_potential_energy(periodic) != atoms.calc.get_potential_energy(atoms)


@pytest.mark.parametrize("name", COMPLETE)
def test_no_other_structure_is_warned_of(bundle: Path, name: str) -> None:
    atoms, calculator = COMPLETE[name].copy(), PaiNNCalculator(bundle)
    assert warned(lambda: calculator.calculate_batch([atoms])) == []
    assert warned(lambda: list(calculator.stream([atoms]))) == []
    atoms.calc = calculator
    assert warned(atoms.get_forces) == []


def test_where_periodic_directions_are_stated_nothing_is_looked_at(bundle: Path) -> None:
    calculator = PaiNNCalculator(bundle)
    with calculator.evaluator.periodicity.known():
        assert warned(lambda: calculator.calculate_batch([LACKING["diamond"]])) == []
    assert len(warned(lambda: calculator.calculate_batch([LACKING["diamond"]]))) == 1


def test_the_warning_is_at_the_line_of_the_caller(bundle: Path) -> None:
    code = """
import sys
from ase import Atoms
from ase.optimize import BFGS
from painn_deploy.runtime import PaiNNCalculator
atoms = Atoms("C2", [[0, 0, 0], [0.9, 0.9, 0.9]], cell=[[0, 1.8, 1.8], [1.8, 0, 1.8], [1.8, 1.8, 0]])
atoms.calc = PaiNNCalculator(sys.argv[1])
BFGS(atoms, logfile=None).run(steps=2)
atoms.calc.calculate_batch([atoms * 2])
"""
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True)
    lines = [line.partition(" is ")[0] for line in done.stderr.splitlines() if "PeriodicityWarning" in line]
    assert lines == ["<string>:8: PeriodicityWarning: C2", "<string>:9: PeriodicityWarning: C16"]


def test_a_cell_is_looked_at_once_and_not_at_every_step(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def look(atoms: Atoms, cutoff: float) -> None:
        looks.append(len(atoms))

    monkeypatch.setattr(periodicity, "unrepeated", look)
    calculator = PaiNNCalculator(bundle)
    for made in (molecule("CH4"), molecule("CH4", vacuum=6.0), bulk("C", "diamond", a=3.57, cubic=True)):
        made.calc = calculator
        looked = len(looks)
        VelocityVerlet(made, 0.1 * units.fs).run(20)
        assert len(looks) - looked == (1 if made.cell.any() and not made.pbc.any() else 0)
        calculator.calculate_batch([made] * 5)
    assert len(looks) == 1
    made = molecule("CH4", vacuum=6.0)
    made.calc = calculator
    for edge in (9.0, 9.0, 10.0, 9.0):
        made.set_cell([edge] * 3)
        made.get_potential_energy()
    assert len(looks) == 3


def test_the_cell_of_an_i_pi_trajectory_that_ase_does_not_read_is_warned_of(bundle: Path, tmp_path: Path) -> None:
    comment = "# CELL(abcABC): 3.57 3.57 3.57 90 90 90 Step: 0 Bead: 0 positions{angstrom} cell{angstrom}"
    (tmp_path / "in.xyz").write_text(f"2\n{comment}\nC 0 0 0\nC 0.9 0.9 0.9\n")
    atoms = read(tmp_path / "in.xyz")
    (told,) = warned(lambda: PaiNNCalculator(bundle).get_potential_energy(atoms))
    assert "CELL(abcABC)" in str(told.message)


WORDS = "engine='onnxruntime', precision='fp32', device='cpu', student='painn', species="


def test_a_repr_says_what_it_is(bundle: Path) -> None:
    from painn_deploy.runtime.torchsim import PaiNNModel

    read = read_bundle(bundle)
    in_memory = Bundle.in_memory(read.manifest, {name: read.file(name) for name in read.manifest.files})
    sources = {repr(bundle.name): bundle, "in memory": in_memory}
    for kind in (PaiNNCalculator, Evaluator, PaiNNModel):
        for name in list(sources)[: 1 if kind is PaiNNModel else 2]:
            opened = kind(sources[name], device="cpu")
            line = repr(opened)
            assert line.startswith(f"{kind.__name__}({name}, {WORDS}")
            assert "H He Li" in line
            assert "unverified" in line
            assert "\n" not in line
            assert len(line) < 250
            (opened.evaluator if kind is PaiNNModel else opened).close()
            assert repr(opened) == f"{line[:-1]}, closed)"
        assert repr(kind.__new__(kind)) == f"{kind.__name__}(not open)"
    assert repr(read) == repr(in_memory).replace("in memory", repr(bundle.name))
    assert repr(in_memory).startswith("Bundle(in memory, engine='onnxruntime', precision='fp32', student='painn',")
    assert repr(Bundle.__new__(Bundle)) == "Bundle(not open)"


def test_a_repr_of_what_could_not_be_opened_says_so(bundle: Path) -> None:
    class Mine(PaiNNCalculator):
        def __init__(self) -> None:
            self.said = repr(self)
            try:
                super().__init__(bundle, device="cuda:7")
            finally:
                self.said += repr(self)
                made.append(self)

    made: list[Mine] = []
    with pytest.raises(EngineError):
        Mine()
    assert made[0].said == "Mine(not open)" * 2

    half = Evaluator.__new__(Evaluator)
    half.source, half.manifest = str(bundle), read_bundle(bundle).manifest
    assert repr(half).endswith(", not open)")
    assert "device" not in repr(half)
