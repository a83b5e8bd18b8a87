import json
import math
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from hypothesis import given, settings
from hypothesis import strategies as st

from painn_deploy.engines import Session
from painn_deploy.engines.backend import ResidentGraph
from painn_deploy.export.errors import ShapeError, StructureError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.runtime.pairs.standing import StandingPairs
from painn_deploy.runtime.replicas import ReplicaList
from painn_deploy.runtime.structures import check_structure
from painn_deploy.runtime.verlet import DEFAULT_SKIN, WIDER, VerletList
from painn_deploy.scripts.studies.card_studies import box_of_water
from painn_deploy.scripts.studies.neighbours import compare
from tests import students

from .test_neighbours import brute_force, check_layout, edges_of

pytestmark = pytest.mark.usefixtures("both_ways")

CUTOFF = 4.0


def edges(atoms: Atoms, verlet: VerletList) -> None:
    """The list's edges are those of a sum over images: none missing, none too many."""
    inputs = verlet.inputs(atoms)
    assert [e[:2] for e in edges_of(inputs)] == [e[:2] for e in brute_force(atoms, CUTOFF)]


@pytest.mark.parametrize("name", students.zoo())
def test_moving_atoms_and_cells_miss_no_edge(name: str) -> None:
    atoms, rng = students.zoo()[name].copy(), np.random.default_rng(3)
    verlet = VerletList(CUTOFF, 0.6)
    for step in range(25):
        atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
        if step % 3 == 2 and atoms.cell.rank == 3:
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.004, (3, 3))), scale_atoms=True)
        edges(atoms, verlet)
    assert verlet.searches + verlet.updates == 25
    assert verlet.updates > 5


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(0.9, 1.1),
    shear=st.floats(-0.2, 0.2),
    move=st.floats(0, 0.5),
    skin=st.floats(0.05, 1.0),
    seed=st.integers(0, 99),
)
def test_any_deformation_misses_no_edge(scale: float, shear: float, move: float, skin: float, seed: int) -> None:
    atoms = bulk("Na", "bcc", a=4.1, cubic=True)
    verlet = VerletList(CUTOFF, skin)
    edges(atoms, verlet)
    strain = np.eye(3) * scale
    strain[0, 1] = shear
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.positions += np.random.default_rng(seed).uniform(-move, move, atoms.positions.shape)
    edges(atoms, verlet)


def test_a_reused_list_keeps_the_contract() -> None:
    atoms = bulk("Al", a=4.05).repeat(2)
    verlet = VerletList(CUTOFF, 0.5)
    verlet.inputs(atoms)
    atoms.positions += np.random.default_rng(0).normal(0, 0.02, atoms.positions.shape)
    inputs = verlet.inputs(atoms)
    assert verlet.updates == 1
    within = inputs._replace(displacements=inputs.displacements * (inputs.mask > 0)[..., None])
    stored = inputs.reverse.ravel() != np.arange(inputs.reverse.size)
    assert stored.sum() > inputs.mask.sum()
    np.testing.assert_array_equal(within.displacements.reshape(-1, 3)[inputs.reverse], -within.displacements)
    verlet_without_skin = VerletList(CUTOFF, 0.0)
    check_layout(verlet_without_skin.inputs(atoms))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.numbers.__setitem__(0, 6),
        lambda a: setattr(a, "pbc", [True, True, False]),
        lambda a: a.positions.__iadd__([[0.3, 0, 0]] + [[0, 0, 0]] * (len(a) - 1)),
        lambda a: a.set_cell(a.cell * 0.88, scale_atoms=True),
        lambda a: a.pop(),
        lambda a: a.wrap(),
    ],
)
def test_what_makes_a_search_necessary(change: object) -> None:
    atoms = bulk("Al", a=4.05).repeat(2)
    atoms.positions -= 0.4
    verlet = VerletList(CUTOFF, 0.5)
    verlet.inputs(atoms)
    change(atoms)  # type: ignore[operator]
    edges(atoms, verlet)
    assert verlet.searches == 2


def test_errors_are_found_while_a_list_is_reused() -> None:
    atoms = molecule("H2O")
    verlet = VerletList(CUTOFF, 5.0)
    verlet.inputs(atoms)
    atoms.positions[1] = atoms.positions[2]
    with pytest.raises(StructureError, match="on one spot"):
        verlet.inputs(atoms)
    atoms.positions[1] = np.nan
    with pytest.raises(StructureError, match="NaN"):
        verlet.inputs(check_structure(atoms))


def test_a_trajectory_with_a_skin_is_the_one_without(bundle: Path) -> None:
    ends = []
    for skin in (0.0, 0.4):
        atoms = students.perturbed(bulk("C", "diamond", a=3.57, cubic=True), 1, 0.02)
        with PaiNNCalculator(bundle, skin=skin) as calculator:
            atoms.calc = calculator
            thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
            VelocityVerlet(atoms, 0.2 * units.fs).run(60)
            assert calculator.neighbour_list.searches == (61 if skin == 0 else 1)
            ends.append(atoms.positions.copy())
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-5)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often pairs were searched, displacements formed, and cells completed."""
    counted: Counter[str] = Counter()

    def count(owner: object, name: str) -> None:
        function = getattr(owner, name)

        def counting(*arguments: object) -> object:
            counted[name] += 1
            return function(*arguments)

        monkeypatch.setattr(owner, name, counting)

    runtime = [module for name, module in sys.modules.items() if name.startswith("painn_deploy.runtime.")]
    for name in ("find_pairs", "periodic_cell"):
        for module in runtime:
            if hasattr(module, name):
                count(module, name)
    count(StandingPairs, "renew")
    return counted


WIDENED = {"crystal": bulk("C", "diamond", a=3.57, cubic=True).repeat(2), "liquid": box_of_water()}


def moving(start: Atoms, steps: int = 10) -> Iterator[Atoms]:
    atoms, rng = start.copy(), np.random.default_rng(0)
    for _ in range(steps):
        atoms.positions += rng.normal(0, 0.01, atoms.positions.shape)
        yield atoms


def exact_edges(inputs: GraphInputs) -> list[tuple[float, ...]]:
    row, slot = np.nonzero(inputs.mask)
    return sorted(zip(row, inputs.neighbours[row, slot], *inputs.displacements[row, slot].T, strict=True))


@pytest.mark.parametrize("name", WIDENED)
def test_where_the_default_skin_widens_too_much_every_step_searches_once(name: str, calls: Counter[str]) -> None:
    verlet, plain = VerletList(CUTOFF, None), VerletList(CUTOFF, 0.0)
    for step, atoms in enumerate(moving(WIDENED[name])):
        calls.clear()
        inputs = verlet.inputs(atoms)
        wide = step == 0  # which decides
        assert calls == {"find_pairs": 1 + wide, "periodic_cell": 1 + wide}
        for array, other in zip(inputs, plain.inputs(atoms), strict=True):
            np.testing.assert_array_equal(array, other)
    assert (verlet.searches, verlet.updates) == (11, 0)
    assert (plain.searches, plain.updates) == (10, 0)


def test_where_the_default_skin_is_worth_it_the_first_step_searches_for_all(calls: Counter[str]) -> None:
    verlet = VerletList(CUTOFF, None)
    for step, atoms in enumerate(moving(molecule("CH3CH2OH"))):
        calls.clear()
        inputs = verlet.inputs(atoms)
        assert calls == ({"renew": 1} if step else {"find_pairs": 1, "periodic_cell": 1})
        assert exact_edges(inputs) == exact_edges(graph_inputs([atoms], CUTOFF))
    assert (verlet.searches, verlet.updates) == (1, 9)


def test_what_stands_is_closed_for_writing_and_what_is_thrown_away_is_not() -> None:
    """An engine keeps what it made of the one; torch would warn of the other."""
    standing, plain = (VerletList(CUTOFF, skin).inputs(molecule("H2O")).reverse for skin in (0.5, 0.0))
    assert (standing.flags.writeable, standing.base) == (False, None)
    assert plain.flags.writeable
    (batch,) = ReplicaList(CUTOFF, 0.5, batch_slots=100).batches(*together([molecule("H2O")] * 2))
    assert (batch.inputs.reverse.flags.writeable, batch.inputs.reverse.base) == (False, None)


@pytest.mark.parametrize("name", WIDENED)
@pytest.mark.parametrize(("most_widening", "searches"), [(math.inf, 1), (WIDER, 11)])
def test_a_session_that_follows_searches_no_more_often(
    name: str, most_widening: float, searches: int, calls: Counter[str]
) -> None:
    """It asks for what stays, and for the whole where nothing does, as the calculator does."""
    verlet, resident = VerletList(CUTOFF, None, most_widening=most_widening), None
    for atoms in moving(WIDENED[name]):
        last = resident
        resident = verlet.resident(atoms, last)
        if resident is None:
            verlet.inputs(atoms)
        else:
            assert last is None or resident is last
    assert calls["find_pairs"] == verlet.searches == searches
    assert verlet.updates == (9 if resident is not None else 0)


class Follower:
    """A session that follows, on the host: displacements from what stays and positions."""

    slot_step = 1

    def __init__(self, session: Session) -> None:
        self.info, self.run, self.close = session.info, session.run, session.close
        self.following: ResidentGraph | None = None
        self.followed = 0

    def follow(self, resident: ResidentGraph) -> None:
        self.following = resident
        self.followed += 1

    def step(self, positions: np.ndarray) -> GraphOutputs:
        assert self.following is not None
        numbers, neighbours, reverse, shifts, stored, cutoff, weights = vars(self.following).values()
        vectors = (positions[neighbours] - positions[:, None] + shifts) * stored[..., None]
        mask = stored.astype(bool) & (np.linalg.norm(vectors, axis=-1) < cutoff)
        arrays = vectors.astype(np.float32), neighbours, reverse, mask.astype(np.float32)
        return self.run(GraphInputs(numbers, *arrays, weights))


def test_a_calculator_on_a_session_that_follows_searches_once(bundle: Path, calls: Counter[str]) -> None:
    with PaiNNCalculator(bundle) as calculator, PaiNNCalculator(bundle, skin=0.0) as plain:
        calculator.with_session(follower := Follower(calculator.session))
        for atoms in moving(WIDENED["crystal"]):
            np.testing.assert_allclose(calculator.get_forces(atoms), plain.get_forces(atoms), rtol=0, atol=1e-5)
    assert calls["find_pairs"] == 1 + 10, "of the one, and of the other"
    assert (calculator.neighbour_list.searches, follower.followed) == (1, 1)


def test_whether_a_skin_is_worth_it_is_asked_again_when_the_structure_is_another(calls: Counter[str]) -> None:
    verlet, crystal = VerletList(CUTOFF, None), WIDENED["crystal"].copy()

    def searches(atoms: Atoms) -> int:
        calls.clear()
        inputs = verlet.inputs(atoms)
        assert exact_edges(inputs) == exact_edges(VerletList(CUTOFF, 0.0).inputs(atoms))
        return calls["find_pairs"] - 1  # without the comparison's own

    assert [searches(crystal), searches(crystal)] == [2, 1]
    scaled = 0.99  # of the volume at each step
    asked = []
    for _ in range(12):
        crystal.set_cell(crystal.cell.array * scaled ** (1 / 3), scale_atoms=True)
        asked.append(searches(crystal) == 2)
    assert asked == [False] * 5 + [True] + [False] * 5 + [True]
    crystal.set_cell(crystal.cell.array @ [[1, 0.2, 0], [0, 1, 0], [0, 0, 1]], scale_atoms=True)
    assert searches(crystal) == 1, "a shear leaves the volume"
    crystal.numbers[0] = 14
    assert [searches(crystal), searches(crystal)] == [2, 1]
    crystal.pbc = [True, True, False]
    assert [searches(crystal), searches(crystal)] == [2, 1]


def test_a_liquid_that_becomes_a_gas_gets_its_skin() -> None:
    waters = WIDENED["liquid"].copy()
    verlet = VerletList(CUTOFF, None)
    verlet.inputs(waters)
    verlet.inputs(waters)
    assert (verlet.searches, verlet.updates) == (3, 0)
    centres = np.repeat(waters.positions.reshape(-1, 3, 3).mean(1), 3, axis=0)
    waters.positions += 3 * centres
    waters.set_cell(4 * waters.cell.array)
    for _ in range(3):
        verlet.inputs(waters)
    assert (verlet.searches, verlet.updates) == (4, 2)


def test_a_skin_of_nothing_counts_a_search_once_on_a_session_that_follows() -> None:
    verlet, atoms = VerletList(CUTOFF, 0.0), molecule("H2O")
    assert verlet.resident(atoms, None) is None
    verlet.inputs(atoms)
    assert verlet.searches == 1


def test_a_skin_must_be_a_length(bundle: Path) -> None:
    for skin in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not a length"):
            PaiNNCalculator(bundle, skin=skin)


TIMINGS = """
import json, sys, time
import numpy as np
from ase.build import molecule
from painn_deploy.runtime import PaiNNCalculator
atoms, rng, shares = molecule("CH3CH2OH"), np.random.default_rng(0), []
with PaiNNCalculator(sys.argv[1], skin=0.5) as calculator:
    for _ in range(7):
        calculator.timings.reset()
        wall = 0.0
        for _ in range(100):
            atoms.positions += rng.normal(0, 1e-4, atoms.positions.shape)
            started = time.perf_counter()
            calculator.calculate(atoms)
            wall += time.perf_counter() - started
        spent = calculator.timings.as_dict()
        shares.append(100 * spent["total"] / (1e3 * wall))
    calculator.calculate_batch([atoms] * 4)
    print(json.dumps([shares, spent, calculator.timings.calculations, calculator.timings.as_dict()]))
"""


@pytest.mark.timing
def test_timings_add_up_to_the_wall_time(bundle: Path) -> None:
    """In a process of its own: here every call is held against its types, which takes time between the phases."""
    command = [sys.executable, "-c", TIMINGS, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shares, spent, calculations, later = json.loads(done.stdout)
    assert 0.95 <= np.median(shares) <= 1.0  # of several, as the machine may have done something else meanwhile
    assert set(spent) == {"ase", "neighbours", "packing", "transfer", "engine", "results", "total"}
    assert spent["total"] == pytest.approx(sum(v for k, v in spent.items() if k != "total"))
    assert calculations == 104
    assert later["packing"] > 0


def test_a_step_that_reuses_a_list_asks_for_no_memory_of_the_pairs_size() -> None:
    atoms = bulk("Al", a=4.05, cubic=True).repeat(6)
    verlet = VerletList(6.0, 0.5)
    inputs = verlet.inputs(atoms)
    bytes_of_one_array = inputs.mask.nbytes
    verlet.inputs(atoms)
    tracemalloc.start()
    atoms.positions += 1e-3
    assert verlet.inputs(atoms) is inputs
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < bytes_of_one_array / 2


@pytest.mark.parametrize("name", ["liquid", "molecule"])
def test_dynamics_miss_no_edge_and_find_none_too_many(name: str) -> None:
    record = compare(name, steps=150)
    assert record.wrong == 0
    assert record.reused > 60
    assert record.searches > 2


def together(structures: list[Atoms]) -> tuple[np.ndarray, ...]:
    """What a list of many is given."""
    starts = np.cumsum([0, *(len(atoms) for atoms in structures)])
    numbers, positions = (np.concatenate([getattr(a, name) for a in structures]) for name in ("numbers", "positions"))
    return numbers, positions, np.stack([a.cell.array for a in structures]), structures[0].pbc, starts


@pytest.mark.parametrize("pbc", [(False,) * 3, (True,) * 3, (True, True, False)])
def test_many_that_move_together_miss_no_edge(pbc: tuple[bool, ...], calls: Counter[str]) -> None:
    structures = [atoms.copy() for atoms in students.zoo().values() if tuple(atoms.pbc) == pbc]
    many, rng, steps = ReplicaList(CUTOFF, 0.6, batch_slots=150), np.random.default_rng(1), 15
    assert len(structures) > 1
    for step in range(steps):
        seen = []
        for batch in many.batches(*together(structures)):
            start = 0
            for system in batch.systems:
                rows = slice(start, start + len(structures[system]))
                part = GraphInputs(*(array[rows] for array in batch.inputs))
                found = edges_of(part._replace(neighbours=part.neighbours - np.int32(start)))
                assert [e[:2] for e in found] == [e[:2] for e in brute_force(structures[system], CUTOFF)]
                seen.append(system)
                start = rows.stop
        assert sorted(seen) == list(range(len(structures)))
        for atoms in structures[step % 2 :: 2]:
            atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
            if step % 3 == 2 and atoms.cell.rank == 3 and atoms.pbc.any():
                atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.004, (3, 3))), scale_atoms=True)
    assert many.searches == calls["find_pairs"] < steps * len(structures) / 2


def test_one_of_many_is_searched_when_it_alone_moves_far(calls: Counter[str]) -> None:
    structures = [students.water(seed) for seed in range(5)]
    many = ReplicaList(CUTOFF, 0.5, batch_slots=10**4)
    (batch,) = many.batches(*together(structures))
    assert exact_edges(batch.inputs) == exact_edges(graph_inputs(structures, CUTOFF))
    calls.clear()
    structures[3].positions[0] += 0.3
    (batch,) = many.batches(*together(structures))
    assert calls["find_pairs"] == 1
    assert many.searches == 5 + 1
    assert exact_edges(batch.inputs) == exact_edges(graph_inputs(structures, CUTOFF))


@pytest.mark.parametrize("wrong", ["positions", "cell"])
def test_one_of_many_that_diverged_is_named(wrong: str) -> None:
    structures = [bulk("Al", a=4.05, cubic=True) for _ in range(3)]
    many = ReplicaList(CUTOFF, 0.5, batch_slots=10**4)
    many.batches(*together(structures))
    if wrong == "cell":
        structures[1].cell[0, 0] = np.nan
    else:
        structures[1].positions[2] = np.nan
    with pytest.raises(StructureError, match=r"Structure 1: .*NaN"):
        many.batches(*together(structures))


@pytest.mark.parametrize("skin", [None, DEFAULT_SKIN])
def test_a_matrix_that_fits_without_the_skin_is_made_without_it(skin: float | None) -> None:
    atoms = students.perturbed(bulk("C", "diamond", a=3.57, cubic=True), 1, 0.05)
    want = graph_inputs([atoms], CUTOFF)
    most = want.mask.shape[1]

    def admit(atoms: int, slots: int) -> None:
        if slots > most:
            raise ShapeError(f"{atoms} atoms x {slots} slots are too many")

    verlet = VerletList(CUTOFF, skin, most_widening=math.inf, admit=admit)
    for _ in range(2):
        if skin is None:
            assert exact_edges(verlet.inputs(atoms)) == exact_edges(want)
        else:
            with pytest.raises(ShapeError, match="too many"):
                verlet.inputs(atoms)
