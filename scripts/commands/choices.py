"""What the shell completes: names that an option takes, and bundles where one is wanted."""

import glob
from collections.abc import Iterable

__all__ = ["ENSEMBLES", "bundles", "engines", "ensembles", "precisions"]

ENSEMBLES = ("nve", "langevin", "bussi", "npt")


def bundles(incomplete: str) -> list[str]:
    """Bundles whose path begins so, and those in folders whose path does; where there are none, the shell offers files.

    Paths stay as they were begun, with `./` or without.
    """
    begun = glob.escape(incomplete)
    found = (glob.glob(f"{begun}{rest}.engine") for rest in ("*", "*/*"))  # noqa: PTH207  Path.glob would drop `./`
    return sorted(path for paths in found for path in paths)


def engines(incomplete: str) -> list[str]:
    """Backends by name."""
    from painn_deploy.engines import BACKENDS

    return _beginning(incomplete, BACKENDS)


def precisions(incomplete: str) -> list[str]:
    """Precisions of an export."""
    from painn_deploy.export.manifest import PRECISIONS

    return _beginning(incomplete, (*PRECISIONS, "auto"))


def ensembles(incomplete: str) -> list[str]:
    """Ensembles of a simulation."""
    return _beginning(incomplete, ENSEMBLES)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
