"""Builds a training set: structures of many molecules, labelled with energies and forces by a teacher.

    python -m painn_deploy.scripts.distillation.make_dataset --output data

Every *item* (a molecule, a pair, a cluster) has its own seed, derived from the master seed and the item's name, and its
own file under `parts/`: the result depends neither on the number of workers nor on what was finished before an
interruption. The split is decided by the names and the composition alone and is written before any label is computed.
"""

import hashlib
import json
import multiprocessing
import re
import shutil
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase.data import chemical_symbols
from rich.console import Console

from painn_deploy.export.errors import DatasetError
from painn_deploy.export.files import remove_partial, whole_file
from painn_deploy.export.versions import installed
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
from painn_deploy.scripts.distillation.plan import MOLECULES, SPLITS, Item, plan, read_molecules
from painn_deploy.scripts.distillation.structures import TEACHER_FAILURES, Sampler

__all__ = ["MOLECULES", "SURVEY", "Settings", "make_dataset"]

SURVEY = Path(__file__).with_name("survey.smi")

RECIPE_VERSION = 1  # raise it when the same settings would give other structures
PACKAGES = ("ase", "rdkit", "tblite")  # a different version of these may give other labels or other conformers


@dataclass(frozen=True)
class Settings:
    """Everything that the labels depend on besides the code: a rerun has to agree with it."""

    teacher: str = "tblite:GFN2-xTB"
    frames: int = 24
    survey_frames: int = 16
    seed: int = 1
    max_force: float = 50.0  # eV/Å


def part_path(output: Path, item: Item) -> Path:
    """The file of an item: a readable name, and a digest for what file names cannot hold."""
    readable = re.sub(r"[^A-Za-z0-9*+-]", "_", item.name.replace("*", "x"))[:80]
    return output / "parts" / f"{readable}-{hashlib.sha256(item.name.encode()).hexdigest()[:8]}.npz"


def label_item(item: Item, settings: Settings, output: Path) -> None:
    """Makes and labels the structures of an item and writes its part: runs in a worker process."""
    teacher = load_teacher(settings.teacher)
    digest = hashlib.sha256(f"{settings.seed}:{item.name}".encode()).digest()
    failures: list[str] = []
    frames = settings.survey_frames if item.recipe == "survey" else settings.frames
    sampler = Sampler(teacher, frames, np.random.default_rng(int.from_bytes(digest[:8])), failures)
    kept: list[Label] = []
    dropped = 0
    try:
        for structure in sampler.structures(item.recipe, item.smiles):
            try:
                label = labelled(structure, teacher())  # fresh: a label must not depend on the structures before it
            except TEACHER_FAILURES as failure:
                failures.append(f"{structure.kind}: {failure}")
                continue
            if label.largest_force <= settings.max_force:
                kept.append(label)
            else:  # NaN too
                dropped += 1
    except DatasetError as failure:  # RDKit found no conformer
        failures.append(str(failure))
    write_part(part_path(output, item), kept, dropped, failures)


def claimed(settings: Settings, molecules: dict[str, str], survey: dict[str, str], items: list[Item]) -> dict[str, Any]:
    """All that the labels of a folder depend on, as its settings.json keeps it."""
    listing = "\n".join(sorted(f"{item.name} {item.split}" for item in items))
    return asdict(settings) | {
        "recipe": RECIPE_VERSION,
        "molecules": digest_of(molecules),
        "survey": digest_of(survey),
        "split": hashlib.sha256(listing.encode()).hexdigest(),
        "packages": installed(PACKAGES),
    }


def digest_of(molecules: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(molecules, sort_keys=True).encode()).hexdigest()


def claim_folder(output: Path, claim: dict[str, Any], items: list[Item]) -> None:
    """Writes split and settings into the folder, or checks those that are there."""
    path = output / "settings.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in before.keys() | claim.keys() if before.get(key) != claim.get(key))
        if changed:
            raise DatasetError(
                f"{output} was begun with different settings ({', '.join(changed)}): "
                "repeat them, or take another --output, or remove the folder"
            )
        remove_partial(output / "parts")
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DatasetError(f"{output} is there and is no folder of a training set: take another --output")
    (output / "parts").mkdir(parents=True)
    survey = {item.name: item.smiles[0] for item in items if item.recipe == "survey"}
    split = {"sha256": claim["split"], "split": {item.name: item.split for item in items}, "survey": survey}
    write_json(output / "split.json", split)
    write_json(path, claim)


def reusable(earlier: Path, claim: dict[str, Any], molecules: dict[str, str], items: list[Item]) -> list[Item]:
    """The items whose parts an earlier folder has, as they would be made here.

    A part depends on its item and the settings alone, so that a longer list of molecules need not label anew what a
    shorter one did. Raises DatasetError where the earlier folder was made with other settings or another list.
    """
    try:
        before = json.loads((earlier / "settings.json").read_text(encoding="utf-8"))
        plan_before = json.loads((earlier / "split.json").read_text(encoding="utf-8"))
        split, surveyed = plan_before["split"], plan_before["survey"]
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{earlier} holds no training set to reuse ({error}): leave out --reuse") from error
    decisive = ("teacher", "frames", "seed", "max_force", "recipe", "packages")
    changed = [key for key in decisive if before.get(key) != claim[key]]
    shared = {name: smiles for name, smiles in molecules.items() if name in split}
    if digest_of(shared) != before["molecules"]:
        changed.append("molecules")
    if changed:
        raise DatasetError(
            f"{earlier} was made with different settings ({', '.join(changed)}), so its labels are others: "
            "leave out --reuse, or repeat its settings and keep its molecules in the list"
        )
    same_frames = before["survey_frames"] == claim["survey_frames"]

    def unchanged(item: Item) -> bool:
        return item.recipe != "survey" or (same_frames and surveyed.get(item.name) == item.smiles[0])

    return [item for item in items if item.name in split and part_path(earlier, item).exists() and unchanged(item)]


def take_over(earlier: Path, output: Path, items: list[Item]) -> None:
    """Copies the parts of items from an earlier folder, where they are not there yet."""
    for item in items:
        target = part_path(output, item)
        if not target.exists():
            with part_path(earlier, item).open("rb") as source, whole_file(target) as file:
                shutil.copyfileobj(source, file)


def label_all(items: list[Item], settings: Settings, output: Path, workers: int) -> None:
    """Labels the items whose part is missing, in worker processes, and shows how far it is."""
    missing = [item for item in items if not part_path(output, item).exists()]
    if not missing:
        return
    # Always in other processes, also for one worker: this one may have loaded its libraries with many threads.
    context = multiprocessing.get_context("spawn")
    with one_thread_a_process(), ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool:
        futures = [pool.submit(label_item, item, settings, output) for item in missing]
        try:
            follow((future.result() for future in as_completed(futures)), len(items) - len(missing), len(items))
        except BrokenProcessPool as error:
            raise DatasetError("a worker process died, out of memory perhaps: run the same command again") from error
        finally:
            pool.shutdown(cancel_futures=True)


def merge(items: list[Item], output: Path, settings: Settings, split_digest: str) -> dict[str, Any]:
    """Joins the parts of each split into one file; writes and returns the summary."""
    parts = {item: read_part(part_path(output, item)) for item in items}
    failed = {item.name: part["failures"].tolist() for item, part in parts.items() if len(part["failures"])}
    structures: dict[str, dict[str, int]] = {}
    elements: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        members = {item: part for item, part in parts.items() if item.split == split}
        if not any(len(part["energies"]) for part in members.values()):
            reasons = "; ".join(f"{name}: {notes[0]}" for name, notes in list(failed.items())[:3])
            raise DatasetError(
                f"no label of the {split} split is usable ({reasons or 'all forces are above --max-force'}): "
                "try the teacher on one of its molecules, then begin anew in another --output"
            )
        joined = join(members)
        write_arrays(output / f"{split}.npz", **joined)
        structures[split] = dict(Counter(joined["kinds"].tolist()))
        elements[split] = dict(Counter(chemical_symbols[number] for number in joined["numbers"]))
    summary = {
        "settings": asdict(settings),
        "split_sha256": split_digest,
        "structures": structures,
        "elements": elements,
        "dropped_for_large_forces": {
            item.name: int(part["dropped"]) for item, part in parts.items() if part["dropped"]
        },
        "failed": failed,
        "without_any_label": sorted(item.name for item, part in parts.items() if not len(part["energies"])),
    }
    write_json(output / "summary.json", summary)
    return summary


def join(parts: dict[Item, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of many parts as one, with the item of every structure under `names`.

    Structure i has the atoms `offsets[i]` to `offsets[i + 1]` of `numbers`, `positions` (Å) and `forces` (eV/Å).
    """
    keys = ("numbers", "positions", "forces", "energies", "kinds")
    joined = {key: np.concatenate([part[key] for part in parts.values()]) for key in keys}
    sizes = np.concatenate([np.diff(part["offsets"]) for part in parts.values()])
    counts = [len(part["energies"]) for part in parts.values()]
    joined["offsets"] = bounds_of(sizes)
    joined["names"] = np.repeat([item.name for item in parts], counts)
    return joined


def make_dataset(
    output: Path,
    molecules: Path,
    settings: Settings,
    *,
    survey: Path | None = None,
    reuse: Path | None = None,
    workers: int = 1,
    limit: int | None = None,
) -> dict[str, Any]:
    """Build the training set, or finish it, and return its summary.

    Args:
        output: folder of the training set.
        molecules: file of SMILES and names, whose molecules are sampled in full and split.
        settings: of sampling and of the teacher.
        survey: file of more molecules, sampled lightly and all trained on.
        reuse: earlier folder of fewer molecules, whose labels are taken over.
        workers: processes.
        limit: items to label; a later run without it labels the rest.

    Raises:
        DatasetError: the input cannot be used, or the folder was begun with different settings.
    """
    load_teacher(settings.teacher)
    listed, surveyed = read_molecules(molecules), {} if survey is None else read_molecules(survey)
    everything = plan(listed, surveyed)
    items = everything[:limit]
    for split in SPLITS:
        if all(item.split != split for item in items):
            raise DatasetError(
                f"the {split} split is empty: list more molecules in {molecules}"
                + ("" if limit is None else f", or raise --limit {limit}")
            )
    claim = claimed(settings, listed, surveyed, everything)
    taken = [] if reuse is None else reusable(reuse, claim, listed, items)
    claim_folder(output, claim, everything)
    if reuse is not None:
        take_over(reuse, output, taken)
        Console(stderr=True).print(f"{len(taken)} items taken over from {reuse}", highlight=False)
    label_all(items, settings, output, workers)
    return merge(items, output, settings, claim["split"])


def command(
    output: Annotated[Path, typer.Option(help="Folder of the training set; a rerun finishes what is in it.")],
    molecules: Annotated[Path, typer.Option(help="List of 'SMILES name' lines.")] = MOLECULES,
    frames: Annotated[int, typer.Option(min=1, help="MD frames of a small molecule; the rest scales with it.")] = 24,
    survey: Annotated[
        Path | None,
        typer.Option(help="More such lines, sampled lightly and all trained on; ours goes with our --molecules."),
    ] = None,
    survey_frames: Annotated[int, typer.Option(min=1, help="The same number for molecules of the survey.")] = 16,
    reuse: Annotated[Path | None, typer.Option(help="An earlier folder, whose labels are taken over.")] = None,
    seed: Annotated[int, typer.Option(help="Master seed.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    teacher: Annotated[
        str, typer.Option(help="tblite:METHOD, or package.module:factory of ASE calculators.")
    ] = "tblite:GFN2-xTB",
    limit: Annotated[int | None, typer.Option(min=1, help="Label the first items only, for a try.")] = None,
    max_force: Annotated[float, typer.Option(min=0.0, help="Drop labels with a larger force, eV/Å.")] = 50.0,
) -> None:
    """Builds a training set of conformers, dynamics, distortions, dimers and clusters, labelled by a teacher."""
    settings = Settings(teacher=teacher, frames=frames, survey_frames=survey_frames, seed=seed, max_force=max_force)
    if survey is None and molecules == MOLECULES:
        survey = SURVEY
    summary = make_dataset(output, molecules, settings, survey=survey, reuse=reuse, workers=workers, limit=limit)
    for split, kinds in summary["structures"].items():
        total = sum(kinds.values())
        print(f"{split}: {total} structures ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})")
    print(f"dropped for large forces: {sum(summary['dropped_for_large_forces'].values())}")
    print(f"items with failures: {len(summary['failed'])}, see {output / 'summary.json'}")


if __name__ == "__main__":
    run_command(command)
