"""How far a structure is from those that a bundle was judged on, by the surroundings of its atoms.

A force field answers for what is like the structures that its errors were measured on. The surroundings of an atom are
its element and, for every element, a histogram of how far away its neighbours are: so a larger molecule of familiar
groups is near, and an unknown element, a broken bond or a melt is far. Angles are seen by the distances of second
neighbours. What counts as near is measured on the judged structures themselves.
"""

import base64
import binascii
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Bool, Float64, Int64, UInt8

from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import BundleError, StructureError
from painn_deploy.export.manifest import VALIDATION
from painn_deploy.runtime.neighbours import find_pairs
from painn_deploy.runtime.structures import check_structure

__all__ = ["JUDGED_ON", "Judged", "far_structures", "surroundings"]

JUDGED_ON = "judged_on"
"""Key of validation.json."""

REACH = 5.0
"""Å, furthest neighbours that are looked at, where the cutoff of the student is longer."""

TAPER = 1.0
"""Å before the reach, within which neighbours lose their weight."""

BINS, SHORTEST = 8, 0.5
"""Of a histogram, evenly over the logarithm of the distance, and its start, Å; more would see more of plain warmth."""

FALL = 2.0
"""Power of the distance, Å, by which a neighbour's weight falls: bonds count for more than what lies around."""

STEPS = 80.0
"""Of a unit of a histogram, in which it is stored as a byte."""

MOST = 64
"""Surroundings of an element that are kept."""

MOST_SEEN = 20_000
"""Surroundings of an element that are looked at when some are chosen; of more, evenly spaced ones."""

JOLT, COPIES, JOLTED = 0.05, 20, 500
"""Å by which each coordinate is perturbed, about as warmth does; most copies of one structure, and of a set."""

ENOUGH = 10
"""Frames of one composition that show its motion, and compositions that show how the set goes on to others."""

NARROWER = 0.9
"""Of the shortest distance judged or perturbed, down to which others are near: one stretched H2 must not forbid H2."""

COMMON = 0.9
"""Of the compositions, how many are near when they are left out; some are like no other, as diamond among molecules."""

MARGIN = 1.4
"""By which a limit exceeds the distances of what was left out: later frames are a little further away than these."""

Features = Float64[np.ndarray, "atoms features"]


@dataclass(frozen=True)
class Judged:
    """Summary of the structures that a bundle was judged on.

    Attributes:
        reach: Å, within which neighbours are looked at.
        elements: atomic numbers that occur, ascending.
        surroundings: of each element up to `MOST` histograms of atoms far from one another, in `STEPS`.
        limits: of each element, distance to the nearest of its surroundings up to which an atom is near.
        closest: Å, of each two elements, below which no pair is near.
    """

    reach: float
    elements: tuple[int, ...]
    surroundings: tuple[UInt8[np.ndarray, "_ features"], ...]
    limits: tuple[float, ...]
    closest: Float64[np.ndarray, "elements elements"]

    @classmethod
    def of(cls, structures: Sequence[Atoms], cutoff: float) -> "Judged":
        """Summarise structures.

        A limit is the largest of: the distance of any judged atom; of atoms of slightly perturbed structures, where a
        composition was judged in fewer than `ENOUGH` frames; and, with a margin, of frames when a tenth of them is left
        out, and of compositions when a tenth of those is.

        Args:
            structures: at least one.
            cutoff: of the student, Å.

        Raises:
            StructureError: there is no structure, or one that no force field can answer for.
        """
        if not structures:
            raise StructureError("A bundle is judged on one structure at least.")
        reach = min(float(cutoff), REACH)
        elements = tuple(sorted({int(z) for atoms in structures for z in atoms.numbers}))
        rng, copies = np.random.default_rng(0), min(COPIES, max(1, JOLTED // len(structures)))
        seen = _Seen.of(structures, elements, reach)
        jolted = _Seen.of([_jolted(atoms, rng) for atoms in structures for _ in range(copies)], elements, reach)
        formulas = [atoms.get_chemical_formula() for atoms in structures]
        parts = [
            _element(seen.only(seen.numbers == z), jolted.only(jolted.numbers == z), formulas, copies) for z in elements
        ]
        closest = NARROWER * np.minimum(np.minimum(seen.closest, jolted.closest), reach - TAPER)
        surroundings, limits = zip(*parts, strict=True)
        return cls(reach, elements, surroundings, limits, np.floor(1e4 * closest) / 1e4)

    def far(self, atoms: Atoms) -> str:
        """Say what of a structure is unlike anything judged; empty where nothing is.

        Raises:
            StructureError: no force field can answer for it.
        """
        atoms = check_structure(atoms)
        if unknown := sorted(set(atoms.numbers.tolist()) - set(self.elements)):
            return f"it holds {', '.join(chemical_symbols[z] for z in unknown)}, which no judged structure does"
        seen = _Seen.of([atoms], self.elements, self.reach)
        if crowded := self._crowded(atoms, seen.closest):
            return crowded
        kinds, distances = np.searchsorted(self.elements, atoms.numbers), np.zeros(len(atoms))
        for kind in np.unique(kinds):
            rows = kinds == kind
            distances[rows] = _nearest(seen.features[rows], self.surroundings[kind])
        limits = np.maximum(np.array(self.limits), 1e-9)[kinds]
        worst = int((distances / limits).argmax())
        if distances[worst] <= limits[worst]:
            return ""
        return (
            f"the surroundings of atom {worst} ({atoms.symbols[worst]}) are unlike all judged ones: "
            f"{distances[worst]:.2f} from the nearest, where up to {limits[worst]:.2f} is near"
        )

    def _crowded(self, atoms: Atoms, closest: Float64[np.ndarray, "elements elements"]) -> str:
        """Name two atoms that are closer than judged ones of their elements are."""
        lacking = self.closest - closest
        one, other = np.unravel_index(int(lacking.argmax()), lacking.shape)
        if lacking[one, other] <= 0:
            return ""
        pairs, kinds = find_pairs(atoms, self.reach), np.searchsorted(self.elements, atoms.numbers)
        first, second = pairs.pairs.first, pairs.pairs.second
        both = np.sort(np.stack([kinds[first], kinds[second]], -1)) == sorted((one, other))
        pair = int(np.where(both.all(-1), pairs.distances, np.inf).argmin())
        names = [f"{index} ({atoms.symbols[index]})" for index in (int(first[pair]), int(second[pair]))]
        return (
            f"atoms {names[0]} and {names[1]} are {closest[one, other]:.2f} Å apart, and nothing below "
            f"{self.closest[one, other]:.2f} Å was judged for these elements"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; surroundings are bytes in base 64."""
        symbols = [chemical_symbols[z] for z in self.elements]
        pairs = combinations_with_replacement(range(len(symbols)), 2)
        return {
            "reach": self.reach,
            "limits": dict(zip(symbols, self.limits, strict=True)),
            "closest": {f"{symbols[i]}-{symbols[j]}": float(self.closest[i, j]) for i, j in pairs},
            "surroundings": {
                symbol: base64.b64encode(kept.tobytes()).decode()
                for symbol, kept in zip(symbols, self.surroundings, strict=True)
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Judged":
        """Read what `as_dict` made.

        Raises:
            BundleError: it is nothing that `as_dict` makes.
        """
        try:
            symbols = list(values["limits"])
            elements = tuple(atomic_numbers[symbol] for symbol in symbols)
            limits = tuple(float(values["limits"][symbol]) for symbol in symbols)
            features, reach = BINS * len(symbols), float(values["reach"])
            surroundings = tuple(
                np.frombuffer(base64.b64decode(values["surroundings"][symbol], validate=True), np.uint8).reshape(
                    -1, features
                )
                for symbol in symbols
            )
            closest = np.zeros((len(symbols), len(symbols)))
            for i, j in combinations_with_replacement(range(len(symbols)), 2):
                closest[i, j] = closest[j, i] = float(values["closest"][f"{symbols[i]}-{symbols[j]}"])
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, binascii.Error) as error:
            raise BundleError(f"{JUDGED_ON} of a bundle cannot be read ({error}). Export the bundle again.") from error
        sound = (
            np.isfinite([reach, *limits, *closest.ravel()]).all()
            and SHORTEST < reach <= REACH
            and all(map(len, surroundings))
        )
        if not (sound and symbols and elements[0] > 0 and list(elements) == sorted(elements)):
            raise BundleError(f"{JUDGED_ON} of a bundle holds values that make no sense. Export the bundle again.")
        return cls(reach, elements, surroundings, limits, closest)

    @classmethod
    def in_bundle(cls, bundle: Bundle) -> "Judged | None":
        """What a bundle was judged on; None where it does not say, as bundles of older versions.

        Raises:
            BundleError: it cannot be read.
        """
        if VALIDATION not in bundle.manifest.files:
            return None
        values = bundle.json(VALIDATION).get(JUDGED_ON, {})
        if not isinstance(values, dict):
            raise BundleError(f"{VALIDATION} of {bundle} holds values that make no sense. Export it again.")
        return cls.from_dict(values) if values else None


def far_structures(judged: Judged | None, structures: Sequence[Atoms]) -> list[tuple[int, str]]:
    """Index of each structure that is far from all judged ones, and what of it is.

    Args:
        judged: of the bundle; where it does not say what it was judged on, nothing is far.
        structures: to ask about.

    Raises:
        StructureError: no force field can answer for one of them.
    """
    if judged is None:
        return []
    return [(index, words) for index, atoms in enumerate(structures) if (words := judged.far(atoms))]


def surroundings(structures: Sequence[Atoms], cutoff: float) -> Features:
    """Histograms of the neighbours of every atom, whose Euclidean distance says how unlike two atoms of an element are.

    Args:
        structures: at least one.
        cutoff: Å, beyond which no neighbour counts.

    Raises:
        StructureError: no force field can answer for one of them.
    """
    elements = tuple(sorted({int(z) for atoms in structures for z in atoms.numbers}))
    return _Seen.of(structures, elements, min(float(cutoff), REACH)).features


class _Seen(NamedTuple):
    """Surroundings of all atoms of some structures: histograms, elements, their structures, and closest distances."""

    features: Features
    numbers: Int64[np.ndarray, " atoms"]
    owners: Int64[np.ndarray, " atoms"]
    closest: Float64[np.ndarray, "elements elements"]

    @classmethod
    def of(cls, structures: Sequence[Atoms], elements: tuple[int, ...], reach: float) -> "_Seen":
        closest = np.full((len(elements), len(elements)), np.inf)
        structures = [check_structure(atoms) for atoms in structures]
        features = [_histograms(atoms, elements, reach, closest) for atoms in structures]
        sizes = [len(atoms) for atoms in structures]
        numbers = np.concatenate([atoms.numbers for atoms in structures]).astype(np.int64)
        return cls(np.concatenate(features), numbers, np.repeat(np.arange(len(sizes)), sizes), closest)

    def only(self, chosen: Bool[np.ndarray, " atoms"]) -> "_Seen":
        rows = np.flatnonzero(chosen)
        rows = rows[:: max(1, -(-len(rows) // MOST_SEEN))]
        return _Seen(self.features[rows], self.numbers[rows], self.owners[rows], self.closest)


def _histograms(
    atoms: Atoms, elements: tuple[int, ...], reach: float, closest: Float64[np.ndarray, "elements elements"]
) -> Features:
    """Roots of histograms of neighbours of each element, r^-`FALL` for each; lowers `closest` to the distances here.

    With the root, the first neighbour at some distance counts more than one more among many, so that a crowd of distant
    neighbours does not drown a bond. Each neighbour is spread over three bins by a quadratic B-spline, so that the
    histogram moves smoothly with the atoms.
    """
    found = find_pairs(atoms, reach)
    kinds = np.searchsorted(elements, atoms.numbers)
    first, second, r = found.pairs.first, found.pairs.second, found.distances
    np.minimum.at(closest, (kinds[first], kinds[second]), r)
    np.minimum(closest, closest.T, out=closest)
    weights = 0.5 * (1 + np.cos(np.pi * np.clip((r - reach) / TAPER + 1, 0, 1))) / np.maximum(r, SHORTEST) ** FALL
    place = np.log(np.maximum(r, SHORTEST) / SHORTEST) * ((BINS - 1) / np.log(reach / SHORTEST))
    middle = np.rint(place).astype(np.int64)
    aside = place - middle
    shape = len(atoms), len(elements), BINS
    total = np.zeros(np.prod(shape))
    ends = (first * shape[1] + kinds[second]) * BINS, (second * shape[1] + kinds[first]) * BINS
    for step, share in ((-1, 0.5 * (0.5 - aside) ** 2), (0, 0.75 - aside**2), (1, 0.5 * (0.5 + aside) ** 2)):
        bins = np.clip(middle + step, 0, BINS - 1)
        for end in ends:
            total += np.bincount(end + bins, weights * share, len(total))
    return np.sqrt(total).reshape(shape[0], -1)


def _jolted(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    moved = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    moved.positions += rng.normal(0, JOLT, moved.positions.shape)
    return moved


def _nearest(features: Features, kept: UInt8[np.ndarray, "kept features"]) -> Float64[np.ndarray, " atoms"]:
    """Distance of each atom's surroundings to the nearest of those that are kept."""
    points = kept / STEPS
    squares = (features**2).sum(1)[:, None] + (points**2).sum(1) - 2 * features @ points.T
    distances: np.ndarray = np.sqrt(np.maximum(squares.min(1), 0.0))
    return distances


def _chosen(features: Features) -> UInt8[np.ndarray, "kept features"]:
    """Surroundings far from one another, by farthest-point sampling (Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5).

    The first is the farthest from the mean.
    """
    index = int(((features - features.mean(0)) ** 2).sum(1).argmax())
    squares: np.ndarray = np.full(len(features), np.inf)
    chosen: list[int] = []
    while len(chosen) < MOST:
        chosen.append(index)
        squares = np.minimum(squares, ((features - features[index]) ** 2).sum(1))
        index = int(squares.argmax())
        if squares[index] < STEPS**-2:
            break
    return np.rint(STEPS * features[chosen]).clip(0, 255).astype(np.uint8)


def _element(
    seen: _Seen, jolted: _Seen, formulas: Sequence[str], copies: int
) -> tuple[UInt8[np.ndarray, "kept features"], float]:
    """Surroundings of one element that are kept, and the distance from them up to which others are near."""
    kept, frames = _chosen(seen.features), Counter(formulas)
    few = np.array([frames[formula] < ENOUGH for formula in formulas])
    beyond = [_nearest(seen.features, kept).max(), *_nearest(jolted.features[few[jolted.owners // copies]], kept)]
    left_out = _left_out(seen, seen.owners)
    beyond += list(MARGIN * left_out[~few[seen.owners]])
    if len(frames) >= ENOUGH:
        order = {formula: rank for rank, formula in enumerate(frames)}
        groups = np.array([order[formula] for formula in formulas])[seen.owners]
        left_out = _left_out(seen, groups)
        worst = [left_out[groups == group].max() for group in np.unique(groups)]
        beyond.append(MARGIN * float(np.quantile(worst, COMMON)))
    return kept, float(np.ceil(1e4 * max(beyond)) / 1e4)


def _left_out(seen: _Seen, groups: Int64[np.ndarray, " atoms"]) -> Float64[np.ndarray, " atoms"]:
    """Distance of each atom to the nearest that are kept when a tenth of the groups, its own among them, is left out.

    Zero where nothing else is there.
    """
    distances = np.zeros(len(groups))
    turns = np.unique(groups, return_inverse=True)[1] % ENOUGH
    for turn in np.unique(turns):
        out = turns == turn
        if not out.all():
            distances[out] = _nearest(seen.features[out], _chosen(seen.features[~out]))
    return distances
