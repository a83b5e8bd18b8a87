"""What a reader of one code's files is given and gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from painn_deploy.export.declaration import Declaration
from painn_deploy.export.readers.archive import Archive

__all__ = ["Opened", "Potential", "Reader", "named_by_model"]

WRAPPERS = ("module.", "_orig_mod.")
"""What torch's DataParallel and torch.compile put before each name of a state dict."""


@dataclass(frozen=True)
class Opened:
    """A file that `torch.save` or `torch.jit.save` wrote, and what lies beside it.

    Attributes:
        archive: its records.
        tree: what its pickle describes: stand-ins, mappings, lists and plain values; nothing of it was executed.
        path: of the file.
        beside: the configuration in JSON of the same stem beside it; None where there is none.
    """

    archive: Archive
    tree: Any
    path: Path
    beside: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Potential:
    """What was read.

    Attributes:
        tensors: in eV and Å under SchNetPack's names, see `painn_deploy.export.model.layout`.
        configuration: see `painn_deploy.export.model.student.Configuration`.
        remarks: sentences that a user should read.
    """

    tensors: Mapping[str, Tensor]
    configuration: Mapping[str, Any]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """Of the files of one code.

    Attributes:
        code: its name, as its users write it.
        claims: whether a file is one of this code's, whatever it holds; it raises nothing.
        read: the file; raises CheckpointError for what cannot be deployed, ConfigurationError for what is wrong beside
            it, and DeclarationError for what its owner has to say and did not.
    """

    code: str
    claims: Callable[[Opened], bool]
    read: Callable[[Opened, Declaration], Potential]


def named_by_model(state: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A state dict by the names that the model itself gives, whatever wrapped it."""
    for wrapper in WRAPPERS:
        if all(isinstance(name, str) and name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): thing for name, thing in state.items()}
    return state
