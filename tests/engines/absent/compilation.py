"""Compiles a form of `inductor` for a GPU that is not here, by a torch that is built for CUDA: a program.

torch's compiler asks a GPU what it is, keeps constants there, and loads each kernel that it compiled. All of that is
answered here: tensors of the GPU have shapes and no content, and kernels are loaded nowhere. What is left is what can
fail: tracing, lowering, Triton's machine code, and the C++ around it, linked. Such a package cannot run.

    python -m tests.engines.absent.compilation student:base sums+messages fp32 9 0
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

import torch
from torch._dynamo import utils as dynamo_utils
from torch._dynamo.device_interface import CudaInterface
from torch._functorch import aot_autograd
from torch._inductor import graph as inductor_graph
from torch._inductor.codegen import wrapper
from torch._inductor.fx_passes import joint_graph, post_grad
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._subclasses import fake_tensor
from torch.utils import _triton
from torch.utils._python_dispatch import _disable_current_modes
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from painn_deploy.engines.forms import Form
from painn_deploy.engines.gpu import toolchain
from painn_deploy.engines.inductor import compile as inductor
from painn_deploy.engines.inductor import onnx_torch
from painn_deploy.export import load_student
from painn_deploy.export.graph.half import to_half
from painn_deploy.export.graph.onnx_graph import export_onnx

DEVICE = "cuda:0"
LIBRARY = "int cuInit(unsigned int flags) { return (int)flags; }"
"""What stands for the driver's library when a package is linked."""


def answers(major: int, minor: int) -> Mapping[str, Any]:
    """What a GPU of a compute capability says of itself, as an H100 would."""
    return {
        "name": "a GPU that is not here",
        "major": major,
        "minor": minor,
        "multi_processor_count": 132,
        "regs_per_multiprocessor": 65_536,
        "max_threads_per_multi_processor": 2_048,
        "max_threads_per_block": 1_024,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_block_optin": 232_448,
        "warp_size": 32,
        "total_memory": 80 << 30,
        "L2_cache_size": 50 << 20,
        "gcnArchName": "",
        "is_integrated": 0,
    }


def always(answer: Any) -> Callable[..., Any]:
    return lambda *_, **__: answer


def pretend(major: int, minor: int) -> None:
    """Let torch and Triton find a GPU in this process from now on."""
    properties = SimpleNamespace(**answers(major, minor))
    shared = {
        "is_available": always(True),
        "is_initialized": always(True),
        "device_count": always(1),
        "current_device": always(0),
        "get_device_properties": always(properties),
        "get_device_capability": always((major, minor)),
        "is_bf16_supported": always(True),
        "synchronize": always(None),
        "set_device": always(None),
        "_lazy_init": always(None),
        "_exchange_device": always(0),
        "_maybe_exchange_device": always(0),
        "get_rng_state": lambda *_: torch.zeros(4, dtype=torch.uint8),
        "set_rng_state": always(None),
    }
    for name, answer in shared.items():
        setattr(torch.cuda, name, answer)
    of_interface = {name: shared[name] for name in ("is_available", "device_count", "current_device", "synchronize")}
    of_interface |= {
        "get_device_properties": always(properties),
        "get_compute_capability": always(10 * major + minor),
        "is_triton_capable": always(True),
        "raise_if_triton_unavailable": always(None),
        "maybe_exchange_device": always(0),
        "exchange_device": always(0),
        "get_raw_stream": always(0),
    }
    for name, answer in of_interface.items():
        setattr(CudaInterface, name, staticmethod(answer))
    for name in ("get_device_properties", "current_device"):
        setattr(CudaInterface.Worker, name, staticmethod(of_interface[name]))
    for name in ("_cuda_exchangeDevice", "_cuda_maybeExchangeDevice", "_cuda_getCurrentRawStream"):
        setattr(torch._C, name, always(0))
    _triton.has_triton = always(True)
    fake_tensor.init_gpu_context = always(None)
    dynamo_utils.preserve_rng_state = aot_autograd.preserve_rng_state = nullcontext
    triton_helpers.set_driver_to_gpu = always(None)
    for module in (joint_graph, post_grad):  # patterns that are found by running on the GPU; none is in our graphs
        module.lazy_init = always(None)
    driver.set_active(
        SimpleNamespace(
            get_current_target=always(GPUTarget("cuda", 10 * major + minor, 32)),
            get_current_device=always(0),
            get_device_capability=always((major, minor)),
            get_active_torch_device=always(torch.device(DEVICE)),
            get_device_interface=always(torch.cuda),
            get_current_stream=always(0),
            set_current_device=always(None),
            launcher_cls=always(always(None)),
            utils=SimpleNamespace(
                get_device_properties=always(
                    {
                        "max_shared_mem": properties.shared_memory_per_block_optin,
                        "multiprocessor_count": properties.multi_processor_count,
                        "max_num_regs": properties.regs_per_multiprocessor,
                        "warpSize": properties.warp_size,
                    }
                ),
                load_binary=always((1, 1, 96, 0, properties.max_threads_per_block)),
            ),
        )
    )


class Compilation:
    """torch's compiler with what it would ask of a GPU's memory taken away; counts the kernels that it compiled."""

    def __init__(self) -> None:
        self.kernels = 0

    def without_memory(self) -> None:
        """Constants have shapes alone until they are written, as zeros; kernels are compiled, and not timed."""
        lowering = inductor_graph.GraphLowering
        read, generate = lowering.get_attr, lowering.codegen_with_cpp_wrapper

        def constant(graph: Any, target: str, *rest: Any) -> Any:
            found = graph.module
            for part in target.split("."):
                found = getattr(found, part)
            is_tensor = isinstance(found, torch.Tensor)
            return graph.add_tensor_constant(found, target) if is_tensor else read(graph, target, *rest)

        def named(graph: Any, name: str | None, data: torch.Tensor) -> str:
            own = f"constant{len(graph.constants)}"
            graph.constants[own], graph.constant_reprs[own] = data, own
            graph.allocated_constant_name[own] = name or own
            return own

        def written(graph: Any, name: str) -> torch.Tensor:
            with _disable_current_modes():
                return zeros(graph.constants[name])

        def generated(graph: Any) -> Any:
            found = generate(graph)
            graph.constants |= {k: zeros(v) for k, v in graph.constants.items() if isinstance(v, torch.Tensor)}
            return found

        def compiled(code: Any) -> None:
            code.kernel_autotune_defs.splice("async_compile.wait(globals())\ndel async_compile\n")
            scope: dict[str, Any] = {}
            exec(code.kernel_autotune_defs.getvalue(), scope)  # noqa: S102 - what torch itself executes here
            for kernel in scope.values():
                if isinstance(kernel, CachingAutotuner):
                    if not kernel.launchers:
                        kernel.precompile()
                    kernel.save_gpu_kernel(0, kernel.launchers[0])
                    self.kernels += 1

        lowering.get_attr, lowering.allocate_non_dup_const_name = constant, named
        lowering.get_original_value_of_constant, lowering.codegen_with_cpp_wrapper = written, generated
        wrapper.PythonWrapperCodegen.generate_and_run_autotune_block = compiled


def zeros(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros([int(size) for size in like.shape], dtype=like.dtype)


def gathered(x: torch.Tensor, indices: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """As `painn_deploy.engines.inductor.onnx_torch` gathers, without brackets, which ask whether the GPU is there."""
    assert axis == 0
    if x.is_contiguous() and x.storage_offset() == 0:
        x = x.as_strided(x.shape, x.stride())
    return torch.ops.aten.index.Tensor(x, [indices])


def anew(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the GPU, of the same shape and type; there has to be a mode in which it holds nothing."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)


def traced(model: Any, form: Form, inside: str) -> Any:
    """The form's program, whose tensors are on a GPU and hold nothing."""
    begin = onnx_torch.OnnxModule.__init__

    def read(module: Any, *graph: Any) -> None:  # weights are numbers until they move to the GPU
        with _disable_current_modes():
            begin(module, *graph)

    def moved(module: Any, _: str) -> Any:
        module._buffers |= {name: anew(weight) for name, weight in module._buffers.items()}
        return module

    onnx_torch.OnnxModule.__init__, onnx_torch.OnnxModule.to = read, moved
    onnx_torch._OPERATORS["Gather"] = gathered
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        program, _ = inductor.traced(torch, model, DEVICE, form.atoms, form.slots, inside)
    mode = next(
        node.meta["val"].fake_mode for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)
    )
    with mode:
        for held in (program._state_dict, program._constants):
            held |= {name: anew(each) for name, each in held.items() if isinstance(each, torch.Tensor)}
        inputs, named = program._example_inputs
        program._example_inputs = tuple(map(anew, inputs)), named
    return program


def main(student: str, form: str, precision: str, major: str, minor: str) -> None:
    """Compile, and tell how many kernels there are and how large the package is.

    Args:
        student: a checkpoint.
        form: of the graph.
        precision: `fp32`, `tf32` or `fp16`.
        major, minor: of the compute capability.
    """
    pretend(int(major), int(minor))
    compilation, chosen, tf32 = Compilation(), Form.parse(form), precision == "tf32"
    compilation.without_memory()
    model = export_onnx(load_student(student), {})
    lowered = chosen.lowered(to_half(model) if precision == "fp16" else model)
    with TemporaryDirectory() as name:
        source, library = Path(name, "cuda.c"), Path(name, "libcuda.so.1")
        source.write_text(LIBRARY)
        subprocess.run([shutil.which("gcc") or "cc", "-shared", "-fPIC", source, "-o", library], check=True)
        toolchain._libcuda = always(library)
        with toolchain.toolchain():
            program = traced(lowered, chosen, chosen.products_in_kernels(tf32=tf32))
            settings = inductor._settings(torch, chosen, "cuda", tf32=tf32)
            package = inductor._compiled(torch, program, settings, tf32=tf32)
    sys.stdout.write(json.dumps({"kernels": compilation.kernels, "bytes": len(package)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
