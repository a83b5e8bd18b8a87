"""Fixtures. Array shapes in signatures are checked while the tests run."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A GPU is for the tests that are marked so, each in a process of its own; all others run as they do without one.
# Workers of pytest-xdist inherit what was visible before.
VISIBLE = "PAINN_DEPLOY_TEST_VISIBLE_DEVICES"
os.environ.setdefault(VISIBLE, os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from jaxtyping import install_import_hook  # noqa: E402

# before anything of ours is imported: every annotated call is then held against its shapes
install_import_hook(["painn_deploy"], "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from ase import Atoms  # noqa: E402

from painn_deploy.runtime.pairs import compiled  # noqa: E402

from . import peers, students  # noqa: E402
from .export.originals import installed  # noqa: E402

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
REFERENCES = Path(os.environ.get("PAINN_DEPLOY_REFERENCES", ROOT.parent / "shared" / "data"))
REFERENCE_NAMES = ("distiller/original", "distiller/tiny", "schnetpack/painn_128x3")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What was measured on this machine before must not decide what a test sees."""
    os.environ["PAINN_DEPLOY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def references() -> Path:
    """The folder of real weights and float64 references by peers; CI demands it, a stranger's clone may lack it."""
    if not REFERENCES.is_dir():
        if os.environ.get("PAINN_DEPLOY_DEMAND_REFERENCES"):
            pytest.fail(f"no reference data at {REFERENCES}")
        pytest.skip("no reference data; set PAINN_DEPLOY_REFERENCES")
    return REFERENCES


@dataclass(frozen=True)
class Peer:
    """What a peer's own code computed in float64, and of what.

    Attributes:
        student: weights.
        systems: name, structure and results of each.
    """

    student: Path
    systems: list[tuple[str, Atoms, dict[str, np.ndarray]]]


@pytest.fixture(scope="session", params=[*peers.CASES, *REFERENCE_NAMES])
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    """Students that are made here, wherever the tests run; the real ones too where `references` are."""
    name = request.param
    if name in peers.CASES:
        student = peers.write(tmp_path_factory.mktemp("peer"), name)
        return Peer(student, reference_systems(peers.figures(name, student)))
    references = request.getfixturevalue("references")
    systems = reference_systems(references / f"{name}.reference.npz")
    return Peer(references / f"{name}.safetensors", systems)


@pytest.fixture(scope="session", params=["painn", "painn-bessel", "distiller"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random student of each kind, as a file."""
    return students.write(tmp_path_factory.mktemp("checkpoint"), request.param)


@pytest.fixture(scope="session")
def painn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return students.write(tmp_path_factory.mktemp("painn"), "painn")


@pytest.fixture(scope="session")
def bundle(painn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small painn as a bundle."""
    from painn_deploy.scripts import export_engines

    (path,) = export_engines(painn, tmp_path_factory.mktemp("bundle"), structures=[students.water()])
    return path


@pytest.fixture(scope="session")
def schnetpack_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables under which `import schnetpack` works: 40 MB of packages beside this interpreter's torch."""
    return installed.install(installed.SCHNETPACK, tmp_path_factory.mktemp("schnetpack"), installed.SHIM)


def reference_systems(path: Path) -> list[tuple[str, Atoms, dict[str, np.ndarray]]]:
    """Name, structure and results of every system of a reference file."""
    reference = np.load(path)
    systems = []
    for name in sorted({key.split("/")[0] for key in reference.files}):
        want = {key.split("/")[1]: reference[key] for key in reference.files if key.startswith(f"{name}/")}
        atoms = Atoms(want["numbers"], want["positions"], cell=want["cell"], pbc=want["pbc"])
        systems.append((name, atoms, want))
    return systems


@pytest.fixture(scope="module", params=["compiled loops", "array code"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the tests of a module twice: with compiled loops, and as where numba is not installed."""
    if request.param == "compiled loops":
        assert compiled.loops() is not None, compiled.status()
        yield request.param
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "loops", lambda: None)
        yield request.param
