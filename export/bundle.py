"""The bundle: a folder NAME.engine with a manifest, the graph, the plan if any, and the errors measured at export.

A bundle is made in memory, where an engine of it can be opened and measured, and then written whole or not at all. On
disk it never changes. It is checked file by file before anything in it is used. That finds what was damaged or mixed
up; it does not find an attacker, who hashes anew, and a plan is code: SECURITY.md says what to do about that.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from painn_deploy.export.described import described
from painn_deploy.export.errors import BundleError, OutputError
from painn_deploy.export.files import prepare_output, write_folder_whole
from painn_deploy.export.manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    MODEL,
    UNCERTAINTY,
    Manifest,
    check_free,
    check_name,
)
from painn_deploy.export.onnx_content import OnnxContent, OnnxContentError, read_onnx_content
from painn_deploy.export.parsing import UnreadableError, parse_json, parse_value
from painn_deploy.export.reading import AbsentError, LinkError, Stamp, read_stamped, stamp_of

__all__ = ["Bundle", "read_bundle", "the_same", "write_bundle"]

IN_MEMORY = "a bundle in memory"

LARGEST = 2**31
"""Bytes of all files of a bundle; those of ours have a few million."""

DESCRIBED = ("architecture", "checkpoint_sha256", "configuration", "cutoff", "radial_table", "species", "units")
"""What both the manifest and the metadata of model.onnx say, each under the same key."""

LINKED = (
    "Files of a bundle may not be links, as they are in a cache of the Hugging Face hub, in git-annex or under stow. "
    "Copy it with what they lead to (`cp -rL FROM TO` or `rsync -rL FROM TO`), and open the copy."
)

ATTEMPTS = 3
"""At a folder that is replaced while it is read."""


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
            BundleError: the manifest holds a value that makes no sense, a name is none that a bundle can hold, or
                model.onnx takes numbers from another file.
        """
        for name, content in files.items():
            _check_content(name, content)
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

    def __repr__(self) -> str:
        """One line that says what it is; `manifest` says all."""
        return described("Bundle", getattr(self, "manifest", None), getattr(self, "path", None))

    def with_file(self, name: str, content: bytes) -> "Bundle":
        """The same bundle in memory with one more file, which alone is hashed; it replaces one of that name.

        Args:
            name: of the file.
            content: of the file.

        Raises:
            BundleError: see `in_memory`; or a file of a bundle on disk is gone or was altered.
        """
        _check_content(name, content)
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

    def json(self, name: str) -> dict[str, Any]:
        """Content of a file that holds a JSON object, whose values and their kinds are the reader's to check.

        Raises:
            BundleError: see `file`; or it holds none.
        """
        try:
            return parse_json(self.file(name), f"{name} of {self}", finite=False)  # an error may be NaN
        except UnreadableError as error:
            raise BundleError(f"{error}. Export the bundle again.") from error

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
        replaced = os.path.lexists(path)
        try:
            write_folder_whole(path, {**files, MANIFEST: self.manifest.to_json().encode()}, durable=True)
        except OSError as error:
            gone = replaced and not os.path.lexists(path)  # the error says where it is
            raise OutputError(
                f"Cannot write {path}: {error.strerror or error}.{'' if gone else ' Nothing was left behind.'}"
            ) from error
        return Bundle(path, self.manifest, self.sha256)


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle, and check every file of it.

    A bundle that is replaced meanwhile is read again, so that the old one or the new one is what comes back.

    Raises:
        BundleError: there is none, its format is newer, or a file is missing, altered, foreign, or no regular file; or
            model.onnx is not what the manifest says of it.
    """
    path = Path(path)
    for _ in range(ATTEMPTS - 1):
        before = _identity(path)
        try:
            return _read(path)
        except BundleError:
            if _identity(path) == before:
                raise
    return _read(path)


def the_same(source: Bundle | str, sha256: str) -> Bundle:
    """The bundle that a copy was made of.

    Args:
        source: its folder, or itself where it is in memory alone.
        sha256: of the bundle that the original had opened.

    Raises:
        BundleError: it is gone from its folder, or another one is there.
    """
    found = source if isinstance(source, Bundle) else read_bundle(source)
    if found.sha256 != sha256:
        raise BundleError(
            f"{found} is not the bundle that was there when this copy was made: its engine was replaced. Open the "
            "calculator anew from it, or put the old bundle back."
        )
    return found


def _read(path: Path) -> Bundle:
    source = path / MANIFEST
    try:
        content = read_stamped(source, LARGEST_MANIFEST).content
    except LinkError as error:
        raise BundleError(f"{error}. {LINKED}") from error
    except UnreadableError as error:
        why = f"it has no readable {MANIFEST}" if _identity(path) else "there is no such folder"
        why += "" if isinstance(error, AbsentError) else f": {error}"
        raise BundleError(
            f"{path} is not a bundle: {why}. "
            "Make one with `painn-deploy export CHECKPOINT -o DIR`, and give the folder NAME.engine."
        ) from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{source} is not text. Export the bundle again.") from error
    manifest = Manifest.from_json(text, source)
    if foreign := _foreign(path, manifest):
        raise BundleError(f"{path} holds files that its manifest does not list: {', '.join(foreign)}. Remove them.")
    held: dict[str, _Held] = {}
    left = LARGEST
    for name, sha256 in manifest.files.items():
        held[name] = _read_checked(path, name, sha256, left)
        left -= len(held[name].content)
    if MODEL not in held:
        raise BundleError(f"{path} lists no {MODEL}. Export it again.")
    _check_described(manifest, _onnx_content(held[MODEL].content, path), path)
    return Bundle(path, manifest, hashlib.sha256(content).hexdigest(), held)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which folder a name leads to; None where it leads to none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _foreign(path: Path, manifest: Manifest) -> list[str]:
    """What lies in the folder and is not listed, of any kind; a few of them."""
    try:
        with os.scandir(path) as entries:
            foreign = (each.name for each in entries if each.name != MANIFEST and each.name not in manifest.files)
            return [ascii(name)[1:-1] for name in sorted(islice(foreign, 6))]
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}.") from error


def _check_content(name: str, content: bytes) -> None:
    """Refuse a file that a bundle in memory cannot hold."""
    check_name(name, IN_MEMORY)
    if name == MODEL:
        _onnx_content(content, IN_MEMORY)


def _onnx_content(content: bytes, source: str | Path) -> OnnxContent:
    try:
        return read_onnx_content(content)
    except OnnxContentError as error:
        raise BundleError(f"{MODEL} of {source} {error}. Do not use this bundle; export it again.") from error


def _check_described(manifest: Manifest, graph: OnnxContent, path: Path) -> None:
    """Hold what a manifest says of its graph against what the graph says of itself; an older one may not say it."""
    said = {key: getattr(manifest, key) for key in DESCRIBED}
    if manifest.precision != "int8":  # what INT8 costs each element is added to its reference
        said["atomic_references"] = manifest.atomic_references
    wrong = [key for key, value in said.items() if key in graph.metadata and not _same(value, graph.metadata[key])]
    if graph.precision != manifest.precision:
        wrong.append("precision")
    if not _same(manifest.axes, graph.metadata.get("axes", "{}")):
        wrong.append("axes")
    fitted = UNCERTAINTY in manifest.files
    if ("width" in manifest.axes and not fitted) or (fitted and not manifest.axes):
        raise BundleError(
            f"{path} has only one of features and {UNCERTAINTY}, which makes uncertainties of them. Export it again."
        )
    of_student = {key: manifest.configuration.get(key, getattr(manifest, key)) for key in ("architecture", "cutoff")}
    if differing := [key for key, value in of_student.items() if value != getattr(manifest, key)]:
        raise BundleError(
            f"The manifest of {path} says another {' and '.join(differing)} than its configuration does. Export the "
            "bundle again."
        )
    if wrong:
        raise BundleError(
            f"The manifest of {path} says another {' and '.join(wrong)} than its {MODEL} does: they are not of one "
            "export. Export the bundle again."
        )


def _same(value: Any, text: str) -> bool:
    """Whether a value is what the metadata of a graph hold: a text as it is, all else as JSON."""
    if isinstance(value, str):
        return value == text
    wanted = json.dumps(value)
    try:
        return wanted == text or bool(parse_value(text, "") == json.loads(wanted))
    except UnreadableError:
        return False


def _stamp(path: Path) -> Stamp | None:
    try:
        return stamp_of(path.lstat())
    except OSError:
        return None


def _read_checked(path: Path, name: str, sha256: str, most: int = LARGEST) -> _Held:
    """A file whose content has the hash that the manifest says."""
    try:
        content, stamp = read_stamped(path / name, most)
    except AbsentError as error:
        raise BundleError(
            f"{path} lacks {name}, which its manifest lists. Copy it whole, or export it again."
        ) from error
    except LinkError as error:
        raise BundleError(f"{error}. {LINKED}") from error
    except UnreadableError as error:
        raise BundleError(f"{error}. Copy the bundle whole, or export it again.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        if hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest() == sha256:
            raise BundleError(
                f"{path / name} was altered after export (its SHA-256 differs): its line ends were changed, as git "
                "does with core.autocrlf. Write `*.engine/** -text` into .gitattributes and check it out again, or "
                "export the bundle again."
            )
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
