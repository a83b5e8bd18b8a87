"""Memory of one lane: blocks of arrays on the device, each with its twin in pinned host memory."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from painn_deploy.engines.gpu.cuda import call
from painn_deploy.export.fields import Field

__all__ = ["Arena", "Block", "Column", "columns"]

GRANULE = 256
"""Bytes that every address is a multiple of, as TensorRT asks of its tensors."""

Column = tuple[str, tuple[int, ...], str]
"""Name, shape and dtype of one array of a block."""


@dataclass(frozen=True)
class Block:
    """Arrays side by side, at the same offsets on the device and in pinned host memory: one copy moves them all.

    Attributes:
        arrays: views of the host memory, by name; the next use of the block overwrites them.
        addresses: of the same arrays on the device, by name.
        host: address of the host memory.
        device: address of the device memory.
        size: bytes.
    """

    arrays: dict[str, np.ndarray]
    addresses: dict[str, int]
    host: int
    device: int
    size: int

    def host_address(self, name: str) -> int:
        """Address of one array in pinned memory."""
        return self.host + self.addresses[name] - self.device


class Arena:
    """Device memory and pinned host memory, by name; each grows and is kept from call to call.

    Args:
        cuda: the CUDA runtime.

    Attributes:
        generation: counts growths: addresses that were taken before the last one are void.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._device: dict[str, tuple[int, int]] = {}
        self._pinned: dict[str, tuple[int, int]] = {}
        self._blocks: dict[tuple[str, tuple[Column, ...]], Block] = {}
        self.generation = 0

    def device(self, name: str, size: int) -> int:
        """Address of memory on the device.

        Args:
            name: that it is kept under.
            size: bytes that it has at least.

        Raises:
            DeviceMemoryError: there is not so much; what was there under this name is gone.
        """
        return self._reserve(self._device, self._cuda.cudaMalloc, self._cuda.cudaFree, name, size)

    def pinned(self, name: str, size: int) -> int:
        """Address of host memory which the device copies from and to while the host goes on.

        Args:
            name: that it is kept under.
            size: bytes that it has at least.

        Raises:
            DeviceMemoryError: there is not so much; what was there under this name is gone.
        """
        return self._reserve(self._pinned, self._cuda.cudaMallocHost, self._cuda.cudaFreeHost, name, size)

    def block(self, name: str, columns: Sequence[Column]) -> Block:
        """A block of arrays; the same one as long as neither its arrays nor any address changed.

        Args:
            name: that its memory is kept under.
            columns: the arrays.

        Raises:
            DeviceMemoryError: there is not enough memory.
        """
        key = (name, tuple(columns))
        if (known := self._blocks.get(key)) is not None:
            return known
        offsets, size = [], 0
        for _, shape, dtype in columns:
            offsets.append(size)
            size += GRANULE * -(-_bytes(shape, dtype) // GRANULE)
        host, device = self.pinned(name, size), self.device(name, size)
        raw = np.frombuffer(memoryview((ctypes.c_char * size).from_address(host)), np.uint8)
        arrays, addresses = {}, {}
        for (column, shape, dtype), offset in zip(columns, offsets, strict=True):
            arrays[column] = raw[offset : offset + _bytes(shape, dtype)].view(dtype).reshape(shape)
            addresses[column] = device + offset
        if len(self._blocks) >= MOST_BLOCKS:
            self._blocks.clear()
        self._blocks[key] = Block(arrays, addresses, host, device, size)
        return self._blocks[key]

    def _reserve(self, held: dict[str, tuple[int, int]], allocate: Any, free: Any, name: str, size: int) -> int:
        address, capacity = held.get(name, (0, 0))
        if size > capacity:
            self.generation += 1
            self._blocks.clear()
            if address:
                del held[name]
                call(free, address)
            capacity = GRANULE * -(-max(size, min(2 * capacity, size + MOST_SPARE)) // GRANULE)
            address = int(call(allocate, capacity))
            held[name] = (address, capacity)
        return address

    def close(self) -> None:
        """Give everything back; may be called twice."""
        self._blocks.clear()
        for held, free in ((self._device, self._cuda.cudaFree), (self._pinned, self._cuda.cudaFreeHost)):
            while held:
                call(free, held.popitem()[1][0])


MOST_BLOCKS = 256
"""Blocks that are remembered; making one anew takes some microseconds."""

MOST_SPARE = 256 * 2**20
"""Bytes that a growth takes beyond what is asked for, so that sizes that creep up do not allocate at every call."""


def columns(fields: Sequence[Field], **lengths: int) -> list[Column]:
    """Fields of the graph contract as arrays of a block.

    Args:
        fields: of the contract.
        **lengths: of their axes: `atoms`, `slots`, `pairs`.
    """
    return [(field.name, field.sized(**lengths), field.dtype) for field in fields]


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize
