"""Tensors of a checkpoint become the weights of a student: every check that they pass on the way."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from ase.data import chemical_symbols
from torch import Tensor
from torch.overrides import TorchFunctionMode

from painn_deploy.export.errors import CheckpointError, ConfigurationError
from painn_deploy.export.model.student import Configuration, Student

__all__ = [
    "check_basis",
    "check_names",
    "check_num_rbf",
    "check_student",
    "check_tensors",
    "hidden_sizes",
    "renamed_once",
    "with_weights",
]

AGAIN = "Save the weights of the trained model again, as model.state_dict() gives them."

MOST_TENSORS = 10_000
"""Of a state dict; a student has some dozens."""

MOST_ROWS = 1_024
"""Of an embedding, so that it stays small: there are 118 elements, and some trainings round their number up."""

MOST_REPEATED = 2**26
"""Numbers that a student may hold beyond those of its file, where tensors are tied: half a gigabyte in float64."""

Made = TypeVar("Made", bound=Student)

PREFIXES = ("model", "module", "_orig_mod", "net")
"""Names that wrappers put before every key of a state dict."""


def check_tensors(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse a state dict that holds anything but dense floating-point tensors, or whose keys a wrapper renamed.

    Args:
        state: tensors under the training code's names.
        source: the file, for the message.

    Raises:
        CheckpointError: a tensor is of another kind, declares more numbers than it holds, tensors share far more
            numbers than tied weights do, or every key begins with a wrapper's name.
    """
    if len(state) > MOST_TENSORS:
        raise CheckpointError(f"{source} holds {len(state):,} tensors, and no student has that many. {AGAIN}")
    for key, value in state.items():
        if not value.is_floating_point() or value.dtype.itemsize < 2 or value.layout != torch.strided or value.is_meta:
            raise CheckpointError(f"{source}: {key} holds {value.dtype}, {value.layout}; not floating-point weights.")
        if value.numel() * value.dtype.itemsize > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{source}: {key} declares {value.numel():,} numbers of {tuple(value.shape)}, "
                f"and the file holds fewer. {AGAIN}"
            )
    _check_tied(state, source)
    first = next(iter(state), "").split(".")[0]
    if first in PREFIXES and all(key.startswith(f"{first}.") for key in state):
        raise CheckpointError(
            f"{source}: every tensor's name begins with {first!r}, which a wrapper added. Save the state dict of the "
            "model inside the wrapper, without that prefix."
        )


def _check_tied(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse tied tensors that would become a student far larger than its file: each place in it has its own copy."""
    used: Counter[int] = Counter()
    held: dict[int, int] = {}
    for tensor in state.values():
        storage = tensor.untyped_storage()
        used[storage.data_ptr()] += tensor.numel()
        held[storage.data_ptr()] = storage.nbytes() // tensor.dtype.itemsize
    repeated = sum(max(0, count - held[storage]) for storage, count in used.items())
    if repeated > MOST_REPEATED:
        raise CheckpointError(
            f"{source} uses its numbers over and over: {repeated:,} of its weights repeat others, and no more than "
            f"{MOST_REPEATED:,} are read. Save a copy of each tensor (tensor.clone()), and only what the student needs."
        )


def renamed_once(weights: Mapping[str, Tensor], rename: Callable[[str], str], source: str) -> dict[str, Tensor]:
    """Give each tensor our name.

    Args:
        weights: tensors under the training code's names.
        rename: the training code's name of a tensor to ours.
        source: the file, for the message.

    Raises:
        CheckpointError: two tensors claim one place.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        if rename(key) in renamed:
            raise CheckpointError(f"{source} holds {key} and another tensor for the same place; remove one of them.")
        renamed[rename(key)] = value
    return renamed


def check_num_rbf(found: int, configuration: Configuration, source: str) -> None:
    """Refuse weights with another number of radial basis functions than the configuration says.

    Args:
        found: radial basis functions of the weights.
        configuration: what they should be.
        source: the file, for the message.

    Raises:
        ConfigurationError: the numbers differ.
    """
    if found != configuration.num_rbf:
        raise ConfigurationError(
            f"{source} has {found} radial basis functions, its configuration {configuration.num_rbf}."
        )


def hidden_sizes(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Sizes of the read-out's hidden layers, which its biases give in order; keys are our names."""
    sizes: list[int] = []
    while (key := f"readout.{2 * len(sizes)}.bias") in weights:
        sizes.append(len(weights[key]))
    return tuple(sizes[:-1])


def check_basis(tensors: Mapping[str, Tensor], source: str, *, positive: Sequence[str]) -> None:
    """Refuse tensors of a radial basis that are not one row of finite numbers each, all of one length.

    Args:
        tensors: by what they are called.
        source: the file, for messages.
        positive: names of those that divide or are divided by, and so are above zero.

    Raises:
        CheckpointError: see above.
    """
    for name, tensor in tensors.items():
        if tensor.dim() != 1 or not len(tensor) or not torch.isfinite(tensor).all():
            raise CheckpointError(f"{source}: {name} of the radial basis is no row of finite numbers. {AGAIN}")
        if name in positive and not (tensor > 0).all():
            raise CheckpointError(f"{source}: one of {name} of the radial basis is not positive. {AGAIN}")
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        lengths = " and ".join(f"{len(tensor)} {name}" for name, tensor in tensors.items())
        raise CheckpointError(f"{source}: its radial basis has {lengths}, and each function has one of both. {AGAIN}")


def check_names(wanted: Mapping[str, Any], given: Mapping[str, Any], named: str, source: str) -> None:
    """Refuse tensors that are missing, or left over.

    Args:
        wanted: by the names that there have to be.
        given: by the names that there are.
        named: what has the wanted ones, for the message.
        source: the file, for the message.

    Raises:
        CheckpointError: see above.
    """
    if missing := sorted(wanted.keys() - given.keys()):
        raise CheckpointError(f"{source} lacks tensors that {named} has: {_some(missing)}.")
    if extra := sorted(given.keys() - wanted.keys()):
        raise CheckpointError(
            f"{source} holds tensors that {named} has no place for: {_some(extra)}. "
            "They may change the model, so they are not ignored."
        )


def with_weights(
    make: Callable[[], Made], configuration: Configuration, weights: Mapping[str, Tensor], source: str
) -> Made:
    """Make a student with weights: every one of them, and nothing else; in float64, as exactly as they came.

    Shapes are compared before the student takes memory, since a configuration can ask for any size.

    Args:
        make: a student of the configuration's sizes.
        configuration: of the student.
        weights: tensors under our names; `atomic_references` [rows of the embedding] (eV) may be among them.
        source: the file, for messages.

    Raises:
        CheckpointError: tensors are missing or left over, or hold NaN or infinity.
        ConfigurationError: a tensor's shape is not what the configuration implies.
    """
    named = f"{configuration.architecture} with {configuration.num_interactions} interactions"
    weights = dict(weights)
    references = weights.pop("atomic_references", None)
    if configuration.num_interactions > len(weights):  # else so many would be made to say which are missing
        raise CheckpointError(f"{source} lacks tensors that {named} has: it holds {len(weights)}. {AGAIN}")
    if (rows := len(weights.get("embedding.weight", ()))) > MOST_ROWS:
        raise CheckpointError(
            f"{source}: the embedding has {rows:,} rows, and no more than {MOST_ROWS:,} are read; there are "
            f"{len(chemical_symbols) - 1} elements. Cut the table after the heaviest element that was trained, and "
            "atomic references with it."
        )
    with torch.device("meta"), _Unfilled():
        wanted = {name: tensor.shape for name, tensor in make().state_dict().items()}
    check_names(wanted, weights, named, source)
    for key, value in weights.items():
        if value.shape != wanted[key]:
            raise ConfigurationError(
                f"{source}: {key} has the shape {tuple(value.shape)}, but its configuration implies "
                f"{tuple(wanted[key])}; hidden_dim, num_rbf or num_interactions is not what was trained."
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{source}: {key} holds NaN or infinity; the training diverged before it was saved.")
    if references is not None and (references.shape != (rows,) or not torch.isfinite(references).all()):
        raise CheckpointError(
            f"{source}: atomic_references must hold one finite energy in eV for each of the "
            f"{rows} rows of the embedding."
        )
    student = make().double()  # weights are kept as exactly as they came, until the caller asks for less
    student.load_state_dict(weights)
    if references is not None:
        student.atomic_references = references.double()
    return student


class _Unfilled(TorchFunctionMode):
    """Makes tensors of students without their numbers, of those functions for which torch would import its compiler.

    That import takes a second, and is not needed for tensors that have a shape alone.
    """

    _SHAPES: ClassVar[Mapping[Any, Callable[..., tuple[int, ...]]]] = {
        torch.linspace: lambda start, end, steps: (steps,),  # noqa: ARG005
        torch.eye: lambda rows: (rows, rows),
    }

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else named["tensor"]
        if (shape := self._SHAPES.get(function)) is not None:
            return torch.empty(shape(*args))
        return function(*args, **named)


def check_student(student: Student, source: str) -> None:
    """Refuse a student whose embedding lacks an element that it needs, or whose weights overflowed its dtype.

    Args:
        student: with its weights, in the dtype that it is used in.
        source: the file, for messages.

    Raises:
        CheckpointError: the embedding is too short for hydrogen, or a weight is infinite in this dtype.
        ConfigurationError: the configuration lists an element beyond the embedding.
    """
    rows, species = student.embedding.num_embeddings, student.configuration.species
    if rows < 2:
        raise CheckpointError(f"{source}: the embedding has {rows} rows, and hydrogen needs row 1.")
    if species and species[-1] >= rows:
        raise ConfigurationError(
            f"{source}: its configuration lists element {species[-1]} ({chemical_symbols[species[-1]]}), but the "
            f"embedding ends at {rows - 1}. Name the elements that the student was trained on."
        )
    if not all(torch.isfinite(parameter).all() for parameter in student.parameters()):
        raise CheckpointError(f"{source}: a weight is too large for {student.dtype}.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
