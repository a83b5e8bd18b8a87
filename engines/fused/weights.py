"""A student's weights as one array of float32, as the kernel of molecules reads them: products' both ways."""

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from painn_deploy.engines.fused.packed import Packed, round_up
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.export.model.cutoffs import CUTOFFS, LEAST
from painn_deploy.export.model.painn import BesselBasis, GaussianBasis, PaiNN
from painn_deploy.export.model.repulsion import ZBLRepulsion
from painn_deploy.export.model.student import Student, parts

__all__ = ["pack"]

LINE = 16
"""Numbers of a cache line, at which a member's weights begin."""


def pack(student: Student) -> Packed:
    """Lay a student's weights out for the kernel, or those of a committee, one member's after the other's.

    Args:
        student: a PaiNN, in any type; one in float64 gives the most exact table of first messages. Or several.

    Raises:
        EngineUnavailableError: it has a part that the kernel does not compute, with its name; or members of a committee
            differ in more than weights.
    """
    packed = [_packed(_checked(member), gives_features=student.gives_features) for member in student.members]
    first, *others = (each.macros for each in packed)
    if differing := sorted({name for other in others for name, value in other.items() if value != first[name]}):
        raise EngineUnavailableError(
            f"The engine fused evaluates a committee whose members differ in weights alone, and these differ in "
            f"{', '.join(differing)}. Export it with another engine."
        )
    length = round_up(len(packed[0].weights), LINE)
    weights = [np.pad(each.weights, (0, length - len(each.weights))) for each in packed]
    return Packed(np.concatenate(weights), {**first, "MEMBERS": len(packed), "MEMBER_WEIGHTS": length})


def _packed(model: PaiNN, *, gives_features: bool) -> Packed:
    """One student's weights."""
    said = model.configuration
    bases = _bases(model)
    columns = 4 * -(-said.num_rbf // 4)
    writer = _Writer()
    with torch.no_grad():
        embedding = model.embedding.weight
        first = parts(cast(nn.Sequential, model.message[0]), embedding, (0, 1))
        writer.add("TABLES", torch.cat([embedding, *first], -1))
        if len(bases) == 1:
            writer.add("CONSTANTS", _constants(bases[0], columns))
        read_in, read_last = (cast(nn.Linear, model.readout[place]) for place in (0, 2))
        writer.add("READ_OUT", read_in.weight.mT)
        writer.add("READ_OUT_BIAS", read_in.bias)
        writer.add("READ_OUT_BACK", read_in.weight)
        writer.add("READ_OUT_LAST", torch.cat([read_last.weight[0], read_last.bias]))
        if model.energy_scales is not None:
            writer.add("SCALES", model.energy_scales)
        repulsion = {"REPULSION": 0} if model.repulsion is None else _add_repulsion(writer.add, model.repulsion)
        start = writer.length
        for layer in range(said.num_interactions):
            writer.begin_layer(start if layer == 0 else None)
            _add_layer(writer.add, model, layer, columns)
        macros = {
            "FEATURES": said.hidden_dim,
            "LAYERS": said.num_interactions,
            "BASIS": columns,
            "BASIS_WIDTH": columns + 4,
            "HIDDEN": read_in.out_features,
            "ELEMENTS": len(embedding),
            "GIVES_FEATURES": int(gives_features),
            "SINES": int(isinstance(bases[0], BesselBasis)),
            "BASIS_OF_EACH": int(len(bases) > 1),
            "SOFTPLUS": int(said.activation == "shifted_softplus"),
            "EPSILON": float(np.float32(said.epsilon)),
            "SCALED": int(model.energy_scales is not None),
            "MIXING_BIASED": int(cast(nn.Linear, model.mixing[0]).bias is not None),
            **_fading("CUTOFF", said.cutoff_fn, said.cutoff, said.switch_on),
            "CUTOFF_POWER": said.cutoff_power or 0,
            "LEAST_EXPONENT": float(np.float32(LEAST)),
            **repulsion,
            "CONSTANTS": 0,
            "CONSTANTS_OF_EACH": 0,
            "SCALES": 0,
            "MIXING_BIAS": 0,
            **writer.offsets(),
        }
    return Packed(writer.joined(), macros)


def _fading(of: str, kind: str, end: float, start: float | None) -> dict[str, int | float]:
    """Macros of a function that fades what is called so."""
    begin = start or 0.0
    numbers = {"FREQUENCY": np.pi / end, "INVERSE": 1 / end, "START": begin, "FALL": 1 / (end - begin)}
    which = {f"{of}_KIND": -1 if kind == "none" else CUTOFFS.index(kind)}
    return which | {f"{of}_{name}": float(np.float32(number)) for name, number in numbers.items()}


def _add_repulsion(add: Callable[[str, Tensor], None], repulsion: ZBLRepulsion) -> dict[str, int | float]:
    """Each atom's half of it, and macros."""
    factors = 0.5 * repulsion.strength * repulsion.coefficients
    add("REPULSION_NUMBERS", torch.stack([factors, repulsion.exponents], -1))
    add("REPULSION_RADII", repulsion.radii)
    end = {"REPULSION": len(factors), "REPULSION_END": float(np.float32(repulsion.cutoff))}
    return end | _fading("REPULSION", repulsion.kind, repulsion.cutoff, repulsion.switch_on)


def _add_layer(add: Callable[[str, Tensor], None], model: PaiNN, layer: int, columns: int) -> None:
    """Weights of one interaction; products forward are of transposed matrices, as torch keeps [out, in]."""
    features, last = model.configuration.hidden_dim, layer == model.configuration.num_interactions - 1
    message_in, message_out = (cast(nn.Linear, cast(nn.Sequential, model.message[layer])[i]) for i in (0, 2))
    update_in, update_out = (cast(nn.Linear, cast(nn.Sequential, model.update[layer])[i]) for i in (0, 2))
    shared = len(model.filters.bias) == 3 * features
    place = 0 if shared else 3 * features * layer
    weight = model.filters.weight[place : place + 3 * features].mT
    padding = weight.new_zeros(columns - len(weight), 3 * features)
    # the last interaction's vectors are read by nothing: what moves them comes last, and is not computed there
    order = (0, 2, 1)
    out = torch.cat([update_out.weight.chunk(3)[i] for i in order[: 2 if last else 3]])
    bias = torch.cat([update_out.bias.chunk(3)[i] for i in order])
    out_forward = out.mT.contiguous().flatten()
    spare = out.new_zeros(3 * features * features - out.numel())
    if len(bases := _bases(model)) > 1:
        add("CONSTANTS_OF_EACH", _constants(bases[layer], columns))
    add("FILTERS", torch.cat([weight, padding, model.filters.bias[None, place : place + 3 * features]]))
    add("MESSAGE_IN", message_in.weight.mT)
    add("MESSAGE_IN_BIAS", message_in.bias)
    add("MESSAGE_IN_BACK", message_in.weight)
    add("MESSAGE_OUT", message_out.weight.mT)
    add("MESSAGE_OUT_BIAS", message_out.bias)
    add("MESSAGE_OUT_BACK", message_out.weight)
    mixing = cast(nn.Linear, model.mixing[layer])
    add("MIXING", mixing.weight.mT)
    add("MIXING_BACK", mixing.weight)
    if mixing.bias is not None:
        add("MIXING_BIAS", mixing.bias)
    add("UPDATE_IN", update_in.weight.mT)
    add("UPDATE_IN_BIAS", update_in.bias)
    add("UPDATE_IN_BACK", update_in.weight)
    add("UPDATE_OUT", torch.cat([out_forward, spare]))
    add("UPDATE_OUT_BIAS", bias)
    add("UPDATE_OUT_BACK", torch.cat([out.flatten(), spare]))


class _Writer:
    """Tensors one after the other, each at a multiple of four numbers; those of a layer at the same place in it."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._offsets: dict[str, int] = {}
        self._start: int | None = None
        self.length = 0

    def begin_layer(self, start: int | None) -> None:
        if start is not None:
            self._start = start
        else:
            self._offsets.setdefault("LAYER_WEIGHTS", self.length - cast(int, self._start))

    def add(self, name: str, tensor: Tensor) -> None:
        flat = tensor.detach().double().cpu().numpy().astype(np.float32).reshape(-1)
        self._offsets.setdefault(name, self.length)
        self._arrays += [flat, np.zeros(-len(flat) % 4, np.float32)]
        self.length += len(flat) + len(self._arrays[-1])

    def offsets(self) -> dict[str, int]:
        return {"LAYER_WEIGHTS": self.length - cast(int, self._start), **self._offsets}

    def joined(self) -> np.ndarray:
        return np.concatenate(self._arrays)


def _bases(model: PaiNN) -> list[nn.Module]:
    """The radial basis, or those of each interaction."""
    return list(model.basis) if isinstance(model.basis, nn.ModuleList) else [model.basis]


def _constants(basis: nn.Module, columns: int) -> Tensor:
    """What the radial functions are made of; a padded one is finite, and its weights are zero."""
    if isinstance(basis, BesselBasis):
        return nn.functional.pad(basis.freqs, (0, columns - len(basis.freqs)))
    made = cast(GaussianBasis, basis)
    flat = columns - len(made.offsets)
    return torch.cat([nn.functional.pad(each, (0, flat)) for each in (made.offsets, 1 / made.widths.double())])


def _checked(student: Student) -> PaiNN:
    """Refuse what the kernel does not compute.

    Raises:
        EngineUnavailableError: see above.
    """
    said = student.configuration
    if not isinstance(student, PaiNN):
        raise EngineUnavailableError(
            f"The engine fused computes the architecture painn, and this student is {said.architecture}. "
            "Export it with another engine."
        )
    linear = [layer for layer in student.readout if isinstance(layer, nn.Linear)]
    odd = {
        f"{said.hidden_dim} features, and no multiple of 4": said.hidden_dim % 4,
        "radial bases of different kinds": len({type(basis) for basis in _bases(student)}) > 1,
        "a radial table": student.radial_table is not None,
        f"{len(linear) - 1} hidden layers in its read-out, not one": len(linear) != 2,
    }
    odd[f"a read-out of {linear[0].out_features} features, and no multiple of 4"] = linear[0].out_features % 4
    most = 3 * said.hidden_dim  # what its vectors have room for
    odd[f"a read-out of {linear[0].out_features} features, and more than {most}"] = linear[0].out_features > most
    if found := [name for name, is_so in odd.items() if is_so]:
        raise EngineUnavailableError(
            f"The engine fused does not compute this student: it has {'; '.join(found)}. Export it with another engine."
        )
    return student
