"""How sure the bundles of one student say they are: fitted once, and each engine held against the student's own."""

from collections.abc import Mapping, Sequence
from typing import Any

from ase import Atoms

from painn_deploy.calibration.uncertainty.brought import brought_with
from painn_deploy.calibration.uncertainty.spread import (
    ENERGY_TOLERANCE,
    FORCE_TOLERANCE,
    scale_of_spread,
    spread_errors,
    spread_of,
)
from painn_deploy.calibration.uncertainty.training import (
    LARGEST_ERROR,
    last_layer_of,
    uncertainty_errors,
    uncertainty_ratios,
)
from painn_deploy.export.checkpoint import Checkpoint
from painn_deploy.export.errors import ParityError
from painn_deploy.export.files import to_json
from painn_deploy.export.manifest import UNCERTAINTY, Manifest
from painn_deploy.export.manifest_values import EXACT
from painn_deploy.export.model.committee import Committee
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell, prefixed
from painn_deploy.runtime.uncertainty.committee import ELEMENTS, KIND
from painn_deploy.runtime.uncertainty.rigidity import LastLayer
from painn_deploy.runtime.uncertainty.scale import Scale

__all__ = ["Certainty"]

Results = Sequence[Mapping[str, Any]]


class Certainty:
    """What makes, and measures, the uncertainties of a student's bundles.

    A last layer's is fitted on frames, or was brought with the checkpoint; the student is told to give its features.

    Args:
        student: in float64, as its graphs compute it.
        source: its checkpoint.
        training: frames to fit on; None for what the checkpoint brings.
        name: of these frames.
        tell: called with a line about each step.
        wanted: whether a last layer says anything at all; a committee always does.

    Raises:
        CheckpointError: what the checkpoint brings cannot be read.
        DatasetError: nothing can be fitted on these frames.
    """

    def __init__(
        self,
        student: Student,
        source: Checkpoint,
        training: Sequence[Atoms] | None,
        name: str,
        tell: Tell,
        *,
        wanted: bool = True,
    ) -> None:
        self._student, self._tell = student, tell
        self._last_layer: LastLayer | None = None
        self._scale: Scale | None = None
        self._seen: list[str] = []
        self._own: dict[int, Any] = {}
        told = prefixed(tell, "fitting the uncertainty: ")
        if isinstance(student, Committee):
            if training is not None:
                tell(f"measuring the spread of the committee on {len(training)} structures")
                self._scale = scale_of_spread(student, training, name, told)
                self._seen = sorted({symbol for atoms in training for symbol in atoms.get_chemical_symbols()})
        elif wanted and training is None:
            self._last_layer = brought_with(source, student.feature_width)
        elif wanted and training is not None:
            tell(f"fitting the uncertainty of the last layer on {len(training)} structures")
            self._last_layer = last_layer_of(student, training, name, told)
        student.gives_features = self._last_layer is not None

    @property
    def files(self) -> dict[str, bytes]:
        """What every bundle of the student holds of it."""
        if self._last_layer is not None:
            return {UNCERTAINTY: to_json(self._last_layer.as_dict())}
        if self._scale is None:
            return {}
        return {UNCERTAINTY: to_json({ELEMENTS: self._seen, **self._scale.as_dict(KIND)})}

    def measured(self, manifest: Manifest, structures: Sequence[Atoms], results: Results | None) -> dict[str, Any]:
        """What validation.json says of an engine's uncertainties.

        Args:
            manifest: of the bundle.
            structures: that the engine was measured on.
            results: of the engine; None where it cannot run here.

        Raises:
            ParityError: those of an exact engine are not the student's.
        """
        found: dict[str, Any] = {}
        if self._last_layer is not None:
            said = {key: value for key, value in self._last_layer.as_dict().items() if key != "roots"}
            errors = {} if results is None else self._of_features(manifest, structures, results, self._last_layer)
            found["uncertainty"] = said | errors
        elif self._scale is not None:
            found["uncertainty"] = self._scale.as_dict(KIND)
        if isinstance(self._student, Committee) and results is not None:
            found["committee"] = self._of_members(manifest, structures, results, self._student)
        return found

    def _of_features(
        self, manifest: Manifest, structures: Sequence[Atoms], results: Results, last_layer: LastLayer
    ) -> dict[str, float]:
        missing = [atoms for atoms in structures if id(atoms) not in self._own]
        ratios = uncertainty_ratios(last_layer, self._student, missing)
        self._own |= {id(atoms): ratio for atoms, ratio in zip(missing, ratios, strict=True)}
        errors = uncertainty_errors(results, [self._own[id(atoms)] for atoms in structures])
        error = errors["median_relative_error"]
        if not error <= LARGEST_ERROR and manifest.arithmetic in EXACT:
            raise ParityError(
                f"The uncertainties of {manifest.engine} in {manifest.arithmetic} differ from the student's by "
                f"{error:.1%} (median). No engine was written; report it with the student's configuration."
            )
        return errors

    def _of_members(
        self, manifest: Manifest, structures: Sequence[Atoms], results: Results, committee: Committee
    ) -> dict[str, float]:
        missing = [atoms for atoms in structures if id(atoms) not in self._own]
        if missing:
            self._tell(f"evaluating {len(missing)} structures with each member")
        spread = spread_of(committee, missing)
        self._own |= {id(atoms): each for atoms, each in zip(missing, spread, strict=True)}
        errors = spread_errors(results, [self._own[id(atoms)] for atoms in structures])
        near = errors["energy_median"] <= ENERGY_TOLERANCE and errors["forces_median"] <= FORCE_TOLERANCE
        if not near and manifest.arithmetic in EXACT:
            raise ParityError(
                f"The spread of {manifest.engine} in {manifest.arithmetic} is not that of its members: medians of its "
                f"errors are {errors['forces_median']:.1e} eV/Å and {errors['energy_median']:.1e} eV an atom. No "
                "engine was written; report it with the students' configuration."
            )
        return errors
