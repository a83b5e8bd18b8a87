"""Arithmetic, memory traffic and peak memory of Orb-v2, counted as torch runs it."""

from collections.abc import Sequence
from typing import Any
from weakref import finalize

from ase import Atoms
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from painn_deploy.scripts.profiling.costs import Cost

__all__ = ["count_orb"]


def count_orb(model: Any, structures: Sequence[Atoms]) -> tuple[int, int, Cost]:
    """Count one evaluation of energy, forces and stress, of which forces come from a head, without a backward pass.

    Args:
        model: from `painn_deploy.scripts.benchmarks.contenders.orb.orb_v2`.
        structures: side by side.

    Returns:
        Parameters, edges, and what an evaluation costs; elementwise results are not counted.
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
    cost = Cost(
        multiply_adds=flops.get_total_flops() // 2,
        elementwise=None,
        bytes_written=traffic.moved,
        bytes_least=weights + ends,
        peak_bytes=weights + traffic.peak,
        weight_bytes=weights,
    )
    return sum(p.numel() for p in model.parameters()), len(graph.senders), cost


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
