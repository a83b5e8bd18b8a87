"""The manifest of a bundle: what the bundle says of itself, and the names of its files.

`Bundle`, `read_bundle` and `write_bundle` are in `painn_deploy.export.bundle`; they answer here too.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from painn_deploy.export.errors import BundleError, OutputError
from painn_deploy.export.fields import UNITS, Field, inputs_of, outputs_of
from painn_deploy.export.manifest_values import PRECISIONS, arithmetic_of, wrong_keys
from painn_deploy.export.moved import moved_names
from painn_deploy.export.parsing import UnreadableError, parse_json
from painn_deploy.export.reading import is_plain_name

if TYPE_CHECKING:
    from painn_deploy.export.bundle import Bundle, read_bundle, write_bundle

__all__ = [
    "FORMAT_VERSION",
    "PRECISIONS",
    "Bundle",
    "Manifest",
    "manifest_digest",
    "read_bundle",
    "write_bundle",
]

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
MODEL = "model.onnx"
VALIDATION = "validation.json"
UNCERTAINTY = "uncertainty.json"
"""What makes uncertainties of the features that a graph gives, or measures a committee's; in no other bundle."""

SUFFIX = ".engine"
LARGEST_MANIFEST = 2**22
"""Bytes; one of ours has a few thousand."""

MOST_FILES = 1_000

KEYS = {"bound_to": "compute_capability"}
"""Of the file, where they are not an attribute's name: to rename one would be a new format."""


@dataclass(frozen=True)
class Manifest:
    """A bundle's description of itself.

    Attributes:
        architecture: of the student, `painn` or `distiller`.
        checkpoint_sha256: of the checkpoint's file; of a committee, SHA-256 over its members' hashes in their order,
            written one after the other in hexadecimal.
        configuration: the student's, see `painn_deploy.export.model.student.Configuration`.
        cutoff: Å.
        species: atomic numbers that the engine answers for.
        species_verified: whether the configuration lists them; else they are the embedding's rows.
        atomic_references: eV for each of `species`, added to atomic energies in float64 outside the graph.
        engine: backend.
        engine_version: of the backend that built it.
        precision: `fp64`, `fp32`, `fp16` or `int8`.
        bound_to: kinds of device that the engine runs on, as its backend names them: compute capabilities of GPUs
            (`86`, `cuda:90`), vector instructions of a CPU (`cpu:AVX512`); empty where it runs anywhere.
        radial_table: what replaced the radial network, and its measured force error; None where nothing did.
        profiles: ranges of atoms and slots that the engine was built for; empty where any is served.
        declared: what the checkpoint's owner said of it (`energy_unit`, `length_unit`, `species`, `energy_key`), see
            `painn_deploy.export.declaration`; and `remarks`, sentences about what was assumed. Empty for a checkpoint
            that says it all.
        axes: lengths of the axes of outputs that the graph gives beside energies, forces and virials, see
            `painn_deploy.export.fields.outputs_of`.
        members: of a committee, each with its `name`, `checkpoint_sha256` and `atomic_references` (eV for each of
            `species`); empty for one student.
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
    axes: Mapping[str, int] = field(default_factory=dict)
    members: tuple[Mapping[str, Any], ...] = ()
    tf32: bool = False
    declared: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=lambda: dict(UNITS))
    files: Mapping[str, str] = field(default_factory=dict)
    manifest_sha256: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def inputs(self) -> tuple[Field, ...]:
        """The inputs of its graph."""
        return inputs_of(self.format_version)

    @property
    def outputs(self) -> tuple[Field, ...]:
        """The outputs of its graph."""
        return outputs_of(self.axes)

    @property
    def arithmetic(self) -> str:
        """What its results are judged as, see `arithmetic_of`."""
        return arithmetic_of(self.precision, tf32=self.tf32)

    @property
    def compute_capability(self) -> tuple[str, ...]:
        """The former name of `bound_to`."""
        return self.bound_to

    @classmethod
    def from_json(cls, text: str, source: str | Path) -> "Manifest":
        """Read a manifest and check what its keys hold.

        Args:
            text: of the file.
            source: the file, for messages.

        Raises:
            BundleError: it is not JSON, of a newer format, lacks a key, or holds a value that makes no sense.
        """
        try:
            values = parse_json(text, str(source), finite=False)  # such a number is named by its key
        except UnreadableError as error:
            raise BundleError(f"{error}. Export the bundle again.") from error
        version = values.get("format_version")
        if type(version) is not int or version < 1:
            raise BundleError(f"{source} has no format_version: it is not a painn-deploy bundle.")
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{source} is of format {version}, and this painn-deploy reads up to {FORMAT_VERSION}. "
                "Upgrade painn-deploy, or export the bundle again with this one."
            )
        known = {f.name: KEYS.get(f.name, f.name) for f in fields(cls)}
        # younger than the first format
        stored, values = values, {"tf32": False, "declared": {}, "axes": {}, "members": [], **values}
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


def _check(values: Mapping[str, Any], source: str | Path) -> None:
    """Hold every value against what its key can hold."""
    for name in values["files"] if isinstance(values["files"], Mapping) else ():
        check_name(name, source)
    if wrong := wrong_keys(values):
        raise BundleError(
            f"{source}: {', '.join(KEYS.get(name, name) for name in wrong)} holds a value that makes no sense. It was "
            "altered after export; export the bundle again."
        )
    if values["files"].keys() - {MODEL, VALIDATION, UNCERTAINTY} and not values["bound_to"]:
        raise BundleError(
            f"{source} lists machine code and does not say what it is bound to ({KEYS['bound_to']}). Export it again."
        )
    if len(values["files"]) > MOST_FILES:
        raise BundleError(f"{source} lists {len(values['files']):,} files, and no bundle has that many.")
    if values["units"] != dict(UNITS):
        raise BundleError(f"{source} is in the units {_short(values['units'])}; this painn-deploy reads {dict(UNITS)}.")


def check_name(name: str, source: str | Path) -> None:
    """Refuse the name of a file that a bundle cannot hold.

    Args:
        name: of the file.
        source: of the name, for the message.

    Raises:
        BundleError: it is no plain name, or that of the manifest.
    """
    if not is_plain_name(name) or name == MANIFEST:
        raise BundleError(f"{source} lists the file {_short(name)}, which is not inside it. Do not use this bundle.")


def _short(value: Any) -> str:
    """A value in a message: as Python would write it, in letters that every terminal has."""
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


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


if not TYPE_CHECKING:  # a checker that saw it would believe that any name is here
    _moved = moved_names(__name__, dict.fromkeys(("prepare_output", "to_json"), "painn_deploy.export.files"))

    def __getattr__(name: str) -> Any:
        """Names that users import from here; their module imports this one, and so is imported when they are used."""
        if name not in ("Bundle", "read_bundle", "write_bundle"):
            return _moved(name)
        import painn_deploy.export.bundle as bundle

        return getattr(bundle, name)
