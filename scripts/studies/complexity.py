"""Study: parameters, arithmetic, memory traffic and latency of students, and of Orb-v2 where orb-models is installed.

    python scripts/analyze_model_complexity.py student:small student:base -o complexity.json

Arithmetic and bytes are counted from the exported graph at real sizes, padding included. Bytes "as written" are those
of a machine that fuses nothing and caches nothing; the "least" are weights, inputs and outputs, once. An engine lies
between. Orb-v2 has random weights here, on which neither its counts nor its speed depend, and predicts forces directly.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from ase import Atoms
from rich.console import Console

from painn_deploy.calibration.structures import check_species, read_structures
from painn_deploy.calibration.timing import Pace
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.manifest import MODEL, read_bundle
from painn_deploy.export.model.student import Student
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.benchmarks.cases import Case, copies, sizes
from painn_deploy.scripts.benchmarks.conditions import Output, Threads, finish, set_threads
from painn_deploy.scripts.benchmarks.contenders import orb as orb_peer
from painn_deploy.scripts.benchmarks.contenders.bundles import exported, opened
from painn_deploy.scripts.benchmarks.contenders.contender import ORB, Contender
from painn_deploy.scripts.benchmarks.contenders.pytorch import Eager
from painn_deploy.scripts.benchmarks.run import measured
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import made_table
from painn_deploy.scripts.profiling.costs import Operations, count, energy_only

__all__ = ["Row", "student_row"]

ENGINE = "onnxruntime"
MEGA = 1e6


@dataclass(frozen=True)
class Row(Operations):
    """One model on one batch of structures; bytes and arithmetic are of energy and forces.

    Attributes:
        model: its name.
        system: what it is evaluated on.
        atoms: how many.
        edges: slots of the padded matrix, or Orb's edges.
        parameters: trainable numbers.
        energy_multiply_adds: of matrix products, of the energy alone; None where forces do not follow from it.
        multiply_adds: with forces.
        elementwise: other floating point results; None where they were not counted.
        bytes_written: if every operator reads and writes memory.
        bytes_least: weights, inputs and outputs.
        peak_bytes: weights and live tensors at the worst moment.
    """

    model: str
    system: str
    atoms: int
    edges: int
    parameters: int
    energy_multiply_adds: int | None
    multiply_adds: int
    elementwise: int | None
    bytes_written: int
    bytes_least: int
    peak_bytes: int


def student_row(name: str, student: Student, graph: onnx.ModelProto, system: str, structures: Sequence[Atoms]) -> Row:
    """Count a student's graph on structures side by side in one matrix.

    Args:
        name: of the student.
        student: for its parameters and cutoff.
        graph: what was exported of it.
        system: what to call the structures.
        structures: at least one.
    """
    atoms, slots = graph_inputs(structures, student.configuration.cutoff).mask.shape
    both = count(graph, atoms, slots)
    return Row(
        model=name,
        system=system,
        atoms=atoms,
        edges=atoms * slots,
        parameters=student.num_parameters,
        energy_multiply_adds=count(energy_only(graph), atoms, slots).multiply_adds,
        multiply_adds=both.multiply_adds,
        elementwise=both.elementwise,
        bytes_written=both.bytes_written,
        bytes_least=both.bytes_least,
        peak_bytes=both.peak_bytes,
    )


def _orb_row(model: Any, system: str, structures: Sequence[Atoms]) -> Row:
    counted = orb_peer.count_orb(model, structures)
    return Row(
        model=ORB,
        system=system,
        atoms=sum(map(len, structures)),
        edges=counted.edges,
        parameters=counted.parameters,
        energy_multiply_adds=None,
        multiply_adds=counted.multiply_adds,
        elementwise=None,
        bytes_written=counted.bytes_written,
        bytes_least=counted.bytes_least,
        peak_bytes=counted.peak_bytes,
    )


def main(
    checkpoints: Annotated[
        list[str] | None, typer.Argument(help="Checkpoints; the students that ship otherwise.")
    ] = None,
    structure: Annotated[Path | None, typer.Option(help="To count and time on, in any format that ASE reads.")] = None,
    threads: Threads = None,
    compile_orb: Annotated[
        bool, typer.Option("--compile-orb", help="Let torch compile Orb-v2, which takes minutes.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Ethanol alone, few calls.")] = False,
    output: Output = None,
) -> None:
    """Count and time students, beside Orb-v2 where orb-models is installed."""
    console = Console()
    set_threads(threads)
    names = checkpoints or ["student:small", "student:base"]
    checkpoint_of = {name if name.startswith("student:") else Path(name).stem: name for name in names}
    students = {name: load_student(checkpoint) for name, checkpoint in checkpoint_of.items()}
    cases = _cases(structure, quick=quick)
    for name, student in students.items():
        for case in cases:
            check_species(case.given, student.species, f"{case.name}, for {name},")
    orb = orb_peer.orb_v2() if orb_peer.is_installed() else None
    first, rows, contenders = cases[0], [], list[Contender]()
    with ExitStack() as stack:
        for name, student in students.items():
            bundles = stack.enter_context(exported(checkpoint_of[name], first.given[:1], [ENGINE]))
            graph = onnx.load_from_string(read_bundle(bundles[ENGINE]).file(MODEL))
            rows += [student_row(name, student, graph, case.name, case.given) for case in cases]
            contenders += stack.enter_context(opened({f"{name}, {ENGINE}": bundles[ENGINE]}, "cpu", threads))
            contenders.append(Eager(student, name=f"{name}, eager"))
        if orb is not None:
            rows += [_orb_row(orb, case.name, case.given) for case in cases]
            if compile_orb:
                orb.compile(mode="default", dynamic=True)
            contenders.append(orb_peer.Orb(orb))
        times = measured(contenders, first, Pace(quick=quick), np.random.default_rng(0))
    rows.sort(key=lambda row: [case.name for case in cases].index(row.system))
    _show(console, rows, times, first.name)
    if orb is None:
        console.print(orb_peer.HOW_TO_GET, soft_wrap=True, markup=False)
    facts = [asdict(r) | {"intensity": r.intensity, "intensity_limit": r.intensity_limit} for r in rows]
    finish(console, {"rows": facts, "timed_on": first.name, "milliseconds": times}, threads, output)


def _cases(structure: Path | None, *, quick: bool) -> list[Case]:
    if structure is not None:
        return [Case.of(structure.name, read_structures(structure)[0])]
    known = {case.name: case for case in sizes((1, 6, 8), quick=True)}
    (batch,) = copies(known["ethanol"].given[0], [16])
    return [known["ethanol"], *([] if quick else [known["aspirin"], Case("16 ethanols", batch.given)])]


def _show(console: Console, rows: Sequence[Row], times: Mapping[str, float], timed_on: str) -> None:
    def cells(*columns: Callable[[Row], str]) -> list[list[str]]:
        return [[f"{row.system}, {row.model}", *(column(row) for column in columns)] for row in rows]

    arithmetic = cells(
        lambda row: f"{row.atoms} x {row.edges / row.atoms:g}",
        lambda row: f"{row.parameters / MEGA:.3f}",
        lambda row: "" if row.energy_multiply_adds is None else f"{row.energy_multiply_adds / MEGA:.1f}",
        lambda row: f"{row.multiply_adds / MEGA:.1f}",
    )
    headings = ["", "atoms x neighbours", "parameters", "energy alone", "with forces"]
    console.print(made_table("parameters and multiply-adds, millions", headings, arithmetic))
    memory = cells(
        lambda row: f"{row.bytes_written / MEGA:.1f}",
        lambda row: f"{row.bytes_least / MEGA:.2f}",
        lambda row: f"{row.intensity:.1f}",
        lambda row: f"{row.intensity_limit:.0f}",
        lambda row: f"{row.peak_bytes / MEGA:.1f}",
    )
    headings = ["", "MB as written", "least", "operations a byte", "at most", "peak MB"]
    console.print(made_table("memory, energy and forces", headings, memory))
    fastest = min(times.values())
    latency = [[name, f"{spent:.3f}", f"{spent / fastest:.1f}x"] for name, spent in times.items()]
    console.print(
        made_table(f"energy and forces of {timed_on}, search included", ["", "ms", "to the fastest"], latency)
    )


if __name__ == "__main__":
    run_command(main)
