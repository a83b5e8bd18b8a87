"""Neighbours of a large structure found on the device, so that a search uploads atoms sorted into boxes."""

import ctypes
from collections.abc import Mapping

import numpy as np

from painn_deploy.engines.contract import check_no_weights
from painn_deploy.engines.gpu.arena import Block, Column
from painn_deploy.engines.gpu.device_positions import DeviceKernel
from painn_deploy.engines.session import Boxes, Nearest
from painn_deploy.export.fields import PAIR_INPUTS

__all__ = [
    "COUNTED",
    "KERNEL",
    "NAMES",
    "OF_ATOMS",
    "FindingKernel",
    "PairingKernel",
    "box_columns",
    "counted_columns",
    "fill_atoms",
    "fill_boxes",
    "nearest_of",
    "number_pairs",
    "numbered_columns",
]

NAMES = ("find_neighbours", "pair_neighbours")
KERNEL = r"""
// One thread a row. Looks through the boxes around an atom's own, always in the same order, and through the atoms of
// each, which lie in the order of their indices, so that slots are in the same order whatever the order of threads.
// Without slots it only counts; with them it writes what it counted before.
//
// d = (r_j - r_i) + S.cell in float64, as the host forms it, S.cell summed in the order of the cell's vectors; a
// neighbour has |d| < reach. Seen from the other end d is its exact negative, so that both ends agree. Compiled without
// fused multiply-add, so that host and device agree to the bit.
//
// `shape` holds the numbers of boxes along three directions, how many boxes away a neighbour may be, and which
// directions repeat. `whole` are the cells that atoms were moved by before they were put into boxes.
extern "C" __global__ void find_neighbours(
    const double* positions, const double* whole, const double* cell, const int* box, const int* order,
    const int* starts, const int* shape, double reach, int atoms, int rows, int slots, int* count, int* forward,
    int* closest, double* nearest, int* neighbours, double* shifts, unsigned char* stored)
{
    long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    int found = 0, first_of = 0, least_atom = -1;
    double least = 1e308 * 10.0;  // infinite
    if (row < atoms) {
        int nx = shape[0], ny = shape[1], nz = shape[2];
        int own = box[row], bx = own / (ny * nz), by = own / nz % ny, bz = own % nz;
        for (int dx = -shape[3]; dx <= shape[3]; ++dx) {
            int x = bx + dx, sx = x >= 0 ? x / nx : -((nx - 1 - x) / nx);
            if (sx != 0 && !shape[6]) continue;
            for (int dy = -shape[4]; dy <= shape[4]; ++dy) {
                int y = by + dy, sy = y >= 0 ? y / ny : -((ny - 1 - y) / ny);
                if (sy != 0 && !shape[7]) continue;
                for (int dz = -shape[5]; dz <= shape[5]; ++dz) {
                    int z = bz + dz, sz = z >= 0 ? z / nz : -((nz - 1 - z) / nz);
                    if (sz != 0 && !shape[8]) continue;
                    int there = ((x - sx * nx) * ny + (y - sy * ny)) * nz + (z - sz * nz);
                    for (int k = starts[there]; k < starts[there + 1]; ++k) {
                        int j = order[k];
                        if (j == row && sx == 0 && sy == 0 && sz == 0) continue;
                        double a = sx + (whole[3 * row] - whole[3 * (long long)j]);
                        double b = sy + (whole[3 * row + 1] - whole[3 * (long long)j + 1]);
                        double c = sz + (whole[3 * row + 2] - whole[3 * (long long)j + 2]);
                        double shift[3], squared = 0.0;
                        for (int axis = 0; axis < 3; ++axis) {
                            shift[axis] = (a * cell[axis] + b * cell[3 + axis]) + c * cell[6 + axis];
                            double d = (positions[3 * (long long)j + axis] - positions[3 * row + axis]) + shift[axis];
                            squared += d * d;
                        }
                        double distance = sqrt(squared);
                        if (!(distance < reach)) continue;
                        if (distance < least) { least = distance; least_atom = j; }
                        bool up = j > row || (j == row && (shift[0] > 0.0 || (shift[0] == 0.0 && (shift[1] > 0.0 ||
                            (shift[1] == 0.0 && shift[2] > 0.0)))));
                        first_of += up;
                        if (found < slots) {
                            long long slot = row * slots + found;
                            neighbours[slot] = j;
                            stored[slot] = up ? 2 : 1;  // 2: its number counts the pair
                            for (int axis = 0; axis < 3; ++axis) shifts[3 * slot + axis] = shift[axis];
                        }
                        ++found;
                    }
                }
            }
        }
    }
    count[row] = found;
    forward[row] = first_of;
    closest[row] = least_atom;
    nearest[row] = least;
    for (int k = found; k < slots; ++k) {
        long long slot = row * slots + k;
        neighbours[slot] = (int)row;
        stored[slot] = 0;
        for (int axis = 0; axis < 3; ++axis) shifts[3 * slot + axis] = 0.0;
    }
}

// One thread a slot, after the other kernel has written all of them: finds the same pair among the other atom's slots.
// Of two that lead to one atom the shift tells which; it is the exact negative.
//
// `pairs` and `pair_of_slot` are null for an engine that does not read them. Pairs are numbered row after row by the
// slots that count them, from `numbers[row]` on; `totals` holds how many there are, which is the padding's number, and
// a slot of padding.
extern "C" __global__ void pair_neighbours(
    const int* neighbours, const double* shifts, const unsigned char* stored, const int* count, const int* numbers,
    const int* totals, int rows, int slots, int entries, int* reverse, int* pairs, int* pair_of_slot)
{
    long long slot = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long all = (long long)rows * slots;
    if (slot < entries && slot >= totals[0]) pairs[slot] = totals[1];
    if (slot >= all) return;
    long long row = slot / slots, back = slot;
    if (stored[slot]) {
        long long j = neighbours[slot];
        for (long long other = j * slots; other < j * slots + count[j]; ++other)
            if (neighbours[other] == row && shifts[3 * other] == -shifts[3 * slot] &&
                shifts[3 * other + 1] == -shifts[3 * slot + 1] && shifts[3 * other + 2] == -shifts[3 * slot + 2])
                back = other;
    }
    reverse[slot] = (int)back;
    if (entries) {
        int number = totals[0];
        if (stored[slot]) {
            long long counting = stored[slot] == 2 ? slot : back, start = counting / slots * slots;
            number = numbers[counting / slots];
            for (long long before = start; before < counting; ++before) number += stored[before] == 2;
            if (counting == slot) pairs[number] = (int)slot;
        }
        pair_of_slot[slot % slots * rows + row] = number;
    }
}
"""

COUNTED = ("count", "forward", "closest", "nearest")
"""What is counted of each row, and comes down: neighbours, pairs that its slots count, the nearest other atom, and how
far away that is in Å."""

OF_ATOMS = ("atoms",)
"""Shape of the inputs that no kernel writes. They come first in their block, so that one copy takes them."""

FINDING_TYPES = (
    *[ctypes.c_void_p] * 7,
    ctypes.c_double,
    *[ctypes.c_int] * 3,
    *[ctypes.c_void_p] * 7,
)
PAIRING_TYPES = (*[ctypes.c_void_p] * 6, *[ctypes.c_int] * 3, *[ctypes.c_void_p] * 3)


def box_columns(atoms: int, boxes: int) -> tuple[Column, ...]:
    """Arrays that a search uploads.

    Args:
        atoms: of the structure.
        boxes: that they lie in.
    """
    floats = (("positions", (atoms, 3), "float64"), ("whole", (atoms, 3), "float64"), ("cell", (3, 3), "float64"))
    whole = (("box", (atoms,), "int32"), ("order", (atoms,), "int32"), ("starts", (boxes + 1,), "int32"))
    return (*floats, *whole, ("shape", (9,), "int32"))


def counted_columns(rows: int) -> tuple[Column, ...]:
    """Arrays of `COUNTED`.

    Args:
        rows: of the matrix.
    """
    counted = zip(COUNTED, ("int32", "int32", "int32", "float64"), strict=True)
    return tuple((name, (rows,), dtype) for name, dtype in counted)


def numbered_columns(rows: int) -> tuple[Column, ...]:
    """Arrays that are made of these for the other kernel.

    Args:
        rows: of the matrix.
    """
    return (("numbers", (rows,), "int32"), ("totals", (2,), "int32"))


def fill_atoms(block: Block, boxes: Boxes) -> int:
    """Write the inputs that no kernel writes: atomic numbers, and weights where the engine takes them.

    Args:
        block: of the inputs, those of `OF_ATOMS` first.
        boxes: the structure.

    Returns:
        Bytes of the block up to their end.

    Raises:
        ShapeError: the engine takes no weights, and some are not 1.
    """
    atoms, arrays, last = len(boxes.atomic_numbers), block.arrays, "atomic_numbers"
    arrays["atomic_numbers"][:atoms], arrays["atomic_numbers"][atoms:] = boxes.atomic_numbers, 0
    if "weights" in arrays:
        arrays["weights"][:atoms], arrays["weights"][atoms:], last = boxes.weights, 1.0, "weights"
    else:
        check_no_weights(boxes.weights)
    return block.addresses[last] + arrays[last].nbytes - block.device


def fill_boxes(arrays: Mapping[str, np.ndarray], boxes: Boxes) -> None:
    """Write what a search uploads.

    Args:
        arrays: of `box_columns`, by name.
        boxes: the structure.
    """
    for name, array in arrays.items():
        array[...] = boxes.shape if name == "shape" else getattr(boxes, name)


def nearest_of(counted: Mapping[str, np.ndarray]) -> Nearest:
    """The two atoms that lie closest to each other.

    Args:
        counted: arrays of `counted_columns`, by name.
    """
    one = int(counted["nearest"].argmin())
    other = int(counted["closest"][one])
    return Nearest(float(counted["nearest"][one]), one if other >= 0 else -1, other)


def number_pairs(counted: Mapping[str, np.ndarray], numbered: Mapping[str, np.ndarray], slots: int) -> None:
    """Write which numbers the pairs of each row have, and what stands for padding.

    Args:
        counted: arrays of `counted_columns`, by name.
        numbered: of `numbered_columns`; written.
        slots: columns of the matrix.
    """
    forward, spare = counted["forward"], counted["count"] < slots
    numbered["numbers"][0] = 0
    np.cumsum(forward[:-1], out=numbered["numbers"][1:])
    numbered["totals"][:] = forward.sum(), spare.argmax() * slots + slots - 1 if spare.any() else 0


class FindingKernel(DeviceKernel):
    """The kernel that counts and writes down neighbours, on one GPU."""

    source, name = KERNEL, NAMES[0]

    def launch(self, stream: int, size: tuple[int, int, int], reach: float, addresses: Mapping[str, int]) -> None:
        """Send the kernel to a stream.

        Args:
            stream: its handle.
            size: atoms, rows and columns; no columns for counting alone.
            reach: Å.
            addresses: on the device, by name: of what is uploaded, of what is counted, and of what is written where
                there are columns.
        """
        uploaded = (addresses[name] for name, _, _ in box_columns(0, 0))
        written = (addresses.get(name, 0) for name in (*COUNTED, "neighbours", "shifts", "stored"))
        self.send(stream, size[1], (*uploaded, reach, *size, *written), FINDING_TYPES)


class PairingKernel(DeviceKernel):
    """The kernel that finds the two slots of each pair, on one GPU."""

    source, name = KERNEL, NAMES[1]

    def launch(self, stream: int, size: tuple[int, int], addresses: Mapping[str, int], entries: int = 0) -> None:
        """Send the kernel to a stream.

        Args:
            stream: its handle.
            size: rows and columns of the matrix.
            addresses: on the device, by name: of what the other kernel wrote, `numbers` and `totals`, `reverse`, and
                `PAIR_INPUTS` where there are any.
            entries: of `pairs`: 0, or more than half of the slots.
        """
        rows, slots = size
        read = (addresses[name] for name in ("neighbours", "shifts", "stored", "count", "numbers", "totals"))
        pairs = (addresses.get(field.name, 0) for field in PAIR_INPUTS)
        values = (*read, rows, slots, entries, addresses["reverse"], *pairs)
        self.send(stream, max(rows * slots, entries), values, PAIRING_TYPES)
