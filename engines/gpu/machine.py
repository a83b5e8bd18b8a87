"""The name of this machine, for results that depend on it."""

import os
import platform
from collections.abc import Iterable
from pathlib import Path

from painn_deploy.engines.gpu.driver import gpu_of

__all__ = ["machine", "processor"]

CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """The processor's name, or its architecture where the system does not name it."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine(devices: Iterable[str] = ()) -> str:
    """The processor, how many cores there are to run on, and the GPUs that devices such as `cuda:0` are."""
    gpus = dict.fromkeys(gpu for device in devices if (gpu := gpu_of(device)) is not None)
    return ", ".join([processor(), f"{os.cpu_count()} cores", *gpus])
