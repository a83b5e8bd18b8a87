"""A choice of structures that are uncertain and different from each other, from the output of a screening."""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from jaxtyping import Float64, Int64

from painn_deploy.export.errors import DatasetError
from painn_deploy.export.files import write_output
from painn_deploy.export.progress import Tell, counting, prefixed, silent
from painn_deploy.runtime.familiarity import surroundings
from painn_deploy.runtime.screening.carrying import free
from painn_deploy.runtime.screening.labels import OURS
from painn_deploy.runtime.screening.sinks import SINKS
from painn_deploy.runtime.screening.sources import open_source
from painn_deploy.runtime.uncertainty.scale import NAMES, RATIO

__all__ = ["Selection", "select"]

CANDIDATES = 10
"""Of each structure that is chosen, the most uncertain ones that it is chosen from."""

CHUNK_ROWS = 512

SAME = 1e-6
"""Distance of surroundings below which two atoms are alike: rounding."""

INDEX = "selected_row"
"""Key of `info`: index of the row that a chosen structure was."""


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        rows: indices in the file, in the order of choice.
        candidates: structures that they were chosen from.
    """

    rows: list[int]
    candidates: int


def select(screened: Path, count: int, cutoff: float, output: Path, tell: Tell = silent) -> Selection:
    """Choose the structures of a screening that are most worth a label, and write them without the engine's results.

    Of the most uncertain ones, the next is that with the largest product of its uncertainty and of how unlike its atoms
    are to all atoms that were chosen before: the mean distance of their surroundings to the nearest chosen ones of
    their element. (Farthest-point sampling, Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5, weighted by uncertainty.)

    Args:
        screened: output of `painn_deploy.runtime.screening.screen`.
        count: how many to choose; fewer where no more are different.
        cutoff: of the student, Å.
        output: extended XYZ to write, in the order of choice; `info["selected_row"]` is the index of the row.
        tell: called with a line about each step.

    Raises:
        DatasetError: the file cannot be read, or no row of it says how uncertain it is.
        OutputError: the file cannot be written.
    """
    weights, indices, structures = _candidates(screened, CANDIDATES * count, tell)
    told = prefixed(tell, f"choosing of the {len(structures)} most uncertain: ")
    chosen = _chosen(weights, structures, count, cutoff, counting(told, min(count, len(structures))))
    made = [_unlabelled(structures[place], indices[place]) for place in chosen]
    write_output(output, SINKS["extxyz"].encoded(made, 0))
    return Selection([indices[place] for place in chosen], len(structures))


def _candidates(
    screened: Path, most: int, tell: Tell
) -> tuple[Float64[np.ndarray, " candidates"], list[int], list[Atoms]]:
    """Uncertainty, index and structure of the most uncertain rows, in falling order."""
    source = open_source(screened)
    scan = source.scan(CHUNK_ROWS)
    more, held = counting(tell, scan.rows), list[tuple[float, int, Atoms]]()
    for chunk in scan.chunks:
        for place, item in enumerate(source.read(chunk)):
            index = chunk.first + place
            weight = _uncertainty(item) if isinstance(item, Atoms) else None
            if weight is None or not isinstance(item, Atoms):
                continue
            entry = (weight, -index, item)  # of equals the first, and never a comparison of structures
            if len(held) < most:
                heapq.heappush(held, entry)
            elif entry[:2] > held[0][:2]:
                heapq.heapreplace(held, entry)
        more(chunk.count)
    if not held:
        raise DatasetError(
            f"No row of {screened} says how uncertain it is, so that none can be chosen. Screen it with a bundle that "
            "was exported with --training FRAMES, or of a committee."
        )
    held.sort(key=lambda entry: (-entry[0], -entry[1]))
    weights = np.array([weight for weight, _, _ in held])
    finite = weights[np.isfinite(weights)]
    weights[~np.isfinite(weights)] = CANDIDATES * (finite.max() if len(finite) else 1.0)  # an unknown element
    return weights, [-index for _, index, _ in held], [atoms for _, _, atoms in held]


def _uncertainty(atoms: Atoms) -> float | None:
    """What a row says: its ratio, or of a committee that has none the mean spread of its forces; None for nothing."""
    ratio = atoms.info.get(RATIO)
    if isinstance(ratio, float | int) and ratio > 0:
        return float(ratio)
    spread = atoms.arrays.get("forces_uncertainty")
    if spread is None or spread.dtype.kind != "f" or spread.ndim != 1 or not len(spread):
        return None
    mean = float(spread.mean())
    return mean if math.isfinite(mean) and mean > 0 else None


def _chosen(
    weights: Float64[np.ndarray, " candidates"],
    structures: Sequence[Atoms],
    count: int,
    cutoff: float,
    more: Callable[[int], None],
) -> list[int]:
    """Places of the chosen, in the order of choice."""
    features = surroundings(structures, cutoff)
    sizes = np.array([len(atoms) for atoms in structures])
    starts = np.cumsum(sizes) - sizes
    numbers: Int64[np.ndarray, " atoms"] = np.concatenate([atoms.numbers for atoms in structures]).astype(np.int64)
    squares: np.ndarray = (features**2).sum(1)  # the distance to nothing at all, before an element was chosen
    lengths, chosen, place = squares.copy(), [0], 0
    of_element = {int(z): np.flatnonzero(numbers == z) for z in np.unique(numbers)}
    known = {z: features[rows] for z, rows in of_element.items()}
    more(1)
    while len(chosen) < min(count, len(structures)):
        rows = np.arange(starts[place], starts[place] + sizes[place])
        for number in np.unique(numbers[rows]).tolist():
            ours, theirs = of_element[number], rows[numbers[rows] == number]
            found = lengths[ours, None] + lengths[theirs] - 2 * known[number] @ features[theirs].T
            squares[ours] = np.minimum(squares[ours], found.min(1))
        distances = np.sqrt(np.maximum(squares, 0.0))
        gains = weights * np.add.reduceat(distances, starts) / sizes
        gains[chosen] = 0.0
        place = int(gains.argmax())
        if not np.maximum.reduceat(distances, starts)[place] > SAME:
            break
        chosen.append(place)
        more(1)
    return chosen


def _unlabelled(atoms: Atoms, index: int) -> Atoms:
    """A structure without the engine's energies and forces, which nobody must train on, with its uncertainties."""
    row = atoms.copy()
    row.calc = None
    row.info = {key: value for key, value in atoms.info.items() if key in NAMES or key not in OURS}
    if INDEX in row.info:  # of an earlier choice
        row.info[free(f"input_{INDEX}", row.info)] = row.info.pop(INDEX)
    row.info[INDEX] = index
    return row
