"""The errors of FP16 and INT8 on molecules that no calibration has seen: the tables of docs/precision.md.

    python scripts/precision_study.py ../shared/data/distiller/original.safetensors student:base --output study

Molecules come from molecules.smi (scripts/distillation/) as RDKit conformers, each atom perturbed by 0.1 Å in every
direction, and none of them has the composition of a molecule that INT8 is calibrated on. Periodic boxes are counted
apart. Everything is measured against FP32: FP16 with every half tensor rounded, INT8 with FP32 and with FP16 for the
other products. A student that ships is also measured on the test split of its dataset, and against its teacher.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from ase import Atoms
from rich.console import Console
from rich.progress import track

from painn_deploy.calibration.int8.ranges import METHODS, measure_operands, operand_scale, row_scales
from painn_deploy.calibration.int8.search import Int8Search, int8_shares
from painn_deploy.calibration.int8.yardstick import Run, Yardstick
from painn_deploy.calibration.structures import (
    calibration_structures,
    default_structures,
    trusted_species,
    within_reach,
)
from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import DatasetError, PrecisionError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.export.files import prepare_output, to_json
from painn_deploy.export.graph.half import rounded
from painn_deploy.export.graph.int8 import BY_ROW, LEAST_SIZE, OperandScale, candidates, to_int8
from painn_deploy.export.graph.onnx_graph import export_onnx
from painn_deploy.export.graph.products import Product, weight_products
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.benchmarks.conditions import STUDENT
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown, write_between_marks
from painn_deploy.scripts.distillation.labels import load_teacher
from painn_deploy.scripts.distillation.molecules import embedded
from painn_deploy.scripts.distillation.plan import MOLECULES, plan, read_molecules

SIGMA, SEED = 0.1, 2026
TOLERANCES = (5.0, 10.0, 20.0, 50.0)
"""meV/Å that INT8 is searched for within."""
ENERGY_TOLERANCE = 3e-3
SHIPPED = "student:"
CONFORMERS = 4
"""Of each molecule of the test split."""
QUICK = 12
"""Molecules of the test split where 40 others are enough."""


@dataclass(frozen=True)
class Row:
    """Errors against FP32: energies in meV an atom (MAE), forces in meV/Å (RMSE)."""

    what: str
    energy: float
    force: float
    box_force: float
    forward: float = 0.0
    backward: float = 0.0


def unseen_molecules(count: int, species: Sequence[int], seen: Sequence[Atoms]) -> list[Atoms]:
    """Perturbed conformers of molecules whose composition is not among those seen; seeded.

    Raises:
        DatasetError: there are not so many.
    """
    known = {atoms.get_chemical_formula() for atoms in seen}
    rng = np.random.default_rng(SEED)
    found: list[Atoms] = []
    for name, smiles in read_molecules(MOLECULES).items():
        for atoms in embedded(smiles, 1, seed=1).conformers:
            if set(atoms.numbers.tolist()) <= set(species) and atoms.get_chemical_formula() not in known:
                atoms.positions += rng.normal(0, SIGMA, atoms.positions.shape)
                atoms.info["name"] = name
                found.append(atoms)
        if len(found) == count:
            return found
    raise DatasetError(f"{len(found)} molecules of molecules.smi are unseen, fewer than {count}; ask for fewer.")


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


class Measure:
    """Errors of graphs of one student, on unseen molecules and on periodic boxes.

    Args:
        checkpoint: the student.
        count: of unseen molecules.
    """

    def __init__(self, checkpoint: str, count: int) -> None:
        student = load_student(checkpoint)
        self.cutoff, self.species = student.configuration.cutoff, trusted_species(student)
        species = self.species
        self.model = export_onnx(student, {})
        self.calibration = calibration_structures(species)
        run = open_graph(self.model.SerializeToString())
        boxes = [atoms for atoms in default_structures(species, sigma=SIGMA, seed=1) if atoms.pbc.any()]
        kept = within_reach([run(graph_inputs([atoms], self.cutoff))[1] for atoms in boxes])
        self.boxes = [boxes[index] for index in kept]
        self.molecules = unseen_molecules(count, species, self.calibration)
        self._molecules = Yardstick(self.model, self.molecules, self.cutoff)
        self._boxes = Yardstick(self.model, self.boxes, self.cutoff)

    @cached_property
    def calibration_graphs(self) -> list[GraphInputs]:
        """Of `_calibrated_on`."""
        return [graph_inputs([atoms], self.cutoff) for atoms in self._calibrated_on]

    @cached_property
    def _calibrated_on(self) -> list[Atoms]:
        """Every third calibration structure, without those of extreme forces."""
        structures, run = self.calibration[::3], open_graph(self.model.SerializeToString())
        forces = [run(graph_inputs([atoms], self.cutoff))[1] for atoms in structures]
        return [structures[index] for index in within_reach(forces)]

    def correction(self, run: Run) -> Mapping[int, float]:
        """What a graph is off by for each element, found on structures that INT8 is calibrated on; eV.

        Args:
            run: evaluates the graph.
        """
        return self._calibration.errors(run).correction

    @cached_property
    def _calibration(self) -> Yardstick:
        return Yardstick(self.model, self._calibrated_on, self.cutoff)

    def row(
        self,
        what: str,
        model: onnx.ModelProto,
        correction: Mapping[int, float] | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> Row:
        """Errors of a graph, energies after the correction that was found on the calibration structures."""
        run = open_graph(model.SerializeToString())
        molecules, boxes = self._molecules.errors(run, correction or {}), self._boxes.errors(run, correction or {})
        shares = shares or {"forward": 0.0, "backward": 0.0}
        return Row(what, 1e3 * molecules.energy_mae, 1e3 * molecules.force_rmse, 1e3 * boxes.force_rmse, **shares)


def lower_precisions(measure: Measure, console: Console) -> list[Row]:
    """FP16, and INT8 within each tolerance."""
    rows = [measure.row("FP16", rounded(measure.model))]
    search = Int8Search(measure.model, measure.calibration, measure.cutoff)
    for tolerance in TOLERANCES:
        try:
            found = search.find(ENERGY_TOLERANCE, 1e-3 * tolerance)
        except PrecisionError as error:
            console.print(f"  {error}", soft_wrap=True)
            continue
        model, name = to_int8(measure.model, found.scales), f"INT8 within {tolerance:g} meV/Å"
        rows.append(measure.row(f"{name}, else FP32", model, found.correction, found.shares))
        rows.append(measure.row(f"{name}, else FP16", rounded(model), found.correction, found.shares))
    return rows


def ways_by_row(measure: Measure) -> dict[str, Mapping[str, OperandScale]]:
    """Every candidate with a scale for each row."""
    products = candidates(measure.model)
    return {
        "a scale for each row": {product.name: BY_ROW for product in products},
        "a scale for each row, centred and balanced": row_scales(measure.model, products, measure.calibration_graphs),
    }


def ways_of_scaling(measure: Measure) -> list[Row]:
    """Every candidate in INT8 at once, with each way of finding its operand's scale."""
    statistics = measure_operands(measure.model, candidates(measure.model), measure.calibration_graphs)
    ways: dict[str, Mapping[str, OperandScale]] = {}
    for method in METHODS:
        for balanced in (False, True):
            scales = {name: operand_scale(entry, method, balanced=balanced) for name, entry in statistics.items()}
            ways[f"one scale, {method}{', balanced' if balanced else ''}"] = scales
    ways |= ways_by_row(measure)
    return [measure.row(way, to_int8(measure.model, scales)) for way, scales in ways.items()]


def rows_on_split(
    measure: Measure, teacher: Callable[[], Any], console: Console, most: int | None = None
) -> tuple[list[SplitRow], int]:
    """Errors on the test split in FP32, with every candidate in INT8 and with filters too, and of how many structures.

    Args:
        measure: of a student that was trained on the dataset.
        teacher: makes an ASE calculator.
        console: for progress.
        most: molecules; None for all.
    """
    molecules, labels = split_molecules(measure.species, measure.calibration, most), []
    for atoms in track(molecules, "labelling the test split", console=console, transient=True):
        own = atoms.copy()
        own.calc = teacher()
        labels.append(own.get_forces())
    kept = within_reach(labels)
    yardstick = Yardstick(measure.model, [molecules[index] for index in kept], measure.cutoff)
    wanted = np.concatenate([labels[kept[index]] for index in yardstick.batched])
    wide = [p for p in weight_products(measure.model) if min(p.contracted, p.columns) >= LEAST_SIZE]
    with_filters = [product for product in wide if not product.is_readout]

    def row(what: str, products: Sequence[Product]) -> SplitRow:
        scales = row_scales(measure.model, products, measure.calibration_graphs) if products else {}
        run = open_graph(to_int8(measure.model, scales).SerializeToString())
        shares = int8_shares(measure.model, scales, yardstick.mean_size)
        energies, forces = yardstick.evaluate(run)
        errors = yardstick.errors_of(energies, forces, measure.correction(run))
        off = float(np.abs(forces - wanted).mean())
        return SplitRow(what, 1e3 * errors.energy_mae, 1e3 * errors.force_rmse, 1e3 * off, **shares)

    every = {"FP32": [], "INT8": candidates(measure.model), "INT8, filters too": with_filters}
    return [row(what, products) for what, products in every.items()], len(kept)


def table(rows: Sequence[Row], *, shares: bool) -> str:
    """Markdown.

    Args:
        rows: errors of graphs.
        shares: with the shares of products in INT8.
    """
    heads = ["", "energy MAE (meV/atom)", "force RMSE (meV/Å)", "force RMSE in boxes (meV/Å)"]
    heads += ["INT8 of forward", "INT8 of backward"] if shares else []
    of_int8 = [[f"{row.forward:.0%}", f"{row.backward:.0%}"] if shares else [] for row in rows]
    return markdown(heads, [[r.what, r.energy, r.force, r.box_force, *s] for r, s in zip(rows, of_int8, strict=True)])


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


def study(
    students: Annotated[list[str] | None, typer.Argument(help="Checkpoints, or students that ship.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for precision.json and precision.md.")] = Path(
        "study"
    ),
    molecules: Annotated[int, typer.Option(help="How many unseen molecules.")] = 240,
    document: Annotated[Path | None, typer.Option(help="A Markdown file to put the tables into.")] = None,
    teacher: Annotated[str, typer.Option(help="Of students that ship, as for make_dataset.py.")] = "tblite:GFN2-xTB",
    quick: Annotated[bool, typer.Option("--quick", help="40 molecules.")] = False,
) -> None:
    """Measure what FP16 and INT8 cost."""
    console = Console(stderr=True)
    prepare_output(output)
    ships = [checkpoint for checkpoint in students or [STUDENT] if str(checkpoint).startswith(SHIPPED)]
    labels = load_teacher(teacher) if ships else None
    facts: dict[str, Any] = {}
    parts = []
    for checkpoint in students or [STUDENT]:
        name = Path(checkpoint).stem
        console.print(name)
        measure = Measure(checkpoint, 40 if quick else molecules)
        rows, ways = lower_precisions(measure, console), ways_of_scaling(measure)
        boxes = ", ".join(atoms.info["name"] for atoms in measure.boxes)
        parts += [
            f"### {name}",
            f"{len(measure.molecules)} molecules, perturbed by {SIGMA:g} Å; boxes: {boxes}.",
            table(rows, shares=True),
            "Every product that can be INT8 in INT8 at once:",
            table(ways, shares=False),
        ]
        facts[name] = {"rows": [vars(row) for row in rows], "all_int8": [vars(row) for row in ways]}
        if labels is not None and checkpoint in ships:
            split, count = rows_on_split(measure, labels, console, QUICK if quick else None)
            parts += [
                f"On {count} structures of the test split of its dataset, which it was never trained on, perturbed "
                "likewise; INT8 is every product that can be:",
                split_table(split),
            ]
            facts[name]["test_split"] = [vars(row) for row in split]
    text = "\n\n".join(parts)
    (output / "precision.md").write_text(f"{text}\n", encoding="utf-8")
    if document is not None:
        write_between_marks(document, text)
    (output / "precision.json").write_bytes(to_json(facts))
    console.print(f"wrote {output / 'precision.md'}")


if __name__ == "__main__":
    run_command(study)
