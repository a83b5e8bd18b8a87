"""The parity gate: no engine is written before its graph gave the student's own energies and forces."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from ase import Atoms

from painn_deploy.calibration.structures import default_structures, seed_structures
from painn_deploy.export.errors import ParityError
from painn_deploy.export.fields import OUTPUTS, GraphInputs, GraphOutputs
from painn_deploy.export.force_head import autograd_forces, tensors
from painn_deploy.export.student import Student
from painn_deploy.runtime.neighbours import graph_inputs

__all__ = ["ENERGY_TOLERANCE", "FORCE_TOLERANCE", "check_parity", "parity_structures"]

ENERGY_TOLERANCE = 1e-5
"""eV an atom, against the student in float64 with plain autograd."""

FORCE_TOLERANCE = 3e-5
"""eV/Å, and relative to 10 eV/Å where forces are larger: float32 carries seven digits."""

LARGE_FORCE = 10.0


def parity_structures(student: Student) -> list[list[Atoms]]:
    """Batches that show what an exporter gets wrong: padding, an isolated atom, symmetry, periodic images, a mixture."""
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
    """Hold a float32 engine against the float64 student with plain autograd, which shares no adjoint with it.

    Args:
        run: the engine.
        student: in float64.
        batches: structures; by default `parity_structures`.

    Returns:
        Largest error in atomic energies (eV) and forces (eV/Å).

    Raises:
        ParityError: past a tolerance, or not finite; with the tensor, the error, the largest value and likely causes.
    """
    worst = {"atomic_energies": 0.0, "forces": 0.0, "virials": 0.0}
    for structures in batches if batches is not None else parity_structures(student):
        cutoff = student.configuration.cutoff
        outputs = run(graph_inputs(structures, cutoff))
        graph = tensors(graph_inputs(structures, cutoff, np.float64), torch.float64)
        wanted = autograd_forces(student, graph)
        for field, got, want in zip(OUTPUTS, outputs, wanted, strict=True):
            reference = want.numpy()
            error = float(np.max(np.abs(got.astype(np.float64) - reference)))
            largest = float(np.abs(reference).max())
            tolerance = _tolerance(field.name, largest)
            if not error <= tolerance:  # NaN is not
                names = ", ".join(str(a.info.get("name", a.symbols)) for a in structures)
                raise ParityError(
                    f"The engine's {field.name} differ from the student's by {error:.2e} {field.unit} "
                    f"(tolerance {tolerance:.1e}, largest value {largest:.2e}) on {names}. Likely causes: an epsilon "
                    "that was lost in translation (isolated atoms, symmetric molecules), a padded slot that is not "
                    "masked, or an engine that computes in TF32 or FP16. No engine was written."
                )
            worst[field.name] = max(worst[field.name], error)
    return worst


def _tolerance(name: str, largest: float) -> float:
    if name == "atomic_energies":
        return ENERGY_TOLERANCE
    # a virial is a force times a distance of a few Å, summed over slots
    return FORCE_TOLERANCE * max(1.0, largest / LARGE_FORCE) * (10.0 if name == "virials" else 1.0)
