"""Running plans of TensorRT and TensorRT-RTX: an execution context as a lane's executor.

NOT YET EXECUTED ON A GPU BY US: `make test` proves what can be proved without one, `make gpu-check` the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from painn_deploy.engines.gpu.arena import Arena
from painn_deploy.engines.gpu.cuda import on_device, runtime
from painn_deploy.engines.gpu.executor import Executor, GraphOfCuda, Recorded
from painn_deploy.engines.gpu.session import GpuSession
from painn_deploy.engines.kept import keep, kept
from painn_deploy.engines.profiles import Profile
from painn_deploy.engines.session import EngineInfo
from painn_deploy.engines.tensorrt.builder import Messages
from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import INPUTS, OUTPUTS, Field, GraphInputs

__all__ = ["PlanExecutor", "TensorRTSession"]

LARGEST_KERNELS = 2**29
"""Bytes of the kernels that are kept for a plan."""

LANES = 2
"""Evaluations under way at once: the context of one uploads while that of the other computes."""


class PlanExecutor(Executor):
    """A context of a plan on one lane's stream; its activations lie in the lane's memory, as large as a size asks.

    Left to itself a context reserves for the profile's largest size, gigabytes for a default profile; and TensorRT-RTX
    allocates while it runs, which cannot be recorded.

    Args:
        kernels: makes the context.
        engine: the deserialised plan.
        profile: that the plan was built for.
        messages: what the library logs.
        stream: of the lane.
        arena: of the lane.
        outputs: of the graph.
        inputs: of the graph.

    Raises:
        EngineError: no context can be made.
    """

    fields: tuple[Field, ...] = ()
    least = 1

    def __init__(
        self,
        kernels: "Kernels",
        engine: Any,
        profile: Profile,
        messages: Messages,
        stream: int,
        arena: Arena,
        outputs: Sequence[Field] = OUTPUTS,
        inputs: Sequence[Field] = INPUTS,
    ) -> None:
        self.outputs, self.inputs = tuple(outputs), tuple(inputs)
        self._name, self._profile, self._messages = kernels.library.__name__, profile, messages
        self._stream, self._arena = stream, arena
        self._context = kernels.context(engine)
        if self._context is None:
            raise EngineError(f"{self._name} cannot make a context: {messages.told()}.")
        self.most_slots: int | None = profile.slots[2]

    def check(self, atoms: int, slots: int) -> None:
        """See `Executor.check`."""
        self._profile.check(atoms, slots)

    def lengths(self, atoms: int, slots: int) -> Mapping[str, int]:
        """See `Executor.lengths`."""
        return {}

    def fill(self, inputs: GraphInputs, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Executor.fill`."""

    def bind(self, atoms: int, slots: int, addresses: Mapping[str, int]) -> None:
        """See `Executor.bind`."""
        context = self._context
        for field in self.inputs:
            shape = field.sized(atoms=atoms, slots=slots)
            if not context.set_input_shape(field.name, shape):
                raise EngineError(f"{self._name} refuses {field.name} of shape {shape}: {self._messages.told()}.")
        for field in (*self.inputs, *self.outputs):
            if not context.set_tensor_address(field.name, addresses[field.name]):
                raise EngineError(f"{self._name} refuses the address of {field.name}: {self._messages.told()}.")
        size = max(1, int(context.update_device_memory_size_for_shapes()))
        context.set_device_memory(self._arena.device("activations", size), size)

    def execute(self) -> None:
        """See `Executor.execute`.

        Raises:
            EngineError: TensorRT failed.
        """
        if not self._context.execute_async_v3(self._stream):
            raise EngineError(f"{self._name} failed: {self._messages.told()}.")

    def record(self, send: Callable[[], None]) -> Recorded:
        """See `Executor.record`."""
        capturable = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX has it, TensorRT needs none
        if capturable is not None and not capturable(self._stream):
            raise EngineError(f"{self._name} says that this engine cannot be recorded now")
        return GraphOfCuda(runtime(), self._stream, send)

    def close(self) -> None:
        """See `Executor.close`."""
        self._context = None


class Kernels:
    """How contexts of a plan are made, and the kernels that TensorRT-RTX compiles for them, kept for the next process.

    TensorRT-RTX finishes a plan on the GPU. By default it would go on to compile kernels for the sizes that come, in
    the background: results would change in their last bits from one call to a later one, and a CUDA graph would keep
    the kernels of before. So it keeps to those that serve every size.

    Args:
        library: tensorrt or tensorrt_rtx.
        kept: file for what was compiled; None keeps nothing.
    """

    def __init__(self, library: Any, kept: Path | None) -> None:
        self.library, self._kept = library, kept
        self._cache: Any = None

    def context(self, engine: Any) -> Any:
        """An execution context whose activations the caller gives memory to; None where the library cannot make one."""
        strategy = self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        specialised = getattr(self.library, "DynamicShapesKernelSpecializationStrategy", None)
        if specialised is None:  # TensorRT compiles everything when it builds
            return engine.create_execution_context(strategy)
        configuration = engine.create_runtime_config()
        configuration.set_execution_context_allocation_strategy(strategy)
        configuration.dynamic_shapes_kernel_specialization_strategy = specialised.NONE
        if self._cache is None and self._kept is not None:
            self._cache = configuration.create_runtime_cache()
            if (compiled := kept(self._kept, LARGEST_KERNELS)) is not None:
                self._cache.deserialize(compiled)
        if self._cache is not None:
            configuration.set_runtime_cache(self._cache)
        return engine.create_execution_context(configuration)

    def keep(self) -> None:
        """Write what was compiled; a folder that cannot be written costs the next process some seconds."""
        cache, self._cache = self._cache, None
        if cache is None or self._kept is None:
            return
        keep(self._kept, bytes(cache.serialize()))


class TensorRTSession(GpuSession):
    """A loaded plan on one GPU. It belongs to one thread.

    Args:
        library: tensorrt or tensorrt_rtx.
        plan: the serialised engine, hashed by the bundle.
        index: of the GPU.
        profile: that the plan was built for.
        info: what the session says of itself.
        cuda_graphs: whether a size that comes again is replayed as a CUDA graph.
        species: atomic numbers that the engine has rows for.
        kept: file for the kernels that TensorRT-RTX compiles when a plan is opened.
        outputs: of the graph.
        inputs: of the graph.

    Raises:
        EngineError: the plan cannot be loaded here; with what the library said.
    """

    def __init__(
        self,
        library: Any,
        plan: bytes,
        index: int,
        profile: Profile,
        info: EngineInfo,
        *,
        cuda_graphs: bool = True,
        species: Sequence[int] = (),
        kept: Path | None = None,
        outputs: Sequence[Field] = OUTPUTS,
        inputs: Sequence[Field] = INPUTS,
    ) -> None:
        messages, kernels = Messages(library), Kernels(library, kept)
        loaded: list[Any] = []
        with on_device(runtime(), index):
            loader = library.Runtime(messages.logger)
            engine = loader.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"{library.__name__} cannot load this plan: {messages.told()}. Export it again here.")
        loaded += [loader, engine]
        del loader, engine  # the closures below would keep them

        def make(stream: int, arena: Arena) -> PlanExecutor:
            return PlanExecutor(kernels, loaded[-1], profile, messages, stream, arena, outputs, inputs)

        def release() -> None:
            kernels.keep()
            while loaded:  # the engine before its runtime
                loaded.pop()

        super().__init__(make, index, info, species=species, lanes=LANES, cuda_graphs=cuda_graphs, release=release)
