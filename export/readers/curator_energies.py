"""What curator's output modules make of read-outs: an energy for each element's atoms, and forces that belong to it.

They come one after the other: each rescales atoms' energies, sums them, takes forces from the sum, or rescales both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from painn_deploy.export.declaration import ENERGY_KEY
from painn_deploy.export.readers.archive import Archive
from painn_deploy.export.readers.curator_parts import Part, refuse
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["Rescaled", "rescale"]

PER_ATOM = "atomic_energy"
SCALED = frozenset({ENERGY_KEY, "forces", "stress", "virial"})
"""What a GlobalRescaleShift may scale."""


@dataclass(frozen=True)
class Rescaled:
    """What becomes of read-outs.

    Attributes:
        scales: what the read-out of an atom of each element is multiplied with, float64.
        shifts: what is added to it then, in the model's unit, float64.
        remarks: sentences that a user should read.
    """

    scales: Float[Tensor, " rows"]
    shifts: Float[Tensor, " rows"]
    remarks: tuple[str, ...]


def rescale(archive: Archive, outputs: Sequence[Part], rows: int) -> Rescaled:
    """Follow read-outs through output modules.

    Args:
        archive: of the file.
        outputs: the modules in order.
        rows: of the embedding.

    Raises:
        CheckpointError: what comes out is no sum over atoms, or its forces are not the slope of it.
    """
    return _Outputs(archive, outputs, rows).result()


class _Outputs:
    def __init__(self, archive: Archive, outputs: Sequence[Part], rows: int) -> None:
        self._archive, self._source, self._outputs, self._rows = archive, archive.source, outputs, rows
        self._remarks: list[str] = []

    def result(self) -> Rescaled:
        rows = self._rows
        scales, shifts = torch.ones(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
        summed, derived = False, list[str]()
        for part in self._outputs:
            match part.kind:
                case "PerSpeciesRescaleShift":
                    self._check_per_species(part, summed)
                    scale, shift = (self._table(part, name) for name in ("scales", "shifts"))
                    scales, shifts = scales * scale, shifts * scale + shift
                case "AtomwiseReduce":
                    said = part.values.get("output_key"), part.values.get("aggregation_mode")
                    if summed or said != (ENERGY_KEY, "sum"):
                        again = "twice" if summed else f"by {said[1]!r} into {said[0]!r}, not by 'sum' into 'energy'"
                        refuse(self._source, f"energies of atoms are reduced {again}")
                    summed = True
                case "GradientOutput" if summed:
                    derived = ["forces", *_texts(part.values.get("model_outputs"))]
                case "GlobalRescaleShift" if summed:
                    factor = self._scale(part, derived)
                    scales, shifts = scales * factor, shifts * factor + self._shift(part)
                case _:
                    refuse(self._source, f"{part.kind} comes before energies of atoms are summed")
        if not summed:
            refuse(self._source, "no AtomwiseReduce sums the energies of atoms")
        return Rescaled(scales, shifts, tuple(self._remarks))

    def _check_per_species(self, part: Part, summed: bool) -> None:
        keys = [_texts(part.values.get(name)) for name in ("scales_keys", "shifts_keys")]
        if summed or any(found != [PER_ATOM] for found in keys):
            what = "comes after energies of atoms are summed" if summed else f"rescales {keys[0]} and {keys[1]}"
            refuse(self._source, f"PerSpeciesRescaleShift {what}, so it does not act on the energies of atoms alone")

    def _scale(self, part: Part, derived: Sequence[str]) -> float:
        """What a GlobalRescaleShift multiplies the energy with; its forces have to stay the slope of it."""
        keys, scale = _texts(part.values.get("scale_keys")), float(self._table(part, "scale_by", 1))
        if len(set(keys)) != len(keys) or not SCALED.issuperset(keys):
            refuse(self._source, f"GlobalRescaleShift scales {', '.join(keys)}")
        if "forces" in keys and not derived:
            refuse(self._source, "GlobalRescaleShift scales forces, and comes before GradientOutput makes them")
        of_energy, of_forces = (scale if key in keys else 1.0 for key in (ENERGY_KEY, "forces"))
        if derived and of_energy != of_forces:
            refuse(
                self._source,
                f"its energies are scaled by {of_energy:g} and its forces by {of_forces:g} after they were derived "
                "(scale_keys of GlobalRescaleShift), so that its forces are not the slope of its energy; train it with "
                "data.scale_forces=true, or with GlobalRescaleShift before GradientOutput",
            )
        if of_energy != 1.0 and {"stress", "virial"} & set(derived) - set(keys):
            self._remarks.append(
                f"curator scales its energies by {of_energy:g}, and leaves its stresses and virials unscaled. Those "
                "here are derivatives of the energy, as ASE has them."
            )
        return of_energy

    def _shift(self, part: Part) -> Tensor:
        """What a GlobalRescaleShift adds for an atom of each element."""
        shifts, keys = torch.zeros(self._rows, dtype=torch.float64), _texts(part.values.get("shift_keys"))
        if keys not in ([], [ENERGY_KEY]):
            refuse(self._source, f"GlobalRescaleShift shifts {', '.join(keys)}")
        if not keys:
            return shifts
        shift = float(self._table(part, "shift_by", 1))
        if shift and not self._truth(part, "atomwise_normalization"):
            refuse(
                self._source,
                f"{shift:g} is added to the energy of a structure whatever its size (atomwise_normalization is false), "
                "which is no energy of atoms; train it with data.atomwise_normalization=true",
            )
        shifts += shift
        return shifts + self._table(part, "atomic_energies") if self._truth(part, "shift_by_E0") else shifts

    def _table(self, part: Part, name: str, count: int | None = None) -> Tensor:
        if name not in part.tensors:
            refuse(self._source, f"{part.kind} lacks {name}")
        table = self._archive.tensor(part.tensors[name], name).double().flatten()
        count = self._rows if count is None else count
        if len(table) != count or not torch.isfinite(table).all():
            refuse(self._source, f"{name} of {part.kind} holds {len(table)} numbers, and not {count} finite ones")
        return table

    def _truth(self, part: Part, name: str) -> bool:
        if name not in part.tensors:
            refuse(self._source, f"{part.kind} lacks {name}")
        return self._archive.truth(part.tensors[name], name)


def _texts(thing: Any) -> list[str]:
    if isinstance(thing, StandIn):  # a list of OmegaConf
        thing = thing.part("_content")
        thing = [each.part("_val") if isinstance(each, StandIn) else each for each in thing or ()]
    return [str(each) for each in thing] if isinstance(thing, list | tuple) else [str(thing)]
