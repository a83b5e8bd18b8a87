"""Files of many structures, read a piece at a time: extended XYZ, ASE databases and trajectories, Parquet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from painn_deploy.export.errors import DatasetError, OutputError
from painn_deploy.export.packed import PACKINGS, packing_of
from painn_deploy.runtime.screening.chunks import Chunk, Scan, Source
from painn_deploy.runtime.screening.database_source import DatabaseSource
from painn_deploy.runtime.screening.extxyz_source import ExtxyzSource
from painn_deploy.runtime.screening.parquet_source import ParquetSource, parquet
from painn_deploy.runtime.screening.trajectory_source import TrajectorySource

__all__ = ["FORMATS", "Chunk", "Scan", "Source", "format_of", "open_source", "output_format_of", "parquet"]

FORMATS = {".extxyz": "extxyz", ".xyz": "extxyz", ".db": "db", ".parquet": "parquet", ".traj": "traj"}
"""By a file's suffix."""

READ_ALONE = ("traj",)
"""Formats that are read, and not written."""

_SOURCES: dict[str, Any] = {
    "extxyz": ExtxyzSource,
    "db": DatabaseSource,
    "parquet": ParquetSource,
    "traj": TrajectorySource,
}


def format_of(path: Path) -> str:
    """`extxyz`, `db`, `parquet` or `traj` by the suffix; `extxyz.gz` and the like where it is compressed.

    Raises:
        DatasetError: it is none of them.
    """
    return _format_of(path, FORMATS)


def output_format_of(path: Path) -> str:
    """The same of a file that is to be written.

    Raises:
        OutputError: there is no such format, or it is not written.
    """
    written = {suffix: kind for suffix, kind in FORMATS.items() if kind not in READ_ALONE}
    if FORMATS.get(path.suffix.lower()) in READ_ALONE:
        raise OutputError(f"{path} cannot be written: such files are read alone. Choose one of {', '.join(written)}.")
    try:
        return _format_of(path, written)
    except DatasetError as error:
        raise OutputError(str(error)) from error


def _format_of(path: Path, formats: Mapping[str, str]) -> str:
    packing = packing_of(path)
    suffix = path.with_suffix("").suffix.lower() if packing else path.suffix.lower()
    if suffix in formats and (formats[suffix] == "extxyz" or not packing):
        return f"{formats[suffix]}{packing}"
    *others, last = PACKINGS
    if suffix in formats:
        raise DatasetError(
            f"{path} is compressed, and of compressed files extended XYZ alone is taken: unpack it, or leave the "
            f"{packing} away."
        )
    raise DatasetError(
        f"{path} ends in none of {', '.join(formats)}, so its format is not known. Extended XYZ may "
        f"be compressed ({', '.join(others)} or {last} after its suffix)."
    )


def open_source(path: str | Path) -> Source:
    """A source by its suffix.

    Raises:
        DatasetError: the file is not there, is none, or is of no format that can be read a piece at a time.
    """
    path = Path(path)
    kind = format_of(path).partition(".")[0]
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
