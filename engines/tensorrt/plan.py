"""Contents of a TensorRT-RTX plan, read from the plan itself without a GPU: kernels, their types and fusions."""

import re
from collections import Counter
from dataclasses import dataclass

__all__ = ["PlanContents", "read_plan"]

_KERNELS = re.compile(rb"\b(function|fully_connected|runtime_fusion)=\{ name=\"?([^\s\"]+)")
_CONSTANTS = re.compile(rb"constant(Float|Half|Int8|Int32|Int64|FP8|BFloat16)\b")


@dataclass(frozen=True)
class PlanContents:
    """Kernels and constants that a plan names.

    Attributes:
        kernels: names of the kernels of one evaluation, by kind: `function` (fused elementwise, gathers and sums),
            `fully_connected` (matrix products), `runtime_fusion` (matrix products with what follows them).
        constants: how many weights there are of each type.
    """

    kernels: dict[str, list[str]]
    constants: dict[str, int]

    @property
    def count(self) -> int:
        """Kernels that are named; a product with what follows it in one kernel is named twice."""
        return sum(len(names) for names in self.kernels.values())

    @property
    def launches(self) -> int:
        """Kernels of one evaluation: what is named, less the products inside fused ones."""
        return self.count - len(self.kernels.get("runtime_fusion", ()))


def read_plan(plan: bytes) -> PlanContents:
    """Read the readable part of a plan that was built with detailed profiling."""
    kernels: dict[str, list[str]] = {}
    for kind, name in _KERNELS.findall(plan):
        kernels.setdefault(kind.decode(), []).append(name.decode())
    return PlanContents(kernels, dict(Counter(name.decode() for name in _CONSTANTS.findall(plan))))
