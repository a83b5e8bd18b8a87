"""SchNetPack's own calculator as a contender, in its own environment, on a student's weights."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.export.model.painn import GaussianBasis, PaiNN
from painn_deploy.export.model.student import Student
from painn_deploy.scripts.benchmarks.contenders.contender import SCHNETPACK, Contender

__all__ = ["SchNetPack", "schnetpack", "schnetpack_weights"]

SERVER = Path(__file__).with_name("schnetpack_server.py")


def schnetpack_weights(student: PaiNN) -> dict[str, np.ndarray]:
    """A student's weights under SchNetPack's names, and its hyperparameters.

    Raises:
        PaiNNDeployError: it is another one than those of SchNetPack's defaults.
    """
    configuration, state = student.configuration, student.state_dict()
    shared = configuration.num_interactions > 1 and len(state["filters.bias"]) == 3 * configuration.hidden_dim
    further = {"energy_scales", "mixing.0.bias"}.intersection(state) | set(configuration.variants())
    if configuration.epsilon > 0:  # without one SchNetPack's forces are NaN where vectors vanish
        further -= {"epsilon"}
    if not isinstance(student.basis, GaussianBasis) or shared or further:
        raise PaiNNDeployError(
            "SchNetPack is timed on students with Gaussians, filters for each interaction and its defaults elsewhere."
        )
    names: dict[str, str] = {
        "embedding.weight": "representation.embedding.weight",
        "basis.offsets": "representation.radial_basis.offsets",
        "basis.widths": "representation.radial_basis.widths",
        "filters.weight": "representation.filter_net.weight",
        "filters.bias": "representation.filter_net.bias",
    }
    for key in state:
        room, layer, *rest = key.split(".")
        if room == "message":
            names[key] = f"representation.interactions.{layer}.interatomic_context_net.{int(rest[0]) // 2}.{rest[1]}"
        elif room == "update":
            names[key] = f"representation.mixing.{layer}.intraatomic_context_net.{int(rest[0]) // 2}.{rest[1]}"
        elif room == "mixing":
            names[key] = f"representation.mixing.{layer}.mu_channel_mix.{rest[0]}"
        elif room == "readout":
            names[key] = f"output_modules.0.outnet.{int(layer) // 2}.{rest[0]}"
    weights = {names[key]: value.numpy() for key, value in state.items()}
    keys = ("hidden_dim", "num_interactions", "num_rbf", "cutoff", "epsilon")
    return weights | {key: np.array(getattr(configuration, key)) for key in keys}


class SchNetPack(Contender):
    """A process that answers with energy and forces of one structure after the other.

    Args:
        process: that runs schnetpack_server.py.
    """

    alone = False

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        super().__init__(SCHNETPACK, "of its own environment")
        self._process = process

    def whole(self, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
        """One call of SpkCalculator for each structure, as its users make them; energies without atomic references.

        Raises:
            PaiNNDeployError: the process has ended.
        """
        return [self._one(atoms) for atoms in structures]

    def _one(self, atoms: Atoms) -> dict[str, Any]:
        asked = {"numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist()}
        asked |= {"cell": atoms.cell.tolist(), "pbc": atoms.pbc.tolist()}
        streams = self._process.stdin, self._process.stdout
        if streams[0] is None or streams[1] is None:
            raise PaiNNDeployError("SchNetPack's process has no pipes.")
        try:
            streams[0].write(json.dumps(asked) + "\n")
            streams[0].flush()
        except BrokenPipeError:
            pass  # it has ended, and says nothing below
        answer = streams[1].readline()
        if not answer:
            raise PaiNNDeployError(
                "SchNetPack's process ended. Is --schnetpack the Python of an environment in which "
                "`import schnetpack` works?"
            )
        found: dict[str, Any] = json.loads(answer)
        return found


@contextmanager
def schnetpack(python: str, student: Student) -> Iterator[SchNetPack]:
    """SchNetPack on a student's weights, until the end of the block.

    Args:
        python: interpreter of the environment that has SchNetPack.
        student: a `painn` in float32.

    Raises:
        PaiNNDeployError: it is another architecture.
    """
    if not isinstance(student, PaiNN):
        raise PaiNNDeployError(f"SchNetPack has no architecture {student.configuration.architecture!r}.")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        np.savez(weights, **schnetpack_weights(student))  # type: ignore[arg-type]
        command = [python, str(SERVER), str(weights)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        try:
            peer = SchNetPack(process)
            peer.whole([Atoms("H2", [(0, 0, 0), (0, 0, 0.74)])])  # loading takes seconds, and a core
            yield peer
        finally:
            process.kill()
            for stream in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    stream.close()  # type: ignore[union-attr]
            process.wait()
