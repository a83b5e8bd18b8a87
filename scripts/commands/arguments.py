"""Arguments and options that several commands of `painn-deploy` have."""

from pathlib import Path
from typing import Annotated

import typer

from painn_deploy.scripts.commands import choices

__all__ = [
    "Bundles",
    "Checkpoint",
    "Device",
    "EnergyKey",
    "EnergyUnit",
    "LengthUnit",
    "OneBundle",
    "Others",
    "Species",
    "Structures",
    "Threads",
]

Bundles = Annotated[
    list[Path], typer.Argument(help="Folders NAME.engine.", metavar="BUNDLE", autocompletion=choices.bundles)
]
OneBundle = Annotated[
    Path, typer.Argument(help="A folder NAME.engine.", metavar="BUNDLE", autocompletion=choices.bundles)
]
Structures = Annotated[
    Path | None, typer.Option(help="Structures in any format that ASE reads; a default set otherwise.")
]
Checkpoint = Annotated[
    str, typer.Argument(help="A file: best_model, .ckpt, .pt, .safetensors; or student:base.", metavar="FILE")
]
Others = Annotated[list[str] | None, typer.Argument(help="Further ones, with --committee.", metavar="FILE")]
EnergyUnit = Annotated[
    str | None,
    typer.Option(help="Of a file that does not say, as SchNetPack's: eV, kcal/mol, Hartree, or a number of eV."),
]
LengthUnit = Annotated[str | None, typer.Option(help="Likewise: Ang, Bohr, nm, or a number of Å.")]
Species = Annotated[
    list[str] | None, typer.Option(help="Elements that it was trained on: H,C,O; repeatable; unverified if not given.")
]
EnergyKey = Annotated[str | None, typer.Option(help="What the model calls its energy; energy if not given.")]
Device = Annotated[str, typer.Option(help="auto, or what the engine names, such as cpu or cuda:0.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Of the CPU; if not given all cores, or one where that is faster."),
]
