"""Checkpoints of PaiNN-model and cPaiNN give their own energies and forces; what cannot be deployed is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.physics import symmetry
from painn_deploy.calibration.physics.audit import References, prepare
from painn_deploy.export import load_student
from painn_deploy.export.checkpoint import load_checkpoint
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError, ConfigurationError, DeclarationError
from painn_deploy.export.model.student import Student
from painn_deploy.export.readers import dtu
from painn_deploy.export.units import energy_unit, length_unit
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.commands.convert import convert_checkpoint
from tests.export.originals.dtu_figures import FILES, Figures, largest_errors

CODES = ("dtu", "cpainn")
ELEMENTS = (1, 6, 7, 8, 11, 17, 26, 29, 78)


def model(code: str) -> Path:
    return FILES / code / "best_model.pth"


def loaded(path: Path, declared: Declaration | None = None) -> Student:
    return load_student(path, dtype=torch.float64, declared=declared)


def figures(code: str) -> Figures:
    return Figures.read(FILES / code / "figures.npz")


def changed(code: str, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The code's checkpoint after a change of what it holds, as it or what the change returns is saved."""
    content = torch.load(model(code), weights_only=False)
    written = change(content)
    path = folder / "best_model.pth"
    torch.save(content if written is None else written, path)
    return path


@pytest.mark.parametrize("code", CODES)
def test_energies_and_forces_are_its_own(code: str) -> None:
    held = figures(code)
    assert len(held.structures) == 10
    energy, force = largest_errors(loaded(model(code)), held)
    assert energy < 1e-9
    assert force < 1e-9


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    "wrong",
    [
        {"message": ("direction", "vector", "scalar")},
        {"message": ("scalar", "direction", "vector")},
        {"update": ("product", "vector", "scalar")},
        {"update": ("vector", "scalar", "product")},
        {"norms_first": False},
    ],
)
def test_another_order_of_splits_gives_other_forces(
    code: str, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtu, "ORDER", replace(dtu.ORDER, **wrong))
    assert largest_errors(loaded(model(code)), figures(code))[1] > 0.02


@pytest.mark.parametrize("name", ["update_U.bias", "update_V.bias", "filter_layer.bias"])
def test_each_bias_matters(name: str, tmp_path: Path) -> None:
    def without(content: dict[str, Any]) -> None:
        for key, tensor in content["model"].items():
            if key.endswith(name):
                tensor.zero_()

    assert largest_errors(loaded(changed("cpainn", tmp_path, without)), figures("cpainn"))[1] > 0.02


def test_stress_is_the_derivative_of_its_energy_and_twice_what_it_says() -> None:
    held = figures("cpainn")
    compared = 0
    for atoms, own, derived, result in zip(
        held.structures,
        held.others["stresses"],
        held.others["numerical_stresses"],
        reference_results(loaded(model("cpainn")), held.structures),
        strict=True,
    ):
        if atoms.pbc.all():
            np.testing.assert_allclose(result["stress"], derived, rtol=0, atol=1e-9)
            np.testing.assert_allclose(result["stress"][:3], 2 * np.diag(own), rtol=0, atol=1e-9)
            compared += 1
    assert compared == 5


def test_what_a_user_should_know_is_said() -> None:
    remarks = " ".join(load_checkpoint(model("cpainn"))[1].remarks)
    for words in ("eV", "charges and magnetic moments", "twice cPaiNN's", "biases to vectors"):
        assert words in remarks
    assert "Its cutoff" not in remarks
    remarks = " ".join(load_checkpoint(model("dtu"))[1].remarks)
    assert (
        f"Its cutoff, 4.5, is that of {model('dtu').with_name('arguments.json')}: the file does not say it." in remarks
    )


def test_without_biases_nothing_is_said_of_them(tmp_path: Path) -> None:
    def without(content: dict[str, Any]) -> None:
        for key, tensor in content["model"].items():
            if key.endswith(("update_U.bias", "update_V.bias")):
                tensor.zero_()

    path = changed("cpainn", tmp_path, without)
    assert "biases" not in " ".join(load_checkpoint(path)[1].remarks)


def test_the_audit_says_that_biases_of_vectors_break_rotation() -> None:
    student = load_student(model("cpainn"), dtype=torch.float64, declared=Declaration(species=ELEMENTS))
    known = References.of(student)
    energies, forces = symmetry.rotation(prepare(known.single, known, "fp32"))
    assert {finding.verdict for finding in (energies, forces)} == {"student: broken"}
    assert energies.student > 1e-3 * 1e3  # meV
    assert "lies in space" in energies.sentence


@pytest.mark.parametrize("code", CODES)
def test_it_can_be_converted(code: str, tmp_path: Path) -> None:
    convert_checkpoint(model(code), tmp_path / "student.safetensors")
    energy, force = largest_errors(loaded(tmp_path / "student.safetensors"), figures(code))
    assert energy < 1e-9
    assert force < 1e-9


@pytest.mark.parametrize("code", CODES)
def test_an_exported_engine_gives_its_own_forces(code: str, tmp_path: Path) -> None:
    held = figures(code)
    (bundle,) = export_engines(model(code), tmp_path, structures=held.structures)
    calculator = PaiNNCalculator(bundle)
    for atoms, energy, forces in zip(held.structures, held.energies, held.forces, strict=True):
        atoms.calc = calculator
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=1e-5)
        assert abs(atoms.get_potential_energy() - energy) < 1e-5 * len(atoms)


def test_units_of_the_owner_s_own_files_are_taken() -> None:
    declared = Declaration("kcal/mol", "Bohr")
    energy, length = energy_unit("kcal/mol"), length_unit("Bohr")
    student, held = loaded(model("cpainn"), declared), figures("cpainn")
    for atoms in held.structures:
        atoms.set_cell(atoms.cell.array * length)
        atoms.positions *= length
    scaled = Figures(
        held.structures, held.energies * energy, [forces * energy / length for forces in held.forces], held.others
    )
    assert student.configuration.cutoff == pytest.approx(4.5 * length)
    assert max(largest_errors(student, scaled)) < 1e-9
    assert max(largest_errors(loaded(model("cpainn"), Declaration("eV", "Ang")), figures("cpainn"))) < 1e-9


def test_there_is_one_energy() -> None:
    with pytest.raises(DeclarationError, match="one energy, 'energy'"):
        load_student(model("dtu"), declared=Declaration(energy_key="U0"))


def test_a_checkpoint_without_its_hyperparameters(tmp_path: Path) -> None:
    shutil.copy(model("dtu"), tmp_path)
    path = tmp_path / "best_model.pth"
    with pytest.raises(ConfigurationError, match=r'nothing says the cutoff.*best_model\.json.*\{"cutoff": 5\.0\}'):
        load_student(path)
    path.with_suffix(".json").write_text(json.dumps({"cutoff": 4.5, "node_size": 8, "species": ["H", "C", "O"]}))
    student = loaded(path)
    assert student.configuration.species == (1, 6, 8)
    assert largest_errors(student, figures("dtu"))[1] < 1e-9


def test_arguments_of_its_training_say_the_cutoff(tmp_path: Path) -> None:
    path = Path(shutil.copy(model("dtu"), tmp_path))
    (tmp_path / "arguments.toml").write_text('cutoff = 4.5\nnode_size = 8\ndataset = "set.traj"\n[other]\ncutoff = 9\n')
    assert loaded(path).configuration.cutoff == 4.5
    (tmp_path / "arguments.json").write_text('{"cutoff": 4.25, "initial_lr": 1e-4}')  # what the training itself wrote
    assert loaded(path).configuration.cutoff == 4.25
    path.with_suffix(".json").write_text('{"cutoff": 4.0}')  # an owner knows best
    assert loaded(path).configuration.cutoff == 4.0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("best_model.json", '{"cutoff": 5.0, "num_basis": 20}', "keys that say nothing of such a model: num_basis"),
        ("best_model.json", '{"cutoff": true}', "no distance"),
        ("best_model.json", '{"cutoff": "5"}', "no distance"),
        ("best_model.json", '{"cutoff": -1.0}', "no distance"),
        ("best_model.json", '{"cutoff": 5.0, "species": ["Xx"]}', "wrong kind"),
        ("arguments.json", '{"cutoff": 5.0, "node_size": 64}', "node_size = 64, and the weights of .* have 8"),
        ("arguments.json", '{"cutoff": 5.0, "num_interactions": 2}', "num_interactions = 2, and the weights .* have 3"),
        ("arguments.json", '{"cutoff": 5.0', "cannot be read"),
        ("arguments.toml", "cutoff = ", "cannot be read"),
        ("arguments.toml", "node_size = 8", "nothing says the cutoff"),
        # it would take gibibytes
        (
            "arguments.toml",
            ".".join(["a"] * 100_000) + " = 1",
            "cannot be read: .*: a line of it has more than 100 dots",
        ),
        ("arguments.toml", f"cutoff = {'9' * 400}", "no distance"),
        ("arguments.toml", f"cutoff = {'9' * 5_000}", "cannot be read"),
    ],
)
def test_what_is_wrong_beside_a_checkpoint(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(model("dtu"), tmp_path))
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_student(path)


def test_a_code_beside_that_is_not_the_file_s_own(tmp_path: Path) -> None:
    path = Path(shutil.copy(model("cpainn"), tmp_path))
    path.with_suffix(".json").write_text('{"code": "graph-pes"}')
    with pytest.raises(ConfigurationError, match="says code = 'graph-pes', and the file is one of PaiNN-model. Leave"):
        load_student(path)


def test_a_cutoff_beside_that_is_not_the_file_s_own(tmp_path: Path) -> None:
    path = Path(shutil.copy(model("cpainn"), tmp_path))
    path.with_suffix(".json").write_text('{"cutoff": 5.0}')
    with pytest.raises(ConfigurationError, match=r"disagrees: 4\.5 in .*pth, 5 in .*json"):
        load_student(path)


def test_weights_alone_could_be_of_two_codes(tmp_path: Path) -> None:
    path = changed("dtu", tmp_path, lambda content: content["model"])
    beside = path.with_suffix(".json")
    beside.write_text('{"cutoff": 4.5}')
    with pytest.raises(CheckpointError, match=r"PaiNN-model or by curator.*best_model\.json"):
        load_student(path)
    beside.write_text('{"cutoff": 4.5, "code": "PaiNN-model"}')
    assert largest_errors(loaded(path), figures("dtu"))[1] < 1e-9
    beside.write_text('{"code": "curator"}')
    with pytest.raises(CheckpointError, match=r"weights alone.*model_path/best_model"):
        load_student(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_a_wrapped_model_are_those_of_the_model_in_it(prefix: str, tmp_path: Path) -> None:
    def wrap(content: dict[str, Any]) -> None:
        content["model"] = {f"{prefix}{name}": tensor for name, tensor in content["model"].items()}

    assert max(largest_errors(loaded(changed("cpainn", tmp_path, wrap)), figures("cpainn"))) < 1e-9


def test_weights_alone_that_are_normalised_are_cpainn_s(tmp_path: Path) -> None:
    path = changed("cpainn", tmp_path, lambda content: content["model"])
    path.with_suffix(".json").write_text('{"cutoff": 4.5}')
    assert largest_errors(loaded(path), figures("cpainn"))[1] < 1e-9


def test_energies_that_are_not_normalised(tmp_path: Path) -> None:
    def switch_off(content: dict[str, Any]) -> None:
        content["model"]["normalization"] = torch.tensor(False)

    state, held = torch.load(model("cpainn"), weights_only=False)["model"], figures("cpainn")
    scale, mean = float(state["normalize_stddev"]), float(state["normalize_mean"])
    sizes = np.array([len(atoms) for atoms in held.structures])
    plain = Figures(held.structures, (held.energies - mean * sizes) / scale, [f / scale for f in held.forces], {})
    assert scale != 1
    assert mean != 0
    assert max(largest_errors(loaded(changed("cpainn", tmp_path, switch_off)), plain)) < 1e-9


def test_a_mean_for_a_structure_is_no_energy_of_atoms(tmp_path: Path) -> None:
    def whole(content: dict[str, Any], mean: float) -> None:
        content["model"]["atomwise_normalization"] = torch.tensor(False)
        content["model"]["normalize_mean"] = torch.tensor(mean)

    with pytest.raises(CheckpointError, match=r"-3\.5 to the energy of a structure whatever its size"):
        load_student(changed("cpainn", tmp_path, lambda content: whole(content, -3.5)))
    student = loaded(changed("cpainn", tmp_path, lambda content: whole(content, 0.0)))
    assert not student.atomic_references.any()
    assert largest_errors(student, figures("cpainn"))[1] < 1e-9


def put(name: str, tensor: torch.Tensor) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].__setitem__(name, tensor)


def drop(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for name in names:
            del content["model"][name]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("update_layers.1.update_U.bias"), r"lacks tensors .*: update_layers\.1\.update_U\.bias"),
        (drop("atom_embedding.weight"), r"lacks tensors .*: atom_embedding\.weight"),
        (drop("normalize_mean"), "not all that normalises its energies"),
        (put("linear_1.weight", torch.zeros(8, 8)), r"no place for: linear_1\.weight"),
        (
            put("message_layers.2.filter_layer.weight", torch.zeros(24, 20)),
            "num_interactions = 2, and the weights of .* have 3",
        ),
        (put("message_layers.0.filter_layer.weight", torch.zeros(24, 12)), r"\(24, 12\), and .* basis \(24, 20\)"),
        (put("normalize_stddev", torch.tensor(float("nan"))), "no finite number"),
        (put("normalize_mean", torch.zeros(2)), "no finite number"),
        (put("normalization", torch.tensor(1.0)), "FloatStorage, not truth values"),
        (put("normalization", torch.ones(2, dtype=torch.bool)), "2 truth values"),
        (lambda content: content["model"].__setitem__("extra", 3), "'extra' in its state dict is int"),
    ],
)
def test_what_is_not_of_such_a_model_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises((CheckpointError, ConfigurationError), match=message):
        load_student(changed("cpainn", tmp_path, change))


def test_a_checkpoint_of_the_version_between_both(tmp_path: Path) -> None:
    """PaiNN-model of 2022-10 normalises energies, and predicts no charges."""

    def older(content: dict[str, Any]) -> None:
        for name in [name for name in content["model"] if name.startswith("linear_")]:
            del content["model"][name]
        for name in [name for name in content if name.startswith("compute_")]:
            del content[name]

    path = changed("cpainn", tmp_path, older)
    student, made = load_checkpoint(path, dtype=torch.float64)
    assert largest_errors(student, figures("cpainn"))[1] < 1e-9
    assert "cPaiNN" not in " ".join(made.remarks)
