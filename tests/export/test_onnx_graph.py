from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from onnx import numpy_helper

from painn_deploy.calibration.accuracy.parity import check_parity
from painn_deploy.export import load_student
from painn_deploy.export.errors import ExportError, ParityError
from painn_deploy.export.fields import INPUTS, OUTPUTS, GraphInputs, GraphOutputs
from painn_deploy.export.graph.onnx_graph import check_contract, export_onnx, trace
from painn_deploy.export.graph.products import weight_products
from painn_deploy.runtime.matrix import graph_inputs
from tests import students


def runner(model: onnx.ModelProto):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda inputs: GraphOutputs(*session.run([f.name for f in OUTPUTS], inputs._asdict()))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> onnx.ModelProto:
    return export_onnx(load_student(checkpoint), {"cutoff": 4.0, "architecture": "any"})


def test_the_graph_keeps_the_contract(model: onnx.ModelProto) -> None:
    check_contract(model)
    assert [i.name for i in model.graph.input] == [f.name for f in INPUTS]
    operators = Counter(node.op_type for node in model.graph.node)
    assert not [name for name in operators if name.startswith(("Scatter", "NonZero", "Shape", "Range", "Loop", "If"))]
    assert model.opset_import[0].version == 18
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["cutoff"] == "4.0"
    assert '"forces": "eV/Angstrom"' in metadata["units"]


def test_a_graph_that_breaks_the_contract_is_refused(model: onnx.ModelProto) -> None:
    one, other = list({p.contracted: p for p in weight_products(model)}.values())[:2]  # a weight of another length
    product = next(index for index, node in enumerate(model.graph.node) if node.name == one.name)
    for damage, message in [
        (lambda m: setattr(m.graph.output[1], "name", "force"), r"its outputs are \['atomic_energies', 'force'"),
        (
            lambda m: m.graph.input[4].ClearField("type"),
            r"input mask is undefined \(\), not float \('atoms', 'slots'\)",
        ),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 7), "input atomic_numbers is int64"),
        (lambda m: setattr(m.graph.input[1].type.tensor_type.shape.dim[0], "dim_value", 7), "displacements is float"),
        (lambda m: setattr(m.opset_import[0], "version", 17), "its opsets by domain are {'': 17}, not 18"),
        (lambda m: setattr(m.graph.node[0], "op_type", "NonZero"), "it holds NonZero"),
        # what the checker finds, what shape inference finds, and what the reader of tensors finds
        (lambda m: setattr(m.graph.node[0], "op_type", "Multiply"), "ONNX refuses it: .*No Op registered for Multiply"),
        (lambda m: m.graph.node.pop(0), "ONNX refuses it: .*is not output of any previous nodes"),
        (lambda m: m.graph.node[product].input.__setitem__(1, other.weight), "ONNX refuses it: .*Incompatible dim"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "ONNX refuses it: .*data type"),
    ]:
        broken = onnx.ModelProto()
        broken.CopyFrom(model)
        damage(broken)
        with pytest.raises(ExportError, match=rf"breaks the graph contract: .*{message}.* Export the student again"):
            check_contract(broken)


def test_every_epsilon_is_in_the_graph(painn: Path) -> None:
    """General exporters delete additions of 1e-8; without it isolated atoms give NaN."""
    student = load_student(painn)
    model = export_onnx(student, {})
    added = {name for node in model.graph.node if node.op_type == "Add" for name in node.input}
    scalars = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name in added]
    epsilons = [a for a in scalars if a.size == 1 and a.item() == np.float32(student.configuration.epsilon)]
    assert len(epsilons) == 1
    name = next(t.name for t in model.graph.initializer if numpy_helper.to_array(t).ravel()[:1] == epsilons[0].ravel())
    uses = sum(name in node.input for node in model.graph.node if node.op_type == "Add")
    assert uses == student.configuration.num_interactions


def test_the_graph_gives_the_student_s_forces(model: onnx.ModelProto, checkpoint: Path) -> None:
    student = load_student(checkpoint, dtype=torch.float64)
    worst = check_parity(runner(model), student, [[a] for a in students.zoo().values()])
    assert 0 < worst["forces"] < 3e-5
    assert 0 < worst["atomic_energies"] < 1e-5
    check_parity(runner(model), student)


@pytest.mark.parametrize("case", ["one atom, one slot", "one slot", "5,000 atoms", "crowded"])
def test_shapes_that_were_never_traced(model: onnx.ModelProto, checkpoint: Path, case: str) -> None:
    rng = np.random.default_rng(0)
    large = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((10, 10, 7))[:5000]
    large.numbers = rng.choice([1, 6, 8], len(large))
    large.positions += rng.normal(0, 0.1, large.positions.shape)
    structures: list[Atoms] = {
        "one atom, one slot": [Atoms("O")],
        "one slot": [Atoms("CO", [[0, 0, 0], [0, 0, 1.2]])],
        "5,000 atoms": [large],
        "crowded": [students.perturbed(bulk("C", "diamond", a=2.4))],
    }[case]
    student = load_student(checkpoint, dtype=torch.float64)
    slots = graph_inputs(structures, 4.0).mask.shape[1]
    assert slots == 1 if "one slot" in case else slots > 10
    check_parity(runner(model), student, [structures])


def test_the_gate_stops_a_graph_without_its_epsilon(painn: Path) -> None:
    model = export_onnx(load_student(painn), {})
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size == 1 and array.item() == np.float32(1e-8):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(array), tensor.name))
    with pytest.raises(ParityError, match=r"forces differ.*epsilon.*No engine was written"):
        check_parity(runner(model), load_student(painn, dtype=torch.float64))


def test_the_gate_stops_wrong_forces_and_unmasked_padding(painn: Path) -> None:
    run = runner(export_onnx(load_student(painn), {}))
    student = load_student(painn, dtype=torch.float64)

    def slightly_wrong(inputs: GraphInputs) -> GraphOutputs:
        outputs = run(inputs)
        return outputs._replace(forces=outputs.forces + np.float32(4e-5))

    def unmasked(inputs: GraphInputs) -> GraphOutputs:
        return run(inputs._replace(mask=np.ones_like(inputs.mask)))

    for engine in (slightly_wrong, unmasked):
        with pytest.raises(ParityError, match="tolerance"):
            check_parity(engine, student)


@pytest.mark.parametrize("kind", ["painn", "distiller"])
def test_a_read_out_without_a_hidden_layer(tmp_path: Path, kind: str) -> None:
    """Its gradient is the same row for every atom: a constant that must still have every atom's row."""
    from safetensors.torch import load_file, save_file

    path = students.write(tmp_path, kind)
    prefix = {"painn": "output_modules.0.outnet", "distiller": "energy_head"}[kind]
    weights = {key: value for key, value in load_file(path).items() if not key.startswith(prefix)}
    save_file(weights | students._layers(torch.Generator().manual_seed(1), prefix, [16, 1]), path)
    run = runner(export_onnx(load_student(path), {}))
    check_parity(run, load_student(path, dtype=torch.float64), [[a] for a in students.zoo().values()])


def test_a_student_too_steep_for_float32_is_not_deployed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = students.write(tmp_path, "distiller")
    steep = {k: 1e4 * v if "rbf_to_scalar" in k else v for k, v in load_file(path).items()}
    save_file(steep, path)
    with pytest.raises(ParityError, match="too steep for float32"):
        check_parity(runner(export_onnx(load_student(path), {})), load_student(path, dtype=torch.float64))


def test_only_a_frozen_float32_student_is_exported(painn: Path) -> None:
    with pytest.raises(ExportError, match="float32"):
        export_onnx(load_student(painn, dtype=torch.float64), {})
    with pytest.raises(ExportError, match="frozen"):
        export_onnx(load_student(painn).requires_grad_(), {})
    with pytest.raises(ExportError, match="frozen float64 student is exported in fp64"):
        export_onnx(load_student(painn), {}, "fp64")


def test_a_trace_serves_weights_that_change_in_place(checkpoint: Path) -> None:
    student = load_student(checkpoint)
    before, traced = export_onnx(student, {}), trace(student)
    generator = torch.Generator().manual_seed(1)
    state = {name: tensor + 0.01 * torch.rand(tensor.shape, generator=generator)
             for name, tensor in student.state_dict().items()}  # fmt: skip
    student.load_state_dict(state)
    after = export_onnx(student, {}, traced=traced)
    assert after == export_onnx(student, {})
    assert after != before
