"""What is brought to a GPU machine without a network: portions, the script that takes them, and the command."""

import hashlib
import os
import shutil
import tempfile
import tomllib
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from typer.testing import CliRunner

from painn_deploy.export.errors import OutputError
from painn_deploy.scripts.kit import kit as gpu_kit
from painn_deploy.scripts.kit.download import Downloads
from painn_deploy.scripts.kit.portions import bytes_of, check_output, plan, write_portions
from tests.conftest import ROOT

from .gpu_kit_parts import PYTHON, Shelf, make_gpu_wheel, make_wheel, take, values

# ---- sizes


@pytest.mark.parametrize(
    ("text", "count"), [("56MiB", 56 * 2**20), ("64MB", 64_000_000), ("64 mb", 64_000_000), ("1.5GiB", 3 * 2**29)]
)
def test_sizes(text: str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "56", "MiB", "-1MiB", "0MiB", "56 parsecs", "1e3MB"])
def test_nonsense_is_no_size(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a size such as 56MiB; units: kB, MB, GB, KiB, MiB, GiB"):
        bytes_of(text)


# ---- portions


@given(sizes=st.lists(st.integers(1, 300_000), min_size=1, max_size=12), budget=st.integers(70_000, 400_000))
def test_pieces_are_the_files_in_order_and_no_portion_is_too_large(sizes: list[int], budget: int) -> None:
    files = [(f"file{index}", size) for index, size in enumerate(sizes)]
    portions = plan(files, budget)
    in_order = [piece for pieces in portions for piece in pieces]
    assert list(dict.fromkeys(piece.wheel for piece in in_order)) == [name for name, _ in files]
    for name, size in files:
        own = [piece for piece in in_order if piece.wheel == name]
        assert [piece.start for piece in own] == [sum(p.size for p in own[:i]) for i in range(len(own))]
        assert sum(piece.size for piece in own) == size
        assert [p.number for p in own] == ([None] if own[0].number is None else list(range(len(own))))
    for pieces in portions:
        assert pieces
        assert sum(piece.size + 67 + len(piece.name) for piece in pieces) <= budget


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(1, 300_000), min_size=1, max_size=5), portion=st.integers(80_000, 400_000))
def test_portions_on_disk_give_the_same_bytes(sizes: list[int], portion: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (out := folder / "kit").mkdir()
        contents = {f"w{index}-1-py3-none-any.whl": os.urandom(size) for index, size in enumerate(sizes)}
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        written = write_portions(out, [folder / name for name in contents], portion, "3.12")
        assert [part.path for part in written] == [out / str(number) for number in range(len(written))]
        joined = dict.fromkeys(contents, b"")
        for part in written:
            assert part.size == sum(file.stat().st_size for file in part.path.iterdir()) <= portion
            for piece in part.pieces:
                joined[piece.wheel] += (part.path / piece.name).read_bytes()
        assert joined == contents
        check_output(out)  # a kit may be replaced


def test_portions_that_hold_nothing_are_refused() -> None:
    with pytest.raises(OutputError, match="Give a larger --portion"):
        plan([("a", 1000)], 50)
    with pytest.raises(OutputError, match=r"a would come in \d+ pieces"):
        plan([("a", 2**30)], 2**16 + 100)


def test_foreign_content_is_left_alone(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "one", {"one.py": b""})
    out = tmp_path / "kit"
    out.mkdir()
    write_portions(out, [wheel], 2**18, PYTHON)
    (out / "0" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds what is no kit: 0"):
        check_output(out)
    (out / "0" / "notes.txt").rename(out / "notes.txt")
    with pytest.raises(OutputError, match=r"holds what is no kit: notes\.txt"):
        check_output(out)


# ---- taking portions on the machine


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three wheels in three portions; two of them share a folder, and the large one is in pieces."""
    folder = tmp_path_factory.mktemp("kit")
    wheels = [
        make_wheel(folder, "small", {"small.py": b"value = 1\n", "shared/one/__init__.py": b"value = 2\n"}),
        make_wheel(folder, "large", {"large/__init__.py": b"value = 3\n", "large/data": os.urandom(450_000)}),
        make_wheel(folder, "last", {"shared/two/__init__.py": b"value = 4\n"}),
    ]
    (out := folder / "gpu-kit").mkdir()
    assert len(write_portions(out, wheels, 200_000, PYTHON)) == 3
    return out


def test_portions_are_taken_in_any_order_and_again(kit: Path, tmp_path: Path) -> None:
    target = tmp_path / "a kit"  # blanks in names are no trouble
    done = take(kit / "2", target)
    assert done.returncode == 0, done.stderr
    assert "large-1.0-py3-none-any.whl: 1 of 3 pieces are here" in done.stdout
    assert "1 of 3 wheels are installed" in done.stdout
    done = take(kit / "0", target)
    assert "2 of 3 wheels are installed" in done.stdout, done.stderr
    assert values(target, "small", "shared.one", "shared.two") == f"1 2 4\n{target}/cache\n"
    assert "No module named 'large'" in values(target, "large")
    again = take(kit / "0", target)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    done = take(kit / "1", target)
    assert "3 of 3 wheels are installed" in done.stdout, done.stderr
    assert values(target, "large", "small", "shared.one", "shared.two").startswith("3 1 2 4\n")
    before = (target / "site" / "large").stat().st_mtime_ns
    assert take(kit / "1", target).returncode == 0
    assert (target / "site" / "large").stat().st_mtime_ns == before, "what is there is not installed again"


def test_the_first_portion_is_usable_alone(kit: Path, tmp_path: Path) -> None:
    assert take(kit / "0", tmp_path / "kit").returncode == 0
    assert values(tmp_path / "kit", "small", "shared.one").startswith("1 2\n")


def test_a_damaged_piece_is_refused_by_name(kit: Path, tmp_path: Path) -> None:
    portion = tmp_path / "1"
    shutil.copytree(kit / "1", portion)
    piece = next(portion.glob("*.whl.0*"))
    whole = piece.read_bytes()
    piece.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    done = take(portion, tmp_path / "kit")
    assert done.returncode == 1
    assert f"{piece} is damaged: its SHA-256 differs. Copy this portion again." in done.stderr
    assert not (tmp_path / "kit").exists(), "nothing of it is taken"
    piece.unlink()
    assert f"{piece} is missing" in take(portion, tmp_path / "kit").stderr
    piece.write_bytes(whole)
    assert take(portion, tmp_path / "kit").returncode == 0


def test_a_piece_that_is_damaged_after_it_was_taken_is_refused_too(kit: Path, tmp_path: Path) -> None:
    for name in "12":
        assert take(kit / name, tmp_path / "kit").returncode == 0
    next((tmp_path / "kit" / "wheels").glob("*/piece.large*")).write_bytes(b"?")
    done = take(kit / "0", tmp_path / "kit")
    assert done.returncode == 1
    assert "large-1.0-py3-none-any.whl is damaged" in done.stderr
    for name in "012":
        done = take(kit / name, tmp_path / "kit")
    assert "3 of 3 wheels are installed" in done.stdout, done.stderr


def test_another_kit_does_not_mix_with_the_first(kit: Path, tmp_path: Path) -> None:
    assert take(kit / "0", tmp_path / "kit").returncode == 0
    (out := tmp_path / "newer").mkdir()
    write_portions(out, [make_wheel(tmp_path, "small", {"small.py": b"value = 5\n"})], 2**18, PYTHON)
    assert "1 of 1 wheels are installed" in take(out / "0", tmp_path / "kit").stdout
    assert values(tmp_path / "kit", "small").startswith("5\n")
    assert "No module named 'shared'" in values(tmp_path / "kit", "shared.one")


def test_another_python_is_refused(kit: Path, tmp_path: Path) -> None:
    other = tmp_path / "0"
    shutil.copytree(kit / "0", other)
    listing = (other / "WHEELS").read_text().replace(f"python {PYTHON}", "python 3.99")
    sums = (
        (other / "SHA256SUMS")
        .read_text()
        .replace(
            hashlib.sha256((other / "WHEELS").read_bytes()).hexdigest(), hashlib.sha256(listing.encode()).hexdigest()
        )
    )
    (other / "WHEELS").write_text(listing)
    (other / "SHA256SUMS").write_text(sums)
    done = take(other, tmp_path / "kit")
    assert done.returncode == 1
    assert "is not Python 3.99, which this kit is for. Set PYTHON" in done.stderr


# ---- the command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    requires = ['torch>=2.9; extra == "export"', "ase", 'onnxruntime-gpu>=1.22; extra == "cuda"']
    requires += ['onnxruntime; extra == "cpu"']
    zstd = pytest.importorskip("zstandard")
    (tmp_path / "shelf").mkdir()
    shelf = Shelf(tmp_path / "shelf")
    own = make_wheel(tmp_path, "painn_deploy", {}, requires=requires, extras=["export", "cuda", "cpu"])
    shelf.add("ase", "3.29.0")
    shelf.add("onnxruntime", "1.31.1")
    make_gpu_wheel(shelf.folder, zstd)
    monkeypatch.setattr(gpu_kit, "own_wheel", lambda *_: own)
    monkeypatch.setattr(Downloads, "wheel", lambda _, name, versions: shelf(name, versions))
    monkeypatch.setattr(gpu_kit, "SMALLEST", 1)
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(gpu_kit.gpu_kit)
    return app


def test_the_command_writes_portions_and_says_what_to_run(command: typer.Typer, tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["--portion", "75kB", "--there", "torch==2.11.0"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    first = [path.name for path in (tmp_path / "gpu-kit/0").iterdir()]
    assert {"painn_deploy-1.0-py3-none-any.whl", "ase-3.29.0-py3-none-any.whl", "take.sh"} <= set(first)
    assert "onnxruntime-1.31.1-py3-none-any.whl" not in first, "onnxruntime-gpu takes its place"
    assert "was reduced from 0.1 MiB to 0.0 MiB" in done.output
    assert "So reduced it ran on an H100. `--whole` carries the whole wheel instead." in done.output
    assert "    bash gpu-kit/0/take.sh\n" in done.output
    assert "&& python3 -m painn_deploy.scripts.gpu_check --output gpu-results --minutes 9\n" in done.output
    assert "torch with its CUDA libraries is never carried" in done.output


def test_a_whole_wheel_comes_in_pieces(command: typer.Typer, tmp_path: Path) -> None:
    options = ["--portion", "75kB", "--there", "torch", "--whole"]
    done = CliRunner().invoke(command, options, catch_exceptions=False)
    portions = sorted(int(path.name) for path in (tmp_path / "gpu-kit").iterdir())
    assert portions == list(range(len(portions)))
    assert len(portions) > 1
    assert f"onnxruntime can be used there after portions 0 to {portions[-1]}." in done.output
    assert f"gpu-kit has {len(portions)} portions" in done.output


def test_without_onnxruntime_gpu_the_gate_is_carried(command: typer.Typer, tmp_path: Path) -> None:
    options = ["--engine", "inductor", "--there", "torch"]
    assert CliRunner().invoke(command, options, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "gpu-kit/0/onnxruntime-1.31.1-py3-none-any.whl").is_file()
    options[-1] = "torch,onnxruntime==1.30.0"
    assert CliRunner().invoke(command, options, catch_exceptions=False).exit_code == 0
    assert not (tmp_path / "gpu-kit/0/onnxruntime-1.31.1-py3-none-any.whl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "tensorrt"], "tensorrt cannot be carried"),
        (["--python", "3.9"], "no Python that painn-deploy runs on"),
        (["--portion", "much"], "is not a size such as 56MiB"),
    ],
)
def test_options_that_make_no_sense(command: typer.Typer, options: list[str], message: str) -> None:
    done = CliRunner().invoke(command, options, env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert message in done.output


def test_what_the_extras_name_is_declared() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*gpu_kit.EXTRAS.values(), "cpu"} <= extras.keys()
    assert any(Requirement(need).name == "onnxruntime-gpu" for need in extras["cuda"])
