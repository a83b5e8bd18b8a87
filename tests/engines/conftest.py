"""An engine of `inductor`, which takes a minute to compile, once for all tests of it; and a GPU of host memory."""

import os
from pathlib import Path

import pytest

from painn_deploy.engines.fused import gpu as fused_gpu
from painn_deploy.engines.gpu import lane, session
from painn_deploy.engines.gpu.device_molecules import PairsKernel
from painn_deploy.engines.gpu.device_neighbours import FindingKernel, PairingKernel
from painn_deploy.engines.gpu.device_positions import DisplacementKernel
from painn_deploy.engines.inductor.compile import SEVERAL
from painn_deploy.engines.tensorrt import session as tensorrt_session
from painn_deploy.scripts import export_engines
from tests import students

from . import emulated_gpu


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> emulated_gpu.EmulatedCuda:
    """A GPU of host memory in place of the real one, for sessions of every engine."""
    made = emulated_gpu.EmulatedCuda()
    for module in (session, tensorrt_session, fused_gpu):
        monkeypatch.setattr(module, "runtime", lambda: made)
    monkeypatch.setattr(lane, "compute_capability", lambda index: "86")
    for kind in (DisplacementKernel, PairsKernel, FindingKernel, PairingKernel):
        monkeypatch.setattr(lane, kind.__name__, emulated_gpu.device_kernel(made, kind))
    return made


@pytest.fixture(scope="session")
def compiled(painn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As on a machine of many cores: one package is compiled here, one in a process beside this one."""
    folder = tmp_path_factory.mktemp("inductor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: SEVERAL)
        (path,) = export_engines(painn, folder, engines=["inductor"], structures=[students.water()], device="cpu")
    return path
