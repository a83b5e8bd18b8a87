"""The command line and the studies; what composes the other rooms."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from painn_deploy.scripts.commands.export import export_engines

__all__ = ["export_engines"]


def __getattr__(name: str) -> Any:
    if name != "export_engines":  # it needs torch, which most commands do not
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from painn_deploy.scripts.commands.export import export_engines
    except ModuleNotFoundError as error:
        if error.name in ("torch", "onnx", "safetensors"):
            raise ImportError(f'export_engines needs {error.name}: pip install "painn-deploy[export]"') from error
        raise
    return export_engines
