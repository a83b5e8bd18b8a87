"""A model that SchNetPack saved, as tensors and a configuration in our terms: energies in eV, lengths in Å."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from painn_deploy.export.declaration import ENERGY_KEY, Declaration
from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.model.layout import fold_units
from painn_deploy.export.model.weights import MOST_ROWS
from painn_deploy.export.readers.archive import Archive, is_tensor, kind_of
from painn_deploy.export.readers.reader import Potential
from painn_deploy.export.readers.stand_ins import StandIn
from painn_deploy.export.schnetpack.architecture import BASES, Checker
from painn_deploy.export.schnetpack.cutoffs import Fade, read_fade
from painn_deploy.export.schnetpack.outputs import read_energy
from painn_deploy.export.schnetpack.repulsion import ZBL, read_repulsion, repulsion_of

__all__ = ["embedded", "read_potential", "with_references"]

BLOCKS = ("interactions", "mixing")
BASIS = "representation.radial_basis"
USUAL_ROWS = 100
"""Of AddOffsets' table, unless it is told otherwise; a NuclearEmbedding has a row more, for fermium."""

APART = 1e-5
"""Of a length, by which two that are meant to be the same may differ: one is rounded to float32."""


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
        self._model, self._check = model, Checker(archive, weights)
        self._tensors = self._check.tensors
        self._outputs = self._check.members(model.part("output_modules"), "the output modules")

    def read(self, declared: Declaration) -> Potential:
        check = self._check
        check.module(self._model, ("NeuralNetworkPotential",), "the model")
        painn = check.representation(self._model.part("representation"))
        found = read_energy(check, self._model, declared.energy_key or ENERGY_KEY)
        energy, length = declared.scales(check.source)
        kind, fade = read_fade(check, painn.part("cutoff_fn"), "representation.cutoff_fn")
        reach = self._reach(painn, float(fade["cutoff"]))
        tensors = {"representation.embedding.weight": self._embedding(painn.part("embedding"))}
        tensors["representation.cutoff_fn.cutoff"] = fade["cutoff"]
        tensors |= self._basis(painn.part("radial_basis"))
        filters = check.linear(painn.part("filter_net"), "the filters")
        tensors |= self._tensors.some(filters, "representation.filter_net")
        blocks = {name: check.members(painn.part(name), name) for name in BLOCKS}
        tensors |= self._blocks(blocks)
        outnet = self._outputs[found.place].part("outnet")
        layers = check.network(outnet, f"output_modules.{found.place}.outnet")
        tensors |= {name.replace(f".{found.place}.", ".0.", 1): tensor for name, tensor in layers.items()}
        last = f"output_modules.0.outnet.{max(int(name.split('.')[3]) for name in layers)}"
        tensors = fold_units(tensors, last, energy * found.scale, length)
        configuration = self._configuration(painn, blocks, tensors)
        configuration["cutoff_fn"] = kind
        if "switch_on" in fade:
            configuration["switch_on"] = float(fade["switch_on"]) * length
        remarks = list(found.remarks)
        if found.repulsion is not None:
            place, times = found.repulsion
            learnt, configuration["repulsion"], ends = self._repulsion(place, reach, float(fade["cutoff"]))
            pairs, said = repulsion_of(learnt, ends, energy, length, times)
            tensors |= pairs
            remarks += said
        self._refuse_unread((found.place, *([found.repulsion[0]] if found.repulsion else [])))
        if found.references is not None:
            tensors, remark = with_references(tensors, found.references * energy)
            remarks += [remark] if remark else []
        return Potential(tensors, configuration, tuple(remarks))

    def _basis(self, basis: StandIn) -> dict[str, Tensor]:
        found = self._tensors.some(basis, BASIS, BASES[basis.kind])
        if (widths := found.get(f"{BASIS}.widths")) is not None:
            found[f"{BASIS}.widths"] = widths.abs()  # squared in the equation, so that a trained one may be negative
        return found

    def _reach(self, painn: StandIn, cutoff: float) -> float:
        """Where SchNetPack's own programs end neighbour lists: PaiNN.cutoff, which its users set beside a switch."""
        said = painn.part("cutoff")
        reach = float(self._check.archive.tensor(said, "PaiNN.cutoff").min()) if is_tensor(said) else said
        if reach is None:
            return cutoff
        if not isinstance(reach, float | int):
            self._check.refuse(f"PaiNN.cutoff is {kind_of(reach)}, and no number of Python's nor a tensor")
        if reach < cutoff * (1 - APART):
            self._check.refuse(
                f"PaiNN.cutoff is {reach:g} and its cutoff function ends at {cutoff:g}: pairs between them would have "
                "filters that are not zero, and no edges"
            )
        return reach

    def _blocks(self, blocks: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        check, found = self._check, dict[str, Tensor]()
        for index, block in enumerate(blocks["interactions"]):
            at = f"representation.interactions.{index}"
            check.module(block, ("PaiNNInteraction",), at)
            found |= check.network(block.part("interatomic_context_net"), f"{at}.interatomic_context_net")
        for index, block in enumerate(blocks["mixing"]):
            at = f"representation.mixing.{index}"
            check.module(block, ("PaiNNMixing",), at)
            found |= check.network(block.part("intraatomic_context_net"), f"{at}.intraatomic_context_net")
            mix = check.linear(block.part("mu_channel_mix"), f"{at}.mu_channel_mix")
            found |= self._tensors.some(mix, f"{at}.mu_channel_mix")
        return found

    def _repulsion(self, place: int, reach: float, cutoff: float) -> tuple[Mapping[str, Tensor], str, Fade]:
        """Its tensors, what a configuration calls its cutoff function, and that function's distances."""
        learnt, (kind, fade) = read_repulsion(self._check, self._outputs[place], f"output_modules.{place}")
        ends = float(fade["cutoff"]) if fade else reach
        if ends > cutoff * (1 if fade else 1 + APART):
            self._check.refuse(
                f"{ZBL} reaches to {ends:g} and PaiNN's messages to {cutoff:g}: pairs beyond these are no edges of a "
                "deployed model"
            )
        return learnt, kind, fade

    def _configuration(
        self, painn: StandIn, blocks: Mapping[str, list[Any]], tensors: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        version = self._model.part("spk_version")
        basis = "freqs" if f"{BASIS}.freqs" in tensors else "offsets"
        return {
            "architecture": "painn",
            "hidden_dim": tensors["representation.embedding.weight"].shape[-1],
            "num_interactions": painn.part("n_interactions", len(blocks["mixing"])),
            "num_rbf": len(tensors[f"{BASIS}.{basis}"]),
            "cutoff": float(tensors["representation.cutoff_fn.cutoff"]),
            "epsilon": self._check.epsilon(blocks["mixing"]),
            "activation": self._check.activation(),
            "description": f"read from a model of SchNetPack {version if isinstance(version, str) else ''}".strip(),
        }

    def _embedding(self, embedding: StandIn) -> Tensor:
        path = "representation.embedding"
        linear = embedding.part("config_linear")
        if embedding.kind == "Embedding":
            table = self._tensors.one(embedding, "weight", path)
        else:
            own = self._tensors.one(embedding, "element_embedding", path)
            shells = self._tensors.one(embedding, "electron_config", path, integers=True)
            self._check.module(linear, ("Linear",), "the embedding's layer")
            table = embedded(own, shells, self._tensors.one(linear, "weight", f"{path}.config_linear"))
        if table is None or table.dim() != 2:
            self._check.refuse("the embedding is no table of elements")
        return table

    def _refuse_unread(self, places: Iterable[int]) -> None:
        """Of weights that came beside the tree, all of the PaiNN and of the energy have to be in it."""
        prefixes = ("representation.", *(f"output_modules.{place}." for place in places))
        if unread := self._tensors.unread(prefixes):
            self._check.refuse(f"its state dict holds what its model has no place for: {', '.join(unread[:6])}")


def with_references(tensors: Mapping[str, Tensor], references: Tensor) -> tuple[dict[str, Tensor], str | None]:
    """The same with energies of elements, and without elements that have none.

    Args:
        tensors: under SchNetPack's names.
        references: eV, float64 [elements], or [1] if it is the same for all.

    Returns:
        The tensors, `atomic_references` among them, and a remark if elements were left out.
    """
    table = tensors["representation.embedding.weight"]
    rows = len(table) if len(references) == 1 else min(len(table), len(references))
    added = {"representation.embedding.weight": table[:rows]}
    if references.any():
        added["atomic_references"] = references.expand(rows).clone() if len(references) == 1 else references[:rows]
    remark = None
    if rows < min(len(table), USUAL_ROWS):
        remark = f"Its atomic references end at Z = {rows - 1}: heavier elements have no energy, as in SchNetPack."
    return {**tensors, **added}, remark


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
