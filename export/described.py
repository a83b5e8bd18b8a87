"""One line that says what an open thing is: the `repr` of bundles, evaluators, calculators and models."""

from pathlib import Path
from typing import TYPE_CHECKING

from painn_deploy.export.declaration import species_text

if TYPE_CHECKING:
    from painn_deploy.export.manifest import Manifest

__all__ = ["NOT_OPEN", "described"]

NOT_OPEN = "not open"

MOST_ELEMENTS = 12
"""That the line lists."""


def described(
    kind: str,
    manifest: "Manifest | None",
    path: Path | None = None,
    *,
    device: str | None = None,
    state: str = "",
) -> str:
    """The line `Kind('NAME.engine', engine='onnxruntime', ..., student='painn', species='H C N O')`.

    Args:
        kind: name of the class.
        manifest: of the bundle; None for a thing whose making failed, of which nothing else is said.
        path: of the bundle's folder, which alone is named; None for a bundle in memory.
        device: that the engine runs on; None for none.
        state: a word at the end, such as `closed`; empty for none.
    """
    if manifest is None:
        return f"{kind}({NOT_OPEN})"
    facts = {"engine": manifest.engine, "precision": manifest.arithmetic}
    facts |= {} if device is None else {"device": device}
    facts |= {"student": manifest.architecture}
    facts |= {"species": species_text(manifest.species, verified=manifest.species_verified, most=MOST_ELEMENTS)}
    words = ["in memory" if path is None else repr(path.name), *(f"{name}={text!r}" for name, text in facts.items())]
    return f"{kind}({', '.join([*words, state] if state else words)})"
