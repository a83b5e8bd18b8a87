"""The structures of a training set with the labels of another teacher: distil anything that ASE can calculate.

    python scripts/relabel.py --data data --teacher my_package.teachers:orb --output data-orb

The split stays as it was. A structure that the teacher fails on, or that it gives an absurd force, is dropped, counted
and named in summary.json. What was labelled before an interruption is kept.
"""

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms

from painn_deploy.export.errors import DatasetError
from painn_deploy.export.files import remove_partial
from painn_deploy.runtime.structures import bounds_of
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.distillation.labels import (
    Label,
    follow,
    labelled,
    load_teacher,
    one_thread_a_process,
    read_part,
    write_arrays,
    write_json,
    write_part,
)
from painn_deploy.scripts.distillation.plan import SPLITS
from painn_deploy.scripts.distillation.structures import TEACHER_FAILURES, Structure

__all__ = ["relabel", "teacher_of"]

CHUNK = 50  # structures a file


def teacher_of(data: Path) -> str | None:
    """The teacher that a folder's labels are of, where its settings say so."""
    try:
        settings = json.loads((data / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(settings["teacher"]) if "teacher" in settings else None


def relabel(
    data: Path, output: Path, teacher: str, *, max_force: float = 50.0, workers: int = 1
) -> dict[str, dict[str, Any]]:
    """Label the structures of the folder `data` anew into `output`; returns the summary, by split.

    Args:
        data: train.npz, validation.npz and test.npz of make_dataset.py.
        output: folder for the same with new labels; a rerun finishes what is in it.
        teacher: `tblite:METHOD`, or `package.module:factory`, called for every structure.
        max_force: eV/Å; structures with a larger one are dropped.
        workers: processes.

    Raises:
        DatasetError: `data` or the teacher cannot be used, a split has no usable label, or `output` was begun with
            other settings.
    """
    load_teacher(teacher)
    sources = {split: read_split(data, split) for split in SPLITS}
    sizes = {split: len(source["energies"]) for split, source in sources.items()}
    claim = {"teacher": teacher, "max_force": max_force, "structures": sizes}
    begin(output, claim)
    chunks = [
        (data, split, start, output / "parts" / f"{split}-{start:06d}.npz")
        for split, size in sizes.items()
        for start in range(0, size, CHUNK)
    ]
    missing = [chunk for chunk in chunks if not chunk[-1].exists()]
    if missing:
        context = get_context("spawn")
        with one_thread_a_process(), ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool:
            futures = [pool.submit(label_chunk, *chunk, teacher, max_force) for chunk in missing]
            try:
                follow((future.result() for future in as_completed(futures)), len(chunks) - len(missing), len(chunks))
            except BrokenProcessPool as error:
                raise DatasetError("A worker died, out of memory perhaps: run the same command again.") from error
            finally:
                pool.shutdown(cancel_futures=True)
    summary: dict[str, dict[str, Any]] = {}
    for split, source in sources.items():
        summary[split] = joined(split, [path for _, own, _, path in chunks if own == split], source, output)
    write_json(output / "summary.json", summary)
    return summary


def read_split(data: Path, split: str) -> dict[str, np.ndarray]:
    try:
        return read_part(data / f"{split}.npz")
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"Cannot read {data / f'{split}.npz'}: {error}. Make it with scripts/make_dataset.py."
        ) from error


def begin(output: Path, claim: dict[str, Any]) -> None:
    """Claim a new folder, or hold the claim of one that was begun against ours."""
    path = output / "settings.json"
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != claim:
            raise DatasetError(f"{output} was begun with another teacher, limit or data: repeat them, or name another.")
        remove_partial(output / "parts")
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DatasetError(f"{output} is there and is no relabelled training set: take another --output.")
    (output / "parts").mkdir(parents=True)
    write_json(path, claim)


def label_chunk(data: Path, split: str, start: int, path: Path, teacher: str, max_force: float) -> None:
    """Labels some structures in a row and writes them with their place in the split: runs in a worker process."""
    source, calculator = read_split(data, split), load_teacher(teacher)
    kept: list[Label] = []
    places, failures, dropped = [], [], 0
    for index in range(start, min(start + CHUNK, len(source["energies"]))):
        rows = slice(int(source["offsets"][index]), int(source["offsets"][index + 1]))
        atoms = Atoms(source["numbers"][rows].astype(int), source["positions"][rows])
        try:
            label = labelled(Structure(str(source["kinds"][index]), atoms), calculator())  # type: ignore[arg-type]
        except TEACHER_FAILURES as failure:
            failures.append(f"{_name(source, index)}: {failure}")
            continue
        if label.largest_force <= max_force:
            kept.append(label)
            places.append(index)
        else:
            failures.append(f"{_name(source, index)}: largest force {label.largest_force:.3g} eV/Å")
            dropped += 1
    write_arrays(path.with_suffix(".places"), places=np.array(places, dtype=np.int64))
    write_part(path, kept, dropped, failures)  # last: it says that the chunk is done


def _name(source: dict[str, np.ndarray], index: int) -> str:
    item = str(source["names"][index]) if "names" in source else "structure"
    return f"{item} ({source['kinds'][index]} {index})"


def joined(split: str, paths: list[Path], source: dict[str, np.ndarray], output: Path) -> dict[str, Any]:
    """Joins the chunks of a split into its file, and says what was dropped and why."""
    parts = [read_part(path) for path in paths]
    places = np.concatenate([read_part(path.with_suffix(".places"))["places"] for path in paths])
    notes = [note for part in parts for note in part["failures"].tolist()]
    if not len(places):
        raise DatasetError(f"The teacher has no usable label for the {split} split: {'; '.join(notes[:3])}.")
    sizes = np.concatenate([np.diff(part["offsets"]) for part in parts])
    arrays = {
        key: np.concatenate([part[key] for part in parts]) for key in ("numbers", "positions", "forces", "energies")
    }
    arrays |= {key: source[key][places] for key in ("kinds", "names") if key in source}
    write_arrays(output / f"{split}.npz", offsets=bounds_of(sizes), **arrays)
    return {"labelled": len(places), "dropped": len(notes), "reasons": notes}


def command(
    data: Annotated[Path, typer.Option(help="Folder that make_dataset.py wrote.")],
    teacher: Annotated[str, typer.Option(help="tblite:METHOD, or package.module:factory of ASE calculators.")],
    output: Annotated[Path, typer.Option(help="Folder for the same structures with new labels.")],
    max_force: Annotated[float, typer.Option(min=0.0, help="Drop labels with a larger force, eV/Å.")] = 50.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Label the structures of a training set with another teacher."""
    for split, told in relabel(data, output, teacher, max_force=max_force, workers=workers).items():
        print(f"{split}: {told['labelled']} labelled, {told['dropped']} dropped, see {output / 'summary.json'}")


if __name__ == "__main__":
    run_command(command)
