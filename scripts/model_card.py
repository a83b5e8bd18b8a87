"""The figures of a student's model card: made from its weights by this one command, and by nothing else.

    python scripts/model_card.py student:base --data data --output export/students/base.md

The engine that ships (ONNX Runtime, FP32) is measured, not the training code: against the teacher on molecules that
were never trained on, and against itself for energy conservation.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.optimize import BFGS
from ase.vibrations.data import VibrationsData
from rich.progress import Progress

from painn_deploy.export.checkpoint import load_student, resolve_checkpoint
from painn_deploy.export.errors import DatasetError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.dynamics import Plan, simulate
from painn_deploy.scripts.entry import run_command
from painn_deploy.scripts.exporting import export_engines
from painn_deploy.scripts.make_dataset import load_teacher

DESCRIPTIONS = {
    "conformer": "RDKit conformers and short relaxations",
    "md": "Langevin dynamics at 300, 600 and 1000 K",
    "distorted": "perturbed by 0.05 to 0.2 Å",
    "dimer": "two molecules at many distances",
    "cluster": "water clusters and droplets",
    "wall": "atoms pushed together",
}
FREQUENCIES = ("H2O", "CH4", "C6H6")
CHUNK = 2_000


def errors_by_kind(calculator: PaiNNCalculator, path: Path) -> list[tuple[str, int, float, float, float]]:
    """Kind, structures, energy MAE (meV/atom), force MAE and RMSE (meV/Å) on a split, and the same over all of it.

    Energies are compared as they are: atomic references are the student's own.
    """
    try:
        with np.load(path) as file:
            data = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise DatasetError(f"Cannot read {path}: {error}. Make it with scripts/make_dataset.py.") from error
    rows = [slice(a, b) for a, b in zip(data["offsets"][:-1], data["offsets"][1:], strict=True)]
    energy, forces = [], []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        results = calculator.calculate_batch([Atoms(data["numbers"][r], data["positions"][r]) for r in part])
        for row, label, result in zip(part, data["energies"][start:], results, strict=False):
            energy.append(abs(result["energy"] - label) / (row.stop - row.start))
            forces.append(result["forces"] - data["forces"][row])
    table = []
    for kind in [*sorted(set(data["kinds"])), "all"]:
        chosen = [i for i, k in enumerate(data["kinds"]) if kind in (k, "all")]
        difference = np.concatenate([forces[i] for i in chosen])
        table.append(
            (
                str(kind),
                len(chosen),
                1e3 * float(np.mean([energy[i] for i in chosen])),
                1e3 * float(np.abs(difference).mean()),
                1e3 * float(np.sqrt(np.square(difference).mean())),
            )
        )
    return table


def relaxed(name: str, calculator: Calculator) -> Atoms:
    """A molecule of ASE's G2 set at the calculator's own minimum."""
    atoms = molecule(name)
    atoms.calc = calculator
    BFGS(atoms, logfile=None).run(fmax=2e-3, steps=300)
    return atoms


def frequencies(atoms: Atoms, step: float = 0.01) -> np.ndarray:
    """Vibrational frequencies in 1/cm of a non-linear molecule at its minimum, by central differences of forces."""
    start, rows = atoms.positions.copy(), []
    for atom, axis in np.ndindex(len(atoms), 3):
        forces = []
        for sign in (1, -1):
            atoms.positions = start
            atoms.positions[atom, axis] += sign * step
            forces.append(atoms.get_forces())
        rows.append((forces[1] - forces[0]).ravel() / (2 * step))
    atoms.positions = start
    hessian = np.array(rows)
    data = VibrationsData.from_2d(atoms, (hessian + hessian.T) / 2)
    return np.sort(np.real(data.get_frequencies()))[6:]


def vibrations(student: Calculator, teacher: Calculator) -> list[tuple[str, float, float, float, float]]:
    """Molecule, its shortest bond (Å) with student and teacher, mean and largest frequency error (1/cm)."""
    table = []
    for name in FREQUENCIES:
        ours, theirs = relaxed(name, student), relaxed(name, teacher)
        bonds = [float(np.min(a.get_all_distances() + 9 * np.eye(len(a)))) for a in (ours, theirs)]
        error = np.abs(frequencies(ours) - frequencies(theirs))
        table.append((name, bonds[0], bonds[1], float(error.mean()), float(error.max())))
    return table


def conservation(
    calculator: PaiNNCalculator, path: Path, count: int, picoseconds: float, tell: Callable[[str], None]
) -> list[tuple[str, int, float, float]]:
    """Molecule, atoms, drift (meV/atom/ps) and fluctuation (meV/atom) of NVE at 300 K, 0.5 fs, on test molecules."""
    table = []
    with np.load(path) as data:
        names = data["names"][data["kinds"] == "conformer"]
        first = {str(name): int(np.flatnonzero(data["names"] == name)[0]) for name in dict.fromkeys(names)}
        chosen = list(first)[:: max(1, len(first) // count)][:count]
        structures = [_structure(data, first[name]) for name in chosen]
    for name, atoms in zip(chosen, structures, strict=True):
        tell(f"NVE of {name}")
        atoms.calc = calculator
        BFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
        record = simulate(atoms, Plan(steps=round(2e3 * picoseconds), timestep=0.5, every=20))
        table.append((name, len(atoms), record.drift, record.fluctuation))
    return table


def _structure(data: Mapping[str, Any], index: int) -> Atoms:
    rows = slice(int(data["offsets"][index]), int(data["offsets"][index + 1]))
    return Atoms(data["numbers"][rows].astype(int), data["positions"][rows])


def markdown(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; floats to three significant figures."""
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    lines += ["| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row) + " |" for row in rows]
    return "\n".join(lines)


def card(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or student:base.")],
    data: Annotated[Path, typer.Option(help="Folder that make_dataset.py wrote.")],
    output: Annotated[Path, typer.Option(help="Markdown file; what stands between its two marks is replaced.")],
    molecules: Annotated[int, typer.Option(help="Test molecules for NVE.")] = 5,
    picoseconds: Annotated[float, typer.Option(help="Of each NVE run.")] = 5.0,
    teacher: str = "tblite:GFN2-xTB",
) -> None:
    """Measure a student and write the tables into its model card."""
    labels, student = load_teacher(teacher)(), load_student(checkpoint)
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        task = progress.add_task("exporting", total=None)

        def tell(line: str) -> None:
            progress.update(task, description=line)

        (bundle,) = export_engines(checkpoint, folder, tell=tell)
        with PaiNNCalculator(bundle) as calculator:
            tell("measuring the test split")
            kinds = errors_by_kind(calculator, data / "test.npz")
            tell("vibrations")
            modes = vibrations(calculator, labels)
            drifts = conservation(calculator, data / "test.npz", molecules, picoseconds, tell)
    sections = [
        f"{student.num_parameters:,} parameters; weights with SHA-256 `{resolve_checkpoint(checkpoint).sha256}`.",
        "### Against the teacher, on molecules never trained on",
        markdown(
            ("structures", "how many", "energy MAE (meV/atom)", "force MAE (meV/Å)", "force RMSE (meV/Å)"),
            [(DESCRIPTIONS.get(kind, kind), *rest) for kind, *rest in kinds],
        ),
        "### At the minimum",
        markdown(
            (
                "molecule",
                "shortest bond (Å)",
                "teacher's",
                "mean frequency error (1/cm)",
                "largest frequency error (1/cm)",
            ),
            modes,
        ),
        f"### Energy conservation: NVE, 300 K, 0.5 fs, {picoseconds:g} ps",
        markdown(("test molecule", "atoms", "drift (meV/atom/ps)", "fluctuation (meV/atom)"), drifts),
    ]
    _replace(output, "\n\n".join(sections))
    print(f"wrote {output}")


def _replace(path: Path, text: str) -> None:
    """Put the figures between the marks of a card, or start one."""
    begin, end = "<!-- figures -->", "<!-- /figures -->"
    old = path.read_text(encoding="utf-8") if path.is_file() else f"{begin}\n{end}\n"
    if begin not in old or end not in old:
        raise DatasetError(f"{path} has no marks {begin} and {end} to write between.")
    before, after = old.split(begin)[0], old.split(end)[1]
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Run from a shell."""
    run_command(card)


if __name__ == "__main__":
    main()
