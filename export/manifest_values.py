"""What each key of a manifest can hold; whoever hashes a manifest anew can put anything there."""

import math
import unicodedata
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any

__all__ = ["EXACT", "PRECISIONS", "arithmetic_of", "wrong_keys"]

PRECISIONS = ("fp64", "fp32", "fp16", "int8")
"""Every precision that a bundle can be in, the most exact first."""

EXACT = ("fp64", "fp32")
"""What `Manifest.arithmetic` is of an engine that is held to giving what its student gives, and not to limits of the
user's: nothing of its graph was rounded since it was traced, and nothing is as it runs."""

LONGEST_WORD, LONGEST_TEXT, MOST_ITEMS = 200, 10_000, 1_000
LARGEST_SIZE = 16_384
"""Of features, interactions and radial functions."""

LARGEST_CUTOFF = 100.0
"""Å; a force field that reached as far would take all memory for its neighbours."""

LARGEST_AXIS, LARGEST_NUMBER = 2**31, 2**63
HEAVIEST = 118


def arithmetic_of(precision: str, *, tf32: bool) -> str:
    """What an engine computes in: its precision, or `tf32` of FP32 whose products round their operands to ten bits.

    Args:
        precision: of its graph.
        tf32: whether products in FP32 round so.
    """
    return "tf32" if tf32 and precision == "fp32" else precision


def wrong_keys(values: Mapping[str, Any]) -> list[str]:
    """Names of a manifest's attributes that hold what makes no sense, alone or beside each other.

    Args:
        values: by the attribute's name, see `painn_deploy.export.manifest.Manifest`; all of them.
    """
    wrong = [name for name, sound in SOUND.items() if not sound(values[name])]
    if not wrong and len(values["atomic_references"]) != len(values["species"]):
        wrong.append("atomic_references")
    if not wrong and not _members_of(values["members"], values["axes"], values["species"]):
        wrong.append("members")
    return wrong


def _members_of(members: Any, axes: Mapping[str, int], species: Any) -> bool:
    """Whether there are as many members as the graph gives energies of, each with an energy for each element."""
    return len(members) == axes.get("members", 0) and all(
        len(one["atomic_references"]) == len(species) for one in members
    )


def _word(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_WORD and value.isprintable()


def _text(value: Any) -> bool:
    """A text that can be written and shown: without control characters, which a terminal would obey."""
    return (
        isinstance(value, str)
        and len(value) <= LONGEST_TEXT
        and not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in value if sign not in "\n\t")
    )


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _whole(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _number(value: Any) -> bool:
    return (type(value) is int and abs(value) < LARGEST_NUMBER) or (isinstance(value, float) and math.isfinite(value))


def _sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _items(value: Any, sound: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) <= MOST_ITEMS and all(sound(each) for each in value)


def _cutoff(value: Any) -> bool:
    return isinstance(value, float) and 0 < value <= LARGEST_CUTOFF


def _species(value: Any) -> bool:
    return (
        _items(value, lambda z: _whole(z, HEAVIEST))
        and bool(value)
        and all(one < other for one, other in pairwise(value))
    )


def _energies(value: Any) -> bool:
    return _items(value, lambda energy: isinstance(energy, float) and math.isfinite(energy))


def _mapping(value: Any, sound: Callable[[Any], bool]) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) <= MOST_ITEMS
        and all(_word(key) for key in value)
        and all(sound(each) for each in value.values())
    )


def _said(value: Any) -> bool:
    """A plain value of which somebody may have said something: a text, a number, a flag, or a list of them."""
    return value is None or _flag(value) or _number(value) or _text(value)


def _said_or_listed(value: Any) -> bool:
    return _said(value) or _items(value, _said)


def _configuration(value: Any) -> bool:
    sizes = ("hidden_dim", "num_interactions", "num_rbf")
    return (
        _mapping(value, _said_or_listed)
        and all(_whole(value[key], LARGEST_SIZE) for key in sizes if key in value)
        and all(_number(value[key]) for key in ("cutoff", "epsilon") if key in value)
        and (value.get("species") is None or _species(value["species"]))
    )


def _table(value: Any) -> bool:
    if value is None:
        return True
    whole = ("rank", "intervals", "structures")
    return (
        _mapping(value, _said_or_listed)
        and {"rank", "max_force_error", "structures"} <= value.keys()
        and all(_whole(value[key], LARGEST_AXIS) for key in whole if key in value)
        and value["rank"] <= LARGEST_SIZE
        and isinstance(value["max_force_error"], float)
        and value["max_force_error"] >= 0
    )


def _axis(value: Any) -> bool:
    """The least, the most likely and the largest length of an axis."""
    return (
        _items(value, lambda size: _whole(size, LARGEST_AXIS))
        and len(value) == 3
        and all(one <= other for one, other in pairwise(value))
    )


def _profile(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"atoms", "slots"} and all(map(_axis, value.values()))


def _axes(value: Any) -> bool:
    """Lengths of the axes of further outputs; a committee's spread needs two members, and it gives no features."""
    return _mapping(value, lambda size: _whole(size, LARGEST_SIZE)) and (
        not value or value.keys() == {"width"} or (value.keys() == {"members"} and value["members"] > 1)
    )


def _member(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and value.keys() == {"name", "checkpoint_sha256", "atomic_references"}
        and _text(value["name"])
        and _sha256(value["checkpoint_sha256"])
        and _energies(value["atomic_references"])
    )


def _declared(value: Any) -> bool:
    return _mapping(value, lambda said: _text(said) or _items(said, _text))


SOUND: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "architecture": _word,
        "checkpoint_sha256": _sha256,
        "configuration": _configuration,
        "cutoff": _cutoff,
        "species": _species,
        "species_verified": _flag,
        "atomic_references": _energies,
        "engine": _word,
        "engine_version": _word,
        "precision": lambda value: isinstance(value, str) and value in PRECISIONS,
        "built_at": _word,
        "built_with": lambda value: _mapping(value, _word),
        "bound_to": lambda value: _items(value, _word),
        "radial_table": _table,
        "profiles": lambda value: _items(value, _profile),
        "axes": _axes,
        "members": lambda value: _items(value, _member),
        "tf32": _flag,
        "declared": _declared,
        "files": lambda value: isinstance(value, Mapping) and all(map(_sha256, value.values())),
        "manifest_sha256": _sha256,
    }
)
