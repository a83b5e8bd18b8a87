"""Files of tensors alone, safetensors or torch's, with the configuration that they may hold."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from painn_deploy.export.errors import CheckpointError, ConfigurationError
from painn_deploy.export.parsing import UnreadableError, parse_json, parse_value

__all__ = ["read_safetensors", "read_torch", "unwrapped"]

LARGEST_HEADER = 2**24
"""Bytes of the list of tensors in a safetensors file; ours have a few thousand."""

STATE_KEYS = ("state_dict", "model_state_dict")
CONFIGURATION_KEYS = ("configuration", "config")


def read_safetensors(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the configuration in the file's metadata.

    Args:
        content: of the file.
        path: of the file, for messages.

    Raises:
        CheckpointError: it is no safetensors file.
        ConfigurationError: its metadata hold no configuration where they should.
    """
    length = int.from_bytes(content[:8], "little")
    if length > min(LARGEST_HEADER, len(content) - 8):
        raise CheckpointError(f"{path} is not a safetensors file, or is cut short: its header has {length:,} bytes.")
    try:
        metadata = parse_json(content[8 : 8 + length], "its header").get("__metadata__", {})
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a safetensors file, or is cut short: {error}.") from error
    return tensors, _from_metadata(metadata)


def read_torch(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the configuration beside them, of a file that `torch.save` wrote.

    Args:
        content: of the file.
        path: of the file, for messages.

    Raises:
        CheckpointError: it holds more than tensors.
    """
    try:
        read = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met; every one of them means the same to the user
        raise CheckpointError(
            f"{path} cannot be read as weights only ({type(error).__name__}): it is corrupt, or holds pickled "
            "objects, which could run code and are never opened. Save model.state_dict() instead."
        ) from error
    return unwrapped(read, path, lambda value: isinstance(value, Tensor))


def unwrapped(content: Any, path: Path, is_tensor: Callable[[Any], bool]) -> tuple[dict[str, Any], dict[Any, Any]]:
    """A state dict alone, or one beside a configuration in a dict.

    Args:
        content: of the file.
        path: of the file, for messages.
        is_tensor: whether a value is one.

    Raises:
        CheckpointError: it is no state dict.
    """
    inside: dict[Any, Any] = {}
    if isinstance(content, dict):
        inside = next((content[k] for k in CONFIGURATION_KEYS if isinstance(content.get(k), dict)), {})
        content = next((content[k] for k in STATE_KEYS if isinstance(content.get(k), dict)), content)
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(k, str) and is_tensor(v) for k, v in content.items())
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
                return parse_json(metadata[key], f"the metadata key {key!r}", finite=False)
            except UnreadableError as error:
                raise ConfigurationError(f"The metadata key {key!r} does not hold a JSON object: {error}.") from error
    return {key: _plain(value) for key, value in metadata.items()} if "architecture" in metadata else {}


def _plain(text: str) -> Any:
    try:
        return parse_value(text, "", finite=False)
    except UnreadableError:
        return text
