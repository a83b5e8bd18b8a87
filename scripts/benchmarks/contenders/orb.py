"""Orb-v2, the size of model that students are distilled from, for counts and speed; its weights are random.

Needs the package orb-models, which is no requirement of ours. Speed and counts do not depend on weights: neither
branches nor shapes do.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import torch
from ase import Atoms
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from painn_deploy.calibration.timing import through_ase
from painn_deploy.scripts.benchmarks.contenders.contender import ORB, Contender

__all__ = ["HOW_TO_GET", "Counted", "Orb", "count_orb", "is_installed", "orb_v2"]

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


@dataclass(frozen=True)
class Counted:
    """One evaluation of energy, forces and stress; Orb-v2 predicts forces with a head, and has no backward pass.

    Attributes:
        parameters: of the model.
        edges: of the structures.
        multiply_adds: of matrix products, by torch's FlopCounterMode.
        bytes_written: read and written by torch's operators, views left out.
        bytes_least: weights and inputs read once, results written once.
        peak_bytes: weights, and the most that tensors took at any time.
        weight_bytes: of the parameters.
    """

    parameters: int
    edges: int
    multiply_adds: int
    bytes_written: int
    bytes_least: int
    peak_bytes: int
    weight_bytes: int


def count_orb(model: Any, structures: Sequence[Atoms]) -> Counted:
    """Count one evaluation of a batch.

    Args:
        model: from `orb_v2`.
        structures: side by side.
    """
    from orb_models.forcefield.atomic_system import ase_atoms_to_atom_graphs
    from orb_models.forcefield.base import batch_graphs

    graph = batch_graphs(
        [ase_atoms_to_atom_graphs(a, system_config=model.system_config, device="cpu") for a in structures]
    )
    with FlopCounterMode(display=False) as flops:
        model.predict(graph)
    with _Traffic() as traffic:
        results = model.predict(graph)
    weights = sum(_size(p) for p in model.parameters())
    read = [getattr(graph, name) for name in ("senders", "receivers", "node_features", "edge_features")]
    ends = sum(_size(t) for t in tree_leaves([read, results]) if isinstance(t, Tensor))
    return Counted(
        parameters=sum(p.numel() for p in model.parameters()),
        edges=len(graph.senders),
        multiply_adds=flops.get_total_flops() // 2,
        bytes_written=traffic.moved,
        bytes_least=weights + ends,
        peak_bytes=weights + traffic.peak,
        weight_bytes=weights,
    )


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes that operators read and write, and the most that their results hold at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not func.is_view:
            inputs = [t for t in tree_leaves([args, kwargs]) if isinstance(t, Tensor)]
            self.moved += sum(map(_size, inputs)) + sum(map(_size, outputs))
            for tensor in outputs:
                self._hold(tensor)
        return result

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if size and key not in self._seen:
            self._seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size
