"""A model that Python pickled as a tree of modules: each of a known class, and nothing in it beside what its class has.

A class is known by its full name. What an object holds beside what its class gives it may change what is computed, and
is refused by name: an attribute, such as a `forward` of its own, a tensor, a submodule, functions that run beside it.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.archive import Archive, is_tensor, kind_of
from painn_deploy.export.readers.stand_ins import Name, StandIn

__all__ = ["MOST", "Code", "Holds", "Modules"]

MOST = 100
"""Members of a list: interactions, layers, read-outs, models of a sum."""

INSIDE = ("_modules", "_parameters", "_buffers")
"""Where a module has its submodules and tensors."""

EVERY = {*INSIDE, "training", "_non_persistent_buffers_set"}
"""Attributes that every module has; what else torch gives all of them is private, and empty if nothing was added."""


class Holds(NamedTuple):
    """What objects of a class hold.

    Attributes:
        values: names of attributes that are neither tensors nor modules to torch.
        parts: names of tensors and submodules; None for a list, which holds any submodules and no tensors.
    """

    values: str = ""
    parts: str | None = ""


TORCH: Mapping[str, Holds] = {
    "torch.nn.modules.linear.Linear": Holds("in_features out_features", "weight bias"),
    "torch.nn.modules.sparse.Embedding": Holds(
        "num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse", "weight"
    ),
    "torch.nn.modules.dropout.Dropout": Holds("p inplace"),
    "torch.nn.modules.activation.SiLU": Holds("inplace"),
    **{f"torch.nn.modules.container.{kind}": Holds(parts=None) for kind in ("ModuleList", "ModuleDict", "Sequential")},
}
"""Classes of torch that codes build with."""

SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


@dataclass(frozen=True)
class Code:
    """What a model of one code is made of.

    Attributes:
        deployed: what of this code can be deployed, the sentence that ends each refusal.
        classes: its own, by their full names.
    """

    deployed: str
    classes: Mapping[str, Holds]

    def refuse(self, source: str, what: str) -> NoReturn:
        """Raise for what stands in the way.

        Args:
            source: the file.
            what: it is.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{source}: {what}. {self.deployed}")


class Modules:
    """Gives modules and tensors of one file, and raises for what a model of its code does not have.

    Args:
        archive: of the file.
        code: that made it.
    """

    def __init__(self, archive: Archive, code: Code) -> None:
        self.archive = archive
        self._code, self._classes = code, {**TORCH, **code.classes}

    def refuse(self, what: str) -> NoReturn:
        """Raise for what stands in the way.

        Raises:
            CheckpointError: always.
        """
        self._code.refuse(self.archive.source, what)

    def module(self, thing: Any, at: str, *kinds: str) -> StandIn:
        """A module of a known class, which holds nothing else than that class does.

        Args:
            thing: of the tree.
            at: what it is, for the message.
            kinds: classes that it may be of, without the modules around them.

        Raises:
            CheckpointError: it is another one, or holds more.
        """
        names = [name for name in self._classes if name.rpartition(".")[2] in kinds]
        if not isinstance(thing, StandIn) or str(thing.name) not in names:
            self.refuse(f"{at} is {kind_of(thing)}, not {' or '.join(names)}")
        inside = [thing.state.get(name, {}) for name in INSIDE]
        ordinary = not thing.args and not thing.items and all(isinstance(held, dict) for held in inside)
        if not ordinary or len({*thing.state}.union(*inside)) < sum(map(len, [thing.state, *inside])):
            self.refuse(f"{at} holds its tensors and modules otherwise than torch does")
        values, parts = self._classes[str(thing.name)]
        known = {*inside[0]} if parts is None else {*parts.split()}
        unknown = {name for held in inside for name, value in held.items() if value is not None} - known
        unknown |= {n for n, value in thing.state.items() if not _is_empty(n, value)} - EVERY - {*values.split()}
        if unknown:
            extra = ", ".join(sorted(map(str, unknown)))
            self.refuse(f"{at} holds {extra}, which {thing.kind} does not: it may change what is computed")
        return thing

    def members(self, thing: Any, at: str, *kinds: str) -> dict[str, Any]:
        """Modules of a list in order under their numbers, or of a dict by their names.

        Args:
            thing: of the tree.
            at: what it is, for the message.
            kinds: classes that it may be of, without the modules around them.

        Raises:
            CheckpointError: it is another one, holds too many, or numbers them otherwise.
        """
        found = self.module(thing, at, *kinds)
        members: dict[str, Any] = found.state.get("_modules", {})
        if len(members) > MOST:
            self.refuse(f"{at} holds {len(members):,} modules, and no more than {MOST} are read")
        if not found.kind.endswith("Dict") and list(members) != [str(index) for index in range(len(members))]:
            self.refuse(f"{at} names its modules otherwise than by numbers")
        return members

    def tensor(self, owner: StandIn, name: str, at: str, *, integers: bool = False) -> Tensor:
        """A tensor or a parameter.

        Args:
            owner: of it.
            name: of it there.
            at: what the owner is, for the message.
            integers: whether 64-bit integers will do, too.

        Raises:
            CheckpointError: it is none of numbers.
        """
        return self.archive.tensor(owner.part(name), f"{name} of {at}", integers=integers)

    def number(self, thing: Any, what: str) -> float:
        """A number as Python, numpy or torch holds one.

        Args:
            thing: of the tree.
            what: it is, for the message.

        Raises:
            CheckpointError: it is no number.
        """
        if isinstance(thing, int | float) and not isinstance(thing, bool):
            return float(thing)
        if (number := _numpy_number(thing)) is not None:
            return number
        if not is_tensor(thing):
            self.refuse(f"{what} is no number; it is {kind_of(thing)}")
        found = self.archive.tensor(thing, what, integers=True)
        if found.numel() != 1:
            self.refuse(f"{what} holds {found.numel()} numbers, not one")
        return float(found)


def _numpy_number(thing: Any) -> float | None:
    """What a scalar of numpy holds; None for another thing."""
    match thing:
        case StandIn(made_by, (StandIn(Name("numpy", "dtype"), ("f4" | "f8" as kind, *_)), held)) if (
            str(made_by) in SCALARS
        ):
            text = held.args[0] if isinstance(held, StandIn) and held.args else held  # of _codecs.encode
            content = text.encode("latin1", "ignore") if isinstance(text, str) else text
            if isinstance(content, bytes) and len(content) == int(kind[1]):
                return float(struct.unpack("<f" if kind == "f4" else "<d", content)[0])
    return None


def _is_empty(name: Any, value: Any) -> bool:
    """Whether a private attribute holds nothing, as torch's lists of hooks do where there are none."""
    return str(name).startswith("_") and (value is None or value is False or value in ({}, []))
