"""What a session's device keeps of a structure while its neighbours stand, found by the host or by the device."""

from typing import Any

from ase import Atoms

from painn_deploy.engines.gpu.lane import SLOT_STEP
from painn_deploy.engines.session import Boxes
from painn_deploy.runtime.pairs.boxes import boxes_of
from painn_deploy.runtime.verlet import DEFAULT_SKIN, VerletList

__all__ = ["in_boxes", "resident_of"]


def resident_of(atoms: Atoms, cutoff: float) -> Any:
    """What a session keeps of a structure on the device, and the positions that it stands for.

    Args:
        atoms: the structure.
        cutoff: Å.
    """
    resident = VerletList(cutoff, DEFAULT_SKIN, slot_step=SLOT_STEP).resident(atoms, None)
    if resident is None:
        raise ValueError("A list with a skin follows every structure.")
    return resident


def in_boxes(atoms: Atoms, cutoff: float) -> Boxes:
    """What a device finds the neighbours of a structure from.

    Args:
        atoms: the structure.
        cutoff: Å.
    """
    return boxes_of(atoms, cutoff, cutoff + DEFAULT_SKIN)
