"""Hostile structures: pure functions of a seed and a number.

`hostile(seed, number)` is the same structure always, so that one that fails can be made again. Each says what must
become of it: `sound` True, it is odd and must be answered; False, no force field can answer for it; None, either, as
long as the answer is right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, graphene, molecule
from ase.constraints import FixAtoms

__all__ = ["KINDS", "Hostile", "hostile"]

NAMES = ("H2O", "CH4", "NH3", "CH3CH2OH", "CO2", "CH3OH", "C2H6", "C6H6")


@dataclass(frozen=True)
class Hostile:
    """A structure that someone might bring.

    Attributes:
        kind: what is odd about it.
        atoms: the structure.
        sound: True where it must be answered, False where it must be refused, None where either is right.
    """

    kind: str
    atoms: Atoms
    sound: bool | None


Made = tuple[Atoms, bool | None]
Kind = Callable[[np.random.Generator], Made]

KINDS: dict[str, Kind] = {}


def _kind(function: Kind) -> Kind:
    KINDS[function.__name__.strip("_").replace("_", " ")] = function
    return function


def hostile(seed: int, number: int) -> Hostile:
    """One of them; every kind comes in turn.

    Args:
        seed: of all.
        number: of this one.
    """
    name = list(KINDS)[number % len(KINDS)]
    rng = np.random.default_rng([seed, number])
    with np.errstate(all="ignore"):
        atoms, sound = KINDS[name](rng)
    return Hostile(name, atoms, sound)


class Labelled(Atoms):  # type: ignore[misc]
    """A subclass, as other packages have them."""


def _pick(rng: np.random.Generator, options: Any) -> Any:
    """One of a list of any things, which numpy would make an array of."""
    return options[int(rng.integers(len(options)))]


def _molecule(rng: np.random.Generator) -> Atoms:
    atoms = molecule(_pick(rng, NAMES))
    atoms.set_initial_magnetic_moments(None)
    atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return atoms


def _crystal(rng: np.random.Generator) -> Atoms:
    atoms = bulk("C", "diamond", a=3.57, cubic=bool(rng.integers(2)))
    atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return atoms


def _slab(rng: np.random.Generator) -> Atoms:
    atoms = graphene(a=2.46, size=(2, 2, 1), vacuum=5.0)
    atoms.pbc = True, True, False
    atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return atoms


def _boxed(rng: np.random.Generator) -> Atoms:
    atoms = _molecule(rng)
    atoms.set_cell(rng.uniform(8, 14, 3))
    atoms.pbc = rng.integers(0, 2, 3).astype(bool)
    return atoms


def _any(rng: np.random.Generator) -> Atoms:
    return _pick(rng, (_molecule, _crystal, _slab, _boxed))(rng)


def _put(atoms: Atoms, name: str, value: Any) -> Atoms:
    """Past ASE's own checks, as code that fills arrays does."""
    atoms.arrays[name] = value
    return atoms


# --- odd, and sound


@_kind
def _float32_positions(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    return _put(atoms, "positions", atoms.positions.astype(np.float32)), True


@_kind
def _numbers_of_other_whole_types(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    types = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64", ">i4", ">i8")
    return _put(atoms, "numbers", atoms.numbers.astype(_pick(rng, types))), True


@_kind
def _memory_order(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    positions = atoms.positions
    padded: np.ndarray = np.zeros((len(atoms), 6))
    padded[:, ::2] = positions
    fixed = positions.copy()
    fixed.flags.writeable = False
    return _put(atoms, "positions", _pick(rng, (np.asfortranarray(positions), padded[:, ::2], fixed))), True


@_kind
def _big_endian(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    return _put(atoms, "positions", atoms.positions.astype(">f8")), True


@_kind
def _left_handed(rng: np.random.Generator) -> Made:
    atoms = _crystal(rng)
    order = [1, 0, 2]
    atoms.set_cell(atoms.cell.array[order] if rng.integers(2) else atoms.cell.array * [[1], [1], [-1]])
    return atoms, True


@_kind
def _unwrapped(rng: np.random.Generator) -> Made:
    atoms = _pick(rng, (_crystal, _slab))(rng)
    cells = rng.integers(-(10 ** int(rng.integers(1, 6))), 10 ** int(rng.integers(1, 6)), (len(atoms), 3))
    atoms.positions += (cells * atoms.pbc) @ atoms.cell.array
    return atoms, True


@_kind
def _left_handed_and_unwrapped(rng: np.random.Generator) -> Made:
    atoms, _ = _left_handed(rng)
    atoms.positions += rng.integers(-50, 50, (len(atoms), 3)) @ atoms.cell.array
    return atoms, True


@_kind
def _equivalent_cell(rng: np.random.Generator) -> Made:
    """Another basis of the same lattice, skewed."""
    atoms = _crystal(rng)
    basis = np.eye(3)
    for _ in range(int(rng.integers(1, 4))):
        one, other = rng.permutation(3)[:2]
        basis[one] += rng.integers(-2, 3) * basis[other]
    atoms.set_cell(basis @ atoms.cell.array)
    return atoms, True


@_kind
def _far_from_the_origin(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    atoms.positions += rng.normal(0, 10.0 ** rng.uniform(2, 6), 3)
    return atoms, True


@_kind
def _far_apart(rng: np.random.Generator) -> Made:
    atoms, other = _molecule(rng), _molecule(rng)
    other.positions += rng.normal(0, 1, 3) * 10.0 ** rng.uniform(3, 6)
    return atoms + other, True


@_kind
def _tall_slab(rng: np.random.Generator) -> Made:
    """A length along a direction that does not repeat means nothing."""
    atoms = _slab(rng)
    cell = atoms.cell.array.copy()
    cell[2] = [0, 0, 10.0 ** rng.uniform(1, 6)]
    atoms.set_cell(cell)
    return atoms, True


@_kind
def _large_cell(rng: np.random.Generator) -> Made:
    atoms = _molecule(rng)
    atoms.set_cell(10.0 ** rng.uniform(1, 4, 3))
    atoms.pbc = rng.integers(0, 2, 3).astype(bool)
    return atoms, True


@_kind
def _subclass(rng: np.random.Generator) -> Made:
    return Labelled(_any(rng)), True


@_kind
def _much_else_beside(rng: np.random.Generator) -> Made:
    """What a force field has no use for."""
    atoms = _any(rng)
    atoms.info |= {"": 1, "energy": "none", "x" * 300: float("nan"), "list": [1, "a", None]}
    atoms.set_constraint(FixAtoms([0]))
    atoms.arrays["momenta"] = np.full((len(atoms), 3), np.nan)
    atoms.arrays["forces"] = np.array([None] * len(atoms), dtype=object)
    atoms.set_initial_charges(rng.normal(size=len(atoms)))
    return atoms, True


@_kind
def _without_a_cell_that_repeats(rng: np.random.Generator) -> Made:
    atoms = _molecule(rng)
    atoms.cell.array = _pick(rng, (np.zeros((3, 3)), np.ones((3, 3)), np.eye(3) * 1e-9, np.eye(3) * 1e30))
    return atoms, True


@_kind
def _single_atoms(rng: np.random.Generator) -> Made:
    atoms = Atoms([_pick(rng, (1, 6, 7, 8))], [rng.normal(0, 10, 3)])
    if rng.integers(2):
        atoms.set_cell(rng.uniform(2.0, 9.0, 3))
        atoms.pbc = rng.integers(0, 2, 3).astype(bool)
    return atoms, True


# --- nothing that has an energy


@_kind
def _not_finite_positions(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    atoms.positions[rng.integers(len(atoms)), rng.integers(3)] = _pick(rng, (np.nan, np.inf, -np.inf))
    return atoms, False


@_kind
def _no_such_element(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    numbers = atoms.numbers.astype(np.int64)
    numbers[rng.integers(len(atoms))] = _pick(rng, (0, -1, 119, 200, 2**31, 2**40, -(2**40), 2**62))
    return _put(atoms, "numbers", numbers), False


@_kind
def _no_such_element_in_another_type(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    types = {
        "int8": (0, -1, 119, 127),
        "uint8": (0, 119, 255),
        "int32": (0, -1, 2**30),
        "uint64": (0, 2**63, 2**64 - 1),
    }
    name = _pick(rng, list(types))
    numbers = atoms.numbers.astype(name)
    numbers[rng.integers(len(atoms))] = _pick(rng, types[name])
    return _put(atoms, "numbers", numbers), False


@_kind
def _foreign_element(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    atoms.numbers[rng.integers(len(atoms))] = _pick(rng, (26, 79, 92, 118))
    return atoms, False


@_kind
def _empty(rng: np.random.Generator) -> Made:
    atoms = Atoms(cell=_pick(rng, (None, [5, 5, 5])), pbc=bool(rng.integers(2)))
    return (Labelled(atoms) if rng.integers(2) else atoms), False


@_kind
def _on_one_spot(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    copies = atoms[[int(rng.integers(len(atoms)))] * int(rng.integers(1, 4))]
    copies.positions += (rng.integers(-2, 3, 3) * atoms.pbc) @ atoms.cell.array + rng.normal(0, 1e-6, 3)
    return atoms + copies, False


@_kind
def _flat_cell(rng: np.random.Generator) -> Made:
    atoms = _crystal(rng)
    cell = atoms.cell.array.copy()
    cell[2] = _pick(rng, (cell[0], cell[0] - 2 * cell[1], 0 * cell[0], cell[0] * (1 + 1e-12)))
    atoms.cell.array = cell
    return atoms, False


@_kind
def _not_finite_cell(rng: np.random.Generator) -> Made:
    atoms = _pick(rng, (_crystal, _slab))(rng)
    cell = atoms.cell.array.copy()
    cell[rng.integers(2), rng.integers(3)] = _pick(rng, (np.nan, np.inf))
    atoms.cell.array = cell
    return atoms, False


@_kind
def _wrong_lengths(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    more = np.concatenate([atoms.positions, rng.normal(0, 3, (2, 3))])
    fewer = atoms.positions[:-1] if len(atoms) > 1 else np.zeros((0, 3))
    return _put(atoms, "positions", _pick(rng, (more, fewer))), False


@_kind
def _wrong_shapes(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    p = atoms.positions
    shapes = (p[:, :2], np.column_stack([p, p[:, 0]]), p.ravel(), p[:, :, None], p[None], p.T if len(p) != 3 else p[0])
    return _put(atoms, "positions", np.ascontiguousarray(_pick(rng, shapes))), False


@_kind
def _wrong_shapes_of_numbers(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    z = atoms.numbers
    return _put(atoms, "numbers", _pick(rng, (z[:, None], z[None], np.stack([z, z]), np.array(6)))), False


@_kind
def _masked(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    name = _pick(rng, ("positions", "numbers"))
    mask: np.ndarray = np.zeros(atoms.arrays[name].shape, bool)
    mask.flat[int(rng.integers(mask.size))] = True
    return _put(atoms, name, np.ma.array(atoms.arrays[name], mask=mask)), False


@_kind
def _of_foreign_types(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    shape = atoms.positions.shape
    structured = np.zeros(len(atoms), dtype=[("x", float), ("y", float), ("z", float)])
    days = np.full(shape, "2024-01-01", dtype="datetime64[D]")
    spans = np.ones(shape, dtype="timedelta64[s]")
    complex_ones = atoms.positions + 1j * rng.normal(size=shape)
    texts = np.full(shape, "here")
    nothing = np.full(shape, None, dtype=object)
    raw = np.full(shape, b"\xff")
    return _put(atoms, "positions", _pick(rng, (structured, days, spans, complex_ones, texts, nothing, raw))), False


@_kind
def _numbers_of_foreign_types(rng: np.random.Generator) -> Made:
    atoms, count = _any(rng), 0
    count = len(atoms)
    symbols = np.full(count, "C")
    halves = atoms.numbers + 0.5
    nothing = np.full(count, None, dtype=object)
    lists = np.empty(count, dtype=object)
    lists[:] = [[6]] * count
    complex_ones = atoms.numbers + 1j
    nans = np.full(count, np.nan)
    return _put(atoms, "numbers", _pick(rng, (symbols, halves, nothing, lists, complex_ones, nans))), False


# --- either, as long as it is right


@_kind
def _random_cell(rng: np.random.Generator) -> Made:
    """Orthogonal or sheared, of any length, with any mix of directions."""
    atoms = _molecule(rng)
    cell = np.diag(10.0 ** rng.uniform(-3, 14, 3))
    if rng.integers(2):
        cell = cell + np.tril(rng.normal(size=(3, 3)), -1) * np.diag(cell) * 10.0 ** rng.uniform(-2, 3)
    atoms.cell.array = cell if rng.integers(2) else cell[rng.permutation(3)]
    atoms.pbc = rng.integers(0, 2, 3).astype(bool)
    return atoms, None


@_kind
def _beyond_reason(rng: np.random.Generator) -> Made:
    """Lengths where float64 itself ends."""
    atoms = _molecule(rng)
    with np.errstate(all="ignore"):
        atoms.cell.array = np.diag(
            10.0 ** rng.choice([-320, -170, -100, -30, 0.9, 15, 30, 77, 100, 154, 155, 200, 308], 3)
        )
    if rng.integers(2):
        atoms.cell.array[1, 0] = atoms.cell.array[0, 0] * rng.uniform(-2, 2)
    atoms.pbc = rng.integers(0, 2, 3).astype(bool)
    return atoms, None


@_kind
def _slab_in_a_vast_cell(rng: np.random.Generator) -> Made:
    """Two directions, or one, of a length at which a grid of cells is long and thin."""
    atoms = _molecule(rng)
    atoms.set_cell(10.0 ** rng.uniform(4, 12, 3))
    atoms.pbc = _pick(rng, ([1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]))
    return atoms, None


@_kind
def _small_cell(rng: np.random.Generator) -> Made:
    atoms = Atoms("C", cell=rng.uniform(0.01, 2.0, 3), pbc=rng.integers(0, 2, 3).astype(bool))
    return atoms, None


@_kind
def _random_positions(rng: np.random.Generator) -> Made:
    """Tiny to huge."""
    atoms = _any(rng)
    atoms.positions[:] = rng.normal(size=atoms.positions.shape) * 10.0 ** rng.uniform(-5, 3)
    return atoms, None


@_kind
def _out_of_float64_s_sight(rng: np.random.Generator) -> Made:
    """Where positions are rounded to more than chemistry bears, and beyond."""
    atoms = _any(rng)
    with np.errstate(all="ignore"):
        atoms.positions += rng.normal(size=3) * 10.0 ** _pick(
            rng, (8, 9, 10, 11, 12, 13, 14, 15, 16, 20, 100, 300, 307)
        )
    return atoms, None


@_kind
def _one_atom_far_out(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    atoms.positions[-1] += rng.normal(size=3) * 10.0 ** rng.uniform(6, 18)
    return atoms, None


@_kind
def _clump(rng: np.random.Generator) -> Made:
    """Many atoms in little room: a bound on the size of the matrix, before it is made."""
    count = int(10 ** rng.uniform(1, 3.5))
    atoms = Atoms(rng.choice([1, 6, 7, 8], count), rng.uniform(0, 10.0 ** rng.uniform(0.3, 1.2), (count, 3)))
    if rng.integers(2):
        atoms.set_cell(np.ptp(atoms.positions, axis=0) + 1.0)
        atoms.pbc = rng.integers(0, 2, 3).astype(bool)
    return atoms, None


@_kind
def _many_atoms(rng: np.random.Generator) -> Made:
    """Sparse, in number alone."""
    count = int(10 ** rng.uniform(2, 3.3))
    side = int(np.ceil(count ** (1 / 3)))
    sites = np.array(list(np.ndindex(side, side, side)))[:count] * rng.uniform(2.0, 12.0)
    return Atoms(rng.choice([1, 6, 7, 8], count), sites + rng.normal(0, 0.1, sites.shape)), None


@_kind
def _close_pairs(rng: np.random.Generator) -> Made:
    """From what is one spot to what is chemistry."""
    gap = 10.0 ** rng.uniform(-12, 0)
    return Atoms("CO", [[0, 0, 0], [0, 0, gap]]), None


@_kind
def _around_the_cutoff(rng: np.random.Generator) -> Made:
    gap = 5.0 + _pick(rng, (0.0, 1e-16, -1e-16, 1e-12, -1e-12, 1e-7, -1e-7, 1e-3, -1e-3))
    return Atoms("CO", [[0, 0, 0], [0, 0, np.nextafter(gap, rng.choice([0.0, 10.0]))]]), None


@_kind
def _float16_positions(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    return _put(atoms, "positions", atoms.positions.astype(np.float16)), None


@_kind
def _positions_that_can_be_read(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    p = atoms.positions
    whole = np.rint(2 * p).astype(_pick(rng, ("int64", "int16", "uint8", "bool")))
    kinds = (p.astype(object), p.astype(np.longdouble), p.astype(complex), p.astype("U32"), p.astype("S32"), whole)
    return _put(atoms, "positions", _pick(rng, (*kinds, np.ma.array(p)))), None


@_kind
def _numbers_that_can_be_read(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    z = atoms.numbers
    kinds = (z.astype(float), z.astype(np.float16), z.astype(object), z.astype(bool), z.astype("U3"), z.astype(complex))
    return _put(atoms, "numbers", _pick(rng, (*kinds, np.ma.array(z)))), None


@_kind
def _odd_cells(rng: np.random.Generator) -> Made:
    atoms = _pick(rng, (_crystal, _slab, _molecule))(rng)
    cell = atoms.cell.array
    kinds = (
        cell.astype(np.float32),
        cell.astype(np.float16),
        cell.astype(object),
        cell.astype("U32"),
        cell[:2],
        cell[0],
    )
    more = (np.concatenate([cell, cell]), cell + 1j, cell.astype(complex), np.ma.array(cell, mask=cell > 2), cell[None])
    atoms.cell.array = _pick(
        rng, (*kinds, *more, np.asfortranarray(cell), cell.tolist(), None, np.rint(cell).astype(int))
    )
    return atoms, None


@_kind
def _unused_vectors(rng: np.random.Generator) -> Made:
    """What a direction that does not repeat holds."""
    atoms = _slab(rng)
    cell = atoms.cell.array.copy()
    odd = ([np.nan] * 3, [np.inf, 0, 0], [0, 0, 0], [1e-300, 0, 0], [0, 0, 1e300], cell[0], [0, 0, -7.0])
    cell[2] = _pick(rng, odd)
    atoms.cell.array = cell
    return atoms, None


@_kind
def _odd_pbc(rng: np.random.Generator) -> Made:
    atoms = _pick(rng, (_crystal, _boxed))(rng)
    flags = (
        np.array([1, 0, 1]),
        np.array([1.0, 0.0, 0.0]),
        np.array([True, False]),
        np.array(True),
        [True, False, True],
    )
    more = (np.ones(4, bool), np.array(["T", "F", ""]), np.array([None, 1, 0], dtype=object), np.array([np.nan, 1, 0]))
    atoms._pbc = _pick(rng, (*flags, *more, np.array([2, -1, 0], np.int8), np.ones((3, 1), bool)))
    return atoms, None


@_kind
def _no_arrays(rng: np.random.Generator) -> Made:
    atoms = _any(rng)
    name = _pick(rng, ("positions", "numbers"))
    if rng.integers(2):
        del atoms.arrays[name]
    else:
        atoms.arrays[name] = _pick(rng, (None, atoms.arrays[name].tolist(), 5, "positions"))
    return atoms, None
