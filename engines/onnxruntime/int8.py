"""Whether ONNX Runtime multiplies 8-bit integers exactly on this CPU."""

from functools import cache

from painn_deploy.engines.eight_bits import SATURATED, is_exact
from painn_deploy.engines.onnxruntime.library import library

__all__ = ["PRODUCT", "inexact"]

PRODUCT = bytes.fromhex(
    "08083a4f0a180a01780a0177120179220d4d61744d756c496e746567657212005a0f0a0178120a0a08080312040a000a00"
    "5a0f0a0177120a0a08080312040a000a00620f0a0179120a0a08080612040a000a0042040a00100d"
)
"""A graph of one node, y = MatMulInteger(x, w), whose operands are int8: written down, since opening a bundle does not
need the package onnx."""


@cache
def inexact() -> str:
    """A sentence that says why products of 8-bit integers cannot be trusted here; empty where they are exact.

    Raises:
        EngineUnavailableError: the library is not installed.
    """
    session = library().InferenceSession(PRODUCT, providers=["CPUExecutionProvider"])
    exact = is_exact(lambda x, weight: session.run(None, {"x": x, "w": weight})[0])
    return "" if exact else f"ONNX Runtime's {SATURATED}"
