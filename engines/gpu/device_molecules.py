"""Every pair of small molecules formed on the device, so that a batch of thousands uploads atoms and nothing else."""

import ctypes
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Int32, Int64

from painn_deploy.engines.gpu.arena import Column
from painn_deploy.engines.gpu.device_positions import DeviceKernel
from painn_deploy.export.fields import PAIR_INPUTS, Field

__all__ = ["KERNEL", "KERNEL_NAME", "NEAREST", "WRITTEN", "PairsKernel", "fill_molecules", "molecule_columns", "widest"]

KERNEL_NAME = "pairs_of_molecules"
KERNEL = r"""
__device__ double distance(const double* here, const double* there)
{
    double squared = 0.0;
    for (int axis = 0; axis < 3; ++axis) {
        double d = there[axis] - here[axis];
        squared += d * d;
    }
    return sqrt(squared);
}

// One thread a slot. Slot k of atom i of a molecule of n atoms holds atom (i + 1 + k) mod n, for k < n - 1: first the
// atoms after it, then those before it, which is the order of a host that looks at every pair. Seen from there the
// pair has slot n - 2 - k. All else is padding. d = r_second - r_first in float64, then rounded, and its exact negative
// at the other end; an edge has |d| < cutoff in float64. Compiled without fused multiply-add, so that host and device
// agree to the bit.
//
// The first slot of an atom also looks for the nearest other atom of its molecule. No thread writes what another one
// does, so that no order of them changes a bit.
//
// `pairs` and `pair_of_slot` are null for an engine that does not read them. A molecule's pairs are numbered from
// (first row * slots) / 2 on, as many as two of its slots make one: there is room, since n - 1 <= slots. The number
// after all rows is the padding's. What no pair has as its number stands for padding too, and nothing reads it.
extern "C" __global__ void pairs_of_molecules(
    const double* positions, const int* first, const int* count, const int* padding, double cutoff, int atoms,
    int slots, int entries, float* displacements, int* neighbours, int* reverse, float* mask, double* nearest,
    int* pairs, int* pair_of_slot)
{
    long long slot = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long all = (long long)atoms * slots;
    if (slot < entries) {
        bool held = false;
        if (slot < all / 2) {
            long long row = (2 * slot + 1) / slots, n = count[row];
            held = slot - (long long)first[row] * slots / 2 < n * (n - 1) / 2;
        }
        if (!held) pairs[slot] = *padding;
    }
    if (slot >= all) return;
    int row = (int)(slot / slots), k = (int)(slot % slots);
    int start = first[row], n = count[row], i = row - start;
    bool stored = k < n - 1, forward = i + 1 + k < n;
    int j = !stored ? i : forward ? i + 1 + k : i + 1 + k - n;
    const double* here = positions + 3 * (long long)row;
    const double* there = positions + 3 * (long long)(start + j);
    for (int axis = 0; axis < 3; ++axis)
        displacements[3 * slot + axis] =
            !stored ? 0.0f : forward ? (float)(there[axis] - here[axis]) : -(float)(here[axis] - there[axis]);
    mask[slot] = stored && distance(here, there) < cutoff ? 1.0f : 0.0f;
    neighbours[slot] = start + j;
    reverse[slot] = stored ? (start + j) * slots + n - 2 - k : (int)slot;
    if (entries) {
        long long one = forward ? i : j, other = forward ? j : i;
        long long number = (long long)start * slots / 2 + one * (2 * n - one - 1) / 2 + other - one - 1;
        if (stored && forward) pairs[number] = (int)slot;
        pair_of_slot[(long long)k * atoms + row] = (int)(stored ? number : all / 2);
    }
    if (k == 0) {
        double least = 1e308 * 10.0;  // infinite
        for (int m = 0; m < n; ++m)
            if (m != i) {
                double d = distance(here, positions + 3 * (long long)(start + m));
                if (d < least) least = d;
            }
        nearest[row] = least;
    }
}
"""

WRITTEN = ("displacements", "neighbours", "reverse", "mask", "nearest")
"""What the kernel writes, in its order; `PAIR_INPUTS` come after them for an engine that reads these."""

NEAREST = Field("nearest", ("atoms",), "float64", "Angstrom", "to the nearest other atom of the molecule, or infinite")
"""What comes down beside the graph's outputs."""

TYPES = (*[ctypes.c_void_p] * 4, ctypes.c_double, *[ctypes.c_int] * 3, *[ctypes.c_void_p] * 7)


def widest(starts: Int64[np.ndarray, " molecules"], atoms: int) -> int:
    """Slots for every pair of the largest molecule, at least 1.

    Args:
        starts: first row of each molecule.
        atoms: rows of all.
    """
    return max(1, int(np.diff(starts, append=atoms).max()) - 1)


def molecule_columns(rows: int) -> tuple[Column, ...]:
    """Arrays that a batch uploads.

    Args:
        rows: of the matrix, padded ones included.
    """
    whole = tuple((name, (rows,), "int32") for name in ("atomic_numbers", "first", "count"))
    return (("positions", (rows, 3), "float64"), ("weights", (rows,), "float32"), *whole, ("padding", (1,), "int32"))


def fill_molecules(
    arrays: Mapping[str, np.ndarray],
    numbers: Int32[np.ndarray, " atoms"],
    positions: Float64[np.ndarray, "atoms 3"],
    starts: Int64[np.ndarray, " molecules"],
    slots: int,
) -> None:
    """Write what a batch uploads; a padded row is a molecule of one atom of no element.

    Args:
        arrays: of `molecule_columns`, by name.
        numbers: Z.
        positions: Å.
        starts: first row of each molecule.
        slots: columns of the matrix.
    """
    atoms, rows = len(numbers), len(arrays["count"])
    sizes = np.diff(starts, append=atoms)
    arrays["atomic_numbers"][:atoms], arrays["atomic_numbers"][atoms:] = numbers, 0
    arrays["positions"][:atoms], arrays["positions"][atoms:] = positions, 0.0
    arrays["weights"][...] = 1.0
    arrays["first"][:atoms], arrays["first"][atoms:] = np.repeat(starts, sizes), np.arange(atoms, rows)
    arrays["count"][:atoms], arrays["count"][atoms:] = np.repeat(sizes, sizes), 1
    spare = arrays["count"] <= slots  # such an atom's last slot is padding
    arrays["padding"][0] = spare.argmax() * slots + slots - 1 if spare.any() else 0


class PairsKernel(DeviceKernel):
    """The kernel on one GPU."""

    source, name = KERNEL, KERNEL_NAME

    def launch(
        self,
        stream: int,
        size: tuple[int, int],
        cutoff: float,
        addresses: Mapping[str, int],
        entries: int = 0,
    ) -> None:
        """Send the kernel to a stream.

        Args:
            stream: its handle.
            size: rows and columns of the matrix.
            cutoff: Å.
            addresses: on the device, by name: of what is uploaded, `WRITTEN`, and `PAIR_INPUTS` where there are any.
            entries: of `pairs`: 0, or more than half of the slots.
        """
        rows, slots = size
        uploaded = (addresses[name] for name in ("positions", "first", "count", "padding"))
        written = (*(addresses[name] for name in WRITTEN), *(addresses.get(field.name, 0) for field in PAIR_INPUTS))
        self.send(stream, max(rows * slots, entries), (*uploaded, cutoff, rows, slots, entries, *written), TYPES)
