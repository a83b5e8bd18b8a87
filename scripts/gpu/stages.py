"""The stages of the job on a GPU: which there are, in which order, and what each does."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
from painn_deploy.engines.gpu.cuda import compute_capability
from painn_deploy.engines.gpu.driver import gpu_of
from painn_deploy.engines.inductor.compile import SEVERAL
from painn_deploy.engines.session import CudaGraphs
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.export.files import to_json
from painn_deploy.export.manifest import SUFFIX
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.machine import machine
from painn_deploy.scripts.benchmarks.contenders.bundles import Bundle
from painn_deploy.scripts.benchmarks.inference import time_bundles
from painn_deploy.scripts.benchmarks.results import plot
from painn_deploy.scripts.commands.export import export_engines
from painn_deploy.scripts.gpu.builds import BuildRequest, build_all
from painn_deploy.scripts.gpu.measure import Clock, Pace, eager_figures, engine_figures, made_cases
from painn_deploy.scripts.gpu.plan import MAIN, Options, Stage
from painn_deploy.scripts.gpu.proofs import PROOFS, Subject, proved
from painn_deploy.scripts.gpu.record import Record, Unavailable, failed
from painn_deploy.scripts.profiling.roofline import measured_peaks

__all__ = ["Job"]

ANY = float("inf")
LIMITS = {
    "fp32": Tolerances(0.1e-3, 1e-3),
    "fp16": Tolerances(0.3e-3, 1.5e-3, ANY),
    "int8": Tolerances(3e-3, 25e-3, ANY),
}
"""Of errors against float64, over the structures of `default_structures` of up to 64 atoms; as in an export, what lower
precisions make of a stress is told and not limited."""

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
        self._failed_exports: dict[Path, Exception] = {}

    @cached_property
    def exact(self) -> Any:
        """The student in float64."""
        return load_student(self.options.student, dtype=torch.float64)

    @cached_property
    def student(self) -> Any:
        """The student in float32."""
        return load_student(self.options.student)

    @cached_property
    def cases(self) -> Any:
        """Structures with the student's results in float64."""
        return made_cases(self.exact, self.torch_device, quick=self.quick)

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
        keep("peaks", lambda: self._peaks())
        keep("machine", lambda: {
            "machine": machine([self.device]), "gpu": gpu_of(self.device), "cores": os.cpu_count(),
            "torch": torch.__version__, "torch's CUDA": torch.version.cuda,
        })  # fmt: skip
        keep("sizes", lambda: {
            name: {"matrix": list(case.inputs[0].mask.shape), "edges": len(case.edges[0].centre)}
            for name, case in self.cases.items()
        })  # fmt: skip
        if on_gpu and self.torch_device == "cpu":
            keep("eager", lambda: _unavailable("This torch cannot use the GPU; references are computed on the CPU."))
        self._eager(keep, "eager", compiled=False)
        main = [(e, p) for e, p in MAIN if e in self.options.engines and p in self.options.precisions]
        if (os.cpu_count() or 1) >= SEVERAL:
            self._prebuild(keep, [BuildRequest(engine, precision, "") for engine, precision in main])
        for engine, precision in main:
            with _as_a_figure(keep, f"{engine} {precision}"):
                self._speed(keep, stage, engine, precision)

    def _compiled(self, keep: Any, _: Stage) -> None:
        """What torch.compile makes of eager PyTorch, beside which it is timed again."""
        if self.quick:
            raise Unavailable("It is left out of a quick job: compiling it takes minutes.")
        self._eager(keep, "eager", compiled=False)
        self._eager(keep, "torch.compile", compiled=True)

    def _peaks(self) -> Any:
        if self.quick and self.device == "cpu":
            return measured_peaks("cpu").as_dict()
        precisions = ("fp32", "fp16", "int8") if self.torch_device != "cpu" else ("fp32",)
        return {name: measured_peaks(self.torch_device, (name,)).as_dict() for name in precisions}

    def _eager(self, keep: Any, name: str, *, compiled: bool) -> None:
        def kept(figure: str, measure: Callable[[], Any]) -> None:
            key = f"{name}: {figure}"
            if key not in self._baseline:  # once in a process is the same run

                def measured() -> Any:
                    self._baseline[key] = measure()
                    return self._baseline[key]

                keep(key, measured)
            else:
                keep(key, lambda: self._baseline[key])

        eager_figures(kept, self.student, self.cases, self.torch_device, self.clock, compiled=compiled)

    def _speed(
        self, keep: Any, stage: Stage, engine: str | None = None, precision: str | None = None, form: str = ""
    ) -> None:
        """Errors and times of one engine, beside eager in the same process."""
        engine, precision, form = engine or stage.engine, precision or stage.precision, form or stage.form
        label = f"{engine} {precision}{f' {form}' if form else ''}"
        bundle = self.bundle(keep, engine, precision, form)
        if stage.kind != "first":
            self._eager(keep, "eager", compiled=False)

        def kept(figure: str, measure: Callable[[], Any]) -> None:
            keep(f"{label}: {figure}", measure)

        with PaiNNCalculator(bundle, device=self.device) as calculator:
            keep(f"{label}: engine", lambda: dict(calculator.engine_info))
            engine_figures(kept, calculator, self.student, self.cases, self.clock, self.pace.calls)
        if precision == "fp32":
            keep(f"{label}: FP32 is FP32", lambda: self._is_fp32(stage.name, label))

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
        bundle = self.bundle(keep, stage.engine, stage.precision, stage.form)
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
            accuracy = compare(domain.structures, calculator.calculate_batch(domain.structures), domain.wanted)
        problems = accuracy.failures(LIMITS[precision])
        return {"holds": not problems, "problems": problems, **accuracy.as_dict()}

    def _builds(self, keep: Any, stage: Stage) -> None:
        """Every package that later stages ask for and that takes long to compile, side by side."""
        self._prebuild(keep, [BuildRequest(*parts) for parts in stage.builds])

    def _prebuild(self, keep: Any, wanted: Sequence[BuildRequest]) -> None:
        """Bundles of engines that are here, side by side; one that fails is not tried again in this process."""
        missing = []
        for one in wanted:
            with suppress(Unavailable, EngineUnavailableError):  # its own stage says so
                self._check_here(one.engine, one.precision)
                missing += [] if self._path(*one).is_dir() else [one]
        for one, outcome in build_all(self.options, missing, self._folder):
            keep(f"{one}: build", self._remembered(one, outcome))

    def _remembered(self, one: BuildRequest, outcome: Callable[[], Any]) -> Callable[[], Any]:
        def result() -> Any:
            try:
                return outcome()
            except Exception as error:
                self._failed_exports[self._path(*one)] = error
                raise

        return result

    def _folder(self, form: str) -> Path:
        """Of bundles in a form; those of another machine, version or student lie elsewhere."""
        of = hashlib.sha256(to_json(self.record.job)).hexdigest()[:16]
        return Path(self.options.work) / of / (form.translate(str.maketrans("+@,", "---")) or "default")

    def _path(self, engine: str, precision: str, form: str) -> Path:
        return self._folder(form) / f"{self.record.job['student']}-{engine}-{precision}{SUFFIX}"

    def _check_here(self, engine: str, precision: str) -> None:
        """Refuse what cannot run on the job's device.

        Raises:
            Unavailable: it says why.
        """
        backend, kind = get_backend(engine), self.device.partition(":")[0]
        if not any(device.partition(":")[0] == kind for device in backend.devices()):
            raise Unavailable(f"{engine} {backend.version()} cannot run on {self.device} here.")
        if precision not in backend.precisions:
            raise Unavailable(f"{engine} has no {precision}.")

    def bundle(self, keep: Any, engine: str, precision: str, form: str = "") -> Path:
        """An engine's bundle, exported if it is not there.

        Args:
            keep: runs a step and keeps what it returns in the record.
            engine: backend.
            precision: `fp32`, `fp16` or `int8`.
            form: of the graph; empty for the backend's own.

        Raises:
            Unavailable: the engine cannot run on the job's device.
        """
        self._check_here(engine, precision)
        path = self._path(engine, precision, form)
        if path.is_dir():
            return path
        if path in self._failed_exports:  # it would take as long again
            raise self._failed_exports[path]
        began = time.perf_counter()
        capabilities = [compute_capability(0)] if engine == "tensorrt-rtx" else []
        try:
            (made,) = export_engines(
                self.options.student,
                path.parent,
                engines=[engine],
                precisions=[precision],
                compute_capabilities=capabilities,
                device=self.device,
                form=form,
                tell=self.record.tell,
            )
        except Exception as error:
            self._failed_exports[path] = error
            raise
        keep(f"{engine} {precision}: seconds of the export", lambda: time.perf_counter() - began)
        return made

    def _dynamics(self, keep: Any, stage: Stage) -> None:
        """Dynamics without a thermostat on the engine, and on ONNX Runtime's CPU from the same start."""
        atoms, picoseconds = aspirin(), 0.02 if self.quick else 2.0
        if not set(atoms.numbers) <= set(self.exact.species):
            raise Unavailable("The student does not know the elements of aspirin.")
        thermalize_momenta(atoms, 300, rng=np.random.default_rng(3))
        bundle = self.bundle(keep, stage.engine, stage.precision)
        (reference,) = export_engines(self.options.student, self._folder("reference"), overwrite=True, device="cpu")
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
                bundles[f"{engine} fp32"] = self.bundle(keep, engine, "fp32")
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
