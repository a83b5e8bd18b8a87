"""A model that SchNetPack saved, as tensors and a configuration in our terms: energies in eV, lengths in Å."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from painn_deploy.export.declaration import ENERGY_KEY, Declaration
from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.model.layout import fold_units
from painn_deploy.export.model.weights import MOST_ROWS
from painn_deploy.export.readers.archive import Archive, kind_of
from painn_deploy.export.readers.reader import Potential
from painn_deploy.export.readers.stand_ins import StandIn
from painn_deploy.export.schnetpack.architecture import HARMLESS, Checker

__all__ = ["Potential", "fold_units", "read_potential"]

BLOCKS = ("interactions", "mixing")
PARAMETERS = ("weight", "bias")


def read_potential(
    archive: Archive, model: Any, declared: Declaration, weights: Mapping[str, Tensor] | None = None
) -> Potential:
    """Read a NeuralNetworkPotential.

    Args:
        archive: of the file.
        model: the tree of stand-ins.
        declared: units, and what the model calls the energy.
        weights: that take the place of the tree's, by their names in a state dict; all of the PaiNN's are needed.

    Raises:
        CheckpointError: it is no model that can be deployed; the message says what stands in the way.
        DeclarationError: a unit was not named, or the model calls its energy otherwise.
    """
    if not isinstance(model, StandIn) or not model.has("representation"):
        raise CheckpointError(
            f"{archive.source} holds {kind_of(model)}, which is no NeuralNetworkPotential of SchNetPack."
        )
    return _Reader(archive, model, weights).read(declared)


class _Reader:
    """Walks one model along the paths that a PaiNN has."""

    def __init__(self, archive: Archive, model: StandIn, weights: Mapping[str, Tensor] | None) -> None:
        self._archive, self._model, self._weights = archive, model, weights
        self._check = Checker(archive)
        self._used: set[str] = set()
        self._remarks: list[str] = []

    def read(self, declared: Declaration) -> Potential:
        check, key = self._check, declared.energy_key or ENERGY_KEY
        painn = check.representation(self._model.part("representation"))
        place, atomwise = check.energy(self._model, key)
        energy, length = declared.scales(self._archive.source)
        tensors = {"representation.embedding.weight": self._embedding(painn.part("embedding"))}
        basis, cutoff = painn.part("radial_basis"), painn.part("cutoff_fn")
        names = ("offsets", "widths") if basis.kind == "GaussianRBF" else ("freqs",)
        tensors |= self._some(basis, "representation.radial_basis", names)
        tensors |= self._some(cutoff, "representation.cutoff_fn", ("cutoff",))
        tensors |= self._some(check.linear(painn.part("filter_net"), "the filters"), "representation.filter_net")
        blocks = {name: check.members(painn.part(name), name) for name in BLOCKS}
        for index, block in enumerate(blocks["interactions"]):
            at = f"representation.interactions.{index}"
            check.module(block, ("PaiNNInteraction",), at)
            tensors |= self._network(block.part("interatomic_context_net"), f"{at}.interatomic_context_net")
        for index, block in enumerate(blocks["mixing"]):
            at = f"representation.mixing.{index}"
            check.module(block, ("PaiNNMixing",), at)
            tensors |= self._network(block.part("intraatomic_context_net"), f"{at}.intraatomic_context_net")
            mix = check.linear(block.part("mu_channel_mix"), f"{at}.mu_channel_mix")
            tensors |= self._some(mix, f"{at}.mu_channel_mix")
        found = self._network(atomwise.part("outnet"), f"output_modules.{place}.outnet")
        tensors |= {name.replace(f".{place}.", ".0.", 1): tensor for name, tensor in found.items()}
        last = f"output_modules.0.outnet.{max(int(name.split('.')[3]) for name in found)}"
        rows = len(tensors["representation.embedding.weight"])
        references = self._references(key, rows) * energy
        self._refuse_unread(place)
        tensors = fold_units(tensors, last, energy, length)
        if references.any():
            tensors["atomic_references"] = references
        return Potential(tensors, self._configuration(painn, blocks, tensors), tuple(self._remarks))

    def _configuration(
        self, painn: StandIn, blocks: Mapping[str, list[Any]], tensors: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        version = self._model.part("spk_version")
        cutoff = tensors["representation.cutoff_fn.cutoff"]
        if cutoff.numel() != 1:
            self._check.refuse(f"the cutoff holds {cutoff.numel()} numbers")
        basis = "freqs" if "representation.radial_basis.freqs" in tensors else "offsets"
        return {
            "architecture": "painn",
            "hidden_dim": tensors["representation.embedding.weight"].shape[-1],
            "num_interactions": painn.part("n_interactions", len(blocks["mixing"])),
            "num_rbf": len(tensors[f"representation.radial_basis.{basis}"]),
            "cutoff": float(cutoff),
            "epsilon": self._check.epsilon(blocks["mixing"]),
            "description": f"read from a model of SchNetPack {version if isinstance(version, str) else ''}".strip(),
        }

    def _tensor(self, owner: StandIn, name: str, path: str, *, integers: bool = False) -> Tensor | None:
        """A tensor of the state dict if there is one, else of the tree."""
        self._used.add(path)
        if self._weights is not None:
            return self._weights.get(path)
        thing = owner.part(name)
        return None if thing is None else self._archive.tensor(thing, path, integers=integers)

    def _some(self, owner: StandIn, path: str, names: tuple[str, ...] = PARAMETERS) -> dict[str, Tensor]:
        found = {f"{path}.{name}": self._tensor(owner, name, f"{path}.{name}") for name in names}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _network(self, thing: Any, path: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for index, layer in enumerate(self._check.layers(thing, path)):
            found |= self._some(layer, f"{path}.{index}")
        return found

    def _embedding(self, embedding: StandIn) -> Tensor:
        path = "representation.embedding"
        linear = embedding.part("config_linear")
        if embedding.kind == "Embedding":
            table = self._tensor(embedding, "weight", f"{path}.weight")
        else:
            own = self._tensor(embedding, "element_embedding", f"{path}.element_embedding")
            shells = self._tensor(embedding, "electron_config", f"{path}.electron_config", integers=True)
            self._check.module(linear, ("Linear",), "the embedding's layer")
            mixed = self._tensor(linear, "weight", f"{path}.config_linear.weight")
            table = embedded(own, shells, mixed)
        if table is None or table.dim() != 2:
            self._check.refuse("the embedding is no table of elements")
        return table

    def _references(self, key: str, rows: int) -> Tensor:
        """Energies that postprocessors add for each element, in the model's unit, float64 [rows]."""
        added = torch.zeros(rows, dtype=torch.float64)
        steps = self._check.members(self._model.part("postprocessors"), "the postprocessors")
        if steps and not self._model.part("do_postprocessing", True):
            self._remarks.append(
                "Its postprocessors are switched off in the file: no mean and no references are added."
            )
            return added
        for index, step in enumerate(steps):
            if step.kind == "AddOffsets" and step.part("_property") == key:
                added += self._offsets(step, f"postprocessors.{index}", rows)
            elif step.kind == "ScaleProperty" and key in (step.part("input_key"), step.part("output_key")):
                self._check.refuse("ScaleProperty scales the energy after its forces were taken: they disagree")
            elif step.kind not in HARMLESS and step.part("_property", key) == key and step.kind != "ScaleProperty":
                self._check.refuse(f"the postprocessor {step.kind} is unknown")
        return added

    def _offsets(self, step: StandIn, path: str, rows: int) -> Tensor:
        if step.part("is_extensive") is not True:
            self._check.refuse("the mean is added per structure and not per atom (is_extensive is false)")
        added = torch.zeros(rows, dtype=torch.float64)
        if step.part("add_mean"):
            mean = self._tensor(step, "mean", f"{path}.mean")
            if mean is None or mean.numel() != 1:
                self._check.refuse("the mean of AddOffsets is no number")
            added += mean.double().reshape(())
        if step.part("add_atomrefs"):
            table = self._tensor(step, "atomref", f"{path}.atomref")
            if table is None:
                self._check.refuse("AddOffsets lacks its atomic references")
            table = table.double().flatten()
            if table[rows:].any():
                self._check.refuse("there are atomic references for more elements than the embedding has rows")
            added[: len(table)] += table[:rows]
        return added

    def _refuse_unread(self, place: int) -> None:
        """Of weights that came beside the tree, all of the PaiNN and of the read-out have to be in it."""
        prefixes = ("representation.", f"output_modules.{place}.")
        unread = sorted(name for name in self._weights or () if name.startswith(prefixes) and name not in self._used)
        if unread:
            self._check.refuse(f"its state dict holds what its model has no place for: {', '.join(unread[:6])}")


def embedded(own: Tensor | None, shells: Tensor | None, mixed: Tensor | None) -> Tensor | None:
    """The table of a NuclearEmbedding: a row of each element's own, and what its electron shells add.

    Args:
        own: [elements, features].
        shells: [elements, descriptors].
        mixed: [features, descriptors].
    """
    if own is None or shells is None or mixed is None or not own.dim() == shells.dim() == mixed.dim() == 2:
        return None
    rows, features = own.shape
    if rows > MOST_ROWS or shells.shape[0] != rows or tuple(mixed.shape) != (features, shells.shape[1]):
        return None
    return own.double() + shells.double() @ mixed.double().T
