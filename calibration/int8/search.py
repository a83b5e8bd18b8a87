"""The search for products that can be INT8 together within a tolerance: each is measured alone, then all together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from ase import Atoms
from ase.data import chemical_symbols

from painn_deploy.calibration.int8.ranges import row_scales, structure_maxima
from painn_deploy.calibration.int8.selection import farthest_points
from painn_deploy.calibration.int8.yardstick import Errors, Yardstick
from painn_deploy.calibration.structures import LARGEST_FORCE, within_reach
from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export.errors import DatasetError, PrecisionError
from painn_deploy.export.graph.int8 import LEAST_SIZE, OperandScale, candidates, to_int8
from painn_deploy.export.graph.products import Product, weight_products
from painn_deploy.export.progress import Tell, silent
from painn_deploy.runtime.matrix import graph_inputs

__all__ = ["LEAST_STRUCTURES", "Int8Search", "Quantisation", "Sensitivity", "int8_shares"]

LEAST_STRUCTURES = 16
"""Half of them, the most extreme, are set aside; products are chosen by the errors on the others."""

MOST_STRUCTURES = 64
"""Of each half; more would cost minutes and change little."""

MARGIN = 0.7
"""Share of the tolerances that a search uses, so that its choice is within them on other structures too."""


@dataclass(frozen=True)
class Sensitivity:
    """The errors of a graph in which one product alone is INT8.

    Attributes:
        product: the product in INT8.
        errors: against FP32.
    """

    product: Product
    errors: Errors


@dataclass(frozen=True)
class Quantisation:
    """The result of a search.

    Attributes:
        scales: of the products that are INT8, by name.
        errors: of all of them together, after the correction.
        correction: eV for each atomic number, to be added to the atomic references: the constant part of the error.
        sensitivities: of every candidate, the least sensitive first.
        calibrated_on: how many structures were set aside as the most extreme, and how many gave errors.
        sizes: mean atoms and slots of the structures, at which multiply-adds are counted.
        shares: INT8 share of all multiply-adds, by the names `forward` and `backward`.
    """

    scales: Mapping[str, OperandScale]
    errors: Errors
    correction: Mapping[int, float]
    sensitivities: Sequence[Sensitivity]
    calibrated_on: tuple[int, int]
    sizes: tuple[int, int]
    shares: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, for a bundle's validation.json; force errors in meV/Å, energies in meV an atom."""
        return {
            "int8_multiply_adds": dict(self.shares),
            "calibrated_on": list(self.calibrated_on),
            "search_errors": {
                "energy_mae": 1e3 * self.errors.energy_mae, "force_rmse": 1e3 * self.errors.force_rmse,
            },
            "energy_correction": {chemical_symbols[z]: 1e3 * shift for z, shift in self.correction.items()},
            "sensitivity": [
                {
                    "gemm": entry.product.name,
                    "force_rmse": 1e3 * entry.errors.force_rmse,
                    "energy_mae": 1e3 * entry.errors.energy_mae,
                    "precision": "int8" if entry.product.name in self.scales else "higher",
                    "multiply_adds": entry.product.multiply_adds(*self.sizes),
                }
                for entry in self.sensitivities
            ],
        }  # fmt: skip


class Int8Search:
    """Finds the products of a student that can be INT8 together within a tolerance.

    Each product is tried alone, with a scale for each row of its operand. The most extreme structures are set aside;
    errors are measured on the others.

    Args:
        model: in FP32.
        structures: like those that the engine is for; at least `LEAST_STRUCTURES`.
        cutoff: Å.
        tell: called with a line about each step.

    Attributes:
        sensitivities: of every candidate, in the order in which they join.

    Raises:
        DatasetError: there are too few structures.
        PrecisionError: the student is too narrow for INT8.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        structures: Sequence[Atoms],
        cutoff: float,
        *,
        tell: Tell = silent,
    ) -> None:
        self._model, self._tell = model, tell
        _enough(structures)
        if not (products := candidates(model)):
            raise PrecisionError(
                f"No product of this student can be INT8: none has {LEAST_SIZE} rows and columns, which INT8 needs. "
                "Export it in fp32 or fp16."
            )
        tell("choosing structures to calibrate on")
        graphs = [graph_inputs([atoms], cutoff) for atoms in structures]
        run = open_graph(model.SerializeToString())
        kept = within_reach([run(graph)[1] for graph in graphs])
        structures, graphs = [structures[i] for i in kept], [graphs[i] for i in kept]
        _enough(structures)
        maxima = structure_maxima(model, products, graphs)
        extreme = farthest_points(maxima, min(MOST_STRUCTURES, len(structures) // 2))
        rest = [index for index in range(len(structures)) if index not in set(extreme)]
        scored = [rest[i] for i in np.linspace(0, len(rest) - 1, min(MOST_STRUCTURES, len(rest))).astype(int)]
        self._yardstick = Yardstick(model, [structures[index] for index in scored], cutoff)
        self._counts = (len(extreme), len(scored))
        self._scales = row_scales(model, products, [graphs[index] for index in extreme])
        sensitivities = []
        for index, product in enumerate(products):
            tell(f"quantising {product.name} alone, {index + 1} of {len(products)}")
            sensitivities.append(Sensitivity(product, self._errors([product])))
        sizes = self._yardstick.mean_size
        self.sensitivities = sorted(
            sensitivities, key=lambda s: s.errors.force_rmse**2 / s.product.multiply_adds(*sizes)
        )

    def find(self, energy_limit: float, force_limit: float) -> Quantisation:
        """The products that can be INT8 together.

        They join in the order of squared error to multiply-adds, as many as the tolerance allows, and at last those
        left over are tried until none fits. So no single product could be added to what is returned.

        Args:
            energy_limit: eV an atom, mean absolute error against FP32 after the correction.
            force_limit: eV/Å, root mean square error against FP32.

        Raises:
            PrecisionError: no product can be INT8 within the tolerance; it says how close the best came.
        """
        within = _Within(MARGIN * energy_limit, MARGIN * force_limit)
        chosen = _largest(self.sensitivities, self._errors, within, self._tell)
        if not chosen:
            closest = min(self.sensitivities, key=lambda s: within.excess(s.errors))
            raise PrecisionError(
                f"No product can be INT8 within {1e3 * energy_limit:g} meV/atom and {1e3 * force_limit:g} meV/Å. "
                f"{closest.product.name} came closest: alone it costs {1e3 * closest.errors.energy_mae:.2f} meV/atom "
                f"and {1e3 * closest.errors.force_rmse:.2f} meV/Å, and a search uses {MARGIN:.0%} of the limits. Allow "
                "more, or export in fp16."
            )
        products = [entry.product for entry in chosen]
        scales = self._scales_of(products)
        errors, sizes = self._errors(products), self._yardstick.mean_size
        shares = int8_shares(self._model, scales, sizes)
        return Quantisation(scales, errors, errors.correction, self.sensitivities, self._counts, sizes, shares)

    def _errors(self, products: Iterable[Product]) -> Errors:
        model = to_int8(self._model, self._scales_of(products))
        return self._yardstick.errors(open_graph(model.SerializeToString()))

    def _scales_of(self, products: Iterable[Product]) -> dict[str, OperandScale]:
        return {product.name: self._scales[product.name] for product in products}


def _enough(structures: Sequence[Atoms]) -> None:
    if len(structures) < LEAST_STRUCTURES:
        raise DatasetError(
            f"INT8 is calibrated on structures with forces of at most {LARGEST_FORCE:g} eV/Å, and {len(structures)} "
            f"are too few: give at least {LEAST_STRUCTURES} with --structures, such as frames of a trajectory, and a "
            "quarter more where nothing is given with --training, since every fifth then judges."
        )


@dataclass(frozen=True)
class _Within:
    """A tolerance."""

    energy: float
    force: float

    def excess(self, errors: Errors) -> float:
        """The larger of both errors in units of its tolerance; up to 1 it is within."""
        return max(errors.energy_mae / self.energy, errors.force_rmse / self.force)

    def __call__(self, errors: Errors) -> bool:
        return self.excess(errors) <= 1.0


Measure = Callable[[Iterable[Product]], Errors]


def _largest(ordered: Sequence[Sensitivity], errors: Measure, within: _Within, tell: Tell) -> list[Sensitivity]:
    """The longest beginning of a list that is within the tolerance, and later entries until no other fits."""
    fits, too_many = 0, len(ordered) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        tell(f"quantising {middle} of {len(ordered)} products together; {fits} fit, {too_many} do not")
        if within(errors(s.product for s in ordered[:middle])):
            fits = middle
        else:
            too_many = middle
    chosen, left = list(ordered[:fits]), sorted(ordered[fits:], key=lambda s: s.errors.force_rmse)
    tried = -1
    while tried != len(chosen):  # errors may cancel: one that did not fit may, once another has joined
        tried = len(chosen)
        for candidate in [s for s in left if s not in chosen]:
            tell(f"quantising {len(chosen)} products and one of {len(ordered) - len(chosen)} left over")
            if within(errors(s.product for s in [*chosen, candidate])):
                chosen.append(candidate)
    return chosen


def int8_shares(model: onnx.ModelProto, scales: Mapping[str, OperandScale], sizes: tuple[int, int]) -> dict[str, float]:
    """Shares of all multiply-adds with weights, the read-out's and the basis's included, that are INT8.

    Args:
        model: in FP32.
        scales: of the products that are INT8, by name.
        sizes: atoms and slots of a structure.

    Returns:
        By the names `forward` and `backward`.
    """
    every, shares = weight_products(model), {}
    for direction in ("forward", "backward"):
        products = [p for p in every if p.is_forward == (direction == "forward")]
        total = sum(p.multiply_adds(*sizes) for p in products)
        shares[direction] = sum(p.multiply_adds(*sizes) for p in products if p.name in scales) / total
    return shares
