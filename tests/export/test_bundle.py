import copy as copying
import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from painn_deploy.export import manifest as manifest_module
from painn_deploy.export.bundle import Bundle, read_bundle, write_bundle
from painn_deploy.export.errors import BundleError, OutputError
from painn_deploy.export.manifest import FORMAT_VERSION, MANIFEST, MODEL, VALIDATION, manifest_digest
from painn_deploy.runtime import PaiNNCalculator
from tests import students

MEBIBYTE = 2**20


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / bundle.name))


def model(note: bytes = b"") -> bytes:
    """An ONNX file with an empty graph, and a note in it."""
    sizes = bytes((len(note) >> 7 * place & 0x7F) | 0x80 for place in range(4)) + b"\0"
    return b"".join((b"\x3a\0\x32", sizes, note))


def _edit(bundle: Path, **changes: object) -> None:
    """Change a manifest as somebody would who signs it anew."""
    manifest = json.loads((bundle / MANIFEST).read_text()) | changes
    manifest = {k: v for k, v in manifest.items() if v is not ...}
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"manifest_sha256": manifest_digest(manifest)}))


def _alter(bundle: Path, **changes: object) -> None:
    """Change a manifest and leave the rest as it is."""
    (bundle / MANIFEST).write_text(json.dumps(json.loads((bundle / MANIFEST).read_text()) | changes))


def test_a_bundle_says_what_it_is(bundle: Path, painn: Path) -> None:
    read = read_bundle(bundle)
    manifest = json.loads((bundle / MANIFEST).read_text())
    for key in [
        "format_version",
        "architecture",
        "checkpoint_sha256",
        "cutoff",
        "species",
        "units",
        "engine",
        "engine_version",
        "precision",
        "compute_capability",
        "radial_table",
        "profiles",
        "files",
        "built_at",
        "built_with",
    ]:
        assert key in manifest
    assert bundle.name == "painn-onnxruntime-fp32.engine"
    assert set(manifest["files"]) == {MODEL, VALIDATION} == {p.name for p in bundle.iterdir()} - {MANIFEST}
    assert read.manifest.bound_to == read.manifest.compute_capability == ()
    assert read.manifest.cutoff == 4.0
    assert not read.manifest.species_verified
    errors = json.loads(read.file(VALIDATION))
    assert 0 < errors["force_rmse"] < 1e-5
    assert errors["structures"] == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / MODEL).unlink(), f"lacks {MODEL}"),
        (lambda b: (b / MODEL).write_bytes((b / MODEL).read_bytes()[:-1] + b"x"), "altered after export"),
        (lambda b: (b / VALIDATION).write_text("{}"), "altered after export"),
        (lambda b: (b / "extra.plan").write_bytes(b"code"), r"does not list: extra\.plan"),
        (lambda b: (b / MANIFEST).unlink(), r"not a bundle.*painn-deploy export"),
        (lambda b: (b / MANIFEST).write_text("{"), "not JSON"),
        (lambda b: (b / MANIFEST).write_bytes(b"\xff\xfe"), "not text"),
        (lambda b: (b / MANIFEST).write_text("[]"), "no JSON object"),
        (lambda b: _edit(b, format_version=FORMAT_VERSION + 1), r"format 4.*reads up to 3.*Upgrade"),
        (lambda b: _edit(b, format_version=...), "no format_version"),
        (lambda b: _edit(b, cutoff=...), "lacks cutoff"),
        (lambda b: _alter(b, cutoff=6.0), "manifest.json was altered after export"),
        (lambda b: _alter(b, atomic_references=[1.0] * 19), "manifest.json was altered after export"),
        (lambda b: _alter(b, precision="int8"), "manifest.json was altered after export"),
        (lambda b: (b / MANIFEST).write_text("[" * 100_000), "not JSON"),
        (lambda b: _edit(b, atomic_references=[float("inf")] * 19), "makes no sense"),
        (lambda b: _edit(b, cutoff=-1), "makes no sense"),
        (lambda b: _edit(b, species=[0]), "makes no sense"),
        (lambda b: _edit(b, precision="fp8"), "makes no sense"),
        (lambda b: _edit(b, units={"energy": "kcal/mol"}), "units"),
        (lambda b: _edit(b, files={"../../secret": "0"}), "not inside it|does not list"),
    ],
)
def test_a_damaged_bundle_is_refused(copy: Path, damage: object, message: str) -> None:
    damage(copy)  # type: ignore[operator]
    with pytest.raises(BundleError, match=message):
        read_bundle(copy)


def test_a_file_that_changes_after_it_was_read_is_noticed(copy: Path) -> None:
    read = read_bundle(copy)
    (copy / MODEL).write_bytes(b"other")
    with pytest.raises(BundleError, match="altered"):
        read.file(MODEL)
    with pytest.raises(BundleError, match=r"lists no model\.plan"):
        read.file("model.plan")


def test_nothing_is_replaced_without_leave(copy: Path, tmp_path: Path) -> None:
    read = read_bundle(copy)
    files = {MODEL: model(b"new")}
    with pytest.raises(OutputError, match="exists.*--overwrite"):
        write_bundle(copy, read.manifest, files)
    assert read_bundle(copy).sha256 == read.sha256
    written = write_bundle(copy, dataclasses.replace(read.manifest, cutoff=5.0), files, overwrite=True)
    assert (written.manifest.cutoff, written.file(MODEL)) == (5.0, model(b"new"))
    (tmp_path / "precious").mkdir()
    with pytest.raises(OutputError, match="not a bundle"):
        write_bundle(tmp_path / "precious", read.manifest, files, overwrite=True)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_folder_that_cannot_be_written(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    read = read_bundle(bundle)
    with pytest.raises(OutputError, match="Cannot write"):
        write_bundle(tmp_path / "file" / "x.engine", read.manifest, {MODEL: model()})


def test_a_write_that_fails_half_way_leaves_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = read_bundle(bundle), Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == VALIDATION:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"No space left.*Nothing was left behind"):
        write_bundle(tmp_path / "x.engine", read.manifest, {MODEL: model(), VALIDATION: b"y"})
    assert list(tmp_path.iterdir()) == []


def contents(bundle: Path) -> dict[str, bytes]:
    return {name: (bundle / name).read_bytes() for name in (MODEL, VALIDATION)}


def test_what_users_import_from_the_manifest_s_module_is_there() -> None:
    assert (manifest_module.read_bundle, manifest_module.write_bundle) == (read_bundle, write_bundle)
    assert manifest_module.Bundle is Bundle
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        manifest_module.nothing  # noqa: B018


def test_a_bundle_in_memory_is_the_one_that_is_written(bundle: Path, tmp_path: Path) -> None:
    read = read_bundle(bundle)
    made = Bundle.in_memory(read.manifest, contents(bundle))
    assert (made.path, made.sha256, made.manifest) == (None, read.sha256, read.manifest)
    written = made.write(tmp_path / "x.engine")
    again = read_bundle(tmp_path / "x.engine")
    assert written.path == again.path == tmp_path / "x.engine"
    assert written.sha256 == again.sha256 == made.sha256
    assert {name: written.file(name) for name in (MODEL, VALIDATION)} == contents(bundle)
    assert (tmp_path / "x.engine" / MANIFEST).read_bytes() == (bundle / MANIFEST).read_bytes()


def test_one_more_file_in_memory(bundle: Path) -> None:
    given = contents(bundle)
    made = Bundle.in_memory(read_bundle(bundle).manifest, {MODEL: given[MODEL]})
    more = made.with_file(VALIDATION, given[VALIDATION])
    assert (list(made.manifest.files), list(more.manifest.files)) == ([MODEL], [MODEL, VALIDATION])
    assert more.sha256 == read_bundle(bundle).sha256 != made.sha256
    other = more.with_file(VALIDATION, b"{}")
    assert (other.file(VALIDATION), more.file(VALIDATION)) == (b"{}", given[VALIDATION])
    assert other.manifest.files[VALIDATION] == hashlib.sha256(b"{}").hexdigest()
    with pytest.raises(BundleError, match=r"a bundle in memory lists no validation\.json"):
        made.file(VALIDATION)


@pytest.mark.parametrize("name", ["../secret", "a/b", MANIFEST])
def test_a_name_that_is_outside_a_bundle_is_none_of_its_files(bundle: Path, name: str) -> None:
    made = Bundle.in_memory(read_bundle(bundle).manifest, {MODEL: model()})
    with pytest.raises(BundleError, match="not inside it"):
        Bundle.in_memory(made.manifest, {name: b""})
    with pytest.raises(BundleError, match="not inside it"):
        made.with_file(name, b"")


def test_nonsense_is_refused_before_it_is_written(bundle: Path, tmp_path: Path) -> None:
    manifest = dataclasses.replace(read_bundle(bundle).manifest, cutoff=float("inf"))
    with pytest.raises(BundleError, match="cutoff holds a value that makes no sense"):
        write_bundle(tmp_path / "x.engine", manifest, {MODEL: model()})
    assert list(tmp_path.iterdir()) == []


def test_a_calculator_runs_a_bundle_in_memory_and_takes_it_along(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = students.water()
    with PaiNNCalculator(bundle) as calculator:
        want = calculator.calculate_batch([atoms])[0]["forces"]
    made = Bundle.in_memory(read_bundle(bundle).manifest, {MODEL: contents(bundle)[MODEL]})
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"read {path}"))
    with PaiNNCalculator(made, device="cpu") as calculator:
        for each in (calculator, copying.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
            np.testing.assert_array_equal(each.calculate_batch([atoms])[0]["forces"], want)
            assert each.engine_info["bundle_sha256"] == made.sha256


def test_a_calculator_on_an_opened_bundle_is_copied_by_its_path(bundle: Path, copy: Path) -> None:
    with PaiNNCalculator(read_bundle(copy)) as calculator:
        assert len(pickle.dumps(calculator)) < 1000
        shutil.rmtree(copy)
        with pytest.raises(BundleError, match="not a bundle"):
            copying.deepcopy(calculator)


def test_each_file_is_read_and_hashed_once_until_it_is_asked_for_again(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, hashed, sha256 = (copy / MODEL).read_bytes(), [], hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda content: hashed.append(content) or sha256(content))
    read = read_bundle(copy)
    assert read.file(MODEL) == model
    assert hashed.count(model) == 1
    assert read.file(MODEL) == model
    assert hashed.count(model) == 2, "it was handed over, and is read and checked again"
    (copy / MODEL).write_bytes(b"other")
    with pytest.raises(BundleError, match="altered"):
        read.file(MODEL)


def test_what_is_handed_over_was_checked_whatever_lies_there_now(copy: Path) -> None:
    """A file that is replaced within the time that a stamp tells apart gives what was checked, or an error."""
    read, model = read_bundle(copy), (copy / MODEL).read_bytes()
    status = (copy / MODEL).stat()
    other = bytearray(model)
    other[len(other) // 2] ^= 1
    with (copy / MODEL).open("r+b") as file:
        file.write(other)
    os.utime(copy / MODEL, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read.file(MODEL) == model
    with pytest.raises(BundleError, match="altered"):
        read.file(MODEL)
    (copy / VALIDATION).unlink()
    with pytest.raises(BundleError, match=f"lacks {VALIDATION}"):
        read.file(VALIDATION)


def test_no_content_is_held_twice(bundle: Path, tmp_path: Path) -> None:
    manifest, big = read_bundle(bundle).manifest, model(bytes(16 * MEBIBYTE))
    path = tmp_path / "x.engine"
    tracemalloc.start()
    try:
        made = Bundle.in_memory(manifest, {MODEL: big})
        written = made.with_file(VALIDATION, b"{}").write(path)
        assert tracemalloc.get_traced_memory()[1] < MEBIBYTE, "what was given is held, and no copy of it"
        del made, big
        content = written.file(MODEL)
        assert tracemalloc.get_traced_memory()[0] < 17 * MEBIBYTE
        del content
        assert tracemalloc.get_traced_memory()[0] < MEBIBYTE, "a bundle that was written holds nothing"
        read = read_bundle(path)
        content = read.file(MODEL)
        assert tracemalloc.get_traced_memory()[1] < 17 * MEBIBYTE
        del content
        assert tracemalloc.get_traced_memory()[0] < MEBIBYTE, "what was handed over is not held"
    finally:
        tracemalloc.stop()
