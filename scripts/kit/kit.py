"""Gathers what a GPU machine without a network lacks, in portions of a given size, and prints what to run there.

    make gpu-kit KIT="--portion 56MiB --there freeze.txt"
    python scripts/gpu_kit.py --portion 56MiB --there freeze.txt

The machine runs Linux on x86-64 and has torch with CUDA, which is too large to carry. `--there` is what `pip freeze`
printed on it. The first portion holds painn-deploy and what `inductor` needs; onnxruntime-gpu follows, then
TensorRT-RTX. What was downloaded is kept in the cache folder, so that an interrupted run goes on where it was.
"""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from packaging.utils import NormalizedName, canonicalize_name
from rich.console import Console
from rich.table import Column, Table

from painn_deploy.engines.cache import cache_folder
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.kit.download import MIB, Downloads, own_wheel
from painn_deploy.scripts.kit.onnxruntime_wheel import fitting_wheel
from painn_deploy.scripts.kit.portions import Portion, bytes_of, check_output, room, write_portions
from painn_deploy.scripts.kit.wheels import Closure, Names, Target, closure, pins, there

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = {"inductor": "export", "onnxruntime": "cuda", "tensorrt-rtx": "tensorrt-rtx"}
"""Extra of each engine that can be carried, in the order in which they are."""
GPU, CPU = canonicalize_name("onnxruntime-gpu"), canonicalize_name("onnxruntime")
RTX_ARCHITECTURES = (75, 80, 86, 89, 120, 121)
"""Compute capabilities that TensorRT-RTX 1.7 knows."""
SMALLEST = 2**18
"""Bytes of a portion: what every portion holds takes some of them."""
JOB = "python3 -m painn_deploy.scripts.gpu_check --output gpu-results --minutes 9"


@dataclass
class Load:
    """The packages to carry.

    Attributes:
        wheels: files, the most valuable first.
        needs: for each engine, names of the wheels that it waits for.
        remarks: sentences for whoever carries it.
    """

    wheels: list[Path] = field(default_factory=list)
    needs: dict[str, set[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def gpu_kit(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the portions.")] = Path("gpu-kit"),
    python: Annotated[str, typer.Option(help="The machine's Python.")] = "3.12",
    portion: Annotated[str, typer.Option(help="Size that no portion exceeds.")] = "56MiB",
    arch: Annotated[int, typer.Option(help="Ten times the GPU's compute capability; 90 for H100 and H200.")] = 90,
    there_: Annotated[
        str | None, typer.Option("--there", help="A file of `pip freeze` on the machine, or names with commas.")
    ] = None,
    engine: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(EXTRAS)}; the first two.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Carry onnxruntime-gpu as it is, however large.")] = False,
) -> None:
    """Gather what a GPU machine without a network lacks, in portions."""
    console = Console(soft_wrap=True, highlight=False)
    if not re.fullmatch(r"3\.\d{1,2}", python) or int(python[2:]) < 11:
        raise typer.BadParameter(f"{python!r} is no Python that painn-deploy runs on; give 3.11 or later.")
    size, engines, installed = bytes_of(portion), _in_order(engine or ["inductor", "onnxruntime"]), there(there_)
    if size < SMALLEST:
        raise typer.BadParameter(f"A portion of {portion} holds next to nothing; give at least 256KiB.")
    check_output(output)
    downloads = Downloads(cache_folder() / "gpu-kit", Target(python), console)
    with tempfile.TemporaryDirectory() as temporary:
        own = own_wheel(ROOT, Path(temporary), console)
        load = gather(own, engines, installed, downloads)
        if there_ is None:
            load.remarks.append("Only torch and what it brings is taken to be there; --there says what else is.")
        if "tensorrt-rtx" in engines and arch not in RTX_ARCHITECTURES:
            load.remarks.append(f"TensorRT-RTX 1.7 does not know the architecture {arch}; it may refuse to run there.")
        if not whole:
            _reduce(load, arch, size, downloads.folder / "reduced", console)
        portions = write_portions(output, load.wheels, size, python)
    _report(console, output, portions, load, engines)


def gather(own: Path, engines: Sequence[str], installed: Names, downloads: Downloads) -> Load:
    """Every wheel that the machine lacks.

    Args:
        own: painn-deploy's wheel.
        engines: of `EXTRAS`, in its order.
        installed: what the machine has.
        downloads: where wheels come from.

    Raises:
        PaiNNDeployError: a wheel cannot be had, or torch there does not do.
    """
    extras = ["export"] if "onnxruntime" in engines else ["export", "cpu"]  # ONNX Runtime checks every export
    pinned = pins(ROOT / "constraints.txt")
    load = Load([own])
    carried: dict[NormalizedName, Path] = {}
    for name in dict.fromkeys(("inductor", *engines)):
        extras = list(dict.fromkeys([*extras, EXTRAS[name]]))
        found = closure([(own, extras)], downloads.target, installed, pinned, downloads.wheel)
        _check_consistent(carried, found)
        new = {key: path for key, path in found.wheels.items() if key not in carried}
        load.wheels += sorted(new.values(), key=lambda path: path.stat().st_size)
        carried |= new
        load.needs[name] = {own.name, *(path.name for path in found.wheels.values())}
    if GPU in carried and CPU not in installed:
        for needed in load.needs.values():
            needed.add(carried[GPU].name)
    load.remarks = found.remarks
    if found.assumed:
        load.remarks.append(f"Taken to be there, as they come with torch: {', '.join(sorted(set(found.assumed)))}.")
    return load


def _check_consistent(carried: dict[NormalizedName, Path], found: Closure) -> None:
    """Refuse engines that need one package in two versions."""
    for name, path in carried.items():
        if found.wheels.get(name, path) != path:
            raise EngineUnavailableError(
                f"One engine needs {path.name} and another {found.wheels[name].name}. Make a kit for each: --engine."
            )


def _in_order(engines: Sequence[str]) -> list[str]:
    if unknown := [name for name in engines if name not in EXTRAS]:
        raise typer.BadParameter(f"{', '.join(unknown)} cannot be carried; these can: {', '.join(EXTRAS)}.")
    return [name for name in EXTRAS if name in engines]


def _reduce(load: Load, arch: int, portion: int, folder: Path, console: Console) -> None:
    """Put a smaller onnxruntime-gpu in place of one that does not fit in one portion."""
    for index, path in enumerate(load.wheels):
        if not path.name.startswith("onnxruntime_gpu-"):
            continue
        limit = room([wheel.name for wheel in load.wheels], portion)
        with console.status("reducing onnxruntime-gpu") as status:
            made = fitting_wheel(path, arch, limit, folder, status.update)
        load.wheels[index] = made.path
        for needed in load.needs.values():
            if path.name in needed:
                needed.add(made.path.name)
        if made.removed:
            load.remarks.append(
                f"onnxruntime-gpu does not fit in one portion and was reduced from {_mib(path.stat().st_size)} to "
                f"{_mib(made.path.stat().st_size)}. {made.removed} So reduced it ran on an H100. "
                "`--whole` carries the whole wheel instead."
            )


def _report(console: Console, output: Path, portions: Sequence[Portion], load: Load, engines: Sequence[str]) -> None:
    """Print what each portion holds, what is to be known, and what to run on the machine."""
    shown = output if not output.is_absolute() else Path(output.name)
    table = Table("portion", "size", Column("holds", overflow="fold"))
    for portion in portions:
        table.add_row(portion.path.name, _mib(portion.size), "\n".join(piece.name for piece in portion.pieces))
    console.print(table)
    for remark in load.remarks:
        console.print(f"- {remark}", markup=False)
    console.print("- torch with its CUDA libraries is never carried, being too large: the machine must have it.")
    for engine in engines:
        last = max(int(p.path.name) for p in portions for piece in p.pieces if piece.wheel in load.needs[engine])
        waits = "portion 0" if last == 0 else f"portions 0 to {last}"
        console.print(f"- {engine} can be used there after {waits}.")
    total, several = sum(portion.size for portion in portions), len(portions) > 1
    count = f"{len(portions)} portions, {_mib(total)} together" if several else f"one portion of {_mib(total)}"
    console.print(f"\n{output} has {count}. Copy {'each' if several else 'it'} to the machine, and run there")
    for portion in portions:
        console.print(f"    bash {shown / portion.path.name}/take.sh", markup=False)
    order = "in any order. The staged job runs the engines that are complete by then:"
    console.print(order if several else "and then the staged job:")
    console.print(f"    . ${{PAINN_KIT:-~/painn-kit}}/env.sh && {JOB}", markup=False)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


if __name__ == "__main__":
    run_command(gpu_kit)
