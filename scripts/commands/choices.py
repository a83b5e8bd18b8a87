"""The command line: arguments of several commands, lists of names, limits, and what the shell completes them to."""

import glob
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "ENSEMBLES",
    "MADE_FROM",
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
    "bundles",
    "engines",
    "ensembles",
    "listed",
    "precisions",
    "relaxation",
    "uncertainty_limit",
]

ENSEMBLES = ("nve", "langevin", "bussi", "npt")


def listed(given: Sequence[str] | None) -> list[str]:
    """The names of a list, which is one word with commas, an option that is repeated, or both; empty if not given.

    Raises:
        BadParameter: it was given and names nothing, as an unset variable of the shell does; no default replaces it.
    """
    found = [name for word in given or () for each in word.split(",") if (name := each.strip())]
    if given and not found:
        raise typer.BadParameter(f"{','.join(given)!r} names nothing. Name at least one, or leave the option out.")
    return found


def relaxation(*, relax: bool, fmax: float | None, steps: int | None) -> tuple[float, int] | None:
    """The largest force (eV/Å) and the steps of a relaxation; None for none.

    Args:
        relax: whether there is one.
        fmax: None for the default of `painn_deploy.runtime.screening.relaxation.Relaxation`.
        steps: likewise.

    Raises:
        BadParameter: options of a relaxation are given, and there is none.
    """
    if not relax and (fmax, steps) != (None, None):
        raise typer.BadParameter("--fmax and --steps are of a relaxation; give --relax too.")
    if not relax:
        return None
    from painn_deploy.runtime.screening.relaxation import Relaxation

    usual = Relaxation()
    return usual.fmax if fmax is None else fmax, usual.steps if steps is None else steps


def uncertainty_limit(text: str | None, option: str) -> float | str | None:
    """Read a limit of uncertainties, see `painn_deploy.runtime.uncertainty.watch.Limit`; None if not given.

    Args:
        text: a number, or `threshold`.
        option: for the message.

    Raises:
        BadParameter: it is neither, or the number is not above 0.
    """
    from painn_deploy.runtime.uncertainty.watch import check_sense

    if text is None:
        return None
    limit: float | str = text
    with suppress(ValueError):
        limit = float(text)
    try:
        check_sense(limit, option)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
    return limit


def bundles(incomplete: str) -> list[str]:
    """Bundles whose path begins so, and those in folders whose path does; where there are none, the shell offers files.

    Paths stay as they were begun, with `./` or without.
    """
    begun = glob.escape(incomplete)
    found = (glob.glob(f"{begun}{rest}.engine") for rest in ("*", "*/*"))  # noqa: PTH207  Path.glob would drop `./`
    return sorted(path for paths in found for path in paths)


def engines(incomplete: str) -> list[str]:
    """Backends by name."""
    from painn_deploy.engines import BACKENDS

    return _beginning(incomplete, BACKENDS)


def precisions(incomplete: str) -> list[str]:
    """Precisions of an export."""
    from painn_deploy.export.manifest import PRECISIONS

    return _beginning(incomplete, (*PRECISIONS, "auto"))


def ensembles(incomplete: str) -> list[str]:
    """Ensembles of a simulation."""
    return _beginning(incomplete, ENSEMBLES)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    """Completions of the last word of a list."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


Bundles = Annotated[list[Path], typer.Argument(help="Folders NAME.engine.", metavar="BUNDLE", autocompletion=bundles)]
OneBundle = Annotated[Path, typer.Argument(help="A folder NAME.engine.", metavar="BUNDLE", autocompletion=bundles)]
MADE_FROM = typer.Option("--reference", help="The checkpoint that they were made from; of a committee all: a,b,c.")
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
