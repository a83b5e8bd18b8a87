"""Checkpoints of curator's PaiNN: the modules that Lightning pickled, or a state dict beside their configuration."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from ase.data import atomic_numbers
from torch import Tensor

from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError, ConfigurationError
from painn_deploy.export.readers.archive import Archive, is_tensor
from painn_deploy.export.readers.averages import holds_average
from painn_deploy.export.readers.blocks import in_our_terms
from painn_deploy.export.readers.curator_configuration import from_configuration, plain
from painn_deploy.export.readers.curator_energies import rescale
from painn_deploy.export.readers.curator_parts import Described, Part, from_modules, refuse
from painn_deploy.export.readers.dtu import in_ase_units, painn_tensors, sine
from painn_deploy.export.readers.reader import Opened, Potential, Reader
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["CURATOR"]

WRAPPER = "model."
"""What Lightning's module puts before the names of its model's tensors."""

OF_LOSSES = "outputs."
TRUTHS = ("atomwise_normalization", "shift_by_E0")
"""Tensors of one truth value."""

COMPILED = "_orig_mod."
"""What torch.compile puts there."""

OLD_BESSEL = (
    "whose weights are n π and were divided by the cutoff later: load it with the curator that made it, divide its "
    "bessel_weights by the cutoff, and save it again"
)
REMEDY = "Give the checkpoint that it was made of: RUN_PATH/model_path/best_model_*.ckpt"
BESIDE = frozenset({"code", "description", "species"})
"""What the JSON beside a checkpoint may say."""

LISTS = ("Asap3NeighborList", "TorchNeighborList", "MatScipyNeighborList", "TypeMapper")
"""What prepares structures for training without changing a unit."""


def _claims(opened: Opened) -> bool:
    tree = opened.tree
    if isinstance(tree, StandIn):
        return _is_curators(tree)
    if not isinstance(tree, Mapping):
        return False
    if _is_curators(tree.get("model")) or isinstance(tree.get("model_params"), StandIn):
        return True
    # weights alone: those of a representation have the names of PaiNN-model's
    bare = [str(name).removeprefix("representation.") for name in tree]
    return any(name.startswith("message_layers.0.scalar_message_mlp.") for name in bare) and "normalization" not in bare


def _is_curators(thing: Any) -> bool:
    return isinstance(thing, StandIn) and "curator" in thing.name.module.split(".")[:2]


def _read(opened: Opened, declared: Declaration) -> Potential:
    archive, tree, source = opened.archive, opened.tree, str(opened.path)
    if archive.scripted:
        refuse(source, f"it is TorchScript, as curator-deploy compiles it: what it computes is program text. {REMEDY}")
    if unknown := sorted((opened.beside or {}).keys() - BESIDE):
        raise ConfigurationError(
            f"{opened.path.with_suffix('.json')} says {', '.join(unknown)}, which a checkpoint of curator says itself. "
            f"What can be said there: {', '.join(sorted(BESIDE))}."
        )
    checkpoint: Mapping[Any, Any] = tree if isinstance(tree, Mapping) else {}
    model = tree if isinstance(tree, StandIn) else checkpoint.get("model")
    data = plain(source, checkpoint.get("data_params"), ("scale_forces", "data_type", "transforms", "species"))
    state = _state(source, checkpoint.get("state_dict"))
    if isinstance(model, StandIn):
        if model.kind == "EnsembleModel":
            refuse(source, "it is an ensemble. Give the checkpoints of its members, and --committee")
        described = from_modules(archive, model)
    elif state and (configuration := checkpoint.get("model_params")) is not None:
        described = from_configuration(source, state, plain(source, configuration), data)
    else:
        refuse(
            source, f"it holds weights alone: its basis, cutoff function and scales leave no trace in them. {REMEDY}"
        )
    return _Reading(archive, described).potential(opened, declared, data, state)


def _state(source: str, held: Any) -> dict[str, Any]:
    """Stand-ins of tensors by their names in the model, where a checkpoint of Lightning has them."""
    if not isinstance(held, Mapping):
        return {}
    named = {str(name): thing for name, thing in held.items() if not str(name).startswith(OF_LOSSES)}
    if odd := [name for name, thing in named.items() if not name.startswith(WRAPPER) or not is_tensor(thing)]:
        refuse(source, f"its state dict holds {odd[0][:80]!r}, which is no tensor of its model")
    return {name.removeprefix(WRAPPER).removeprefix(COMPILED): thing for name, thing in named.items()}


class _Reading:
    """Of one model."""

    def __init__(self, archive: Archive, described: Described) -> None:
        self._archive, self._source, self._described = archive, archive.source, described
        self._remarks: list[str] = []

    def potential(self, opened: Opened, declared: Declaration, data: Any, state: Mapping[str, Any]) -> Potential:
        described, source = self._described, self._source
        energy, length, remarks = self._units(declared, data)
        self._remarks += remarks
        cutoff, envelope = self._cutoff()
        weights = {name: self._archive.tensor(thing, name) for name, thing in described.weights.items()}
        if len({part.kind for part in described.bases}) != 1:
            refuse(source, "its interactions have radial bases of different kinds, or there are none")
        bases, factors = zip(*(self._basis(part) for part in described.bases), strict=True)
        for i, factor in enumerate(factors):
            if factor != 1.0 and (name := f"message_layers.{i}.filter_layer.weight") in weights:
                weights[name] = weights[name].double() * factor
        tensors = painn_tensors(weights, bases, source)
        rescaled = rescale(self._archive, described.outputs, len(tensors["representation.embedding.weight"]))
        self._remarks += rescaled.remarks
        self._compare(opened, state)
        said = {
            "epsilon": 0.0,
            "description": "read from a checkpoint of curator",
            **envelope,
            **_species(opened, data),
        }
        units, scales, shifts = (energy, length), rescaled.scales, rescaled.shifts
        return in_our_terms(tensors, said, cutoff, units, scales, shifts, self._remarks)

    def _units(self, declared: Declaration, data: Mapping[str, Any]) -> tuple[float, float, tuple[str, ...]]:
        kind, steps = data.get("data_type", "AseDataset"), data.get("transforms") or []
        names = [str(step.get("_target_") if isinstance(step, Mapping) else step) for step in steps]
        others = [name for name in names if name.rpartition(".")[2] not in LISTS]
        if kind == "AseDataset" and not others:
            return in_ase_units(declared, self._source)
        in_ase_units(declared, self._source)  # the energy's name
        return *declared.scales(f"{self._source}, trained on {', '.join([str(kind), *others])},"), ()

    def _cutoff(self) -> tuple[float, dict[str, Any]]:
        """The cutoff in the model's unit, and what a configuration says of the function that fades pairs out."""
        described, source = self._described, self._source
        lists = [part.values["cutoff"] for part in described.inputs if part.values.get("cutoff") is not None]
        found = {_number(source, value, "a cutoff") for value in (described.cutoff, *lists)}
        found |= {_number(source, part.values.get("cutoff"), "a cutoff") for part in described.cutoffs}
        powers = {float(part.values.get("p", part.values.get("power", 0.0))) for part in described.cutoffs}
        if len(found) != 1:
            refuse(source, f"neighbours and cutoff functions end at different distances: {sorted(found)}")
        if len({part.kind for part in described.cutoffs}) != 1 or len(powers) != 1:
            refuse(source, "its interactions have different cutoff functions")
        power, cutoff = powers.pop(), found.pop()
        if described.cutoffs[0].kind == "CosineCutoff":
            return cutoff, {}
        for part in described.cutoffs:
            factor = 1.0 / _number(source, part.values.get("_factor", 1.0 / cutoff), "the factor of a cutoff function")
            if not math.isclose(factor, cutoff, rel_tol=1e-12):
                refuse(source, f"its PolynomialCutoff divides distances by {factor:g}, and its cutoff is {cutoff:g}")
        if power != int(power):
            refuse(source, f"the power of its PolynomialCutoff is {power:g}, and no whole number")
        return cutoff, {"cutoff_fn": "polynomial", "cutoff_power": int(power)}

    def _basis(self, part: Part) -> tuple[dict[str, Tensor], float]:
        """A radial basis, and what each of its functions is multiplied with."""
        source, values = self._source, part.values
        found = {name: self._archive.tensor(thing, name) for name, thing in part.tensors.items()}
        wanted = {"GaussianBasis": {"offsets", "widths"}, "BesselBasis": {"bessel_weights"}}.get(part.kind, set())
        if found.keys() != wanted or any(tensor.dim() != 1 for tensor in found.values()):
            shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(found.items())]
            refuse(source, f"its {part.kind} has the tensors {', '.join(shapes) or 'none'}")
        if part.kind == "GaussianBasis":
            return {"offsets": found["offsets"], "widths": found["widths"].abs()}, 1.0  # the code squares widths
        if part.kind == "BesselBasis":
            freqs = found["bessel_weights"]
            n = torch.arange(1, len(freqs) + 1, dtype=torch.float64) * math.pi
            cutoff = _number(source, values.get("cutoff"), "the cutoff of a basis")
            if (freqs.double() - n).abs().sum() <= (freqs.double() - n / cutoff).abs().sum():
                refuse(source, f"its BesselBasis is of before September 2024, {OLD_BESSEL}")
            factor = values.get("prefactor")
            if factor is None:  # of a configuration
                factor = 2.0 / cutoff
                factor = math.sqrt(factor) if values.get("sqrt_prefactor") else factor
            return {"freqs": freqs}, _number(source, factor, "the prefactor of a basis")
        count = values.get("num_basis")
        if type(count) is not int or not 0 < count <= 16_384:
            refuse(source, f"its SineBasis has {count!r} functions")
        return sine(count, _number(source, values.get("cutoff"), "the cutoff of a basis")), 1.0

    def _compare(self, opened: Opened, state: Mapping[str, Any]) -> None:
        """A checkpoint holds its weights up to three times: as modules, as a state dict, and as a running average."""
        archive, described = self._archive, self._described
        named = {f"representation.{name}": thing for name, thing in described.weights.items()}
        for parts, prefix in (
            (described.bases, "representation.message_layers.{}.radial_basis."),
            (described.outputs, "output_modules.{}."),
        ):
            named |= {prefix.format(i) + name: t for i, part in enumerate(parts) for name, t in part.tensors.items()}
        truths = {name for name in named if name.endswith(TRUTHS)}
        weights = {name: archive.tensor(thing, name) for name, thing in named.items() if name not in truths}
        for name, thing in state.items():
            if (name in truths and archive.truth(named[name], name) != archive.truth(thing, name)) or (
                name in weights and not torch.equal(weights[name], archive.tensor(thing, name))
            ):
                refuse(self._source, f"its model and its state dict disagree about {name}")
        if isinstance(opened.tree, Mapping) and not holds_average(archive, opened.tree, weights):
            self._remarks.append(
                "It also holds averaged weights (ExponentialMovingAverage) that differ from those of its model, "
                "which are what was read. A checkpoint that curator writes after a validation holds the average."
            )


def _species(opened: Opened, data: Mapping[str, Any]) -> dict[str, Any]:
    """Elements that its owner names, or else its data."""
    if opened.beside is not None and "species" in opened.beside:
        return {"species": opened.beside["species"]}
    found = data.get("species")
    symbols = found if isinstance(found, list) else []
    numbers = [atomic_numbers.get(symbol, 0) if isinstance(symbol, str) else 0 for symbol in symbols]
    return {"species": sorted(set(numbers))} if numbers and all(numbers) else {}


def _number(source: str, value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise CheckpointError(f"{source}: {what} is {str(value)[:80]!r}, which is no positive number.")
    return float(value)


CURATOR = Reader("curator", _claims, _read)
