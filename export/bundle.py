"""The bundle: a folder NAME.engine with a manifest, the graph, the plan if any, and the errors measured at export.

A bundle is made in memory, where an engine of it can be opened and measured, and then written whole or not at all. On
disk it never changes. It is checked file by file before anything in it is used: a plan is code.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from painn_deploy.export.errors import BundleError, OutputError
from painn_deploy.export.files import prepare_output, write_folder_whole
from painn_deploy.export.manifest import MANIFEST, Manifest, check_free

__all__ = ["Bundle", "read_bundle", "write_bundle"]

IN_MEMORY = "a bundle in memory"

Stamp = tuple[int, int, int]
"""Size (bytes), time of the last change (ns) and inode of a file: where one of them differs, the file was changed."""


@dataclass(frozen=True)
class _Held:
    """Content that was hashed. Its stamp is that of the file before it was read, and None for what was never a file."""

    content: bytes
    stamp: Stamp | None = None


@dataclass(frozen=True)
class Bundle:
    """A manifest with the files that it lists; each file's content has the SHA-256 that the manifest says.

    `read_bundle` reads one from its folder, `Bundle.in_memory` makes one without a disk. A bundle holds the content of
    its files only as long as nobody else can: all of them while it is in memory alone, and one that was read until
    `file` has handed it over.

    Attributes:
        path: the folder; None for a bundle that is in memory alone.
        manifest: what the bundle says of itself.
        sha256: of the manifest's text, and through it of every file.
    """

    path: Path | None
    manifest: Manifest
    sha256: str
    _held: dict[str, _Held] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def in_memory(cls, manifest: Manifest, files: Mapping[str, bytes]) -> "Bundle":
        """Make a bundle of contents; each is hashed here, once.

        Args:
            manifest: its `files` are filled in here.
            files: contents by name.

        Raises:
            BundleError: the manifest holds a value that makes no sense, or a name is none that a bundle can hold.
        """
        for name in files:
            _check_name(name, IN_MEMORY)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
        return cls._of(replace(manifest, files=hashes), {name: _Held(content) for name, content in files.items()})

    @classmethod
    def _of(cls, manifest: Manifest, held: dict[str, _Held]) -> "Bundle":
        """One in memory, whose manifest is what a reader of its text would see."""
        text = manifest.to_json()
        return cls(None, Manifest.from_json(text, IN_MEMORY), hashlib.sha256(text.encode()).hexdigest(), held)

    def __str__(self) -> str:
        """Its folder, for messages."""
        return IN_MEMORY if self.path is None else str(self.path)

    def with_file(self, name: str, content: bytes) -> "Bundle":
        """The same bundle in memory with one more file, which alone is hashed; it replaces one of that name.

        Args:
            name: of the file.
            content: of the file.

        Raises:
            BundleError: see `in_memory`; or a file of a bundle on disk is gone or was altered.
        """
        _check_name(name, IN_MEMORY)
        held = {other: _Held(self.file(other)) for other in self.manifest.files if other != name}
        files = dict(self.manifest.files) | {name: hashlib.sha256(content).hexdigest()}
        return self._of(replace(self.manifest, files=dict(sorted(files.items()))), held | {name: _Held(content)})

    def file(self, name: str) -> bytes:
        """Content of a file, which is what was hashed, and not what may lie there since.

        The first call hands over what was read and checked with the bundle, if the file on disk is as it was; a later
        one reads the file again and checks it again.

        Raises:
            BundleError: the file is gone or was altered, or the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self} lists no {name}. Export it again.")
        if self.path is None:
            return self._held[name].content
        held = self._held.pop(name, None)
        if held is not None and held.stamp == _stamp(self.path / name):
            return held.content
        return _read_checked(self.path, name, self.manifest.files[name]).content

    def write(self, path: Path, *, overwrite: bool = False) -> "Bundle":
        """Write the bundle whole or not at all; nothing is hashed again.

        Args:
            path: the folder NAME.engine to make.
            overwrite: replace a bundle that is there.

        Returns:
            The bundle on disk. It holds no content: each file is read, and checked, when it is asked for.

        Raises:
            OutputError: the folder exists and is not to be replaced, is not a bundle, or cannot be written.
        """
        check_free(path, overwrite=overwrite)
        prepare_output(path.parent)
        files = {name: self.file(name) for name in self.manifest.files}
        try:
            write_folder_whole(path, {**files, MANIFEST: self.manifest.to_json().encode()})
        except OSError as error:
            raise OutputError(f"Cannot write {path}: {error.strerror or error}. Nothing was left behind.") from error
        return Bundle(path, self.manifest, self.sha256)


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle, and check every file of it.

    Raises:
        BundleError: there is none, its format is newer, or a file is missing, altered or foreign.
    """
    path = Path(path)
    source = path / MANIFEST
    try:
        text = source.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} is not a bundle: it has no readable {MANIFEST}. "
            "Make one with `painn-deploy export CHECKPOINT -o DIR`, and give the folder NAME.engine."
        ) from error
    try:
        manifest = Manifest.from_json(text.decode("utf-8"), source)
    except UnicodeDecodeError as error:
        raise BundleError(f"{source} is not text. Export the bundle again.") from error
    foreign = sorted(str(p.relative_to(path)) for p in path.rglob("*") if not p.is_dir())
    if foreign := [name for name in foreign if name != MANIFEST and name not in manifest.files]:
        raise BundleError(f"{path} holds files that its manifest does not list: {', '.join(foreign)}. Remove them.")
    held = {name: _read_checked(path, name, sha256) for name, sha256 in manifest.files.items()}
    return Bundle(path, manifest, hashlib.sha256(text).hexdigest(), held)


def _check_name(name: str, source: str | Path) -> None:
    if Path(name).name != name or name == MANIFEST:
        raise BundleError(f"{source} lists the file {name!r}, which is not inside it. Do not use this bundle.")


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _read_checked(path: Path, name: str, sha256: str) -> _Held:
    """A file whose content has the hash that the manifest says."""
    _check_name(name, path)
    stamp = _stamp(path / name)
    try:
        content = (path / name).read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} lacks {name}, which its manifest lists. Copy it whole, or export it again."
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BundleError(f"{path / name} was altered after export (its SHA-256 differs). Export the bundle again.")
    return _Held(content, stamp)


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes], *, overwrite: bool = False) -> Bundle:
    """Make a bundle and write it whole or not at all; see `Bundle.in_memory` and `Bundle.write`.

    Args:
        path: the folder NAME.engine to make.
        manifest: its `files` are filled in here.
        files: contents by name.
        overwrite: replace a bundle that is there.

    Raises:
        BundleError: the manifest holds a value that makes no sense.
        OutputError: the folder exists and is not to be replaced, is not a bundle, or cannot be written.
    """
    return Bundle.in_memory(manifest, files).write(path, overwrite=overwrite)
