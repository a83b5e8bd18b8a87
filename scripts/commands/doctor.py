"""Which engines can run here, and what the others lack."""

import platform

from rich.markup import escape
from rich.table import Table

from painn_deploy.engines import BACKENDS, get_backend
from painn_deploy.engines.gpu.driver import driver, gpu_name
from painn_deploy.engines.onnxruntime.library import conflict
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.export.versions import installed

__all__ = ["engines_table", "packages_table"]

PACKAGES = {
    "painn-deploy": "",
    "numpy": "",
    "ase": "",
    "vesin": "",
    "onnxruntime": "cpu",
    "tensorrt-rtx": "tensorrt-rtx",
    "tensorrt": "tensorrt",
    "cuda-bindings": "tensorrt-rtx",
    "torch": "export",
    "onnx": "export",
    "safetensors": "export",
    "jinja2": "export",
    "matplotlib": "plot",
    "rdkit": "train",
    "tblite": "train",
}


def engines_table() -> tuple[Table, int]:
    """Every backend with its version and devices, or the reason why it cannot run; and how many can."""
    here = driver()
    made = Table(title="Engines", caption=_gpus())
    for heading in ("engine", "version", "devices", "state"):
        made.add_column(heading)
    usable = 0
    for name in BACKENDS:
        backend = get_backend(name)
        try:
            devices = backend.devices()
            why = escape(here.reason or "no NVIDIA GPU that it can use")
            state = "[green]can run[/]" if devices else f"[yellow]cannot run[/]: {why}"
            made.add_row(name, backend.version(), ", ".join(devices) or "-", state)
            usable += bool(devices)
        except EngineUnavailableError as error:
            made.add_row(name, "-", "-", f"[red]cannot run[/]: {escape(str(error))}")
    return made, usable


def packages_table() -> Table:
    """Versions of the packages that take part, and the extra that installs each one that is missing."""
    made = Table(title=f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for heading in ("package", "version"):
        made.add_column(heading)
    for name, extra in PACKAGES.items():
        for found, version in installed([name]).items():
            made.add_row(found, version)
        if not installed([name]):
            made.add_row(name, f'[dim]not installed; pip install "painn-deploy\\[{extra}]"[/]')
    if wrong := conflict():
        made.caption = f"[red]{escape(wrong)}[/]"
    return made


def _gpus() -> str:
    """The GPUs that there are, and what their driver serves; or why there is none."""
    here = driver()
    if not here.gpus:
        return escape(f"no GPU: {here.reason}")
    names = ", ".join(dict.fromkeys(gpu_name(index) or f"GPU {index}" for index in range(here.gpus)))
    served = "" if here.cuda is None else f"; the driver serves CUDA {here.cuda[0]}.{here.cuda[1]}"
    return escape(f"{here.gpus} GPU{'s' if here.gpus > 1 else ''}: {names}{served}")
