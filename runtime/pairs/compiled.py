"""Loops over pairs as machine code, where numba is installed; where it is not, array code gives the same bits.

What takes the time of a structure here is a few operations on each of its pairs. Array code passes over all pairs once
for each operation; a compiled loop passes over them once. `loops()` is the module of these, or None.
"""

import os
from functools import cache
from types import ModuleType

__all__ = ["SWITCH", "loops", "status"]

SWITCH = "PAINN_DEPLOY_COMPILED"
"""Environment variable; 0 takes array code although numba is there."""


@cache
def loops() -> ModuleType | None:
    """The compiled loops; None where numba is not installed, cannot be imported, or is switched off."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        from painn_deploy.runtime.pairs import kernels
    except ImportError:  # not installed, or of another numpy's time, which it says so
        return None
    return kernels


def status() -> str:
    """What runs here, in words."""
    if loops() is not None:
        import numba

        return f"compiled by numba {numba.__version__}"
    if os.environ.get(SWITCH) == "0":
        return f"array code, since {SWITCH} is 0"
    try:
        import numba
    except ModuleNotFoundError:
        return 'array code; pip install "painn-deploy[fast]" for compiled loops'
    except ImportError as error:
        return f"array code, since numba cannot be used here: {error}"
    return "array code"
