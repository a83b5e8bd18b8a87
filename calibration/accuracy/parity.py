"""The parity gate: no engine is written unless it gives the student's own energies, forces and virials.

It asks of each structure whether the engine is as good as float32 can be there, or float64 for an engine in `fp64`.
Where that cannot hold the student itself it asks nothing.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms

from painn_deploy.calibration.accuracy.domain import unsound
from painn_deploy.calibration.accuracy.double import BLUR_FACTOR, JOLT, RELATIVE, jolted
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

EXACT_TOLERANCE, EXACT_VIRIAL_TOLERANCE = 1e-9, 1e-8
"""The same for an engine in `fp64`: eV and eV/Å, and eV. What its order of sums costs is 1e-12 at most."""

JOLTS = 9
"""How many geometries are looked at that can hardly be told from one."""

MOST_ALONE = 8
"""Structures of the user's that the gate evaluates one by one; as many more are in one batch."""


@dataclass(frozen=True)
class _Gate:
    """What an engine of one type of numbers is held to.

    Attributes:
        type: of its numbers, as numpy names it.
        tolerances: by output.
        jolt: Å, about what the type resolves of a bond.
        relative: of the largest value, that an error may be where this is more than the tolerance.
    """

    type: str
    tolerances: Mapping[str, float]
    jolt: float
    relative: float = 0.0  # where numbers are large, the student in float32 says what they cost

    @property
    def lower(self) -> str:
        """What an engine may compute in that forgets its type."""
        return "TF32 or FP16" if self.type == "float32" else "float32"

    @property
    def key(self) -> str:
        """Of the figure that says how well the type holds the student's forces."""
        return f"{self.type}_forces"


_SINGLE = _Gate(
    "float32",
    {"atomic_energies": ENERGY_TOLERANCE, "forces": FORCE_TOLERANCE, "virials": VIRIAL_TOLERANCE},
    jolt=1e-7,
)
_DOUBLE = _Gate(
    "float64",
    {"atomic_energies": EXACT_TOLERANCE, "forces": EXACT_TOLERANCE, "virials": EXACT_VIRIAL_TOLERANCE},
    jolt=JOLT,
    relative=RELATIVE,
)


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
    *,
    precision: str = "fp32",
    takes: Callable[[Atoms], bool] = bool,
    tell: Tell = silent,
) -> dict[str, Any]:
    """Compare an engine with the float64 student under plain autograd, which shares no adjoint with the engine.

    Args:
        run: evaluates one graph with the engine.
        student: in float64.
        batches: structures to compare on; by default `parity_structures`, without those of forces beyond chemistry.
        brought: the user's structures: figures are of them, and `parity_structures` may stop the engine all the same.
        precision: of the engine, `fp32` or `fp64`.
        takes: whether the engine evaluates such a structure; by default one that has atoms. Others are not compared.
        tell: called with how many were compared.

    Returns:
        Largest error in atomic energies (eV), forces (eV/Å) and virials (eV); `float32_forces` (eV/Å), the largest
        error of the student's own forces in PyTorch and float32, or `float64_forces`, their largest change at
        geometries that float64 hardly tells from those compared; how many `structures` were compared, and those
        `left_out`, on which float32 cannot hold the student itself. Plain JSON types.

    Raises:
        ParityError: an error is above its tolerance or not finite; the message names the structure, the tensor, the
            error, the largest value and likely causes. Or no structure with neighbours is left to compare on.
    """
    gate = _DOUBLE if precision == "fp64" else _SINGLE

    def taken(given: Sequence[Sequence[Atoms]]) -> list[list[Atoms]]:
        found = [[atoms for atoms in batch if takes(atoms)] for batch in given]
        return [batch for batch in found if batch]

    if batches is None and brought:
        found = _compare(gate, run, student, taken(_batches_of(brought)), tell=tell)
        others = taken(parity_structures(student))  # no figures of this student
        _compare(gate, run, student, others, LARGEST_FORCE, needed=False, tell=prefixed(tell, "default set, "))
        return found
    largest = LARGEST_FORCE if batches is None else np.inf
    return _compare(gate, run, student, taken(batches or parity_structures(student)), largest, tell=tell)


def _compare(
    gate: _Gate,
    run: Callable[[GraphInputs], GraphOutputs],
    student: Student,
    batches: Sequence[Sequence[Atoms]],
    largest_force: float = np.inf,
    *,
    needed: bool = True,
    tell: Tell = silent,
) -> dict[str, Any]:
    """Compare on every structure that the type can hold the student on; `needed` refuses where there is none."""
    worst = dict.fromkeys((*gate.tolerances, gate.key), 0.0)
    left_out: dict[str, LeftOut] = {}
    compared, pulled = 0, False
    blurred_student = _Blurred(gate, student)
    more = counting(tell, sum(map(len, batches)))
    for structures in batches:
        for atoms, got, want, blur in _evaluated(gate, run, student, blurred_student, structures):
            name = describe(atoms)
            sums = [{"energy": each[0].sum(), "forces": each[1]} for each in (want, blur)]
            if reason := unsound(*sums, largest_force=largest_force, precision=gate.type):
                left_out.setdefault(name, LeftOut(None, name, reason))
                continue
            compared, pulled = compared + 1, pulled or bool(np.any(want[1]))
            worst[gate.key] = max(worst[gate.key], _error(blur[1], want[1]))
            for field, one, other, blurred in zip(OUTPUTS, got, want, blur, strict=True):
                error = _error(one, other)
                scale = gate.relative * float(np.abs(other).max(initial=0.0))
                tolerance = max(gate.tolerances[field.name], BLUR_FACTOR * _error(blurred, other), scale)
                if error > tolerance:
                    tolerance = max(tolerance, BLUR_FACTOR * blurred_student.typical(atoms)[field.name])
                if not error <= tolerance:  # NaN is not
                    raise ParityError(
                        f"On {name} the engine's {field.name} differ from the student's by {error:.2e} {field.unit} "
                        f"(tolerance {tolerance:.1e}, largest value {float(np.abs(other).max()):.2e}). Likely causes: "
                        "an epsilon that was lost in translation (isolated atoms, symmetric molecules), a padded slot "
                        f"that is not masked, or an engine that computes in {gate.lower}. No engine was written."
                    )
                worst[field.name] = max(worst[field.name], error)
        more(len(structures))
    if needed and (not compared or (left_out and not pulled)):  # an atom alone judges no force
        raise ParityError(
            "There is no structure to compare the engine with its student on: "
            f"{'; '.join(summary([*left_out.values()]))}. Give structures like those that the student was trained on "
            f"with --structures. If these are such, its weights are too steep for {gate.type}: train it with weight "
            "decay."
        )
    return {**worst, "structures": compared, "left_out": [each.as_dict() for each in left_out.values()]}


Rows = tuple[np.ndarray, ...]


def _evaluated(
    gate: _Gate,
    run: Callable[[GraphInputs], GraphOutputs],
    student: Student,
    blurred: "_Blurred",
    structures: Sequence[Atoms],
) -> Iterator[tuple[Atoms, Rows, Rows, Rows]]:
    """Each structure of a batch with what its atoms get of the engine, of the student, and of the blurred student."""
    cutoff = student.configuration.cutoff
    got = tuple(run(graph_inputs(structures, cutoff, np.dtype(gate.type).type)))
    exact, other = _rows(student, structures), blurred.rows(structures)
    start = 0
    for atoms in structures:
        own = slice(start, start + len(atoms))
        start = own.stop
        yield atoms, *(tuple(np.asarray(each, np.float64)[own] for each in rows) for rows in (got, exact, other))


def _rows(student: Student, structures: Sequence[Atoms]) -> Rows:
    """The outputs of a student in its own type, by plain autograd."""
    kind = np.float64 if student.dtype == torch.float64 else np.float32
    inputs = graph_inputs(structures, student.configuration.cutoff, kind)
    return tuple(output.double().numpy() for output in autograd_forces(student, tensors(inputs, student.dtype)))


class _Blurred:
    """A student as an engine's type of numbers sees it: in float32, or in float64 at geometries hardly apart.

    Args:
        gate: of the engine's type.
        student: in float64.
    """

    def __init__(self, gate: _Gate, student: Student) -> None:
        self._gate, self._exact = gate, student
        self._single = copy.deepcopy(student).float() if gate is _SINGLE else None

    def rows(self, structures: Sequence[Atoms]) -> Rows:
        """Its outputs."""
        if self._single is not None:
            return _rows(self._single, structures)
        rng = np.random.default_rng(0)
        return _rows(self._exact, [jolted(atoms, rng, self._gate.jolt) for atoms in structures])

    def typical(self, atoms: Atoms) -> dict[str, float]:
        """Median error around a geometry, by the output's name.

        Where vectors cancel by symmetry one geometry tells little: its roundings may happen to cancel too. Those of
        others that the type can hardly tell from it do not.
        """
        rng, errors = np.random.default_rng(0), []
        for _ in range(JOLTS):
            moved = jolted(atoms, rng, self._gate.jolt)
            exact = _rows(self._exact, [atoms if self._single is None else moved])
            blurred = _rows(self._exact if self._single is None else self._single, [moved])
            errors.append([_error(one, other) for one, other in zip(blurred, exact, strict=True)])
        return dict(zip((field.name for field in OUTPUTS), np.median(errors, axis=0).tolist(), strict=True))


def _error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.max(np.abs(got - want)))
