"""The student that bundles were made from, found again among checkpoints."""

from collections.abc import Sequence
from pathlib import Path

import torch

from painn_deploy.export.bundle import Bundle
from painn_deploy.export.checkpoint import Checkpoint, load_checkpoint, load_committee, resolve_checkpoint
from painn_deploy.export.declaration import declaration_of
from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.model.student import Student

__all__ = ["Reference", "load_origin"]

Reference = str | Path | Sequence[str | Path]
"""A checkpoint, or those of a committee's members in any order."""


def load_origin(
    bundles: Sequence[Bundle], reference: Reference, dtype: torch.dtype = torch.float32
) -> tuple[Student, Checkpoint]:
    """Load the student, or the committee, that bundles were made from.

    Args:
        bundles: at least one, of one student.
        reference: its checkpoint, or those of all members of a committee.
        dtype: torch.float32 or torch.float64.

    Returns:
        The student, and what stands for its checkpoint.

    Raises:
        CheckpointError: the reference is not what a bundle was made from, or bundles were made with other units or
            elements; or see `load_checkpoint`.
    """
    given = [reference] if isinstance(reference, str | Path) else list(reference)
    found = [resolve_checkpoint(each) for each in given]
    for bundle in bundles:
        _check(bundle, found)
        if declaration_of(bundle.manifest) != declaration_of(bundles[0].manifest):
            raise CheckpointError(
                f"{bundle} and {bundles[0]} were made from one file with other units or elements: they are of "
                "different students. Take them one by one, or export one again."
            )
    first = bundles[0].manifest
    declared, order = declaration_of(first), [member["checkpoint_sha256"] for member in first.members]
    if not order:
        return load_checkpoint(given[0], dtype=dtype, declared=declared)
    paths = {each.sha256: path for each, path in zip(found, given, strict=True)}
    committee, whole, _ = load_committee([paths[sha256] for sha256 in order], dtype=dtype, declared=declared)
    return committee, whole


def _check(bundle: Bundle, found: Sequence[Checkpoint]) -> None:
    """Hold checkpoints against the hashes in a bundle.

    Raises:
        CheckpointError: there are others, or not as many.
    """
    manifest = bundle.manifest
    members = {member["checkpoint_sha256"]: member["name"] for member in manifest.members}
    wanted = members or {manifest.checkpoint_sha256: ""}
    if odd := [each for each in found if each.sha256 not in wanted]:
        listed = ", ".join(f"{name} ({sha256[:12]}...)" for sha256, name in members.items())
        made_of = listed or f"a file of SHA-256 {manifest.checkpoint_sha256[:12]}..."
        remedy = "Give the checkpoints of all members" if members else "Give the checkpoint that it was made from"
        raise CheckpointError(
            f"{bundle} was not made from {odd[0].path} (SHA-256 {odd[0].sha256[:12]}...) but from {made_of}. "
            f"{remedy}, or export it again."
        )
    given = [each.sha256 for each in found]
    if missing := [name for sha256, name in members.items() if sha256 not in given]:
        raise CheckpointError(
            f"{bundle} is of a committee of {len(members)}, and of {', '.join(missing)} no checkpoint was given. Give "
            "those of all members: --reference a,b,c."
        )
    if len(set(given)) != len(given):
        raise CheckpointError(f"A checkpoint was given twice to stand for {bundle}. Give each once.")
