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

from painn_deploy.calibration.structures import check_species, read_structures
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.manifest import MODEL, read_bundle
from painn_deploy.export.model.student import Student
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.benchmarks.cases import Case, copies, sizes
from painn_deploy.scripts.benchmarks.conditions import Output, Study, Threads
from painn_deploy.scripts.benchmarks.contenders import orb as orb_peer
from painn_deploy.scripts.benchmarks.contenders.bundles import exported, opened
from painn_deploy.scripts.benchmarks.contenders.contender import ORB, Contender
from painn_deploy.scripts.benchmarks.contenders.pytorch import Eager
from painn_deploy.scripts.benchmarks.run import measured
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.profiling.costs import Cost, count, energy_only
from painn_deploy.scripts.profiling.of_orb import count_orb

__all__ = ["Row", "student_row"]

ENGINE = "onnxruntime"
MEGA = 1e6


@dataclass(frozen=True)
class Row:
    """One model on one batch of structures.

    Attributes:
        model: its name.
        system: what it is evaluated on.
        atoms: how many.
        edges: slots of the padded matrix, or Orb's edges.
        parameters: trainable numbers.
        energy_multiply_adds: of matrix products, of the energy alone; None where forces do not follow from it.
        cost: of energy and forces.
    """

    model: str
    system: str
    atoms: int
    edges: int
    parameters: int
    energy_multiply_adds: int | None
    cost: Cost

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, flat."""
        found = {name: value for name, value in vars(self).items() if name != "cost"} | asdict(self.cost)
        return found | {"intensity": self.cost.intensity, "intensity_limit": self.cost.intensity_limit}


def student_row(name: str, student: Student, graph: onnx.ModelProto, case: Case) -> Row:
    """Count a student's graph on structures side by side in one matrix.

    Args:
        name: of the student.
        student: for its parameters and cutoff.
        graph: what was exported of it.
        case: the structures.
    """
    atoms, slots = graph_inputs(case.given, student.configuration.cutoff).mask.shape
    energy, both = (count(part, atoms, slots) for part in (energy_only(graph), graph))
    return Row(name, case.name, atoms, atoms * slots, student.num_parameters, energy.multiply_adds, both)


def _orb_row(model: Any, case: Case) -> Row:
    parameters, edges, cost = count_orb(model, case.given)
    return Row(ORB, case.name, case.atoms, edges, parameters, None, cost)


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
    study = Study.begin(threads, output, quick=quick)
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
            rows += [student_row(name, student, graph, case) for case in cases]
            contenders += stack.enter_context(opened({f"{name}, {ENGINE}": bundles[ENGINE]}, "cpu", threads))
            contenders.append(Eager(student, name=f"{name}, eager"))
        if orb is not None:
            rows += [_orb_row(orb, case) for case in cases]
            if compile_orb:
                orb.compile(mode="default", dynamic=True)
            contenders.append(orb_peer.Orb(orb))
        times = measured(contenders, first, study.pace, np.random.default_rng(0))
    rows.sort(key=lambda row: [case.name for case in cases].index(row.system))
    _show(study, rows, times, first.name)
    if orb is None:
        study.console.print(orb_peer.HOW_TO_GET, soft_wrap=True, markup=False)
    study.finish({"rows": [row.as_dict() for row in rows], "timed_on": first.name, "milliseconds": times})


def _cases(structure: Path | None, *, quick: bool) -> list[Case]:
    if structure is not None:
        return [Case.of(structure.name, read_structures(structure)[0])]
    known = {case.name: case for case in sizes((1, 6, 8), quick=True)}
    (batch,) = copies(known["ethanol"].given[0], [16])
    return [known["ethanol"], *([] if quick else [known["aspirin"], Case("16 ethanols", batch.given)])]


def _show(study: Study, rows: Sequence[Row], times: Mapping[str, float], timed_on: str) -> None:
    def cells(*columns: Callable[[Row], str]) -> list[list[str]]:
        return [[f"{row.system}, {row.model}", *(column(row) for column in columns)] for row in rows]

    arithmetic = cells(
        lambda row: f"{row.atoms} x {row.edges / row.atoms:g}",
        lambda row: f"{row.parameters / MEGA:.3f}",
        lambda row: "" if row.energy_multiply_adds is None else f"{row.energy_multiply_adds / MEGA:.1f}",
        lambda row: f"{row.cost.multiply_adds / MEGA:.1f}",
    )
    headings = ["", "atoms x neighbours", "parameters", "energy alone", "with forces"]
    study.show("parameters and multiply-adds, millions", headings, arithmetic)
    memory = cells(
        lambda row: f"{row.cost.bytes_written / MEGA:.1f}",
        lambda row: f"{row.cost.bytes_least / MEGA:.2f}",
        lambda row: f"{row.cost.intensity:.1f}",
        lambda row: f"{row.cost.intensity_limit:.0f}",
        lambda row: f"{row.cost.peak_bytes / MEGA:.1f}",
    )
    headings = ["", "MB as written", "least", "operations a byte", "at most", "peak MB"]
    study.show("memory, energy and forces", headings, memory)
    fastest = min(times.values())
    latency = [[name, f"{spent:.3f}", f"{spent / fastest:.1f}x"] for name, spent in times.items()]
    study.show(f"energy and forces of {timed_on}, search included", ["", "ms", "to the fastest"], latency)


if __name__ == "__main__":
    run_command(main)
