"""The identity of a job's figures: those of two machines, versions or students are never mixed."""

import platform
from typing import Any

from painn_deploy.engines.gpu.driver import check_driver, driver, gpu_of
from painn_deploy.engines.gpu.machine import machine
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.export.versions import installed
from painn_deploy.scripts.gpu.plan import Options

__all__ = ["check_device", "identity"]

PACKAGES = ("painn-deploy", "torch", "onnxruntime", "tensorrt", "tensorrt-rtx", "numpy", "ase", "vesin")


def identity(options: Options) -> dict[str, Any]:
    """Device, versions, student.

    Raises:
        EngineUnavailableError: the device is not here; the message says why.
        CheckpointError: there is no such student.
    """
    check_device(options.device)
    if options.device != "cpu":
        import torch

        if torch.version.cuda is not None:
            major, minor = (int(part) for part in torch.version.cuda.split(".")[:2])
            check_driver((major, minor), f"torch {torch.__version__}")
    from painn_deploy.export.checkpoint import resolve_checkpoint

    source = resolve_checkpoint(options.student)
    return {
        "format": 1,
        "device": gpu_of(options.device) or f"{machine()} (CPU)",
        "python": platform.python_version(),
        "versions": installed(PACKAGES),
        "student": source.name,
        "student_sha256": source.sha256,
        "quick": options.quick,
    }


def check_device(device: str) -> None:
    """Refuse a device that is not here; it takes no time.

    Raises:
        EngineUnavailableError: the message says why.
    """
    if device == "cpu":
        return
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number.isdigit():
        raise EngineUnavailableError(f"{device!r} is no device of this job: give cpu, cuda, or cuda:N.")
    found = driver()
    if not found.gpus:
        raise EngineUnavailableError(
            f"There is no NVIDIA GPU that can be used here: {found.reason}. `--device cpu` rehearses the job."
        )
    if int(number) >= found.gpus:
        raise EngineUnavailableError(f"There is no {device} here, only {found.gpus} GPUs.")
