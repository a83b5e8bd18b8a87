"""The uncertainty that lies beside a checkpoint, made once of what it was trained on: NAME.uncertainty.json."""

from pathlib import Path
from typing import Any

from painn_deploy.export.checkpoint import Checkpoint
from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.files import to_json, write_output
from painn_deploy.export.reading import AbsentError, read_json
from painn_deploy.runtime.uncertainty.rigidity import LastLayer

__all__ = ["SUFFIX", "brought_with", "write_beside"]

SUFFIX = ".uncertainty.json"

MOST_BYTES = 64 << 20
"""A matrix of 512 features has 3 MB, and a student has one for each element."""


def brought_with(checkpoint: Checkpoint, width: int) -> LastLayer | None:
    """What makes the uncertainties of a student; None where nothing lies beside its checkpoint.

    Args:
        checkpoint: of the student.
        width: of its features.

    Raises:
        CheckpointError: it cannot be read, or was made of other weights, units or elements.
    """
    path = checkpoint.path.with_name(f"{checkpoint.path.stem}{SUFFIX}")
    remedy = "Make it again with `python -m painn_deploy.scripts.studies.fitted_uncertainty`, or remove it"
    try:
        values = read_json(path, MOST_BYTES, follow=True)
        if values.get("made_of") != _made_of(checkpoint):
            raise CheckpointError(
                f"{path.name} beside {checkpoint.path.name} was made of other weights, units or elements, and says "
                f"nothing of how sure these are. {remedy}; or give --training or --no-uncertainty."
            )
        return LastLayer.from_dict(values, width)
    except AbsentError:
        return None
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path} is no uncertainty that can be read ({error}). {remedy}.") from error


def write_beside(checkpoint: Checkpoint, last_layer: LastLayer, path: Path) -> None:
    """Write what `brought_with` reads.

    Args:
        checkpoint: that the uncertainty was made of.
        last_layer: the uncertainty.
        path: of the file, which is found where it is NAME.uncertainty.json beside NAME.safetensors.

    Raises:
        OutputError: it cannot be written.
    """
    write_output(path, to_json({"made_of": _made_of(checkpoint), **last_layer.as_dict()}))


def _made_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What it holds for: the weights, and the units and elements that their owner declared."""
    declared = {} if checkpoint.declared is None else checkpoint.declared.as_dict()
    return {"checkpoint_sha256": checkpoint.sha256, "declared": declared}
