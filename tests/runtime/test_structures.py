"""Whatever a structure's arrays hold, it is answered rightly or refused as its own fault, the same by every way in."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from painn_deploy.export.errors import SpeciesError, StructureError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.runtime.neighbours import find_pairs
from painn_deploy.runtime.structures import FARTHEST, as_elements, check_structure
from tests import students
from tests.runtime.test_neighbours import CUTOFF, brute_force, edges_of

Change = Callable[[Atoms], object]


def put(name: str, value: Callable[[np.ndarray], Any]) -> Change:
    """Put another array in a structure's place of one, as `set_array` would not."""
    return lambda atoms: atoms.arrays.__setitem__(name, value(atoms.arrays[name]))


def with_cell(value: Callable[[np.ndarray], Any]) -> Change:
    def change(atoms: Atoms) -> None:
        atoms.cell.array = value(atoms.cell.array)

    return change


def with_pbc(value: Any) -> Change:
    return lambda atoms: setattr(atoms, "_pbc", value)


def huge(atoms: Atoms, count: int = 10**12) -> None:
    """As many atoms as an array without memory of its own has."""
    atoms.arrays["numbers"] = np.broadcast_to(atoms.numbers[:1], count)
    atoms.arrays["positions"] = np.broadcast_to(atoms.positions[:1], (count, 3))


def _lists(values: np.ndarray) -> np.ndarray:
    """An object array whose every value is a list of one."""
    made = np.empty(len(values), object)
    made[:] = [[value] for value in values.tolist()]
    return made


SOUND: dict[str, Change] = {
    "float32 positions": put("positions", lambda a: a.astype(np.float32)),
    "long double positions": put("positions", lambda a: a.astype(np.longdouble)),
    "positions of another byte order": put("positions", lambda a: a.astype(">f8")),
    "positions in Fortran's order": put("positions", np.asfortranarray),
    "positions as a view": put("positions", lambda a: np.repeat(a, 2, axis=0)[::2]),
    "positions of a subclass": put("positions", lambda a: a.view(np.rec.recarray)),
    "positions as objects": put("positions", lambda a: a.astype(object)),
    "positions with an empty mask": put("positions", np.ma.array),
    "positions that are read-only": put("positions", lambda a: (a.setflags(write=False), a)[1]),
    "int32 numbers": put("numbers", lambda a: a.astype(np.int32)),
    "uint8 numbers": put("numbers", lambda a: a.astype(np.uint8)),
    "float numbers": put("numbers", lambda a: a.astype(float)),
    "numbers as objects": put("numbers", lambda a: a.astype(object)),
    "numbers with an empty mask": put("numbers", np.ma.array),
    "a float32 cell": with_cell(lambda a: a.astype(np.float32)),
    "pbc as numbers": with_pbc(np.array([1, 1, 1])),
    "pbc as a list": with_pbc([True, True, True]),
}

UNSOUND: dict[str, tuple[Change, str]] = {
    "boolean numbers": (put("numbers", lambda a: a > 3), "atomic numbers.*true and false"),
    "numbers that are not whole": (put("numbers", lambda a: a + 0.5), "atomic numbers.*floats"),
    "numbers that are NaN": (put("numbers", lambda a: a * np.nan), "atomic numbers.*floats"),
    "complex numbers": (put("numbers", lambda a: a + 0j), "atomic numbers.*complex"),
    "numbers as text": (put("numbers", lambda a: a.astype(str)), "atomic numbers.*text"),
    "objects for numbers": (
        put("numbers", lambda a: np.array([[1], 2, None, "C", b"", 6, {}, ()], object)),
        "no array",
    ),
    "objects that are lists": (put("numbers", lambda a: _lists(a)), r"shapes \(8, 1\) \(numbers\)"),
    "positions of lists": (put("positions", lambda a: np.stack([_lists(a[:, 0])] * 3, axis=1)), r"\(8, 3, 1\)"),
    "too few numbers": (put("numbers", lambda a: a[:-1]), r"shapes \(7,\) \(numbers\), \(8, 3\)"),
    "too many numbers": (put("numbers", lambda a: np.tile(a, 2)), r"shapes \(16,\)"),
    "masked numbers": (put("numbers", lambda a: np.ma.array(a, mask=a > 0)), "Some of numbers are masked"),
    "an element of 2**40": (put("numbers", lambda a: a + 2**40), "no element"),
    "an element of 2**63": (put("numbers", lambda a: a.astype(np.uint64) + np.uint64(2**63)), "no element"),
    "an element of -1": (put("numbers", lambda a: 0 * a - 1), "no element"),
    "an element of 0": (put("numbers", lambda a: 0 * a), r"Atom 0 is X \(Z = 0\)"),
    "an element of 119": (put("numbers", lambda a: 0 * a + 119), "no element"),
    "an unknown element": (put("numbers", lambda a: 0 * a + 92), "Atom 0 is U"),
    "complex positions": (put("positions", lambda a: a + 0j), "positions.*complex"),
    "positions as text": (put("positions", lambda a: a.astype(str)), "positions.*text"),
    "positions as bytes": (put("positions", lambda a: a.astype("S8")), "positions.*bytes"),
    "positions as dates": (put("positions", lambda a: a.astype("datetime64[s]")), "positions.*datetime64"),
    "structured positions": (put("positions", lambda a: np.zeros(len(a), "f8,f8,f8")), "positions"),
    "objects for positions": (put("positions", lambda a: np.full(a.shape, None)), "positions.*objects"),
    "masked positions": (put("positions", lambda a: np.ma.array(a, mask=a > 1)), "Some of positions are masked"),
    "flat positions": (put("positions", np.ravel), r"\(24,\) \(positions\)"),
    "positions in two dimensions": (put("positions", lambda a: a[:, :2]), r"\(8, 2\) \(positions\)"),
    "positions in four dimensions": (put("positions", lambda a: a[:, [0, 1, 2, 0]]), r"\(8, 4\) \(positions\)"),
    "more positions than numbers": (put("positions", lambda a: np.tile(a, (2, 1))), r"\(16, 3\) \(positions\)"),
    "positions past float64's place": (put("positions", lambda a: a + 1e12), "more than 1e-6 Å apart"),
    "positions past all": (put("positions", lambda a: a + 1e300), "more than 1e-6 Å apart"),
    "infinite positions": (put("positions", lambda a: a - np.inf), "infinite positions"),
    "numbers of 1e12 atoms": (put("numbers", lambda a: np.broadcast_to(a[:1], 10**12)), r"shapes \(1000000000000,\)"),
    "positions of 1e12 atoms": (put("positions", lambda a: np.broadcast_to(a[:1], (10**12, 3))), r"1000000000000, 3\)"),
    "a cell of 1e12": (with_cell(lambda a: np.broadcast_to(a[0], (10**12, 3))), r"\(1000000000000, 3\) \(cell\)"),
    "pbc of 1e12": (with_pbc(np.broadcast_to(np.array(True), 10**12)), "pbc is"),
    "1e12 atoms": (huge, r"has 1.0e\+12 atoms, and indices reach to 2.1e\+09"),
    "no numbers": (lambda a: a.arrays.pop("numbers"), "no arrays of numbers"),
    "no positions": (lambda a: a.arrays.pop("positions"), "no arrays of numbers"),
    "a cell that is none": (lambda a: setattr(a, "_cellobj", None), "no arrays of numbers"),
    "a cell of two vectors": (with_cell(lambda a: a[:2]), r"\(2, 3\) \(cell\)"),
    "a complex cell": (with_cell(lambda a: a + 0j), "the cell.*complex"),
    "a cell past float64's place": (with_cell(lambda a: a * 1e12), "cannot place atoms in cells past 9e"),
    "a cell of 1e155": (with_cell(lambda a: a * 1e155), "cannot place atoms in cells past 9e"),
    "a cell of 1e-170": (with_cell(lambda a: a * 1e-170), "so short that an atom would lie on its own image"),
    "a cell in the wrong unit": (with_cell(lambda a: a * 1e-10), "so short that an atom would lie on its own image"),
    "a cell of infinity": (with_cell(lambda a: a + np.inf), "cell holds NaN or infinity"),
    "pbc of two": (with_pbc(np.array([True, True])), "pbc is"),
    "pbc of text": (with_pbc(np.array(["T", "T", "T"])), "pbc is"),
    "no pbc": (with_pbc(None), "pbc is"),
}


def diamond() -> Atoms:
    return students.perturbed(bulk("C", "diamond", a=3.57, cubic=True), 3, 0.05)


@pytest.fixture
def calculator(bundle: Path) -> Iterator[PaiNNCalculator]:
    with PaiNNCalculator(bundle) as opened:
        yield opened


@pytest.mark.parametrize("name", SOUND)
def test_f8_what_can_be_converted_is_answered_by_every_way_in(calculator: PaiNNCalculator, name: str) -> None:
    odd = diamond()
    SOUND[name](odd)
    plain = Atoms(
        np.asarray(odd.arrays["numbers"], int),
        np.asarray(odd.arrays["positions"], float),
        cell=np.asarray(odd.cell.array, float),
        pbc=True,
    )
    (want,) = calculator.calculate_batch([plain])
    (batch,) = calculator.calculate_batch([odd])
    (streamed,) = calculator.stream([odd])
    assert streamed.results is not None
    calculator.calculate(odd)
    for got in (batch, streamed.results, calculator.results):
        for key in ("forces", "stress", "energies"):
            np.testing.assert_allclose(got[key], want[key], rtol=0, atol=1e-5)
    calculator.calculate(plain)
    assert calculator.results["energy"] == pytest.approx(want["energy"], abs=1e-5)


@pytest.mark.parametrize("name", UNSOUND)
def test_f8_what_cannot_be_converted_is_its_own_fault_alone(calculator: PaiNNCalculator, name: str) -> None:
    change, message = UNSOUND[name]
    odd = diamond()
    change(odd)
    good = diamond()
    (want,) = calculator.calculate_batch([good])
    with pytest.raises(StructureError, match=message):
        calculator.calculate(odd)
    with pytest.raises(StructureError, match=message):
        calculator.get_property("energy", odd)
    with pytest.raises(StructureError, match=f"Structure 1: .*{message}"):
        calculator.calculate_batch([good, odd])
    first, second, third = calculator.stream([good, odd, good])
    assert first.results is not None
    assert third.results is not None
    np.testing.assert_allclose(first.results["forces"], want["forces"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(third.results["forces"], first.results["forces"])
    assert second.results is None
    calculator.calculate(good)  # nothing of the bad one stays
    np.testing.assert_allclose(calculator.results["forces"], want["forces"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SOUND if "pbc" not in name])
def test_a_structure_of_other_types_is_not_calculated_again(
    calculator: PaiNNCalculator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    odd, calls, run = diamond(), [], calculator.session.run
    SOUND[name](odd)
    monkeypatch.setattr(calculator.session, "run", lambda inputs: (calls.append(1), run(inputs))[1])
    odd.calc = calculator
    odd.get_potential_energy()
    odd.get_forces()
    odd.get_stress()
    assert len(calls) == (3 if "mask" in name else 1), "whether a mask was changed is not looked at"


def test_f8_numbers_are_known_by_their_type_too(calculator: PaiNNCalculator) -> None:
    calculator.calculate_batch([Atoms("H")])
    odd = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    odd.arrays["numbers"] = np.array([1, 0], np.int32)  # the bytes of one 1 in 64 bits
    with pytest.raises(SpeciesError, match="Atom 1 is X"):
        calculator.calculate_batch([odd])


def test_f8_elements_do_not_wrap_in_32_bits() -> None:
    with pytest.raises(SpeciesError, match=r"Atom 1 is no element \(Z = 4294967297\)"):
        as_elements(np.array([1, 2**32 + 1]))


def test_a_structure_without_anything_to_convert_comes_back_itself() -> None:
    for atoms in (molecule("H2O"), diamond(), *students.zoo().values()):
        assert check_structure(atoms) is atoms


def test_f9_a_vector_that_does_not_repeat_may_be_anything(calculator: PaiNNCalculator) -> None:
    atoms = students.perturbed(bulk("C", "diamond", a=3.57), 1, 0.05)
    atoms.pbc = [True, True, False]
    (want,) = calculator.calculate_batch([atoms])
    for value in (np.nan, np.inf, 1e30):
        atoms.cell.array[2] = value
        (batch,) = calculator.calculate_batch([atoms])
        for _ in range(2):  # with a list of neighbours that was kept, too
            calculator.calculate(atoms)
            for got in (batch, calculator.results):
                np.testing.assert_allclose(got["forces"], want["forces"], rtol=0, atol=1e-5)
                assert "stress" not in got, "such a cell has no volume"


def test_f9_atoms_as_far_as_float64_places_them(calculator: PaiNNCalculator) -> None:
    atoms = students.perturbed(molecule("H2O"), 1)
    (want,) = calculator.calculate_batch([atoms])
    atoms.positions += [1e6, -1e6, 1e6]
    (got,) = calculator.calculate_batch([atoms])
    np.testing.assert_allclose(got["forces"], want["forces"], rtol=0, atol=1e-4)
    assert np.spacing(np.nextafter(FARTHEST, 0)) < 1e-6 < np.spacing(FARTHEST)
    atoms.positions[1, 1] = -FARTHEST
    with pytest.raises(StructureError, match=r"Atom 1 \(H\) is at .* rounding. Wrap the structure"):
        calculator.calculate(atoms)


PBC = [(True, True, True), (True, True, False), (True, False, False), (False, True, True), (False, False, False)]


@pytest.mark.timing
@pytest.mark.parametrize("length", [1e3, 1e5, 1e7, 1e9, 8e9, 1e10, 1e14, 1e77, 1e100, 1e155, 1e200])
@pytest.mark.parametrize("pbc", PBC)
def test_f3_f4_cells_of_any_length_are_answered_or_refused_at_once(length: float, pbc: tuple[bool, ...]) -> None:
    atoms = Atoms("CH", [[0, 0, 0], [1.1, 0.2, 0.1]], cell=length * np.eye(3), pbc=pbc)
    sheared = atoms.copy()
    sheared.cell.array[:] = length * np.array([[1, 0, 0], [0.3, 1, 0], [-0.4, 0.5, 1]])
    for one in (atoms, sheared):
        before = time.process_time()
        if length > FARTHEST and any(pbc):
            with pytest.raises(StructureError, match="cannot place atoms in cells past"):
                graph_inputs([one], CUTOFF)
        else:
            assert graph_inputs([one], CUTOFF).mask.sum() == 2
        assert time.process_time() - before < 1.0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.tuples(*[st.sampled_from([3.1, 6.0, 40.0, 1e4, 3e6])] * 3),
    pbc=st.tuples(*[st.booleans()] * 3),
    count=st.integers(1, 5),
)
def test_f3_empty_stretches_of_periodic_cells_change_no_edge(
    seed: int, lengths: tuple[float, ...], pbc: tuple[bool, ...], count: int
) -> None:
    """Atoms in a few places of a large cell, near its faces among them, and cells away from where they belong."""
    rng = np.random.default_rng(seed)
    # where nothing repeats, far away would be many images of what does, for the sum over them
    cell = np.diag(np.where(pbc, lengths, np.minimum(lengths, 6.0))) @ (np.eye(3) + rng.uniform(-0.25, 0.25, (3, 3)))
    places = rng.choice([0.0, 0.5, 0.9999999], (count, 3)) @ cell
    positions = (
        places + rng.uniform(-3, 3, (count, 3)) + rng.integers(-2, 3, (count, 3)) @ (cell * np.array(pbc)[:, None])
    )
    atoms = Atoms([6] * count, positions, cell=cell, pbc=pbc)
    wrapped = atoms.copy()
    wrapped.wrap()  # so that the sum over images is short
    wanted = brute_force(wrapped, CUTOFF)
    distances = [np.linalg.norm(vector) for _, _, vector in wanted]
    if any(distance < 2e-3 for distance in distances):
        return
    edges = edges_of(graph_inputs([atoms], CUTOFF, np.float64))
    sure = [edge for edge, distance in zip(wanted, distances, strict=True) if distance < CUTOFF - 1e-5]
    near = [edge[:2] for edge in edges if np.linalg.norm(edge[2]) < CUTOFF - 1e-5]
    assert near == [edge[:2] for edge in sure]


@pytest.mark.timing
@pytest.mark.parametrize(
    ("cell", "pbc", "spread", "count"),
    [(None, False, 2.0, 5_000), ([10.0] * 3, True, 2.0, 5_000), ([0.7, 30, 30], [True, False, False], 0.7, 5_000)],
)
def test_f19_crowds_are_refused_before_their_pairs_are_made(
    cell: list[float] | None, pbc: Any, spread: float, count: int
) -> None:
    positions = spread * np.random.default_rng(0).random((count, 3))
    before = time.process_time()
    with pytest.raises(
        StructureError, match=r"so crowded that each has \d+ others within 5 Å and more; check the units"
    ):
        find_pairs(check_structure(Atoms(f"C{count}", positions, cell=cell, pbc=pbc)), 5.0)
    assert time.process_time() - before < 1.0


def test_large_boxes_are_not_taken_for_small_ones() -> None:
    """A box of any size has 26 neighbours; what counts is how much of them lies within the cutoff."""
    side = 50
    sites = 4.0 * np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)
    found = find_pairs(Atoms(f"H{side**3}", sites, cell=[4.0 * side] * 3, pbc=True), 5.0)
    assert (found.pairs.counts() == 6).all()


def test_f19_crowds_that_are_small_or_matter_are_answered() -> None:
    rng = np.random.default_rng(0)
    assert find_pairs(Atoms("C400", rng.random((400, 3))), 5.0).pairs.counts().max() == 399
    dense = bulk("C", "diamond", a=2.4, cubic=True) * (8, 8, 8)  # thrice as dense as diamond
    assert find_pairs(dense, 12.0).pairs.counts().min() > 4_000


def test_the_check_is_the_same_in_torchsim(bundle: Path) -> None:
    torchsim = pytest.importorskip("painn_deploy.runtime.torchsim")
    model = torchsim.PaiNNModel(bundle, device="cpu")
    state = {
        "positions": torch.tensor(diamond().positions),
        "cell": torch.tensor(np.asarray(diamond().cell)).T[None],
        "atomic_numbers": torch.tensor(diamond().numbers),
        "system_idx": torch.zeros(8, dtype=torch.int64),
        "pbc": True,
    }
    want = model(state)["forces"]
    rounded = state | {
        "positions": state["positions"].float(),
        "atomic_numbers": state["atomic_numbers"].to(torch.uint8),
    }
    np.testing.assert_allclose(model(rounded)["forces"], want, rtol=0, atol=1e-4)
    for wrong, message in [
        ({"positions": state["positions"] + 1e12}, "Structure 0: Atom 0 .* rounding"),
        ({"positions": state["positions"] * np.nan}, "Structure 0: Atom 0 .* NaN"),
        ({"cell": state["cell"] * 1e12}, "Structure 0: The cell vector"),
        ({"positions": state["positions"] + 0j}, "complex"),
        ({"atomic_numbers": state["atomic_numbers"] + 0.5}, "atomic numbers"),
        ({"atomic_numbers": state["atomic_numbers"] + 2**40}, "no element"),
        ({"pbc": torch.tensor([1.0, 2.0, 1.0])}, "pbc is"),
        ({"pbc": None}, "pbc is"),
        ({"pbc": "abc"}, "pbc is"),
        ({"system_idx": torch.ones(8, dtype=torch.int64)}, "system by system|consecutive"),
        ({"atomic_numbers": state["atomic_numbers"][:7]}, "no state of TorchSim.*shapes"),
    ]:
        with pytest.raises(StructureError, match=message):
            model(state | wrong)


def _clump(bundle: Path, answers: Any) -> None:
    import resource

    atoms = Atoms("C1400", 1.9 * np.random.default_rng(0).random((1400, 3)))
    with PaiNNCalculator(bundle) as calculator:
        calculator.calculate(molecule("CH4"))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**28
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        calculator.evaluator.limits.__init__([], 10**6, True)  # type: ignore[misc]  a student that needs much memory
        try:
            calculator.calculate(atoms)
        except Exception as error:  # of any kind: the parent looks
            answers.put((type(error).__name__, str(error)))


def test_f19_a_size_is_refused_before_its_matrix_is_made(bundle: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_clump, args=(bundle, answers))
    process.start()
    kind, message = answers.get(timeout=120)
    process.join()
    assert kind == "ShapeError", message
    assert "1400 atoms with up to 1399 neighbours" in message
