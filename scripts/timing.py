"""Times of calculators that can be compared: within one run, in turns, with new positions at every call."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

__all__ = ["milliseconds"]

BLOCKS = 5
WARM_UP = 2


def milliseconds(
    calculators: Mapping[str, Any], structures: Sequence[Atoms], *, calls: int = 10, sigma: float = 0.02
) -> dict[str, float]:
    """Median ms of one energy and forces through ASE, averaged over structures.

    Calculators take turns in blocks, with a pause between: threads that one leaves spinning would slow the next.

    Args:
        calculators: by name.
        structures: to time on; positions are perturbed at every call, since a result that is remembered is no time.
        calls: of a block.
        sigma: Å, of the perturbation.
    """
    rng = np.random.default_rng(0)
    medians: dict[str, list[float]] = {name: [] for name in calculators}
    for structure in structures:
        atoms, start = structure.copy(), structure.positions.copy()
        spent: dict[str, list[float]] = {name: [] for name in calculators}
        for _ in range(BLOCKS):
            for name, calculator in calculators.items():
                time.sleep(0.05)
                atoms.calc = calculator
                for call in range(WARM_UP + calls):
                    atoms.positions = start + rng.normal(0, sigma, start.shape)
                    began = time.perf_counter()
                    atoms.get_potential_energy()
                    atoms.get_forces()
                    if call >= WARM_UP:
                        spent[name].append(time.perf_counter() - began)
        for name, times in spent.items():
            medians[name].append(1e3 * float(np.median(times)))
    return {name: float(np.mean(times)) for name, times in medians.items()}
