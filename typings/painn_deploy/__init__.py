"""painn-deploy: a trained PaiNN student goes in, engines that run in ASE come out. Everything is in its five rooms."""

from importlib import metadata
from typing import Any

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> Any:
    if name != "__version__":  # read when it is asked for: an import should cost nothing
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return metadata.version("painn-deploy")
    except metadata.PackageNotFoundError:  # it runs from its sources
        return "unknown"
