"""A pickled Painn of NeuralForceField, walked along the paths that one has: its tensors by name, and its settings.

Nothing that could change the equations is passed over: each class has the attributes, tensors and submodules listed
here, and one that has more, or functions that run beside it, is refused by name.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from painn_deploy.export.declaration import ENERGY_KEY, Declaration
from painn_deploy.export.errors import CheckpointError, DeclarationError
from painn_deploy.export.readers.archive import PARAMETERS, Archive, is_tensor, kind_of
from painn_deploy.export.readers.stand_ins import Name, StandIn

__all__ = ["Settings", "check_sum", "energy_of", "read_modules", "refuse"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
MOST_MEMBERS = 100
"""Of a container: interactions, layers or read-outs."""

ACTIVATIONS = {"Swish": "silu", "SiLU": "silu", "shifted_softplus": "shifted_softplus"}


@dataclass(frozen=True)
class _Kind:
    """A class: the module that defines it, and what its objects hold beside what every torch module does."""

    module: str
    attributes: frozenset[str] = frozenset()
    parts: frozenset[str] | None = frozenset()  # tensors and submodules; None for a container's


def _kind(module: str, attributes: str = "", parts: str = "") -> _Kind:
    return _Kind(module, frozenset(attributes.split()), frozenset(parts.split()))


BLOCKS, LAYERS, TORCH = "nff.nn.modules.painn", "nff.nn.layers", "torch.nn.modules"
KINDS = {
    "Painn": _kind(
        "nff.nn.models.painn",
        "excl_vol power sigma grad_keys output_keys skip num_readouts pool_dic compute_delta cutoff device",
        "embed_block message_blocks update_blocks readout_blocks pool_dic",
    ),
    "EmbeddingBlock": _kind(BLOCKS, "feat_dim", "atom_embed"),
    "Embedding": _kind(
        f"{TORCH}.sparse",
        "num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse",
        "weight",
    ),
    "MessageBlock": _kind(BLOCKS, "", "inv_message"),
    "InvariantMessage": _kind(BLOCKS, "", "inv_dense dist_embed"),
    "InvariantDense": _kind(BLOCKS, "", "layers"),
    "DistanceEmbed": _kind(BLOCKS, "", "block f_cut"),
    "PainnRadialBasis": _kind(LAYERS, "n cutoff", "n"),
    "CosineEnvelope": _kind(LAYERS, "cutoff"),
    "UpdateBlock": _kind(BLOCKS, "", "u_mat v_mat s_dense"),
    "ReadoutBlock": _kind(BLOCKS, "", "readoutdict scale_shift"),
    "ScaleShift": _kind("nff.nn.modules.schnet", "means stddevs"),
    "SumPool": _kind("nff.nn.modules.schnet"),
    "Dense": _kind(
        LAYERS,
        "in_features out_features weight_init bias_init activation",
        "weight bias activation dropout",
    ),
    "Dropout": _kind(f"{TORCH}.dropout", "p inplace"),
    "Swish": _kind("nff.nn.activations"),
    "SiLU": _kind(f"{TORCH}.activation", "inplace"),
    "shifted_softplus": _kind("nff.nn.activations"),
    "Sequential": _Kind(f"{TORCH}.container", parts=None),
    "ModuleList": _Kind(f"{TORCH}.container", parts=None),
    "ModuleDict": _Kind(f"{TORCH}.container", parts=None),
}


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


def refuse(source: str, what: str) -> NoReturn:
    """Raise for what stands in the way.

    Args:
        source: the file.
        what: it is.

    Raises:
        CheckpointError: always.
    """
    raise CheckpointError(
        f"{source}: {what}. What can be deployed of NeuralForceField is Painn with swish or shifted_softplus, whose "
        "energy is one read-out after the last interaction, summed over atoms."
    )


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


class _Walk:
    """Along the paths that a Painn has; what lies beside them raises."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._cutoffs: dict[str, float] = {}
        self._activations: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}

    def model(self, thing: StandIn, declared: Declaration) -> Settings:
        model = self._module(thing, "Painn", "the model")
        if model.part("excl_vol"):
            self._refuse("it adds an excluded volume (excl_vol), repulsion of pairs that is not zero at the cutoff")
        if model.has("cutoff"):  # else its code takes that of the first envelope
            self._cutoffs["the model"] = self._number(model.part("cutoff"), "its cutoff")
        embedding = self._module(model.part("embed_block"), "EmbeddingBlock", "embed_block").part("atom_embed")
        table = self._module(embedding, "Embedding", "embed_block.atom_embed")
        if table.part("max_norm") is not None:
            self._refuse("the embedding renormalises its rows (max_norm)")
        self._store(table, "embed_block.atom_embed", "weight")
        messages = self._members(model.part("message_blocks"), "ModuleList", "message_blocks")
        updates = self._members(model.part("update_blocks"), "ModuleList", "update_blocks")
        if not messages or len(messages) != len(updates):
            self._refuse(f"it has {len(messages)} message blocks and {len(updates)} update blocks")
        learnable = {self._message(block, f"message_blocks.{index}") for index, block in messages.items()}
        if len(learnable) > 1:
            self._refuse("the frequencies of some interactions are parameters, and of others are not")
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
        block = self._module(thing, "MessageBlock", path)
        path = f"{path}.inv_message"
        inner = self._module(block.part("inv_message"), "InvariantMessage", path)
        dense = self._module(inner.part("inv_dense"), "InvariantDense", f"{path}.inv_dense")
        self._network(dense.part("layers"), f"{path}.inv_dense.layers")
        path = f"{path}.dist_embed"
        embed = self._module(inner.part("dist_embed"), "DistanceEmbed", path)
        first, filters = self._pair(embed.part("block"), f"{path}.block")
        basis = self._module(first, "PainnRadialBasis", f"{path}.block.0")
        self._store(basis, f"{path}.block.0", "n")
        self._dense(filters, f"{path}.block.1")
        envelope = self._module(embed.part("f_cut"), "CosineEnvelope", f"{path}.f_cut")
        for owner, at in ((basis, f"{path}.block.0"), (envelope, f"{path}.f_cut")):
            self._cutoffs[at] = self._number(owner.part("cutoff"), f"the cutoff of {at}")
        frequencies = basis.part("n")
        return isinstance(frequencies, StandIn) and str(frequencies.name) in PARAMETERS

    def _update(self, thing: Any, path: str) -> None:
        block = self._module(thing, "UpdateBlock", path)
        for name in ("u_mat", "v_mat"):
            self._dense(block.part(name), f"{path}.{name}")
        self._network(block.part("s_dense"), f"{path}.s_dense")

    def _read_out(
        self, model: StandIn, interactions: int, declared: Declaration
    ) -> tuple[str, tuple[str, ...], float, float]:
        """Key of the energy and of the other read-outs, mean and scale."""
        source = self._archive.source
        blocks = self._members(model.part("readout_blocks"), "ModuleList", "readout_blocks")
        block = self._module(blocks.get("0"), "ReadoutBlock", "readout_blocks.0")
        networks = self._members(block.part("readoutdict"), "ModuleDict", "readout_blocks.0.readoutdict")
        key = energy_of(list(networks), declared, source)
        self._network(networks[key], f"readout_blocks.0.readoutdict.{key}")
        skip = model.part("skip")
        skips = skip if isinstance(skip, bool) else skip.get(key) if isinstance(skip, Mapping) else None
        if not isinstance(skips, bool):
            self._refuse(f"whether a read-out follows every interaction is not said (skip is {kind_of(skip)})")
        check_sum(source, key, skips=skips, interactions=interactions, pool=self._pool(model, list(networks), key))
        shift = self._module(block.part("scale_shift"), "ScaleShift", "readout_blocks.0.scale_shift")
        numbers = []
        for name, default in (("means", 0.0), ("stddevs", 1.0)):
            held = shift.part(name)
            if not isinstance(held, Mapping):
                self._refuse(f"the {name} of its read-outs are no mapping")
            numbers.append(self._number(held.get(key, default), f"the entry of {key!r} in {name}"))
        return key, tuple(name for name in networks if name != key), numbers[0], numbers[1]

    def _pool(self, model: StandIn, keys: Sequence[str], key: str) -> str:
        """The class that makes a structure's energy of its atoms'."""
        pools = model.part("pool_dic")
        if pools is None:  # as its code: a sum for each output
            outputs = model.part("output_keys", keys)
            return "SumPool" if isinstance(outputs, list) and key in outputs else "nothing"
        held = self._members(pools, "ModuleDict", "pool_dic") if isinstance(pools, StandIn) else pools
        pool = held.get(key) if isinstance(held, Mapping) else None
        if isinstance(pool, StandIn) and pool.kind == "SumPool":
            self._module(pool, "SumPool", f"pool_dic.{key}")
        return pool.kind if isinstance(pool, StandIn) else "nothing"

    def _one(self, found: Mapping[str, Any], what: str) -> Any:
        """The value that all have in common."""
        values = list(dict.fromkeys(found.values()))
        if len(values) != 1:
            self._refuse(f"its parts have different {what}: {', '.join(map(str, values[:4]))}")
        return values[0]

    def _refuse(self, what: str) -> NoReturn:
        refuse(self._archive.source, what)

    def _module(self, thing: Any, kind: str, path: str) -> StandIn:
        """A module of one class, which holds nothing else than that class does."""
        if not isinstance(thing, StandIn) or str(thing.name) != f"{KINDS[kind].module}.{kind}":
            self._refuse(f"{path} is {kind_of(thing)}, not {kind}")
        if hooks := [hook for hook in HOOKS if thing.part(hook)]:
            self._refuse(f"{path} has {hooks[0]}, functions that run beside it and may change what it computes")
        held = [each for each in map(thing.state.get, ("_modules", "_parameters", "_buffers")) if each is not None]
        if not all(isinstance(each, dict) for each in held):
            self._refuse(f"{path} holds its tensors and modules otherwise than torch does")
        parts = {name for each in held for name, value in each.items() if value is not None}
        attributes = {name for name in thing.state if not str(name).startswith("_")} - {"training"}
        allowed = KINDS[kind].parts
        unknown = (attributes - KINDS[kind].attributes) | (parts - (parts if allowed is None else allowed))
        if unknown:
            self._refuse(f"{path} has what {kind} has not: {', '.join(sorted(map(str, unknown)))}")
        return thing

    def _members(self, thing: Any, kind: str, path: str) -> dict[str, Any]:
        """What a container holds, by name."""
        members: dict[str, Any] = self._module(thing, kind, path).state.get("_modules") or {}
        if len(members) > MOST_MEMBERS:
            self._refuse(f"{path} has {len(members)} modules")
        if kind != "ModuleDict" and list(members) != [str(index) for index in range(len(members))]:
            self._refuse(f"{path} names its modules otherwise than by numbers")
        return members

    def _pair(self, thing: Any, path: str) -> tuple[Any, Any]:
        members = self._members(thing, "Sequential", path)
        if len(members) != 2:
            self._refuse(f"{path} has {len(members)} layers, not 2")
        return members["0"], members["1"]

    def _network(self, thing: Any, path: str) -> None:
        first, last = self._pair(thing, path)
        self._dense(first, f"{path}.0", activated=True)
        self._dense(last, f"{path}.1")

    def _dense(self, thing: Any, path: str, *, activated: bool = False) -> None:
        layer = self._module(thing, "Dense", path)
        if (dropout := layer.part("dropout")) is not None:  # nothing where a model is evaluated
            self._module(dropout, "Dropout", f"{path}.dropout")
        activation = layer.part("activation")
        if activated:
            if not isinstance(activation, StandIn) or activation.kind not in ACTIVATIONS:
                self._refuse(f"the activation of {path} is {kind_of(activation)}")
            self._module(activation, activation.kind, f"the activation of {path}")
            self._activations[path] = ACTIVATIONS[activation.kind]
        elif activation is not None:
            self._refuse(f"{path} has the activation {kind_of(activation)}, and Painn's has none")
        self._store(layer, path, "weight", "bias")

    def _store(self, owner: StandIn, path: str, *names: str) -> None:
        for name in names:
            if (thing := owner.part(name)) is not None:
                self.tensors[f"{path}.{name}"] = self._archive.tensor(thing, f"{path}.{name}")

    def _number(self, thing: Any, what: str) -> float:
        """A number as Python, torch or numpy holds one."""
        if isinstance(thing, int | float) and not isinstance(thing, bool):
            return float(thing)
        if is_tensor(thing) and (tensor := self._archive.tensor(thing, what)).numel() == 1:
            return float(tensor)
        match thing:
            case StandIn(Name(_, "scalar"), (StandIn(Name("numpy", "dtype"), ("f4" | "f8" as kind, *_)), held)):
                text = held.args[0] if isinstance(held, StandIn) and held.args else held  # of _codecs.encode
                numbers = text.encode("latin1") if isinstance(text, str) else text
                return float(struct.unpack("<f" if kind == "f4" else "<d", numbers)[0])
            case _:
                refuse(self._archive.source, f"{what} is no number; it is {kind_of(thing)}")
