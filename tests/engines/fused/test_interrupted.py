"""What interrupts a call of the fused kernel, as Ctrl-C does, leaves nothing half done."""

import gc
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from ase import Atoms

from painn_deploy.engines.fused.host_session import FusedHostSession
from painn_deploy.engines.owner import SoleUse
from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.export.model.student import Student
from painn_deploy.scripts import export_engines
from tests import students

from .molecules import crowd, matrix, mixture, opened, same_bits

FILES = ("host_session.py", "team.py", "owner.py")


def kinds_of_work() -> list[list[Atoms]]:
    """Parts for each thread, and one group that all share."""
    return [mixture() * 6, crowd()]


class Interrupting:
    """Raises KeyboardInterrupt as the line of some number begins, of those that run in the files of a session."""

    def __init__(self, at: int, files: tuple[str, ...] = FILES) -> None:
        self.left, self._files = at, files

    def __call__(self, frame: FrameType, event: str, argument: Any) -> "Interrupting | None":
        if Path(frame.f_code.co_filename).name not in self._files:
            return None
        if event == "line":
            self.left -= 1
            if self.left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self

    def was_in_time(self, session: FusedHostSession, inputs: GraphInputs) -> bool:
        sys.settrace(self)
        try:
            session.run(inputs)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False


@pytest.mark.parametrize("kind", [0, 1])
def test_at_every_line(kind: int, base: Student, session: FusedHostSession) -> None:
    inputs = matrix(kinds_of_work()[kind], base)
    want, line = session.run(inputs), 0
    while True:
        with opened(session._library, base, 2) as several:
            for _ in range(2):  # without threads yet, and with those of the call before
                caught = Interrupting(line).was_in_time(several, inputs)
                assert same_bits(several.run(inputs), want), f"interrupted at line {line}"
        if not caught:
            break
        line += 1
    assert line > 25


def test_by_signals_at_any_time(base: Student, session: FusedHostSession) -> None:
    """Answers after it are right, and none hangs."""
    works = [matrix(structures, base) for structures in kinds_of_work()]
    wants: list[GraphOutputs] = [session.run(inputs) for inputs in works]

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    count, until = 0, time.monotonic() + 4
    try:
        with opened(session._library, base, 2) as several:
            while time.monotonic() < until:
                for inputs, want in zip(works, wants, strict=True):
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 1e-4 + 7e-4 * (count % 17) / 17)
                        several.run(inputs)
                        several.run(inputs)
                    except KeyboardInterrupt:
                        count += 1
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    assert same_bits(several.run(inputs), want)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert count > 20


def test_a_guard_can_be_entered_again_by_the_thread_that_was_interrupted() -> None:
    line, caught = 0, True
    while caught:
        guard = SoleUse("This")
        sys.settrace(Interrupting(line))
        try:
            with guard:
                pass
            caught = False
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        with guard, guard:
            pass
        line += 1
    assert line > 4


def test_a_session_that_is_closed_while_it_runs_answers_or_says_so(base: Student, session: FusedHostSession) -> None:
    works = [matrix(structures, base) for structures in kinds_of_work()]
    wants = [session.run(inputs) for inputs in works]
    for number in range(60):
        several = opened(session._library, base, 3)
        closing = threading.Timer(1e-3 + 1e-4 * number, several.close)
        closing.start()
        with suppress(EngineError):  # it is closed
            for inputs, want in [*zip(works, wants, strict=True)] * 4:
                assert same_bits(several.run(inputs), want)
        closing.join()
        with pytest.raises(EngineError, match="closed"):
            several.run(works[0])
        several.close()


def test_threads_of_a_session_that_nobody_closed_end(base: Student, session: FusedHostSession) -> None:
    before = threading.active_count()
    several = opened(session._library, base, 3)
    several.run(matrix(mixture() * 6, base))
    assert threading.active_count() == before + 2
    del several
    gc.collect()
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


PROGRAM = """
import sys, threading, time
from ase.build import molecule
from painn_deploy.runtime import PaiNNCalculator

def on():
    with PaiNNCalculator(sys.argv[1], threads=2) as calculator:
        for step in range(60):
            calculator.calculate_batch([molecule("H2O")] * 64)
            time.sleep(0.005)
    print("all steps")

threading.Thread(target=on).start()
"""


def test_a_thread_goes_on_when_the_main_one_ends(painn: Path, tmp_path: Path) -> None:
    """What Python ends at the end of the main thread is nothing of a session's."""
    (path,) = export_engines(painn, tmp_path, engines=["fused"], structures=[students.water()], device="cpu")
    done = subprocess.run([sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, check=False)
    assert done.stdout == "all steps\n", done.stderr
