"""What can run here, and what is missing where it cannot."""

import platform
from importlib import metadata

from rich.markup import escape
from rich.table import Table

from painn_deploy.engines import BACKENDS, get_backend
from painn_deploy.export.errors import EngineUnavailableError

__all__ = ["engines_table", "packages_table"]

PACKAGES = {
    "painn-deploy": "",
    "numpy": "",
    "ase": "",
    "vesin": "",
    "onnxruntime": "cpu",
    "tensorrt-rtx": "tensorrt-rtx",
    "tensorrt": "tensorrt",
    "cuda-python": "tensorrt-rtx",
    "torch": "export",
    "onnx": "export",
    "safetensors": "export",
    "matplotlib": "plot",
    "rdkit": "train",
    "tblite": "train",
}


def engines_table() -> tuple[Table, int]:
    """Every backend with its version and devices, or the reason why it cannot run; and how many can."""
    made = Table(title="Engines")
    for heading in ("engine", "version", "devices", "state"):
        made.add_column(heading)
    usable = 0
    for name in BACKENDS:
        backend = get_backend(name)
        try:
            devices = backend.devices()
            state = "[green]can run[/]" if devices else "[yellow]cannot run[/]: no NVIDIA GPU with a driver here"
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
        try:
            made.add_row(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            made.add_row(name, f'[dim]not installed; pip install "painn-deploy\\[{extra}]"[/]')
    return made
