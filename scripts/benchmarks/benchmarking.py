"""One fair benchmark: every candidate in turn in one run, new positions at every call, ratios to PyTorch eager.

Whole calls are what a user waits for, from `Atoms` to energy and forces; an engine alone is the time from packed arrays
to arrays. Both are medians with the middle half of the calls beside them. Nothing is measured that a cache remembers.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule

from painn_deploy.calibration.structures import aspirin
from painn_deploy.engines.profiles import Profile
from painn_deploy.export.errors import PaiNNDeployError, ShapeError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.export.manifest import Manifest
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.benchmarks.eager import EagerModel, Edges, edges_of
from painn_deploy.scripts.benchmarks.timing import BLOCKS, mover, samples, through_ase
from painn_deploy.scripts.studies.card_studies import box_of_water

__all__ = [
    "BATCHES",
    "COMPILED",
    "EAGER",
    "PEERS",
    "SCHNETPACK",
    "Candidate",
    "bundle_candidates",
    "costs",
    "eager_candidates",
    "latency",
    "scaling",
    "sizes",
    "throughput",
]

EAGER = "eager"
COMPILED = "torch.compile"
SCHNETPACK = "SchNetPack"
PEERS = (EAGER, COMPILED, SCHNETPACK)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LONGEST = 0.4
"""s of a block; where a candidate is slow, all are called less often."""

FEWER_BLOCKS = 3
WATERS = ((1, 1, 1), (2, 2, 2), (3, 3, 3), (3, 3, 6))
"""Boxes of 64 waters along each axis of the largest structures: 192 to 10,368 atoms."""

Sampled = list[float]
Tell = Callable[[str], None]

PEAK = """
import json, sys
from ase import Atoms
from painn_deploy.engines import get_backend
from painn_deploy.export.manifest import read_bundle
from painn_deploy.runtime import PaiNNCalculator
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
bare = peak()
get_backend(read_bundle(sys.argv[1]).manifest.engine).version()
loaded = peak()
with PaiNNCalculator(sys.argv[1], device=sys.argv[2]) as calculator:
    for _ in range(4):
        calculator.calculate_batch([Atoms(*json.loads(sys.argv[4]))] * int(sys.argv[3]))
print(loaded - bare, peak() - loaded)
"""


@dataclass(frozen=True)
class Candidate:
    """One way to compute energies and forces.

    Attributes:
        whole: takes structures to results, everything included.
        prepare: makes of structures what `engine` reads.
        engine: the model alone; None where it cannot be had alone.
        phases: ms of a calculation by phase, over the whole calls since it was last asked for.
        fits: whether structures side by side are within what the engine was built for; a calculator takes them apart.
    """

    whole: Callable[[list[Atoms]], object]
    prepare: Callable[[list[Atoms]], Any] = field(default=lambda structures: structures)
    engine: Callable[[Any], object] | None = None
    phases: Callable[[], dict[str, float]] = field(default=dict)
    fits: Callable[[list[Atoms]], bool] = field(default=lambda structures: True)  # noqa: ARG005  of any size


def eager_candidates(student: Student, device: str, *, compiled: bool) -> dict[str, Candidate]:
    """PyTorch in eager mode with autograd, and what `torch.compile` makes of it."""
    model = EagerModel(student).to(device)
    cutoff, dtype = student.configuration.cutoff, torch.float32

    def prepare(structures: list[Atoms]) -> Edges:
        return edges_of(structures, cutoff, dtype)

    def candidate(run: Callable[[Edges], tuple[torch.Tensor, torch.Tensor]]) -> Candidate:
        def engine(edges: Edges) -> list[np.ndarray]:
            return [tensor.cpu().numpy() for tensor in run(edges.to(device))]

        return Candidate(lambda structures: engine(prepare(structures)), prepare, engine)

    found = {EAGER: candidate(model)}
    if compiled:
        fast = EagerModel(student).to(device)
        fast.atomic = torch.compile(fast.atomic, dynamic=True)
        found[COMPILED] = candidate(fast)
    return found


def bundle_candidates(calculators: Mapping[str, PaiNNCalculator]) -> dict[str, Candidate]:
    """Engines, through their calculators and alone."""

    def candidate(calculator: PaiNNCalculator) -> Candidate:
        alone = through_ase(calculator)

        def whole(structures: list[Atoms]) -> object:
            return alone(structures) if len(structures) == 1 else calculator.calculate_batch(structures)

        def phases() -> dict[str, float]:
            found = calculator.timings.as_dict()
            calculator.timings.reset()
            return found

        prepare, fits = _packer(calculator.manifest)
        return Candidate(whole, prepare, calculator.run_graph, phases, fits)

    return {name: candidate(calculator) for name, calculator in calculators.items()}


def _packer(manifest: Manifest) -> tuple[Callable[[list[Atoms]], GraphInputs], Callable[[list[Atoms]], bool]]:
    """What packs structures side by side for a bundle's engine, and what says whether it was built for so many."""
    profiles = [Profile.from_mapping(profile) for profile in manifest.profiles]

    def prepare(structures: list[Atoms]) -> GraphInputs:
        return graph_inputs(structures, manifest.cutoff)

    def fits(structures: list[Atoms]) -> bool:
        atoms, slots = prepare(structures).mask.shape
        return not profiles or any(atoms <= p.atoms[2] and slots <= p.slots[2] for p in profiles)

    return prepare, fits


def sizes(species: Sequence[int], *, quick: bool) -> dict[str, Atoms]:
    """Molecules, a liquid and a crystal by name, as large as PyTorch has memory for, which keeps every edge."""
    molecules = {"water": molecule("H2O"), "ethanol": molecule("CH3CH2OH"), "benzene": molecule("C6H6")}
    found = molecules | {"aspirin": aspirin()}
    if not quick:
        liquid = box_of_water()
        found |= {"64 waters": liquid, "diamond, 216 atoms": bulk("C", "diamond", a=3.57, cubic=True).repeat(3)}
        found |= {"512 waters": liquid * (2, 2, 2)}
    return {name: atoms for name, atoms in found.items() if set(atoms.numbers) <= set(species)}


def latency(candidates: Mapping[str, Candidate], structures: Mapping[str, Atoms], tell: Tell) -> list[dict[str, Any]]:
    """One structure at a time: whole calls, engines alone, and a calculator's phases."""
    rows: list[dict[str, Any]] = []
    for name, atoms in structures.items():
        tell(f"{name}, {len(atoms)} atoms")
        whole, alone, phases = _timed(candidates, [atoms], np.random.default_rng(0))
        for candidate in candidates:
            row = {"structure": name, "atoms": len(atoms), "candidate": candidate}
            row |= {"whole": _described(whole, candidate), "engine": _described(alone, candidate)}
            rows.append(row | {"phases": phases[candidate]})
    return rows


def throughput(
    candidates: Mapping[str, Candidate], batches: Sequence[int], tell: Tell, atoms: Atoms
) -> list[dict[str, Any]]:
    """Copies of a molecule at once, each with positions of its own."""
    rows: list[dict[str, Any]] = []
    for batch in batches:
        tell(f"{batch} x {atoms.symbols}")
        whole, alone, _ = _timed(candidates, [atoms] * batch, np.random.default_rng(0))
        for candidate in candidates:
            row = {"structure": str(atoms.symbols), "batch": batch, "candidate": candidate}
            row |= {"whole": _described(whole, candidate), "engine": _described(alone, candidate)}
            rows.append(row | {"structures_per_second": 1e3 * batch / statistics.median(whole[candidate])})
    return rows


def scaling(bundles: Mapping[str, Path], device: str, tell: Tell) -> list[dict[str, Any]]:
    """Whole calls on water from 192 atoms to 10,368, each engine opened alone, so that all memory is its own."""
    rows = []
    for name, path in bundles.items():
        tell(f"{name}, water")
        with PaiNNCalculator(path, device=device) as calculator:
            if not {1, 8} <= set(calculator.manifest.species):
                continue
            _, fits = _packer(calculator.manifest)
            for repeats in WATERS:
                atoms = box_of_water() * repeats
                if not fits([atoms]):
                    tell(f"{name} was not built for {len(atoms):,} atoms")
                    break
                fresh = mover([atoms], np.random.default_rng(0))
                try:
                    (times,) = samples({name: through_ase(calculator)}, fresh, calls=2, blocks=FEWER_BLOCKS).values()
                except ShapeError as error:  # more than this machine has memory for
                    tell(f"{name}: {error}")
                    break
                spent = statistics.median(times)
                row = {"candidate": name, "atoms": len(atoms), "milliseconds": spent}
                rows.append(row | {"microseconds_an_atom": 1e3 * spent / len(atoms)})
    return rows


def _timed(
    candidates: Mapping[str, Candidate], structures: list[Atoms], rng: np.random.Generator
) -> tuple[dict[str, Sampled], dict[str, Sampled], dict[str, dict[str, float]]]:
    """Samples in ms of whole calls and of engines alone, and phases of whole calls."""
    fresh = mover(structures, rng)
    slowest = max(_seconds(candidate.whole, fresh()) for candidate in candidates.values())
    calls = int(min(10, max(1, LONGEST / slowest)))
    blocks = BLOCKS if calls > 1 else FEWER_BLOCKS
    for candidate in candidates.values():
        candidate.phases()
    whole = samples({name: c.whole for name, c in candidates.items()}, fresh, calls=calls, blocks=blocks)
    phases = {name: candidate.phases() for name, candidate in candidates.items()}
    able = {name: c for name, c in candidates.items() if c.engine is not None and c.fits(structures)}
    prepared = {name: [c.prepare([a.copy() for a in fresh()]) for _ in range(4)] for name, c in able.items()}
    turn = iter(range(sys.maxsize))

    def engine(name: str, run: Callable[[Any], object]) -> Callable[[int], object]:
        return lambda call: run(prepared[name][call % 4])

    runs = {name: engine(name, c.engine) for name, c in able.items() if c.engine is not None}
    alone = samples(runs, lambda: next(turn), calls=calls, blocks=blocks)
    return whole, alone, phases


def _seconds(call: Callable[[Any], object], given: Any) -> float:
    call(given)
    began = time.perf_counter()
    call(given)
    return time.perf_counter() - began


def _described(sampled: Mapping[str, Sampled], candidate: str) -> dict[str, float] | None:
    """Median and quartiles, and the ratio to eager; None for what was not timed."""
    if candidate not in sampled:
        return None
    times = np.array(sampled[candidate])
    low, median, high = np.percentile(times, [25, 50, 75])
    found = {"milliseconds": float(median), "quarter": float(low), "three_quarters": float(high)}
    if EAGER in sampled:
        found["ratio"] = float(np.median(sampled[EAGER]) / median)
    return found


def costs(bundles: Mapping[str, Path], device: str, atoms: Atoms, batch: int) -> list[dict[str, Any]]:
    """Seconds to load each bundle, its size, and its memory: MB that the engine's library takes, above a process that
    has imported `painn_deploy.runtime`, and MB above that at a batch of a molecule, several times over.

    Returns:
        Rows. One of an engine on a GPU has no memory, since what a process tells of itself is the host's. Where a
        bundle does not run again, in this process or in one of its own, `error` says so in place of what it costs.
    """
    rows: list[dict[str, Any]] = []
    for name, path in bundles.items():
        megabytes = sum(file.stat().st_size for file in path.iterdir()) / 1e6
        rows.append({"candidate": name, "megabytes": megabytes, "batch": batch})
        try:
            rows[-1] |= _measured_costs(path, device, atoms, batch)
        except PaiNNDeployError as error:
            rows[-1]["error"] = str(error)
    return rows


def _measured_costs(path: Path, device: str, atoms: Atoms, batch: int) -> dict[str, float]:
    """What loading takes, and the memory of an engine on a CPU.

    Raises:
        PaiNNDeployError: the bundle does not run.
    """
    began = time.perf_counter()
    with PaiNNCalculator(path, device=device) as calculator:
        on_cpu = calculator.engine_info["device"] == "cpu"
    found = {"load_seconds": time.perf_counter() - began}
    molecule = json.dumps([atoms.numbers.tolist(), atoms.positions.tolist()])
    command = [sys.executable, "-c", PEAK, str(path), device, str(batch), molecule]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this very Python
    told = re.search(r"^(\d+) (\d+)$", done.stdout, re.MULTILINE)
    if done.returncode or told is None:
        why = (done.stderr.strip() or f"it ended with status {done.returncode}").splitlines()[-1]
        raise PaiNNDeployError(f"{path} does not run in a process of its own: {why}")
    library, above = (int(kibibytes) * 1024 / 1e6 for kibibytes in told.groups())
    return found | ({"library_megabytes": library, "peak_megabytes": above} if on_cpu else {})
