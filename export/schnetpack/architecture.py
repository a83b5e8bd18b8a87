"""Whether a model that SchNetPack saved is one that we can say in our terms; what changes its equations raises.

Much of it leaves no trace in the weights: the activation, the cutoff function, how energies are added up. All of it is
looked for in the tree of stand-ins, along the paths that a PaiNN has.
"""

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor

from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.archive import Archive, kind_of
from painn_deploy.export.readers.stand_ins import Name, StandIn
from painn_deploy.export.schnetpack.tensors import Tensors

__all__ = ["BASES", "Checker"]

SOFT, SOFTPLUS = "shifted_softplus", "schnetpack.nn.activations"
DEPLOYED = (
    "PaiNN with GaussianRBF, GaussianRBFCentered or BesselRBF; CosineCutoff, MollifierCutoff or SwitchFunction; silu "
    "or shifted_softplus; an energy of one Atomwise, and ZBLRepulsionEnergy"
)
BASES = {"GaussianRBF": ("offsets", "widths"), "GaussianRBFCentered": ("offsets", "widths"), "BesselRBF": ("freqs",)}
"""Radial bases, and the tensors of each."""

ACTIVATIONS = {
    **dict.fromkeys(("torch.nn.functional.silu", "torch.nn.modules.activation.SiLU", "torch.silu"), "silu"),
    **dict.fromkeys((f"{SOFTPLUS}.{SOFT}", f"{SOFTPLUS}.ShiftedSoftplus"), SOFT),
}
"""Functions and modules, as pickles and texts of TorchScript name them, and what a configuration calls them."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "forward")
"""Functions of one module alone, that run beside what its class computes or in its place."""

HOOKED = re.compile(r"^ +__forward_(pre_)?hooks__ = ", re.M)
"""A class that TorchScript wrote with hooks."""

ROOTS = ("schnetpack", "torch")
"""Packages whose modules are known: another may have a class of the same name and parts."""

DEEPEST = 100
"""Interactions, layers or modules in a list."""

PARTS = {
    "PaiNN": {
        *("cutoff", "cutoff_fn", "radial_basis", "embedding", "electronic_embeddings", "filter_net"),
        *("interactions", "mixing"),
    },
    "CosineCutoff": {"cutoff"},
    "MollifierCutoff": {"cutoff", "eps"},
    "SwitchFunction": {"cutoff", "switch_on", "switch_off"},
    **{name: set(tensors) for name, tensors in BASES.items()},
    "Embedding": {"weight"},
    "NuclearEmbedding": {"electron_config", "element_embedding", "embedding", "config_linear"},
    "Linear": {"weight", "bias"},
    "PaiNNInteraction": {"interatomic_context_net"},
    "PaiNNMixing": {"intraatomic_context_net", "mu_channel_mix"},
    "Dense": {"weight", "bias", "activation"},
    "ShiftedSoftplus": {"alpha", "beta"},
    "Atomwise": {"outnet"},
    "ZBLRepulsionEnergy": {"a_pow", "a_div", "coefficients", "exponents", "ke", "cutoff_fn"},
}
"""Tensors and submodules that each class may have; another one would be left out of the equations."""

CALL = re.compile(r"\b(?:__torch__|torch|ops)(?:\.\w+)+")
"""A function that TorchScript's text mentions."""


class Checker:
    """Walks the modules of one file, and raises for what cannot be deployed.

    Args:
        archive: of the file.
        weights: a state dict that takes the place of the modules' own numbers; None where there is none.

    Attributes:
        archive: as given.
        tensors: of the model.
        source: the file, for messages.
    """

    def __init__(self, archive: Archive, weights: Mapping[str, Tensor] | None = None) -> None:
        self.archive, self.source = archive, archive.source
        self.tensors = Tensors(archive, weights)
        self._activations: dict[str, str] = {}

    def refuse(self, what: str) -> NoReturn:
        """Raise for what stands in the way.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{self.source}: {what}. What can be deployed is {DEPLOYED}.")

    def module(self, thing: Any, kinds: tuple[str, ...], what: str) -> StandIn:
        """A module that is one of some kinds, and holds nothing else than these do.

        Args:
            thing: of the tree.
            kinds: names of classes.
            what: it is, for the message.

        Raises:
            CheckpointError: it is another one, or has a part or a hook that is not known.
        """
        if not isinstance(thing, StandIn) or thing.kind not in kinds:
            name = thing.kind if isinstance(thing, StandIn) else kind_of(thing)
            self.refuse(f"{what} is {name}, not {' or '.join(kinds)}")
        if _plain(thing.name.module).partition(".")[0] not in ROOTS:
            self.refuse(f"{what} is {thing.name}, which is none of SchNetPack's")
        if hooks := [hook for hook in HOOKS if thing.part(hook)]:
            self.refuse(f"{what} has {hooks[0]}, functions that run beside it and may change what it computes")
        if HOOKED.search(self._text(thing)):
            self.refuse(f"{what} has hooks, functions that run beside it and may change what it computes")
        parts = {name for name, _ in thing.children()}
        for key in ("_parameters", "_buffers"):
            held = thing.part(key)
            parts |= {name for name, value in held.items() if value is not None} if isinstance(held, dict) else set()
        if unknown := sorted(map(str, parts - PARTS.get(thing.kind, parts))):
            self.refuse(f"{what} has parts that {thing.kind} has not: {', '.join(unknown)}")
        return thing

    def members(self, thing: Any, what: str) -> list[Any]:
        """Modules of a list or a sequence, in order.

        Args:
            thing: of the tree; None for an empty list.
            what: it is, for the message.

        Raises:
            CheckpointError: it is no list of modules.
        """
        if thing is None:
            return []
        listed = self.module(thing, ("ModuleList", "Sequential"), what)
        children = dict(listed.children())
        if len(children) > DEEPEST or list(children) != [str(index) for index in range(len(children))]:
            self.refuse(f"{what} holds modules by names that are no numbers")
        return list(children.values())

    def network(self, thing: Any, path: str) -> dict[str, Tensor]:
        """Tensors of a network by their names in the state dict: known activations between layers, none at the end.

        Args:
            thing: of the tree.
            path: of it in the state dict.

        Raises:
            CheckpointError: another activation, or another kind of layer.
        """
        layers = [self.module(layer, ("Dense",), f"a layer of {path}") for layer in self.members(thing, path)]
        if not layers:
            self.refuse(f"{path} has no layers")
        for index, layer in enumerate(layers[:-1]):
            name = self._activation(layer)
            if name not in ACTIVATIONS:
                found = str(name).rpartition(".")[2]
                self.refuse(f"the activation of {path} is {found}, and only silu and {SOFT} can be deployed")
            if name == f"{SOFTPLUS}.ShiftedSoftplus":
                self._check_plain(layer.part("activation"), f"{path}.{index}.activation")
            self._activations.setdefault(ACTIVATIONS[name], path)
        self.linear(layers[-1], f"the last layer of {path}")
        found_tensors: dict[str, Tensor] = {}
        for index, layer in enumerate(layers):
            found_tensors |= self.tensors.some(layer, f"{path}.{index}")
        return found_tensors

    def _check_plain(self, module: StandIn, path: str) -> None:
        numbers = [self.tensors.number(module, name, path) for name in ("alpha", "beta")]
        if numbers != [1.0, 1.0]:
            self.refuse(f"{path} is ShiftedSoftplus with alpha and beta {numbers}, and only 1 and 1 can be deployed")

    def activation(self) -> str:
        """The one that all networks have whose layers were asked for.

        Raises:
            CheckpointError: there are two.
        """
        if len(self._activations) > 1:
            places = " and ".join(f"{name} in {place}" for name, place in self._activations.items())
            self.refuse(f"its networks have different activations, {places}: a deployed model has one for all")
        return next(iter(self._activations), "silu")

    def linear(self, thing: Any, what: str) -> StandIn:
        """A layer without an activation.

        Args:
            thing: of the tree.
            what: it is, for the message.

        Raises:
            CheckpointError: it has one.
        """
        layer = self.module(thing, ("Dense",), what)
        if (found := self._activation(layer)) not in ("torch.nn.modules.linear.Identity", None):
            self.refuse(f"{what} has the activation {found.rpartition('.')[2]}, and SchNetPack's has none")
        return layer

    def _activation(self, layer: StandIn) -> str | None:
        """The full name of a layer's activation, without what TorchScript adds to it; None where there is none."""
        if not layer.has("activation"):
            return self._scripted_activation(layer)
        activation = layer.part("activation")
        if activation is None or isinstance(activation, Name):
            return None if activation is None else _plain(str(activation))
        if not isinstance(activation, StandIn):
            self.refuse(f"an activation is {kind_of(activation)}")
        return _plain(str(self.module(activation, (activation.kind,), "an activation").name))

    def _scripted_activation(self, layer: StandIn) -> str | None:
        """The function that a layer's text calls: TorchScript keeps no attribute that is a function."""
        body = re.search(r"def forward\(.*?\) -> Tensor:\n(.*)", self._text(layer), re.S)
        if body is None:
            self.refuse(f"nothing says which activation {layer.name} has")
        names = [_plain(name) for name in CALL.findall(body[1])]
        others = [name for name in names if name not in ("torch.linear", "torch.nn.functional.linear")]
        if len(others) > 1:
            self.refuse(f"a layer calls {', '.join(others)}")
        return others[0] if others else None

    def _text(self, module: StandIn) -> str:
        """What TorchScript wrote of a module's class; empty where there is nothing."""
        record = f"code/{module.name.module.replace('.', '/')}.py"
        if not self.archive.scripted or not self.archive.has(record):
            return ""
        text = self.archive.record(record).decode("utf-8", "replace")
        found = re.search(rf"^class {re.escape(module.kind)}\(Module\):\n(.*?)(?=^\S|\Z)", text, re.S | re.M)
        return found[1] if found else ""

    def representation(self, thing: Any) -> StandIn:
        """A PaiNN whose equations are ours.

        Raises:
            CheckpointError: see above.
        """
        painn = self.module(thing, ("PaiNN",), "the representation")
        electronic = [kind_of(one) for one in self.members(painn.part("electronic_embeddings"), "embeddings")]
        if electronic:
            self.refuse(f"the model reads more than atoms and positions: {', '.join(electronic)}")
        self.module(painn.part("radial_basis"), tuple(BASES), "the radial basis")
        embedding = self.module(painn.part("embedding"), ("Embedding", "NuclearEmbedding"), "the embedding")
        if embedding.part("max_norm") is not None:
            self.refuse("the embedding renormalises its rows (max_norm)")
        return painn

    def epsilon(self, mixing: list[StandIn]) -> float:
        """What all mixing blocks add inside their norms.

        Raises:
            CheckpointError: they differ, or do not say.
        """
        found = [block.part("epsilon") for block in mixing]
        if not found or not isinstance(found[0], float) or any(each != found[0] for each in found):
            self.refuse(f"the mixing blocks have no epsilon in common: {found}")
        return found[0]


def _plain(name: str) -> str:
    """A name without what TorchScript puts before it and into it."""
    return re.sub(r"\.___torch_mangle_\d+", "", name).removeprefix("__torch__.")
