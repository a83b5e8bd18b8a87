"""Everything that SchNetPack can vary in a PaiNN, against SchNetPack itself, which the tests install and run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export import load_student
from painn_deploy.export.checkpoint import load_checkpoint
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError, ConfigurationError, PaiNNDeployError
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import convert_schnetpack, export_engines
from painn_deploy.scripts.commands.convert import convert_checkpoint
from tests.export.originals.installed import run, written

PEER = Path(__file__).with_name("schnetpack_peer.py")
UNITS = {"energy_unit": "kcal/mol", "length_unit": "Bohr"}
OPTIONS = ("--energy-unit", "kcal/mol", "--length-unit", "Bohr")
KCAL = Declaration(**UNITS)
KEYS = {"several outputs": "U0", "scaled to another name": "energy_3"}
CRYSTALS = 3
"""Of the structures, the last."""


@pytest.fixture(scope="session")
def made(schnetpack_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every variant, as SchNetPack writes them, and what SchNetPack computes from them."""
    return written(schnetpack_environment, PEER, tmp_path_factory.mktemp("schnetpack_variants"))


@pytest.fixture(scope="session")
def peer(made: Path) -> Mapping[str, np.ndarray]:
    with np.load(made / "peer.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def structures(peer: Mapping[str, np.ndarray]) -> list[Atoms]:
    split = np.cumsum(peer["sizes"])[:-1]
    parts = zip(np.split(peer["numbers"], split), np.split(peer["positions"], split), strict=True)
    cells = zip(peer["cells"], peer["pbc"], strict=True)
    return [Atoms(*atoms, cell=cell, pbc=pbc) for atoms, (cell, pbc) in zip(parts, cells, strict=True)]


def apart(student: Student, structures: list[Atoms], peer: Mapping[str, np.ndarray], name: str) -> tuple[float, ...]:
    """By how much energies (eV), forces (eV/Å) and the crystals' stresses (eV/Å³) differ at most."""
    results = reference_results(student, structures)
    forces = np.concatenate([result["forces"] for result in results])
    assert np.abs(peer[f"{name}/forces"]).max() > 0.05
    voigt = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    stresses = [np.array([matrix[at] for at in voigt]) for matrix in peer[f"{name}/stresses"]]
    pairs = (
        ([result["energy"] for result in results], peer[f"{name}/energies"]),
        (forces, peer[f"{name}/forces"]),
        ([result["stress"] for result in results[-CRYSTALS:]], stresses),
    )
    return tuple(float(np.abs(np.asarray(got) - np.asarray(want)).max()) for got, want in pairs)


VARIANTS = (
    *("plain", "mollifier", "switch", "switch without attribute", "switch with buffer"),
    *("trained gaussians", "late gaussians", "centred gaussians", "trained centred gaussians", "bessel"),
    *("shared interactions", "shared filters", "all shared", "one interaction"),
    *("softplus", "softplus module", "silu module"),
    *("one layer", "four layers", "wide layers", "even layers"),
    *("mean", "references", "several offsets", "nuclear embedding", "short references", "no mean of structures"),
    *("switched off", "scaled", "scaled by one", "scaled to another name", "several outputs", "charges"),
    *("repulsion", "repulsion, cosine", "repulsion, mollifier", "repulsion, switch", "repulsion twice"),
    *("repulsion in another unit", "unfaded beside a switch", "response"),
)
JUMPS = "has no cutoff function: energies jump where a pair comes into reach"
REMARKS = {
    "repulsion": (JUMPS,),
    "unfaded beside a switch": (JUMPS,),
    "short references": ("end at Z = 19",),
    "switched off": ("switched off in the file",),
    "several outputs": ("'gap' of Atomwise", "'dipole_moment' of DipoleMoment", "'polarizability' of Polarizability"),
    "charges": ("'dipole_moment', 'partial_charges' of DipoleMoment", "'energy_q' of EnergyCoulomb"),
    "repulsion in another unit": ("multiplies charges by 0.6244 eV Å in the declared units, and nature by 14.4",),
}
SCRIPTED = ("mollifier", "softplus", "silu module", "switch with buffer", "repulsion", "repulsion, switch", "scaled")
TASKS = ("softplus module", "repulsion, mollifier", "mean", "several outputs", "unfaded beside a switch")
FILES = (
    *(f"{name}.best_model" for name in VARIANTS),
    *(f"{name}.pt" for name in SCRIPTED),
    *(f"{name}.{kind}" for name in TASKS for kind in ("task", "ckpt")),
)


@pytest.mark.parametrize("file", FILES)
def test_energies_forces_and_stresses_are_schnetpack_s_own(
    made: Path, peer: Mapping[str, np.ndarray], structures: list[Atoms], file: str
) -> None:
    name = file.rpartition(".")[0]
    declared = Declaration(**UNITS, energy_key=KEYS.get(name))
    student, checkpoint = load_checkpoint(made / file, dtype=torch.float64, declared=declared)
    assert max(apart(student, structures, peer, name)) < 1e-9
    for said, wanted in zip(checkpoint.remarks, REMARKS.get(name, ()), strict=True):
        assert wanted in said


def test_every_variant_that_schnetpack_ran_is_held_against_it(made: Path) -> None:
    suffixes = (".best_model", ".pt", ".task", ".ckpt")
    written = {path.name for path in made.iterdir() if path.suffix in suffixes and ", weights" not in path.name}
    assert written == set(FILES)


@pytest.mark.parametrize("name", ["repulsion, mollifier", "mean"])
def test_weights_alone_show_cutoff_function_and_repulsion(
    made: Path, peer: Mapping[str, np.ndarray], structures: list[Atoms], tmp_path: Path, name: str
) -> None:
    (path := tmp_path / "weights.ckpt").write_bytes((made / f"{name}, weights.ckpt").read_bytes())
    student, checkpoint = load_checkpoint(path, dtype=torch.float64, declared=KCAL)
    assert 1e-9 < apart(student, structures, peer, name)[1] < 1e-3  # of the epsilon, which nothing says
    assert "activation silu, epsilon 1e-8" in checkpoint.remarks[0]
    assert ("CosineCutoff" in checkpoint.remarks[0]) == (name == "mean")  # a switch has tensors of its own
    configuration = student.configuration.as_dict() | {"epsilon": 2e-8, "activation": "silu"}
    path.with_suffix(".json").write_text(json.dumps(configuration))
    student, checkpoint = load_checkpoint(path, dtype=torch.float64, declared=KCAL)
    assert max(apart(student, structures, peer, name)) < 1e-9
    assert "silu" not in checkpoint.remarks[0]
    assert ("ZBLRepulsionEnergy, taken to be" in checkpoint.remarks[1]) == (name != "mean")
    path.with_suffix(".json").write_text(json.dumps(configuration | {"repulsion": "switch"}))
    with pytest.raises(ConfigurationError, match="has repulsion = 'switch', and the tensors (None|'mollifier')"):
        load_student(path, declared=KCAL)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("softplus module", "an activation's numbers among them"),
        (
            "unfaded beside a switch",
            "without a cutoff function beside PaiNN's SwitchFunction: how far it reaches is not",
        ),
        ("several outputs", "4 read-outs among them: which is the energy is not said"),
    ],
)
def test_weights_alone_that_leave_the_model_open_are_refused(made: Path, name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_student(made / f"{name}, weights.ckpt", declared=KCAL)


EDITS: dict[str, tuple[dict[str, torch.Tensor | None], str | None]] = {
    "scale of one": ({"postprocessors.7.scale": torch.ones(())}, None),
    "another scale": (
        {"postprocessors.7.scale": torch.tensor(2.0)},
        "hold postprocessors.7.scale, whose meaning is not",
    ),
    "negative widths": ({"representation.radial_basis.widths": torch.full((6,), -1.5)}, None),
    "short references": ({"postprocessors.7.atomref": torch.arange(20.0)}, None),
    "table of references": ({"postprocessors.7.atomref": torch.ones(100, 1)}, "has 100 numbers in 2 dimensions"),
    "mean of two": ({"postprocessors.7.mean": torch.ones(2)}, "has 2 numbers in 1 dimensions"),
    "no exponents": ({"output_modules.1.exponents": None}, "ZBLRepulsionEnergy is incomplete"),
    "fewer exponents": ({"output_modules.1.exponents": torch.ones(3)}, "ZBLRepulsionEnergy is incomplete"),
    "unknown function": ({"output_modules.1.cutoff_fn.power": torch.ones(1)}, "ZBLRepulsionEnergy is incomplete"),
    "farther repulsion": (
        {"output_modules.1.cutoff_fn.cutoff": torch.tensor([9.0])},
        "reaches beyond PaiNN's messages",
    ),
    "two repulsions": ({"output_modules.5.a_pow": torch.ones(1)}, "1 read-outs among them and 2 repulsions: which is"),
    "input module": ({"input_modules.1.scale": torch.ones(1)}, "an input module has numbers of its own"),
    "no switch_off": ({"representation.cutoff_fn.switch_off": None}, "not those of a PaiNN"),
}


@pytest.mark.parametrize("name", EDITS)
def test_weights_alone_are_taken_for_nothing_that_they_are_not(made: Path, tmp_path: Path, name: str) -> None:
    changes, message = EDITS[name]
    state = torch.load(made / "repulsion, mollifier, weights.ckpt")["state_dict"]
    state |= {f"model.{key}": tensor for key, tensor in changes.items() if tensor is not None}
    for key in (key for key, tensor in changes.items() if tensor is None):
        del state[f"model.{key}"]
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    if message is not None:
        with pytest.raises(CheckpointError, match=message):
            load_student(tmp_path / "x.ckpt", declared=KCAL)
        return
    student, checkpoint = load_checkpoint(tmp_path / "x.ckpt", declared=KCAL)
    assert student.embedding.num_embeddings == (20 if name == "short references" else 100)
    assert ("Z = 19" in checkpoint.remarks[-1]) == (name == "short references")


REFUSED = {
    "activation": "activation of representation.* is softplus, and only silu and shifted_softplus",
    "module as activation": "activation of representation.* is Tanh, and only",
    "shape of softplus": r"ShiftedSoftplus with alpha and beta \[1.0, 2.0\], and only 1 and 1",
    "two activations": "different activations, shifted_softplus in repr.* and silu in output_modules.0.outnet",
    "activation at the end": "the last layer of output_modules.0.outnet has the activation SiLU",
    "switch off before on": "SwitchFunction falls from 7.5589 to 3.77945, not from a distance to a longer one",
    "attribute below switch": "PaiNN.cutoff is 3.77945 and its cutoff function ends at 7.5589",
    "attribute of numpy": "PaiNN.cutoff is numpy.*scalar, and no number of Python's nor a tensor",
    "representation": "the representation is SchNet, not PaiNN",
    "electrons": "reads more than atoms and positions: .*ElectronicEmbedding",
    "field": "input module StaticExternalFields is not known",
    "filter of short range": "input module FilterShortRange is not known",
    "epsilon": "no epsilon in common",
    "hook": r"representation.mixing.0 has _forward_hooks, functions that run beside it",
    "hook of the model": "the model has _forward_hooks",
    "backward hook": "the radial basis has _backward_hooks",
    "another forward": "the cutoff function has forward, functions that run beside it",
    "another call": "the cutoff function has _call_impl, functions that run beside it",
    "another postprocessing": "the model has postprocess, functions that run beside it",
    "hook of a postprocessor": "CastTo64 has _forward_hooks",
    "hook in TorchScript": "representation.mixing.0 has hooks, functions that run beside it",
    "average": "aggregated by avg, not by sum: the energy of two molecules far apart would not be the sum of theirs",
    "no aggregation": "aggregated by None, not by sum",
    "two numbers": "the energy has 2 outputs, not one",
    "another key": "no modules give the energy 'energy'; .* called: 'U0'. Say which is the energy with --energy-key",
    "key of a dipole": "'energy' comes from DipoleMoment, not from Atomwise alone: that is no energy",
    "charges": "comes from EnergyCoulomb, not from Atomwise alone: charges act on each other beyond the cutoff",
    "two read-outs": "'energy' adds up Atomwise, Atomwise, not one Atomwise and at most one ZBLRepulsionEnergy",
    "repulsion alone": "'energy' adds up ZBLRepulsionEnergy, not one Atomwise",
    "what is added is no output": "'energy' adds up what no output module gives",
    "one name twice": "several output modules give 'energy'",
    "representation written over": "an output module writes 'scalar_representation', which others read",
    "energy of atoms in its place": "several output modules give 'energy'",
    "numbers written over": "an output module writes '_atomic_numbers', which others read",
    "repulsion beyond": "ZBLRepulsionEnergy reaches to 9.07069 and PaiNN's messages to 7.5589: pairs .* are no edges",
    "unfaded repulsion beyond": "ZBLRepulsionEnergy reaches to 7.5589 and PaiNN's messages to 6.80301: pairs .* no",
    "forces of a part": "'forces' are the gradient of another sum than the energy 'energy': they disagree",
    "scaled energy": "scales the energy 'energy' and 'forces' differently: .* the energy is 2.5 times",
    "scaled forces": "scales the energy 'energy' and 'forces' differently: .* the energy is 0.4 times",
    "scaled energy and forces": "scales the energy 'energy' and 'forces' differently: .* the energy is 0.666667 times",
    "forces scaled by axes": "the forces 'forces' of the energy 'energy' comes from .* not by one number",
    "scaled by nothing": "comes from a ScaleProperty that scales no output, or not by one number",
    "mean of structures": "per structure and not per atom .*: it would depend on how many structures the atoms",
    "references of structures": "per structure and not per atom .*: it would depend on how many structures",
    "mean of two numbers": "gets a mean from AddOffsets that is no number",
    "references in a table": "gets atomic references from AddOffsets that are no row of numbers",
    "offsets that are removed": "the postprocessor RemoveOffsets is unknown",
    "integers": "the postprocessor CastMap makes int64",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_deployed_is_refused_by_name_with_the_reason(made: Path, name: str) -> None:
    with pytest.raises(PaiNNDeployError, match=REFUSED[name]):
        load_student(made / f"{name}.refused", declared=KCAL)


def test_everything_that_is_refused_has_a_message(made: Path) -> None:
    assert {path.stem for path in made.glob("*.refused")} == REFUSED.keys()


def test_wrong_equations_would_show(
    made: Path, peer: Mapping[str, np.ndarray], structures: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another cutoff function, another activation, splits exchanged, a repulsion left out: each moves forces far."""
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "mollifier": ("cosine", {}),
        "switch": ("mollifier", {"switch_on": None}),
    }
    for name, (kind, others) in changes.items():
        student = load_student(made / f"{name}.best_model", dtype=torch.float64, declared=KCAL)
        for key, value in {"cutoff_fn": kind, **others}.items():
            object.__setattr__(student.configuration, key, value)
        assert apart(student, structures, peer, name)[1] > 1e-3
    student = load_student(made / "plain.best_model", dtype=torch.float64, declared=KCAL)
    weight = student.get_parameter("message.0.2.weight")
    weight.copy_(torch.cat([weight.chunk(3)[i] for i in (1, 0, 2)]))
    assert apart(student, structures, peer, "plain")[1] > 1e-3


@pytest.mark.parametrize("name", ["repulsion, switch.best_model", "softplus.pt"])
def test_files_are_converted_and_become_engines(
    made: Path, peer: Mapping[str, np.ndarray], structures: list[Atoms], tmp_path: Path, name: str
) -> None:
    variant = name.rpartition(".")[0]
    convert_checkpoint(made / name, tmp_path / "student.safetensors", declared=KCAL)
    student = load_student(tmp_path / "student.safetensors", dtype=torch.float64)
    assert max(apart(student, structures, peer, variant)) < 1e-9
    (bundle,) = export_engines(made / name, tmp_path, precisions=["fp64"], structures=structures, declared=KCAL)
    with PaiNNCalculator(bundle) as calculator:
        results = calculator.calculate_batch(structures)
    forces = np.concatenate([result["forces"] for result in results])
    np.testing.assert_allclose(forces, peer[f"{variant}/forces"], rtol=0, atol=1e-8)


def test_the_converter_in_schnetpack_s_environment_says_the_same(
    made: Path, peer: Mapping[str, np.ndarray], structures: list[Atoms], schnetpack_environment: dict[str, str]
) -> None:
    names = ("switch", "softplus", "trained gaussians", "bessel", "four layers", "several offsets", "short references")
    code = f"""
import json, sys, torch
sys.path.insert(0, {str(Path(convert_schnetpack.__file__).parent)!r})
from pathlib import Path
from convert_schnetpack import converted, unit, write_safetensors
for name in sys.argv[2:]:
    path = Path(sys.argv[1], name + ".safetensors")
    model = torch.load(path.with_suffix(".best_model"), weights_only=False)
    tensors, configuration = converted(model.double(), "energy", unit("kcal/mol", "eV"), unit("Bohr", "Ang"))
    write_safetensors(path, tensors)
    path.with_suffix(".json").write_text(json.dumps(configuration))
"""
    done = run(schnetpack_environment, "-c", code, made, *names)
    assert done.returncode == 0, done.stderr
    for name in names:
        student = load_student(made / f"{name}.safetensors", dtype=torch.float64)
        assert max(apart(student, structures, peer, name)) < 1e-6  # its table of units is of another year than ours
        assert len(student.embedding.weight) == (20 if name == "short references" else 100)
