"""Files as torch wrote them before 1.6: pickles one after the other, then the numbers; given the records of a zip file.

NeuralForceField ran on torch 1.4 while it trained its first PaiNNs. Of a module, torch wrote the text of its source
beside its name then; neither is imported or executed here, as nothing ever is.
"""

import io
import pickletools
import re
import zipfile
from typing import Any

from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.archive import MOST_RECORDS
from painn_deploy.export.readers.pickles import read_pickle, read_storages

__all__ = ["is_legacy", "repacked"]

MAGIC = re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
"""The first of its pickles, a number that torch chose, in any protocol that torch writes."""

PROTOCOL = 1001
PICKLES = 5
"""The magic number, the protocol, the machine, the content, and the order of its storages."""

SIZES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage"), 1),
}
"""Bytes of a number."""


def is_legacy(content: bytes) -> bool:
    """Whether a file begins as torch's did before 1.6."""
    return MAGIC.match(content) is not None


def repacked(content: bytes, source: str) -> bytes:
    """The same file as torch writes it since 1.6.

    Args:
        content: of the file, see `is_legacy`.
        source: the file, for messages.

    Raises:
        CheckpointError: it is cut short or corrupt, or names what no model is made of.
    """
    stream = io.BytesIO(content)
    pickles = [_pickle(stream, source) for _ in range(PICKLES)]
    protocol, machine, order = (read_pickle(pickles[place], source) for place in (1, 2, 4))
    if protocol != PROTOCOL or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError(f"{source} was written by a torch before 0.4, or on a big-endian machine: save it again.")
    storages = read_storages(pickles[3], source)
    if not isinstance(order, list) or not len(order) == len(storages) <= MOST_RECORDS or set(order) != storages.keys():
        raise CheckpointError(f"{source} lists other numbers than its tensors have: it is corrupt.")
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("archive/data.pkl", pickles[3])
        for place, name in enumerate(order):
            numbers = int.from_bytes(stream.read(8), "little")
            size = numbers * SIZES.get(storages[name].kind, 0)
            record = stream.read(size) if size <= len(content) else b""
            if numbers != storages[name].numel or len(record) != size:
                raise CheckpointError(f"{source} is cut short: storage {place} of {len(order)} is not whole.")
            file.writestr(f"archive/data/{name}", record)
    return made.getvalue()


def _pickle(stream: Any, source: str) -> bytes:
    """The next pickle of a stream."""
    begin = stream.tell()
    try:
        for _ in pickletools.genops(stream):
            pass
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{source}: a pickle in it is corrupt or cut short ({str(error)[:100]}).") from error
    end = stream.tell()
    stream.seek(begin)
    return bytes(stream.read(end - begin))
