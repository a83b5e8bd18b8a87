"""The parity gate: no engine is written unless it gives the student's own energies, forces and virials.

It asks of each structure whether the engine is as good as float32 can be there. Where float32 cannot hold the student
itself it asks nothing.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms

from painn_deploy.calibration.accuracy.domain import unsound
from painn_deploy.calibration.accuracy.errors import describe
from painn_deploy.calibration.accuracy.left_out import LeftOut, summary
from painn_deploy.calibration.structures import LARGEST_FORCE, default_structures, seed_structures, trusted_species
from painn_deploy.export.errors import ParityError
from painn_deploy.export.fields import OUTPUTS, GraphInputs, GraphOutputs
from painn_deploy.export.model.force_head import autograd_forces, tensors
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell, counting, prefixed, silent
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
its error, there or at geometries that float32 hardly tells from it, replaces the tolerance: float32 resolves no more
where symmetry makes a vector norm vanish, or where forces are huge."""

JOLT, JOLTS = 1e-7, 9
"""Å, about what float32 resolves of a bond, and how many geometries are that far from one."""

MOST_ALONE = 8
"""Structures of the user's that the gate evaluates one by one; as many more are in one batch."""

_TOLERANCES = {"atomic_energies": ENERGY_TOLERANCE, "forces": FORCE_TOLERANCE, "virials": VIRIAL_TOLERANCE}


def parity_structures(student: Student) -> list[list[Atoms]]:
    """Batches that exporters get wrong: padding, an isolated atom, symmetric molecules, images, a mixture."""
    species = trusted_species(student)
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


def _batches_of(brought: Sequence[Atoms]) -> list[list[Atoms]]:
    """Some structures of the user's one by one, and more of them, with an atom that has no neighbours, in one batch."""
    if not brought:
        return []
    picked = [brought[int(i)] for i in np.unique(np.linspace(0, len(brought) - 1, 2 * MOST_ALONE).astype(int))]
    alone = Atoms(picked[0].numbers[:1], [[0.0, 0.0, 0.0]])
    return [*([atoms] for atoms in picked[::2]), [*picked, alone]]


def check_parity(
    run: Callable[[GraphInputs], GraphOutputs],
    student: Student,
    batches: Sequence[Sequence[Atoms]] | None = None,
    brought: Sequence[Atoms] = (),
    tell: Tell = silent,
) -> dict[str, Any]:
    """Compare a float32 engine with the float64 student under plain autograd, which shares no adjoint with the engine.

    Args:
        run: evaluates one graph with the engine.
        student: in float64.
        batches: structures to compare on; by default `parity_structures`, without those of forces beyond chemistry.
        brought: the user's structures: figures are of them, and `parity_structures` may stop the engine all the same.
        tell: called with how many were compared.

    Returns:
        Largest error in atomic energies (eV), forces (eV/Å) and virials (eV); `float32_forces` (eV/Å), the largest
        error of the student's own forces in PyTorch and float32; how many `structures` were compared, and those
        `left_out`, on which float32 cannot hold the student itself. Plain JSON types.

    Raises:
        ParityError: an error is above its tolerance or not finite; the message names the structure, the tensor, the
            error, the largest value and likely causes. Or no structure with neighbours is left to compare on.
    """
    if batches is None and brought:
        found = _compare(run, student, _batches_of(brought), tell=tell)
        others = parity_structures(student)  # no figures of this student
        _compare(run, student, others, LARGEST_FORCE, needed=False, tell=prefixed(tell, "default set, "))
        return found
    largest_force = LARGEST_FORCE if batches is None else np.inf
    return _compare(run, student, batches or parity_structures(student), largest_force, tell=tell)


def _compare(
    run: Callable[[GraphInputs], GraphOutputs],
    student: Student,
    batches: Sequence[Sequence[Atoms]],
    largest_force: float = np.inf,
    *,
    needed: bool = True,
    tell: Tell = silent,
) -> dict[str, Any]:
    """Compare on every structure that float32 can hold the student on; `needed` refuses where there is none."""
    worst = dict.fromkeys((*_TOLERANCES, "float32_forces"), 0.0)
    left_out: dict[str, LeftOut] = {}
    compared, pulled = 0, False
    single = copy.deepcopy(student).float()
    more = counting(tell, sum(map(len, batches)))
    for structures in batches:
        for atoms, got, want, blur in _evaluated(run, student, single, structures):
            name = describe(atoms)
            sums = [{"energy": each[0].sum(), "forces": each[1]} for each in (want, blur)]
            if reason := unsound(*sums, largest_force=largest_force):
                left_out.setdefault(name, LeftOut(None, name, reason))
                continue
            compared, pulled = compared + 1, pulled or bool(np.any(want[1]))
            worst["float32_forces"] = max(worst["float32_forces"], _error(blur[1], want[1]))
            for field, one, other, blurred in zip(OUTPUTS, got, want, blur, strict=True):
                error = _error(one, other)
                tolerance = max(_TOLERANCES[field.name], BLUR_FACTOR * _error(blurred, other))
                if error > tolerance:
                    tolerance = max(tolerance, BLUR_FACTOR * _typical_blur(student, single, atoms)[field.name])
                if not error <= tolerance:  # NaN is not
                    raise ParityError(
                        f"On {name} the engine's {field.name} differ from the student's by {error:.2e} {field.unit} "
                        f"(tolerance {tolerance:.1e}, largest value {float(np.abs(other).max()):.2e}). Likely causes: "
                        "an epsilon that was lost in translation (isolated atoms, symmetric molecules), a padded slot "
                        "that is not masked, or an engine that computes in TF32 or FP16. No engine was written."
                    )
                worst[field.name] = max(worst[field.name], error)
        more(len(structures))
    if needed and (not compared or (left_out and not pulled)):  # an atom alone judges no force
        raise ParityError(
            "There is no structure to compare the engine with its student on: "
            f"{'; '.join(summary([*left_out.values()]))}. Give structures like those that the student was trained on "
            "with --structures. If these are such, its weights are too steep for float32: train it with weight decay."
        )
    return {**worst, "structures": compared, "left_out": [each.as_dict() for each in left_out.values()]}


Rows = tuple[np.ndarray, ...]


def _evaluated(
    run: Callable[[GraphInputs], GraphOutputs], student: Student, single: Student, structures: Sequence[Atoms]
) -> Iterator[tuple[Atoms, Rows, Rows, Rows]]:
    """Each structure of a batch with what its atoms get of the engine, the student in float64, and it in float32."""
    cutoff = student.configuration.cutoff
    inputs = graph_inputs(structures, cutoff)
    got = tuple(run(inputs))
    exact = autograd_forces(student, tensors(graph_inputs(structures, cutoff, np.float64), torch.float64))
    blurred = autograd_forces(single, tensors(inputs, torch.float32))
    start = 0
    for atoms in structures:
        rows = slice(start, start + len(atoms))
        start = rows.stop
        own, other = (tuple(tensor[rows].double().numpy() for tensor in each) for each in (exact, blurred))
        yield atoms, tuple(np.asarray(each, np.float64)[rows] for each in got), own, other


def _typical_blur(student: Student, single: Student, atoms: Atoms) -> dict[str, float]:
    """Median error of the student in float32 around a geometry, by the output's name.

    Where vectors cancel by symmetry one geometry tells little: its roundings may happen to cancel too. Those of others
    that float32 can hardly tell from it do not.
    """
    rng, errors = np.random.default_rng(0), []
    for _ in range(JOLTS):
        moved = atoms.copy()
        moved.positions += rng.normal(0, JOLT, moved.positions.shape)
        inputs = (graph_inputs([moved], student.configuration.cutoff, kind) for kind in (np.float64, np.float32))
        exact, blurred = (
            autograd_forces(each, tensors(graph, each.dtype))
            for each, graph in zip((student, single), inputs, strict=True)
        )
        errors.append([_error(b.double().numpy(), e.numpy()) for b, e in zip(blurred, exact, strict=True)])
    return dict(zip((field.name for field in OUTPUTS), np.median(errors, axis=0).tolist(), strict=True))


def _error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.max(np.abs(got - want)))
