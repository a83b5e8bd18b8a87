"""The bundle: a folder NAME.engine with a manifest, the graph, the plan if any, and the errors measured at export.

A bundle is written whole or not at all, never changes afterwards, and is checked file by file before anything in it is
used: a plan is code.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from painn_deploy.export.errors import BundleError, OutputError
from painn_deploy.export.fields import UNITS

__all__ = [
    "FORMAT_VERSION",
    "Bundle",
    "Manifest",
    "manifest_digest",
    "prepare_output",
    "read_bundle",
    "to_json",
    "write_bundle",
]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
VALIDATION = "validation.json"
SUFFIX = ".engine"
PRECISIONS = ("fp32", "fp16", "int8")
KEYS = {"bound_to": "compute_capability"}
"""Of the file, where they are not an attribute's name: to rename one would be a new format."""


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        architecture: of the student, `painn` or `distiller`.
        checkpoint_sha256: of the checkpoint's file.
        configuration: the student's, see `painn_deploy.export.student.Configuration`.
        cutoff: Å.
        species: atomic numbers that the engine answers for.
        species_verified: whether the configuration lists them; else they are the embedding's rows.
        atomic_references: eV for each of `species`, added to atomic energies in float64 outside the graph.
        engine: backend.
        engine_version: of the backend that built it.
        precision: `fp32`, `fp16` or `int8`.
        bound_to: kinds of device that the engine runs on, as its backend names them: compute capabilities of GPUs
            (`86`, `cuda:90`), vector instructions of a CPU (`cpu:AVX512`); empty where it runs anywhere.
        radial_table: what replaced the radial network, and its measured force error; None where nothing did.
        profiles: ranges of atoms and slots that the engine was built for; empty where any is served.
        tf32: whether FP32 products may round their operands to ten bits; only where a user asked for it.
        units: of every quantity.
        files: SHA-256 of every other file.
        manifest_sha256: of this manifest without this key; a value that was edited is noticed.
        built_at: UTC, ISO 8601.
        built_with: versions of the packages that took part.
        format_version: of the bundle.
    """

    architecture: str
    checkpoint_sha256: str
    configuration: Mapping[str, Any]
    cutoff: float
    species: tuple[int, ...]
    species_verified: bool
    atomic_references: tuple[float, ...]
    engine: str
    engine_version: str
    precision: str
    built_at: str
    built_with: Mapping[str, str]
    bound_to: tuple[str, ...] = ()
    radial_table: Mapping[str, Any] | None = None
    profiles: tuple[Mapping[str, Any], ...] = ()
    tf32: bool = False
    units: Mapping[str, str] = field(default_factory=lambda: dict(UNITS))
    files: Mapping[str, str] = field(default_factory=dict)
    manifest_sha256: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def compute_capability(self) -> tuple[str, ...]:
        """The former name of `bound_to`."""
        return self.bound_to

    @classmethod
    def from_json(cls, text: str, source: Path) -> "Manifest":
        """Read a manifest and check what its keys hold.

        Raises:
            BundleError: it is not JSON, of a newer format, lacks a key, or holds a value that makes no sense.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{source} is not JSON: {error}. Export the bundle again.") from error
        if not isinstance(values, dict):
            raise BundleError(f"{source} holds no JSON object. Export the bundle again.")
        version = values.get("format_version")
        if not isinstance(version, int) or version < 1:
            raise BundleError(f"{source} has no format_version: it is not a painn-deploy bundle.")
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{source} is of format {version}, and this painn-deploy reads up to {FORMAT_VERSION}. "
                "Upgrade painn-deploy, or export the bundle again with this one."
            )
        known = {f.name: KEYS.get(f.name, f.name) for f in fields(cls)}
        stored, values = values, {"tf32": False, **values}  # younger than the format
        if missing := sorted(set(known.values()) - values.keys()):
            raise BundleError(f"{source} lacks {', '.join(missing)}. Export the bundle again.")
        if values["manifest_sha256"] != manifest_digest(stored):
            raise BundleError(f"{source} was altered after export (its SHA-256 differs). Export the bundle again.")
        frozen = {name: _frozen(values[key]) for name, key in known.items()}
        _check(frozen, source)
        return cls(**frozen)

    def to_json(self) -> str:
        """The file's text."""
        values = {KEYS.get(name, name): value for name, value in asdict(self).items()}
        return json.dumps(values | {"manifest_sha256": manifest_digest(values)}, indent=1) + "\n"


def manifest_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's values without the key that holds it."""
    rest = {key: value for key, value in values.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check(values: Mapping[str, Any], source: Path) -> None:
    """Hold the values that a runtime computes with against what they can be."""
    cutoff, species, references = values["cutoff"], values["species"], values["atomic_references"]
    sound = {
        "cutoff": isinstance(cutoff, float) and 0 < cutoff < float("inf"),
        "species": isinstance(species, tuple) and bool(species) and all(z in range(1, 119) for z in species),
        "atomic_references": isinstance(references, tuple)
        and all(isinstance(e, float) and abs(e) < float("inf") for e in references)
        and len(references) == len(species),
        "files": isinstance(values["files"], Mapping),
        "precision": values["precision"] in PRECISIONS,
        "engine": isinstance(values["engine"], str),
    }
    if wrong := [name for name, fine in sound.items() if not fine]:
        raise BundleError(
            f"{source}: {', '.join(wrong)} holds a value that makes no sense. It was altered after export; "
            "export the bundle again."
        )
    if values["units"] != dict(UNITS):
        raise BundleError(f"{source} is in the units {values['units']}; this painn-deploy reads {dict(UNITS)}.")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were found to be those that its manifest lists.

    Attributes:
        path: the folder.
        manifest: what it says of itself.
        sha256: of the manifest, and through it of every file.
    """

    path: Path
    manifest: Manifest
    sha256: str

    def file(self, name: str) -> bytes:
        """Bytes of a file, checked again as they are read: what is used is what was hashed.

        Raises:
            BundleError: the file is gone or was altered.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} lists no {name}. Export it again.")
        return _read_checked(self.path, name, self.manifest.files[name])


def read_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle.

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
    for name, sha256 in manifest.files.items():
        _read_checked(path, name, sha256)
    return Bundle(path, manifest, hashlib.sha256(text).hexdigest())


def _read_checked(path: Path, name: str, sha256: str) -> bytes:
    if Path(name).name != name:
        raise BundleError(f"{path} lists the file {name!r}, which is not inside it. Do not use this bundle.")
    try:
        content = (path / name).read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} lacks {name}, which its manifest lists. Copy it whole, or export it again."
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BundleError(f"{path / name} was altered after export (its SHA-256 differs). Export the bundle again.")
    return content


def prepare_output(folder: str | Path) -> Path:
    """Make an output folder and prove that it can be written, before any long work.

    Raises:
        OutputError: it cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"Cannot write to {folder}: {error.strerror or error}. Choose another folder with -o."
        ) from error
    return folder


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes], *, overwrite: bool = False) -> Bundle:
    """Write a bundle whole or not at all.

    Args:
        path: the folder NAME.engine to make.
        manifest: its `files` are filled in here.
        files: contents by name.
        overwrite: replace a bundle that is there.

    Raises:
        OutputError: it exists and is not to be replaced, is not a bundle, or the folder cannot be written.
    """
    check_free(path, overwrite=overwrite)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    manifest = Manifest(**{**{f.name: getattr(manifest, f.name) for f in fields(manifest)}, "files": hashes})
    prepare_output(path.parent)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        partial.chmod(0o755)
        if path.exists():
            retired = partial.with_suffix(".retired")
            path.rename(retired)
            partial.rename(path)
            shutil.rmtree(retired)
        else:
            partial.rename(path)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}. Nothing was left behind.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_bundle(path)


def to_json(values: Mapping[str, Any]) -> bytes:
    """A file of JSON that a person can read too."""
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse to replace a bundle without leave, and anything that is not a bundle with or without.

    Raises:
        OutputError: see above.
    """
    if not os.path.lexists(path):
        return
    if not (path / MANIFEST).is_file():
        raise OutputError(f"{path} exists and is not a bundle; move it away.")
    if not overwrite:
        raise OutputError(f"{path} exists. Give --overwrite to replace it, or another folder with -o.")
