"""Every product in INT8 on molecules that a student was never trained on: the test split of its own dataset.

The molecules are those whose `split` in `scripts.distillation.plan` is `test`, without compositions that INT8 is
calibrated on, as perturbed conformers that a seed decides. Errors are against the same student in FP32 and against its
teacher, which labels them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from ase import Atoms
from rich.console import Console
from rich.progress import track

from painn_deploy.calibration.int8.ranges import row_scales
from painn_deploy.calibration.int8.search import int8_shares
from painn_deploy.calibration.int8.yardstick import Yardstick
from painn_deploy.calibration.structures import calibration_structures, trusted_species, within_reach
from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.graph.int8 import candidates, to_int8
from painn_deploy.export.graph.onnx_graph import export_onnx
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.commands.outputs import markdown
from painn_deploy.scripts.distillation.labels import load_teacher
from painn_deploy.scripts.distillation.molecules import embedded
from painn_deploy.scripts.distillation.plan import MOLECULES, plan, read_molecules

__all__ = ["SplitRow", "rows_on_split", "split_molecules", "split_table"]

CONFORMERS, SIGMA, SEED = 4, 0.1, 2026
"""Of each molecule; Å, of each coordinate; of the perturbations."""


@dataclass(frozen=True)
class SplitRow:
    """Errors of one graph.

    Attributes:
        what: is in which precision.
        energy: meV an atom (MAE), against FP32.
        force: meV/Å (RMSE), against FP32.
        teacher: meV/Å (MAE), against the teacher.
        forward: share of multiply-adds in INT8.
        backward: likewise.
    """

    what: str
    energy: float
    force: float
    teacher: float
    forward: float
    backward: float


def split_molecules(species: Sequence[int], seen: Sequence[Atoms], most: int | None = None) -> list[Atoms]:
    """Perturbed conformers of the test split's molecules.

    Args:
        species: atomic numbers that they may hold.
        seen: structures whose compositions are left out.
        most: molecules; None for all.
    """
    known, rng = {atoms.get_chemical_formula() for atoms in seen}, np.random.default_rng(SEED)
    found: list[Atoms] = []
    tested = [item for item in plan(read_molecules(MOLECULES)) if (item.split, item.recipe) == ("test", "molecule")]
    for item in tested[:most]:
        conformers = embedded(item.smiles[0], CONFORMERS, seed=SEED).conformers
        for index in range(CONFORMERS):
            atoms = conformers[index % len(conformers)].copy()
            atoms.positions += rng.normal(0, SIGMA, atoms.positions.shape)
            atoms.info["name"] = item.name
            if set(atoms.numbers.tolist()) <= set(species) and atoms.get_chemical_formula() not in known:
                found.append(atoms)
    return found


def rows_on_split(
    checkpoint: str, teacher: str, console: Console, most: int | None = None
) -> tuple[list[SplitRow], int]:
    """Errors in FP32 and with every candidate in INT8, and of how many structures.

    Args:
        checkpoint: a student that was trained on the dataset.
        teacher: as for make_dataset.py.
        console: for progress.
        most: molecules; None for all.

    Raises:
        DatasetError: the teacher is not installed.
    """
    student = load_student(checkpoint)
    cutoff, species, model = student.configuration.cutoff, trusted_species(student), export_onnx(student, {})
    exact, calibration = open_graph(model.SerializeToString()), calibration_structures(species)
    molecules, make, labels = split_molecules(species, calibration, most), load_teacher(teacher), []
    for atoms in track(molecules, "labelling the test split", console=console, transient=True):
        own = atoms.copy()
        own.calc = make()
        labels.append(own.get_forces())
    kept = within_reach(labels)
    molecules, labels = [molecules[index] for index in kept], [labels[index] for index in kept]
    graphs = [graph_inputs([atoms], cutoff) for atoms in calibration[::3]]
    near = within_reach([exact(graph)[1] for graph in graphs])
    scales = row_scales(model, candidates(model), [graphs[index] for index in near])
    yardstick = Yardstick(model, molecules, cutoff)
    fitted = Yardstick(model, [calibration[::3][index] for index in near], cutoff)
    wanted = np.concatenate([labels[index] for index in yardstick.batched])

    def row(what: str, graph: onnx.ModelProto, forward: float, backward: float) -> SplitRow:
        run = open_graph(graph.SerializeToString())
        errors = yardstick.errors(run, fitted.errors(run).correction)
        off = float(np.abs(yardstick.evaluate(run)[1] - wanted).mean())
        return SplitRow(what, 1e3 * errors.energy_mae, 1e3 * errors.force_rmse, 1e3 * off, forward, backward)

    shares = int8_shares(model, scales, yardstick.mean_size)
    return [row("FP32", model, 0.0, 0.0), row("INT8", to_int8(model, scales), **shares)], len(molecules)


def split_table(rows: Sequence[SplitRow]) -> str:
    """Markdown.

    Args:
        rows: errors of graphs.
    """
    heads = ["", "energy MAE (meV/atom)", "force RMSE (meV/Å)", "force MAE against the teacher (meV/Å)"]
    heads += ["INT8 of forward", "INT8 of backward"]
    return markdown(
        heads, [[r.what, r.energy, r.force, r.teacher, f"{r.forward:.0%}", f"{r.backward:.0%}"] for r in rows]
    )
