"""Versions of the packages that take part, as far as they are installed."""

from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

__all__ = ["installed", "onnxruntimes"]

ONNXRUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-silicon",
    "onnxruntime-training",
)
"""Distributions that all install a module called `onnxruntime`."""


def installed(names: Iterable[str]) -> dict[str, str]:
    """Versions of distributions by name; one that is not installed is left out.

    `onnxruntime` stands for the distribution that the imported module belongs to, and is answered under that
    distribution's own name. Nothing is imported.
    """
    found: dict[str, str] = {}
    for name in names:
        if name == "onnxruntime":
            found |= onnxruntimes()
            continue
        with suppress(metadata.PackageNotFoundError):
            version = _version(metadata.distribution(name))
            found |= {name: version} if version else {}
    return found


def onnxruntimes() -> dict[str, str]:
    """Versions of the distributions whose files lie where `import onnxruntime` finds its module.

    Two of them have overwritten each other's files. Others may be installed in other folders of the path; their module
    is hidden, whole, and nobody's concern.
    """
    try:
        spec = find_spec("onnxruntime")
    except (ImportError, ValueError):  # ValueError: what was imported under this name says not where from
        return {}
    if spec is None or spec.origin is None:
        return {}
    home = Path(spec.origin).parent.resolve()
    return {
        name: version
        for name in ONNXRUNTIMES
        for distribution in metadata.distributions(name=name)
        if Path(str(distribution.locate_file("onnxruntime"))).resolve() == home and (version := _version(distribution))
    }


def _version(distribution: metadata.Distribution) -> str:
    """The version in its metadata; empty for the hollow folder that an interrupted removal leaves behind."""
    facts: metadata.PackageMetadata | None = distribution.metadata
    return facts["Version"] if facts is not None and "Version" in facts else ""
