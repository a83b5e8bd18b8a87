"""Study: where the time of a force goes: energy alone against energy and forces, part by part, eager and engine.

    python scripts/profile_force_computation.py student:base -o profile

Writes a chrome trace of each (open them at chrome://tracing or ui.perfetto.dev) and profile.json. Times of parts are
medians, with new positions at every call. Watching takes time too, most of all in ONNX Runtime, whose profiler times
every operator: the last line of a table is the whole call, timed without.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer
from ase import Atoms

from painn_deploy.calibration.structures import aspirin, check_species, read_structures
from painn_deploy.calibration.timing import Pace, medians, mover
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.export.files import prepare_output
from painn_deploy.export.manifest import MODEL, read_bundle
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.benchmarks.conditions import STUDENT, Checkpoint, Study, Threads
from painn_deploy.scripts.benchmarks.contenders.bundles import exported
from painn_deploy.scripts.benchmarks.contenders.eager import EagerModel, Edges, edges_of
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.profiling.costs import energy_only
from painn_deploy.scripts.profiling.of_eager import BACKWARD, eager_parts, eager_trace
from painn_deploy.scripts.profiling.of_onnxruntime import OTHER, Operator, open_plain, profile_graph
from painn_deploy.scripts.profiling.purposes import PURPOSES

SEARCH = "neighbour search"
ORDER = (SEARCH, *PURPOSES, BACKWARD, OTHER)
EAGER, ENGINE = "PyTorch eager, autograd", "ONNX Runtime, explicit forces"
OPERATORS = 10
"""Rows of the tables of operators."""


def main(
    checkpoint: Checkpoint = STUDENT,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for traces and profile.json.")] = Path(
        "profile"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    structure: Annotated[Path | None, typer.Option(help="In any format that ASE reads; aspirin otherwise.")] = None,
    threads: Threads = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few calls.")] = False,
) -> None:
    """Profile energy and forces in PyTorch eager and in ONNX Runtime."""
    study = Study.begin(threads, output / "profile.json", quick=quick)
    _check_device(device)
    prepare_output(output)
    student = load_student(checkpoint)
    atoms = aspirin() if structure is None else read_structures(structure)[0]
    check_species([atoms], student.species, "aspirin" if structure is None else structure.name)
    calls, name = (3 if quick else 50), f"{atoms.get_chemical_formula()}, {len(atoms)} atoms"
    model = EagerModel(student.to(device))
    eager = _eager(model, atoms, output, device, calls)
    with exported(checkpoint, [atoms], ["onnxruntime"]) as bundles:
        graph = onnx.load_from_string(read_bundle(bundles["onnxruntime"]).file(MODEL))
    cutoff = student.configuration.cutoff
    engine = _engine(graph, cutoff, atoms, output, device, threads, calls)
    whole = _whole_calls(model, graph, atoms, device, threads, study.pace)
    for title, found in ((EAGER, eager), (ENGINE, engine)):
        parts = _parts(found["energy"], found["forces"], whole[title])
        study.show(f"{title}: {name}, ms", ["part", "energy alone", "energy and forces", "share"], parts)
        operators = _operators(found["operators"])
        study.show(f"{title}: energy and forces by operator", ["operator", "ms", "share"], operators)
    study.console.print(f"traces: {', '.join(sorted(path.name for path in output.glob('*.trace.json')))} in {output}")
    values = {"checkpoint": checkpoint, "structure": name, "device": device, "eager": eager, "onnxruntime": engine}
    study.finish(values | {"whole_calls": whole})


def _whole_calls(
    model: EagerModel, graph: onnx.ModelProto, atoms: Atoms, device: str, threads: int | None, pace: Pace
) -> dict[str, tuple[float, float]]:
    """Ms of a call that nobody watches, neighbours found before: the energy alone, and energy and forces."""
    cutoff, move = model.student.configuration.cutoff, mover([atoms], np.random.default_rng(0))

    def fresh() -> tuple[Edges, GraphInputs]:
        moved = move()
        return edges_of(moved, cutoff).to(device), graph_inputs(moved, cutoff)

    example = fresh()[1]
    alone = open_plain(energy_only(graph), example, device=device, threads=threads)
    both = open_plain(graph, example, device=device, threads=threads)

    def eager_energy(made: tuple[Edges, GraphInputs]) -> None:
        with torch.no_grad():
            model.energies(made[0]).cpu()

    found = medians(
        {
            "eager energy": eager_energy,
            "eager": lambda made: model(made[0])[1].cpu(),
            "engine energy": lambda made: alone(made[1]),
            "engine": lambda made: both(made[1]),
        },
        fresh,
        **pace.as_dict(),
    )
    return {EAGER: (found["eager energy"], found["eager"]), ENGINE: (found["engine energy"], found["engine"])}


def _check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"{device!r} is not a device of this study; give cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailableError("torch finds no NVIDIA GPU here; profile on --device cpu.")


def _eager(model: EagerModel, atoms: Atoms, output: Path, device: str, calls: int) -> dict[str, Any]:
    cutoff, move = model.student.configuration.cutoff, mover([atoms], np.random.default_rng(0))
    search = medians({SEARCH: lambda moved: edges_of(moved, cutoff)}, move, calls=calls, blocks=1)

    def fresh() -> Any:
        return edges_of(move(), cutoff).to(device)

    energy, forces = eager_parts(model, fresh, device=device, calls=calls)
    operators = {}
    for kind in ("energy", "forces"):
        trace = output / f"eager-{kind}.trace.json"
        operators = eager_trace(model, fresh, trace, device=device, calls=min(calls, 10), forces=kind == "forces")
    return {"energy": search | energy, "forces": search | forces, "operators": operators}


def _engine(
    graph: onnx.ModelProto, cutoff: float, atoms: Atoms, output: Path, device: str, threads: int | None, calls: int
) -> dict[str, Any]:
    move = mover([atoms], np.random.default_rng(0))
    search = medians({SEARCH: lambda moved: graph_inputs(moved, cutoff)}, move, calls=calls, blocks=1)
    result: dict[str, Any] = {}
    operators: Sequence[Operator] = ()
    for kind, model in (("energy", energy_only(graph)), ("forces", graph)):
        inputs = [graph_inputs(move(), cutoff) for _ in range(calls)]
        trace = output / f"onnxruntime-{kind}.trace.json"
        operators = profile_graph(model, inputs, trace, device=device, threads=threads)
        result[kind] = search | _summed((o.purpose, o.milliseconds) for o in operators)
    return {**result, "operators": _summed((o.kind, o.milliseconds) for o in operators)}


def _summed(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, spent in times:
        found[name] = found.get(name, 0.0) + spent
    return found


def _parts(energy: Mapping[str, float], forces: Mapping[str, float], whole: tuple[float, float]) -> list[list[str]]:
    """Cells: milliseconds of each part, of all, and of a call that nobody watches."""
    total = sum(forces.values())
    rows = [
        [part, f"{energy[part]:.3f}" if part in energy else "", f"{forces[part]:.3f}", f"{forces[part] / total:.0%}"]
        for part in sorted(forces, key=ORDER.index)
    ]
    rows.append(["sum", f"{sum(energy.values()):.3f}", f"{total:.3f}", ""])
    return [*rows, ["whole call, unwatched, no search", f"{whole[0]:.3f}", f"{whole[1]:.3f}", ""]]


def _operators(operators: Mapping[str, float]) -> list[list[str]]:
    """Cells of the operators that take longest."""
    total = sum(operators.values())
    first = sorted(operators.items(), key=lambda item: -item[1])[:OPERATORS]
    return [[name, f"{spent:.3f}", f"{spent / total:.0%}"] for name, spent in first]


if __name__ == "__main__":
    run_command(main)
