"""An engine of `inductor`, which takes a minute to compile, once for all tests of it."""

import os
from pathlib import Path

import pytest

from painn_deploy.engines.inductor.compile import SEVERAL
from painn_deploy.scripts import export_engines
from tests import students


@pytest.fixture(scope="session")
def compiled(painn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As on a machine of many cores: one package is compiled here, one in a process beside this one."""
    folder = tmp_path_factory.mktemp("inductor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: SEVERAL)
        (path,) = export_engines(painn, folder, engines=["inductor"], structures=[students.water()], device="cpu")
    return path
