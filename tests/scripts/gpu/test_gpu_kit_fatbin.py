"""A library with kernels for many GPUs is reduced to one, or refused in words."""

import re
import struct
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.scripts.kit.fatbin import images, reduce_library
from painn_deploy.scripts.kit.onnxruntime_wheel import PROVIDER, fitting_wheel
from painn_deploy.scripts.kit.portions import write_portions

from .gpu_kit_parts import PYTHON, container, digest, elf, image, library, make_gpu_wheel, make_wheel, take, values


@pytest.fixture
def zstd() -> ModuleType:
    module: ModuleType = pytest.importorskip("zstandard")
    return module


def code_of(library: bytes, arch: int) -> list[bool]:
    """Whether the code of each image for an architecture is still there."""
    return [any(library[i.start : i.start + i.size]) for i in images(library) if i.arch == arch]


def test_one_architecture_stays_and_nothing_moves() -> None:
    whole = library(
        container(image(80, "gather"), image(90, "gather"), image(120, "gather")),
        container(image(90, "_ZN9attentionE")),
        container(image(75, "reduce"), image(86, "reduce")),
        padding=24,
    )
    reduced = reduce_library(whole, 90)
    assert len(reduced.library) == len(whole)
    assert (reduced.kept, reduced.removed, reduced.packed) == (2, {75: 1, 80: 1, 86: 1, 120: 1}, 0)
    assert list(images(reduced.library)) == list(images(whole)), "every header stands"
    assert [code_of(reduced.library, arch) for arch in (75, 80, 86, 90, 120)] == [[False]] * 3 + [[True] * 2, [False]]
    changed = {i for i, (a, b) in enumerate(zip(whole, reduced.library, strict=True)) if a != b}
    code = {b for i in images(whole) if i.arch != 90 for b in range(i.start, i.start + i.size)}
    assert changed <= code, "nothing but the code of others was touched"


def test_a_gpu_takes_the_nearest_of_its_generation() -> None:
    whole = library(
        container(image(80, "a"), image(86, "a"), image(90, "a")),
        container(image(80, "b"), image(90, "b")),
        container(image(75, "c", kind=1), image(90, "c")),
    )
    reduced = reduce_library(whole, 86)
    assert code_of(reduced.library, 86) == [True]
    assert code_of(reduced.library, 80) == [False, True]
    assert code_of(reduced.library, 75) == [True], "PTX, where there is nothing else"
    assert code_of(reduced.library, 90) == [False] * 3


def test_kernels_of_language_models_go_and_others_stay(zstd: ModuleType) -> None:
    whole = library(
        container(image(90, "gather", "attention_x", zstd=zstd)),
        container(image(90, "Flash_fwd", "my_attention", zstd=zstd)),
        container(image(90, "attention_plain")),
        container(image(90, zstd=zstd)),
    )
    reduced = reduce_library(whole, 90, unused=re.compile(b"attention|flash", re.IGNORECASE))
    assert code_of(reduced.library, 90) == [True, False, False, True], "without names nothing is known"
    assert reduced.removed == {90: 2}
    assert 0 < reduced.packed < len(whole)
    with pytest.raises(EngineError, match="nothing would be left"):
        reduce_library(library(container(image(90, "attention"))), 90, unused=re.compile(b"attention"))


def test_zstandard_is_asked_for_by_name(zstd: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = library(container(image(90, "a", zstd=zstd)))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert reduce_library(whole, 90).kept == 1, "one architecture can be kept without it"
    with pytest.raises(EngineUnavailableError, match="pip install zstandard"):
        reduce_library(whole, 90, unused=re.compile(b"attention"))


def patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def test_what_is_not_understood_is_refused(zstd: ModuleType) -> None:
    whole = library(container(image(80, "a"), image(90, "a")), container(image(90, "b", zstd=zstd)))
    first = next(iter(images(whole)))
    begin = first.start - 64 - 16  # of the container
    cases = {
        "not a 64-bit little-endian ELF file": b"MZ" + whole[2:],
        "its sections are not there": whole[:1000],
        "holds no kernels": elf({".text": b"code"}),
        "holds no container": elf({".nv_fatbin": bytes(64)}),
        "begins with 0xdeadbeef": patched(whole, begin, struct.pack("<I", 0xDEADBEEF)),
        "is of version 9": patched(whole, begin + 4, struct.pack("<H", 9)),
        "container 0 of .nv_fatbin, at byte .* is cut off": patched(whole, begin + 8, struct.pack("<Q", 10**9)),
        "larger than its container": patched(whole, first.start - 56, struct.pack("<Q", 10**9)),
        "of the unknown kind 7": patched(whole, first.start - 64, struct.pack("<H", 7)),
        "cut off: its sections are not there": patched(whole, 0x28, struct.pack("<Q", 2**63 + 1)),
        "which is no code": patched(whole, list(images(whole))[1].start, b"junk"),
    }
    for message, broken in cases.items():
        with pytest.raises(EngineError, match=message):
            reduce_library(broken, 90)
    with pytest.raises(EngineError, match=r"no code for the GPU architecture 100, only for 80, 90"):
        reduce_library(whole, 100)
    last = list(images(whole))[-1]
    damaged = patched(whole, last.start + 10, bytes(8))
    with pytest.raises(EngineError, match="damaged|not as long"):
        reduce_library(damaged, 90, unused=re.compile(b"attention"))


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_damaged_library_is_an_error_in_words_or_reduced_by_code_alone(data: st.DataObject) -> None:
    whole = library(container(image(80, "a"), image(90, "a")), container(image(90, "b")))
    at = data.draw(st.integers(0, len(whole) - 1))
    broken = patched(whole, at, bytes([data.draw(st.integers(0, 255))]))[: data.draw(st.integers(at, len(whole)))]
    try:
        reduced = reduce_library(broken, 90)
    except EngineError:
        return
    code = {b for i in images(broken) for b in range(i.start, i.start + i.size)}
    assert {i for i, (a, b) in enumerate(zip(broken, reduced.library, strict=True)) if a != b} <= code


@pytest.fixture
def gpu_wheel(tmp_path: Path, zstd: ModuleType) -> Path:
    return make_gpu_wheel(tmp_path, zstd)


def test_a_wheel_is_reduced_only_as_far_as_it_must_be(gpu_wheel: Path, tmp_path: Path) -> None:
    told: list[str] = []
    assert fitting_wheel(gpu_wheel, 90, 10**6, tmp_path / "r", told.append).path == gpu_wheel
    assert told == []
    sizes = [gpu_wheel.stat().st_size]
    for limit, build, sentence in ((sizes[0] - 1, "1sm90", "and for no other. "), (1, "1sm90ours", "language models")):
        made = fitting_wheel(gpu_wheel, 90, limit, tmp_path / "r", told.append)
        assert made.path.name == f"onnxruntime_gpu-1.31.1-{build}-py3-none-any.whl"
        assert sentence in made.removed
        assert "Images overwritten with zeros: 2 for 80" in made.removed
        sizes.append(made.path.stat().st_size)
        before = made.path.stat().st_mtime_ns
        assert fitting_wheel(gpu_wheel, 90, limit, tmp_path / "r").path.stat().st_mtime_ns == before, "it is kept"
    assert sizes[0] > sizes[1] > sizes[2]
    assert len(told) == 2


def test_a_reduced_wheel_installs_and_its_record_holds(gpu_wheel: Path, tmp_path: Path) -> None:
    made = fitting_wheel(gpu_wheel, 90, 1, tmp_path / "r")
    with zipfile.ZipFile(made.path) as wheel:
        info = "onnxruntime_gpu-1.31.1.dist-info"
        assert wheel.getinfo(PROVIDER).compress_type == zipfile.ZIP_LZMA
        lines = [line.split(",") for line in wheel.read(f"{info}/RECORD").decode().splitlines()]
        assert sorted(line[0] for line in lines) == sorted(wheel.namelist())
        for name, sha256, size in lines:
            content = wheel.read(name)
            assert name == f"{info}/RECORD" or (f"sha256={digest(content)}", str(len(content))) == (sha256, size)
        assert "Build: 1sm90ours" in wheel.read(f"{info}/WHEEL").decode()
        assert wheel.read(f"{info}/REDUCED.txt").decode() == made.removed
    (out := tmp_path / "kit").mkdir()
    write_portions(out, [made.path], 2**18, PYTHON)
    assert take(out / "0", tmp_path / "there").returncode == 0
    assert values(tmp_path / "there", "onnxruntime").startswith("7\n")


def test_a_wheel_without_the_provider_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "onnxruntime_gpu", {"onnxruntime/__init__.py": b""}, version="2")
    with pytest.raises(EngineError, match="holds no onnxruntime/capi/.* Carry it whole: --whole"):
        fitting_wheel(wheel, 90, 1, tmp_path / "r")
