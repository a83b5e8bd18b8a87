"""Turn a PaiNN that SchNetPack saved into a checkpoint that `painn-deploy export` reads.

    python convert_schnetpack.py best_model --energy-unit kcal/mol --length-unit Ang --species H,C -o s.safetensors

painn-deploy reads SchNetPack's files itself (`painn-deploy convert`), without running anything in them. This is for a
file that it refuses because it names what SchNetPack does not. Here the file is opened as it asks to be, so run this
where you trained: in SchNetPack's own environment, with a model that you trust. It stands alone and needs nothing from
painn-deploy.

The energy's mean, the atomic references and the units are folded into what is written: energies in eV, lengths in Å.
What the architecture of painn-deploy cannot express raises, and nothing is written.
"""

import argparse
import json
import struct
import sys
from pathlib import Path
from typing import Any

import torch

SANE = {"eV": (1e-6, 1e3), "Ang": (1e-3, 1e3)}
"""What a unit of energy per particle, or of length, can be: a kcal without its mol is 2.6e22 eV."""

DERIVED = {"Forces", "Response", "Strain"}  # modules that follow from the energy; Strain only prepares its derivative
HARMLESS = {"CastTo64", "CastTo32", "CastTo16", "CastMap"}  # postprocessors
BASES = ("GaussianRBF", "GaussianRBFCentered", "BesselRBF")
CUTOFFS = {"CosineCutoff": "cosine", "MollifierCutoff": "mollifier", "SwitchFunction": "switch"}
ACTIVATIONS = {"silu": "silu", "SiLU": "silu", "shifted_softplus": "shifted_softplus"}
DIRECTLY = ", which is not converted here: give the file itself to painn-deploy, which reads it"


class ConversionError(ValueError):
    """A model that cannot be said in painn-deploy's terms; the message says what stands in the way."""


def name_of(thing: Any) -> str:
    return getattr(thing, "__name__", type(thing).__name__)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConversionError(message)


def check_representation(painn: Any) -> None:
    """Raise for whatever changes the equations and leaves no trace in the weights."""
    require(name_of(painn) == "PaiNN", f"the representation is {name_of(painn)}, and only PaiNN can be deployed")
    electronic = [name_of(one) for one in getattr(painn, "electronic_embeddings", [])]
    require(not electronic, f"the model reads more than atoms and positions: {', '.join(electronic)}")
    basis, cutoff = name_of(painn.radial_basis), name_of(painn.cutoff_fn)
    require(basis in BASES, f"the radial basis {basis} is none of {', '.join(BASES)}")
    require(cutoff in CUTOFFS, f"the cutoff function {cutoff} is none of {', '.join(CUTOFFS)}")
    epsilons = {float(block.epsilon) for block in painn.mixing}
    require(len(epsilons) == 1, f"the mixing blocks have different epsilons: {sorted(epsilons)}")


def activation(painn: Any, module: Any) -> str:
    """What a configuration calls the only activation of all networks."""
    networks = [module.outnet, *(block.interatomic_context_net for block in painn.interactions)]
    networks += [block.intraatomic_context_net for block in painn.mixing]
    found = {name_of(layer.activation) for network in networks for layer in list(network)[:-1]}
    listed = ", ".join(sorted(found))
    require(found <= ACTIVATIONS.keys(), f"activations {listed}: only silu and shifted_softplus can be deployed")
    names = {ACTIVATIONS[name] for name in found}
    require(len(names) < 2, f"activations {listed}: a deployed model has one for all networks")
    return names.pop() if names else "silu"


def energy_module(model: Any, key: str) -> Any:
    """The module whose output is the energy; every other one has to follow from it or to be something else."""
    for module in getattr(model, "input_modules", ()):
        require(name_of(module) in {"PairwiseDistances", *DERIVED}, f"the input module {name_of(module)} is not known")
    found = []
    for module in model.output_modules:
        if name_of(module) == "Atomwise":
            found += [module] if module.output_key == key else []
        elif name_of(module) not in DERIVED and key in (getattr(module, "model_outputs", None) or ()):
            raise ConversionError(f"the energy {key!r} comes from {name_of(module)}, not from Atomwise alone{DIRECTLY}")
    keys = [m.output_key for m in model.output_modules if name_of(m) == "Atomwise"]
    require(len(found) == 1, f"no Atomwise module gives {key!r}; those there give {keys}: say which with --energy-key")
    (module,) = found
    require(module.n_out == 1, f"the energy has {module.n_out} outputs")
    require(module.aggregation_mode == "sum", f"energies are aggregated by {module.aggregation_mode}, not by sum")
    return module


def references(model: Any, key: str, rows: int) -> torch.Tensor:
    """Energies that postprocessors add for each element, in the model's unit, float64 [elements, at most rows]."""
    added = torch.zeros(rows, dtype=torch.float64)
    for step in model.postprocessors if model.do_postprocessing else ():
        kind = name_of(step)
        if kind == "AddOffsets" and step._property == key:
            found = torch.zeros_like(added)
            if step.add_mean:
                found += step.mean.double().reshape(())
            if step.add_atomrefs:
                table = step.atomref.double()[: len(found)]
                require(table.dim() == 1, "the atomic references are no row of numbers")
                found, added = found[: len(table)] + table, added[: len(table)]  # SchNetPack has no energies beyond it
            extensive = step.is_extensive or not found.any()
            require(extensive, "the mean is added per structure and not per atom (is_extensive is false)")
            added = added + found
        elif kind == "ScaleProperty":
            require(bool((step.scale == 1).all()), f"ScaleProperty scales {step.input_key!r}{DIRECTLY}")
        else:
            require(kind in HARMLESS or getattr(step, "_property", None) != key, f"the postprocessor {kind} is unknown")
    return added


def converted(model: Any, key: str, energy: float, length: float) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and configuration of a model whose units are `energy` eV and `length` Å."""
    painn = model.representation
    check_representation(painn)
    module = energy_module(model, key)
    model.eval()
    apart = ("embedding.", "cutoff_fn.")
    tensors = {f"representation.{k}": v for k, v in painn.state_dict().items() if not k.startswith(apart)}
    table = painn.embedding.weight if isinstance(painn.embedding, torch.nn.Embedding) else painn.embedding.embedding
    added = references(model, key, len(table))
    tensors["representation.embedding.weight"] = table[: len(added)]
    tensors |= {f"output_modules.0.outnet.{k}": v for k, v in module.outnet.state_dict().items()}
    last = f"output_modules.0.outnet.{len(module.outnet) - 1}"
    for name in (f"{last}.weight", f"{last}.bias"):
        if name in tensors:
            tensors[name] = tensors[name].double() * energy
    # A distance d in Å is d / length in the model's unit: offsets, widths and the cutoff grow by `length`. The sine
    # basis sin(f d)/d is a length to the power of -1 besides, which its filters take up.
    for name in ("offsets", "widths"):
        if (full := f"representation.radial_basis.{name}") in tensors:
            tensors[full] = tensors[full].double() * length
            if name == "widths":  # squared in the equation, so that a trained one may be negative
                tensors[full] = tensors[full].abs()
    if (full := "representation.radial_basis.freqs") in tensors:
        tensors[full] = tensors[full].double() / length
        weight = "representation.filter_net.weight"
        tensors[weight] = tensors[weight].double() * length
    function = painn.cutoff_fn
    end = function.switch_off if name_of(function) == "SwitchFunction" else function.cutoff
    tensors["representation.cutoff_fn.cutoff"] = end.double() * length
    dtype = table.dtype
    tensors = {k: v.detach().cpu().to(dtype).contiguous() for k, v in tensors.items()}
    tensors["atomic_references"] = added.detach().cpu() * energy
    configuration = {
        "architecture": "painn",
        "hidden_dim": int(painn.n_atom_basis),
        "num_interactions": int(painn.n_interactions),
        "num_rbf": int(painn.radial_basis.n_rbf),
        "cutoff": float(tensors["representation.cutoff_fn.cutoff"]),
        "cutoff_fn": CUTOFFS[name_of(function)],
        "activation": activation(painn, module),
        "epsilon": float(painn.mixing[0].epsilon),
        "description": f"converted from SchNetPack {getattr(model, 'spk_version', 'of unknown version')}",
    }
    if name_of(function) == "SwitchFunction":
        configuration["switch_on"] = float(function.switch_on) * length
    return tensors, configuration


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The format of https://huggingface.co/docs/safetensors: SchNetPack's environment need not hold its library."""
    names = {torch.float32: "F32", torch.float64: "F64"}
    header: dict[str, Any] = {}
    blocks, offset = [], 0
    for name, tensor in sorted(tensors.items()):
        block = tensor.numpy().tobytes()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(block)],
        }
        blocks.append(block)
        offset += len(block)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))


def unit(text: str, target: str) -> float:
    """A unit in eV or Å, by SchNetPack's own conversion, from a name or a number."""
    from schnetpack.units import convert_units

    try:
        value = float(text)
    except ValueError:
        try:
            value = float(convert_units(text, target))
        except Exception as error:  # it raises whatever its parser met
            raise ConversionError(
                f"{text!r} is no unit that SchNetPack knows ({error}): give its value in {target}"
            ) from error
    low, high = SANE[target]
    meant = ": an energy per particle, such as kcal/mol, is meant" if target == "eV" else ""
    require(low <= value <= high, f"the unit {text!r} is {value:g} {target}, and no model's is{meant}")
    return value


def elements(words: list[list[str]]) -> list[str]:
    """Symbols, however they were given: `H C O`, `H,C,O`, or the option repeated."""
    from ase.data import chemical_symbols

    found = [symbol for given in words for word in given for symbol in word.replace(",", " ").split()]
    unknown = [symbol for symbol in found if symbol not in chemical_symbols[1:]]
    require(not unknown, f"{', '.join(unknown)}: no such element; give symbols, such as H,C,O")
    return list(dict.fromkeys(found))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Convert a PaiNN saved by SchNetPack for painn-deploy.")
    parser.add_argument("model", type=Path, help="best_model, or best_model.task, that SchNetPack saved")
    parser.add_argument("-o", "--output", type=Path, required=True, help=".safetensors; a .json is written beside it")
    parser.add_argument("--energy-unit", required=True, help="of the training data: eV, kcal/mol, Hartree, ...")
    parser.add_argument("--length-unit", required=True, help="of the training data: Ang, Bohr, nm, ...")
    parser.add_argument("--energy-key", default="energy", help="what the model calls the energy")
    parser.add_argument(
        "--species", nargs="*", action="append", help="elements that it was trained on, such as H,C,N,O"
    )
    options = parser.parse_args()
    try:
        convert(options)
    except ConversionError as error:
        sys.exit(f"error: {options.model}: {error}")


def convert(options: argparse.Namespace) -> None:
    require(options.output.suffix == ".safetensors", f"{options.output} does not end in .safetensors")
    require(options.model.is_file(), "there is no such file")
    try:
        import schnetpack  # noqa: F401  (its classes are what the pickle names)
    except ImportError as error:
        raise ConversionError(f"run this where SchNetPack is installed ({error})") from error
    energy, length = unit(options.energy_unit, "eV"), unit(options.length_unit, "Ang")
    species = elements(options.species or [])
    model = torch.load(options.model, map_location="cpu", weights_only=False)
    model = getattr(model, "model", model)  # a task holds its model
    for part in ("representation", "output_modules", "postprocessors"):
        require(hasattr(model, part), f"it holds {name_of(model)}, which is no NeuralNetworkPotential of SchNetPack")
    tensors, configuration = converted(model, options.energy_key, energy, length)
    if species:
        configuration["species"] = species
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(options.output, tensors)
    options.output.with_suffix(".json").write_text(json.dumps(configuration, indent=1) + "\n", encoding="utf-8")
    size = sum(t.numel() for k, t in tensors.items() if k != "atomic_references")
    print(f"wrote {options.output} and .json: {size:,} numbers, {energy:g} eV and {length:g} Å folded in")


if __name__ == "__main__":
    main()
