"""What the figures of a job on a GPU are of: figures of two machines, versions or students are never mixed."""

import platform
from typing import Any

from painn_deploy.engines.driver import check_driver, driver, gpu_of
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.export.versions import installed
from painn_deploy.scripts.gpu_plan import Options

__all__ = ["identity"]

PACKAGES = ("painn-deploy", "torch", "onnxruntime", "tensorrt", "tensorrt-rtx", "numpy", "ase", "vesin")


def identity(options: Options) -> dict[str, Any]:
    """Device, versions, student.

    Raises:
        EngineUnavailableError: the device is not here; the message says why.
        CheckpointError: there is no such student.
    """
    if options.device != "cpu":
        found = driver()
        if not found.gpus:
            raise EngineUnavailableError(
                f"There is no NVIDIA GPU that can be used here: {found.reason}. `--device cpu` rehearses the job."
            )
        index = int(options.device.partition(":")[2] or 0)
        if index >= found.gpus:
            raise EngineUnavailableError(f"There is no {options.device} here, only {found.gpus} GPUs.")
        import torch

        if torch.version.cuda is not None:
            major, minor = (int(part) for part in torch.version.cuda.split(".")[:2])
            check_driver((major, minor), f"torch {torch.__version__}")
    from painn_deploy.export.checkpoint import resolve_checkpoint

    source = resolve_checkpoint(options.student)
    return {
        "format": 1,
        "device": gpu_of(options.device) or f"{_processor()} (CPU)",
        "python": platform.python_version(),
        "versions": installed(PACKAGES),
        "student": source.name,
        "student_sha256": source.sha256,
        "quick": options.quick,
    }


def _processor() -> str:
    from painn_deploy.scripts.demo import machine

    return machine()
