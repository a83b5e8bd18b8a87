"""Engines that were built before, found again by all that they depend on."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from painn_deploy.engines.backend import Backend, BuildOptions, BuiltEngine
from painn_deploy.engines.profiles import Profile
from painn_deploy.export.files import write_folder_whole
from painn_deploy.export.progress import Tell, silent

__all__ = ["build_cached", "cache_folder", "cache_key"]

META = "engine.json"
MADE = 4
"""Version of our way of building; one more whenever a backend here builds the same graph differently."""


def cache_folder() -> Path:
    """$PAINN_DEPLOY_CACHE, or painn-deploy in the user's cache folder; it need not exist."""
    if chosen := os.environ.get("PAINN_DEPLOY_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "painn-deploy"


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
        "options": asdict(options),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build_cached(
    backend: Backend, model: bytes, options: BuildOptions, tell: Tell = silent
) -> tuple[BuiltEngine, bool]:
    """Build an engine, or take an earlier one of the same graph, backend and options.

    An entry is a folder that is renamed into place when it is whole, so that two builders at once cost time and
    nothing else. One that was damaged is built again.

    Args:
        backend: that builds.
        model: contents of model.onnx.
        options: what the engine is built for.
        tell: called with a line about each step.

    Returns:
        The engine, and whether it was built before.

    Raises:
        EngineError: the graph cannot be built.
        EngineUnavailableError: something that building needs is not here.
    """
    folder = cache_folder() / "engines" / cache_key(backend, model, options)
    if (found := _read(folder)) is not None:
        return found, True
    built = backend.build(model, options, tell)
    if built.files:  # else there is nothing that took time
        _keep(folder, built)
    return built, False


def _read(folder: Path) -> BuiltEngine | None:
    """An entry whose files are unchanged; None where there is none."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        files = {name: (folder / name).read_bytes() for name in meta["files"]}
        if any(hashlib.sha256(files[name]).hexdigest() != sha256 for name, sha256 in meta["files"].items()):
            return None
        profiles = tuple(Profile.from_mapping(profile) for profile in meta["profiles"])
        return BuiltEngine(files, tuple(meta["bound_to"]), profiles, tuple(meta["warnings"]), meta["tf32"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(folder: Path, built: BuiltEngine) -> None:
    """A cache that cannot be written is no reason to lose the engine."""
    meta = {
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in built.files.items()},
        "bound_to": list(built.bound_to),
        "warnings": list(built.warnings),
        "tf32": built.tf32,
        "profiles": [profile.as_dict() for profile in built.profiles],
    }
    with suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder_whole(folder, {**built.files, META: json.dumps(meta).encode()})
