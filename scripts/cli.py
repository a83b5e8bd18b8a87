"""The command `painn-deploy`: the arguments of each of its commands, whose work other modules of this room do."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.export.versions import installed
from painn_deploy.scripts.commands import choices
from painn_deploy.scripts.commands.choices import (
    Bundles,
    Checkpoint,
    Device,
    EnergyKey,
    EnergyUnit,
    LengthUnit,
    OneBundle,
    Others,
    Species,
    Structures,
    Threads,
)
from painn_deploy.scripts.commands.entry import print_any_text, print_own_warnings
from painn_deploy.scripts.programs.lammps import add_lammps

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a trained PaiNN student to engines that run in ASE, with their error against FP32 measured.",
)
out, err = Console(), Console(stderr=True)
EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "safetensors", "jinja2"), "export"),
    **dict.fromkeys(("pyarrow", "ray"), "screen"),
    "matplotlib": "plot",
    "tblite": "train",
}


def _tell_version(asked: bool) -> bool:
    if asked:
        version = installed(["painn-deploy"]).get("painn-deploy", "of unknown version: it runs without being installed")
        out.print(f"painn-deploy {version}", highlight=False)
        raise typer.Exit
    return asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def export(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write bundles into.")],
    committee: Annotated[
        bool, typer.Option("--committee", help="One bundle of several students: their mean, and their spread.")
    ] = False,
    energy_unit: EnergyUnit = None,
    length_unit: LengthUnit = None,
    species: Species = None,
    energy_key: EnergyKey = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable, or with commas; onnxruntime if not given.", autocompletion=choices.engines),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="fp32, fp16, int8, fp64, auto; likewise; fp32 if not given.", autocompletion=choices.precisions
        ),
    ] = None,
    structures: Annotated[
        Path | None,
        typer.Option(help="What the student is for, in any format that ASE reads: engines are judged on it."),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            help="To fit uncertainty on, and INT8 and radial tables; these else on --structures, a fifth held out."
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(help="Of GPUs, such as 86, for tensorrt-rtx; likewise; else 86, 89, 120."),
    ] = None,
    max_energy_error: Annotated[
        str | None, typer.Option(help="What fp16 and int8 may cost, MAE an atom; 10meV for fp16, 3meV for int8.")
    ] = None,
    max_force_error: Annotated[
        str | None, typer.Option(help="Likewise, RMSE; 50meV/A for fp16, 20meV/A for int8.")
    ] = None,
    device: Annotated[str, typer.Option(help="That inductor and fused compile for: auto, cpu or cuda.")] = "auto",
    tf32: Annotated[bool, typer.Option("--tf32", help="Let a GPU round FP32 products to ten bits.")] = False,
    radial_table: Annotated[
        bool, typer.Option("--radial-table", help="Read filters from a table in place of the radial network.")
    ] = False,
    max_table_error: Annotated[
        str, typer.Option(help="The most that the table may change a force component.")
    ] = "0.02meV/A",
    uncertainty: Annotated[bool, typer.Option(help="Let a single student say how sure it is, where it can.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace bundles that are there.")] = False,
    others: Others = None,
) -> None:
    """Make engines of a student, each in a bundle NAME-ENGINE-PRECISION.engine."""
    from painn_deploy.export.bundle import read_bundle
    from painn_deploy.export.declaration import Declaration
    from painn_deploy.scripts import export_engines
    from painn_deploy.scripts.commands.inspection import print_errors
    from painn_deploy.scripts.commands.progress import steps
    from painn_deploy.scripts.commands.quantities import force_limit, lossy_limits

    with steps(err) as tell:
        paths = export_engines(
            [checkpoint, *(others or ())],
            output,
            committee=committee,
            engines=choices.listed(engine) or ("onnxruntime",),
            precisions=choices.listed(precision) or ("fp32",),
            structures=structures,
            training=training,
            compute_capabilities=choices.listed(compute_capability),
            limits=lossy_limits(max_energy_error, max_force_error),
            device=device,
            tf32=tf32,
            radial_table=radial_table,
            max_table_error=force_limit(max_table_error),
            uncertainty=uncertainty,
            overwrite=overwrite,
            tell=tell,
            declared=Declaration.of(energy_unit, length_unit, species, energy_key),
        )
    for path in paths:
        out.print(f"wrote {escape(str(path))}", soft_wrap=True)
        print_errors(read_bundle(path), out)


@app.command()
def convert(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option("--output", "-o", help=".safetensors; a .json is written beside it.")],
    energy_unit: EnergyUnit = None,
    length_unit: LengthUnit = None,
    species: Species = None,
    energy_key: EnergyKey = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Turn a model's file, such as SchNetPack's best_model, into weights in eV and Å with their configuration."""
    from painn_deploy.export.declaration import Declaration
    from painn_deploy.scripts.commands.convert import convert_checkpoint, summary
    from painn_deploy.scripts.commands.inspection import print_remarks

    declared = Declaration.of(energy_unit, length_unit, species, energy_key)
    made, student = convert_checkpoint(checkpoint, output, declared=declared, overwrite=overwrite)
    out.print(escape(summary(output, student)), soft_wrap=True)
    print_remarks(made.remarks, out)


@app.command()
def validate(
    bundles: Bundles,
    reference: Annotated[str, choices.MADE_FROM],
    structures: Structures = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write validation.json and report.html into.")
    ] = None,
    max_energy_error: Annotated[str, typer.Option(help="Mean absolute error an atom.")] = "10meV",
    max_force_error: Annotated[str, typer.Option(help="Root mean square error.")] = "50meV/A",
    max_stress_error: Annotated[str, typer.Option(help="Mean absolute error.")] = "0.1GPa",
    compare_to: Annotated[
        Path | None,
        typer.Option(
            help="Another bundle of the same student: side by side, and what got worse.",
            autocompletion=choices.bundles,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail for what the student itself lacks, too.")] = False,
    audit: Annotated[bool, typer.Option(help="Audit physics, too: a quarter of a minute or more.")] = True,
    picoseconds: Annotated[float, typer.Option(min=0, max=1e4, help="Of dynamics in the audit; 0 for none.")] = 1.0,
    device: Device = "auto",
) -> None:
    """Hold engines against their student and the laws of physics; exit status 1 where one is past a limit."""
    from painn_deploy.calibration.accuracy.errors import Tolerances
    from painn_deploy.calibration.report.validation import Options
    from painn_deploy.scripts.commands.quantities import energy_limit, force_limit, stress_limit
    from painn_deploy.scripts.commands.validate import run_validation

    limits = Tolerances(energy_limit(max_energy_error), force_limit(max_force_error), stress_limit(max_stress_error))
    chosen = Options(structures, limits, device, audit, picoseconds)
    made_of = choices.listed([reference])
    if run_validation(bundles, made_of, chosen, compare_to=compare_to, output=output, strict=strict, out=out, err=err):
        raise typer.Exit(1)


@app.command()
def md(
    bundle: OneBundle,
    structure: Annotated[Path, typer.Argument(help="A structure in any format that ASE reads.", metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for md.extxyz and md.csv.")] = Path("md"),
    ensemble: Annotated[
        str, typer.Option(help="nve, langevin, bussi or npt.", autocompletion=choices.ensembles)
    ] = "nve",
    picoseconds: Annotated[
        float | None, typer.Option(help="Length, rounded to whole steps; else --steps, else 2,000 steps.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Length in time steps.")] = None,
    timestep: Annotated[float, typer.Option(help="fs")] = 0.5,
    temperature: Annotated[
        float, typer.Option(help="K; of the thermostat, and of velocities where FILE has none.")
    ] = 300.0,
    pressure: Annotated[float, typer.Option(help="bar, for npt.")] = 1.0,
    every: Annotated[int, typer.Option(min=1, help="Steps between frames.")] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    stop_above: Annotated[
        str | None,
        typer.Option(
            help="End with status 3 at a frame so many times as uncertain as the calibration, or `threshold`."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a trajectory that is there.")] = False,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Run molecular dynamics through ASE; frames and energies are on disk as they come."""
    from painn_deploy.scripts.commands.md import Plan, run_md, whole_steps

    length = whole_steps(steps, picoseconds, timestep, err)
    plan = Plan(ensemble, length, timestep, temperature, pressure, every, seed)
    run_md(
        bundle,
        structure,
        output,
        plan,
        stop_above=choices.uncertainty_limit(stop_above, "--stop-above"),
        overwrite=overwrite,
        threads=threads,
        device=device,
        out=out,
        err=err,
    )


@app.command()
def screen(
    bundle: OneBundle,
    source: Annotated[
        Path, typer.Argument(help="Structures: .extxyz (also .gz), .db or .traj (ASE), .parquet.", metavar="IN")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Likewise, by its suffix; no .traj.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes on Ray, a CPU or GPU each.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster, which sees the same files.")] = None,
    worker_memory: Annotated[float | None, typer.Option(min=0.25, help="GiB that a worker may take.")] = None,
    relax: Annotated[bool, typer.Option("--relax", help="Relax atoms first; the cell is kept.")] = False,
    fmax: Annotated[float | None, typer.Option(min=1e-6, help="eV/Å, of --relax; 0.05.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of --relax, at most; 500.")] = None,
    flag_above: Annotated[
        str | None,
        typer.Option(help="Flag structures so many times as uncertain as the calibration, or `threshold`."),
    ] = None,
    select: Annotated[
        int | None,
        typer.Option(min=1, help="Write so many to OUT.selected.extxyz that are uncertain and unlike each other."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Rows computed and written together; 512.")
    ] = None,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Compute every structure of a file, in order; goes on after a kill with --resume.

    Exit status 0 where every row has results, and 3 where OUT is complete and some rows have a reason in their place.
    """
    from painn_deploy.scripts.commands.screen import SOME_FAILED, run_screen

    summary = run_screen(
        bundle,
        source,
        output,
        resume=resume,
        overwrite=overwrite,
        workers=workers,
        address=address,
        worker_memory=worker_memory,
        relaxation=choices.relaxation(relax=relax, fmax=fmax, steps=steps),
        flag_above=choices.uncertainty_limit(flag_above, "--flag-above"),
        select=select,
        batch_size=batch_size,
        threads=threads,
        device=device,
        out=out,
        err=err,
    )
    if summary.failures:
        raise typer.Exit(SOME_FAILED)


@app.command()
def bench(
    bundles: Bundles,
    reference: Annotated[str | None, choices.MADE_FROM] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for benchmark.json and plots.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small molecules and batches alone.")] = False,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Time engines, with --reference beside PyTorch eager: latency by size, throughput by batch, memory."""
    from painn_deploy.scripts.benchmarks.inference import bench_bundles

    made_of = choices.listed([] if reference is None else [reference])
    bench_bundles(bundles, made_of, output, quick=quick, threads=threads, device=device, console=out)


@app.command()
def inspect(bundle: OneBundle) -> None:
    """Say what a bundle is, what it was made of, and its errors; every file is checked."""
    from painn_deploy.scripts.commands.inspection import print_bundle

    print_bundle(bundle, out)


@app.command()
def doctor() -> None:
    """List engines and packages with their versions, and what is missing; exit status 1 where no engine can run."""
    from painn_deploy.scripts.commands.doctor import engines_table, packages_table

    engines, usable = engines_table()
    out.print(engines, packages_table())
    if not usable:
        raise typer.Exit(1)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the bundle, the table and the picture.")
    ] = Path("demo"),
    picoseconds: Annotated[float, typer.Option(min=0.05, max=1e4, help="Of dynamics.")] = 2.0,
) -> None:
    """Export the student that ships, validate its engine, run dynamics, and leave a table and a picture."""
    from painn_deploy.scripts.commands.demo import print_demo

    print_demo(output, picoseconds=picoseconds, out=out, err=err)


add_lammps(app)


def _arguments() -> list[str]:
    """The command line; elements on it are joined, where there are any: ASE takes as long to load as all the rest."""
    arguments = sys.argv[1:]
    if "--species" not in arguments:
        return arguments
    from painn_deploy.export.declaration import joined_species

    return joined_species(arguments)


def main() -> None:
    """The command `painn-deploy`: errors of ours are one line and exit status 2, never a traceback."""
    print_any_text()
    print_own_warnings()
    try:
        app(_arguments(), prog_name="painn-deploy")
    except PaiNNDeployError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except ImportError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None and "painn-deploy[" not in str(error):
            raise
        told = f'This needs {error.name}: pip install "painn-deploy[{extra}]"' if extra else str(error)
        err.print(f"[bold red]error:[/] {escape(told)}", soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:  # typer makes one of an interrupt, without a word
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            err.print("interrupted")
        raise


if __name__ == "__main__":
    main()
