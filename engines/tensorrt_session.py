"""What TensorRT and TensorRT-RTX share in running: an engine, a context, a stream and buffers, with cuda-python alone.

NOT YET EXECUTED ON A GPU BY US: `make test` proves what can be proved without one.
"""

from typing import Any

import numpy as np

from painn_deploy.engines.backend import Closing, EngineInfo
from painn_deploy.engines.contract import check_inputs
from painn_deploy.engines.profiles import Profile
from painn_deploy.engines.tensorrt_builder import Messages
from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.export.fields import INPUTS, OUTPUTS, GraphInputs, GraphOutputs

__all__ = ["TensorRTSession", "compute_capability", "gpus"]


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineUnavailableError(
            "cuda-python is not installed, which running TensorRT needs: it comes with "
            'pip install "painn-deploy[tensorrt-rtx]" and "painn-deploy[tensorrt]".'
        ) from error
    return runtime


def _call(function: Any, *arguments: Any) -> Any:
    """Call the CUDA runtime; its first result says whether it worked.

    Raises:
        EngineError: it did not; with CUDA's name for why.
    """
    status, *results = function(*arguments)
    if int(status) != 0:
        raise EngineError(f"{function.__name__} failed: {getattr(status, 'name', status)}.")
    return results[0] if len(results) == 1 else tuple(results)


def gpus() -> tuple[str, ...]:
    """NVIDIA GPUs that can be used here, as `cuda:0` and so on; none where there is no driver."""
    runtime = _runtime()
    try:
        count = _call(runtime.cudaGetDeviceCount)
    except (EngineError, RuntimeError):  # no driver, or one that is too old
        return ()
    return tuple(f"cuda:{index}" for index in range(count))


def compute_capability(index: int) -> str:
    """Of a GPU, such as `86`."""
    runtime = _runtime()
    attributes = runtime.cudaDeviceAttr
    major = _call(runtime.cudaDeviceGetAttribute, attributes.cudaDevAttrComputeCapabilityMajor, index)
    minor = _call(runtime.cudaDeviceGetAttribute, attributes.cudaDevAttrComputeCapabilityMinor, index)
    return f"{major}{minor}"


class TensorRTSession(Closing):
    """A loaded plan on one GPU, with a stream of its own. It belongs to one thread.

    Args:
        library: tensorrt or tensorrt_rtx.
        plan: the serialised engine, hashed by the bundle.
        index: of the GPU.
        profile: that the plan was built for.
        info: what the session says of itself.

    Raises:
        EngineError: the plan cannot be loaded here; with what the library said.
    """

    def __init__(self, library: Any, plan: bytes, index: int, profile: Profile, info: EngineInfo) -> None:
        self._cuda, self._index, self._profile, self._info = _runtime(), index, profile, info
        self._buffers: dict[str, tuple[int, int]] = {}
        self._stream: Any = None
        self._context: Any = None
        _call(self._cuda.cudaSetDevice, index)
        self._messages = Messages(library)
        self._library_runtime = library.Runtime(self._messages.logger)
        self._engine = self._library_runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"{library.__name__} cannot load this plan: {self._messages.told()}. Export it again here."
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{library.__name__} cannot make a context: {self._messages.told()}.")
        # TensorRT synchronises when it runs on the default stream
        self._stream = _call(self._cuda.cudaStreamCreateWithFlags, self._cuda.cudaStreamNonBlocking)

    @property
    def info(self) -> EngineInfo:
        """See `Session.info`."""
        return self._info

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """See `Session.run`."""
        if self._context is None:
            raise EngineError("This session is closed; open another one.")
        check_inputs(inputs)
        atoms, slots = inputs.mask.shape
        self._profile.check(atoms, slots)
        _call(self._cuda.cudaSetDevice, self._index)
        kinds = self._cuda.cudaMemcpyKind
        for field, array in zip(INPUTS, inputs, strict=True):
            pointer = self._buffer(field.name, array.nbytes)
            if not self._context.set_input_shape(field.name, array.shape):
                raise EngineError(f"TensorRT refuses {field.name} of shape {array.shape}: {self._messages.told()}.")
            self._bind(field.name, pointer)
            source = array.ctypes.data
            _call(self._cuda.cudaMemcpyAsync, pointer, source, array.nbytes, kinds.cudaMemcpyHostToDevice, self._stream)
        outputs = GraphOutputs(
            np.empty(atoms, np.float32), np.empty((atoms, 3), np.float32), np.empty((atoms, 3, 3), np.float32)
        )
        for field, array in zip(OUTPUTS, outputs, strict=True):
            self._bind(field.name, self._buffer(field.name, array.nbytes))
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError(f"TensorRT failed on {atoms} atoms x {slots} slots: {self._messages.told()}.")
        for field, array in zip(OUTPUTS, outputs, strict=True):
            pointer = self._buffers[field.name][0]
            _call(
                self._cuda.cudaMemcpyAsync,
                array.ctypes.data,
                pointer,
                array.nbytes,
                kinds.cudaMemcpyDeviceToHost,
                self._stream,
            )
        _call(self._cuda.cudaStreamSynchronize, self._stream)
        return outputs

    def _bind(self, name: str, pointer: int) -> None:
        if not self._context.set_tensor_address(name, pointer):
            raise EngineError(f"TensorRT refuses the address of {name}: {self._messages.told()}.")

    def _buffer(self, name: str, size: int) -> int:
        """Device memory of at least `size` bytes, kept from call to call and grown by doubling."""
        pointer, capacity = self._buffers.get(name, (0, 0))
        if size > capacity:
            if pointer:
                del self._buffers[name]
                _call(self._cuda.cudaFree, pointer)
            capacity = max(size, 2 * capacity, 256)
            pointer = int(_call(self._cuda.cudaMalloc, capacity))
            self._buffers[name] = (pointer, capacity)
        return pointer

    def close(self) -> None:
        """See `Session.close`: the context before the engine, the buffers and the stream after both."""
        self._context = self._engine = self._library_runtime = None
        buffers, self._buffers = self._buffers, {}
        for pointer, _ in buffers.values():
            _call(self._cuda.cudaFree, pointer)
        if self._stream is not None:
            stream, self._stream = self._stream, None
            _call(self._cuda.cudaStreamDestroy, stream)
