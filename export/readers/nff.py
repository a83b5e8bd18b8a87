"""NeuralForceField (github.com/learningmatter-mit/NeuralForceField): a pickled Painn, or its Trainer's checkpoint.

What its users have: `best_model`, which is the pickled model; `checkpoint-N.pth.tar` and `best_model.pth.tar`, which
hold its state dict under `model`, and beside which `params.json` says what weights do not.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import ConfigurationError
from painn_deploy.export.parsing import UnreadableError
from painn_deploy.export.readers.archive import Archive, kind_of
from painn_deploy.export.readers.blocks import Block, Linear, Order, canonical, in_our_terms
from painn_deploy.export.readers.nff_modules import Settings, check_sum, energy_of, read_modules, refuse
from painn_deploy.export.readers.reader import Opened, Potential, Reader, named_by_model
from painn_deploy.export.readers.stand_ins import StandIn
from painn_deploy.export.reading import AbsentError, read_json

__all__ = ["NFF"]

PACKAGE = "nff."
EPSILON = 3e-15
"""Of |v|: the code adds 1e-15 to the square of each component."""

ORDER = Order(message=("vector", "scalar", "direction"), update=("vector", "product", "scalar"))
SUBCLASSES = {
    "PainnTransformer": "its messages are weighted by attention",
    "PainnDiabat": "its energies are eigenvalues of a matrix of diabatic energies",
    "PainnAdiabat": "its energies above the first are sums of absolute gaps",
    "PainnGapToAbs": "its energies are gaps added to another model's",
    "PainnDispersion": "it adds Grimme's dispersion to the energy",
    "PainnDiabatDispersion": "it diagonalises diabatic energies, and adds Grimme's dispersion",
    "PainnDipole": "it predicts dipoles beside energies",
    "Painn_VecOut": "it predicts vectors beside energies",
    "Painn_VecOut2": "it predicts vectors beside energies",
    "Painn_NAC_OuterProd": "it predicts couplings of states beside energies",
    "Painn_Complex": "its outputs are complex numbers",
    "Painn_Tuple": "its read-outs give several states at once",
    "Painn_wCP": "its energies are roots of a polynomial",
    "SpookyPainn": "it reads charge and spin, and adds terms between all atoms",
    "SpookyPainnDiabat": "it reads charge and spin, and diagonalises diabatic energies",
}
"""Other PaiNNs of this code, and why each is another model."""

PARAMS = "params.json"
LARGEST_PARAMS = 2**20
LARGEST_NUMBER = 1e30
MOST = 10_000
"""No cutoff and no number of radial functions is larger, whatever the unit."""

NESTED = ("details", "modelparams")
"""Where the code looks for hyperparameters in it, before it takes the whole."""

NAMED = {"swish": "silu", "shifted_softplus": "shifted_softplus"}
"""Activations as hyperparameters name them."""

MARK = "message_blocks.0.inv_message."
READOUTS = "readout_blocks.0.readoutdict."
WIDTHS = {
    "feat_dim": "embed_block.atom_embed.weight",
    "n_rbf": "message_blocks.0.inv_message.dist_embed.block.1.weight",
}
"""Weights whose columns hyperparameters count."""

FREQUENCIES = "message_blocks.{}.inv_message.dist_embed.block.0.n"


def read_nff(opened: Opened, declared: Declaration) -> Potential:
    """Read a Painn that NeuralForceField saved.

    Args:
        opened: the file; hyperparameters of a checkpoint of its Trainer are in the JSON beside it, or in `params.json`.
        declared: units, and what the model calls the energy.

    Raises:
        CheckpointError: it is no Painn that can be deployed; the message says what stands in the way.
        ConfigurationError: `params.json` is missing or wrong.
        DeclarationError: a unit was not named, or no read-out has the energy's name.
    """
    if isinstance(opened.tree, StandIn):
        kind = opened.tree.kind
        if kind in SUBCLASSES:
            refuse(opened.archive.source, f"it holds {kind} and not Painn: {SUBCLASSES[kind]}")
        if kind != "Painn":
            refuse(opened.archive.source, f"it holds {kind_of(opened.tree)}, which is no Painn")
        weights, settings = read_modules(opened.archive, opened.tree, declared)
        remarks = []
    else:
        params, where = _params(opened)
        weights, settings = _state(opened, declared, params)
        remarks = [f"Its cutoff, {settings.cutoff:g}, and its scale are those of {where}: the file does not say them."]
    found = _potential(opened.archive.source, weights, settings, declared)
    return replace(found, remarks=(*found.remarks, *remarks))


def _potential(source: str, weights: Mapping[str, Tensor], settings: Settings, declared: Declaration) -> Potential:
    """The model in our terms; every weight is used."""
    units = declared.scales(source)
    left = dict(weights)
    count = len({name.split(".")[1] for name in weights if name.startswith("message_blocks.")})

    def taken(name: str) -> Tensor:
        if name not in left:
            refuse(source, f"it lacks {name}")
        return left.pop(name)

    def linear(name: str, *, biased: bool = True) -> Linear:
        return Linear(taken(f"{name}.weight"), taken(f"{name}.bias") if biased else None)

    def block(index: int) -> Block:
        message, update = f"message_blocks.{index}.inv_message", f"update_blocks.{index}"
        n = taken(FREQUENCIES.format(index))
        # in the precision in which the code computes them
        frequencies = (n.double() if settings.learnable else n) * math.pi / settings.cutoff
        return Block(
            message=[linear(f"{message}.inv_dense.layers.{layer}") for layer in (0, 1)],
            filters=linear(f"{message}.dist_embed.block.1"),
            basis={"freqs": frequencies},
            multiplied=linear(f"{update}.u_mat", biased=False),
            measured=linear(f"{update}.v_mat", biased=False),
            update=[linear(f"{update}.s_dense.{layer}") for layer in (0, 1)],
        )

    readout = f"{READOUTS}{settings.key}"
    embedding = taken("embed_block.atom_embed.weight")
    blocks = [block(index) for index in range(count)]
    layers = [linear(f"{readout}.{layer}") for layer in (0, 1)]
    if left:
        refuse(source, f"it holds tensors that a Painn has no place for: {', '.join(sorted(left)[:6])}")
    tensors = canonical(blocks, ORDER, embedding, layers, source)
    said: dict[str, Any] = {
        "activation": settings.activation,
        "epsilon": EPSILON,
        "description": "read from a Painn of NeuralForceField",
    }
    others = ", ".join(map(repr, settings.others))
    remarks = [f"Its read-outs {others} are left out: {settings.key!r} is the energy."] if others else []
    return in_our_terms(tensors, said, settings.cutoff, units, settings.scale, settings.mean, remarks)


def _state(opened: Opened, declared: Declaration, params: Mapping[str, Any]) -> tuple[dict[str, Tensor], Settings]:
    """Weights of a state dict, without those of other read-outs; and what the hyperparameters beside it say."""
    source = opened.archive.source
    kind = str(params.get("model_type"))
    if kind in SUBCLASSES:
        refuse(source, f"its hyperparameters say {kind} and not Painn: {SUBCLASSES[kind]}")
    if kind != "Painn":
        raise ConfigurationError(
            f"The hyperparameters beside {source} have the model_type {kind[:80]!r}. Only 'Painn' is read: if it is "
            "one, say so there."
        )
    things = _weights(opened.tree)
    keys = list(dict.fromkeys(name.split(".")[3] for name in things if name.startswith(READOUTS)))
    key = energy_of(keys, declared, source)
    mine = f"{READOUTS}{key}."
    others = ("readout_blocks.", *(f"pool_dic.{other}." for other in keys if other != key))
    kept = {name: t for name, t in things.items() if name.startswith(mine) or not name.startswith(others)}
    weights = {name: opened.archive.tensor(thing, name) for name, thing in kept.items()}
    settings = _settings(opened.archive, params, weights, keys, key)
    return weights, settings


def _settings(
    archive: Archive, params: Mapping[str, Any], weights: dict[str, Tensor], keys: list[str], key: str
) -> Settings:
    """What hyperparameters say, as the code takes them; frequencies that are no weights are added to the weights."""
    source = archive.source
    if params.get("excl_vol"):
        refuse(source, "it adds an excluded volume (excl_vol), repulsion of pairs that is not zero at the cutoff")
    blocks = {name.split(".")[1] for name in weights if name.startswith("message_blocks.")}
    skip = params.get("skip_connection", dict.fromkeys(keys, False))
    skips = skip.get(key) if isinstance(skip, Mapping) else skip
    pools = params.get("pool_dic")
    pool = {"name": "sum"} if pools is None else pools.get(key) if isinstance(pools, Mapping) else None
    name = pool.get("name") if isinstance(pool, Mapping) else None
    if not isinstance(skips, bool) or not isinstance(name, str):
        raise ConfigurationError(f"The skip_connection or pool_dic beside {source} do not say what {key!r} is.")
    check_sum(source, key, skips=skips, interactions=len(blocks), pool=name.lower())
    if (activation := str(params.get("activation"))) not in NAMED:
        refuse(source, f"its activation is {activation[:80]!r}")
    functions = _positive(params, "n_rbf", source)
    sizes = {"num_conv": len(blocks)}  # its own code would leave out interactions that are too many
    for name, place in WIDTHS.items():
        if place in weights and weights[place].dim() == 2:
            sizes[name] = weights[place].shape[1]
    for name, size in sizes.items():
        if (count := params.get(name, size)) != size:
            raise ConfigurationError(
                f"The hyperparameters beside {source} have {name} = {str(count)[:80]}, and its weights {size}: they "
                f"are of another training. Lay the {PARAMS} of its own beside it."
            )
    learnable = bool(params.get("learnable_k", False))
    for index in blocks:
        place = FREQUENCIES.format(index)
        if learnable != (place in weights):
            refuse(source, f"its hyperparameters say learnable_k={learnable}, and its weights say otherwise")
        if not learnable:
            weights[place] = torch.arange(1, int(functions) + 1, dtype=torch.float32)
    numbers = [_of_key(params, name, key, default, source) for name, default in (("means", 0.0), ("stddevs", 1.0))]
    return Settings(
        key=key,
        others=tuple(other for other in keys if other != key),
        cutoff=_positive(params, "cutoff", source),
        activation=NAMED[activation],
        learnable=learnable,
        mean=numbers[0],
        scale=numbers[1],
    )


def _positive(params: Mapping[str, Any], name: str, source: str) -> float:
    value = params.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < MOST:
        raise ConfigurationError(
            f"The hyperparameters beside {source} have {name} = {str(value)[:80]!r}, which is none."
        )
    return float(value)


def _of_key(params: Mapping[str, Any], name: str, key: str, default: float, source: str) -> float:
    held = params.get(name)
    if not isinstance(held, Mapping | None):
        raise ConfigurationError(f"The {name} beside {source} are no mapping of read-outs.")
    value = default if held is None else held.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < LARGEST_NUMBER:
        raise ConfigurationError(
            f"The {name} beside {source} hold {str(value)[:80]!r} for {key!r}, which is no finite number."
        )
    return float(value)


def _params(opened: Opened) -> tuple[Mapping[str, Any], Path]:
    """Hyperparameters, and where: in the JSON of the file's stem, or in params.json in its folder or the one above."""
    found, where = opened.beside, opened.path.with_suffix(".json")
    if found is None or not {"model_type", *NESTED}.intersection(found):  # it may name the code alone
        found = None
        for folder in (opened.path.parent, opened.path.absolute().parent.parent):
            where = folder / PARAMS
            try:
                found = read_json(where, LARGEST_PARAMS, follow=True, finite=False)
                break
            except AbsentError:
                continue
            except UnreadableError as error:
                raise ConfigurationError(f"The hyperparameters of {opened.path} cannot be read: {error}.") from error
    if found is None:
        raise ConfigurationError(
            f"{opened.path} holds weights of NeuralForceField alone: its cutoff, activation and more are in "
            f"{PARAMS}, which is not beside it. Copy it there from the folder of the training, or export best_model."
        )
    return next((found[key] for key in NESTED if isinstance(found.get(key), Mapping)), found), where


def _weights(tree: Any) -> Mapping[str, Any]:
    """The state dict in a file, of its Trainer's checkpoint or alone, by the names that the model itself gives."""
    held = tree.get("model") if isinstance(tree, Mapping) else None
    held = tree if held is None else held
    names = {name: thing for name, thing in held.items() if isinstance(name, str)} if isinstance(held, Mapping) else {}
    return named_by_model(names)


def _claims(opened: Opened) -> bool:
    """Whether its class is of this code, or its tensors have the names of its PaiNNs'."""
    if isinstance(opened.tree, StandIn):
        return opened.tree.name.module.startswith(PACKAGE)
    return any(name.startswith(MARK) for name in _weights(opened.tree))


NFF = Reader("NeuralForceField", _claims, read_nff)
