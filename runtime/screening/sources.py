"""Files of many structures, read a piece at a time: extended XYZ, ASE databases, Parquet."""

from pathlib import Path
from typing import Any

from painn_deploy.export.errors import DatasetError
from painn_deploy.runtime.screening.chunks import Chunk, Scan, Source
from painn_deploy.runtime.screening.database_source import DatabaseSource
from painn_deploy.runtime.screening.extxyz_source import ExtxyzSource
from painn_deploy.runtime.screening.parquet_source import ParquetSource, parquet

__all__ = ["FORMATS", "Chunk", "Scan", "Source", "format_of", "open_source", "parquet"]

FORMATS = {".extxyz": "extxyz", ".xyz": "extxyz", ".db": "db", ".parquet": "parquet"}
"""By a file's suffix."""

_SOURCES: dict[str, Any] = {"extxyz": ExtxyzSource, "db": DatabaseSource, "parquet": ParquetSource}


def format_of(path: Path) -> str:
    """`extxyz`, `db` or `parquet`, by the suffix.

    Raises:
        DatasetError: it is none of them.
    """
    if path.suffix.lower() not in FORMATS:
        raise DatasetError(f"{path} ends in none of {', '.join(FORMATS)}, so its format is not known.")
    return FORMATS[path.suffix.lower()]


def open_source(path: str | Path) -> Source:
    """A source by its suffix.

    Raises:
        DatasetError: the file is not there, is none, or is of no format that can be read a piece at a time.
    """
    path = Path(path)
    kind = format_of(path)
    try:
        there, regular = path.exists(), path.is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise DatasetError(f"There is no file {str(path)!r}: {error}.") from error
    if not regular:
        raise DatasetError(
            f"{path} is a folder, a pipe or a device, and no file; write the structures into one."
            if there
            else f"There is no file {path}."
        )
    source: Source = _SOURCES[kind](path)
    return source
