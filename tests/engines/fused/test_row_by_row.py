"""Filters of a large group on a CPU, computed row by row: the very sums of a small one's."""

import pytest
from ase import Atoms

from painn_deploy.engines.fused import host
from painn_deploy.engines.fused.host import CACHE, Library, Sizes
from painn_deploy.engines.fused.host_session import FusedHostSession
from painn_deploy.engines.fused.weights import pack
from painn_deploy.export.model.student import Student
from tests import students

from .molecules import check, crowd, matrix, mixture, opened, parts, same_bits

MEMORY = 4
"""Bytes of a float32."""


def structures() -> list[list[Atoms]]:
    """Some with no pair, with a few, and with many; periodic ones; several of them in a batch."""
    crystals = [atoms for atoms in students.zoo().values() if set(atoms.numbers) <= {1, 6, 7, 8}]
    return [[Atoms("O")], [Atoms("H"), Atoms("C")], mixture(), list(map(students.perturbed, crystals)), crowd()]


def test_they_are_those_of_all_pairs_to_the_bit(
    base: Student, libraries: dict[int, Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in libraries.values():
        for batch in structures():
            monkeypatch.setattr(host, "CACHE", CACHE)
            with opened(library, base) as session:
                want = session.run(matrix(batch, base))
            monkeypatch.setattr(host, "CACHE", 0)
            for threads in (1, 2, 5):
                with opened(library, base, threads) as session:
                    got = session.run(matrix(batch, base))
                    assert same_bits(got, want)
            check(base, batch, got)


def test_a_molecule_beside_a_large_structure_keeps_its_bits(
    base: Student, session: FusedHostSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is large decides how all of a batch are computed, and may decide no bit of them."""
    batch = [*mixture(), *crowd()]
    alone = [session.run(matrix([atoms], base)) for atoms in batch]
    pairs = int(matrix(crowd(), base).mask.sum()) // 2
    sizes = Sizes.of(pack(base), 81, pairs, 0)
    assert sizes.forward
    monkeypatch.setattr(host, "CACHE", MEMORY * sizes.work - 1)
    assert not Sizes.of(pack(base), 81, pairs, 0).forward
    assert Sizes.of(pack(base), 21, 210, 0).forward
    for found, want in zip(parts(batch, session.run(matrix(batch, base))), alone, strict=True):
        assert same_bits(found, want)


def test_groups_that_are_computed_at_once_share_the_cache(base: Student) -> None:
    packed = pack(base)
    (most,) = {pairs for pairs in (CACHE // (MEMORY * 6 * 96) // 9 * 9,) if Sizes.of(packed, 27, pairs, 0).forward}
    assert not Sizes.of(packed, 27, most + 1, 0).forward
    assert not Sizes.of(packed, 27, most, 0, at_once=2).forward
    assert Sizes.of(packed, 27, most // 2 - 9, 0, at_once=2).forward


def test_a_large_box_takes_memory_by_its_atoms(base: Student, session: FusedHostSession) -> None:
    """Filters of all its pairs would be most of it."""
    packed = pack(base)
    near, far = Sizes.of(packed, 5184, 140_000, session._library.near).memory(packed)
    assert near < 6 * 96 * 140_000 / 4
    assert far == packed.saved(5184)
