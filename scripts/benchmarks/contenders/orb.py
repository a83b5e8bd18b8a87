"""Orb-v2, the size of model that students are distilled from; its weights are random.

Needs the package orb-models, which is no requirement of ours. Speed and counts do not depend on weights: neither
branches nor shapes do.
"""

import importlib.util
from typing import Any

import torch
from ase import Atoms

from painn_deploy.calibration.timing import through_ase
from painn_deploy.scripts.benchmarks.contenders.contender import ORB, Contender

__all__ = ["HOW_TO_GET", "Orb", "is_installed", "orb_v2"]

HOW_TO_GET = (
    "Orb-v2 is left out: orb-models is not installed. It wants an older rich than constraints.txt pins, so make it an "
    'environment of its own, from a clone: pip install torch==2.13.0 orb-models -e ".[cpu,export]"'
)
RADIUS, NEIGHBOURS = 6.0, 20
"""Å and edges an atom, as the released orb-v2 takes them."""


def is_installed() -> bool:
    """Whether orb-models can be imported."""
    return importlib.util.find_spec("orb_models") is not None


def orb_v2() -> Any:
    """The architecture with random weights, frozen, on the CPU in float32."""
    from orb_models.forcefield.atomic_system import SystemConfig
    from orb_models.forcefield.pretrained import orb_v2_architecture

    torch.manual_seed(0)
    model = orb_v2_architecture(device="cpu", system_config=SystemConfig(RADIUS, NEIGHBOURS))
    return model.eval().requires_grad_(requires_grad=False)


class Orb(Contender):
    """Orb-v2 through the package's own ASE calculator, one structure at a time.

    Args:
        model: from `orb_v2`, compiled or not.
    """

    alone = False

    def __init__(self, model: Any) -> None:
        from orb_models.forcefield.calculator import ORBCalculator

        super().__init__(f"{ORB}, {'compiled' if model.is_compiled() else 'eager'}", str(torch.__version__))
        self._calculator = ORBCalculator(model, device="cpu")
        self._evaluate = through_ase(self._calculator)

    def whole(self, structures: list[Atoms]) -> list[Any]:
        """Energy and forces of a list of one structure."""
        self._evaluate(structures)
        return [self._calculator.results]
