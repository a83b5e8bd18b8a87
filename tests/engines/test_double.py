"""Engines in double precision give what their student gives in float64, to 1e-9 eV/Å, and nothing takes their place."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch_sim
import typer
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from ase.optimize import BFGSLineSearch, LBFGSLineSearch
from safetensors.torch import load_file, save_file

from painn_deploy.calibration.accuracy.parity import check_parity
from painn_deploy.calibration.accuracy.reference import TorchCalculator
from painn_deploy.calibration.report.validation import Options, validate
from painn_deploy.engines import get_backend
from painn_deploy.export import load_student
from painn_deploy.export.bundle import Bundle, read_bundle
from painn_deploy.export.errors import (
    BundleError,
    DatasetError,
    EngineUnavailableError,
    ExportError,
    ParityError,
    ShapeError,
)
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.export.graph.onnx_graph import check_contract, export_onnx
from painn_deploy.export.manifest import MODEL, VALIDATION
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.runtime.torchsim import PaiNNModel
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.studies import line_searches
from tests import students
from tests.conftest import Peer

EXACT = 1e-9
"""eV and eV/Å, of every figure against a student in float64."""

CRYSTAL = students.perturbed(bulk("C", "diamond", a=3.57, cubic=True))


@pytest.fixture(scope="module", params=["onnxruntime", "inductor"])
def double(request: pytest.FixtureRequest, painn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("double")
    options = {"engines": [request.param], "precisions": ["fp64"], "structures": [students.water(), CRYSTAL]}
    (path,) = export_engines(painn, folder, **options)
    assert path.name == f"painn-{request.param}-fp64.engine"
    return path


@pytest.fixture
def calculator(double: Path) -> Iterator[PaiNNCalculator]:
    with PaiNNCalculator(double, skin=0.5) as opened:
        yield opened


@pytest.fixture(scope="module")
def exact(painn: Path) -> TorchCalculator:
    return TorchCalculator(load_student(painn, dtype=torch.float64))


def retyped(student: Student) -> bytes:
    """The graph of a student in float32 with its types widened: what its constants lost stays lost."""
    model = export_onnx(student, {})
    widened = onnx.numpy_helper.from_array
    double_type, single_type = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    for tensor in list(model.graph.initializer):
        if tensor.data_type == single_type:
            tensor.CopyFrom(widened(onnx.numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == single_type:
            value.type.tensor_type.elem_type = double_type
    check_contract(model, "fp64")
    return model.SerializeToString()


def test_every_number_of_the_graph_is_double(double: Path) -> None:
    model = onnx.load_from_string(read_bundle(double).file(MODEL))
    check_contract(model, "fp64")
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert types == {onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64}, "a constant in float32 would be off by 1e-7"
    casts = [node.name for node in model.graph.node if node.op_type == "Cast"]
    assert not casts
    with pytest.raises(ExportError, match="displacements is double.*not float"):
        check_contract(model)


def test_it_gives_what_a_peer_computed_in_float64(peer: Peer, tmp_path: Path) -> None:
    """SchNetPack's own PaiNN and the distiller's own code, whose arithmetic shares nothing with ours."""
    structures = [atoms for _, atoms, _ in peer.systems]
    few = [structures[0], structures[-1]]
    (path,) = export_engines(peer.student, tmp_path, precisions=["fp64"], structures=few)
    with PaiNNCalculator(path) as calculator:
        for (system, _, want), got in zip(peer.systems, calculator.calculate_batch(structures), strict=True):
            assert abs(got["energy"] - want["energy"]) < EXACT * len(want["numbers"]), system
            np.testing.assert_allclose(got["forces"], want["forces"], rtol=0, atol=EXACT, err_msg=system)


def test_a_structure_that_moves_and_a_batch_of_them_are_exact(
    calculator: PaiNNCalculator, exact: TorchCalculator
) -> None:
    frames = [students.perturbed(CRYSTAL, seed, 0.02) for seed in range(4)]
    mixed = [*frames, students.water(), Atoms("O"), molecule("CH3CH2OH")]
    want = exact.calculate_batch(mixed)
    for atoms, result in zip(mixed, want, strict=True):
        calculator.calculate(atoms)
        for name in ("energies", "forces", *(("stress",) if atoms.pbc.any() else ())):
            np.testing.assert_allclose(calculator.results[name], result[name], rtol=0, atol=EXACT)
            assert calculator.results[name].dtype == np.float64
    for got, result in zip(calculator.calculate_batch(mixed), want, strict=True):
        np.testing.assert_allclose(got["forces"], result["forces"], rtol=0, atol=EXACT)
    assert calculator.neighbour_list.updates > 0
    assert calculator.engine_info["precision"] == "fp64"


def test_torchsim_gets_it_exact(double: Path, exact: TorchCalculator) -> None:
    structures = [students.perturbed(CRYSTAL, seed) for seed in range(2)]
    model = PaiNNModel(double)
    state = torch_sim.io.atoms_to_state(structures, torch.device("cpu"), torch.float64)
    want = np.concatenate([result["forces"] for result in exact.calculate_batch(structures)])
    np.testing.assert_allclose(model(state)["forces"].numpy(), want, rtol=0, atol=EXACT)


def test_forces_are_the_slope_of_the_energy_to_nine_digits(calculator: PaiNNCalculator) -> None:
    """What phonons and finite differences are made of: float32 leaves four digits of such a slope."""
    atoms, step = students.perturbed(molecule("CH3CH2OH")), 1e-4
    atoms.calc = calculator
    forces, slopes = atoms.get_forces(), []
    for sign in (1, -1, 2, -2):
        moved = atoms.copy()
        moved.positions[0, 0] += sign * step
        moved.calc = calculator
        slopes.append(moved.get_potential_energy())
    slope = (8 * (slopes[0] - slopes[1]) - (slopes[2] - slopes[3])) / (12 * step)
    assert abs(slope + forces[0, 0]) < 1e-8 * max(1.0, np.abs(forces).max())


@pytest.mark.parametrize(
    ("optimiser", "name", "fmax"),
    [
        *((kind, name, 1e-4) for kind in (LBFGSLineSearch, BFGSLineSearch) for name in ("H2O", "CH3OH")),
        *((line_searches.OPTIMISERS["GPMin"], name, 1e-4) for name in ("H2O", "NH3")),
    ],
)
def test_field_14_line_searches_converge(optimiser: type, name: str, fmax: float, own_double: Path) -> None:
    with PaiNNCalculator(own_double, threads=1) as calculator:
        atoms = students.perturbed(molecule(name), 1, 0.05)
        atoms.calc = calculator
        assert optimiser(atoms, logfile=None).run(fmax=fmax, steps=100)
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() <= fmax


@pytest.fixture(scope="module")
def own_double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    structures = [students.perturbed(molecule(name)) for name in ("H2O", "CH3OH")]
    (path,) = export_engines("student:base", tmp_path_factory.mktemp("own"), precisions=["fp64"], structures=structures)
    return path


def test_arrays_of_the_other_type_are_refused(double: Path, bundle: Path) -> None:
    with PaiNNCalculator(double) as wide, PaiNNCalculator(bundle) as narrow:
        single, exact = (graph_inputs([students.water()], 4.0, kind) for kind in (np.float32, np.float64))
        with pytest.raises(ShapeError, match="displacements is float32.*contiguous float64"):
            wide.run_graph(single)
        with pytest.raises(ShapeError, match="displacements is float64.*contiguous float32"):
            narrow.run_graph(exact)


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_both_tensorrts_say_why_they_have_none(engine: str, painn: Path, tmp_path: Path) -> None:
    """Before it is looked whether they are installed."""
    with pytest.raises(ExportError, match=f"{engine} has no fp64; .* 32 bits.*have fp64: onnxruntime, inductor"):
        export_engines(painn, tmp_path, engines=[engine], precisions=["fp64"])
    assert not list(tmp_path.iterdir())


def test_a_gpu_tf32_and_a_radial_table_are_refused_with_it(painn: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="CPU alone, and not on cuda"):
        export_engines(painn, tmp_path, precisions=["fp64"], device="cuda")
    with pytest.raises(ExportError, match="Leave out --radial-table"):
        export_engines(painn, tmp_path, precisions=["fp64"], radial_table=True)
    with pytest.raises(ExportError, match="Leave out --tf32"):  # whatever the engine does on a GPU
        export_engines(painn, tmp_path, engines=["inductor"], precisions=["fp32", "fp64"], tf32=True)


@pytest.mark.parametrize("double", ["onnxruntime"], indirect=True)
def test_it_is_opened_on_a_cpu_whatever_else_there_is(double: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend("onnxruntime")
    monkeypatch.setattr(type(backend), "devices", lambda _: ("cuda:0", "cpu"))
    with pytest.raises(EngineUnavailableError, match=r"fp64, which runs on the CPU alone, and not on 'cuda:0'"):
        PaiNNCalculator(double, device="cuda:0")
    session = backend.open(read_bundle(double))
    assert session.info["device"] == "cpu"


def test_auto_never_chooses_it(painn: Path, tmp_path: Path) -> None:
    structures = [students.water(seed) for seed in range(25)]
    (path,) = export_engines(painn, tmp_path, precisions=["auto"], structures=structures)
    tried = {row["precision"] for row in json.loads((path / VALIDATION).read_text())["chosen_from"]}
    assert tried == {"fp32", "fp16", "int8"}


@pytest.mark.parametrize("double", ["onnxruntime"], indirect=True)
def test_a_manifest_that_says_fp64_of_another_graph_is_refused(double: Path, bundle: Path, tmp_path: Path) -> None:
    for source, other, name in ((double, bundle, "narrow"), (bundle, double, "wide")):
        held = read_bundle(source)
        made = Bundle.in_memory(held.manifest, {MODEL: read_bundle(other).file(MODEL)})
        with pytest.raises(BundleError, match="says another .*precision"):
            read_bundle(made.write(tmp_path / f"{name}.engine").path)


def test_a_graph_that_was_widened_from_float32_does_not_pass(painn: Path) -> None:
    student = load_student(painn, dtype=torch.float64)
    session = onnxruntime.InferenceSession(retyped(load_student(painn)), providers=["CPUExecutionProvider"])

    def run(inputs: GraphInputs) -> GraphOutputs:
        return GraphOutputs(*session.run(None, inputs._asdict()))

    with pytest.raises(ParityError, match="computes in float32"):
        check_parity(run, student, precision="fp64")


@pytest.mark.parametrize("double", ["onnxruntime"], indirect=True)
def test_validation_finds_an_engine_that_is_no_more_exact_than_float32(
    double: Path, painn: Path, tmp_path: Path
) -> None:
    held = read_bundle(double)
    files = {MODEL: retyped(load_student(painn))}
    lying = Bundle.in_memory(held.manifest, files).write(tmp_path / "lying.engine")
    options = Options(structures=None, physics=False)
    sound, found = validate([double, lying.path], painn, options)
    assert not sound.failures
    assert sound.accuracy.force_rmse < EXACT
    assert any("it computes in less" in failure for failure in found.failures)


def test_a_student_that_single_precision_cannot_hold_is_served_in_fp64(tmp_path: Path) -> None:
    """A right student is not condemned for what another precision would make of it."""
    path = steep(tmp_path)
    structures = [students.perturbed(molecule(name)) for name in ("H2O", "CH3OH")]
    with pytest.raises(DatasetError, match="in float32 are over"):
        export_engines(path, tmp_path / "single", structures=structures)
    (made,) = export_engines(path, tmp_path / "double", precisions=["fp64"], structures=structures)
    want = TorchCalculator(load_student(path, dtype=torch.float64)).calculate_batch(structures)
    with Evaluator(made) as evaluator:
        for got, result in zip(evaluator.calculate_batch(structures), want, strict=True):
            scale = np.abs(result["forces"]).max()
            np.testing.assert_allclose(got["forces"], result["forces"], rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("factor", [2e6, 1e9])
def test_a_right_engine_of_a_steep_student_is_not_refused_for_its_last_digits(factor: float, tmp_path: Path) -> None:
    """The energy of an atom alone is the same everywhere, and far from the origin 1e-14 Å is nowhere else."""
    student = load_student(steep(tmp_path, factor), dtype=torch.float64)
    far = students.perturbed(molecule("C6H6"))
    far.positions += 1e4
    batches = [[Atoms("O")], [far], [students.water()]]
    session = onnxruntime.InferenceSession(export_onnx(student, {}, "fp64").SerializeToString())

    def run(inputs: GraphInputs, off: float = 0.0) -> GraphOutputs:
        energies, forces, virials = session.run(None, inputs._asdict())
        return GraphOutputs(energies * (1 + off), forces * (1 + off), virials)

    assert check_parity(run, student, batches, precision="fp64")["structures"] == 3
    with pytest.raises(ParityError, match="computes in float32"):
        check_parity(lambda inputs: run(inputs, 1e-8), student, batches, precision="fp64")


def test_validation_excuses_what_symmetry_leaves_undefined_and_nothing_else(tmp_path: Path) -> None:
    """The distiller's |v| has a cusp: forces on perfectly symmetric molecules are rounding, in float64 as in any."""
    reference = students.write(tmp_path, "distiller")
    structures = [molecule("CH4"), molecule("CO2"), *(students.perturbed(molecule("CH3OH"), seed) for seed in range(3))]
    write(tmp_path / "frames.extxyz", structures)
    (path,) = export_engines(reference, tmp_path, precisions=["fp64"], structures=tmp_path / "frames.extxyz")
    (found,) = validate([path], reference, Options(structures=tmp_path / "frames.extxyz", physics=False))
    assert not found.failures
    assert {each.structure for each in found.left_out} <= {"CH4", "CO2"}
    assert all("in float64 are over 10 meV/Å" in each.reason for each in found.left_out)
    assert found.float32.force_rmse > 1e-8, "the student in float32 is no student in float64"
    assert found.accuracy.force_max < EXACT or found.exact > EXACT


def steep(folder: Path, factor: float = 2e6) -> Path:
    """A student whose atomic energies are large and cancel, so that float32 has few digits left of their slopes."""
    path = students.write(folder, "painn")
    weights = load_file(path)
    weights["output_modules.0.outnet.1.weight"] *= factor
    save_file(weights, path)
    return path


def test_the_study_of_line_searches_counts_what_converges(own_double: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line_searches.study([own_double], optimiser=["LBFGSLineSearch"], molecules=1, reference="student:base")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| LBFGSLineSearch")]
    assert [row.split("|")[3].strip() for row in rows] == ["1 of 1", "1 of 1"]
    with pytest.raises(typer.BadParameter, match="none of LBFGSLineSearch"):
        line_searches.study([own_double], optimiser=["Newton"])


def test_a_relaxation_that_fails_is_counted_and_not_raised(own_double: Path) -> None:
    def hopeless(*_: object, **__: object) -> object:
        return SimpleNamespace(nsteps=3, run=lambda **_: 1 / 0)

    with PaiNNCalculator(own_double) as calculator:
        atoms = molecule("H2O")
        atoms.calc = calculator
        found = line_searches.relaxed(atoms, hopeless, 1e-4, 10)
    assert not found.converged
    assert found.steps == 3
    assert np.isnan(found.force)
