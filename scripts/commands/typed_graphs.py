"""One typed graph for each precision of a student: FP32 as it was traced, FP16-mixed, INT8 within a tolerance."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from ase import Atoms

from painn_deploy.calibration.accuracy.errors import Tolerances
from painn_deploy.calibration.int8.search import Int8Search, Quantisation
from painn_deploy.calibration.int8.yardstick import Run, Yardstick
from painn_deploy.engines import get_backend
from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export.fields import MEMBER_ENERGIES, OUTPUTS, GraphInputs
from painn_deploy.export.graph.edit import EditableGraph
from painn_deploy.export.graph.half import half_tensors, rounded, to_half
from painn_deploy.export.graph.int8 import to_int8
from painn_deploy.export.graph.onnx_graph import axes_of, check_contract
from painn_deploy.export.graph.products import weight_products
from painn_deploy.export.graph.tf32 import rounded_products
from painn_deploy.export.manifest_values import EXACT
from painn_deploy.export.progress import Tell, silent

__all__ = ["AUTO", "AUTO_CHOICE", "INT8_LIMITS", "TypedGraph", "TypedGraphs", "auto_choice"]

AUTO = "auto"
"""In place of a precision: the fastest of those of `AUTO_CHOICE` that keeps the limits."""

AUTO_CHOICE = ("fp32", "fp16", "int8")


def auto_choice(engine: str) -> list[str]:
    """The precisions that `auto` chooses from for a backend."""
    return [precision for precision in AUTO_CHOICE if precision in get_backend(engine).precisions]


INT8_LIMITS = Tolerances(energy=3e-3, forces=20e-3)
"""What INT8 may cost against FP32 where the user says nothing."""


@dataclass(frozen=True)
class TypedGraph:
    """A graph in one precision.

    Attributes:
        model: what engines are built of.
        simulated: an FP32 graph with every half tensor rounded, and operands of products in TF32, for engines
            that cannot run here or that keep more digits than they must; None where neither is done.
        correction: eV to add to the atomic reference of each atomic number.
        report: how the graph was made, for the bundle's validation.json.
        corrections: as `correction`, of each member of a committee; empty for one student.
    """

    model: bytes
    simulated: bytes | None = None
    correction: Mapping[int, float] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    corrections: Sequence[Mapping[int, float]] = ()


class TypedGraphs:
    """Makes the graphs of one student as they are asked for; what the search for INT8 measures is measured once.

    Args:
        model: in FP32, or in `fp64`, from which nothing else is typed.
        cutoff: Å.
        calibration: structures that INT8 is calibrated on, called when it comes to that; and their name.
        limits: what INT8 may cost against FP32.
        tf32: whether FP32 products of engines may round their operands to ten bits.
        tell: called with a line about each step.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        cutoff: float,
        calibration: Callable[[], tuple[Sequence[Atoms], str]],
        limits: Tolerances = INT8_LIMITS,
        tf32: bool = False,
        tell: Tell = silent,
    ) -> None:
        self._model, self._cutoff, self._limits, self._tell = model, cutoff, limits, tell
        self._calibration, self._tf32 = calibration, tf32
        self._search: tuple[Int8Search, str] | None = None
        self._found: dict[float, Quantisation] = {}

    def get(self, precision: str, engine: str, share: float = 1.0) -> TypedGraph:
        """The graph that an engine is built of in a precision.

        Args:
            precision: `fp32`, `fp16` or `int8`; `fp64` of a model in it.
            engine: its backend.
            share: of the limits, that INT8 is searched for within.

        Raises:
            PrecisionError: INT8 cannot be had within the limits.
            DatasetError: there are too few structures to calibrate INT8 on.
        """
        backend = get_backend(engine)
        exact = backend.lower(self._model)
        if precision in EXACT:
            return TypedGraph(exact.SerializeToString(), self._less_exact(exact) if precision == "fp32" else None)
        if precision == "fp16":
            return self._narrowed(exact, {})
        quantisation, name = self._quantised(share)
        model = to_int8(exact, quantisation.scales)
        corrections = self._of_members(model)
        products = weight_products(self._model)
        report = {
            "calibrated_on_set": name,
            "int8_products": f"{len(quantisation.scales)} of {len(products)}",
            "other_products": backend.rest_precision,
            "share_of_limits": share,
            **quantisation.as_dict(),
        }
        if backend.rest_precision == "fp16":
            return self._narrowed(model, report, quantisation.correction, corrections)
        return TypedGraph(_checked(model), self._less_exact(model), quantisation.correction, report, corrections)

    def _of_members(self, model: onnx.ModelProto) -> list[Mapping[int, float]]:
        """What INT8 costs each element in each member of a committee; left alone, it would count as their spread."""
        if not (members := axes_of(self._model).get("members", 0)):
            return []
        names, found = [MEMBER_ENERGIES.name, OUTPUTS[1].name], []
        exact, lossy = (open_graph(each.SerializeToString(), names) for each in (self._model, model))

        def of(run: Run, member: int) -> Run:
            def alone(inputs: GraphInputs) -> Sequence[np.ndarray]:
                energies, forces = run(inputs)
                return energies[:, member], forces

            return alone

        structures, _ = self._calibration()
        for member in range(members):
            yardstick = Yardstick(self._model, structures, self._cutoff, of(exact, member))
            found.append(yardstick.errors(of(lossy, member)).correction)
        return found

    def _narrowed(
        self,
        model: onnx.ModelProto,
        report: Mapping[str, Any],
        correction: Mapping[int, float] | None = None,
        corrections: Sequence[Mapping[int, float]] = (),
    ) -> TypedGraph:
        graph = EditableGraph(model)
        half = half_tensors(graph)
        report = {**report, "half_tensors": len(half.computed | half.stored)}
        simulated = rounded(graph)
        simulation = self._less_exact(simulated) or simulated.SerializeToString()
        return TypedGraph(_checked(to_half(graph)), simulation, correction or {}, report, corrections)

    def _less_exact(self, model: onnx.ModelProto) -> bytes | None:
        return rounded_products(model).SerializeToString() if self._tf32 else None

    def _quantised(self, share: float) -> tuple[Quantisation, str]:
        if self._search is None:
            structures, name = self._calibration()
            self._search = Int8Search(self._model, structures, self._cutoff, tell=self._tell), name
        search, name = self._search
        if share not in self._found:
            self._found[share] = search.find(share * self._limits.energy, share * self._limits.forces)
        return self._found[share], name


def _checked(model: onnx.ModelProto) -> bytes:
    check_contract(model, axes=axes_of(model))
    return bytes(model.SerializeToString())
