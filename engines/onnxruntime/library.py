"""ONNX Runtime as it is installed here: which package it is, and whether it can run on a device, found out before it
tries.

What goes wrong on the way to a GPU it tells on stderr alone, and then fails with another reason.
"""

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Any

from painn_deploy.engines.gpu.driver import check_driver, driver
from painn_deploy.engines.gpu.shared_libraries import load, needed, pip_folders
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.export.versions import onnxruntimes

__all__ = ["PROVIDERS", "conflict", "devices", "library", "load_failure", "prepared"]

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
DEVICE = re.compile(r"cpu|(cuda|tensorrt)(:[0-9]+)?")
FOR_A_GPU = 'For an NVIDIA GPU: pip uninstall -y onnxruntime, then pip install "painn-deploy[cuda]".'


def library() -> Any:
    """The module, which sends nothing to anybody, unless ORT_DISABLE_TELEMETRY says 0 already.

    From version 1.29 on it would by default, as it is loaded and as it runs, and would leave a number on the disk by
    which it knows the machine again.

    Raises:
        EngineUnavailableError: it is not installed, or cannot be imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "onnxruntime" and not onnxruntimes():
            raise EngineUnavailableError(
                'onnxruntime is not installed: pip install "painn-deploy[cpu]", or "painn-deploy[cuda]" for a GPU.'
            ) from error
        raise EngineUnavailableError(_broken(str(error))) from error
    except (ImportError, AttributeError, OSError) as error:
        raise EngineUnavailableError(_broken(str(error))) from error
    if not hasattr(onnxruntime, "InferenceSession"):  # what a removal leaves of two packages in one folder
        raise EngineUnavailableError(_broken("its folder has no module in it"))
    return onnxruntime


def conflict() -> str:
    """Why the module is not one package's own, and the remedy; empty where it is."""
    found = onnxruntimes()
    if len(found) < 2:
        return ""
    both = " and ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{both} are installed in one folder, where one has overwritten the other: run `pip uninstall -y "
        f"{' '.join(found)}`, then install painn-deploy[cuda] for a GPU or painn-deploy[cpu], not both. Until then "
        "onnxruntime runs on the device cpu alone, if that is asked for by name."
    )


def devices() -> tuple[str, ...]:
    """Devices that it can run on here, the preferred one first; a GPU is there only with a driver that knows it.

    Raises:
        EngineUnavailableError: it is not installed, or two of its packages are, in one folder.
    """
    module = library()
    if wrong := conflict():
        raise EngineUnavailableError(wrong)
    available = module.get_available_providers()
    built = [device for device, provider in PROVIDERS.items() if provider in available]
    return tuple(built if len(built) > 1 and driver().gpus else [device for device in built if device == "cpu"])


def prepared(device: str) -> Any:
    """The module, once all that a device needs was found and loaded.

    Args:
        device: `cpu`, `cuda`, `cuda:N`, `tensorrt` or `tensorrt:N`.

    Raises:
        EngineUnavailableError: it cannot run there; the message says what is missing, and what to do about it.
    """
    module = library()
    kind, _, index = device.partition(":")
    name = f"{getattr(module, 'package_name', '') or 'onnxruntime'} {module.__version__}"
    if kind != "cpu" and (wrong := conflict()):
        raise EngineUnavailableError(wrong)
    if not DEVICE.fullmatch(device) or PROVIDERS[kind] not in module.get_available_providers():
        raise EngineUnavailableError(
            f"{name} cannot run on {device!r} here, only on {', '.join(devices())}. {FOR_A_GPU}"
        )
    if kind == "cpu":
        return module
    here = check_driver(_built_for(module), name)
    if int(index or 0) >= here.gpus:
        raise EngineUnavailableError(
            f"{name} cannot run on {device!r} here: the driver shows {here.gpus} GPU{'s' if here.gpus > 1 else ''}, "
            "counted from 0; CUDA_VISIBLE_DEVICES may hide others."
        )
    if sys.platform.startswith("linux"):
        _load_needed(module, kind, f"{name} cannot run on {device!r} here")
    return module


def load_failure(kind: str) -> str:
    """The loader's error for a provider's own library; empty where it loads.

    It is asked after a session has failed on it and never before: loaded before ONNX Runtime has introduced itself, the
    library would keep a null pointer in place of its host.
    """
    folder = _folder(library())
    try:
        for name in ("libonnxruntime_providers_shared.so", _provider(kind)):
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error)
    return ""


def _load_needed(module: Any, kind: str, refusal: str) -> None:
    """Load what a provider's library needs, from where pip puts it too, so that the loader then finds it by name."""
    folders = pip_folders("lib")
    try:
        names = needed(_folder(module) / _provider(kind))
    except (OSError, ValueError) as error:
        raise EngineUnavailableError(f"{refusal}: {_broken(str(error))}") from error
    for name in names:
        if missing := load(name, folders):
            remedy = (
                "TensorRT's libraries come with painn-deploy[tensorrt]."
                if "nvinfer" in missing or "nvonnxparser" in missing
                else 'pip install "painn-deploy[cuda]" installs the libraries of CUDA and cuDNN beside it.'
            )
            raise EngineUnavailableError(f"{refusal}: a library that it needs cannot be loaded, {missing}. {remedy}")
    load("libcudnn.so.9", folders)  # what newer versions open by name, if a node has a use for it


def _folder(module: Any) -> Path:
    return Path(module.__file__).parent / "capi"


def _provider(kind: str) -> str:
    return f"libonnxruntime_providers_{kind}.so"


def _built_for(module: Any) -> tuple[int, int] | None:
    """The CUDA that it was built with."""
    major, _, minor = str(getattr(module, "cuda_version", "")).partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def _broken(why: str) -> str:
    names = " ".join(onnxruntimes()) or "onnxruntime onnxruntime-gpu"
    return (
        f"onnxruntime is installed and broken ({why}): run `pip uninstall -y {names}`, then install painn-deploy[cpu], "
        "or painn-deploy[cuda] for a GPU, not both."
    )
