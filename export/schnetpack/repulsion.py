"""SchNetPack's pair repulsion of nuclei, as Ziegler, Biersack and Littmark screen it (ZBLRepulsionEnergy).

E = k/2 Σ_ij Z_i Z_j / d · f(d) · Σ_k c_k exp(-b_k a_ij d) with a_ij = a (Z_i^p + Z_j^p): all of them pass a softplus,
which keeps them positive, and the coefficients are divided by their sum.
"""

from collections.abc import Mapping
from typing import Any

import torch
from ase import units
from torch import Tensor
from torch.nn.functional import softplus

from painn_deploy.export.schnetpack.architecture import Checker
from painn_deploy.export.schnetpack.cutoffs import Fade, read_fade

__all__ = ["ZBL", "read_repulsion", "repulsion_of"]

ZBL = "ZBLRepulsionEnergy"
LEARNT = ("a_pow", "a_div", "coefficients", "exponents", "ke")
COULOMB = units.Hartree * units.Bohr
"""eV Å, of two charges of the electron's size."""

UNFADED = (
    f"Its {ZBL} has no cutoff function: energies jump where a pair comes into reach, which is taken to be at PaiNN's "
    "cutoff, where SchNetPack's neighbour lists end."
)
SLACK = 1e-3
"""Of COULOMB: constants of nature as tables of different years have them differ by less."""


def read_repulsion(check: Checker, module: Any, path: str) -> tuple[Mapping[str, Tensor], tuple[str, Fade]]:
    """Read one.

    Args:
        check: of the file.
        module: of the tree.
        path: of it in the state dict.

    Returns:
        Its tensors by their names in it, what a configuration calls its cutoff function ("none" without one), and
        that function's distances, all in the model's units.

    Raises:
        CheckpointError: it is incomplete, or has another cutoff function.
    """
    found = check.module(module, (ZBL,), "the repulsion")
    fade: tuple[str, Fade] = ("none", {})
    if (function := found.part("cutoff_fn")) is not None:
        fade = read_fade(check, function, f"{path}.cutoff_fn")
    learnt = {name.rpartition(".")[2]: tensor for name, tensor in check.tensors.some(found, path, LEARNT).items()}
    if not complete(learnt):
        check.refuse(f"{ZBL} lacks some of {', '.join(LEARNT)}, or they have shapes that SchNetPack does not give them")
    return learnt, fade


def complete(learnt: Mapping[str, Tensor]) -> bool:
    """Whether tensors are all that a repulsion has, and fit together.

    Args:
        learnt: by their names in it.
    """
    if learnt.keys() != set(LEARNT) or any(learnt[name].numel() != 1 for name in ("a_pow", "a_div", "ke")):
        return False
    return learnt["coefficients"].dim() == 1 and learnt["coefficients"].shape == learnt["exponents"].shape


def repulsion_of(
    learnt: Mapping[str, Tensor], fade: Fade, energy: float, length: float, times: float = 1.0
) -> tuple[dict[str, Tensor], list[str]]:
    """Say a repulsion in our terms.

    Args:
        learnt: its tensors, by their names in it.
        fade: distances of its cutoff function; empty without one.
        energy: eV, of the model's unit.
        length: Å, of the model's unit.
        times: how often it is in the energy.

    Returns:
        Tensors named `repulsion.*` in eV and Å, and sentences for a user.
    """
    numbers = {name: tensor.double() for name, tensor in learnt.items()}
    positive = {name: softplus(numbers[name]) for name in LEARNT if name != "ke"}
    strength = numbers["ke"].reshape(1) * (energy * length)
    made = {
        "coefficients": positive["coefficients"] / positive["coefficients"].sum(),
        "exponents": positive["exponents"],
        "a_power": positive["a_pow"].reshape(1),
        "a_scale": positive["a_div"].reshape(1) / length,
        "strength": strength * times,
        **{name: distance.double() * length for name, distance in fade.items()},
    }
    remarks = [] if fade else [UNFADED]
    if not torch.allclose(strength, torch.full_like(strength, COULOMB), rtol=SLACK, atol=0):
        remarks.append(
            f"Its {ZBL} multiplies charges by {float(strength):.4g} eV Å in the declared units, and nature by "
            f"{COULOMB:.4g}: a unit was declared, or given to {ZBL}, that is none of the model's."
        )
    return {f"repulsion.{name}": tensor for name, tensor in made.items()}, remarks
