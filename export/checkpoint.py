"""From a file to a student: weights only, nothing in a checkpoint is ever executed."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from painn_deploy.export.errors import CheckpointError, ConfigurationError
from painn_deploy.export.model.distiller import Distiller
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.export.model.student import Configuration, Student
from painn_deploy.export.model.weights import check_student, check_tensors

__all__ = ["ARCHITECTURES", "Checkpoint", "find_checkpoint", "load_checkpoint", "load_student", "resolve_checkpoint"]

ARCHITECTURES: Mapping[str, type[PaiNN] | type[Distiller]] = {"painn": PaiNN, "distiller": Distiller}
SHIPPED = Path(__file__).parent / "students"
STATE_KEYS = ("state_dict", "model_state_dict")
CONFIGURATION_KEYS = ("configuration", "config")
LONGEST_NAME = 150


@dataclass(frozen=True)
class Checkpoint:
    """Where a student's weights are.

    Attributes:
        path: the .safetensors or .pt file.
        name: what bundles are named after.
        sha256: of the file's bytes.
    """

    path: Path
    name: str
    sha256: str


def find_checkpoint(checkpoint: str | Path) -> tuple[Path, str]:
    """Find a checkpoint by path, or one that ships by its name, such as `student:base`; the file is not read.

    Returns:
        The file, and the name that its bundles bear.

    Raises:
        CheckpointError: there is no such file or student.
    """
    text = str(checkpoint)
    if text.startswith("student:"):
        size = text.removeprefix("student:")
        shipped = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
        if size not in shipped:
            listed = ", ".join(f"student:{name}" for name in shipped) or "none"
            raise CheckpointError(f"No student named {text!r} ships with this version; those that do: {listed}.")
        return SHIPPED / f"{size}.safetensors", f"student-{size}"
    path = Path(checkpoint)
    if path.suffix not in (".safetensors", ".pt"):
        raise CheckpointError(
            f"{path} is neither .safetensors nor .pt. Save the state dict with safetensors.torch.save_file, "
            "with its configuration as JSON beside it."
        )
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}. Give a .safetensors or .pt file, or student:base.")
    if len(path.stem) > LONGEST_NAME:
        raise CheckpointError(f"{path.stem[:40]}... is too long a name to name bundles after; rename the file.")
    return path, path.stem


def resolve_checkpoint(checkpoint: str | Path) -> Checkpoint:
    """Find a checkpoint as `find_checkpoint` does, and hash its file.

    Raises:
        CheckpointError: there is no such file or student, or it cannot be read.
    """
    path, name = find_checkpoint(checkpoint)
    return Checkpoint(path, name, hashlib.sha256(_content(path)).hexdigest())


def load_student(path: str | Path, *, dtype: torch.dtype = torch.float32) -> Student:
    """Load a student force field: the torch model that is the reference for every engine made from it.

    The configuration is JSON beside the weights (same stem, .json) or inside them. Pickles are never executed.

    Args:
        path: .safetensors or .pt file, or the name of a student that ships, such as `student:base`.
        dtype: torch.float32 or torch.float64, of weights and arithmetic.

    Returns:
        The student in evaluation mode, its parameters frozen.

    Raises:
        CheckpointError: the file is missing, corrupt, a pickle of more than tensors, or not of a known architecture.
        ConfigurationError: the configuration is missing, lacks a key, or does not fit the weights.
    """
    return load_checkpoint(path, dtype=dtype)[0]


def load_checkpoint(path: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[Student, Checkpoint]:
    """Load a student as `load_student` does, together with the hash of the very bytes that its weights came from.

    Args:
        path: see `load_student`.
        dtype: see `load_student`.

    Returns:
        The student, and its checkpoint; the file is read once for both.

    Raises:
        CheckpointError: see `load_student`.
        ConfigurationError: see `load_student`.
    """
    if dtype not in (torch.float32, torch.float64):
        raise CheckpointError(f"Students are loaded in float32 or float64, not in {dtype}.")
    file, name = find_checkpoint(path)
    content, source = _content(file), str(file)
    state, inside = _tensors(content, file)
    configuration = _configuration(file, inside)
    if configuration.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{source} is of the architecture {configuration.architecture!r}; "
            f"this version deploys {', '.join(sorted(ARCHITECTURES))}."
        )
    check_tensors(state, source)
    try:
        student = ARCHITECTURES[configuration.architecture].from_state_dict(configuration, state, source)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{source} does not hold the tensors of {configuration.architecture}: {error}."
        ) from error
    student = student.to(dtype).eval().requires_grad_(False)
    check_student(student, source)
    return student, Checkpoint(file, name, hashlib.sha256(content).hexdigest())


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error


def _tensors(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and whatever configuration the file itself holds."""
    if path.suffix == ".safetensors":
        try:
            tensors = safetensors.torch.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is not a safetensors file, or is cut short: {error}.") from error
        return tensors, _from_metadata(header.get("__metadata__", {}))
    try:
        read = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met; every one of them means the same to the user
        raise CheckpointError(
            f"{path} cannot be read as weights only ({type(error).__name__}): it is corrupt, or holds pickled "
            "objects, which could run code and are never opened. Save model.state_dict() instead."
        ) from error
    return _unwrap(read, path)


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state dict alone, or one beside a configuration in a dict."""
    inside: dict[str, Any] = {}
    if isinstance(content, dict):
        inside = next((content[k] for k in CONFIGURATION_KEYS if isinstance(content.get(k), dict)), {})
        content = next((content[k] for k in STATE_KEYS if isinstance(content.get(k), dict)), content)
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    ):
        raise CheckpointError(
            f"{path} is not a state dict: expected a dict of tensors, alone or under {' or '.join(STATE_KEYS)} "
            f"with the configuration under {' or '.join(CONFIGURATION_KEYS)}."
        )
    return content, inside


def _from_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """safetensors holds strings alone: the configuration as one JSON string, or a string for each key."""
    for key in CONFIGURATION_KEYS:
        if key in metadata:
            try:
                values = json.loads(metadata[key])
            except json.JSONDecodeError:
                values = None
            if not isinstance(values, dict):
                raise ConfigurationError(f"The metadata key {key!r} does not hold a JSON object.")
            return values
    return {key: _plain(value) for key, value in metadata.items()} if "architecture" in metadata else {}


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _configuration(path: Path, inside: Mapping[str, Any]) -> Configuration:
    beside = path.with_suffix(".json")
    values: dict[str, Any] = {}
    if beside.is_file():
        try:
            values = json.loads(beside.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{beside} is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise ConfigurationError(f"{beside} holds no JSON object.")
    elif not inside:
        raise ConfigurationError(
            f"{path} holds no configuration and there is no {beside.name} beside it. Write one with architecture, "
            "hidden_dim, num_interactions, num_rbf and cutoff."
        )
    if disagree := sorted(key for key in values.keys() & inside.keys() if values[key] != inside[key]):
        raise ConfigurationError(f"{beside} and {path} disagree about {', '.join(disagree)}; make them say the same.")
    return Configuration.from_mapping({**inside, **values}, str(beside if values else path))
