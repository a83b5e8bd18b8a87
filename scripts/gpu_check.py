"""Everything that needs a GPU, in one command: build, run, compare, measure, and write it down under the GPU's name.

    make gpu-check

Every engine that can run on the machine is built of the student that ships, in every precision that it has. Its forces
are held against the student in float64 on molecules, complexes and boxes; CUDA graphs against plain launches to the
bit; positions alone against whole graphs; two lanes against one; 10,000 calls and eight threads run without growth;
`close` gives the memory back. Then all are timed in one run beside PyTorch eager with autograd and torch.compile on the
same GPU, with new positions at every call, with and without CUDA graphs, under the roofline of the GPU. What fails is
listed, and the exit status is 1; what cannot run here says why. A folder of the GPU's name keeps checks.json,
benchmark.json and the plots.
"""

import json
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms
from ase.build import molecule
from rich.console import Console

from painn_deploy.calibration.accuracy import Limits, compare
from painn_deploy.calibration.reference import reference_results
from painn_deploy.calibration.structures import default_structures, trusted_species
from painn_deploy.engines import BACKENDS, get_backend
from painn_deploy.engines.cuda import call, gpus, runtime
from painn_deploy.engines.inductor import InductorSession
from painn_deploy.engines.onnxruntime import OnnxRuntimeSession
from painn_deploy.engines.tensorrt_session import TensorRTSession
from painn_deploy.export.checkpoint import load_student, resolve_checkpoint
from painn_deploy.export.errors import EngineError, EngineUnavailableError, PaiNNDeployError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.export.manifest import prepare_output, read_bundle, to_json
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.neighbours import graph_inputs
from painn_deploy.runtime.skin import VerletList
from painn_deploy.scripts.benchmark_inference import report, store, time_bundles
from painn_deploy.scripts.benchmarking import Candidate, bundle_candidates
from painn_deploy.scripts.entry import run_command
from painn_deploy.scripts.exporting import export_engines

LIMITS = {"fp32": Limits(0.1e-3, 1e-3), "fp16": Limits(0.3e-3, 1.5e-3), "int8": Limits(3e-3, 25e-3)}
CALLS = 10_000
GROWTH = 16 * 2**20
"""Bytes of device memory that 10,000 calls may add: a runtime's caches fill, a leak does not stop."""
PLAIN, REPLAYED = ", no CUDA graphs", ", CUDA graphs"


@dataclass
class Findings:
    """What was checked of one engine in one precision."""

    engine: str
    precision: str
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def check(self, what: str, holds: bool, figure: object = None) -> None:
        """Note a check; a figure goes beside it."""
        (self.passed if holds else self.failed).append(what if figure is None else f"{what}: {figure}")


def structures_for(species: Sequence[int]) -> list[Atoms]:
    """What forces are compared on."""
    return [atoms for atoms in default_structures(species) if atoms.positions.shape[0] <= 64]


def used_memory() -> int:
    """Bytes of the current device that are taken, by whomever."""
    free, total = call(runtime().cudaMemGetInfo)
    return int(total - free)


def perturbed(atoms: Atoms, count: int, rng: np.random.Generator, cutoff: float) -> GraphInputs:
    """A batch of new copies."""
    copies = [atoms.copy() for _ in range(count)]
    for copy in copies:
        copy.positions += rng.normal(0, 0.05, copy.positions.shape)
    return graph_inputs(copies, cutoff)


def same_bits(one: GraphOutputs, other: GraphOutputs) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def check_session(findings: Findings, bundle: Path, atoms: Atoms, cutoff: float) -> None:
    """Graphs, lanes, positions alone, tensors: what a TensorRT session does beside running."""
    opened, rng = read_bundle(bundle), np.random.default_rng(1)
    backend = get_backend(opened.manifest.engine)
    batches = [perturbed(atoms, 1 + index % 3, rng, cutoff) for index in range(9)]
    with open_session(backend, opened) as session:
        session.graphs = False
        plain = [session.run(inputs) for inputs in batches]
        session.graphs = True
        for _ in range(3):
            replayed = [session.run(inputs) for inputs in batches]
        findings.check("CUDA graphs replay plain launches to the bit", all(map(same_bits, plain, replayed)))
        lanes = list(session.run_many(iter(batches)))
        findings.check("two lanes give what one gives, to the bit", all(map(same_bits, plain, lanes)))
        if torch.cuda.is_available():
            got = session.run_tensors([torch.from_numpy(a).cuda() for a in batches[0]])
            torch.cuda.synchronize()
            worst = float(np.abs(got[1].cpu().numpy() - plain[0].forces).max())
            findings.check("torch tensors in and out", worst < 1e-5, f"{worst:.1e} eV/Å")
        worst = 0.0
        follows = VerletList(cutoff, 1.0).resident(atoms, None)
        if follows is None:
            raise EngineError("A molecule with a skin of 1 Å stays on no device.")
        session.follow(follows)
        for _ in range(5):
            atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
            with open_session(backend, opened) as other:
                want = other.run(graph_inputs([atoms], cutoff))
            worst = max(worst, float(np.abs(session.step(atoms.positions).forces - want.forces).max()))
        findings.check("positions alone give what the whole graph gives", worst < 1e-4, f"{worst:.1e} eV/Å")


def check_recordings(findings: Findings, bundle: Path, atoms: Atoms, cutoff: float) -> None:
    """CUDA graphs of the engines that have none unless asked."""
    rng = np.random.default_rng(3)
    batches = [perturbed(atoms, 1 + index % 3, rng, cutoff) for index in range(9)]
    with PaiNNCalculator(bundle) as calculator:
        session = calculator.session
        if not isinstance(session, OnnxRuntimeSession | InductorSession):
            raise EngineError(f"{type(session).__name__} makes no recordings.")
        plain = [session.run(inputs) for inputs in batches]
        session.graphs = True
        for _ in range(3):
            replayed = [session.run(inputs) for inputs in batches]
        worst = max(float(np.abs(a.forces - b.forces).max()) for a, b in zip(plain, replayed, strict=True))
        findings.check("CUDA graphs give what plain launches give", worst < 1e-5, f"{worst:.1e} eV/Å")


def open_session(backend: Any, opened: Any) -> TensorRTSession:
    """A session of TensorRT's own, with all that it can do beside running."""
    session: TensorRTSession = backend.open(opened)
    return session


def check_endurance(findings: Findings, bundle: Path, atoms: Atoms, cutoff: float, calls: int) -> None:
    """Many calls, many threads, and what is left afterwards."""
    rng = np.random.default_rng(2)
    batches = [perturbed(atoms, 1, rng, cutoff) for _ in range(64)]
    PaiNNCalculator(bundle).close()  # what a first session leaves in the process for good
    bare = used_memory()
    with PaiNNCalculator(bundle) as calculator:
        for inputs in batches * 4:
            calculator.run_graph(inputs)
        before = used_memory()
        for number in range(calls):
            calculator.run_graph(batches[number % len(batches)])
        grown = used_memory() - before
        findings.check(f"{calls} calls add no memory", grown <= GROWTH, f"{grown / 2**20:.1f} MiB")
        want = [calculator.run_graph(inputs).forces for inputs in batches]
    left = used_memory() - bare
    findings.check("close gives the device's memory back", left <= GROWTH, f"{left / 2**20:.1f} MiB left")
    wrong: list[str] = []

    def work() -> None:
        try:
            with PaiNNCalculator(bundle) as own:
                for inputs, forces in zip(batches, want, strict=True):
                    if not np.allclose(own.run_graph(inputs).forces, forces, rtol=0, atol=1e-4):
                        wrong.append("forces differ")
        except PaiNNDeployError as error:
            wrong.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    findings.check("eight threads, a session each", not wrong, wrong[0] if wrong else None)


def other_launches(bundles: Mapping[str, Path], device: str, stack: ExitStack) -> dict[str, Candidate]:
    """Engines as they are not by default, TensorRT's without CUDA graphs and the others with: for the benchmark."""
    calculators = {}
    for name, path in bundles.items():
        calculator = stack.enter_context(PaiNNCalculator(path, device=device))
        session = calculator.session
        if isinstance(session, TensorRTSession | OnnxRuntimeSession | InductorSession) and device != "cpu":
            session.graphs = not session.graphs
            calculators[name + (REPLAYED if session.graphs else PLAIN)] = calculator
    return bundle_candidates(calculators)


def timed(bundles: Mapping[str, Path], checkpoint: str, device: str, folder: Path, *, quick: bool) -> None:
    """Time every engine beside PyTorch eager and torch.compile on a device; benchmark.json and plots in a folder."""
    student, console = load_student(checkpoint), Console()
    with ExitStack() as stack:
        peers = other_launches(bundles, device, stack)
        found = time_bundles(bundles, student, device, compiled=not quick, quick=quick, console=console, peers=peers)
    source = resolve_checkpoint(checkpoint)
    found |= {"checkpoint": source.name, "checkpoint_sha256": source.sha256}
    report(found, console)
    store(found, folder, console)


@contextmanager
def noting(findings: Findings, what: str) -> Iterator[None]:
    """A check that raises has failed, and the next one goes on."""
    try:
        yield
    except Exception as error:  # whatever a driver may throw
        findings.failed.append(f"{what}: {type(error).__name__}: {error}")


def gpu_check(
    checkpoint: Annotated[str, typer.Argument(help="A student.")] = "student:base",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for a folder of the GPU's name.")] = Path(
        "benchmarks/gpu"
    ),
    calls: Annotated[int, typer.Option(help="Of the endurance check.")] = CALLS,
) -> None:
    """Check and time every engine that can run on this machine's GPU."""
    console = Console()
    if not gpus():
        raise EngineUnavailableError("There is no NVIDIA GPU here, or no driver for it; nothing was checked.")
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "gpu"
    output /= name.replace(" ", "-").replace("/", "-")
    prepare_output(output)
    student = load_student(checkpoint, dtype=torch.float64)
    cutoff = student.configuration.cutoff
    structures = structures_for(trusted_species(student))
    wanted = reference_results(student, structures)
    everything: list[Findings] = []
    absent: dict[str, str] = {}
    bundles: dict[str, Path] = {}
    speed = Findings("all of them", "in one run")
    with tempfile.TemporaryDirectory() as folder:
        for engine in BACKENDS:
            try:
                backend = get_backend(engine)
                if not any(device.startswith("cuda") for device in backend.devices()):
                    raise EngineUnavailableError(f"{engine} {backend.version()} has no GPU here")
            except PaiNNDeployError as error:
                absent[engine] = str(error)
                continue
            for precision in backend.precisions:
                findings = Findings(engine, precision)
                everything.append(findings)
                console.print(f"{engine} in {precision}")
                with noting(findings, "export"):
                    capabilities = [] if engine != "tensorrt-rtx" else [capability()]
                    (bundle,) = export_engines(
                        checkpoint,
                        Path(folder),
                        engines=[engine],
                        precisions=[precision],
                        compute_capabilities=capabilities,
                        tell=lambda line: console.print(f"  {line}"),
                    )
                    with PaiNNCalculator(bundle) as calculator:
                        findings.figures["engine"] = dict(calculator.engine_info)
                        accuracy = compare(structures, calculator.calculate_batch(structures), wanted)
                    findings.figures["accuracy"] = accuracy.as_dict()
                    problems = accuracy.failures(LIMITS[precision])
                    findings.check("forces are the student's", not problems, "; ".join(problems) or None)
                    if engine.startswith("tensorrt"):
                        with noting(findings, "session"):
                            check_session(findings, bundle, molecule("CH3CH2OH"), cutoff)
                    else:
                        with noting(findings, "CUDA graphs"):
                            check_recordings(findings, bundle, molecule("CH3CH2OH"), cutoff)
                    with noting(findings, "endurance"):
                        check_endurance(findings, bundle, molecule("CH3CH2OH"), cutoff, calls)
                    bundles[f"{engine} {precision}"] = bundle
                for line in findings.failed:
                    console.print(f"  [red]failed[/] {line}", soft_wrap=True)
        if bundles and torch.cuda.is_available():
            everything.append(speed)
            console.print("speed")
            with noting(speed, "speed"):
                timed(bundles, checkpoint, "cuda", output, quick=False)
            for line in speed.failed:
                console.print(f"  [red]failed[/] {line}", soft_wrap=True)
    facts = {
        "gpu": name,
        "student": checkpoint,
        "versions": {"torch": torch.__version__},
        "not_here": absent,
        "engines": [vars(findings) for findings in everything],
    }
    path = output / "checks.json"
    path.write_bytes(to_json(json.loads(json.dumps(facts, default=str))))
    for engine, reason in absent.items():
        console.print(f"{engine}: not checked: {reason}", soft_wrap=True)
    console.print(f"wrote {path}")
    if any(findings.failed for findings in everything) or not everything:
        raise typer.Exit(1)


def capability() -> str:
    """Of the first GPU."""
    from painn_deploy.engines.cuda import compute_capability

    return compute_capability(0)


if __name__ == "__main__":
    run_command(gpu_check)
