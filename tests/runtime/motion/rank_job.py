"""All cases on the ranks that it was started on: `mpiexec -n N python -m tests.runtime.motion.rank_job BUNDLES OUT`."""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.lammps import LammpsForces, start_lammps
from painn_deploy.runtime.motion.ranks import Ranks, ranks_of
from tests.runtime.motion.cases import CASES, OUTPUT, SYMBOLS, Case
from tests.runtime.test_lammps import build

THERMO = ("step", "pe", "etotal", "press", "pxx", "pyy", "pzz", "pxy", "pxz", "pyz", "vol")


def run(case: Case, bundle: Path) -> list[dict[str, np.ndarray]]:
    """What is seen after each block of commands; on the first rank."""
    lammps = start_lammps()
    atoms, looks = case.make(), []
    lammps.command("atom_modify map array")
    lammps.commands_string(case.before)
    build(lammps, atoms, list(SYMBOLS), case.units, boundary=case.boundary)
    lammps.command(f"neighbor {case.skin[0]} bin")
    lammps.commands_string(OUTPUT)
    with PaiNNCalculator(bundle, threads=1, skin=case.skin[1]) as calculator:
        link = LammpsForces(lammps, calculator, dict(enumerate(SYMBOLS, start=1)), skin=case.skin[0])
        for block in case.after:
            for line in block.splitlines():
                link.command(line)
            looks.append(look(lammps, ranks_of(lammps), link))
    lammps.close()
    return looks


def look(lammps: Any, ranks: Ranks, link: LammpsForces) -> dict[str, np.ndarray]:
    """Atoms by their IDs, with all that LAMMPS has of them, and the totals."""
    count = lammps.extract_setting("nlocal")
    asked = ("energies", 1, 1), ("virials", 1, 2)
    for compute in asked:
        lammps.extract_compute(*compute)  # by all ranks, since it may compute something
    own = np.zeros((count, 15))
    if count:  # LAMMPS's arrays of none are no arrays
        parts = [lammps.numpy.extract_atom(name, nelem=count)[:count] for name in ("id", "type", "x", "f")]
        parts += [lammps.numpy.extract_compute(*compute)[:count] for compute in asked]
        own[:] = np.column_stack(parts)
    rows = np.concatenate(ranks.exchanged([own] * ranks.size))
    rows = rows[np.argsort(rows[:, 0])]
    box = lammps.extract_box()
    totals = [lammps.get_thermo(name) for name in THERMO] + [lammps.numpy.extract_compute("sum", 0, 0)]
    doubts = [lammps.extract_fix("painn", 0, 1, place) for place in range(len(link.uncertainties))]
    return {
        "ids": rows[:, 0], "types": rows[:, 1], "positions": rows[:, 2:5], "forces": rows[:, 5:8],
        "energies": rows[:, 8], "virials": rows[:, 9:15], "totals": np.array(totals), "doubts": np.array(doubts),
        "box": np.array([*box[0], *box[1], *box[2:5]]), "owned": np.array([count]),
    }  # fmt: skip


def main(bundles: Path, out: Path) -> None:
    """Run every case; one that raises is written down with what it said."""
    named, found, failed = json.loads(bundles.read_text()), {}, {}
    for name, case in CASES.items():
        if case.most_ranks < MPI.COMM_WORLD.size:
            continue
        try:
            for number, seen in enumerate(run(case, Path(named[case.student]))):
                found |= {f"{name}/{number}/{key}": value for key, value in seen.items()}
        except PaiNNDeployError as error:  # raised on every rank; what else is ends the job
            failed[name] = f"{type(error).__name__}: {error}"
    if MPI.COMM_WORLD.rank == 0:
        np.savez(out, **found)
        out.with_suffix(".json").write_text(json.dumps(failed))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception:
        traceback.print_exc()
        MPI.COMM_WORLD.Abort(1)
