"""How far the engines of one student are from it, measured before a bundle is written, and held to limits."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ase import Atoms

from painn_deploy.calibration.accuracy.domain import Domain
from painn_deploy.calibration.accuracy.errors import ERROR_UNITS, Accuracy, Tolerances, compare
from painn_deploy.calibration.accuracy.parity import check_parity
from painn_deploy.calibration.structures import LARGEST_FORCE, within_reach
from painn_deploy.engines import get_backend
from painn_deploy.engines.backend import Closing
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import PrecisionError
from painn_deploy.export.manifest import MODEL, Manifest
from painn_deploy.export.manifest_values import EXACT
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell, prefixed
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.commands.typed_graphs import INT8_LIMITS, TypedGraph

__all__ = ["GATE", "Examined", "Examiner", "taker"]

GATE = "onnxruntime"
"""Engine that the graph itself is compared with the student in, on the CPU, whatever else is built of the graph."""

SIMULATED = "in ONNX Runtime on the CPU: "
OF_HALVES = "every half tensor of the graph rounded to half, and no engine loses more"
OF_PRODUCTS = "operands of every FP32 product rounded to TF32's ten bits, as NVIDIA's libraries round them"

Results = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Examined:
    """The measured errors of one engine.

    Attributes:
        found: entries for the bundle's validation.json.
        accuracy: errors against FP32, the worst of those measured and simulated; None for an exact engine.
        excess: which limit the engine exceeds, and what a user can do; empty where it keeps all of them.
        structures: that it was measured on.
        results: that it gave for them; None where it cannot run here.
    """

    found: Mapping[str, Any]
    accuracy: Accuracy | None = None
    excess: str = ""
    structures: Sequence[Atoms] = ()
    results: Results | None = None


class Examiner(Closing):
    """Measures engines of one student whose graphs are its exact one, or typed from it.

    The exact graph stays open in ONNX Runtime: what FP32 gives is asked there.

    Args:
        exported: the student in float64 as its graphs compute it, with the radial table if there is one.
        exact: bundle in memory of the exact graph, in FP32 or in `fp64`, for the engine `GATE`.
        domain: structures to measure on, with what the student gives there in float64: errors are against that.
        limits: errors that FP16 and INT8 may cost against FP32; None for the default of each precision.
        tell: called with a line about each limit that is exceeded.

    Attributes:
        parity: largest errors of the exact graph, see `check_parity`.

    Raises:
        ParityError: the graph does not give the student's energies and forces.
    """

    def __init__(
        self,
        exported: Student,
        exact: Bundle,
        domain: Domain,
        limits: Tolerances | None,
        tell: Tell,
    ) -> None:
        self._exported, self._exact, self._domain = exported, exact, domain
        self._limits, self._tell = limits, tell
        self._gate = PaiNNCalculator(exact, device="cpu")
        self.parity = self._gated(self._gate)
        self._near: tuple[Sequence[Atoms], Results, Results, int] | None = None

    def close(self) -> None:
        """Close the exact graph; may be called twice."""
        self._gate.close()

    def _gated(self, engine: PaiNNCalculator) -> dict[str, Any]:
        brought = self._domain.structures if self._domain.brought else ()
        told = prefixed(self._tell, f"comparing {engine.manifest.engine} with the student in float64: ")
        precision = self._exact.manifest.precision
        return check_parity(
            engine.run_graph, self._exported, None, brought, precision=precision, takes=taker(engine), tell=told
        )

    def examine(self, bundle: Bundle, graph: TypedGraph) -> Examined:
        """Measure the engine of a bundle, if it can run here.

        Args:
            bundle: in memory; nothing of it is written.
            graph: that the engine was built of.

        Raises:
            ParityError: an engine of the exact graph does not give the student's energies and forces.
        """
        engine = bundle.manifest.engine
        backend = get_backend(engine)
        runs, precision = backend.can_run(bundle), bundle.manifest.precision
        if bundle.manifest.arithmetic not in EXACT:
            return self._lossy(bundle, graph, runs=runs)
        if not runs:
            return Examined(_not_executed(engine))
        on_cpu = precision == "fp64" or backend.devices()[0] == "cpu"
        structures, wanted = self._domain.structures, self._domain.wanted
        if bundle is self._exact and on_cpu:  # the gate has opened this very engine
            parity, results = self.parity, self._gate.calculate_batch(structures)
        else:
            with PaiNNCalculator(bundle) as calculator:
                takes = taker(calculator)
                taken = [i for i, atoms in enumerate(structures) if takes(atoms)]
                if not taken:
                    raise PrecisionError(
                        f"The engine {engine} takes none of the structures that it would be measured on. Give others "
                        "with --structures, or choose another engine."
                    )
                structures, wanted = [structures[i] for i in taken], [wanted[i] for i in taken]
                parity = self._gated(calculator)
                self._tell(f"evaluating {len(structures)} structures with {engine}")
                results = calculator.calculate_batch(structures)
        accuracy = compare(structures, results, wanted)
        found = {"units": dict(ERROR_UNITS), "parity": parity, **accuracy.as_dict()}
        if refused := len(self._domain) - len(structures):
            found["not_taken"] = f"{refused} of the structures, which the engine {engine} does not take"
        return Examined(found, structures=structures, results=results)

    def _lossy(self, bundle: Bundle, graph: TypedGraph, *, runs: bool) -> Examined:
        """Errors of an engine in FP16, INT8 or TF32.

        They are measured where the engine runs. Where it cannot run, or may have computed with more digits than it has
        to, the simulation counts: of halves it loses as much as any engine may, of TF32 as much as the format does.
        """
        structures, wanted, exact, left_out = self._reachable()
        report = dict(graph.report)
        found: dict[str, Any] = {} if runs else _not_executed(bundle.manifest.engine)
        found |= {"units": dict(ERROR_UNITS), "left_out_for_large_forces": left_out}
        found |= {"sensitivity": report.pop("sensitivity")} if "sensitivity" in report else {}
        found["typed"] = report
        worst: list[Accuracy] = []
        results: Results | None = None
        if runs:
            with PaiNNCalculator(bundle) as calculator:
                results = calculator.calculate_batch(structures)
            against_fp32 = compare(structures, results, exact)
            found |= {**compare(structures, results, wanted).as_dict(), "against_fp32": against_fp32.as_dict()}
            worst.append(against_fp32)
        if graph.simulated is not None:
            references = bundle.manifest.atomic_references
            members = bundle.manifest.members
            manifest = dataclasses.replace(self._exact.manifest, atomic_references=references, members=members)
            others = {name: self._exact.file(name) for name in self._exact.manifest.files if name != MODEL}
            bundled = Bundle.in_memory(manifest, {MODEL: graph.simulated, **others})
            with PaiNNCalculator(bundled, device="cpu") as calculator:
                simulated = compare(structures, calculator.calculate_batch(structures), exact)
            found["simulated"] = {"how": _simulated(bundle.manifest), "against_fp32": simulated.as_dict()}
            worst.append(simulated)
        excess = next(filter(None, (self._excess(bundle, accuracy) for accuracy in worst)), "")
        return Examined(found, max(worst, key=lambda each: each.force_rmse), excess, structures, results)

    def _excess(self, bundle: Bundle, accuracy: Accuracy) -> str:
        """Which limits errors against FP32 exceed; empty where they keep them. A stress has no limit of its own."""
        engine, arithmetic = bundle.manifest.engine, bundle.manifest.arithmetic
        limits = self._limits or (INT8_LIMITS if arithmetic == "int8" else Tolerances())
        if not (failures := accuracy.failures(dataclasses.replace(limits, stress=float("inf")))):
            return ""
        what, past = f"{engine} in {arithmetic}", "; ".join(failures)
        self._tell(f"{what}: {past}, on {accuracy.force_worst}")
        return (
            f"{what} costs more than it may, against FP32: {past}, worst on {accuracy.force_worst}. Allow more "
            "with --max-energy-error and --max-force-error, give structures like those that it is for with "
            f"--structures, or {'leave out --tf32' if arithmetic == 'tf32' else 'take fp32'}."
        )

    def _reachable(self) -> tuple[Sequence[Atoms], Results, Results, int]:
        """Structures for lower precisions, the float64 student's results, FP32's results, and how many are left out.

        Where the student's forces are far beyond chemistry, FP32's own errors are too, and nothing is learnt.
        """
        if self._near is None:
            structures, wanted = self._domain.structures, self._domain.wanted
            kept = within_reach([result["forces"] for result in wanted])
            if not kept:
                raise PrecisionError(
                    f"No structure of {self._domain.name} has forces of at most {LARGEST_FORCE:g} eV/Å, and beyond "
                    "lower precisions are not measured. Give others with --structures, or take fp32."
                )
            left_out = len(structures) - len(kept)
            structures, wanted = [structures[i] for i in kept], [wanted[i] for i in kept]
            self._near = structures, wanted, self._gate.calculate_batch(structures), left_out
        return self._near


def taker(calculator: PaiNNCalculator) -> Callable[[Atoms], bool]:
    """Whether an engine takes a structure where it runs.

    Args:
        calculator: on the engine.
    """
    return partial(get_backend(calculator.manifest.engine).takes, calculator.engine_info["device"])


def _simulated(manifest: Manifest) -> str:
    rounded = {OF_HALVES: manifest.arithmetic != "tf32", OF_PRODUCTS: manifest.tf32}
    return SIMULATED + "; ".join(what for what, done in rounded.items() if done)


def _not_executed(engine: str) -> dict[str, Any]:
    return {"not_executed": f"{engine} needs a GPU, and there is none here; run `validate` on one"}
