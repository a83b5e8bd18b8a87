"""The `inductor` backend: the graph compiled to native code by torch (AOTInductor), where there is a C++ compiler.

The package holds machine code: it is bound to the version of torch that made it, and to the CPU's vector instructions
or the GPU's compute capability.
"""

import ctypes
import json
import os
import shutil
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from tempfile import NamedTemporaryFile
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from painn_deploy.engines.backend import Backend, BuildOptions, BuiltEngine
from painn_deploy.engines.contract import taken
from painn_deploy.engines.cores import CORES
from painn_deploy.engines.forms import CPU_FORMS, Plan, plans_for, serving
from painn_deploy.engines.gpu.arena import Arena
from painn_deploy.engines.gpu.driver import check_driver, driver
from painn_deploy.engines.gpu.session import GpuSession
from painn_deploy.engines.gpu.toolchain import toolchain
from painn_deploy.engines.host_session import HostSession
from painn_deploy.engines.inductor.compile import SEVERAL, Asked, compiled_form, compiling
from painn_deploy.engines.inductor.gpu import LEAST, LoadedPackage, TorchExecutor, torch_in_words
from painn_deploy.engines.inductor.loaded import lend, share_standard_library
from painn_deploy.engines.inductor.matmul_precision import matmul_precision
from painn_deploy.engines.inductor.openmp import check_threads, team
from painn_deploy.engines.inductor.pairs import KnownPairs
from painn_deploy.engines.session import EngineInfo
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import BundleError, EngineError, EngineUnavailableError
from painn_deploy.export.fields import INPUTS, OUTPUTS, Field, GraphInputs
from painn_deploy.export.manifest import Manifest
from painn_deploy.export.progress import Tell, silent

if TYPE_CHECKING:
    import onnx

__all__ = ["BACKEND", "InductorBackend", "InductorSession", "give_back_memory", "keep_freed_memory"]

PACKAGES = "packages.json"
"""File of a bundle that says which package is in which form, and for which sizes."""

CPU_BATCH_SLOTS = 4_096
"""See `painn_deploy.engines.backend`: compiled code writes fewer tensors, and is up to a seventh faster with this than
with half of it."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
TUNED = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise EngineUnavailableError('The engine inductor needs torch: pip install "painn-deploy[export]".') from error
    return torch


def _kind(torch: Any, device: str) -> str:
    """Kind of device that machine code is bound to: `cpu:AVX512` by vector instructions, `cuda:90` by capability."""
    if device == "cpu":
        return f"cpu:{torch.backends.cpu.get_cpu_capability()}"
    return "cuda:" + "".join(map(str, torch.cuda.get_device_capability(device)))


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, for this process; a user who has tuned the allocator is left alone.

    Compiled code asks for every intermediate anew at each call. Of large ones glibc gives the memory back at once, and
    gets it again page by page: for a liquid of 1,500 atoms that takes longer than the arithmetic.
    """
    if sys.platform != "linux" or any(name in os.environ for name in TUNED):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """Return what glibc holds and nobody uses."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class InductorBackend(Backend):
    """AOTInductor on a CPU or a GPU. Building takes about a minute.

    `threads` of a session on a CPU hold for the session, and from its opening on for the rest of torch too.
    """

    name = "inductor"
    packages = MappingProxyType({"torch": "export"})
    precisions = ("fp32", "fp16", "int8", "fp64")

    def lacks(self, precision: str, device: str) -> str:
        """See `Backend.lacks`: INT8 is for a CPU that multiplies 8-bit integers exactly.

        Args:
            precision: one of `precisions`.
            device: that the engine is built for.
        """
        if precision != "int8":
            return ""
        if _kind(_torch(), self._device(device)).partition(":")[0] != "cpu":
            return "It has INT8 on a CPU alone, and would be built for a GPU here: give --device cpu."
        from painn_deploy.engines.inductor.int8 import inexact  # it needs torch

        return inexact()

    def executed_graph(self, bundle: Bundle, atoms: int, slots: int) -> "onnx.ModelProto":
        """See `Backend.executed_graph`."""
        form = serving(_packages(bundle), atoms, slots).plan.form
        # what these words say takes the same multiply-adds as the products that it stands for
        words = tuple(word for word in form.words if word not in ("dots", "messages", "split"))
        return replace(form, words=words).lowered(super().executed_graph(bundle, atoms, slots))

    def contents(self, bundle: Bundle) -> Mapping[str, str]:
        """See `Backend.contents`: forms of the graph, and the sizes that each is for."""
        return {"forms": "; ".join(str(one.plan) for one in _packages(bundle))}

    def batch_slots(self, device: str) -> int:
        """See `Backend.batch_slots`."""
        return CPU_BATCH_SLOTS if device == "cpu" else super().batch_slots(device)

    def bound_to(self, options: BuildOptions) -> str:
        """See `Backend.bound_to`."""
        return _kind(_torch(), self._device(options.device))

    def _device(self, device: str) -> str:
        available = self.devices()
        chosen = available[0] if device == "auto" else {"cuda": "cuda:0"}.get(device, device)
        if chosen not in available:
            raise EngineUnavailableError(
                f"torch cannot use {device!r} here, only {', '.join(available)}.{_why_no_gpu(chosen)}"
            )
        return chosen

    def honours_tf32(self, device: str) -> bool:
        """See `Backend.honours_tf32`: where an engine is compiled for a GPU."""
        return (self._device(device) if device == "auto" else device).partition(":")[0] == "cuda"

    def version(self) -> str:
        """See `Backend.version`: torch's, without the name of its build."""
        return str(_torch().__version__).split("+")[0]

    def devices(self) -> tuple[str, ...]:
        """See `Backend.devices`."""
        torch = _torch()
        return (*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu")

    def check(self, options: BuildOptions) -> None:
        """See `Backend.check`: the device, the forms, and what compiles for them."""
        self._plans(options)
        self._check_compiler()
        if self._device(options.device) != "cpu":
            with toolchain():  # proves itself
                return

    @staticmethod
    def _check_compiler() -> None:
        if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
            raise EngineUnavailableError("The engine inductor needs a C++ compiler: install g++, or set CXX to yours.")

    def _plans(self, options: BuildOptions) -> dict[str, Plan]:
        return plans_for(self._device(options.device).partition(":")[0], options.form, options.precision)

    def build(self, model: bytes, options: BuildOptions, tell: Tell = silent) -> BuiltEngine:
        """See `Backend.build`."""
        torch, device = _torch(), self._device(options.device)
        plans = self._plans(options)
        if lacking := self.lacks(options.precision, device):
            raise EngineUnavailableError(f"The engine inductor has no {options.precision} here. {lacking}")
        self._check_compiler()  # that of a GPU proves itself as it is used
        tf32 = options.tf32 and self.honours_tf32(device)
        asked = {name: Asked(str(plan.form), device, tf32) for name, plan in plans.items()}
        first, *others = asked
        with ExitStack() as stack:
            beside, made = {}, {}
            if (os.cpu_count() or 1) >= SEVERAL:
                beside = {name: stack.enter_context(compiling(model, asked[name])) for name in others}
            for number, (name, one) in enumerate(asked.items(), 1):
                together = f" and {len(beside)} beside it" if name == first and beside else ""
                tell(f"inductor: compiling {one.form} for {_kind(torch, device)}{together}, {number} of {len(plans)}")
                made[name] = beside[name]() if name in beside else compiled_form(model, one)
        files = {name: made[name][0] for name in plans}
        facts = {name: plan.as_dict() | {"elements_a_slot": made[name][1]} for name, plan in plans.items()}
        files[PACKAGES] = (json.dumps(facts, indent=1) + "\n").encode()
        return BuiltEngine(files, (_kind(torch, device),), tf32=tf32)

    def open(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> "InductorSession | GpuSession":
        """See `Backend.open`."""
        torch, manifest = _torch(), bundle.manifest
        if not manifest.bound_to:
            raise BundleError(f"{bundle} does not say which machine it was compiled for. Export it again.")
        bound = manifest.bound_to[0]
        kind = bound.partition(":")[0]
        if device == "auto" or (device, kind) == ("cuda", "cuda"):
            device = "cpu" if kind == "cpu" else "cuda:0"
        if device.partition(":")[0] != kind or device not in self.devices():
            raise EngineUnavailableError(
                f"This bundle was compiled for {bound} and cannot run on {device!r}; "
                f"torch has {', '.join(self.devices())} here.{_why_no_gpu(device)}"
            )
        if manifest.engine_version != self.version():
            raise BundleError(
                f"{bundle} was compiled by torch {manifest.engine_version}, and this is torch {self.version()}. "
                "Export it again here, or install that version."
            )
        if bound != _kind(torch, device):
            raise BundleError(
                f"{bundle} was compiled for {bound}, and this machine is {_kind(torch, device)}. Export it again here."
            )
        if lacking := self.lacks(manifest.precision, device):
            raise EngineUnavailableError(f"{bundle} cannot run here: {lacking}")
        info = EngineInfo(
            backend=self.name,
            version=self.version(),
            device=device,
            precision=manifest.precision,
            bundle_sha256=bundle.sha256,
        )
        packages = _packages(bundle)
        if device == "cpu":
            check_threads(threads)
            return InductorSession(packages, threads, info, manifest.outputs, manifest.inputs)
        return _gpu_session(torch, packages, info, manifest)


BACKEND = InductorBackend()


def _why_no_gpu(device: str) -> str:
    """A sentence that says why a GPU that was asked for cannot be used; empty for a CPU."""
    if not device.startswith("cuda"):
        return ""
    torch = _torch()
    if torch.version.cuda is None:
        return " This torch was built without CUDA; install a build with it."
    major, minor = (int(part) for part in torch.version.cuda.split(".")[:2])
    try:
        check_driver((major, minor), f"torch {torch.__version__}")
    except EngineUnavailableError as error:
        return f" {error}"
    return f" {reason}" if (reason := driver().reason) else ""


class StoredPackage(NamedTuple):
    """A package of a bundle.

    Attributes:
        plan: form and sizes that it is for.
        elements: of its widest tensor, for each slot.
        contents: what torch loads.
    """

    plan: Plan
    elements: float
    contents: bytes


def _packages(bundle: Bundle) -> list[StoredPackage]:
    """Packages of a bundle, the one for the smallest matrices first."""
    if PACKAGES not in bundle.manifest.files:  # the bundle is from before there was the file
        return [StoredPackage(plan, 0.0, bundle.file(name)) for name, plan in CPU_FORMS.items()]
    packages = []
    for name, facts in bundle.json(PACKAGES).items():
        try:
            plan, elements = Plan.from_mapping(facts), float(facts["elements_a_slot"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, EngineError) as error:
            raise BundleError(
                f"{PACKAGES} of {bundle} does not say what {name} is for ({type(error).__name__}: {error}). Export the "
                "bundle again."
            ) from error
        packages.append(StoredPackage(plan, elements, bundle.file(name)))
    if not packages:
        raise BundleError(f"{PACKAGES} of {bundle} names no package. Export the bundle again.")
    return packages


def _load(torch: Any, index: int, contents: bytes) -> Callable[..., Sequence[Any]]:
    """Load a package; on a GPU without a synchronisation of its own, which could not be recorded.

    torch's own `aoti_load_package` first compiles programs that ask for the processor's instructions, which takes most
    of a minute where it was not done before and needs a compiler; a bundle says what it is bound to. What it returns
    reads the package's signature anew at every call.

    Args:
        torch: the library.
        index: of the GPU, -1 for the CPU.
        contents: of the package.

    Raises:
        EngineError: torch cannot load it.
    """
    share_standard_library()
    on_gpu = torch.cuda.device(index) if index >= 0 else nullcontext()  # loading makes it the current one for good
    with torch_in_words(torch, "torch cannot load this package"), on_gpu, NamedTemporaryFile(suffix=".pt2") as file:
        file.write(contents)
        file.flush()
        loader = torch._C._aoti.AOTIModelPackageLoader(file.name, "model", index >= 0, 1, index)
    return lambda *inputs: loader.boxed_run(list(inputs))


def _gpu_session(torch: Any, packages: Sequence[StoredPackage], info: EngineInfo, manifest: Manifest) -> GpuSession:
    """A session on a GPU."""
    device = info["device"]
    index = int(device.partition(":")[2])
    loaded = [LoadedPackage(one.plan, one.elements, _load(torch, index, one.contents)) for one in packages]

    def make(stream: int, _: Arena) -> TorchExecutor:
        boundary = {"outputs": manifest.outputs, "inputs": manifest.inputs}
        return TorchExecutor(torch, loaded, device, stream, tf32=manifest.tf32, **boundary)

    def release() -> None:
        loaded.clear()
        with suppress(RuntimeError):  # another thread may be recording
            torch.cuda.empty_cache()  # torch would keep the memory for itself

    return GpuSession(make, index, info, species=manifest.species, release=release)


class InductorSession(HostSession):
    """A loaded engine on a CPU.

    Args:
        packages: the one for the smallest matrices first.
        threads: of its calls; None for as many as torch may take, and fewer while others want the cores.
        info: what the session says of itself.
        outputs: of the graph.
        inputs: of the graph.
    """

    def __init__(
        self,
        packages: Sequence[StoredPackage],
        threads: int | None,
        info: EngineInfo,
        outputs: Sequence[Field] = OUTPUTS,
        inputs: Sequence[Field] = INPUTS,
    ) -> None:
        super().__init__(info, LEAST, outputs, inputs)
        self._torch, self._threads = _torch(), threads
        if threads is not None:
            self._torch.set_num_threads(threads)
        keep_freed_memory()
        self._pairs = KnownPairs()
        with ExitStack() as lent:
            self._packages = []
            for one in packages:
                run = lend(one.contents, partial(_load, self._torch, -1))
                lent.callback(run.give_back)
                self._packages.append(LoadedPackage(one.plan, one.elements, run))
            # a session that is dropped gives back what one that is closed does
            self._give_back = weakref.finalize(self, lent.pop_all().close)
            self._give_back.atexit = False

    def _evaluate(self, inputs: GraphInputs) -> list[np.ndarray]:
        atoms, slots = inputs.mask.shape
        package = serving(self._packages, atoms, slots)
        arrays = [*taken(inputs, self.inputs).values()]
        if package.plan.form.paired:
            arrays += self._pairs.of(inputs.reverse, LEAST)
        failed = f"The compiled graph failed on {atoms} atoms x {slots} slots"
        most = self._torch.get_num_threads() if self._threads is None else self._threads
        threads = CORES.threads(most) if self._threads is None else most
        with torch_in_words(self._torch, failed), matmul_precision(self._torch), team(threads):
            outputs = package.run(*(self._tensor(array) for array in arrays))
        if self._threads is None:
            CORES.look(most)
        return [output.numpy() for output in outputs]

    def _tensor(self, array: np.ndarray) -> Any:
        """An array as a tensor; one that is closed for writing is copied, as torch warns of such."""
        return self._torch.from_numpy(array if array.flags.writeable else array.copy())

    def close(self) -> None:
        """See `Session.close`; the system gets back what was kept from call to call."""
        super().close()
        self._packages = []
        self._give_back()
        give_back_memory()
