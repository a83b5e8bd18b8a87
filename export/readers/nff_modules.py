"""A pickled Painn of NeuralForceField, walked along the paths that one has: its tensors by name, and its settings.

Nothing that could change the equations is passed over: each class has the attributes, tensors and submodules listed
here, and one that has more, or functions that run beside it, is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from painn_deploy.export.declaration import ENERGY_KEY, Declaration
from painn_deploy.export.errors import DeclarationError
from painn_deploy.export.readers.archive import PARAMETERS, Archive, kind_of
from painn_deploy.export.readers.modules import Code, Holds, Modules
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["CODE", "Settings", "check_sum", "energy_of", "read_modules", "refuse"]

ACTIVATIONS = {"Swish": "silu", "SiLU": "silu", "shifted_softplus": "shifted_softplus"}
BLOCKS, LAYERS = "nff.nn.modules.painn", "nff.nn.layers"
CODE = Code(
    "What can be deployed of NeuralForceField is Painn with swish or shifted_softplus, whose energy is one read-out "
    "after the last interaction, summed over atoms.",
    {
        "nff.nn.models.painn.Painn": Holds(
            "excl_vol power sigma grad_keys output_keys skip num_readouts pool_dic compute_delta cutoff device",
            "embed_block message_blocks update_blocks readout_blocks pool_dic",
        ),
        f"{BLOCKS}.EmbeddingBlock": Holds("feat_dim", "atom_embed"),
        f"{BLOCKS}.MessageBlock": Holds(parts="inv_message"),
        f"{BLOCKS}.InvariantMessage": Holds(parts="inv_dense dist_embed"),
        f"{BLOCKS}.InvariantDense": Holds(parts="layers"),
        f"{BLOCKS}.DistanceEmbed": Holds(parts="block f_cut"),
        f"{BLOCKS}.UpdateBlock": Holds(parts="u_mat v_mat s_dense"),
        f"{BLOCKS}.ReadoutBlock": Holds(parts="readoutdict scale_shift"),
        f"{LAYERS}.PainnRadialBasis": Holds("n cutoff", "n"),
        f"{LAYERS}.CosineEnvelope": Holds("cutoff"),
        f"{LAYERS}.Dense": Holds(
            "in_features out_features weight_init bias_init activation", "weight bias activation dropout"
        ),
        "nff.nn.modules.schnet.ScaleShift": Holds("means stddevs"),
        "nff.nn.modules.schnet.SumPool": Holds(),
        "nff.nn.activations.Swish": Holds(),
        "nff.nn.activations.shifted_softplus": Holds(),
    },
)
refuse = CODE.refuse


@dataclass(frozen=True)
class Settings:
    """What a Painn's weights do not say.

    Attributes:
        key: of the read-out that is the energy.
        others: keys of its other read-outs.
        cutoff: in the model's unit of length.
        activation: of all layers, as a configuration names it.
        learnable: whether frequencies are parameters, which move to another precision with their model.
        mean: added to each atom's energy, after it was multiplied.
        scale: that each atom's energy is multiplied by.
    """

    key: str
    others: tuple[str, ...]
    cutoff: float
    activation: str
    learnable: bool
    mean: float
    scale: float


def energy_of(keys: Sequence[str], declared: Declaration, source: str) -> str:
    """The read-out that is the energy.

    Args:
        keys: of all read-outs.
        declared: what the model's owner calls the energy.
        source: the file, for the message.

    Raises:
        DeclarationError: there is none of that name.
    """
    key = declared.energy_key or ENERGY_KEY
    if key not in keys:
        raise DeclarationError(
            f"{source}: no read-out gives the energy {key!r}; what its read-outs give is called: "
            f"{', '.join(map(repr, keys)) or 'nothing'}. Say which is the energy with --energy-key."
        )
    return key


def check_sum(source: str, key: str, *, skips: bool, interactions: int, pool: str) -> None:
    """Refuse an energy that is not one read-out after the last interaction, summed over atoms.

    Args:
        source: the file, for the message.
        key: of the energy.
        skips: whether a read-out follows every interaction.
        interactions: of the model.
        pool: how energies of atoms become a structure's.

    Raises:
        CheckpointError: see above.
    """
    if skips and interactions > 1:  # of one interaction the sum is its only term
        refuse(source, f"the energy {key!r} is a sum of read-outs after every interaction (skip_connection)")
    if pool not in ("SumPool", "sum"):
        refuse(source, f"the energy {key!r} is pooled by {pool}, not summed over atoms (pool_dic)")


def read_modules(archive: Archive, model: StandIn, declared: Declaration) -> tuple[dict[str, Tensor], Settings]:
    """Read a pickled Painn: its tensors by their names in a state dict, of its read-outs the energy's alone.

    Args:
        archive: of the file.
        model: of its tree.
        declared: what its owner calls the energy.

    Raises:
        CheckpointError: it is another model, or holds what could change its equations.
        DeclarationError: no read-out has the name of the energy.
    """
    walk = _Walk(archive)
    settings = walk.model(model, declared)
    return walk.tensors, settings


class _Walk(Modules):
    """Along the paths that a Painn has; what lies beside them raises."""

    def __init__(self, archive: Archive) -> None:
        super().__init__(archive, CODE)
        self._cutoffs: dict[str, float] = {}
        self._activations: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}

    def model(self, thing: StandIn, declared: Declaration) -> Settings:
        model = self.module(thing, "the model", "Painn")
        if model.part("excl_vol"):
            self.refuse("it adds an excluded volume (excl_vol), repulsion of pairs that is not zero at the cutoff")
        if model.has("cutoff"):  # else its code takes that of the first envelope
            self._cutoffs["the model"] = self.number(model.part("cutoff"), "its cutoff")
        embedding = self.module(model.part("embed_block"), "embed_block", "EmbeddingBlock").part("atom_embed")
        table = self.module(embedding, "embed_block.atom_embed", "Embedding")
        if table.part("max_norm") is not None:
            self.refuse("the embedding renormalises its rows (max_norm)")
        self._store(table, "embed_block.atom_embed", "weight")
        messages = self.members(model.part("message_blocks"), "message_blocks", "ModuleList")
        updates = self.members(model.part("update_blocks"), "update_blocks", "ModuleList")
        if not messages or len(messages) != len(updates):
            self.refuse(f"it has {len(messages)} message blocks and {len(updates)} update blocks")
        learnable = {self._message(block, f"message_blocks.{index}") for index, block in messages.items()}
        if len(learnable) > 1:
            self.refuse("the frequencies of some interactions are parameters, and of others are not")
        for index, block in updates.items():
            self._update(block, f"update_blocks.{index}")
        key, others, mean, scale = self._read_out(model, len(messages), declared)
        return Settings(
            key=key,
            others=others,
            cutoff=float(self._one(self._cutoffs, "cutoffs")),
            activation=str(self._one(self._activations, "activations")),
            learnable=learnable.pop(),
            mean=mean,
            scale=scale,
        )

    def _message(self, thing: Any, path: str) -> bool:
        """A message block; whether its frequencies are parameters."""
        block = self.module(thing, path, "MessageBlock")
        path = f"{path}.inv_message"
        inner = self.module(block.part("inv_message"), path, "InvariantMessage")
        dense = self.module(inner.part("inv_dense"), f"{path}.inv_dense", "InvariantDense")
        self._network(dense.part("layers"), f"{path}.inv_dense.layers")
        path = f"{path}.dist_embed"
        embed = self.module(inner.part("dist_embed"), path, "DistanceEmbed")
        first, filters = self._pair(embed.part("block"), f"{path}.block")
        basis = self.module(first, f"{path}.block.0", "PainnRadialBasis")
        self._store(basis, f"{path}.block.0", "n")
        self._dense(filters, f"{path}.block.1")
        envelope = self.module(embed.part("f_cut"), f"{path}.f_cut", "CosineEnvelope")
        for owner, at in ((basis, f"{path}.block.0"), (envelope, f"{path}.f_cut")):
            self._cutoffs[at] = self.number(owner.part("cutoff"), f"the cutoff of {at}")
        frequencies = basis.part("n")
        return isinstance(frequencies, StandIn) and str(frequencies.name) in PARAMETERS

    def _update(self, thing: Any, path: str) -> None:
        block = self.module(thing, path, "UpdateBlock")
        for name in ("u_mat", "v_mat"):
            self._dense(block.part(name), f"{path}.{name}")
        self._network(block.part("s_dense"), f"{path}.s_dense")

    def _read_out(
        self, model: StandIn, interactions: int, declared: Declaration
    ) -> tuple[str, tuple[str, ...], float, float]:
        """Key of the energy and of the other read-outs, mean and scale."""
        source = self.archive.source
        blocks = self.members(model.part("readout_blocks"), "readout_blocks", "ModuleList")
        block = self.module(blocks.get("0"), "readout_blocks.0", "ReadoutBlock")
        networks = self.members(block.part("readoutdict"), "readout_blocks.0.readoutdict", "ModuleDict")
        key = energy_of(list(networks), declared, source)
        self._network(networks[key], f"readout_blocks.0.readoutdict.{key}")
        skip = model.part("skip")
        skips = skip if isinstance(skip, bool) else skip.get(key) if isinstance(skip, Mapping) else None
        if not isinstance(skips, bool):
            self.refuse(f"whether a read-out follows every interaction is not said (skip is {kind_of(skip)})")
        check_sum(source, key, skips=skips, interactions=interactions, pool=self._pool(model, list(networks), key))
        shift = self.module(block.part("scale_shift"), "readout_blocks.0.scale_shift", "ScaleShift")
        numbers = []
        for name, default in (("means", 0.0), ("stddevs", 1.0)):
            held = shift.part(name)
            if not isinstance(held, Mapping):
                self.refuse(f"the {name} of its read-outs are no mapping")
            numbers.append(self.number(held.get(key, default), f"the entry of {key!r} in {name}"))
        return key, tuple(name for name in networks if name != key), numbers[0], numbers[1]

    def _pool(self, model: StandIn, keys: Sequence[str], key: str) -> str:
        """The class that makes a structure's energy of its atoms'."""
        pools = model.part("pool_dic")
        if pools is None:  # as its code: a sum for each output
            outputs = model.part("output_keys", keys)
            return "SumPool" if isinstance(outputs, list) and key in outputs else "nothing"
        held = self.members(pools, "pool_dic", "ModuleDict") if isinstance(pools, StandIn) else pools
        pool = held.get(key) if isinstance(held, Mapping) else None
        if isinstance(pool, StandIn) and pool.kind == "SumPool":
            self.module(pool, f"pool_dic.{key}", "SumPool")
        return pool.kind if isinstance(pool, StandIn) else "nothing"

    def _one(self, found: Mapping[str, Any], what: str) -> Any:
        """The value that all have in common."""
        values = list(dict.fromkeys(found.values()))
        if len(values) != 1:
            self.refuse(f"its parts have different {what}: {', '.join(map(str, values[:4]))}")
        return values[0]

    def _pair(self, thing: Any, path: str) -> tuple[Any, Any]:
        members = self.members(thing, path, "Sequential")
        if len(members) != 2:
            self.refuse(f"{path} has {len(members)} layers, not 2")
        return members["0"], members["1"]

    def _network(self, thing: Any, path: str) -> None:
        first, last = self._pair(thing, path)
        self._dense(first, f"{path}.0", activated=True)
        self._dense(last, f"{path}.1")

    def _dense(self, thing: Any, path: str, *, activated: bool = False) -> None:
        layer = self.module(thing, path, "Dense")
        if (dropout := layer.part("dropout")) is not None:  # nothing where a model is evaluated
            self.module(dropout, f"{path}.dropout", "Dropout")
        activation = layer.part("activation")
        if activated:
            kind = self.module(activation, f"the activation of {path}", *ACTIVATIONS).kind
            self._activations[path] = ACTIVATIONS[kind]
        elif activation is not None:
            self.refuse(f"{path} has the activation {kind_of(activation)}, and Painn's has none")
        self._store(layer, path, "weight", "bias")

    def _store(self, owner: StandIn, path: str, *names: str) -> None:
        for name in names:
            if owner.part(name) is not None:
                self.tensors[f"{path}.{name}"] = self.tensor(owner, name, path)
