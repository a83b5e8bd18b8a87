"""The kernel on an NVIDIA GPU: compiled by NVRTC, and a lane's executor, a block for each group of rows.

NOT YET EXECUTED ON A GPU BY US: `make test` proves what can be proved without one, `make gpu-check` the rest.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from painn_deploy.engines.fused.groups import Pieces, groups_of, pieces_of, pieces_of_molecules
from painn_deploy.engines.fused.packed import MOST_OUTPUTS, Packed
from painn_deploy.engines.fused.plan import Plan, plans_for
from painn_deploy.engines.fused.source import KERNEL_NAME
from painn_deploy.engines.gpu.arena import Arena
from painn_deploy.engines.gpu.cuda import call, compute_capability, on_device, runtime
from painn_deploy.engines.gpu.device_positions import LoadedKernel, compile_kernel
from painn_deploy.engines.gpu.executor import Executor, GraphOfCuda, Recorded
from painn_deploy.engines.gpu.session import GpuSession
from painn_deploy.engines.known import Known
from painn_deploy.engines.session import EngineInfo
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import BundleError, EngineError, ShapeError
from painn_deploy.export.fields import INPUTS, OUTPUTS, Field, GraphInputs
from painn_deploy.export.progress import Tell, silent

__all__ = ["GROUPS", "FusedExecutor", "GroupsKernel", "LoadedPlan", "compiled_kernels", "session_on_gpu"]

KERNEL = "molecules-{}-{}.cubin"
"""Name of a kernel in a bundle, by compute capability and place among the plans for it."""

GROUPS = Field("groups", ("groups_and_two",), "int32", "", "how many groups of rows there are, and where each begins")

TYPES = (*[ctypes.c_void_p] * 6, ctypes.c_int, *[ctypes.c_void_p] * (2 + MOST_OUTPUTS))


class GroupsKernel(LoadedKernel):
    """The kernel of one plan on one GPU, whose context is the current one.

    Args:
        code: of NVRTC.
        plan: that it was compiled for.

    Raises:
        EngineError: the GPU refuses it.
    """

    def __init__(self, code: bytes, plan: Plan) -> None:
        super().__init__(code, KERNEL_NAME)
        self._plan = plan
        shared = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        call(self._driver.cuFuncSetAttribute, self._function, shared, plan.shared)

    def send(self, stream: int, blocks: int, values: Sequence[Any]) -> None:
        """Send it to a stream.

        Args:
            stream: its handle.
            blocks: how many.
            values: of the kernel's arguments, of `TYPES`.
        """
        grid, block, shared = (blocks, 1, 1), (self._plan.threads, 1, 1), self._plan.shared
        call(self._driver.cuLaunchKernel, self._function, *grid, *block, shared, stream, (tuple(values), TYPES), 0)


class LoadedPlan(NamedTuple):
    """A plan and its kernel on a GPU.

    Attributes:
        plan: sizes of its groups.
        kernel: compiled for it.
    """

    plan: Plan
    kernel: GroupsKernel

    def takes(self, rows: int, slots: int) -> bool:
        """Whether a group fits.

        Args:
            rows: of it.
            slots: that hold a pair.
        """
        return rows <= self.plan.rows and slots <= 2 * self.plan.pairs


class FusedExecutor(Executor):
    """The kernels on one lane's stream.

    Where there are more groups than multiprocessors, a block takes as many small molecules at once as it has room for;
    else each molecule has a block of its own.

    Args:
        packed: the student's weights.
        plans: those for the smallest groups first.
        multiprocessors: of the GPU.
        stream: of the lane.
        arena: of the lane.
        outputs: of the graph.
    """

    fields: tuple[Field, ...] = (GROUPS,)
    inputs: tuple[Field, ...] = INPUTS
    least = 1
    most_slots: int | None = None

    def __init__(
        self,
        packed: Packed,
        plans: Sequence[LoadedPlan],
        multiprocessors: int,
        stream: int,
        arena: Arena,
        outputs: Sequence[Field] = OUTPUTS,
    ) -> None:
        self.outputs = tuple(outputs)
        self._plans, self._multiprocessors, self._stream, self._arena = tuple(plans), multiprocessors, stream, arena
        self._choose(plans[0])
        self._blocks, self._pieces = 0, Known[Pieces]()
        self._arguments: tuple[Any, ...] | None = None
        weights = arena.block("student", (("weights", packed.weights.shape, "float32"),))
        weights.arrays["weights"][:] = packed.weights
        self._weights, cuda = weights.addresses["weights"], runtime()
        call(
            cuda.cudaMemcpyAsync,
            weights.device, weights.host, weights.size, cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, stream,
        )  # fmt: skip

    def check(self, atoms: int, slots: int) -> None:
        """See `Executor.check`: what is too large is seen in `fill`, which knows of groups.

        Args:
            atoms: rows.
            slots: columns.
        """

    def check_search(self, atoms: int) -> None:
        """See `Executor.check_search`.

        Args:
            atoms: of the structure.

        Raises:
            ShapeError: always.
        """
        most = self._plans[-1].plan.rows
        raise ShapeError(
            f"The engine fused takes {most} atoms that interact on a GPU, and this structure has {atoms}. Export "
            "another engine for it, or this one for a CPU."
        )

    def lengths(self, atoms: int, slots: int) -> Mapping[str, int]:
        """See `Executor.lengths`."""
        return {"groups_and_two": atoms + 2}

    def fill(self, inputs: GraphInputs, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Executor.fill`.

        Args:
            inputs: that they belong to.
            arrays: in pinned memory, by name.

        Raises:
            ShapeError: more atoms interact than any kernel takes, or `reverse` is no pairing.
        """
        pieces = self._pieces.made_of(inputs.reverse, 0, lambda: pieces_of(inputs.reverse))
        self._divide(pieces, arrays[GROUPS.name])

    def fill_molecules(
        self, starts: Int64[np.ndarray, " molecules"], atoms: int, arrays: Mapping[str, np.ndarray]
    ) -> tuple[str, ...]:
        """See `Executor.fill_molecules`.

        Args:
            starts: first row of each molecule.
            atoms: rows of all.
            arrays: in pinned memory, by name.

        Raises:
            ShapeError: a molecule is larger than any kernel takes.
        """
        self._divide(pieces_of_molecules(starts, atoms, len(arrays[GROUPS.name]) - 2), arrays[GROUPS.name])
        return (GROUPS.name,)

    def _divide(self, pieces: Pieces, groups: np.ndarray) -> None:
        rows, slots = (int(np.diff(counts).max()) for counts in pieces)
        able = [loaded for loaded in self._plans if loaded.takes(rows, slots)]
        if not able:
            most = self._plans[-1].plan
            raise ShapeError(
                f"{rows} atoms that interact, with {slots // 2} pairs, are more than the engine fused takes on a GPU: "
                f"{most.rows} atoms and {most.pairs} pairs. Export another engine for them, or this one for a CPU."
            )

        def together(loaded: LoadedPlan) -> int:
            """Rows of as many of the largest molecules as fit."""
            return rows * min(loaded.plan.rows // rows, 2 * loaded.plan.pairs // max(slots, 1))

        widest = max(able, key=together)  # of equals, the one for the smallest groups
        many = pieces.bounds[-1] > together(widest) * self._multiprocessors
        self._choose(widest if many else able[0])
        plan = self._chosen.plan
        found = groups_of(pieces, plan.rows, 2 * plan.pairs) if many else groups_of(pieces, 0, 0)
        groups[: len(found)] = found

    def _choose(self, loaded: LoadedPlan) -> None:
        self._chosen, self.variant = loaded, (loaded.plan.rows,)

    def bind(self, atoms: int, slots: int, addresses: Mapping[str, int]) -> None:
        """See `Executor.bind`."""
        loaded = self._chosen
        self._blocks = min(atoms, self._multiprocessors)
        scratch = self._arena.device("scratch", 4 * loaded.plan.scratch * self._blocks)
        inputs = ("atomic_numbers", "displacements", "reverse", "mask", "weights")
        outputs = [addresses[field.name] for field in self.outputs] + [0] * (MOST_OUTPUTS - len(self.outputs))
        before = [self._weights, *(addresses[name] for name in inputs)]
        self._arguments = (*before, slots, addresses[GROUPS.name], scratch, *outputs)

    def execute(self) -> None:
        """See `Executor.execute`."""
        if self._arguments is None:
            raise EngineError("Nothing is bound.")
        self._chosen.kernel.send(self._stream, self._blocks, self._arguments)

    def record(self, send: Callable[[], None]) -> Recorded:
        """See `Executor.record`."""
        return GraphOfCuda(runtime(), self._stream, send)

    def close(self) -> None:
        """See `Executor.close`."""
        self._arguments = None


def compiled_kernels(packed: Packed, capabilities: Sequence[str], tell: Tell = silent) -> dict[str, bytes]:
    """Kernels of a student for GPUs, by their names in a bundle; needs no GPU.

    Args:
        packed: its weights, which no kernel holds.
        capabilities: compute capabilities, such as `90`.
        tell: called with a line about each.

    Raises:
        EngineUnavailableError: NVRTC is not installed, or such a GPU has too little shared memory.
        EngineError: it does not compile; with the compiler's log.
    """
    made = {}
    for capability in capabilities:
        for number, plan in enumerate(plans := plans_for(packed, capability), 1):
            tell(f"fused: compiling for compute capability {capability}, {number} of {len(plans)}")
            made[KERNEL.format(capability, number)] = compile_kernel(capability, plan.source(), fmad=True)
    return made


def session_on_gpu(bundle: Bundle, packed: Packed, index: int, info: EngineInfo) -> GpuSession:
    """A session on a GPU.

    Args:
        bundle: that holds kernels.
        packed: the student's weights.
        index: of the GPU.
        info: what the session says of itself.

    Raises:
        EngineUnavailableError: cuda-bindings is not installed.
        EngineError: the GPU refuses a kernel.
    """
    cuda, capability, manifest = runtime(), compute_capability(index), bundle.manifest
    plans, loaded = plans_for(packed, capability), list[LoadedPlan]()
    if missing := [name for n in range(len(plans)) if (name := KERNEL.format(capability, n + 1)) not in manifest.files]:
        raise BundleError(f"{bundle} holds no {missing[0]}. Export it again.")

    def release() -> None:
        while loaded:
            loaded.pop().kernel.close()

    with on_device(cuda, index):
        many = call(cuda.cudaDeviceGetAttribute, cuda.cudaDeviceAttr.cudaDevAttrMultiProcessorCount, index)
        try:
            for number, plan in enumerate(plans, 1):
                kernel = GroupsKernel(bundle.file(KERNEL.format(capability, number)), plan)
                loaded.append(LoadedPlan(plan, kernel))
        except BaseException:
            release()
            raise

    def make(stream: int, arena: Arena) -> FusedExecutor:
        return FusedExecutor(packed, loaded, int(many), stream, arena, manifest.outputs)

    return GpuSession(make, index, info, species=manifest.species, release=release)
