"""Engines of the graph: one module a backend, behind the protocol `painn_deploy.engines.backend.Backend`.

Adding a backend is adding its module, which holds a `BACKEND`, and its line in `BACKENDS`.
"""

from importlib import import_module
from types import MappingProxyType

import painn_deploy.engines.inductor.openmp  # noqa: F401 - it must know of a fork that comes before any engine is opened
from painn_deploy.engines.backend import Backend
from painn_deploy.engines.null_session import NullSession
from painn_deploy.engines.session import EngineInfo, Session
from painn_deploy.export.errors import EngineUnavailableError

__all__ = ["BACKENDS", "Backend", "EngineInfo", "NullSession", "Session", "get_backend"]

BACKENDS = MappingProxyType(
    {
        "onnxruntime": "painn_deploy.engines.onnxruntime.backend",
        "tensorrt": "painn_deploy.engines.tensorrt.backend",
        "tensorrt-rtx": "painn_deploy.engines.tensorrt.rtx",
        "inductor": "painn_deploy.engines.inductor.backend",
        "fused": "painn_deploy.engines.fused.backend",
    }
)


def get_backend(name: str) -> Backend:
    """A backend by name; its library is not imported yet.

    Raises:
        EngineUnavailableError: this version has no such backend.
    """
    if name not in BACKENDS:
        raise EngineUnavailableError(f"There is no engine {name!r} in this version; there are: {', '.join(BACKENDS)}.")
    backend: Backend = import_module(BACKENDS[name]).BACKEND
    return backend
