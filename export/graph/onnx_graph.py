"""The ONNX graph of a student with its explicit force head, dynamic in atoms and slots."""

import json
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from painn_deploy.export.errors import ExportError
from painn_deploy.export.fields import INPUTS, UNITS, outputs_of
from painn_deploy.export.graph.translate import OPSET, translate
from painn_deploy.export.model.force_head import explicit_outputs
from painn_deploy.export.model.student import NeighbourGraph, Student

__all__ = ["axes_of", "check_contract", "export_onnx", "trace"]

TYPES = {"fp32": torch.float32, "fp64": torch.float64}
"""Of students that graphs are traced from. FP16 and INT8 graphs are typed from the one in FP32; `fp64` is traced from a
student in float64, since constants that were computed in float32 put forces off by 5e-6 eV/Å."""

FORBIDDEN = ("Scatter", "NonZero", "Compress", "Unique", "Loop", "If", "Scan", "Shape", "Range", "Sequence", "Random")
"""Prefixes of operators that an engine refuses, runs out of order, or that make a shape depend on data."""


def trace(student: Student, precision: str = "fp32") -> fx.GraphModule:
    """Trace all that the student's graph gives into one graph of ATen operators, symbolic in atoms and slots.

    Args:
        student: frozen (`load_student` returns it so), in the type of the precision.
        precision: `fp32` or `fp64`.

    Raises:
        ExportError: the student can be trained, or is in another type.
    """
    kind = TYPES[precision]
    if student.dtype != kind or any(p.requires_grad for p in student.parameters()):
        name = str(kind).removeprefix("torch.")
        raise ExportError(
            f"Only a frozen {name} student is exported in {precision}: load it with "
            f"load_student(path{'' if precision == 'fp32' else ', dtype=torch.float64'})."
        )

    def outputs(*graph: Tensor) -> tuple[Tensor, ...]:
        inputs = NeighbourGraph(*graph)
        # all sizes are symbols until something says what they are
        torch._check(inputs.displacements.shape[-1] == 3)  # type: ignore[no-untyped-call]
        return explicit_outputs(student, inputs)

    # sizes 0 and 1 would be specialised, and equal ones would be taken for the same axis
    atoms, slots = 7, 5
    generator = torch.Generator().manual_seed(0)
    sample = NeighbourGraph(
        torch.ones(atoms, dtype=torch.int32),
        torch.randn(atoms, slots, 3, generator=generator).to(student.dtype),
        torch.zeros(atoms, slots, dtype=torch.int32),
        torch.zeros(atoms, slots, dtype=torch.int32),
        torch.ones(atoms, slots, dtype=student.dtype),
        torch.ones(atoms, dtype=student.dtype),
    )
    traced = make_fx(
        outputs,
        tracing_mode="symbolic",
        decomposition_table={
            torch.ops.aten.silu_backward.default: _silu_backward,
            torch.ops.aten.softplus_backward.default: _softplus_backward,
        },
        _allow_non_fake_inputs=True,
    )(*sample)
    traced.graph.eliminate_dead_code()
    return traced


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """grad · d(x·σ)/dx with σ and x·σ taken from the forward pass: σ + y(1 - σ) for y = x·σ."""
    sigmoid = torch.sigmoid(x)
    return grad * (sigmoid + x * sigmoid * (1 - sigmoid))


def _softplus_backward(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    """grad · σ(x), and grad itself where torch's softplus is x: σ is less than 1 by 2e-9 there, which float64 sees."""
    return grad * torch.where(x > 20, 1.0, torch.sigmoid(x))


def export_onnx(
    student: Student, metadata: dict[str, Any], precision: str = "fp32", traced: fx.GraphModule | None = None
) -> onnx.ModelProto:
    """The student as one ONNX model that keeps the graph contract, its provenance inside.

    Args:
        student: frozen, in the type of the precision.
        metadata: stored in the model as strings, JSON where they are not; see `painn_deploy.export.fields` for units.
        precision: `fp32`, which FP16 and INT8 graphs are typed from, or `fp64`.
        traced: what `trace` made of this very student, whose weights may have changed in place since.

    Raises:
        ExportError: the graph does not keep the contract, or the student is trainable or in another type.
    """
    weights = dict(student.named_parameters())
    name = f"painn_deploy_{student.configuration.architecture}"
    traced = trace(student, precision) if traced is None else traced
    model = translate(traced, name, weights, precision, outputs_of(student.axes))
    model.producer_name = "painn-deploy"
    model.doc_string = "Atomic energies, forces and virials of a PaiNN student; see the metadata."
    for key, value in {**metadata, **({"axes": student.axes} if student.axes else {}), "units": dict(UNITS)}.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    check_contract(model, precision, student.axes)
    return model


def check_contract(
    model: onnx.ModelProto, precision: str = "fp32", axes: Mapping[str, int] = MappingProxyType({})
) -> None:
    """Hold a model against the graph contract: names, types, shapes, opset, operators, and that ONNX accepts it.

    Args:
        model: the graph.
        precision: of it; all but `fp64` have the same types at the boundary.
        axes: of its further outputs, see `painn_deploy.export.fields.outputs_of`.

    Raises:
        ExportError: naming what differs, and what to do.
    """
    names = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
    boundary = ("input", INPUTS, model.graph.input), ("output", outputs_of(axes), model.graph.output)
    for what, fields, values in boundary:
        if [f.name for f in fields] != [v.name for v in values]:
            raise _broken(f"its {what}s are {[v.name for v in values]}, not {[f.name for f in fields]}")
        for field, value in zip(fields, values, strict=True):
            tensor = value.type.tensor_type
            shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
            wanted = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(field.dtype_in(precision)))
            if shape != field.shape or tensor.elem_type != wanted:
                given = names.get(tensor.elem_type, "of no type")
                raise _broken(f"the {what} {field.name} is {given} {shape}, not {names[wanted]} {field.shape}")
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        raise _broken(f"its opsets by domain are {opsets}, not {OPSET} of the default domain alone")
    operators = Counter(node.op_type for node in model.graph.node)
    if found := [name for name in operators if name.startswith(FORBIDDEN)]:
        raise _broken(f"it holds {', '.join(found)}, which no engine runs in a fixed order and shape")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise _broken(f"ONNX refuses it: {' '.join(str(error).split())}") from error


def axes_of(model: onnx.ModelProto) -> dict[str, int]:
    """Lengths of the axes of a graph's further outputs, as its metadata name them."""
    found = [entry.value for entry in model.metadata_props if entry.key == "axes"]
    return dict(json.loads(found[0])) if found else {}


def _broken(why: str) -> ExportError:
    return ExportError(
        f"The ONNX graph breaks the graph contract: {why}. Export the student again and use the graph as it is "
        "written; if it was used so, this is a fault of the export: report it with the student's configuration."
    )
