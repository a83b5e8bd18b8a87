"""The stages of the job on a GPU: which there are, in which order, and what each does."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.md.velocitydistribution import thermalize_momenta
from rich.console import Console

from painn_deploy.calibration.accuracy.domain import find_domain
from painn_deploy.calibration.accuracy.errors import Tolerances, compare
from painn_deploy.calibration.physics.drift import Drift
from painn_deploy.calibration.physics.motion import DRIFT_LIMIT, total_energies
from painn_deploy.calibration.structures import aspirin, default_structures, trusted_species
from painn_deploy.engines import get_backend
from painn_deploy.engines.gpu.driver import gpu_of
from painn_deploy.engines.inductor.compile import SEVERAL
from painn_deploy.engines.session import CudaGraphs
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.export.files import to_json
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.machine import machine
from painn_deploy.scripts.benchmarks.cases import box_of_water
from painn_deploy.scripts.benchmarks.contenders.bundles import Bundle
from painn_deploy.scripts.benchmarks.inference import time_bundles
from painn_deploy.scripts.benchmarks.results import plot
from painn_deploy.scripts.commands.export import export_engines
from painn_deploy.scripts.commands.measuring import taker
from painn_deploy.scripts.gpu.baseline import eager_figures
from painn_deploy.scripts.gpu.builds import BuildRequest, Bundles
from painn_deploy.scripts.gpu.cases import Case, Pace, first_requests, made_cases, size_requests
from painn_deploy.scripts.gpu.measure import Clock, engine_figures
from painn_deploy.scripts.gpu.opening import opening
from painn_deploy.scripts.gpu.plan import MAIN, PRECISIONS, TF32, Options, Stage
from painn_deploy.scripts.gpu.proofs import PROOFS, Subject, proved
from painn_deploy.scripts.gpu.record import Record, Unavailable, failed
from painn_deploy.scripts.gpu.resources import floor_figures, memory_figures, peaks_of
from painn_deploy.scripts.profiling.roofline import Peaks

__all__ = ["Job"]

ANY = float("inf")
LIMITS = {
    "fp32": Tolerances(0.1e-3, 1e-3),
    "fp16": Tolerances(0.3e-3, 1.5e-3, ANY),
    "int8": Tolerances(3e-3, 25e-3, ANY),
    TF32: Tolerances(0.3e-3, 8e-3, ANY),
}
"""Of errors against float64, over the structures of `default_structures` of up to 64 atoms; as in an export, what lower
precisions make of a stress is told and not limited. TF32 rounds the radial basis too, which FP16 keeps: `student:base`
loses 4 meV/Å where operands are rounded to the nearest, as an export for a GPU simulates without one. A kernel that
drops their digits instead loses several times as much, and this is to find it."""

SIZES_PACE = Pace(60, 1.5)
"""Of further sizes, of which there are many."""

RELATIVE = 1e-5
"""Relative error of forces that FP32 stays below; with TF32 it would be some 3e-4."""

REPLAYED = ", CUDA graphs"


class Job:
    """Parts that the stages share, each made when it is first needed.

    Args:
        options: of the job.
        record: of what was found.
    """

    def __init__(self, options: Options, record: Record) -> None:
        self.options, self.record = options, record
        self.quick, self.device = options.quick, options.device
        self.pace = Pace(12, 2.0) if options.quick else Pace(100, 8.0 if options.device == "cpu" else 3.0)
        self.clock = Clock(self.pace)
        self._baseline: dict[str, Any] = {}
        self._peaks: dict[str, Peaks] = {}
        self.bundles = Bundles(options, record)

    @cached_property
    def exact(self) -> Any:
        """The student in float64."""
        return load_student(self.options.student, dtype=torch.float64)

    @cached_property
    def student(self) -> Any:
        """The student in float32."""
        return load_student(self.options.student)

    @cached_property
    def cases(self) -> dict[str, Case]:
        """Structures with the student's results in float64."""
        return made_cases(self.exact, self.torch_device, first_requests(quick=self.quick))

    @cached_property
    def sizes(self) -> dict[str, Case]:
        """The same of further sizes."""
        return made_cases(self.exact, self.torch_device, size_requests(quick=self.quick))

    @cached_property
    def torch_device(self) -> str:
        """The device of eager PyTorch: the job's, or the CPU where torch has no GPU."""
        return self.device if self.device == "cpu" or torch.cuda.is_available() else "cpu"

    def run(self, stage: Stage) -> None:
        """Run a stage; what it finds is in the record.

        Raises:
            Unavailable: what it needs is not here.
            StageError: something in it failed; the message says what.
        """
        wrong: list[str] = []

        def keep(name: str, measure: Callable[[], Any]) -> None:
            known = self.record.figures.get(stage.name, {}).get(name)
            if known is None or failed(known):
                known = _measured(measure)
                self.record.note(stage.name, name, known)
            if failed(known):
                wrong.append(f"{name}: {known['failed']}" if "failed" in known else f"{name} does not hold")

        try:
            getattr(self, f"_{stage.kind}")(keep, stage)
        except EngineUnavailableError as error:
            raise Unavailable(str(error)) from error
        if wrong:
            more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise StageError(f"{wrong[0]}{more}")

    def _first(self, keep: Any, stage: Stage) -> None:
        """The figures that matter most, in the order in which they cost least time."""
        on_gpu = self.device != "cpu"
        keep("peaks", lambda: {name: self.peaks(name).as_dict() for name in self._measurable()})
        keep("machine", lambda: {
            "machine": machine([self.device]), "gpu": gpu_of(self.device), "cores": os.cpu_count(),
            "torch": torch.__version__, "torch's CUDA": torch.version.cuda,
        })  # fmt: skip
        keep("sizes", lambda: {name: case.as_dict() for name, case in self.cases.items()})
        if on_gpu and self.torch_device == "cpu":
            keep("eager", lambda: _unavailable("This torch cannot use the GPU; references are computed on the CPU."))
        self._eager(keep, "eager", compiled=False)
        main = [(e, p) for e, p in MAIN if e in self.options.engines and p in self.options.precisions]
        if (os.cpu_count() or 1) >= SEVERAL:
            self.bundles.build(keep, [BuildRequest(engine, precision, "") for engine, precision in main])
        for engine, precision in main:
            with _as_a_figure(keep, f"{engine} {precision}"):
                self._speed(keep, stage, engine, precision)

    def _compiled(self, keep: Any, _: Stage) -> None:
        """What torch.compile makes of eager PyTorch, beside which it is timed again."""
        if self.quick:
            raise Unavailable("It is left out of a quick job: compiling it takes minutes.")
        self._eager(keep, "eager", compiled=False)
        self._eager(keep, "torch.compile", compiled=True)

    def _measurable(self) -> tuple[str, ...]:
        """Precisions in which the device multiplies."""
        return PRECISIONS if self.torch_device != "cpu" else ("fp32",)

    def peaks(self, precision: str) -> Peaks:
        """The machine's, of the first stage, or measured once in this process.

        Raises:
            Unavailable: this torch, which measures them, cannot use the device.
        """
        if self.torch_device != self.device:
            raise Unavailable(f"This torch cannot use {self.device}, so that its peaks are not known.")
        if precision not in self._peaks:
            known = (self.record.figures.get("first", {}).get("peaks") or {}).get(precision)
            self._peaks[precision] = Peaks(**known) if known else peaks_of(self.torch_device, precision)
        return self._peaks[precision]

    def _sizes(self, keep: Any, stage: Stage) -> None:
        """What the first stage measures, of further sizes."""
        bundle = self.bundles.get(keep, stage.engine, stage.precision)  # before anything that takes time
        keep("sizes", lambda: {name: case.as_dict() for name, case in self.sizes.items()})
        self._time(
            keep, stage, bundle, stage.precision, self.sizes, Clock(SIZES_PACE) if not self.quick else self.clock
        )

    def _opening(self, keep: Any, stage: Stage) -> None:
        """Seconds until a bundle can be used, and what they are spent on."""
        bundle = self.bundles.get(keep, stage.engine, stage.precision)
        keep("opening", lambda: opening(bundle, self.device))

    def _eager(
        self, keep: Any, name: str, *, compiled: bool, cases: dict[str, Case] | None = None, clock: Clock | None = None
    ) -> None:
        def kept(figure: str, measure: Callable[[], Any]) -> None:
            key = f"{name}: {figure}"
            if key not in self._baseline:  # once in a process is the same run

                def measured() -> Any:
                    self._baseline[key] = measure()
                    return self._baseline[key]

                keep(key, measured)
            else:
                keep(key, lambda: self._baseline[key])

        cases, clock = self.cases if cases is None else cases, clock or self.clock
        eager_figures(kept, self.student, cases, self.torch_device, clock, compiled=compiled)

    def _speed(
        self, keep: Any, stage: Stage, engine: str | None = None, precision: str | None = None, form: str = ""
    ) -> None:
        """Errors and times of one engine, beside eager in the same process."""
        engine, precision, form = engine or stage.engine, precision or stage.precision, form or stage.form
        bundle = self.bundles.get(keep, engine, precision, form)
        self._time(keep, stage, bundle, precision, self.cases, self.clock, f"{engine} {precision} {form}".strip())

    def _time(
        self,
        keep: Any,
        stage: Stage,
        bundle: Path,
        precision: str,
        cases: dict[str, Case],
        clock: Clock,
        label: str = "",
    ) -> None:
        label = label or f"{stage.engine} {precision}"
        if stage.kind != "first":
            self._eager(keep, "eager", compiled=False, cases=cases, clock=clock)

        def kept(figure: str, measure: Callable[[], Any]) -> None:
            keep(f"{label}: {figure}", measure)

        def known(figure: str) -> Any:
            return self.record.figures[stage.name].get(f"{label}: {figure}")

        with PaiNNCalculator(bundle, device=self.device) as calculator:
            kept("engine", lambda: dict(calculator.engine_info))
            refused = [name for name, case in cases.items() if not all(map(taker(calculator), case.structures[0]))]
            if refused:
                kept("not for this engine", lambda: {"cases": refused})
            cases = {name: case for name, case in cases.items() if name not in refused}
            engine_figures(kept, calculator, self.student, cases, clock)
        floor_figures(kept, bundle, precision, cases, lambda: self.peaks(precision), known)
        memory_figures(kept, bundle, self.device, cases)
        if precision == "fp32":
            kept("FP32 is FP32", lambda: self._is_fp32(stage.name, label))

    def _is_fp32(self, stage: str, label: str) -> Any:
        """Whether all errors that were measured are those of FP32."""
        found = {
            name: value["relative force error"]
            for name, value in self.record.figures[stage].items()
            if name.startswith(f"{label}: ") and isinstance(value, dict) and "relative force error" in value
        }
        return {"holds": bool(found) and all(error <= RELATIVE for error in found.values()), "relative errors": found}

    def _proof(self, keep: Any, stage: Stage) -> None:
        """That an engine is the student, and that no way of running it gives anything else."""
        bundle = self.bundles.get(keep, stage.engine, stage.precision, stage.form)
        keep("forces are the student's", lambda: self._accuracy(bundle, stage.precision))
        calls = self.options.calls or (200 if self.quick else 10_000)
        subject = Subject(bundle, self.device, calls, self.exact.configuration.cutoff)
        for name, proof in PROOFS.items():

            def measure(proof: Any = proof) -> Any:
                holds, figures = proved(proof, subject)
                return {"holds": holds, **figures}

            keep(name, measure)

    def _accuracy(self, bundle: Path, precision: str) -> Any:
        species = trusted_species(self.exact)
        structures = [atoms for atoms in default_structures(species) if len(atoms) <= 64]
        domain = find_domain(self.exact, structures, "the default set", brought=False)
        with PaiNNCalculator(bundle, device=self.device) as calculator:
            taken = [i for i, atoms in enumerate(domain.structures) if taker(calculator)(atoms)]
            structures, wanted = ([each[i] for i in taken] for each in (domain.structures, domain.wanted))
            accuracy = compare(structures, calculator.calculate_batch(structures), wanted)
        problems = accuracy.failures(LIMITS[precision])
        return {"holds": not problems, "problems": problems, **accuracy.as_dict()}

    def _builds(self, keep: Any, stage: Stage) -> None:
        """Every package that later stages ask for and that takes long to compile, side by side."""
        self.bundles.build(keep, [BuildRequest(*parts) for parts in stage.builds])

    def _dynamics(self, keep: Any, stage: Stage) -> None:
        """Dynamics without a thermostat on the engine, and on ONNX Runtime's CPU from the same start."""
        atoms, picoseconds = aspirin(), 0.02 if self.quick else 2.0
        if not set(atoms.numbers) <= set(self.exact.species):
            raise Unavailable("The student does not know the elements of aspirin.")
        thermalize_momenta(atoms, 300, rng=np.random.default_rng(3))
        bundle = self.bundles.get(keep, stage.engine, stage.precision)
        (reference,) = export_engines(
            self.options.student,
            self.bundles.folder(BuildRequest("onnxruntime", "fp32", "reference")),
            overwrite=True,
            device="cpu",
        )
        drifts: dict[str, Drift] = {}

        def drift(name: str, path: Path, device: str) -> Any:
            began = time.perf_counter()
            with PaiNNCalculator(path, device=device) as calculator:
                times, energies = total_energies(atoms.copy(), calculator, picoseconds)
            drifts[name] = Drift.of(times, energies)
            return drifts[name].as_dict() | {"seconds": time.perf_counter() - began}

        keep("on the engine", lambda: drift("engine", bundle, self.device))
        keep("on the CPU", lambda: drift("CPU", reference, "cpu"))
        if len(drifts) == 2 and not self.quick:
            own, other = drifts["engine"], drifts["CPU"]
            apart = abs(own.slope - other.slope)
            allowed = DRIFT_LIMIT + 2 * float(np.hypot(own.uncertainty, other.uncertainty))
            keep("drifts agree", lambda: {"holds": apart <= allowed, "apart, meV/atom/ps": apart, "allowed": allowed})

    def _benchmark(self, keep: Any, _: Stage) -> None:
        """Whole ASE calls of every FP32 engine beside eager, as `scripts/benchmark_inference.py` times them."""
        bundles: dict[str, Path] = {}
        for engine in self.options.engines:
            with _as_a_figure(keep, engine):
                if not get_backend(engine).takes(self.device, box_of_water()):
                    raise Unavailable(f"{engine} takes no liquid on {self.device}, and these tables have some.")
                bundles[f"{engine} fp32"] = self.bundles.get(keep, engine, "fp32")
        if not bundles:
            raise Unavailable("No engine can run here.")
        path = self.record.folder / "benchmark.json"
        of = {"checkpoint": self.options.student, "checkpoint_sha256": self.record.job["student_sha256"]}

        def timed() -> Any:
            console = Console(quiet=True)
            with ExitStack() as stack:
                peers: list[Bundle] = []
                for name, bundle in bundles.items():
                    calculator = stack.enter_context(PaiNNCalculator(bundle, device=self.device))
                    if isinstance(calculator.session, CudaGraphs):
                        calculator.session.cuda_graphs = True
                        peers.append(Bundle(calculator, f"{name}{REPLAYED}"))
                found = time_bundles(
                    bundles,
                    self.student,
                    self.device,
                    compiled=False,
                    quick=self.quick,
                    console=console,
                    peers=peers,
                    keep=lambda so_far: path.write_bytes(to_json(of | so_far)),
                )
            path.write_bytes(to_json(of | found))
            plot(of | found, self.record.folder)
            return {"written": path.name}

        keep("benchmark", timed)


class StageError(Exception):
    """Something in a stage failed."""


def _measured(measure: Callable[[], Any]) -> Any:
    """A figure, or why there is none."""
    try:
        return measure()
    except (Unavailable, EngineUnavailableError) as error:
        return {"absent": str(error)}
    except Exception as error:  # whatever a driver may throw costs its own figure
        return {"failed": f"{type(error).__name__}: {error}"}


@contextmanager
def _as_a_figure(keep: Any, name: str) -> Iterator[None]:
    """An engine that is not here, or fails, is a figure that says so, and the stage goes on."""
    try:
        yield
    except Exception as error:  # as above
        reason = error
        keep(name, lambda: _raised(reason))


def _raised(error: Exception) -> Any:
    raise error


def _unavailable(reason: str) -> Any:
    raise Unavailable(reason)
