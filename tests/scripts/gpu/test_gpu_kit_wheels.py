"""Which wheels a GPU machine lacks, and where they come from."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version
from rich.console import Console

from painn_deploy.export.errors import EngineUnavailableError, OutputError
from painn_deploy.scripts.kit import download as gpu_kit_download
from painn_deploy.scripts.kit.download import Downloads, own_wheel
from painn_deploy.scripts.kit.wheels import Target, closure, pins, there

from .gpu_kit_parts import Shelf, make_wheel


def test_torch_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="--there names no torch"):
        there("numpy,onnx==1.18.0")
    (tmp_path / "freeze.txt").write_text("numpy==2.4.6\n")
    with pytest.raises(EngineUnavailableError, match=r"freeze\.txt names no torch.*too large to carry"):
        there(str(tmp_path / "freeze.txt"))
    with pytest.raises(EngineUnavailableError, match=r"torch 2\.11\.0\+cpu in --there has no CUDA"):
        there("torch==2.11.0+cpu")
    with pytest.raises(OutputError, match="There is no file gone.txt"):
        there("gone.txt")
    with pytest.raises(OutputError, match=r"--there holds 'torch 2\.11'"):
        there("torch 2.11")


def test_a_freeze_is_read(tmp_path: Path) -> None:
    lines = ["# a comment", "-e /somewhere", "Torch==2.11.0+cu130", "typing_extensions @ file:///x/y.whl", "a==1"]
    (tmp_path / "freeze.txt").write_text("\n".join(lines))
    assert there(str(tmp_path / "freeze.txt")) == {
        "torch": Version("2.11.0+cu130"),
        "typing-extensions": None,
        "a": Version("1"),
    }
    assert there("torch, numpy") == {"torch": None, "numpy": None}
    assert "torch" in there(None)


def test_pins_hold_for_onnxruntime_gpu_too(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("onnxruntime==1.31.1  # why\n\nase==3.29.0\n")
    assert pins(tmp_path / "constraints.txt")[canonicalize_name("onnxruntime-gpu")] == SpecifierSet("==1.31.1")


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    (tmp_path / "shelf").mkdir()
    return Shelf(tmp_path / "shelf")


def carried(
    tmp_path: Path, shelf: Shelf, requires: Sequence[str], have: str, pinned: Mapping[NormalizedName, SpecifierSet] = {}
) -> list[str]:
    root = make_wheel(tmp_path, "root", {}, requires=requires, extras=["fast"])
    found = closure([(root, ["fast"])], Target("3.12"), there(have), pinned, shelf)
    return ["-".join(path.name.split("-")[:2]) for path in found.wheels.values()]


def test_markers_are_the_machine_s(tmp_path: Path, shelf: Shelf) -> None:
    shelf.add("new")
    shelf.add("fast")
    requires = [
        'new; python_version == "3.12" and platform_machine == "x86_64"',
        'old; python_version < "3.12"',
        'windows; sys_platform == "win32"',
        'fast; extra == "fast"',
        'slow; extra == "slow"',
    ]
    assert carried(tmp_path, shelf, requires, "torch") == ["new-1.0", "fast-1.0"]


def test_what_is_there_is_not_carried_nor_followed(tmp_path: Path, shelf: Shelf) -> None:
    shelf.add("ase", "3.29.0", ["numpy>=2", "scipy"])
    shelf.add("scipy", "1.17.0", ["numpy"])
    assert carried(tmp_path, shelf, ["ase", "numpy"], "torch,numpy==2.5") == ["ase-3.29.0", "scipy-1.17.0"]
    assert carried(tmp_path, shelf, ["ase"], "torch,ase") == []


def test_what_is_too_old_is_carried_and_said(tmp_path: Path, shelf: Shelf) -> None:
    shelf.add("typer", "0.29")
    root = make_wheel(tmp_path, "root", {}, requires=["typer>=0.15"])
    found = closure([(root, [])], Target("3.12"), there("torch,typer==0.9"), {}, shelf)
    assert list(found.wheels) == ["typer"]
    assert found.remarks == ["typer 0.9 is there and typer>=0.15 is needed: a newer one is carried and comes first."]


def test_requirements_of_several_hold_together(tmp_path: Path, shelf: Shelf) -> None:
    for version in ("1.0", "2.0", "3.0"):
        shelf.add("common", version)
    shelf.add("other", "1.0", ["common<3"])
    assert carried(tmp_path, shelf, ["common>=1", "other"], "torch") == ["common-2.0", "other-1.0"]
    pinned = {canonicalize_name("common"): SpecifierSet("==1.0")}
    assert carried(tmp_path, shelf, ["common>=1", "other"], "torch", pinned) == ["common-1.0", "other-1.0"]


def test_torch_and_cuda_are_never_carried(tmp_path: Path, shelf: Shelf) -> None:
    root = make_wheel(tmp_path, "root", {}, requires=["torch>=2.9", "nvidia-cudnn-cu13~=9.0"])
    found = closure([(root, [])], Target("3.12"), there("torch==2.11.0"), {}, shelf)
    assert (found.wheels, shelf.asked, found.assumed) == ({}, [], ["nvidia-cudnn-cu13~=9.0"])
    with pytest.raises(EngineUnavailableError, match=r"torch 2\.5\.0 is there, and painn-deploy needs torch>=2\.9"):
        closure([(root, [])], Target("3.12"), there("torch==2.5.0"), {}, shelf)


def test_cuda_bindings_are_left_as_torch_has_them(tmp_path: Path, shelf: Shelf) -> None:
    shelf.add("cuda-bindings", "13.4")
    assert carried(tmp_path, shelf, ["cuda-bindings>=13"], "torch,cuda-bindings==13.0.3") == []
    assert carried(tmp_path, shelf, ["cuda-bindings>=13"], "torch,cuda-bindings==12.9") == ["cuda_bindings-13.4"]


def test_an_extra_may_be_made_of_others(tmp_path: Path, shelf: Shelf) -> None:
    shelf.add("one")
    requires = ['one; extra == "b"', 'root[b]; extra == "fast"']
    assert carried(tmp_path, shelf, requires, "torch") == ["one-1.0"]


def test_what_was_downloaded_is_taken_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kit_download, "_pip", lambda *_: pytest.fail("pip was called"))
    make_wheel(tmp_path, "ase", {}, version="3.29.0")
    make_wheel(tmp_path, "ase", {}, version="3.30.0")
    make_wheel(tmp_path, "ase", {}, version="3.31.0", tag="cp311-cp311-manylinux2014_x86_64")  # for another Python
    downloads = Downloads(tmp_path, Target("3.12"), Console(quiet=True))
    name = canonicalize_name("ase")
    assert downloads.wheel(name, SpecifierSet(">=3")).name == "ase-3.30.0-py3-none-any.whl"
    assert downloads.wheel(name, SpecifierSet("==3.29.0")).name == "ase-3.29.0-py3-none-any.whl"


def test_a_download_that_fails_says_what_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    downloads = Downloads(tmp_path / "cache", Target("3.12"), Console(quiet=True))
    wanted = r"pip could not get nonesuch==1\.0 for Python 3\.12: .*No version was found at all: is the registry"
    with pytest.raises(EngineUnavailableError, match=wanted):
        downloads.wheel(canonicalize_name("nonesuch"), SpecifierSet("==1.0"))
    assert list((tmp_path / "cache").iterdir()) == []
    make_wheel(tmp_path, "one", {})
    assert downloads.wheel(canonicalize_name("one"), SpecifierSet(">=1")).parent == tmp_path / "cache"


def test_our_wheel_holds_nothing_of_an_old_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    (source / "build/lib/thing").mkdir(parents=True)
    (source / "build/lib/thing/stale.py").write_text("")
    (source / "thing/__pycache__").mkdir(parents=True)
    (source / "thing/__init__.py").write_text("")
    (source / "thing/__pycache__/x.pyc").write_text("")
    (source / "README.md").write_text("")
    (source / "LICENSE").write_text("")
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "thing"\nversion = "1"\nreadme = "README.md"\nlicense-files = ["LICENSE"]\n'
        '[tool.setuptools]\npackages = ["thing"]\n[tool.setuptools.package-dir]\n"thing" = "thing"\n'
    )
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip means: no isolation; nothing is to be downloaded
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with zipfile.ZipFile(own_wheel(source, tmp_path, Console(quiet=True))) as wheel:
        names = wheel.namelist()
    assert "thing/__init__.py" in names
    assert not [name for name in names if "stale" in name or "pycache" in name]
    with pytest.raises(OutputError, match="of a clone of painn-deploy"):
        own_wheel(tmp_path, tmp_path, Console(quiet=True))
