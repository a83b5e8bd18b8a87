"""The parity gate: no engine is written unless it gives the student's own energies, forces and virials."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from ase import Atoms

from painn_deploy.calibration.structures import default_structures, seed_structures
from painn_deploy.export.errors import ParityError
from painn_deploy.export.fields import OUTPUTS, GraphInputs, GraphOutputs
from painn_deploy.export.model.force_head import autograd_forces, tensors
from painn_deploy.export.model.student import Student
from painn_deploy.runtime.matrix import graph_inputs

__all__ = ["ENERGY_TOLERANCE", "FORCE_TOLERANCE", "check_parity", "parity_structures"]

ENERGY_TOLERANCE = 1e-5
"""eV, largest error of an atom's energy against the student in float64 with plain autograd."""

FORCE_TOLERANCE = 3e-5
"""eV/Å, largest error of a force component, likewise."""

VIRIAL_TOLERANCE = 3e-4
"""eV, largest error of a virial, likewise: it is a force times a distance of a few Å, summed over slots."""

BLUR_FACTOR = 10
"""If the student itself, in PyTorch and float32, is further than a tenth of a tolerance from float64, this multiple of
its error replaces the tolerance: float32 resolves no more where symmetry makes a vector norm vanish, or where forces
are huge."""

WORST_BLUR = 1e-2
"""eV/Å; a student whose own forces in float32 are further from float64 cannot be deployed in float32."""

_TOLERANCES = {"atomic_energies": ENERGY_TOLERANCE, "forces": FORCE_TOLERANCE, "virials": VIRIAL_TOLERANCE}


def parity_structures(student: Student) -> list[list[Atoms]]:
    """Batches that exporters get wrong: padding, an isolated atom, symmetric molecules, images, a mixture."""
    species = student.species
    smooth = student.configuration.architecture == "painn"  # a `distiller` has a cusp on symmetric molecules
    molecules = seed_structures(species, symmetric=smooth)
    alone = Atoms([species[0]], [[0.0, 0.0, 0.0]])
    far = Atoms([species[0]] * 2, [[0.0, 0.0, 0.0], [0.0, 0.0, 2 * student.configuration.cutoff]])
    others = default_structures(species)
    return [
        [alone],
        *([atoms] for atoms in molecules),
        [*molecules, alone, far, *others[:4], *others[-4:]],
    ]


def check_parity(
    run: Callable[[GraphInputs], GraphOutputs], student: Student, batches: Sequence[Sequence[Atoms]] | None = None
) -> dict[str, float]:
    """Compare a float32 engine with the float64 student under plain autograd, which shares no adjoint with the engine.

    Args:
        run: evaluates one graph with the engine.
        student: in float64.
        batches: structures; by default `parity_structures`.

    Returns:
        Largest error in atomic energies (eV), forces (eV/Å) and virials (eV), and `float32_forces`, the largest error
        of the student's own forces in PyTorch and float32.

    Raises:
        ParityError: an error is above its tolerance or not finite; the message names the tensor, the error, the largest
            value and likely causes.
    """
    worst = dict.fromkeys((*_TOLERANCES, "float32_forces"), 0.0)
    cutoff, single = student.configuration.cutoff, copy.deepcopy(student).float()
    for structures in batches if batches is not None else parity_structures(student):
        inputs = graph_inputs(structures, cutoff)
        outputs = run(inputs)
        wanted = autograd_forces(student, tensors(graph_inputs(structures, cutoff, np.float64), torch.float64))
        blurred = autograd_forces(single, tensors(inputs, torch.float32))
        own = _error(blurred.forces.numpy(), wanted.forces.numpy())
        names = ", ".join(str(a.info.get("name", a.symbols)) for a in structures)
        if not np.isfinite(wanted.forces.numpy()).all():
            raise ParityError(f"The student itself gives NaN or infinite forces on {names}; it cannot be deployed.")
        if not own <= WORST_BLUR:
            raise ParityError(
                f"In float32 the student's own forces, in PyTorch, are {own:.2e} eV/Å from float64 on {names}. Its "
                "weights are too steep for float32, so no engine of it could be trusted; train it with weight decay."
            )
        worst["float32_forces"] = max(worst["float32_forces"], own)
        for field, got, want, blur in zip(OUTPUTS, outputs, wanted, blurred, strict=True):
            error, own = _error(got, want.numpy()), _error(blur.numpy(), want.numpy())
            tolerance = max(_TOLERANCES[field.name], BLUR_FACTOR * own)
            if not error <= tolerance:  # NaN is not
                raise ParityError(
                    f"The engine's {field.name} differ from the student's by {error:.2e} {field.unit} "
                    f"(tolerance {tolerance:.1e}, largest value {float(want.abs().max()):.2e}) on {names}. "
                    "Likely causes: an epsilon that was lost in translation (isolated atoms, symmetric molecules), a "
                    "padded slot that is not masked, or an engine that computes in TF32 or FP16. No engine was written."
                )
            worst[field.name] = max(worst[field.name], error)
    return worst


def _error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.max(np.abs(got.astype(np.float64) - want)))
