"""Altered bundles and checkpoints, with seeds: each ends in an error of ours, or is what it was in all that counts."""

import dataclasses
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import BundleError, CheckpointError
from painn_deploy.export.manifest import MODEL
from painn_deploy.runtime.familiarity import Judged
from painn_deploy.scripts.commands.inspection import print_bundle
from tests import students
from tests.export.hostile import altered_bundles, altered_checkpoints

GIBIBYTE = 2**30


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """What would take all memory fails in this test, and not the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 5 * GIBIBYTE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("seed", range(4))
def test_f17_f18_altered_bundles_end_in_our_errors(bundle: Path, tmp_path: Path, seed: int) -> None:
    right = read_bundle(bundle)
    model, refused = right.file(MODEL), 0
    quiet = Console(quiet=True)
    for label, path in altered_bundles(bundle, tmp_path, 100, seed):
        try:
            read = read_bundle(path)
            print_bundle(path, quiet)
            Judged.in_bundle(read)
        except BundleError:
            refused += 1
        except BaseException as error:
            pytest.fail(f"{label}: {type(error).__name__}: {error}")
        else:
            told = {field.name for field in dataclasses.fields(read.manifest)}
            free = {"built_at", "built_with", "engine", "engine_version", "bound_to", "declared", "species_verified"}
            free |= {"profiles", "tf32", "files", "manifest_sha256", "configuration", "checkpoint_sha256"}
            for name in told - free:  # what decides a result
                assert getattr(read.manifest, name) == getattr(right.manifest, name), label
            assert read.file(MODEL) == model or "hashed anew" in label, label
    assert refused > 50


@pytest.mark.parametrize("seed", range(2))
def test_f14_f15_altered_checkpoints_end_in_our_errors(tmp_path: Path, seed: int) -> None:
    (tmp_path / "right").mkdir()
    (tmp_path / "altered").mkdir()
    right = students.write(tmp_path / "right", "painn")
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for label, path in altered_checkpoints(right, tmp_path / "altered", 100, seed):
            try:
                load_student(path)
            except CheckpointError:
                refused += 1
            except BaseException as error:
                pytest.fail(f"{label}: {type(error).__name__}: {error}")
    assert refused > 50
