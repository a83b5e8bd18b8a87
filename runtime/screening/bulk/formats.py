"""Which formats are read and written side by side; of the others every row goes alone."""

from collections.abc import Sequence

from painn_deploy.export.packed import packed
from painn_deploy.runtime.screening.bulk.block import Block, Item, block_of
from painn_deploy.runtime.screening.bulk.extxyz_reader import extxyz_block
from painn_deploy.runtime.screening.bulk.parquet_reader import parquet_block
from painn_deploy.runtime.screening.bulk.results import Done, Rows
from painn_deploy.runtime.screening.bulk.table_writer import encoded_table
from painn_deploy.runtime.screening.bulk.text_writer import encoded_text
from painn_deploy.runtime.screening.chunks import Chunk, Source
from painn_deploy.runtime.screening.extxyz_source import ExtxyzSource
from painn_deploy.runtime.screening.parquet_source import ParquetSource
from painn_deploy.runtime.screening.sinks import SINKS

__all__ = ["encoded", "read_block", "written_alone"]


def read_block(source: Source, chunk: Chunk, rows: Rows, kind: str) -> Block:
    """The rows of a chunk; side by side, where they are written so.

    Args:
        source: the file.
        chunk: of this file.
        rows: what cannot be read is told there.
        kind: of the output, a key of `SINKS`.

    Raises:
        DatasetError: as `Source.read` does.
    """
    side_by_side = not written_alone(kind)
    if side_by_side and isinstance(source, ExtxyzSource):
        return extxyz_block(source, chunk, rows.remarks)
    if side_by_side and isinstance(source, ParquetSource):
        return parquet_block(source, chunk, rows.remarks)
    odd: dict[int, Item] = dict(enumerate(source.read(chunk, rows.remarks)))
    return block_of(chunk.first, chunk.count, [], odd, odd.__getitem__)


def written_alone(kind: str) -> bool:
    """Whether every row of a format is written alone.

    Args:
        kind: a key of `SINKS`.
    """
    return kind.partition(".")[0] not in ("extxyz", "parquet")


def encoded(kind: str, done: Done, rows: Rows, uncertainties: Sequence[str]) -> bytes:
    """The bytes of a part, as its sink makes them of the same rows.

    Args:
        kind: of the output, a key of `SINKS`.
        done: the rows; all of them alone where `written_alone`.
        rows: made them.
        uncertainties: see `Sink.encoded`.
    """
    if written_alone(kind):
        return SINKS[kind].encoded([*done.alone.values()], done.block.first, rows.remarks, uncertainties)
    if kind == "parquet":
        return encoded_table(done, rows, uncertainties)
    _, point, packing = kind.partition(".")
    text = encoded_text(done, rows)
    return packed(text, point + packing) if packing else text
