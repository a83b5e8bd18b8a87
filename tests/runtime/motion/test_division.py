"""The parts of a divided structure in one process, and what is refused of them."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.motion.division import Division, Seen
from painn_deploy.runtime.motion.domain import Domain
from painn_deploy.runtime.motion.owners import Owners
from painn_deploy.runtime.motion.ranks import ALONE, Ranks, ranks_of
from painn_deploy.runtime.neighbours import find_pairs
from painn_deploy.scripts.programs import ranks as launching
from tests import students

CUTOFF, INTERACTIONS, MARGIN = students.CONFIGURATION["cutoff"], students.CONFIGURATION["num_interactions"], 0.8
NEAR = INTERACTIONS * CUTOFF + MARGIN


def crystal(seed: int) -> Atoms:
    """A cell of a random shape, some of whose directions do not repeat."""
    rng = np.random.default_rng(seed)
    atoms = bulk("C", "diamond", a=3.57, cubic=True).repeat(rng.integers(1, 4, 3))
    atoms.set_cell(atoms.cell.array + np.tril(rng.uniform(-0.6, 0.6, (3, 3)), -1), scale_atoms=True)
    atoms.symbols[::3] = "O"
    atoms.pbc = rng.random(3) < 0.7
    return students.perturbed(atoms, seed, 0.05)


def parts(atoms: Atoms, count: int) -> list[Seen]:
    """What each of some ranks would see: own atoms, and every image of any atom that LAMMPS's ghosts could be."""
    order = np.array_split(np.argsort(atoms.positions[:, 0], kind="stable"), count)
    reach = NEAR + 1.5  # LAMMPS's ghosts fill a box
    one, other = atoms.cell.array[[1, 2, 0]], atoms.cell.array[[2, 0, 1]]
    spans = np.ceil(reach * np.linalg.norm(np.cross(one, other), axis=1) / atoms.get_volume())
    found = []
    for own in order:
        rows, shifts = [own], [np.zeros((len(own), 3))]
        for image in np.ndindex(*(2 * np.where(atoms.pbc, spans, 0).astype(int) + 1)):
            shift = np.array(image) - np.where(atoms.pbc, spans, 0)
            places = atoms.positions + shift @ atoms.cell.array
            far = np.linalg.norm(places[:, None] - atoms.positions[own][None], axis=2).min(1) > reach
            near = ~far if shift.any() else ~far & ~np.isin(np.arange(len(atoms)), own)
            rows.append(near.nonzero()[0])
            shifts.append(np.tile(shift, (near.sum(), 1)))
        chosen = np.concatenate(rows)
        places = atoms.positions[chosen] + np.concatenate(shifts) @ atoms.cell.array
        found.append(Seen(len(own), chosen + 1, atoms.numbers[chosen], places, atoms.cell.array, atoms.pbc))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_parts_add_up_to_the_whole(bundle: Path, seed: int) -> None:
    atoms = crystal(seed)
    with PaiNNCalculator(bundle, threads=1) as whole, PaiNNCalculator(bundle, threads=1) as part:
        whole.calculate(atoms)
        energies, forces = np.zeros(len(atoms)), np.zeros((len(atoms), 3))
        for seen in parts(atoms, 3):
            domain = Domain.chosen(seen.atoms(slice(None)), seen.tags, seen.owned, CUTOFF, INTERACTIONS, MARGIN)
            part.neighbour_list.weigh((np.arange(len(domain.rows)) < seen.owned).astype(np.float32))
            outputs = part.moving.outputs(seen.atoms(domain.rows))
            places = domain.tags - 1
            assert len(set(places.tolist())) == len(places)  # an atom once
            assert not outputs.atomic_energies[seen.owned :].any()
            energies[places] += outputs.atomic_energies
            forces[places] += outputs.forces
        references = whole.evaluator.references(atoms.numbers)
        np.testing.assert_allclose(energies + references, whole.results["energies"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(forces, whole.results["forces"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_evaluated_that_no_own_atom_feels(seed: int) -> None:
    """By brute force: what so many steps lead to from an own atom, and nothing else."""
    atoms = crystal(seed)
    pairs = find_pairs(atoms, CUTOFF + MARGIN).pairs
    touching = np.eye(len(atoms), dtype=int)
    touching[pairs.first, pairs.second] = touching[pairs.second, pairs.first] = 1
    felt = np.linalg.matrix_power(touching.astype(float), INTERACTIONS) > 0
    for seen in parts(atoms, 4):
        domain = Domain.chosen(seen.atoms(slice(None)), seen.tags, seen.owned, CUTOFF, INTERACTIONS, MARGIN)
        own = seen.tags[: seen.owned] - 1
        apart = np.linalg.norm(seen.positions[:, None] - seen.positions[None, : seen.owned], axis=2).min(1)
        near = np.isin(np.arange(len(atoms)), seen.tags[apart <= NEAR] - 1)
        assert sorted(domain.tags - 1) == (felt[own].any(0) & near).nonzero()[0].tolist()


def test_what_moved_too_far_is_refused(bundle: Path) -> None:
    atoms = crystal(1)
    (seen,) = parts(atoms, 1)
    with PaiNNCalculator(bundle, threads=1) as calculator:
        division = Division(ALONE, calculator.evaluator, None)
        before = division.answer(seen, MARGIN, of_atoms=True)
        calculator.calculate(atoms)
        own = seen.tags[: seen.owned] - 1
        np.testing.assert_allclose(before.forces, calculator.results["forces"][own], rtol=0, atol=2e-5)
        moved = seen.positions.copy()
        moved[0, 0] += 0.45 * MARGIN
        division.answer(replace(seen, positions=moved), MARGIN, of_atoms=False)
        moved[0, 0] += 0.1 * MARGIN
        far = replace(seen, positions=moved)
        with pytest.raises(EngineError, match=r"moved by more than 0\.4 Å.*neigh_modify every 1 delay 0 check yes"):
            division.answer(far, MARGIN, of_atoms=False)
        again = replace(far, exchange=(0, 1))
        assert np.isfinite(division.answer(again, MARGIN, of_atoms=False).energy)
        nameless = replace(seen, tags=0 * seen.tags)
        with pytest.raises(EngineError, match="no IDs.*atom_modify id yes"):
            division.answer(nameless, MARGIN, of_atoms=False)


def test_atoms_have_one_owner() -> None:
    owned = np.array([2, 5, 9])
    with pytest.raises(EngineError, match="owns the atom of the ID 7 any more"):
        Owners(ALONE, owned, np.array([7]))
    with pytest.raises(EngineError, match="Two MPI ranks.*ID 5"):
        Owners(ALONE, np.array([2, 5, 5]), owned[:0])
    rows = np.zeros((3, 2))
    Owners(ALONE, owned, np.array([9, 2])).add(np.array([[1.0, 2.0], [3.0, 4.0]]), rows)
    assert rows.tolist() == [[3, 4], [0, 0], [1, 2]]


class Lammps:
    """A LAMMPS that says on how many ranks it runs."""

    def extract_setting(self, name: str) -> int:
        return {"world_size": 4}[name]


def test_an_mpi4py_that_is_not_lammps_s(monkeypatch: pytest.MonkeyPatch) -> None:
    other: Any = SimpleNamespace(COMM_WORLD=SimpleNamespace(size=1), Get_library_version=lambda: "Open MPI v5.0.3, x")
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=other))
    with pytest.raises(
        EngineUnavailableError, match=r"on 4 MPI ranks, and mpi4py sees 1.*Open MPI v5\.0\.3.*MPI4PY_LIBMPI"
    ):
        ranks_of(Lammps())
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(EngineUnavailableError, match=r"mpi4py.*is not here.*painn-deploy\[lammps\]"):
        ranks_of(Lammps())


def test_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launching.STARTED:
        monkeypatch.delenv(name, raising=False)
    launching.check_launcher(ALONE)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    with pytest.raises(EngineError, match="3 processes were started, and LAMMPS is alone in each.*--ranks 3"):
        launching.check_launcher(ALONE)
    monkeypatch.setattr(launching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailableError, match=r"--ranks needs mpi4py.*painn-deploy\[lammps\]"):
        launching.run_on_ranks(2, ["lammps"])
    assert launching.cores_of(ALONE) is None
    assert launching.device_of(ALONE, "auto") == "auto"


def test_ranks_of_a_machine_share_its_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(SimpleNamespace(rank=13, size=16))
    monkeypatch.setattr(ranks, "neighbours_here", lambda: (5, 8))  # sixth of eight here
    monkeypatch.setattr(launching.os, "sched_getaffinity", lambda process: range(20))
    assert launching.cores_of(ranks) == 2
    for gpus, of_auto, of_cuda in ((4, "cuda:1", "cuda:1"), (8, "cuda:5", "cuda:5"), (0, "auto", "cuda")):
        monkeypatch.setattr(launching, "driver", lambda gpus=gpus: SimpleNamespace(gpus=gpus))
        assert launching.device_of(ranks, "auto") == of_auto
        assert launching.device_of(ranks, "cuda") == of_cuda
        assert launching.device_of(ranks, "cuda:3") == "cuda:3"
        assert launching.device_of(ranks, "cpu") == "cpu"
