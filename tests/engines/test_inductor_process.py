"""What `inductor` does to its process and to those beside it: memory, threads, forks, and other programs' cores."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from painn_deploy.engines import cores
from painn_deploy.engines.cores import FIRST, LONGEST, LOOK, SharedCores, seconds_waited
from painn_deploy.engines.inductor import backend, loaded, openmp
from painn_deploy.engines.inductor.loaded import MOST_KEPT, lend
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from tests import students

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and fork are Linux's")


def run_script(text: str, *arguments: object, timeout: float = 120, **environment: str) -> Any:
    """What a program prints last, as JSON; it must end in time."""
    command = [sys.executable, "-c", text, *map(str, arguments)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, env=clean | environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


CYCLES = """
import json, sys
from pathlib import Path
from ase.build import molecule
from painn_deploy.runtime import PaiNNCalculator
def measured():
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(".so" in line for line in lines), int(Path("/proc/self/statm").read_text().split()[1]) / 256
seen, answers = [], set()
for cycle in range(int(sys.argv[2]) + 1):
    calculator = PaiNNCalculator(sys.argv[1], threads=1)
    for name in ("CH3CH2OH", "C6H6"):
        answers.add((name, calculator.get_forces(molecule(name)).tobytes().hex()))
    if cycle % 2:
        calculator.close()  # and else it is dropped
    del calculator
    if cycle % (int(sys.argv[2]) // 2) == 0:
        seen.append(measured())
print(json.dumps([seen, len(answers)]))
"""


@linux
def test_f5_opening_and_closing_takes_no_more_memory(compiled: Path) -> None:
    """torch's loader alone kept 20 memory maps and 2 MiB of each cycle."""
    (_, middle, last), answers = run_script(CYCLES, compiled, 60)
    assert last[0] - middle[0] < 100, "torch alone adds 20 maps a cycle"
    assert last[1] - middle[1] < 4
    assert answers == 2  # each molecule had the same bits each time


def test_f5_sessions_that_are_open_at_once_have_a_package_each(compiled: Path) -> None:
    loaded.forget_loaded()
    structures = [[students.water(seed) for seed in range(n)] for n in (1, 3, 40, 50)]
    graphs = [graph_inputs(each, 4.0) for each in structures]
    with PaiNNCalculator(compiled, threads=1) as one:
        wanted = [one.run_graph(graph) for graph in graphs]
        first = {id(package.run._run) for package in one.session._packages}
        with PaiNNCalculator(compiled, threads=1) as two:
            assert not first & {id(package.run._run) for package in two.session._packages}
            wrong: list[str] = []

            def repeat(calculator: PaiNNCalculator, order: Sequence[int]) -> None:
                for _ in range(20):
                    for index in order:
                        got = calculator.run_graph(graphs[index])
                        wrong.extend(
                            "bits" for a, b in zip(got, wanted[index], strict=True) if not np.array_equal(a, b)
                        )

            threads = [
                threading.Thread(target=repeat, args=args) for args in ((one, (0, 1, 2, 3)), (two, (3, 2, 0, 1)))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not wrong
    with PaiNNCalculator(compiled, threads=1) as third:
        assert {id(package.run._run) for package in third.session._packages} == first
        assert all(map(np.array_equal, third.run_graph(graphs[1]), wanted[1]))


def test_f5_what_is_kept_is_bounded_and_sound() -> None:
    loaded.forget_loaded()
    read: list[bytes] = []

    def load(contents: bytes) -> Any:
        read.append(contents)
        return lambda value: 1 / value

    def opened(*names: bytes) -> list[bytes]:
        read.clear()
        for lent in [lend(name, load) for name in names]:
            lent.give_back()
            lent.give_back()  # once is enough
        return read

    assert opened(b"a", b"b", b"a") == [b"a", b"b", b"a"]
    assert opened(b"a", b"b", b"a") == []
    failed = lend(b"b", load)
    with pytest.raises(ZeroDivisionError):
        failed(0)
    failed.give_back()
    assert opened(b"a", b"b") == [b"b"]
    others = [str(number).encode() for number in range(MOST_KEPT)]
    assert opened(*others) == others
    assert len(loaded._free) == MOST_KEPT
    assert opened(b"a", others[-1]) == [b"a"]
    loaded.forget_loaded()


THREADS = """
import json, sys
from ase.build import molecule
from painn_deploy.runtime import PaiNNCalculator
ethanol = molecule("CH3CH2OH")
ethanol.rattle(0.05, seed=1)
with PaiNNCalculator(sys.argv[1], threads=json.loads(sys.argv[2])) as calculator:
    print(json.dumps(calculator.get_forces(ethanol).tolist()))
"""


@pytest.mark.parametrize("variables", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"}], ids=str)
def test_where_openmp_gives_fewer_threads_than_asked_for_nothing_is_left_out(
    compiled: Path, variables: dict[str, str]
) -> None:
    """Products that share their rows among a number of threads that is compiled in would leave some uncomputed."""
    want = run_script(THREADS, compiled, "1")
    for threads in ("null", "1", "2"):
        assert run_script(THREADS, compiled, threads, **variables) == want


FORKING = """
import json, os, signal, sys, time
import torch
from ase.build import molecule
from painn_deploy.engines.inductor import loaded, openmp
from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.runtime import PaiNNCalculator

path, times, threads, lets_go = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
if not lets_go:
    openmp.let_go = lambda: False  # an OpenMP that has no omp_pause_resource_all
ethanol, benzene = molecule("CH3CH2OH"), molecule("C6H6")
inherited = PaiNNCalculator(path, threads=2)
with PaiNNCalculator(path, threads=2) as closed:
    want = [closed.get_forces(atoms) for atoms in (ethanol, benzene * (1, 1, 1))]
inherited.get_forces(ethanol)

def child():
    try:
        inherited.get_forces(benzene)
        return "inherited answered"
    except PaiNNDeployError as error:
        if type(error).__name__ != "OwnershipError":
            return f"inherited: {error}"
    try:
        with PaiNNCalculator(path, threads=threads) as calculator:
            same = all((calculator.get_forces(a) == f).all() for a, f in zip((ethanol, benzene), want))
            if any(package.run._key[0] != os.getpid() for package in calculator.session._packages):
                return "a package of the parent"
        return "right" if same else "wrong"
    except PaiNNDeployError as error:
        return f"{type(error).__name__}: {error}"

said = []
for _ in range(times):
    torch.randn(500, 500) @ torch.randn(500, 500)  # starts OpenMP's threads
    inherited.get_forces(ethanol)
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        signal.alarm(20)  # what hangs is ended
        os.write(write, child().encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said.append(pipe.read() or "hung")
    os.waitpid(pid, 0)
assert (inherited.get_forces(ethanol) == want[0]).all()
print(json.dumps(sorted(set(said))))
"""


@linux
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_f10_a_bundle_is_opened_in_a_forked_process(compiled: Path, threads: int | None) -> None:
    """It hung for ever in OpenMP, whose threads stay behind."""
    assert run_script(FORKING, compiled, 8, json.dumps(threads), "true") == ["right"]


@linux
def test_f10_where_threads_cannot_be_let_go_opening_in_a_fork_is_refused(compiled: Path) -> None:
    for threads in ("null", "2"):
        (said,) = run_script(FORKING, compiled, 1, threads, "false")
        assert said.startswith("EngineUnavailableError: This process (")
        assert all(word in said for word in ("forked", "`spawn` or `forkserver`", "threads=1"))
    assert run_script(FORKING, compiled, 8, "1", "false") == ["right"]


FIELD_6 = """
import json, multiprocessing, sys
import torch
from ase.build import bulk
from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.runtime import PaiNNCalculator

def energy(seed):
    atoms = bulk("C", "diamond", a=3.57, cubic=True) * (2, 2, 2)
    atoms.rattle(0.01, seed=seed)
    atoms.calc = calculator
    return atoms.get_potential_energy()

def told(seed):
    try:
        return energy(seed)
    except PaiNNDeployError as error:
        return str(error)

def anew(seed):
    global calculator
    calculator = PaiNNCalculator(sys.argv[1])
    return energy(seed)

torch.set_num_threads(2)
calculator = PaiNNCalculator(sys.argv[1])
want = [energy(seed) for seed in range(6)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    inherited = pool.map_async(told, range(6)).get(timeout=60)
    opened = pool.map_async(anew, range(6)).get(timeout=60)
print(json.dumps([inherited, opened == want]))
"""


@linux
def test_field_6_inductor_and_fork(compiled: Path) -> None:
    inherited, same = run_script(FIELD_6, compiled)
    assert all("was forked from it" in text for text in inherited)
    assert same


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, calculator: PaiNNCalculator) -> Iterator[list[int]]:
    """Threads that OpenMP has inside each call."""
    seen: list[int] = []

    def watching(run: Any) -> Any:
        return lambda *tensors: seen.append(openmp._openmp().omp_get_max_threads()) or run(*tensors)

    packages = [one._replace(run=watching(one.run)) for one in calculator.session._packages]
    monkeypatch.setattr(calculator.session, "_packages", packages)
    yield seen


@linux
def test_threads_are_a_session_s_own_in_every_thread(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = graph_inputs([students.water()], 4.0)
    before = torch.get_num_threads()
    try:
        with PaiNNCalculator(compiled, threads=3) as three, PaiNNCalculator(compiled, threads=2) as two:
            with watched(monkeypatch, two) as of_two, watched(monkeypatch, three) as of_three:
                for calculator in (two, three, two):
                    thread = threading.Thread(target=calculator.run_graph, args=(inputs,))
                    thread.start()
                    thread.join()
                    calculator.run_graph(inputs)
            assert (of_two, of_three) == ([2] * 4, [3] * 2)
            assert torch.get_num_threads() == 2  # that of the last one to be opened
    finally:
        torch.set_num_threads(before)


@linux
def test_fewer_threads_are_taken_while_the_cores_are_others(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the bits stay."""
    graphs = [graph_inputs([students.water(seed) for seed in range(n)], 4.0) for n in (1, 2, 9, 40)]
    now, waited = 0.0, 0.0
    monkeypatch.setattr(backend, "CORES", SharedCores(lambda: waited, lambda: now))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with PaiNNCalculator(compiled) as calculator, watched(monkeypatch, calculator) as seen:
            wanted = [calculator.run_graph(graph) for graph in graphs]
            for waiting in (0.0, 1.0, 1.0, 1.0, 0.0):
                now, waited = now + 10, waited + 10 * waiting
                for graph, want in zip(graphs, wanted, strict=True):
                    assert all(map(np.array_equal, calculator.run_graph(graph), want))
    finally:
        torch.set_num_threads(before)
    assert seen == [*[4] * 4, *[4] * 5, *[2] * 4, *[1] * 4, *[1] * 4, *[2] * 3]


def test_threads_are_halved_while_they_wait_and_doubled_when_they_do_not() -> None:
    now, waited = 0.0, 0.0
    shared = SharedCores(lambda: waited, lambda: now)

    def after(seconds: float, waiting: float) -> int:
        nonlocal now, waited
        now, waited = now + seconds, waited + seconds * waiting
        shared.look(16)
        return shared.threads(16)

    assert [after(0.1, 0.1) for _ in range(3)] == [16] * 3
    assert [after(0.1, 1.0) for _ in range(6)] == [8, 4, 2, 1, 1, 1]
    assert after(LOOK / 2, 0.0) == 1  # too early to look
    pauses, begun = [], now
    for _ in range(8):  # another program has a core all the time: one halving more is enough each time, or one less
        while after(0.1, 0.0) == 1:
            pass
        pauses.append(now - begun)
        assert after(0.1, 1.0) == 1
        begun = now
    assert pauses[0] < 2 * FIRST
    assert all(later > earlier - 0.1 for earlier, later in itertools.pairwise(pauses))
    assert LONGEST <= pauses[-1] < LONGEST + 1
    while now < begun + 2 * LONGEST:
        threads = after(0.1, 0.0)
    assert threads == 16
    blind = SharedCores(lambda: None, lambda: now)
    now += 10
    blind.look(16)
    assert blind.threads(16) == 16


BESIDE = """
import json, os, statistics, subprocess, sys, time
cores = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cores)
from painn_deploy.calibration.structures import aspirin
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs

def mean(seconds):
    begun, calls = time.perf_counter(), 0
    while time.perf_counter() < begun + seconds:
        calculator.run_graph(inputs)
        calls += 1
    return (time.perf_counter() - begun) / calls

with PaiNNCalculator(sys.argv[1]) as calculator:
    inputs = graph_inputs([aspirin()], calculator.manifest.cutoff)
    mean(1.0)
    alone = min(mean(0.5) for _ in range(4))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        mean(1.0)
        beside = statistics.median(mean(0.5) for _ in range(6))
    finally:
        for process in busy:
            process.kill()
            process.wait()
print(json.dumps([alone, beside]))
"""


@pytest.mark.timing
@linux
def test_a_molecule_does_not_collapse_beside_busy_programs(compiled: Path) -> None:
    """Two on two cores; it took up to 600 times as long. `scripts/studies/shared_cores.py` measures it."""
    if seconds_waited() is None:
        pytest.fail("this kernel does not say how long threads waited (CONFIG_SCHED_INFO)")
    alone, beside = run_script(BESIDE, compiled)
    assert beside < 10 * alone


@linux
def test_seconds_waited_are_those_of_this_process() -> None:
    before = seconds_waited()
    assert before is not None
    assert 0 <= (seconds_waited() or -1) - before < 10


def test_a_system_that_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cores, "TASKS", tmp_path / "none")
    assert seconds_waited() is None
    (tmp_path / "7").mkdir()
    monkeypatch.setattr(cores, "TASKS", tmp_path)
    assert seconds_waited() is None


OWN_LIBRARY = """
import ctypes, json, sys, torch
from painn_deploy.engines.inductor.loaded import share_standard_library
share_standard_library()
print(json.dumps(ctypes.CDLL(sys.argv[1]).matches(b"abc12")))
"""
"""Without the sharing, the process ends in std::bad_cast or SIGSEGV."""


@linux
def test_a_package_with_a_standard_library_of_its_own_uses_the_one_that_is_there(tmp_path: Path) -> None:
    source, library = tmp_path / "own.cpp", tmp_path / "own.so"
    source.write_text(
        "#include <regex>\n"
        'extern "C" int matches(const char* text) { return std::regex_match(text, std::regex("[a-z]+[0-9]*")); }\n'
    )
    compiler = shutil.which("g++")
    assert compiler, "the engine inductor needs it too"
    command = [compiler, "-shared", "-fPIC", "-static-libstdc++", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    assert run_script(OWN_LIBRARY, library) == 1
