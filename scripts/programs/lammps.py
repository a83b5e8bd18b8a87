"""LAMMPS with an engine: `painn-deploy lammps`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.export.progress import silent
from painn_deploy.scripts.commands.choices import Device, OneBundle, Threads, listed

__all__ = ["add_lammps"]

OURS = {
    *("-in", "-i", "-partition", "-p", "-mpicolor", "-m", "-help", "-h", "-skiprun", "-sr", "-reorder", "-ro"),
    *(f"-{word}2{kind}" for word in ("restart", "r") for kind in ("data", "dump", "info")),
}
"""Options of LAMMPS that would run another input than this one, or none."""


def add_lammps(app: typer.Typer) -> None:
    """Add the command `lammps` to a command line."""
    app.command("lammps")(_lammps)


def _lammps(
    bundle: OneBundle,
    script: Annotated[Path, typer.Argument(help="An input of LAMMPS, in metal or real units.", metavar="IN")],
    elements: Annotated[
        list[str] | None,
        typer.Option(help="Of LAMMPS's atom types, in order: C,H,O. Else those that pair_coeff ends with."),
    ] = None,
    ranks: Annotated[
        int,
        typer.Option(
            min=1,
            help="MPI ranks to start here, each with a part of the structure and an engine of its own. On several "
            "machines: mpiexec ... painn-deploy lammps, without this option.",
        ),
    ] = 1,
    threads: Threads = None,
    device: Device = "auto",
    options: Annotated[
        list[str] | None, typer.Argument(help="After --: options of LAMMPS, such as -var T 300.", metavar="OPTION")
    ] = None,
) -> None:
    """Run an input of LAMMPS with the engine in the place of its force field.

    Its files are written into the current folder. What is done otherwise than the input says is told on standard error.
    """
    from painn_deploy.runtime import PaiNNCalculator
    from painn_deploy.runtime.lammps import start_lammps
    from painn_deploy.runtime.motion.ranks import ranks_of
    from painn_deploy.runtime.programs.lammps_input import InputFile
    from painn_deploy.scripts.programs.ranks import check_launcher, cores_of, device_of, ended_together, run_on_ranks

    err = Console(stderr=True)
    named = listed(elements)
    if refused := [option for option in options or () if option in OURS]:
        raise EngineError(
            f"LAMMPS's option {refused[0]} has no place here: the input is the second argument, and is run."
        )
    if ranks > 1:
        given = [f"--elements={','.join(named)}"] if named else []
        given += [f"--threads={threads}"] if threads is not None else []
        arguments = ["lammps", str(bundle), str(script), *given, f"--device={device}", "--", *(options or ())]
        sys.exit(run_on_ranks(ranks, arguments))
    try:
        started = start_lammps(tuple(options or ()))
    except EngineUnavailableError as error:
        if not options or not isinstance(error.__cause__, Exception) or isinstance(error.__cause__, ImportError):
            raise
        raise EngineError(f"LAMMPS refuses {' '.join(options)}: {error.__cause__}") from error
    together = ranks_of(started)
    check_launcher(together)

    def tell(line: str) -> None:
        err.print(line, highlight=False, markup=False, soft_wrap=True)

    try:
        with ended_together(together):
            own = threads or cores_of(together)
            with PaiNNCalculator(bundle, threads=own, device=device_of(together, device)) as calculator:
                InputFile(started, calculator, named or None, tell if together.rank == 0 else silent).run(script)
    finally:
        started.close()
