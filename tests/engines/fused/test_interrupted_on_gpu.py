"""What interrupts a call on a GPU, as Ctrl-C does, leaves a session that answers as before."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from painn_deploy.engines.fused.gpu import FusedExecutor
from painn_deploy.engines.fused.plan import Plan
from painn_deploy.engines.fused.weights import pack
from painn_deploy.engines.gpu.session import GpuSession
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.fields import GraphOutputs
from tests import students
from tests.engines.emulated_gpu import EmulatedCuda

from .host_kernel import loaded
from .molecules import INFO, matrix, same_bits
from .test_interrupted import Interrupting

FILES = ("lane.py", "session.py", "recordings.py", "executor.py", "arena.py", "cuda.py", "owner.py", "gpu.py")

STRIDE = 5
"""Lines from one that is interrupted to the next; every one of them was once, and a thousand take a minute."""


def was_interrupted(line: int, work: Callable[[], object]) -> bool:
    sys.settrace(Interrupting(line, FILES))
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("formed_there", [False, True])
def test_as_it_is_launched_recorded_and_replayed(cuda: EmulatedCuda, formed_there: bool) -> None:
    """Whether the host has sent a matrix, or molecules whose pairs the device forms."""
    student, water = load_student("student:small", dtype=torch.float64), students.water()
    packed, cutoff = pack(student), student.configuration.cutoff
    kernels, inputs = loaded(cuda, [Plan(packed, 9, 36)]), matrix([water, water], student)
    molecules = np.tile(water.numbers.astype(np.int32), 2), np.tile(water.positions, (2, 1)), np.array([0, 3])

    def opened() -> GpuSession:
        return GpuSession(
            lambda stream, arena: FusedExecutor(packed, kernels, 3, stream, arena), 0, INFO, species=(1, 8)
        )

    def answer(session: GpuSession) -> GraphOutputs:
        return session.run_molecules(*molecules, cutoff).outputs if formed_there else session.run(inputs)

    with opened() as session:
        want = answer(session)
    line, caught = 0, True
    while caught:
        with opened() as session:
            caught = was_interrupted(line, lambda session=session: [answer(session) for _ in range(4)])
            for _ in range(4):
                assert same_bits(answer(session), want), f"interrupted at line {line}"
            assert not session.refused_graphs
        assert cuda.recording is None
        # what was just allocated when nobody had noted it yet is lost, and no more
        assert len(cuda.memory) + len(cuda.graphs) <= 1, f"interrupted at line {line}"
        cuda.memory.clear()
        cuda.graphs.clear()
        line += STRIDE
    assert line > 800
