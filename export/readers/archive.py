"""The zip file that torch writes: a pickle, and a record of numbers for each tensor's storage."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.pickles import read_pickle
from painn_deploy.export.readers.stand_ins import StandIn, Storage

__all__ = ["Archive", "is_tensor", "kind_of"]

MOST_RECORDS, MOST_NUMBERS = 100_000, 2**40
LARGEST_TEXT = 2**22
"""Bytes of a text of TorchScript, unpacked; those of SchNetPack have a few thousand."""

SHARED = 4
"""How many times the numbers of a file may be used by different tensors; one that is used twice is made once."""

LISTED = b"PK\x01\x02"
"""How the entry of a record begins in the list of all."""

REMEDY = "Give the file that torch.save or SchNetPack wrote, such as best_model."

FLOATS = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
}
REBUILD = "torch._utils._rebuild_tensor_v2"
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


class Archive:
    """Records of a file that `torch.save` or `torch.jit.save` wrote.

    Args:
        content: of the file.
        source: the file, for messages.

    Attributes:
        source: as given.
        scripted: whether TorchScript wrote it.

    Raises:
        CheckpointError: it is cut short, or no such file.
    """

    def __init__(self, content: bytes, source: str) -> None:
        self.source = source
        self._storages: dict[tuple[str, torch.dtype], Tensor] = {}
        self._tensors: dict[tuple[Any, ...], Tensor] = {}
        self._left = SHARED * len(content)
        if content.count(LISTED) > MOST_RECORDS:  # before each becomes an object
            raise CheckpointError(f"{source} lists more than {MOST_RECORDS:,} records, and no student's file does.")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content))
            entries = self._zip.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError, OverflowError) as error:
            raise self._damaged(error) from error
        # torch stores numbers as they are, so records cannot hold more than the file, nor overlap
        plain = [e.file_size for e in entries if e.compress_type == zipfile.ZIP_STORED]
        if len(entries) > MOST_RECORDS or sum(plain) > len(content):
            raise CheckpointError(f"{source} declares more numbers than it has bytes: it is corrupt.")
        self._entries = {entry.filename.partition("/")[2]: entry for entry in entries}
        if len(self._entries) != len(entries) or len({e.filename.partition("/")[0] for e in entries}) != 1:
            raise CheckpointError(f"{source} is a zip file, but none that torch wrote. {REMEDY}")
        if "data.pkl" not in self._entries:
            raise CheckpointError(f"{source} is a zip file, but none that torch wrote: it has no data.pkl. {REMEDY}")
        if "byteorder" in self._entries and self.record("byteorder").strip() != b"little":
            raise CheckpointError(f"{source} was written on a big-endian machine, whose numbers are not read here.")
        self.scripted = any(name.startswith("code/") for name in self._entries)

    def _damaged(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.source} is no whole zip file ({error}): it is corrupt, or cut short.")

    def record(self, name: str) -> bytes:
        """Content of a record, as its checksum says it was written.

        Raises:
            CheckpointError: there is none, or it is not as it was written.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self.source} lacks the record {name!r}: it is corrupt.")
        text = name.startswith("code/")  # TorchScript packs these
        fine = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if text else (zipfile.ZIP_STORED,)
        if entry.compress_type not in fine or entry.flag_bits & 1 or (text and entry.file_size > LARGEST_TEXT):
            raise CheckpointError(f"{self.source}: its record {name!r} is packed as torch packs none.")
        try:
            return self._zip.read(entry)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError) as error:
            raise self._damaged(error) from error

    def has(self, name: str) -> bool:
        """Whether there is a record of that name."""
        return name in self._entries

    def tree(self) -> Any:
        """What its pickle describes, see `read_pickle`.

        Raises:
            CheckpointError: see `read_pickle`.
        """
        return read_pickle(self.record("data.pkl"), self.source)

    def tensor(self, thing: Any, name: str, *, integers: bool = False) -> Tensor:
        """The numbers that a stand-in of a tensor or a parameter refers to, copied; once, however many names they have.

        Args:
            thing: of the tree.
            name: of the tensor, for messages.
            integers: whether 64-bit integers will do, too.

        Raises:
            CheckpointError: it is no dense tensor of floating-point numbers, or reaches beyond what the file holds.
        """
        also = {"LongStorage": torch.int64} if integers else {}
        return self._tensor(thing, FLOATS | also, name)

    def truth(self, thing: Any, name: str) -> bool:
        """What a tensor of one truth value holds.

        Args:
            thing: of the tree.
            name: of the tensor, for messages.

        Raises:
            CheckpointError: it holds something else.
        """
        found = self._tensor(thing, {"BoolStorage": torch.uint8}, name)
        if found.numel() != 1:
            raise CheckpointError(f"{self.source}: {name} holds {found.numel()} truth values, not one.")
        return bool(found.item())

    def _tensor(self, thing: Any, kinds: Mapping[str, torch.dtype], name: str) -> Tensor:
        match thing:
            case StandIn(made_by, (data, *_)) if str(made_by) in PARAMETERS:
                thing = data
        match thing:
            case StandIn(made_by, (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_)) if (
                str(made_by) == REBUILD
            ):
                if storage.kind not in kinds:
                    wanted = "truth values" if "BoolStorage" in kinds else "floating-point weights"
                    raise CheckpointError(f"{self.source}: {name} holds {storage.kind}, not {wanted}.")
                return self._view(storage, kinds[storage.kind], (offset, shape, strides), name)
        raise CheckpointError(f"{self.source}: {name} is no dense tensor; it is {kind_of(thing)}.")

    def _view(self, storage: Storage, dtype: torch.dtype, layout: tuple[Any, Any, Any], name: str) -> Tensor:
        offset, shape, strides = layout
        sizes = [*shape, *strides, offset, storage.numel]
        if len(shape) != len(strides) or any(type(size) is not int or not 0 <= size < MOST_NUMBERS for size in sizes):
            raise CheckpointError(f"{self.source}: {name} has a shape that makes no sense: it is corrupt.")
        numbers = self._numbers(storage, dtype, name)
        key = storage.record, dtype, offset, shape, strides
        if key in self._tensors:  # weights that are tied, as those of shared interactions
            return self._tensors[key]
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        count = 1
        for size in shape:
            count *= size
        if not count:
            return torch.empty(shape, dtype=dtype)
        if last >= storage.numel or count > storage.numel:  # no weight is a repetition of fewer numbers
            raise CheckpointError(f"{self.source}: {name} reaches beyond the numbers that the file holds.")
        self._left -= count * dtype.itemsize
        if self._left < 0:
            raise CheckpointError(
                f"{self.source} uses its numbers over and over, in different tensors; no student's file does."
            )
        made = self._tensors[key] = numbers.as_strided(shape, strides, offset).contiguous().clone()
        return made

    def _numbers(self, storage: Storage, dtype: torch.dtype, name: str) -> Tensor:
        """All numbers of a storage, which is read once however many tensors share it."""
        key = storage.record, dtype
        if key not in self._storages:
            content = self.record(f"data/{storage.record}")
            if len(content) != storage.numel * dtype.itemsize:
                raise CheckpointError(
                    f"{self.source}: {name} declares {storage.numel:,} numbers, and the file holds {len(content):,} "
                    "bytes of them: it is corrupt."
                )
            numbers = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
            self._storages[key] = numbers
        if len(self._storages[key]) != storage.numel:
            raise CheckpointError(f"{self.source}: tensors disagree about a storage that they share: it is corrupt.")
        return self._storages[key]


def is_tensor(thing: Any) -> bool:
    """Whether a thing of the tree stands for a tensor or a parameter."""
    return isinstance(thing, StandIn) and str(thing.name) in (REBUILD, *PARAMETERS)


def kind_of(thing: Any) -> str:
    """What a thing of the tree is, in words."""
    return str(thing.name) if isinstance(thing, StandIn) else type(thing).__name__
