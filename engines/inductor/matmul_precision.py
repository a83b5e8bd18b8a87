"""torch's process-wide choice of how FP32 products are computed, held where an engine's products need it.

A user who lets another model round its products to TF32 or BF16 (`torch.set_float32_matmul_precision`) does not ask it
of ours: compiled packages call torch's products, which read that choice whenever they run.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["matmul_precision"]

NAMES = ("highest", "high", "medium")
"""Names that the old interface has for the precision of all libraries."""

_turn = threading.Condition()
_inside = 0
_tf32 = False
_before: dict[str, str] | None = None


@contextmanager
def matmul_precision(torch: Any, *, tf32: bool = False) -> Iterator[None]:
    """Have FP32 products exact, or in TF32, for this block; whatever was set before is set again after it.

    Blocks of several threads may overlap; where one wants TF32 and another does not, the later waits.

    Args:
        torch: the library.
        tf32: let a GPU round operands to ten bits.
    """
    global _inside, _tf32, _before
    with _turn:
        while _inside and _tf32 != tf32:
            _turn.wait()
        if not _inside:
            state, _tf32 = _read(torch), tf32
            if not _holds(state, tf32=tf32):
                _before = state
                torch.set_float32_matmul_precision("high" if tf32 else "highest")
        _inside += 1
    try:
        yield
    finally:
        with _turn:
            _inside -= 1
            if not _inside:
                before, _before = _before, None
                if before is not None:
                    _write(torch, before)
                _turn.notify_all()


def _read(torch: Any) -> dict[str, str]:
    """Present settings: the old interface has one name for all libraries, the new one has one for each."""
    try:
        named = str(torch.get_float32_matmul_precision())
    except RuntimeError:  # set through the new interface, to what the old one has no name for
        named = ""
    backends = torch.backends
    return {
        "named": named,
        "all": str(backends.fp32_precision),
        "cuda": str(backends.cuda.matmul.fp32_precision),
        "mkldnn": str(backends.mkldnn.matmul.fp32_precision),
    }


def _holds(state: Mapping[str, str], *, tf32: bool) -> bool:
    if tf32:
        return state["cuda"] == "tf32" and bool(state["named"])
    each = {state["all"] if state[name] == "none" else state[name] for name in ("cuda", "mkldnn")}
    return each <= {"ieee", "none"} and state["named"] == "highest"


def _write(torch: Any, state: Mapping[str, str]) -> None:
    # what the old interface could not name is read only through what it does not agree with
    for named in [state["named"]] if state["named"] else NAMES:
        torch.set_float32_matmul_precision(named)
        torch.backends.cuda.matmul.fp32_precision = state["cuda"]
        torch.backends.mkldnn.matmul.fp32_precision = state["mkldnn"]
        if _read(torch) == state:
            return
