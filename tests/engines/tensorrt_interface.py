"""Our calls to TensorRT held against the signatures of its own interface, without the libraries that do the work.

tensorrt_bindings is TensorRT's Python interface. It needs three libraries to load, of which it calls nothing before an
object is made; empty ones in their place let its classes be imported, and every name, enum and signature be read.
`Checked` then stands for the library: it has the attributes that the real classes have, and each call is held against
the real signature: how many arguments, of which names. What a call returns is checked in turn. TensorRT-RTX, whose
libraries are here, is held to in the same way, for what only a GPU would run.

Run as a program, it lets our own code build, load and run with such a library, and prints what was called.
"""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

STUBS = {
    "libnvinfer.so.11": (
        "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry", "getPluginRegistry",
    ),
    "libnvinfer_plugin.so.11": ("initLibNvInferPlugins",),
    "libnvonnxparser.so.11": (
        "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion",
    ),
}  # fmt: skip


def write_stubs(folder: Path) -> None:
    """Empty libraries with the functions that the interface names."""
    for name, functions in STUBS.items():
        source = folder / f"{name}.c"
        source.write_text("".join(f"void *{function}(void) {{ return 0; }}\n" for function in functions))
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", str(source), "-o", str(folder / name)]
        subprocess.run(command, check=True)


CALLS: set[str] = set()
RETURNS = {
    "IBuilder.create_network": "INetworkDefinition", "Builder.create_network": "INetworkDefinition",
    "Builder.create_builder_config": "IBuilderConfig", "Builder.create_optimization_profile": "IOptimizationProfile",
    "Runtime.deserialize_cuda_engine": "ICudaEngine", "ICudaEngine.create_execution_context": "IExecutionContext",
    "IBuilderConfig.create_timing_cache": "ITimingCache", "IBuilderConfig.get_timing_cache": "ITimingCache",
    "ICudaEngine.create_runtime_config": "IRuntimeConfig", "IRuntimeConfig.create_runtime_cache": "IRuntimeCache",
}  # fmt: skip


class Checked:
    """An object of a real class, as far as its interface goes."""

    def __init__(self, real: Any, kind: str, library: Any) -> None:
        self.__dict__.update(_real=real, _kind=kind, _library=library)

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)  # AttributeError is the finding
        CALLS.add(f"{self._kind}.{name}")
        if isinstance(real, property):
            return None
        return lambda *arguments, **named: self._call(name, real, arguments, named)

    def __setattr__(self, name: str, value: Any) -> None:
        attribute = inspect.getattr_static(self._real, name)
        if not (isinstance(attribute, property) and attribute.fset is not None):
            raise AttributeError(f"{self._kind}.{name} cannot be set")
        CALLS.add(f"{self._kind}.{name} =")

    def _call(self, name: str, real: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        check_signature(f"{self._kind}.{name}", real.__doc__ or "", len(arguments), set(named))
        if (kind := RETURNS.get(f"{self._kind}.{name}")) is not None:
            return Checked(getattr(self._library, kind), kind, self._library)
        if name == "update_device_memory_size_for_shapes":
            return 4096
        return b"plan" if "serialize" in name else True


def check_signature(name: str, doc: str, given: int, named: set[str]) -> None:
    """Hold a call against the signatures in a docstring of pybind11, overloads included."""
    signatures = re.findall(rf"^(?:\d+\. )?{name.split('.')[-1]}\((.*)\) ->", doc, re.MULTILINE)
    for signature in signatures:
        parameters = [p.strip() for p in re.split(r",(?![^\[\]]*\])(?![^()]*\))", signature) if p.strip()]
        parameters = [p for p in parameters if not p.startswith("self")]
        names = {p.split(":")[0] for p in parameters}
        least = sum("=" not in p for p in parameters)
        if least <= given + len(named) <= len(parameters) and named <= names:
            return
    raise TypeError(f"{name} with {given} arguments and {sorted(named)} fits none of {signatures}")


class Overriding:
    """A base class whose every method must be one of the real class."""

    real: Any = None

    def __init__(self) -> None: ...

    def __init_subclass__(cls) -> None:
        for name, method in vars(cls).items():
            if inspect.isfunction(method) and not name.startswith("__") and cls.real is not None:
                parameters = list(inspect.signature(method).parameters)[1:]
                check_signature(name, getattr(cls.real, name).__doc__, len(parameters), set())
                CALLS.add(f"{cls.__mro__[1].__name__}.{name}")


class Library:
    """In place of the module."""

    def __init__(self, real: Any, name: str) -> None:
        self._real, self.__name__, self.__version__ = real, name, real.__version__

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name in ("ILogger", "IProgressMonitor"):  # ours derive from them
            CALLS.add(name)
            return type(name, (Overriding,), {"real": real, "Severity": getattr(real, "Severity", None)})
        if not hasattr(real, "__members__"):  # a class that our code makes objects of
            return lambda *arguments: self._make(name, real, arguments)
        CALLS.add(name)
        return real

    def _make(self, name: str, real: Any, arguments: tuple[Any, ...]) -> Checked:
        check_signature("__init__", real.__init__.__doc__, len(arguments), set())
        CALLS.add(name)
        return Checked(real, name, self._real)


def main() -> None:
    import tensorrt_bindings
    import tensorrt_rtx

    from painn_deploy.engines.backend import BuildOptions
    from painn_deploy.engines.gpu import session as gpu_session
    from painn_deploy.engines.profiles import Profile
    from painn_deploy.engines.session import EngineInfo
    from painn_deploy.engines.tensorrt import session as tensorrt_session
    from painn_deploy.engines.tensorrt.builder import build_plan
    from painn_deploy.engines.tensorrt.session import TensorRTSession
    from tests.engines.emulated_gpu import EmulatedCuda
    from tests.engines.test_gpu_session import CUTOFF, graph_inputs, students

    library = Library(tensorrt_bindings, "tensorrt")
    for tf32 in (False, True):
        build_plan(library, b"graph", BuildOptions(tf32=tf32), timing_cache=b"")
    cuda = EmulatedCuda()
    gpu_session.runtime = tensorrt_session.runtime = lambda: cuda
    info = EngineInfo(backend="tensorrt", version="", device="cuda:0", precision="fp32", bundle_sha256="")
    profile = Profile((1, 8, 64), (1, 8, 64))
    for each in (library, Library(tensorrt_rtx, "tensorrt_rtx")):
        with TensorRTSession(each, b"plan", 0, profile, info, kept=Path(sys.argv[1]) / "kernels") as session:
            for _ in range(3):
                session.run(graph_inputs([students.water()], CUTOFF))
        assert not session.refused_graphs, session.refused_graphs
    sys.stdout.write(json.dumps(sorted(CALLS)))


if __name__ == "__main__":
    if sys.argv[2:] == ["stubs"]:
        write_stubs(Path(sys.argv[1]))
    else:
        main()
