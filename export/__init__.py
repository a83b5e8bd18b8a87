"""The student, its checkpoint, the explicit force head, the ONNX graph and the bundle.

Names that need torch load when they are first used, so that a runtime without torch can import the errors, the
vocabulary and the manifest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from painn_deploy.export import moved as _moved  # noqa: F401 - old import paths answer from here on

if TYPE_CHECKING:
    from painn_deploy.export.checkpoint import load_student

__all__ = ["load_student"]

_LAZY = {"load_student": "painn_deploy.export.checkpoint"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if error.name in ("torch", "safetensors"):
            raise ImportError(f'{name} needs {error.name}: pip install "painn-deploy[export]"') from error
        raise
