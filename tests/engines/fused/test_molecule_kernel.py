"""The fused kernel as an engine of a CPU: against its student in float64, and to the bit against itself."""

import dataclasses
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from painn_deploy.engines import get_backend
from painn_deploy.engines.backend import BuildOptions
from painn_deploy.engines.fused import host, host_session
from painn_deploy.engines.fused.host import Library, Sizes, compiled_libraries, load
from painn_deploy.engines.fused.host_session import FusedHostSession
from painn_deploy.engines.fused.packed import Packed
from painn_deploy.engines.fused.weights import pack
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import BundleError, EngineError, EngineUnavailableError, PaiNNDeployError, ShapeError
from painn_deploy.export.manifest import read_bundle
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.verlet import VerletList
from painn_deploy.scripts import export_engines
from tests import students

from .molecules import check, crowd, made, matrix, mixture, opened, parts, same_bits, variant

GUARD = 64


@pytest.mark.parametrize("width", [4, 8, 16])
def test_every_width_of_vectors_gives_what_the_student_gives(
    base: Student, libraries: dict[int, Library], width: int
) -> None:
    if width not in libraries:
        pytest.skip(f"this processor has no vectors of {width} numbers")
    crystals = [atoms for atoms in students.zoo().values() if set(atoms.numbers) <= {1, 6, 7, 8}]
    batch = [*mixture(), *map(students.perturbed, crystals)]
    assert sum(atoms.pbc.any() for atoms in crystals) > 3
    with opened(libraries[width], base) as session:
        check(base, batch, session.run(matrix(batch, base)))


def test_no_bit_depends_on_threads_neighbours_in_a_batch_or_the_order_of_it(
    base: Student, session: FusedHostSession, libraries: dict[int, Library]
) -> None:
    batch = [*mixture(), *mixture()[::-1]] * 3
    together = session.run(matrix(batch, base))
    for atoms, found in zip(batch, parts(batch, together), strict=True):
        assert same_bits(session.run(matrix([atoms], base)), found)
    backwards = list(parts(batch[::-1], session.run(matrix(batch[::-1], base))))[::-1]
    for found, other in zip(parts(batch, together), backwards, strict=True):
        assert same_bits(found, other)
    large = crowd()
    alone = session.run(matrix(large, base))
    check(base, large, alone)
    for threads in (2, 5):
        with opened(session._library, base, threads) as several:
            for _ in range(3):
                assert same_bits(several.run(matrix(batch, base)), together)
                assert same_bits(several.run(matrix(large, base)), alone)
            assert several._team is not None


def test_threads_of_the_machine_are_taken_where_nothing_is_said(base: Student, session: FusedHostSession) -> None:
    batch = mixture() * 3
    with opened(session._library, base, None) as several:
        assert same_bits(several.run(matrix(batch, base)), session.run(matrix(batch, base)))


def test_memory_grows_and_serves_small_ones_after_large_ones(base: Student, session: FusedHostSession) -> None:
    large, small = crowd(), mixture()[:1]
    with opened(session._library, base) as fresh:
        first = fresh.run(matrix(small, base))
        fresh.run(matrix(large, base))
        assert same_bits(fresh.run(matrix(small, base)), first)


def test_no_phase_writes_beyond_the_memory_that_sizes_ask_for(
    base: Student, libraries: dict[int, Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[np.ndarray, int, int]] = []

    def guarded(numbers: int) -> np.ndarray:
        room = np.full(numbers + 2 * GUARD, 7.25, np.float32)
        start = GUARD + -(room.ctypes.data // 4 + GUARD) % 16
        kept.append((room, start, start + numbers))
        return room[start : start + numbers]

    monkeypatch.setattr(host_session, "_aligned", guarded)
    crystals = [atoms for atoms in students.zoo().values() if set(atoms.numbers) <= {1, 6, 7, 8}]
    for library, cache in itertools.product(libraries.values(), (host.CACHE, 0)):
        monkeypatch.setattr(host, "CACHE", cache)
        for threads in (1, 3):
            with opened(library, base, threads) as session:
                for batch in ([Atoms("O")], mixture()[:2], mixture(), crystals, crowd()):
                    session.run(matrix(batch, base))
    assert len(kept) > 32 * len(libraries)
    for room, start, end in kept:
        assert (room[:start] == 7.25).all()
        assert (room[end:] == 7.25).all()


def test_neighbours_that_stand_are_looked_at_once(
    base: Student, session: FusedHostSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    pieces_of = host_session.pieces_of
    monkeypatch.setattr(host_session, "pieces_of", lambda reverse: looked.append(len(reverse)) or pieces_of(reverse))
    atoms, verlet = molecule("CH3CH2OH"), VerletList(base.configuration.cutoff, 1.0)
    for seed in range(3):
        atoms.positions += np.random.default_rng(seed).normal(size=(9, 3)) * 0.02
        inputs = verlet.inputs(atoms)
        got = session.run(inputs)
        assert looked == [9]
        check(base, [atoms], got)
    writable = inputs._replace(reverse=inputs.reverse.copy())
    assert same_bits(session.run(writable), got)
    assert same_bits(session.run(writable), got)
    assert looked == [9] * 3, "what may be written into is looked at anew"


def test_weights_of_atoms_count(base: Student, session: FusedHostSession) -> None:
    batch = mixture()
    inputs = matrix(batch, base)
    weights = np.random.default_rng(0).integers(0, 2, len(inputs.weights)).astype(np.float32)
    check(base, batch, session.run(inputs._replace(weights=weights)), weights)


def test_a_pair_at_the_cutoff_is_none(base: Student, session: FusedHostSession) -> None:
    apart = Atoms("OH", [[0.0, 0, 0], [5.0, 0, 0]])
    near = Atoms("OH", [[0.0, 0, 0], [np.nextafter(5.0, 0), 0, 0]])
    row = Atoms("OHH", [[0.0, 0, 0], [0.9, 0.1, 0], [5.5, 0, 0.3]])
    check(base, [apart, near, row], session.run(matrix([apart, near, row], base)))
    alone, found = session.run(matrix([Atoms("O")], base)), session.run(matrix([apart], base))
    assert found.atomic_energies[0] == alone.atomic_energies[0]
    assert not found.forces.any()
    assert not found.virials.any()


def test_what_leads_elsewhere_is_refused(base: Student, session: FusedHostSession) -> None:
    inputs = matrix([students.water()], base)
    for value, message in ((6, "no pairing"), (-1, "no pairing"), (0, "no pairing")):
        reverse = inputs.reverse.copy()
        reverse.flat[-1] = value
        with pytest.raises(ShapeError, match=message):
            session.run(inputs._replace(reverse=reverse))
    for number in (-1, 100):
        numbers = np.array([number, 1, 1], np.int32)
        with pytest.raises(ShapeError, match=f"atomic_numbers holds {number}"):
            session.run(inputs._replace(atomic_numbers=numbers))
    with pytest.raises(ShapeError, match="more than the engine fused counts with 32 bits"):
        Sizes.of(pack(base), 10**7, 10, 0)
    with pytest.raises(ShapeError, match="more than the engine fused counts with 32 bits"):
        Sizes.of(pack(base), 10**5, 5 * 10**7, 0)


def test_edges_that_are_none_from_their_other_end_are_refused(base: Student, session: FusedHostSession) -> None:
    """Memory has room for the pairs of `reverse`, and `mask` says which are edges: neither may be believed alone."""
    batch = mixture()
    inputs = matrix(batch, base)
    want, own = session.run(inputs), np.arange(inputs.mask.size).reshape(inputs.mask.shape)
    paired = inputs.reverse != own
    for wrong in (np.ones_like(inputs.mask), np.where(paired & (inputs.reverse > own), 0, inputs.mask)):
        with pytest.raises(ShapeError, match=r"slot \d+ of atom \d+ is an edge, and its reverse is none"):
            session.run(inputs._replace(mask=wrong.astype(np.float32)))
    assert same_bits(session.run(inputs), want)
    broken = inputs.displacements.copy()
    broken[0, 0] = np.nan
    got = session.run(inputs._replace(displacements=broken))
    assert np.isnan(got.atomic_energies[0])
    for one, other in zip(list(parts(batch, got))[1:], list(parts(batch, want))[1:], strict=True):
        assert same_bits(one, other), "of others nothing is lost"


def test_an_array_that_was_not_as_closed_as_it_seemed_is_noticed(base: Student, session: FusedHostSession) -> None:
    batch = mixture()
    inputs = matrix(batch, base)
    reverse = inputs.reverse.copy()
    open_view = reverse.view()
    reverse.flags.writeable = False
    closed = inputs._replace(reverse=reverse)
    want = session.run(closed)
    open_view[:] = np.arange(reverse.size, dtype=np.int32)[::-1].reshape(reverse.shape)
    with pytest.raises(ShapeError, match="its reverse is none"):
        session.run(closed)
    open_view[:] = inputs.reverse
    assert same_bits(session.run(closed), want)
    reverse.shape = (1, reverse.size)
    atom = matrix([Atoms("O")], base)
    row = atom._replace(
        displacements=np.zeros((*reverse.shape, 3), np.float32),
        neighbours=np.zeros_like(reverse),
        reverse=reverse,
        mask=np.zeros(reverse.shape, np.float32),
    )
    assert same_bits(session.run(row), session.run(atom))


def test_threads_that_the_system_does_not_give_are_said(
    base: Student, session: FusedHostSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    inputs = matrix(mixture() * 3, base)
    with opened(session._library, base, 3) as several:
        monkeypatch.setattr(threading.Thread, "start", none)
        before = threading.active_count()
        with pytest.raises(EngineUnavailableError, match="no 3 threads.*can't start new thread.*threads=1"):
            several.run(inputs)
        monkeypatch.undo()
        assert threading.active_count() == before
        assert same_bits(several.run(inputs), session.run(inputs))


@pytest.fixture(scope="module")
def path(painn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, water = tmp_path_factory.mktemp("fused"), [students.water()]
    (path,) = export_engines(painn, folder, engines=["fused"], structures=water, device="cpu")
    return path


def test_a_bundle_runs_as_an_engine_like_every_other(path: Path, bundle: Path) -> None:
    manifest = read_bundle(path).manifest
    assert (manifest.engine, manifest.bound_to) == ("fused", (host.kind_of_machine(),))
    batch = [students.water(seed) for seed in range(5)] + list(students.zoo().values())
    with PaiNNCalculator(path) as one, PaiNNCalculator(bundle) as other:
        assert one.engine_info["device"] == "cpu"
        for got, want in zip(one.calculate_batch(batch), other.calculate_batch(batch), strict=True):
            np.testing.assert_allclose(got["forces"], want["forces"], rtol=0, atol=2e-5)
            assert got["energy"] == pytest.approx(want["energy"], abs=1e-5)
    backend = get_backend("fused")
    graph = backend.executed_graph(read_bundle(path), 9, 8)
    assert "pairs" in [value.name for value in graph.graph.input], "filters are computed once a pair"
    assert "vectors of 4, 8 numbers" in backend.contents(read_bundle(path))["kernels"], "8 read-out features are no 16"
    validation = read_bundle(path).json("validation.json")
    assert validation["parity"]["forces"] < 1e-4


ALONE = """
import sys
for name in ("torch", "onnx", "onnxruntime", "safetensors"):
    sys.modules[name] = None
from ase.build import molecule
from painn_deploy.runtime import PaiNNCalculator
with PaiNNCalculator(sys.argv[1]) as calculator:
    print(calculator.calculate_batch([molecule("H2O")])[0]["energy"])
"""


def test_it_runs_with_neither_torch_nor_onnx_runtime_nor_a_compiler(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(path)], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": str(tmp_path), "CXX": ""},
    )  # fmt: skip
    with PaiNNCalculator(path) as calculator:
        assert float(done.stdout) == calculator.calculate_batch([molecule("H2O")])[0]["energy"], done.stderr


def damaged(path: Path, **changes: object) -> Bundle:
    bundle = read_bundle(path)
    files = {name: bundle.file(name) for name in bundle.manifest.files}
    files |= changes.pop("files", {})  # type: ignore[call-overload]
    for name in changes.pop("without", ()):  # type: ignore[call-overload]
        files.pop(name)
    return Bundle.in_memory(dataclasses.replace(bundle.manifest, **changes), files)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bound_to": ("cpu:plan9-pdp11",)}, BundleError, "compiled for cpu:plan9-pdp11, and this machine is cpu:"),
        ({"engine_version": "0"}, BundleError, "version 0 of the kernel, and this is version 3"),
        ({"axes": {"width": 7}}, BundleError, "weights of another graph"),
        ({"without": ("molecules-4.so", "molecules-8.so")}, BundleError, "holds no library"),
        ({"files": {"molecules.weights": b"nothing"}}, EngineError, "weights of the engine fused are none"),
        ({"files": {"molecules.weights": b'{"a": 1}\n'}}, EngineError, "weights of the engine fused are none"),
        ({"files": {"molecules-4.so": b"no library"}}, EngineError, "cannot load its library.*Export it again here"),
        ({"bound_to": ("cuda:90",)}, EngineUnavailableError, "compiled for cuda:90 and cannot run on 'auto'"),
    ],
)
def test_a_bundle_that_cannot_run_here_says_why(
    path: Path, changes: dict, error: type[PaiNNDeployError], message: str
) -> None:
    with pytest.raises(error, match=message):
        PaiNNCalculator(damaged(path, **dict(changes)))


def test_a_device_that_it_was_not_compiled_for_is_refused(path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="cannot run on 'cuda:0'"):
        PaiNNCalculator(path, device="cuda:0")


def test_what_building_lacks_is_said(base: Student, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend, packed = get_backend("fused"), pack(made(variant()))
    with pytest.raises(EngineError, match="a graph alone does not have them"):
        backend.build(b"", BuildOptions(device="cpu"))
    options = BuildOptions(device="cpu", of_student=packed.to_bytes())
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho the compiler said no\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(EngineError, match="cannot compile the engine fused.*the compiler said no"):
        backend.build(b"", options)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailableError, match=r"needs a C\+\+ compiler: install g\+\+, or set CXX"):
        backend.build(b"", options)
    with pytest.raises(EngineUnavailableError, match="no NVIDIA GPU here.*--compute-capability"):
        backend.bound_to(BuildOptions(device="cuda"))
    with pytest.raises(EngineUnavailableError, match="for cpu or cuda, and not for 'tpu'"):
        backend.bound_to(BuildOptions(device="tpu"))


def test_weights_come_back_from_a_bundle_as_they_were(base: Student) -> None:
    packed = pack(base)
    again = Packed.from_bytes(packed.to_bytes())
    assert again.macros == packed.macros
    np.testing.assert_array_equal(again.weights, packed.weights)


def test_a_process_loads_a_library_once(base: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {4: compiled_libraries(pack(made(variant())))["molecules-4.so"]}
    assert load(contents) is load(contents)
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(host, "_loaded_once", {})
    assert load(contents).width == 4

    def forbidden(name: str) -> int:
        raise PermissionError(name)

    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    monkeypatch.setattr(host, "_loaded_once", {})
    assert load(contents).width == 4


def test_libraries_are_told_apart_whatever_becomes_of_descriptors() -> None:
    """A loader knows a library by its path, and one of a descriptor that was closed comes again."""
    near = {}
    for features in (16, 32, 48):
        content = compiled_libraries(pack(made(variant(hidden_dim=features))))["molecules-4.so"]
        free = os.dup(0)
        os.close(free)
        near[features] = Library(content, 4).near
        again = os.dup(0)
        os.close(again)
        assert again == free, "a descriptor was left open"
    assert len(set(near.values())) == 3
