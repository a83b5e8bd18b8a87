"""onnxruntime-gpu's wheel with kernels for one kind of GPU only, so that it fits where the whole does not.

The result is a wheel as any other: its RECORD holds, its build tag says what was done, and REDUCED.txt in its
metadata says what was taken out. Nobody has executed its kernels on a GPU yet.
"""

import base64
import csv
import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from painn_deploy.export.errors import EngineError
from painn_deploy.export.files import prepare_output, whole_file
from painn_deploy.export.progress import Tell, silent
from painn_deploy.scripts.kit.fatbin import UNUSED_KERNELS, Reduced, reduce_library

__all__ = ["ReducedWheel", "fitting_wheel"]

PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
NOTE = "REDUCED.txt"


@dataclass(frozen=True)
class ReducedWheel:
    """A wheel, and what was taken out of it.

    Attributes:
        path: of the wheel.
        removed: a sentence; empty where it is the whole wheel.
    """

    path: Path
    removed: str = ""


def fitting_wheel(whole: Path, arch: int, limit: int, folder: Path, tell: Tell = silent) -> ReducedWheel:
    """The wheel itself if it fits, or with the kernels of one architecture, or with those that our graphs may call.

    Args:
        whole: onnxruntime-gpu's wheel.
        arch: ten times the GPU's compute capability.
        limit: bytes that it should fit into; the smallest form is returned if none does.
        folder: that reduced wheels are kept in; they are made once.
        tell: called with a line before work that takes long.

    Raises:
        EngineError: the wheel holds no CUDA provider, or one that cannot be reduced.
        EngineUnavailableError: the package zstandard is needed and missing.
    """
    if whole.stat().st_size <= limit:
        return ReducedWheel(whole)
    folder = prepare_output(folder / f"{zlib.crc32(UNUSED_KERNELS.pattern):08x}")  # one folder a rule
    one = _target(whole, folder, f"1sm{arch}")
    if not one.exists() or not _noted(one):
        tell(f"reducing {whole.name} to the kernels for {arch}")
        reduced = reduce_library(_provider(whole), arch)
        if reduced.packed <= limit:  # else no wheel of it can fit
            _write(whole, one, reduced, f"It holds kernels for the GPU architecture {arch} and for no other.")
    if one.exists() and one.stat().st_size <= limit:
        return ReducedWheel(one, _noted(one))
    ours = _target(whole, folder, f"1sm{arch}ours")
    if not ours.exists() or not _noted(ours):
        tell(f"reducing {whole.name} further, without the kernels of language models")
        reduced = reduce_library(_provider(whole), arch, unused=UNUSED_KERNELS)
        _write(
            whole,
            ours,
            reduced,
            f"It holds kernels for the GPU architecture {arch} and for no other, and of those none that only "
            "attention, mixtures of experts, language models and CUTLASS use.",
        )
    return ReducedWheel(ours, _noted(ours))


def _target(whole: Path, folder: Path, build: str) -> Path:
    """A reduced wheel's path: the name with a build tag."""
    name, version, *rest = whole.name.split("-")
    return folder / "-".join((name, version, build, *rest[-3:]))


def _provider(whole: Path) -> bytes:
    try:
        with zipfile.ZipFile(whole) as wheel:
            return wheel.read(PROVIDER)
    except KeyError as error:
        raise EngineError(f"{whole.name} holds no {PROVIDER}. Carry it whole: --whole.") from error
    except zipfile.BadZipFile as error:
        raise EngineError(f"{whole} is damaged: {error}. Delete it and run this again.") from error


def _noted(path: Path) -> str:
    """The list of what was taken out of a reduced wheel, as it holds it; empty where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as wheel:
            (note,) = [name for name in wheel.namelist() if name.endswith(f".dist-info/{NOTE}")]
            return wheel.read(note).decode()
    except (zipfile.BadZipFile, ValueError):
        return ""


def _write(whole: Path, path: Path, reduced: Reduced, sentence: str) -> None:
    """Write a wheel with a library replaced, every hash in its RECORD made again."""
    images = ", ".join(f"{count} for {arch}" for arch, count in sorted(reduced.removed.items()))
    note = f"{sentence} Images overwritten with zeros: {images}; {reduced.kept} are whole."
    with whole_file(path) as file, zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w") as wheel:
        (record,) = [name for name in source.namelist() if name.endswith(".dist-info/RECORD")]
        metadata = record.removesuffix("RECORD")
        changed = {PROVIDER: reduced.library, metadata + NOTE: note.encode()}
        changed[metadata + "WHEEL"] = _with_build(source.read(metadata + "WHEEL"), path)
        changed[record] = _record(source.read(record), changed, record)
        for info in source.infolist():
            if not info.is_dir():
                content = changed.pop(info.filename, None)
                _add(wheel, info, source.read(info) if content is None else content)
        for name, content in changed.items():
            _add(wheel, zipfile.ZipInfo(name), content)


def _add(wheel: zipfile.ZipFile, info: zipfile.ZipInfo, content: bytes) -> None:
    """Write a member as it was; LZMA, which pip reads as well as any, halves a library."""
    copy = zipfile.ZipInfo(info.filename, info.date_time)
    copy.external_attr = info.external_attr or 0o644 << 16
    wheel.writestr(copy, content, zipfile.ZIP_LZMA if len(content) > 4096 else zipfile.ZIP_DEFLATED)


def _with_build(text: bytes, path: Path) -> bytes:
    build = path.name.split("-")[2]
    return text.rstrip(b"\n") + f"\nBuild: {build}\n".encode()


def _record(text: bytes, changed: dict[str, bytes], record: str) -> bytes:
    """A RECORD with the lines of changed files made anew: path, hash, size."""
    rows = [row for row in csv.reader(io.StringIO(text.decode())) if row and row[0] not in {*changed, record}]
    for name, content in changed.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append([name, f"sha256={digest}", str(len(content))])
    rows.append([record, "", ""])
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue().encode()
