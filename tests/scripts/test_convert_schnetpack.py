"""A model that SchNetPack trained and saved, converted in SchNetPack's environment, gives SchNetPack's forces."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export import load_student
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.scripts import convert_schnetpack
from painn_deploy.scripts.benchmarks.contenders.schnetpack_contender import schnetpack, schnetpack_weights
from tests import students
from tests.export.originals.installed import run, written

PEER = Path(__file__).with_name("schnetpack_peer.py")
CONVERTER = Path(convert_schnetpack.__file__)
NAMES = ("H2O", "CH3CH2OH", "C6H6", "NH3", "CO")


@pytest.fixture(scope="session")
def trained(schnetpack_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(schnetpack_environment, PEER, tmp_path_factory.mktemp("trained"))


def convert(schnetpack_environment: dict[str, str], folder: Path, *changes: str) -> subprocess.CompletedProcess[str]:
    options = {"--energy-unit": "kcal/mol", "--length-unit": "Bohr", "--energy-key": "energy_U0"}
    options |= dict(zip(changes[::2], changes[1::2], strict=True))
    flat = [part for pair in options.items() for part in pair]
    return run(schnetpack_environment, CONVERTER, folder / "best_model", "-o", folder / "student.safetensors", *flat)


@pytest.mark.parametrize("basis", ["gaussian", "bessel"])
def test_energies_and_forces_are_schnetpack_s_own(
    trained: Path, schnetpack_environment: dict[str, str], basis: str
) -> None:
    done = convert(schnetpack_environment, trained / basis)
    assert done.returncode == 0, done.stderr
    configuration = json.loads((trained / basis / "student.json").read_text())
    assert configuration["cutoff"] == pytest.approx(4.0)
    assert (configuration["hidden_dim"], configuration["num_interactions"], configuration["num_rbf"]) == (24, 2, 10)
    student = load_student(trained / basis / "student.safetensors", dtype=torch.float64)
    assert student.configuration.epsilon == 2e-8
    with np.load(trained / basis / "peer.npz") as peer:
        sizes = np.cumsum([len(molecule(name)) for name in NAMES])[:-1]
        positions, forces = np.split(peer["positions"], sizes), np.split(peer["forces"], sizes)
        structures = [Atoms(molecule(n).numbers, p) for n, p in zip(NAMES, positions, strict=True)]
        # the file holds float32, into which the units were folded: every number of it is off by 6e-8 of itself
        for result, energy, force in zip(reference_results(student, structures), peer["energies"], forces, strict=True):
            assert np.abs(force).max() > 0.01
            np.testing.assert_allclose(result["forces"], force, rtol=0, atol=2e-6 * np.abs(force).max())
            assert abs(result["energy"] - energy) < 1e-5
            assert abs(energy) > 10  # the references are in it
    # our own reader of the very file that SchNetPack wrote: the same numbers, of which it rounds none
    declared = Declaration("kcal/mol", "Bohr", energy_key="energy_U0")
    read = load_student(trained / basis / "best_model", dtype=torch.float64, declared=declared)
    converted, wanted = student.state_dict(), read.state_dict()
    assert converted.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(converted[name], tensor, rtol=2e-7, atol=0)
    torch.testing.assert_close(student.atomic_references, read.atomic_references, rtol=1e-8, atol=0)


@pytest.mark.parametrize("given", [["H", "C"], ["H,C"], ["H", "--species", "C"]])
def test_elements_are_given_as_to_painn_deploy(
    trained: Path, schnetpack_environment: dict[str, str], given: list[str]
) -> None:
    folder = trained / "gaussian"
    command = (CONVERTER, folder / "best_model", "-o", folder / "species.safetensors", "--energy-key", "energy_U0")
    done = run(schnetpack_environment, *command, "--energy-unit", "eV", "--length-unit", "Ang", "--species", *given)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "species.json").read_text())["species"] == ["H", "C"]


def test_a_file_that_is_not_there_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    options = ("-o", tmp_path / "s.safetensors", "--energy-unit", "eV", "--length-unit", "Ang")
    done = run(dict(os.environ), CONVERTER, tmp_path / "gone", *options)
    assert done.returncode == 1
    assert "there is no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


REFUSED = {
    "m.output_modules[0].aggregation_mode = 'avg'": "aggregated by avg",
    "m.representation.cutoff_fn = torch.nn.Identity()": "the cutoff function Identity is none of CosineCutoff, ",
    "m.representation.radial_basis = torch.nn.Identity()": "the radial basis Identity is none of GaussianRBF, Gaussian",
    "m.representation = spk.representation.SchNet(24, 2, m.representation.radial_basis, "
    "m.representation.cutoff_fn)": "the representation is SchNet",
    "m.output_modules[0].outnet[0].activation = spk.nn.shifted_softplus": "activations shifted_softplus, silu: a ",
    "m.output_modules[0].outnet[0].activation = torch.nn.functional.gelu": "activations gelu, silu: only silu and ",
    "m.postprocessors[1].is_extensive = False": "per structure and not per atom",
    "m.postprocessors.append(spk.transform.ScaleProperty('energy_U0', scale=torch.tensor([2.0])))": "ScaleProperty "
    "scales 'energy_U0', which is not converted here: give the file itself to painn-deploy",
    "m.representation.electronic_embeddings.append(torch.nn.Identity())": "reads more than atoms and positions",
    "m.representation.mixing[0].epsilon = 1e-3": "different epsilons",
    "m.output_modules[0].output_key = 'U'": "no Atomwise module gives 'energy_U0'; those there give ['U']",
    "m.output_modules.append(spk.atomistic.Aggregation(['energy_U0'], 'energy_U0'))": "comes from Aggregation, "
    "not from Atomwise alone, which is not converted here: give the file itself to painn-deploy",
    "m.output_modules.append(spk.atomistic.Atomwise(24, output_key='x', per_atom_output_key='energy_U0'))": "several "
    "modules give 'energy_U0'",
    "m.output_modules.insert(0, spk.atomistic.Atomwise(24, 24, output_key='x', "
    "per_atom_output_key='scalar_representation'))": "Atomwise writes scalar_representation, which other modules read",
    "m.postprocessors.append(Own())": "Own is of __main__, and what it computes is not known",
    "m.representation.__class__ = type('PaiNN', (spk.representation.PaiNN,), {'__module__': 'mine'})": "PaiNN is of "
    "mine, and what it computes is not known",
    "m.representation.cutoff_fn.register_forward_hook(print)": "CosineCutoff has _forward_hooks",
    "m.representation.cutoff_fn.forward = torch.cos": "CosineCutoff has forward, which may change what it computes",
    "m.output_modules[0].outnet[0].activation = silu": "silu is of __main__",
    "m.input_modules.append(spk.atomistic.StaticExternalFields())": "input module StaticExternalFields is not known",
    "unit('calories', 'eV')": "'calories' is no unit that SchNetPack knows",
    "unit('kcal', 'eV')": "the unit 'kcal' is 2.61145e+22 eV",
    "unit('1e-9', 'Ang')": "the unit '1e-9' is 1e-09 Ang",
    "elements([['H,C', 'CL']])": "CL: no such element",
}


def test_what_changes_the_equations_is_refused(trained: Path, schnetpack_environment: dict[str, str]) -> None:
    code = f"""
import json, sys, torch, schnetpack as spk
sys.path.insert(0, {str(CONVERTER.parent)!r})
from convert_schnetpack import ConversionError, converted, elements, unit
class Own(torch.nn.Module):
    pass
def silu(x):
    return x
messages = dict()
for change in json.loads(sys.argv[2]):
    m = torch.load(sys.argv[1], weights_only=False)
    try:
        exec(change)
        converted(m, "energy_U0", 1.0, 1.0)
    except ConversionError as error:
        messages[change] = str(error)
print(json.dumps(messages))
"""
    done = run(schnetpack_environment, "-c", code, trained / "gaussian" / "best_model", json.dumps(list(REFUSED)))
    assert done.returncode == 0, done.stderr
    messages = json.loads(done.stdout.splitlines()[-1])
    for change, message in REFUSED.items():
        assert message in messages.get(change, "nothing was refused"), change


def test_schnetpack_s_calculator_is_timed_on_the_very_student(
    schnetpack_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", schnetpack_environment["PYTHONPATH"])
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    student = load_student(students.write(tmp_path, "painn"))
    zoo = students.zoo()
    structures = [zoo[name] for name in ("water", "ethanol", "triclinic")]
    with schnetpack(sys.executable, student) as peer:
        found = peer.whole(structures)
    wanted = reference_results(student, structures)
    for got, want in zip(found, wanted, strict=True):
        assert abs(got["energy"] - want["energy"]) < 1e-4
        np.testing.assert_allclose(got["forces"], want["forces"], rtol=0, atol=1e-4)


def test_another_epsilon_is_timed_and_other_variants_are_not(tmp_path: Path) -> None:
    student = load_student(students.write(tmp_path, "painn", epsilon=2e-8))
    assert isinstance(student, PaiNN)
    assert schnetpack_weights(student)["epsilon"] == 2e-8
    for name in students.VARIANTS.keys() - {"one interaction"}:
        student = load_student(students.write_variant(tmp_path, name))
        assert isinstance(student, PaiNN)
        with pytest.raises(PaiNNDeployError, match="its defaults elsewhere"):
            schnetpack_weights(student)


def test_a_python_without_schnetpack_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    student = load_student(students.write(tmp_path, "painn"))
    with pytest.raises(PaiNNDeployError, match="--schnetpack the Python"), schnetpack(sys.executable, student):
        pass
    with (
        pytest.raises(PaiNNDeployError, match="no architecture 'distiller'"),
        schnetpack(sys.executable, load_student(students.write(tmp_path, "distiller"))),
    ):
        pass
