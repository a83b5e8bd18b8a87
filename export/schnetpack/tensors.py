"""The numbers of one SchNetPack model: of its state dict where there is one, else of the modules themselves."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from painn_deploy.export.readers.archive import Archive
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["PARAMETERS", "Tensors"]

PARAMETERS = ("weight", "bias")


class Tensors:
    """What a model's modules hold, by their names in its state dict; it remembers what was read.

    Args:
        archive: of the file.
        weights: a state dict that takes the place of the modules' own numbers; None where there is none.
    """

    def __init__(self, archive: Archive, weights: Mapping[str, Tensor] | None) -> None:
        self._archive, self._weights = archive, weights
        self._read: set[str] = set()

    def one(self, owner: StandIn, name: str, path: str, *, integers: bool = False) -> Tensor | None:
        """A parameter or a buffer; None where there is none.

        Args:
            owner: the module.
            name: of the tensor in it.
            path: of the module in the state dict.
            integers: whether 64-bit integers will do, too.

        Raises:
            CheckpointError: it is no dense tensor of floating-point numbers.
        """
        full = f"{path}.{name}"
        self._read.add(full)
        if self._weights is not None:
            return self._weights.get(full)
        thing = owner.part(name)
        return None if thing is None else self._archive.tensor(thing, full, integers=integers)

    def some(self, owner: StandIn, path: str, names: Iterable[str] = PARAMETERS) -> dict[str, Tensor]:
        """Those tensors of a module that there are, by their names in the state dict.

        Args:
            owner: the module.
            path: of it in the state dict.
            names: of the tensors.

        Raises:
            CheckpointError: see `one`.
        """
        found = {f"{path}.{name}": self.one(owner, name, path) for name in names}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def number(self, owner: StandIn, name: str, path: str, *, integers: bool = False) -> float | None:
        """A tensor's only number; None where it has none, or several.

        Args:
            owner: see `one`.
            name: see `one`.
            path: see `one`.
            integers: see `one`.

        Raises:
            CheckpointError: see `one`.
        """
        found = self.one(owner, name, path, integers=integers)
        return None if found is None or found.numel() != 1 else float(found)

    def unread(self, prefixes: tuple[str, ...]) -> list[str]:
        """Names of the state dict that begin so and that nobody asked for.

        Args:
            prefixes: of the names.
        """
        return sorted(name for name in self._weights or () if name.startswith(prefixes) and name not in self._read)
