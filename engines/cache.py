"""Engines that were built before, found again by all that they depend on."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from painn_deploy.engines.backend import Backend, BuildOptions, BuiltEngine
from painn_deploy.engines.kept import cache_folder, keep_folder, trusted
from painn_deploy.engines.profiles import Profile
from painn_deploy.export.errors import BundleError, ShapeError
from painn_deploy.export.manifest import MANIFEST, MODEL, VALIDATION
from painn_deploy.export.onnx_content import OnnxContentError, read_onnx_content
from painn_deploy.export.parsing import UnreadableError
from painn_deploy.export.progress import Tell, silent
from painn_deploy.export.reading import is_plain_name, read_json, read_regular

__all__ = ["build_cached", "cache_folder", "cache_key"]

META = "engine.json"
MADE = 4
"""Version of our way of building; one more whenever a backend here builds the same graph differently."""

LARGEST_META, LARGEST = 2**20, 2**31
"""Bytes."""


def cache_key(backend: Backend, model: bytes, options: BuildOptions) -> str:
    """SHA-256 of graph, backend, its version, what it is bound to here, every option, and our way of building.

    The graph's types are its precision, so that this is in the key with it.

    Args:
        backend: that builds.
        model: contents of model.onnx.
        options: what the engine is built for.
    """
    parts = {
        "made": MADE,
        "model": hashlib.sha256(model).hexdigest(),
        "backend": backend.name,
        "version": backend.version(),
        "bound_to": backend.bound_to(options),
        "options": asdict(options) | {"of_student": hashlib.sha256(options.of_student).hexdigest()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build_cached(
    backend: Backend, model: bytes, options: BuildOptions, tell: Tell = silent
) -> tuple[BuiltEngine, bool]:
    """Build an engine, or take an earlier one of the same graph, backend and options.

    An entry is a folder that is renamed into place when it is whole, so that two builders at once cost time and
    nothing else. One that was damaged, or that another user could have written, is built again.

    Args:
        backend: that builds.
        model: contents of model.onnx.
        options: what the engine is built for.
        tell: called with a line about each step.

    Returns:
        The engine, and whether it was built before.

    Raises:
        BundleError: the graph is not whole in itself.
        EngineError: the graph cannot be built.
        EngineUnavailableError: something that building needs is not here.
    """
    try:
        read_onnx_content(model)
    except OnnxContentError as error:
        raise BundleError(f"No engine is built of this graph: it {error}. Export the student again.") from error
    folder = cache_folder() / "engines" / cache_key(backend, model, options)
    if (found := _read(folder)) is not None:
        return found, True
    built = backend.build(model, options, tell)
    if built.files:  # else there is nothing that took time
        _keep(folder, built)
    return built, False


def _read(folder: Path) -> BuiltEngine | None:
    """An entry whose files are unchanged; None where there is none."""
    if not trusted(folder):
        return None
    try:
        meta = read_json(folder / META, LARGEST_META, owned=True)
        listed: dict[str, str] = {_name(name): _text(sha256) for name, sha256 in meta["files"].items()}
        files = {name: read_regular(folder / name, LARGEST, owned=True) for name in listed}
        if not files or any(hashlib.sha256(files[name]).hexdigest() != sha256 for name, sha256 in listed.items()):
            return None
        profiles = tuple(Profile.from_mapping(profile) for profile in _list(meta["profiles"]))
        bound_to, warnings = (tuple(map(_text, _list(meta[key]))) for key in ("bound_to", "warnings"))
        if not bound_to or not all(bound_to) or not isinstance(meta["tf32"], bool):
            return None
        return BuiltEngine(files, bound_to, profiles, warnings, meta["tf32"])
    except (UnreadableError, ShapeError, AttributeError, KeyError, TypeError, ValueError, MemoryError):
        return None


def _name(name: str) -> str:
    """A name that a file of an engine can have in a bundle."""
    if not is_plain_name(name) or name in (META, MANIFEST, MODEL, VALIDATION):
        raise ValueError(f"{name!a} is no file of an engine")
    return name


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _keep(folder: Path, built: BuiltEngine) -> None:
    """A cache that cannot be written is no reason to lose the engine."""
    meta = {
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in built.files.items()},
        "bound_to": list(built.bound_to),
        "warnings": list(built.warnings),
        "tf32": built.tf32,
        "profiles": [profile.as_dict() for profile in built.profiles],
    }
    keep_folder(folder, {**built.files, META: json.dumps(meta).encode()})
