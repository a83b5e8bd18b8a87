"""Engines of bundles as contenders, through their calculators and alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Float

from painn_deploy.calibration.timing import through_ase
from painn_deploy.engines.profiles import Profile
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.benchmarks.contenders.contender import Contender
from painn_deploy.scripts.commands.export import export_engines

__all__ = ["Bundle", "exported", "opened"]


class Bundle(Contender):
    """An engine, in whole calls of its calculator and alone.

    Args:
        calculator: of the bundle; it is closed with this.
        name: what tables call it.
        ase: ask for a lone structure through ASE, as dynamics do; else as a batch of one.
    """

    def __init__(self, calculator: PaiNNCalculator, name: str, *, ase: bool = True) -> None:
        info = calculator.engine_info
        super().__init__(name, f"{info['backend']} {info['version']}", info["device"])
        self.calculator, self._ase = calculator, through_ase(calculator) if ase else None
        self._profiles = [Profile.from_mapping(profile) for profile in calculator.manifest.profiles]

    def prepare(self, structures: Sequence[Atoms]) -> GraphInputs:
        """The neighbour matrix."""
        return graph_inputs(structures, self.calculator.manifest.cutoff, self.calculator.evaluator.dtype)

    def run(self, prepared: GraphInputs) -> GraphOutputs:
        """The engine alone."""
        return self.calculator.run_graph(prepared)

    def whole(self, structures: list[Atoms]) -> list[dict[str, Any]]:
        """From structures, neighbour search included."""
        if self._ase is None or len(structures) > 1:
            return self.calculator.calculate_batch(structures)
        self._ase(structures)
        return [self.calculator.results]

    def forces(self, results: Any) -> Float[np.ndarray, "atoms 3"]:
        """eV/Å."""
        return np.asarray(results.forces) if isinstance(results, GraphOutputs) else super().forces(results)

    def fits(self, structures: Sequence[Atoms]) -> bool:
        """Whether the engine was built for so many atoms and neighbours."""
        atoms, slots = self.prepare(structures).mask.shape
        return not self._profiles or any(atoms <= p.atoms[2] and slots <= p.slots[2] for p in self._profiles)

    def phases(self) -> dict[str, float]:
        """The calculator's timings, which begin anew."""
        found = self.calculator.timings.as_dict()
        self.calculator.timings.reset()
        return found

    def close(self) -> None:
        """Close the calculator."""
        self.calculator.close()


@contextmanager
def exported(
    checkpoint: str, structures: Sequence[Atoms], engines: Sequence[str], *, uncertainty: bool = True
) -> Iterator[dict[str, Path]]:
    """Bundles of a checkpoint in FP32 for this CPU, by engine, in a folder that is gone afterwards.

    Args:
        checkpoint: a file, or a student that ships.
        structures: to measure their errors on.
        engines: backends by name.
        uncertainty: whether results have what the checkpoint says of it.
    """
    with TemporaryDirectory() as folder:
        options: dict[str, Any] = {"structures": structures, "device": "cpu", "uncertainty": uncertainty}
        paths = export_engines(checkpoint, folder, engines=engines, **options)
        yield dict(zip(engines, paths, strict=True))


@contextmanager
def opened(
    bundles: Mapping[str, Path], device: str, threads: int | None = None, *, ase: bool = True
) -> Iterator[list[Bundle]]:
    """Engines, until the end of the block.

    Args:
        bundles: by what to call them.
        device: to run them on.
        threads: of a CPU; None for what each chooses.
        ase: see `Bundle`.
    """
    with ExitStack() as stack:
        yield [
            stack.enter_context(Bundle(PaiNNCalculator(path, device=device, threads=threads), name, ase=ase))
            for name, path in bundles.items()
        ]
