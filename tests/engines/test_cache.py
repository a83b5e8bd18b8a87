"""The engine cache, and all else that is kept between processes: nobody else's files are used or written."""

import hashlib
import json
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from painn_deploy.engines import cache, kept
from painn_deploy.engines.backend import BuildOptions, BuiltEngine
from painn_deploy.engines.cache import build_cached, cache_key
from painn_deploy.engines.kept import cache_folder, keep
from painn_deploy.engines.onnxruntime.backend import OnnxRuntimeBackend
from painn_deploy.engines.profiles import Profile
from painn_deploy.export.errors import BundleError, OutputError, ShapeError
from painn_deploy.export.parsing import UnreadableError
from painn_deploy.export.progress import Tell, silent
from painn_deploy.export.reading import check_owned

MODEL = b"\x3a\0"  # an ONNX file with an empty graph
CODE = b"machine code"
PROFILE = Profile((1, 2, 3), (1, 2, 3))


class Builder(OnnxRuntimeBackend):
    """Counts what it builds."""

    def __init__(self) -> None:
        self.built = 0

    def build(self, model: bytes, options: BuildOptions, tell: Tell = silent) -> BuiltEngine:
        self.built += 1
        return BuiltEngine({"model.plan": CODE}, ("86",), (PROFILE,), ("a warning",), tf32=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAINN_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "_warned", set())
    return tmp_path / "cache"


def entry(folder: Path, backend: Builder) -> Path:
    build_cached(backend, MODEL, BuildOptions())
    path = folder / "engines" / cache_key(backend, MODEL, BuildOptions())
    assert path.is_dir()
    return path


def test_what_is_kept_is_private_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0o002)
    try:
        backend = Builder()
        path = entry(folder, backend)
    finally:
        os.umask(before)
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in (folder, path.parent, path, path / "model.plan")}
    assert list(modes.values()) == [0o700, 0o700, 0o700, 0o600]
    found, before_ = build_cached(backend, MODEL, BuildOptions())
    assert (found, before_, backend.built) == (Builder().build(MODEL, BuildOptions()), True, 1)


def forged(path: Path, **changes: object) -> None:
    """As somebody would who hashes anew."""
    meta = json.loads((path / cache.META).read_text()) | changes
    (path / cache.META).write_text(json.dumps(meta))


def linked(path: Path, target: str) -> None:
    (path / "model.plan").unlink()
    (path / "model.plan").symlink_to(target)


def with_fifo(path: Path, name: str) -> None:
    (path / name).unlink()
    os.mkfifo(path / name)


def sparse(path: Path, name: str) -> None:
    with (path / name).open("wb") as file:
        file.truncate(12 * 2**30)


SHA = hashlib.sha256(CODE).hexdigest()
SPOILT: dict[str, Callable[[Path], object]] = {
    "deep": lambda p: (p / cache.META).write_text('{"files": ' + "[" * 100_000),
    "deep but whole": lambda p: (p / cache.META).write_text('{"files": ' + "[" * 900 + "]" * 900 + "}"),
    "a number of 5,000 digits": lambda p: (p / cache.META).write_text('{"files": ' + "1" * 5000 + "}"),
    "no object": lambda p: (p / cache.META).write_text("[]"),
    "not text": lambda p: (p / cache.META).write_bytes(b"\xff\xfe"),
    "files []": lambda p: forged(p, files=[]),
    "files null": lambda p: forged(p, files=None),
    "no files": lambda p: forged(p, files={}),
    "hash of another kind": lambda p: forged(p, files={"model.plan": 5}),
    "profiles [5]": lambda p: forged(p, profiles=[5]),
    "profiles null": lambda p: forged(p, profiles=None),
    "a falling profile": lambda p: forged(p, profiles=[{"atoms": [3, 2, 1], "slots": [1, 2, 3]}]),
    "a profile of floats": lambda p: forged(p, profiles=[{"atoms": [1.0, 2.0, 3.0], "slots": [1, 2, 3]}]),
    "a profile without end": lambda p: forged(p, profiles=[{"atoms": [1, 2, float("inf")], "slots": [1, 2, 3]}]),
    "bound_to a number": lambda p: forged(p, bound_to=5),
    "bound_to numbers": lambda p: forged(p, bound_to=[5]),
    "bound_to nothing": lambda p: forged(p, bound_to=[]),
    "warnings null": lambda p: forged(p, warnings=None),
    "tf32 a text": lambda p: forged(p, tf32="no"),
    "a pipe": lambda p: with_fifo(p, "model.plan"),
    "a pipe for the list": lambda p: with_fifo(p, cache.META),
    "a device": lambda p: linked(p, "/dev/zero"),
    "a file of holes": lambda p: sparse(p, "model.plan"),
    "a list of holes": lambda p: sparse(p, cache.META),
    "altered": lambda p: (p / "model.plan").write_bytes(b"other"),
    "a file that the group can write": lambda p: (p / "model.plan").chmod(0o664),
    "a list that all can write": lambda p: (p / cache.META).chmod(0o666),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_f13_a_spoilt_entry_is_a_miss(folder: Path, spoil: Callable[[Path], object]) -> None:
    backend = Builder()
    path = entry(folder, backend)
    spoil(path)
    found, before = build_cached(backend, MODEL, BuildOptions())
    assert (found.files, before, backend.built) == ({"model.plan": CODE}, False, 2)
    assert build_cached(backend, MODEL, BuildOptions())[1], "it was built again, and is whole now"


@pytest.mark.parametrize("name", ["../pwn", "/pwn", "a/b", "model.onnx", "manifest.json", cache.META, ".x", "a\0"])
def test_f13_a_name_that_leads_out_of_an_entry_is_a_miss(folder: Path, name: str) -> None:
    backend = Builder()
    path = entry(folder, backend)
    (path.parent / "pwn").write_bytes(CODE)
    forged(path, files={name: SHA})
    assert not build_cached(backend, MODEL, BuildOptions())[1]


def opened_to_all(folder: Path) -> Path:
    folder.chmod(0o777)
    return folder


def opened_to_the_group(folder: Path) -> Path:
    (folder / "engines").chmod(0o770)
    return folder / "engines"


def sticky(folder: Path) -> Path:
    folder.chmod(0o1777)
    return folder


@pytest.mark.parametrize("opened", [opened_to_all, opened_to_the_group, sticky])
def test_f13_a_cache_that_others_can_write_is_neither_used_nor_written(
    folder: Path, opened: Callable[[Path], Path]
) -> None:
    backend = Builder()
    path = entry(folder, backend)
    where = opened(folder)
    with pytest.warns(UserWarning, match=rf"{where} can be written by other users.*chmod -R go-w {where}`") as told:
        assert not build_cached(backend, MODEL, BuildOptions())[1]
    assert [Path(each.filename).name for each in told] == [Path(__file__).name], "it points at who called"
    content = {p.name: p.stat().st_mtime_ns for p in path.iterdir()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once
        assert not build_cached(backend, MODEL, BuildOptions())[1]
    assert {p.name: p.stat().st_mtime_ns for p in path.iterdir()} == content
    where.chmod(0o700)
    assert build_cached(backend, MODEL, BuildOptions())[1]


def test_f13_one_folder_that_others_can_write_leaves_the_rest_of_the_cache(folder: Path) -> None:
    path = entry(folder, Builder())
    path.parent.chmod(0o775)
    remembered = folder / "batch-x.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep(remembered, b"{}")
        assert kept.kept(remembered, 100) == b"{}"
    with pytest.warns(UserWarning, match=rf"{path.parent} can be .*775\), so that nothing in it is used or written"):
        assert kept.kept(path / "model.plan", 100) is None


def test_a_cache_may_be_named_from_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PAINN_DEPLOY_CACHE", "~/x")
    assert cache_folder() == tmp_path / "x"
    monkeypatch.delenv("PAINN_DEPLOY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/y")
    assert cache_folder() == tmp_path / "y" / "painn-deploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "painn-deploy"
    monkeypatch.setenv("PAINN_DEPLOY_CACHE", "~no-such-user/x")
    with pytest.raises(OutputError, match="Set PAINN_DEPLOY_CACHE"):
        cache_folder()


def test_f13_what_another_user_owns_is_not_used(tmp_path: Path) -> None:
    theirs = os.stat_result((0o100600, 1, 1, 1, 4_242_424, 1, 1, 1, 1, 1))
    with pytest.raises(UnreadableError, match="belongs to another user"):
        check_owned(tmp_path, theirs)
    for uid in (0, os.geteuid()):
        check_owned(tmp_path, os.stat_result((0o100600, 1, 1, 1, uid, 1, 1, 1, 1, 1)))


def test_f13_a_link_inside_the_cache_is_not_followed(folder: Path, tmp_path: Path) -> None:
    backend = Builder()
    path = entry(folder, backend)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not build_cached(backend, MODEL, BuildOptions())[1]


def test_f18_no_engine_is_built_of_a_graph_that_is_not_whole_in_itself(folder: Path) -> None:
    with pytest.raises(BundleError, match="no ONNX"):
        build_cached(Builder(), b"no graph", BuildOptions())


@pytest.mark.parametrize("values", [5, None, [], {}, {"atoms": 5, "slots": [1, 2, 3]}, {"atoms": [1, 2], "slots": []}])
def test_f17_what_is_no_profile_is_named(values: object) -> None:
    with pytest.raises(ShapeError, match="is not a shape profile"):
        Profile.from_mapping(values)
