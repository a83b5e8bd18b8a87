"""Codes whose models are known and are not read, so that a file of theirs is named for what it is."""

from collections.abc import Mapping
from typing import Any

__all__ = ["model_of_package", "model_of_weights"]

OPEN_CATALYST = "a PaiNN of the Open Catalyst Project (OCP, fairchem, or nablaDFT's PaiNN-OC)"
DIRECT = (
    f"{OPEN_CATALYST} that predicts forces directly, from vectors and not as the gradient of its energy: they conserve "
    "none, since a path that ends where it began does work on the atoms; and the energy beside them, which an engine "
    "would differentiate, has other forces"
)
CONSERVATIVE = (
    f"{OPEN_CATALYST}, which sees no more than its nearest neighbours (max_neighbors), and does not fade the bias of "
    "its filters (rbf_proj) at the cutoff: its energy jumps where a neighbour comes or goes, and an engine fades pairs"
)
NO_PAINN = "a model of {}, which is no PaiNN"
PACKAGES = {
    "ocpmodels": "a model of the Open Catalyst Project, whose PaiNN predicts forces directly",
    "fairchem": "a model of the Open Catalyst Project, whose PaiNN predicts forces directly",
    "spainn": "a model of SPaiNN, which gives energies and couplings of several electronic states at once",
    "schnarc": "a model of SchNarc, which gives energies and couplings of several electronic states at once",
    "xequinet": "a model of XequiNet, whose XPaiNN has spherical harmonics of higher degree and layer norms",
    "torchmdnet": "a model of TorchMD-NET, whose equivariant transformer weights PaiNN's messages by attention",
    "modelforge": "a model of modelforge, whose PaiNN is not read yet",
    "jax": "a model in JAX, not in PyTorch",
    "flax": "a model in JAX, not in PyTorch",
    "haiku": "a model in JAX, not in PyTorch",
} | {
    package: NO_PAINN.format(name)
    for package, name in {
        "mace": "MACE",
        "nequip": "NequIP",
        "allegro": "Allegro",
        "chgnet": "CHGNet",
        "matgl": "MatGL",
        "sevenn": "SevenNet",
        "orb_models": "Orb",
        "aimnet": "AIMNet",
        "torchani": "TorchANI",
        "deepmd": "DeePMD-kit",
        "mdsim": "MDsim",
    }.items()
}
"""By the package that defines its classes."""

WEIGHTS = (
    (("message_layers.0.x_proj.", "out_forces."), DIRECT),
    (("message_layers.0.x_proj.",), CONSERVATIVE),
    (("message_function.0.interatomic_net.",), PACKAGES["modelforge"]),
    (("representation_model.", "output_model."), PACKAGES["torchmdnet"]),
    (("rbf_lin.", "dot_lin."), PACKAGES["xequinet"]),
    (("products.0.symmetric_contractions.",), PACKAGES["mace"]),
)
"""By parts of the names of its tensors, each of which is in one of them; the first that fits."""

STATES = ("state_dict", "model", "model_state_dict")
"""Where codes keep the state dict in a checkpoint."""


def model_of_package(module: str) -> str | None:
    """What a model is, in words, whose classes a module defines; None where it is of no code that is known."""
    return PACKAGES.get(module.partition(".")[0])


def model_of_weights(tree: Any) -> str | None:
    """What a model is, in words, whose state dict a file holds; None where it is of no code that is known."""
    held = [tree, *(tree.get(key) for key in STATES)] if isinstance(tree, Mapping) else []
    names = [name for each in held if isinstance(each, Mapping) for name in each if isinstance(name, str)]
    fitting = (words for marks, words in WEIGHTS if all(any(mark in name for name in names) for mark in marks))
    return next(fitting, None)
