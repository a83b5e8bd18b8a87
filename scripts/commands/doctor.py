"""Which engines can run here, and what the others lack."""

import platform
from importlib.util import find_spec

from rich.markup import escape
from rich.table import Table

from painn_deploy.engines import BACKENDS, get_backend
from painn_deploy.engines.gpu.driver import driver, gpu_name
from painn_deploy.engines.onnxruntime.library import conflict
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.export.versions import installed
from painn_deploy.runtime.pairs import compiled

__all__ = ["engines_table", "packages_table"]

ALWAYS = {
    "painn-deploy": ("", ""),
    "numpy": ("", "arrays"),
    "ase": ("", "structures, dynamics"),
    "vesin": ("", "neighbours"),
}
TOOLS = {
    "torch": ("export", "engine inductor, export"),
    "onnx": ("export", "graphs of a student"),
    "safetensors": ("export", "checkpoints"),
    "jinja2": ("export", "the report of validate"),
    "matplotlib": ("plot", "pictures"),
    "numba": ("fast", "compiled loops over pairs"),
    "rdkit": ("train", "molecules to train on"),
    "tblite": ("train", "labels of GFN2-xTB"),
    "pyarrow": ("screen", "screen: .parquet"),
    "ray": ("screen", "screen --workers"),
    "torch-sim-atomistic": ("torchsim", "TorchSim: batched runs"),
    "lammps": ("lammps", "LAMMPS in Python"),
    "mpich": ("lammps", "MPI for LAMMPS"),
    "mpi4py": ("lammps", "LAMMPS over MPI"),
    "ipi": ("ipi", "i-PI's server"),
}
"""Distributions beside what engines need: the extra that installs each, and what it gives."""

IMPORTED_AS = {"torch-sim-atomistic": "torch_sim"}
"""Modules whose name is not the distribution's."""


def engines_table() -> tuple[Table, int]:
    """Every backend with its version and devices, or the reason why it cannot run; and how many can."""
    here = driver()
    made = Table(title="Engines", caption=f"{_gpus()}\n{escape(f'loops over pairs: {compiled.status()}')}")
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
    """Versions of the packages that take part, what each gives, and the extra that installs it. None is imported."""
    made = Table(title=f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for heading in ("package", "version", "extra"):
        made.add_column(heading, overflow="fold")
    made.add_column("gives")
    for name, (extra, gives) in (ALWAYS | _of_engines() | TOOLS).items():
        there = installed([name]) or {name: "not known" if _importable(name) else "[dim]not installed[/]"}
        for found, version in there.items():
            made.add_row(found, version, extra, gives)
    made.caption = escape('pip install "painn-deploy[EXTRA]" brings what is not installed')
    if wrong := conflict():
        made.caption += f"\n[red]{escape(wrong)}[/]"
    return made


def _of_engines() -> dict[str, tuple[str, str]]:
    """Distributions that engines need, the extra that installs each, and the engines."""
    found: dict[str, tuple[str, list[str]]] = {}
    for engine in BACKENDS:
        for name, extra in get_backend(engine).packages.items():
            found.setdefault(name, (extra, []))[1].append(engine)
    return {
        name: (extra, f"engine{'s' if len(engines) > 1 else ''} {', '.join(engines)}")
        for name, (extra, engines) in found.items()
    }


def _importable(name: str) -> bool:
    """Whether a module is there that no metadata speak of, as of a LAMMPS that somebody built; it is not imported."""
    try:
        return find_spec(IMPORTED_AS.get(name, name.replace("-", "_"))) is not None
    except (ImportError, ValueError):  # as in `painn_deploy.export.versions`
        return False


def _gpus() -> str:
    """The GPUs that there are, and what their driver serves; or why there is none."""
    here = driver()
    if not here.gpus:
        return escape(f"no GPU: {here.reason}")
    names = ", ".join(dict.fromkeys(gpu_name(index) or f"GPU {index}" for index in range(here.gpus)))
    served = "" if here.cuda is None else f"; the driver serves CUDA {here.cuda[0]}.{here.cuda[1]}"
    return escape(f"{here.gpus} GPU{'s' if here.gpus > 1 else ''}: {names}{served}")
