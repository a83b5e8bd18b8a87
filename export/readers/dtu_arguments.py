"""Where the cutoff of a PaiNN-model is: in a later version's checkpoint, else in its training's arguments beside it."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from painn_deploy.export.errors import ConfigurationError
from painn_deploy.export.parsing import UnreadableError
from painn_deploy.export.readers.reader import Opened
from painn_deploy.export.reading import AbsentError, read_json, read_regular

__all__ = ["read_cutoff"]

ARGUMENTS = ("arguments.json", "arguments.toml")
"""What its training writes, or is given, in the folder of its checkpoints."""

SAID = {"cutoff": ("cutoff",), "node_size": ("node_size",), "num_interactions": ("num_interactions", "num_layer")}
"""Hyperparameters, and what files call them."""

BESIDE = frozenset({*SAID, "num_layer", "species", "code", "description"})
LARGEST, DOTS = 2**20, 100
"""Bytes of the arguments beside a checkpoint, and dots in a line: a key of many takes the square of memory."""

FARTHEST = 10_000
"""No cutoff is larger, whatever the unit."""


def read_cutoff(opened: Opened, inside: Mapping[Any, Any], sizes: Mapping[str, int | None]) -> tuple[float, str]:
    """Find the cutoff in the model's unit, and the file that says it: itself, or one beside it that fits its weights.

    Args:
        opened: the file.
        inside: what it holds beside its weights.
        sizes: node_size and num_interactions that its weights have; None where they do not say.

    Raises:
        ConfigurationError: nothing says it, or what does contradicts itself or the weights.
    """
    path, found = opened.path, dict[str, float]()
    for where, said in _said(opened, inside):
        for name, size in sizes.items():
            if name in said and size is not None and said[name] != size:
                raise ConfigurationError(
                    f"{where} says {name} = {said[name]!r}, and the weights of {path} have {size}."
                )
        value = said.get("cutoff")
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < FARTHEST
        ):
            raise ConfigurationError(f"{where} says cutoff = {str(value)[:80]!r}, which is no distance.")
        if value is not None:
            found[where] = float(value)
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{value:g} in {where}" for where, value in found.items())
        raise ConfigurationError(f"What says the cutoff of {path} disagrees: {listed}. Make it say the same.")
    if not found:
        raise ConfigurationError(
            f"{path} holds weights without their hyperparameters: nothing says the cutoff, and a wrong one would give "
            f"wrong forces. Write it (the --cutoff of its training, in Å) to {path.with_suffix('.json').name} beside "
            f'the file, as {{"cutoff": 5.0}}, or lay the {" or ".join(ARGUMENTS)} of its training beside it.'
        )
    where, cutoff = next(iter(found.items()))
    return cutoff, where


def _said(opened: Opened, inside: Mapping[Any, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the file says of its hyperparameters, and files beside it: an owner's own, else the first of a training."""
    path = opened.path
    own = _hyperparameters(inside)
    yield str(path), own
    if opened.beside is not None:
        if unknown := sorted(map(str, opened.beside.keys() - BESIDE)):
            raise ConfigurationError(
                f"{path.with_suffix('.json')} has keys that say nothing of such a model: {', '.join(unknown)}. Those "
                f"that do: {', '.join(sorted(BESIDE))}."
            )
        yield str(path.with_suffix(".json")), _hyperparameters(opened.beside)
    if "cutoff" in own or "cutoff" in (opened.beside or {}):
        return
    for name in ARGUMENTS:
        arguments = _arguments(path.with_name(name))
        if arguments is not None:
            yield str(path.with_name(name)), _hyperparameters(arguments)
            return


def _hyperparameters(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: values[key] for name, keys in SAID.items() for key in keys if key in values}


def _arguments(path: Path) -> Mapping[str, Any] | None:
    try:
        if path.suffix == ".json":
            return read_json(path, LARGEST, follow=True, finite=False)
        text = read_regular(path, LARGEST, follow=True).decode()
        if max(line.count(".") for line in text.split("\n")) > DOTS:
            raise UnreadableError(f"a line of it has more than {DOTS} dots")
        return tomllib.loads(text)
    except AbsentError:
        return None
    except (UnreadableError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"The arguments beside a checkpoint cannot be read: {path}: {error}.") from error
