"""SchNetPack's names of a PaiNN's tensors, which checkpoints of `painn` keep: in our terms, and in our units."""

from collections.abc import Mapping

from torch import Tensor

__all__ = ["fold_units", "remarks_on", "rename"]

PARAMETERS = ("weight", "bias")


def rename(key: str) -> str:
    """SchNetPack's name of a tensor, in ours; a key that we do not know stays as it is, and is refused later."""
    parts = key.split(".")
    match parts:
        case ["representation", "embedding", "weight"]:
            return "embedding.weight"
        case ["representation", "cutoff_fn", "cutoff"] | ["representation", "cutoff"]:
            return "cutoff"
        case ["representation", "radial_basis", *layer, name] if len(layer) < 2:  # one for all, or each has its own
            return ".".join(["basis", *layer, name])
        case ["representation", "filter_net", name]:
            return f"filters.{name}"
        case ["representation", "interactions", layer, "interatomic_context_net", position, name]:
            return f"message.{layer}.{2 * int(position)}.{name}"
        case ["representation", "mixing", layer, "mu_channel_mix", name]:
            return f"mixing.{layer}.{name}"
        case ["representation", "mixing", layer, "intraatomic_context_net", position, name]:
            return f"update.{layer}.{2 * int(position)}.{name}"
        case ["output_modules", "0", "outnet", position, name]:
            return f"readout.{2 * int(position)}.{name}"
    return key


def fold_units(tensors: Mapping[str, Tensor], last: str, energy: float, length: float) -> dict[str, Tensor]:
    """Turn a PaiNN in any units into one in eV and Å; what is changed comes out in float64.

    Args:
        tensors: under SchNetPack's names.
        last: the name of the read-out's last layer.
        energy: eV, of one unit.
        length: Å, of one unit.
    """
    # A distance d in Å is d / length in the model's unit: offsets, widths and cutoffs grow by `length`. The sine
    # basis sin(f d)/d is a length to the power of -1 besides, which its filters take up.
    factors = {f"{last}.{name}": energy for name in PARAMETERS}
    factors |= {"repulsion.a_scale": 1 / length, "repulsion.strength": energy * length}
    factors |= dict.fromkeys(("representation.cutoff_fn.cutoff", "repulsion.cutoff", "repulsion.switch_on"), length)
    for name in tensors:
        if name.startswith("representation.radial_basis."):
            is_sine = name.endswith(".freqs")
            factors[name] = 1 / length if is_sine else length
            if is_sine:
                factors["representation.filter_net.weight"] = length
    return {
        name: tensor.double() * factors[name] if factors.get(name, 1.0) != 1.0 else tensor
        for name, tensor in tensors.items()
    }


def remarks_on(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Sentences on what a user of a PaiNN should know, and its weights show.

    Args:
        tensors: under SchNetPack's names.
    """
    biases = [tensor for name, tensor in tensors.items() if name.endswith(".mu_channel_mix.bias")]
    if not any(bias.any() for bias in biases):
        return ()
    return (
        "It adds biases to vectors: they do not turn with a structure, so its energy depends on how the structure lies "
        "in space. The engine follows it; `painn-deploy validate` says by how much.",
    )
