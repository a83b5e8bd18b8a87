"""What SchNetPack's postprocessors do to the results of a model, which by then are sums of its output modules."""

import torch
from torch import Tensor

from painn_deploy.export.readers.stand_ins import StandIn
from painn_deploy.export.schnetpack.architecture import Checker
from painn_deploy.export.schnetpack.sums import Sum

__all__ = ["postprocess"]

CASTS = frozenset({"CastTo64", "CastTo32", "CastTo16", "CastMap"})
FLOATS = ("float", "bfloat", "double", "half")
PER_STRUCTURE = (
    "gets a mean that AddOffsets adds per structure and not per atom (is_extensive is false): it would depend on how "
    "many structures the atoms are said to be"
)
NOT_BY_ONE = "comes from a ScaleProperty that scales no output, or not by one number"


def postprocess(check: Checker, step: StandIn, path: str, results: dict[str, Sum]) -> None:
    """Do to the results what one postprocessor does; what is wrong with one result stands in it, and others may do.

    Args:
        check: of the file.
        step: the postprocessor.
        path: of it in the state dict.
        results: by what the model calls them; changed.

    Raises:
        CheckpointError: it is not known, and may change any of them.
    """
    named = step.part("_property")
    match step.kind:
        case "AddOffsets":
            if (found := results.get(named)) is not None:
                results[named] = _offset(check, found, step, path)
        case "ScaleProperty":
            read = step.part("input_key")
            factor, found = check.tensors.number(step, "scale", path), results.get(read, Sum("energy", {}))
            scaled = found.scaled(factor) if factor and read in results else found.without(NOT_BY_ONE)
            results[step.part("output_key") or read] = scaled
        case _ if step.kind in CASTS:
            kinds = [str(kind) for kind in (step.part("type_map") or {}).values()]
            if not all(kind.startswith(FLOATS) for kind in kinds):
                check.refuse(f"the postprocessor {step.kind} makes {', '.join(kinds)}")
        case _ if named is None or named in results:
            check.refuse(f"the postprocessor {step.kind} is unknown")


def _offset(check: Checker, found: Sum, step: StandIn, path: str) -> Sum:
    """The same with the energies that AddOffsets adds."""
    added = torch.zeros(1, dtype=torch.float64)
    if found.of != "energy":
        return found.without("gets offsets that are added to its derivative")
    if step.part("add_mean"):
        mean = check.tensors.number(step, "mean", path, integers=True)
        if mean is None:
            return found.without("gets a mean from AddOffsets that is no number")
        added = added + mean
    if step.part("add_atomrefs"):
        table: Tensor | None = check.tensors.one(step, "atomref", path, integers=True)
        if table is None or table.dim() != 1 or len(table) < 2:
            return found.without("gets atomic references from AddOffsets that are no row of numbers")
        added = added + table.double()
    if step.part("is_extensive") is not True and added.any():
        return found.without(PER_STRUCTURE)
    return found.offset(added)
