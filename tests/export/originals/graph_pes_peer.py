"""What a graph-pes user has on disk, made by graph-pes itself, and the forces that graph-pes computes with it.

    python graph_pes_peer.py FOLDER

Writes FOLDER/structures.traj (Å), FOLDER/NAME.pt for the models below, FOLDER/NAME.npz with energies, forces and
stresses (eV and Å, float64) of those that can be deployed, and FOLDER/says.json with what else graph-pes says.

Of graph-pes's dependencies only torch, numpy, ase and vesin are here. The others' modules, and those of graph-pes that
need them, are empty: their classes raise when one is made. None has a part in what a PaiNN computes.
"""

import copy
import json
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk, diamond100, molecule
from ase.io import write

RAISING = {
    "load_atoms": ("load_dataset",),
    "sklearn": (),
    "sklearn.linear_model": ("Ridge",),
    "graph_pes.models.orb": ("Orb",),
    "graph_pes.models.e3nn.mace": ("MACE", "TensorMACE", "ZEmbeddingMACE", "ZEmbeddingTensorMACE"),
    "graph_pes.models.e3nn.nequip": ("NequIP", "TensorNequIP", "ZEmbeddingNequIP", "ZEmbeddingTensorNequIP"),
}
VALUES = {
    "load_atoms.utils": {"remove_calculator": lambda structure: None},  # there is none on a structure of ours
    "locache": {"persist": lambda function: function},
    "graph_pes.utils.distributed": {"IS_RANK_0": True, "GLOBAL_RANK": 0, "WORLD_SIZE": 1},
}


def absent(name: str) -> type:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError(f"{name} is not installed here")

    return type(name, (), {"__init__": refuse})


for name, classes in RAISING.items():
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update({each: absent(each) for each in classes}, __path__=[])
for name, values in VALUES.items():
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(values)

import graph_pes.models as gp  # noqa: E402
from graph_pes import AtomicGraph  # noqa: E402
from graph_pes.models.components.distances import GaussianSmearing  # noqa: E402
from graph_pes.utils.nn import PerElementParameter  # noqa: E402

ELEMENTS = [1, 6, 7, 8]
OFFSETS = {"H": -13.5, "C": -1030.0, "N": -1480.0, "O": -2040.0}


def structures() -> list[Atoms]:
    rng = np.random.default_rng(0)
    made = [molecule(name) for name in ("H2O", "CH3CH2OH", "C6H6", "NH3", "CO", "CH3NO2")]
    made += [Atoms("O"), bulk("C", "diamond", 3.57), bulk("CO", "zincblende", 4.1)]
    slab = diamond100("C", (2, 2, 2), vacuum=6.0)
    slab.pbc = (True, True, False)
    made.append(slab + Atoms("H", [slab.positions[-1] + (0, 0, 1.2)]))
    for atoms in made:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    made[8].set_cell(made[8].cell.array + rng.normal(0, 0.2, (3, 3)), scale_atoms=True)
    return made


def painn(seed: int, *, registered: bool = False, noise: float = 0.2, **sizes: float) -> torch.nn.Module:
    """One whose weights a training has moved: every bias, the frequencies apart, the scales of elements far from 1."""
    torch.manual_seed(seed)
    model = gp.PaiNN(**sizes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("frequencies"):
                parameter *= 1 + 0.1 * torch.randn(len(parameter))
            elif name.endswith("per_element_scaling"):
                parameter[ELEMENTS] = torch.exp(1.5 * torch.randn(len(ELEMENTS), 1))
            elif "embedding" not in name:
                parameter += noise * torch.randn(parameter.shape)
    for parameter in model.parameters():
        if registered and isinstance(parameter, PerElementParameter):
            parameter.register_elements(ELEMENTS)
    return model


def deployed() -> Iterator[tuple[str, torch.nn.Module, float, float]]:
    """Names, models, and their units in eV and Å."""
    yield "alone", painn(1, registered=True, channels=8, radial_features=5, layers=1, cutoff=3.5), 1.0, 1.0
    summed = gp.AdditionModel(
        offset=gp.LearnableOffset(**OFFSETS),
        many_body=painn(2, channels=12, radial_features=6, layers=2, cutoff=4.3, noise=0.25),
    )
    yield "summed", copy.deepcopy(summed), units.kcal / units.mol, 1.0  # as graph-pes-train saves its best model
    torch.set_default_dtype(torch.float64)
    inner = gp.AdditionModel(
        base=painn(3, channels=16, radial_features=8, layers=3, cutoff=7, noise=0.05), fixed=gp.FixedOffset(C=2.0)
    )
    with torch.no_grad():  # a frequency that a training has taken below zero
        inner.models["base"].interactions[1].filter_generator.components[0][0].frequencies[0] *= -1
    nested = gp.AdditionModel(inner=inner, offset=gp.FixedOffset(H=-0.5, O=-75.0))
    yield "nested", nested, units.Hartree, units.Bohr
    torch.set_default_dtype(torch.float32)
    yield "half", painn(5, channels=8, radial_features=5, layers=2, cutoff=np.float64(4.3)).half(), 1.0, 1.0


def refused() -> Iterator[tuple[str, object]]:
    small = {"channels": 8, "radial_features": 4, "layers": 1, "cutoff": 4.0}
    yield "schnet", gp.SchNet(cutoff=4.0, channels=8, expansion_features=4, layers=1)
    yield "offsets", gp.FixedOffset(H=1.0)
    yield "only_offsets", gp.AdditionModel(one=gp.FixedOffset(H=1.0))
    yield "inside", {"epoch": 3, "models": [gp.PaiNN(**small)]}
    yield "parallel", {"best": torch.nn.DataParallel(gp.PaiNN(**small))}
    narrow = gp.PaiNN(**small)
    narrow.interactions[0].filter_generator.components[0][1] = torch.nn.Linear(3, 24)
    yield "narrow", narrow
    yield "two", gp.AdditionModel(one=gp.PaiNN(**small), other=gp.PaiNN(**small))
    yield "repulsion", gp.AdditionModel(pair=gp.ZBLCoreRepulsion(cutoff=4.0), many_body=gp.PaiNN(**small))
    yield "lennard_jones", gp.AdditionModel(many_body=gp.PaiNN(**small), pair=gp.LennardJones(cutoff=4.0))
    yield "units", gp.UnitConverter(gp.PaiNN(**small), energy_to_eV=27.2, length_to_A=0.5)
    yield "units_in_sum", gp.AdditionModel(many_body=gp.UnitConverter(gp.PaiNN(**small), 27.2, 0.5))
    yield "many", gp.AdditionModel(**{f"model_{i}": gp.FixedOffset(H=1.0) for i in range(101)})
    yield "deep", reduce(lambda model, _: gp.AdditionModel(one=model), range(9), gp.PaiNN(**small))
    yield "state", gp.PaiNN(**small).state_dict()
    yield "lightning", {"state_dict": {f"model.{k}": v for k, v in gp.PaiNN(**small).state_dict().items()}}
    for name, change in CHANGES.items():
        model = gp.PaiNN(**small)
        change(model, model.interactions[0].filter_generator)
        yield name, model


CHANGES: dict[str, Callable[[torch.nn.Module, torch.nn.Module], object]] = {
    "activation": lambda m, _: setattr(m.read_out, "activation", torch.nn.Tanh()),
    "last": lambda m, _: setattr(m.updates[0].mlp, "activate_last", True),
    "deeper": lambda m, _: m.read_out.linear_layers.append(torch.nn.Linear(1, 1)),
    "envelope": lambda _, filters: filters.components[1].coefficients[0].sub_(1),
    "cutoff": lambda _, filters: setattr(filters.components[1], "cutoff", 3.9),
    "aligned": lambda _, filters: setattr(filters, "left_aligned", True),
    "bare": lambda _, filters: delattr(filters.components, "1"),
    "basis": lambda _, filters: setattr(filters.components[0], "0", GaussianSmearing(4, 4.0)),
    "hook": lambda m, _: m.read_out.register_forward_hook(torch.nn.functional.silu),
    "attribute": lambda m, _: setattr(m, "charge", 1),
    "module": lambda m, _: setattr(m.updates[0], "W", torch.nn.Linear(8, 8)),
    "buffer": lambda m, _: m.scaler.register_buffer("shift", torch.ones(1)),
    "version": lambda m, _: setattr(m, "_GRAPH_PES_VERSION", "0.0.20"),
    "unknown_version": lambda m, _: setattr(m, "_GRAPH_PES_VERSION", "2.0.0"),
    "properties": lambda m, _: m.implemented_properties.append("forces"),
    "fewer": lambda m, _: delattr(m.updates, "0"),
}
"""What makes a PaiNN, whose filters are given beside it, one that is none."""


def figures(path: Path, energy: float, length: float) -> dict[str, np.ndarray]:
    """What graph-pes computes with a file in float64, in eV and Å, structure after structure."""
    model = torch.load(path, weights_only=False).double().eval()
    found: dict[str, list[np.ndarray]] = {"energies": [], "forces": [], "stresses": []}
    for atoms in structures():
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell / length, scale_atoms=True)
        scaled.positions = atoms.positions / length
        graph = AtomicGraph.from_ase(scaled, cutoff=float(model.cutoff))
        asked = ["energy", "forces", *(["stress"] if atoms.cell.volume else [])]
        given = {key: value.numpy() for key, value in model.predict(graph, asked).items()}
        found["energies"].append(given["energy"] * energy)
        found["forces"].append(given["forces"] * energy / length)
        found["stresses"].append(given.get("stress", np.full((3, 3), np.nan)) * energy / length**3)
    return {
        key: np.concatenate([np.atleast_2d(v) for v in values]) if key == "forces" else np.array(values)
        for key, values in found.items()
    }


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    write(folder / "structures.traj", structures())
    for name, model, energy, length in deployed():
        torch.save(model, folder / f"{name}.pt")
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        np.savez(folder / f"{name}.npz", **figures(folder / f"{name}.pt", energy, length))
        torch.set_default_dtype(default)
    for name, thing in refused():
        torch.save(thing, folder / f"{name}.pt")
    torch.save(gp.PaiNN(channels=8, layers=1), folder / "untrained.pt")
    decayed = painn(1, channels=8, layers=1)
    with torch.no_grad():  # an optimiser that does not heed non_decayable_parameters
        decayed.scaler.per_element_scaling *= 0.99
    torch.save(decayed, folder / "decayed.pt")
    torch.jit.script(gp.PaiNN(channels=8, layers=1)).save(folder / "scripted.pt")
    small = painn(1, channels=8, radial_features=5, layers=1, cutoff=3.5)
    graph = AtomicGraph.from_ase(molecule("H2O"), cutoff=3.5)
    converted = gp.UnitConverter(small, energy_to_eV=27.2, length_to_A=0.5)
    forces = [model.predict_forces(graph).tolist() for model in (small, converted)]
    (folder / "says.json").write_text(json.dumps({"unit_converter_changes_forces": forces[0] != forces[1]}))


if __name__ == "__main__":
    main()
