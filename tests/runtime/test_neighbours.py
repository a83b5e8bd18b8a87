import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from painn_deploy.export.errors import StructureError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.runtime.neighbours import Pairs, find_pairs, slots_for
from tests import students

pytestmark = pytest.mark.usefixtures("both_ways")

CUTOFF = 4.0


def brute_force(atoms: Atoms, cutoff: float) -> list[tuple[int, int, tuple[float, float, float]]]:
    """Every edge by a sum over all images that could be near, without any library."""
    cell = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    reach = [0, 0, 0]
    if atoms.pbc.any():
        inverse = np.linalg.pinv(cell)  # S = (vector - difference) · inverse
        spread = cutoff * np.linalg.norm(inverse, axis=0) + np.ptp(atoms.positions @ inverse, axis=0)
        reach = [int(np.ceil(spread[axis])) * int(atoms.pbc[axis]) for axis in range(3)]
    shifts = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))))
    edges = []
    for i, j in itertools.product(range(len(atoms)), repeat=2):
        vectors = atoms.positions[j] - atoms.positions[i] + shifts @ cell
        lengths = np.sqrt((vectors**2).sum(1))
        for vector, length, shift in zip(vectors, lengths, shifts, strict=True):
            if length < cutoff and not (i == j and not shift.any()):
                edges.append((i, j, tuple(np.round(vector, 6))))
    return sorted(edges)


def edges_of(inputs: GraphInputs) -> list[tuple[int, int, tuple[float, float, float]]]:
    return sorted(
        (int(i), int(inputs.neighbours[i, k]), tuple(np.round(inputs.displacements[i, k].astype(float), 6) + 0.0))
        for i, k in zip(*np.nonzero(inputs.mask), strict=True)
    )


def check_layout(inputs: GraphInputs) -> None:
    """The reverse of the reverse is the slot itself, it points back, and padding is what the contract says."""
    atoms, slots = inputs.mask.shape
    flat = np.arange(atoms * slots).reshape(atoms, slots)
    own = np.arange(atoms)[:, None]
    np.testing.assert_array_equal(inputs.reverse.ravel()[inputs.reverse], flat)
    np.testing.assert_array_equal(inputs.neighbours, inputs.reverse // slots)
    np.testing.assert_array_equal(inputs.neighbours.ravel()[inputs.reverse], np.broadcast_to(own, (atoms, slots)))
    np.testing.assert_array_equal(inputs.displacements.reshape(-1, 3)[inputs.reverse], -inputs.displacements)
    np.testing.assert_array_equal(inputs.mask.ravel()[inputs.reverse], inputs.mask)
    padding = inputs.mask == 0
    assert (inputs.displacements[padding] == 0).all()
    assert (inputs.reverse[padding] == flat[padding]).all()
    assert (inputs.neighbours[padding] == np.broadcast_to(own, (atoms, slots))[padding]).all()


@pytest.mark.parametrize("name", students.zoo())
def test_edges_are_those_of_a_sum_over_images(name: str) -> None:
    atoms = students.zoo()[name]
    inputs = graph_inputs([atoms], CUTOFF, np.float64)
    check_layout(inputs)
    assert edges_of(inputs) == brute_force(atoms, CUTOFF)


coordinates = st.floats(-12, 12, allow_nan=False, width=32)
vectors = st.tuples(coordinates, coordinates, coordinates)


@settings(max_examples=150, deadline=None)
@given(
    cell=st.tuples(*[st.floats(1.2, 7.0)] * 3),
    skew=st.tuples(*[st.floats(-1.5, 1.5)] * 3),
    pbc=st.tuples(*[st.booleans()] * 3),
    positions=st.lists(vectors, min_size=1, max_size=5),
)
def test_any_cell_and_any_directions_agree_with_brute_force(
    cell: tuple[float, ...], skew: tuple[float, ...], pbc: tuple[bool, ...], positions: list[tuple[float, ...]]
) -> None:
    matrix = np.diag(cell)
    matrix[1, 0], matrix[2, 0], matrix[2, 1] = skew
    atoms = Atoms([6] * len(positions), positions, cell=matrix, pbc=pbc)
    wanted = brute_force(atoms, CUTOFF)
    lengths = [np.linalg.norm(vector) for _, _, vector in wanted]
    if lengths and min(lengths) < 2e-3:
        with pytest.raises(StructureError, match="on one spot"):
            graph_inputs([atoms], CUTOFF)
        return
    inputs = graph_inputs([atoms], CUTOFF, np.float64)
    check_layout(inputs)
    got = edges_of(inputs)
    assert [edge[:2] for edge in got] == [edge[:2] for edge in wanted]
    np.testing.assert_allclose([edge[2] for edge in got], [edge[2] for edge in wanted], atol=3e-6)


def test_an_atom_exactly_at_the_cutoff_is_no_neighbour() -> None:
    assert graph_inputs([Atoms("H2", [[0, 0, 0], [0, 0, 4.0]])], 4.0).mask.sum() == 0
    assert graph_inputs([Atoms("H2", [[0, 0, 0], [0, 0, np.nextafter(4.0, 0)]])], 4.0).mask.sum() == 2
    cubic = Atoms("H", cell=[4.0, 4.0, 4.0], pbc=True)
    assert graph_inputs([cubic], 4.0).mask.sum() == 0
    assert graph_inputs([cubic], 4.0000001).mask.sum() == 6


def test_crowded_atoms_get_the_slots_that_they_need() -> None:
    dense = bulk("C", "diamond", a=2.0)
    inputs = graph_inputs([dense], CUTOFF)
    assert inputs.mask.sum() == len(brute_force(dense, CUTOFF)) > 500


def test_a_batch_holds_each_structure_as_it_is_alone() -> None:
    zoo = list(students.zoo().values())
    batch = graph_inputs(zoo, CUTOFF, np.float64)
    check_layout(batch)
    start = 0
    for atoms in zoo:
        rows = slice(start, start + len(atoms))
        alone = graph_inputs([atoms], CUTOFF, np.float64)
        part = GraphInputs(*(a[rows] for a in batch))
        shifted = part._replace(neighbours=part.neighbours - np.int32(start))
        assert edges_of(shifted) == edges_of(alone)
        start += len(atoms)


def test_positions_and_cell_are_not_touched() -> None:
    atoms = students.zoo()["outside the cell"]
    before = atoms.copy()
    graph_inputs([atoms], CUTOFF)
    assert atoms == before


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(), "no atoms"),
        (Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]), r"Atom 1 \(H\).*NaN"),
        (Atoms("H2", [[0, 0, 0], [0, np.inf, 0]]), "infinite positions"),
        (Atoms("COO", [[0, 0, 0], [0, 0, 1.2], [0, 0, 1.2]]), r"Atoms 1 \(O\) and 2 \(O\) are on one spot"),
        (Atoms("H", cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]], pbc=True), "a, b, c are linearly dependent"),
        (Atoms("H", pbc=True), "linearly dependent"),
        (Atoms("H", cell=[3, 0, 3], pbc=[True, True, False]), "a, b are linearly dependent"),
        (Atoms("H", cell=[3, np.nan, 3], pbc=True), "cell holds NaN"),
    ],
)
def test_structures_without_an_answer_are_refused(atoms: Atoms, message: str) -> None:
    with pytest.raises(StructureError, match=message):
        graph_inputs([atoms], CUTOFF)
    with pytest.raises(StructureError, match="Structure 1"):
        graph_inputs([molecule("H2O"), atoms], CUTOFF)


def test_only_periodic_vectors_must_be_independent() -> None:
    sheet = graphene(a=2.46, vacuum=None)
    assert sheet.cell.rank == 2
    assert graph_inputs([sheet], CUTOFF).mask.sum() == len(brute_force(sheet, CUTOFF))


@pytest.mark.parametrize(
    ("atoms", "edges"),
    [
        (Atoms("OH2", [[0, 0, 0], [0, 1700, 900], [0, 0, 1900]]), 0),
        (Atoms("OH2", [[0, 0, 0], [0, 1700, 900], [0, 1701, 900]]), 2),
        (Atoms("H2", [[0, 0, 0], [1e6, 0, 0]]), 0),
        (Atoms("H2", [[0, 0, 0], [0, 0, 1]], cell=[2000, 2000, 3.5], pbc=True), 8),
        (Atoms("H3", [[0, 0, 0], [0, 0, 1], [1e4, 1e4, 0]], cell=[0, 0, 4.5], pbc=[False, False, True]), 4),
        (Atoms("H2", [[0, 0, 0], [0, 0, 1e5]], cell=[4.5, 4.5, 0], pbc=[True, True, False]), 0),
        (Atoms("H3", [[0, 0, 0], [0, 0, 1], [0, 2, 4.5e9 + 1]], cell=[4.5, 4.5, 4.5], pbc=True), 12),
    ],
)
def test_atoms_that_flew_apart_or_were_never_wrapped(atoms: Atoms, edges: int) -> None:
    """A diverged or dissociated simulation is an answer or an error, never a dead process."""
    inputs = graph_inputs([atoms], CUTOFF, np.float64)
    check_layout(inputs)
    assert inputs.mask.sum() == edges
    wrapped = atoms.copy()
    wrapped.wrap()
    assert len(brute_force(wrapped, CUTOFF)) == edges


@settings(max_examples=60, deadline=None)
@given(
    positions=st.lists(st.tuples(*[st.integers(-9, 9)] * 3), min_size=2, max_size=8, unique=True),
    stretch=st.tuples(*[st.sampled_from([0.9, 7.0, 900.0])] * 3),
    pbc=st.sampled_from([(False, False, False), (True, False, False), (False, True, True)]),
)
def test_gaps_are_narrowed_without_changing_an_edge(
    positions: list[tuple[int, int, int]], stretch: tuple[float, ...], pbc: tuple[bool, ...]
) -> None:
    points = np.array(positions) * np.where(pbc, 0.9, stretch)
    atoms = Atoms([6] * len(points), points, cell=[[6.1, 0, 0], [1.3, 6.3, 0], [0.4, -0.7, 6.5]], pbc=pbc)
    wanted = brute_force(atoms, CUTOFF)
    if wanted and min(np.linalg.norm(vector) for _, _, vector in wanted) < 2e-3:
        return
    assert [e[:2] for e in edges_of(graph_inputs([atoms], CUTOFF, np.float64))] == [e[:2] for e in wanted]


@pytest.mark.parametrize("cell", [[0.01] * 3, [[5, 0, 0], [5, 1e-4, 0], [0, 0, 5]]])
def test_cells_of_millions_of_images_are_refused(cell: list[float]) -> None:
    with pytest.raises(StructureError, match=r"of its images lie within 4 Å.*units"):
        graph_inputs([Atoms("H", cell=cell, pbc=True)], CUTOFF)


def test_pairs_of_structures_side_by_side() -> None:
    zoo = students.zoo()
    for names in (["water", "single atom", "ethanol"], ["water", "triclinic", "far apart", "slab"], ["slab"]):
        parts = [find_pairs(zoo[name], CUTOFF).pairs for name in names]
        sizes = [len(zoo[name]) for name in names]
        joined = Pairs.joined(parts, sizes)
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        first = [start + one for part, start in zip(parts, starts, strict=True) for one in part.first.tolist()]
        second = [start + one for part, start in zip(parts, starts, strict=True) for one in part.second.tolist()]
        shifts = [
            shift
            for part in parts
            for shift in ([[0, 0, 0]] * len(part.first) if part.shifts is None else part.shifts.tolist())
        ]
        assert (joined.first.tolist(), joined.second.tolist()) == (first, second)
        if all(part.shifts is None for part in parts):
            assert joined.shifts is None
        else:
            assert joined.shifts.tolist() == shifts
        assert joined.counts(sum(sizes)).tolist() == [first.count(a) + second.count(a) for a in range(sum(sizes))]
        assert slots_for(joined.counts()) == max(slots_for(part.counts()) for part in parts)


@pytest.mark.parametrize(
    ("counts", "step", "slots"), [([0], 1, 1), ([], 8, 8), ([3, 5], 1, 5), ([8], 8, 8), ([9], 8, 16)]
)
def test_slots_for_the_busiest_atom(counts: list[int], step: int, slots: int) -> None:
    assert slots_for(np.array(counts, int), step) == slots


def test_no_structures() -> None:
    with pytest.raises(StructureError, match="No structures"):
        graph_inputs([], CUTOFF)
