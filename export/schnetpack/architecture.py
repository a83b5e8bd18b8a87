"""Whether a model that SchNetPack saved is one that we can say in our terms; what changes its equations raises.

Much of it leaves no trace in the weights: the activation, the cutoff function, how energies are added up. All of it is
looked for in the tree of stand-ins, along the paths that a PaiNN has.
"""

import re
from typing import Any, NoReturn

from painn_deploy.export.errors import CheckpointError, DeclarationError
from painn_deploy.export.readers.archive import Archive, kind_of
from painn_deploy.export.readers.stand_ins import Name, StandIn

__all__ = ["Checker"]

DEPLOYED = "PaiNN with GaussianRBF or BesselRBF, CosineCutoff and silu"
DERIVED = frozenset({"Forces", "Response", "Strain"})
"""Modules that follow from the energy; Strain only prepares its derivative."""

HARMLESS = frozenset({"CastTo64", "CastTo32", "CastTo16", "CastMap"})
"""Postprocessors."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
DEEPEST = 100
"""Interactions, layers or modules in a list."""

PARTS = {
    "PaiNN": {
        *("cutoff", "cutoff_fn", "radial_basis", "embedding", "electronic_embeddings", "filter_net"),
        *("interactions", "mixing"),
    },
    "CosineCutoff": {"cutoff"},
    "GaussianRBF": {"widths", "offsets"},
    "BesselRBF": {"freqs"},
    "Embedding": {"weight"},
    "NuclearEmbedding": {"electron_config", "element_embedding", "embedding", "config_linear"},
    "Linear": {"weight", "bias"},
    "PaiNNInteraction": {"interatomic_context_net"},
    "PaiNNMixing": {"intraatomic_context_net", "mu_channel_mix"},
    "Dense": {"weight", "bias", "activation"},
    "Atomwise": {"outnet"},
}
"""Tensors and submodules that each class may have; another one would be left out of the equations."""

CALL = re.compile(r"\b(?:__torch__|torch|ops)(?:\.\w+)+")
"""A function that TorchScript's text mentions."""


class Checker:
    """Walks the modules of one file, and raises for what cannot be deployed.

    Args:
        archive: of the file.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def refuse(self, what: str) -> NoReturn:
        """Raise for what stands in the way.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{self._archive.source}: {what}. What can be deployed is {DEPLOYED}.")

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
        if hooks := [hook for hook in HOOKS if thing.part(hook)]:
            self.refuse(f"{what} has {hooks[0]}, functions that run beside it and may change what it computes")
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

    def layers(self, thing: Any, what: str) -> list[StandIn]:
        """Layers of a network: silu between them, and nothing behind the last.

        Args:
            thing: of the tree.
            what: it is, for the message.

        Raises:
            CheckpointError: another activation, or another kind of layer.
        """
        layers = [self.module(layer, ("Dense",), f"a layer of {what}") for layer in self.members(thing, what)]
        if not layers:
            self.refuse(f"{what} has no layers")
        for layer in layers[:-1]:
            if (found := self._activation(layer)) not in ("silu", "SiLU"):
                self.refuse(f"the activation of {what} is {found}, and only silu can be deployed")
        self.linear(layers[-1], f"the last layer of {what}")
        return layers

    def linear(self, thing: Any, what: str) -> StandIn:
        """A layer without an activation.

        Args:
            thing: of the tree.
            what: it is, for the message.

        Raises:
            CheckpointError: it has one.
        """
        layer = self.module(thing, ("Dense",), what)
        if (found := self._activation(layer)) not in ("Identity", None):
            self.refuse(f"{what} has the activation {found}, and SchNetPack's has none")
        return layer

    def _activation(self, layer: StandIn) -> str | None:
        if not layer.has("activation"):
            return self._scripted_activation(layer)
        activation = layer.part("activation")
        if activation is None or isinstance(activation, Name):
            return None if activation is None else activation.name
        if not isinstance(activation, StandIn):
            self.refuse(f"an activation is {kind_of(activation)}")
        return self.module(activation, (activation.kind,), "an activation").kind

    def _scripted_activation(self, layer: StandIn) -> str | None:
        """The function that a layer's text calls: TorchScript keeps no attribute that is a function."""
        record = f"code/{layer.name.module.replace('.', '/')}.py"
        if not self._archive.has(record):
            self.refuse(f"nothing says which activation {layer.name} has")
        text = self._archive.record(record).decode("utf-8", "replace")
        found = re.search(rf"^class {re.escape(layer.kind)}\(Module\):\n(.*?)(?=^\S|\Z)", text, re.S | re.M)
        body = re.search(r"def forward\(.*?\) -> Tensor:\n(.*)", found[1], re.S) if found else None
        if body is None:
            self.refuse(f"the text of {layer.name} is none that TorchScript writes")
        names = [re.sub(r"\.___torch_mangle_\d+", "", name) for name in CALL.findall(body[1])]
        others = [name for name in names if name not in ("torch.linear", "__torch__.torch.nn.functional.linear")]
        if len(others) > 1:
            self.refuse(f"a layer calls {', '.join(others)}")
        return others[0].rpartition(".")[2] if others else None

    def representation(self, thing: Any) -> StandIn:
        """A PaiNN whose equations are ours.

        Raises:
            CheckpointError: see above.
        """
        painn = self.module(thing, ("PaiNN",), "the representation")
        electronic = [kind_of(one) for one in self.members(painn.part("electronic_embeddings"), "embeddings")]
        if electronic:
            self.refuse(f"the model reads more than atoms and positions: {', '.join(electronic)}")
        self.module(painn.part("radial_basis"), ("GaussianRBF", "BesselRBF"), "the radial basis")
        self.module(painn.part("cutoff_fn"), ("CosineCutoff",), "the cutoff function")
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

    def energy(self, model: StandIn, key: str) -> tuple[int, StandIn]:
        """The module whose output is the energy, and its place; all others follow from it or are something else.

        Args:
            model: the NeuralNetworkPotential.
            key: what it calls the energy.

        Raises:
            CheckpointError: it cannot be deployed, see above.
            DeclarationError: no module gives that energy, and the message says what there is.
        """
        for module in self.members(model.part("input_modules"), "the input modules"):
            if module.kind not in {"PairwiseDistances", *DERIVED}:
                self.refuse(f"the input module {module.kind} is not known")
        outputs = self.members(model.part("output_modules"), "the output modules")
        for module in outputs:
            if module.kind not in {"Atomwise", *DERIVED} and key in (module.part("model_outputs") or ()):
                self.refuse(f"the energy {key!r} comes from {module.kind}, not from Atomwise alone")
        given = [(i, m) for i, m in enumerate(outputs) if m.kind == "Atomwise"]
        found = [(i, m) for i, m in given if m.part("output_key") == key]
        if len(found) != 1:
            keys = ", ".join(repr(m.part("output_key")) for _, m in given) or "none"
            raise DeclarationError(
                f"{self._archive.source}: {len(found) or 'no'} modules give the energy {key!r}; what its Atomwise "
                f"modules give is called: {keys}. Say which is the energy with --energy-key."
            )
        place, atomwise = found[0]
        self.module(atomwise, ("Atomwise",), "the read-out")
        if atomwise.part("n_out") != 1:
            self.refuse(f"the energy has {atomwise.part('n_out')} outputs, not one")
        if atomwise.part("aggregation_mode") != "sum":
            self.refuse(f"energies are aggregated by {atomwise.part('aggregation_mode')}, not by sum")
        return place, atomwise
