"""Repulsion of nuclei at short distances (Ziegler, Biersack and Littmark), as SchNetPack adds it to a network."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from painn_deploy.export.errors import CheckpointError, ConfigurationError
from painn_deploy.export.model.aggregation import Aggregation, gather
from painn_deploy.export.model.cutoffs import cutoff_function, no_more

__all__ = ["REPULSION", "ZBLRepulsion"]

REPULSION = "repulsion."
"""Before the names of its tensors in a checkpoint."""

NUMBERS = ("a_power", "a_scale", "strength")


class ZBLRepulsion(nn.Module):
    """Half of strength · Z_i Z_j / d · f(d) · Σ_k c_k exp(-b_k (a_i + a_j) d) for each slot, a = a_scale Z^a_power.

    Args:
        rows: of the student's embedding.
        terms: of the screening function.
        kind: of the function f that fades it, see `cutoff_function`; `none` where nothing does.
        cutoff: Å, where f ends; no farther than the student.
        switch_on: Å, of `switch`.

    Attributes:
        coefficients: c [terms], which add up to one.
        exponents: b [terms].
        radii: a of each element [rows], 1/Å.
        strength: e²/4πε0 [1], eV Å.
    """

    coefficients: Tensor
    exponents: Tensor
    radii: Tensor
    strength: Tensor
    charges: Tensor

    def __init__(self, rows: int, terms: int, kind: str, cutoff: float, switch_on: float | None = None) -> None:
        super().__init__()
        self.kind, self.cutoff, self.switch_on = kind, cutoff, switch_on
        for name, size in {"coefficients": terms, "exponents": terms, "radii": rows, "strength": 1}.items():
            self.register_buffer(name, torch.zeros(size))
        self.register_buffer("charges", torch.arange(rows, dtype=torch.float32), persistent=False)

    def forward(
        self,
        distances: Float[Tensor, "atoms slots"],
        mask: Float[Tensor, "atoms slots"],
        atomic_numbers: Int[Tensor, " atoms"],
        neighbours: Int[Tensor, "atoms slots"],
        aggregation: Aggregation,
    ) -> Float[Tensor, " atoms"]:
        """Each atom's half, eV.

        Args:
            distances: Å, positive in padded slots, too.
            mask: 1 for an edge, 0 for padding.
            atomic_numbers: Z.
            neighbours: j of each slot.
            aggregation: how sums over neighbours are computed.
        """
        tables = (self.charges[:, None], self.radii[:, None])
        charges, radii = (nn.functional.embedding(atomic_numbers, table) for table in tables)
        screening = radii.unsqueeze(1) + gather(radii, neighbours)  # 1/Å [atoms, slots, 1]

        def pair(d: Tensor) -> Tensor:
            terms = torch.exp(-(screening * d.unsqueeze(-1)) * self.exponents) * self.coefficients
            return (terms.sum(-1) * self.faded(d) * mask / d).unsqueeze(-1)

        (filters,) = aggregation.filters([pair], distances)
        around = aggregation.scalars(filters, charges, neighbours)
        return (0.5 * self.strength * (charges * around)).sum(-1)

    def faded(self, d: Float[Tensor, "*edges"]) -> Float[Tensor, "*edges"]:
        """What it is multiplied by at a distance, Å."""
        if self.kind == "none":
            return torch.ones_like(d)
        faded = cutoff_function(self.kind, self.cutoff, switch_on=self.switch_on)
        return faded(no_more(d, self.cutoff))  # it may end before the student does: the mask does not say where

    @classmethod
    def taken_from(
        cls, tensors: dict[str, Tensor], kind: str, rows: int, farthest: float, source: str
    ) -> "ZBLRepulsion":
        """A repulsion whose numbers are among a checkpoint's tensors, which are replaced by those of its state dict.

        Args:
            tensors: of the checkpoint: `coefficients` and `exponents` [terms], `a_power`, `a_scale` (1/Å), `strength`
                (eV Å), and where something fades it `cutoff` (Å) and perhaps `switch_on` (Å), after `REPULSION`.
            kind: see above.
            rows: of the student's embedding.
            farthest: the student's cutoff, Å.
            source: the file, for messages.

        Raises:
            CheckpointError: a number is missing or makes no sense.
            ConfigurationError: it reaches farther than the student.
        """
        found = {name: tensors.pop(name) for name in list(tensors) if name.startswith(REPULSION)}
        found = {name.removeprefix(REPULSION): tensor.double() for name, tensor in found.items()}
        limits = () if kind == "none" else ("cutoff", "switch_on") if kind == "switch" else ("cutoff",)
        _check(found, (*NUMBERS, *limits), source)
        cutoff, switch_on = (float(found[name]) if name in found else None for name in ("cutoff", "switch_on"))
        if cutoff is not None and not 0 < cutoff <= farthest + 1e-6:
            raise ConfigurationError(
                f"{source}: its repulsion reaches to {cutoff:g} Å and its messages to {farthest:g} Å; pairs beyond the "
                "messages' cutoff are no edges of the graph, so a repulsion that ends there or before can be deployed."
            )
        if kind == "switch" and not 0 <= (switch_on or 0.0) < (cutoff or 0.0):
            raise CheckpointError(f"{source}: its repulsion begins to fade at {switch_on} Å and ends at {cutoff} Å.")
        elements = torch.arange(rows, dtype=torch.float64)
        radii = found["a_scale"].reshape(()) * elements.clamp_min(1) ** found["a_power"].reshape(()) * (elements > 0)
        made = {name: found[name] for name in ("coefficients", "exponents")}
        made |= {"radii": radii, "strength": found["strength"].reshape(1)}
        tensors |= {f"{REPULSION}{name}": tensor for name, tensor in made.items()}
        return cls(rows, len(made["exponents"]), kind, farthest if cutoff is None else cutoff, switch_on)


def _check(found: Mapping[str, Tensor], numbers: tuple[str, ...], source: str) -> None:
    terms = [found[name] for name in ("coefficients", "exponents") if name in found]
    whole = len(terms) == 2 and all(t.dim() == 1 and len(t) for t in terms) and len(terms[0]) == len(terms[1])
    whole = whole and all(name in found and found[name].numel() == 1 for name in numbers)
    if not whole or len(found) != len(numbers) + 2 or not all(torch.isfinite(t).all() for t in found.values()):
        raise CheckpointError(
            f"{source}: its repulsion holds {', '.join(sorted(found)) or 'nothing'}; needed are coefficients and "
            f"exponents of equal length, and one finite number each for {', '.join(numbers)}."
        )
