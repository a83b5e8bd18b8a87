import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from painn_deploy.export.errors import BundleError, OutputError
from painn_deploy.export.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    MODEL,
    VALIDATION,
    manifest_digest,
    read_bundle,
    write_bundle,
)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / bundle.name))


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
        (lambda b: _edit(b, format_version=FORMAT_VERSION + 1), r"format 2.*reads up to 1.*Upgrade"),
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
    files = {MODEL: b"new"}
    with pytest.raises(OutputError, match="exists.*--overwrite"):
        write_bundle(copy, read.manifest, files)
    assert read_bundle(copy).sha256 == read.sha256
    written = write_bundle(copy, dataclasses.replace(read.manifest, cutoff=5.0), files, overwrite=True)
    assert (written.manifest.cutoff, written.file(MODEL)) == (5.0, b"new")
    (tmp_path / "precious").mkdir()
    with pytest.raises(OutputError, match="not a bundle"):
        write_bundle(tmp_path / "precious", read.manifest, files, overwrite=True)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_folder_that_cannot_be_written(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    read = read_bundle(bundle)
    with pytest.raises(OutputError, match="Cannot write"):
        write_bundle(tmp_path / "file" / "x.engine", read.manifest, {MODEL: b"x"})


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
        write_bundle(tmp_path / "x.engine", read.manifest, {MODEL: b"x", VALIDATION: b"y"})
    assert list(tmp_path.iterdir()) == []
