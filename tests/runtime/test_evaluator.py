import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule

from painn_deploy.export.bundle import Bundle, read_bundle
from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.evaluator import Evaluator


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
    answers = evaluator.evaluate([evaluator.prepare(atoms) for atoms in structures])
    assert [isinstance(answer, EngineError) for answer in answers] == [False, False, True, False, False]
    assert all(answer["energy"] == wanted for answer in answers if isinstance(answer, dict))


def test_an_engine_that_refuses_everything_says_so_itself(evaluator: Evaluator) -> None:
    evaluator.session = Refusing(evaluator, EngineError)
    with pytest.raises(EngineError, match=r"^bad_alloc$"):
        evaluator.calculate_batch([molecule("NH3")] * 3)


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
