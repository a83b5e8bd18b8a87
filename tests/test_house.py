"""The repository's own rules: what is packaged, what is public, and what imports what."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from importlib import import_module, metadata
from pathlib import Path

import pytest

from painn_deploy.engines import BACKENDS, get_backend
from painn_deploy.export.moved import MOVED

from . import students
from .conftest import ROOT
from .scripts.commands.pages import blocks_of

ROOT_PACKAGE = "typings/painn_deploy"  # what `import painn_deploy` runs, and links to the rooms
ROOMS = ("export", "engines", "runtime", "calibration", "scripts")  # imports point to the left
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


MOST_MODULES, MOST_LINES = 20, 400  # of a folder, of a module

# Inside a room, imports point to the left too: here are its sub-packages in that order, and "" for the modules that are
# in none. A module that stands elsewhere than its folder is named.
SHELVES = {
    "export": ("", "model", "readers", "schnetpack", "originals", "checkpoint", "graph"),
    "engines": ("", "gpu", "fused", "inductor", "onnxruntime", "tensorrt"),
    "runtime": (
        *("uncertainty", "structures", "pairs", "neighbours", "matrix", "pairs/standing"),
        *("grouping", "limits", "periodicity", "species"),
        *("results", "batches", "", "motion", "calculator"),
        *("lammps", "sockets", "__init__", "screening", "screening/bulk"),
        *("screening/workers", "screening/run", "screening/__init__", "labelling", "programs"),
    ),
    "calibration": ("", "accuracy", "uncertainty", "int8", "physics", "report"),
    "scripts": (
        *(
            "commands",
            "distillation",
            "trajectories",
            "benchmarks/contenders",
            "profiling",
            "benchmarks",
            "studies",
            "examples",
        ),
        *("programs", "kit", "gpu", "", "profiling/walk"),
    ),
}
PLACES = {room: {name: place for place, name in enumerate(names)} for room, names in SHELVES.items()}


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def dotted(path: Path) -> str:
    parts = ("painn_deploy", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Modules of ours that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & EVERY.keys()


EVERY = {dotted(path): path for room in ROOMS for path in modules(room)}


def test_the_declared_packages_are_the_folders() -> None:
    found = [dotted(path) for room in ROOMS for path in modules(room) if path.name == "__init__.py"]
    declared = PROJECT["tool"]["setuptools"]["packages"]
    assert declared == ["painn_deploy", *sorted(found)], "a package that is not declared is in no wheel"
    mapped = PROJECT["tool"]["setuptools"]["package-dir"]
    assert mapped == {"painn_deploy": ROOT_PACKAGE, **{f"painn_deploy.{room}": room for room in ROOMS}}
    assert sorted(path.name for path in (ROOT / ROOT_PACKAGE).glob("*.*")) == ["__init__.py", "py.typed"]
    assert sorted(path.name for path in (ROOT / ROOT_PACKAGE).iterdir() if path.is_symlink()) == sorted(ROOMS)
    assert sorted(SHELVES) == sorted(ROOMS)
    for room in ROOMS:
        assert (ROOT / room / "py.typed").is_file()
        assert (ROOT / "typings" / "painn_deploy" / room).resolve() == (ROOT / room).resolve()
        holding = {path.parent for path in modules(room)}
        assert [folder for folder in holding if not (folder / "__init__.py").is_file()] == []
        apart = {name for name in PLACES[room] if (ROOT / room / f"{name}.py").is_file()}
        folders = sorted((ROOT / room / name) for name in PLACES[room].keys() - apart)
        assert sorted(holding) == folders, f"SHELVES says in which order the sub-packages of {room} stand"


def test_imports_point_to_the_left() -> None:
    for index, room in enumerate(ROOMS):
        for path in modules(room):
            wrong = {name for name in imports(path) if name.split(".")[1] not in ROOMS[: index + 1]}
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_imports_inside_a_room_point_to_the_left() -> None:
    def inner(path: Path) -> list[Path]:
        found = (EVERY[name] for name in imports(path))
        return [other for other in found if other.is_relative_to(ROOT / room) and other != path]

    def place(path: Path) -> int:
        inside, places = path.relative_to(ROOT / room), PLACES[room]
        if inside == Path("__init__.py"):  # it stands where the names that it offers do
            return max((place(other) for other in inner(path)), default=0)
        module, folder = inside.with_suffix("").as_posix(), inside.parent.as_posix()
        return places[module] if module in places else places["" if folder == "." else folder]

    wrong = []
    for room in ROOMS:
        for path in modules(room):
            later = [other for other in inner(path) if place(other) > place(path)]
            wrong += [f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}" for other in later]
    assert wrong == []


def test_folders_and_modules_stay_short() -> None:
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for room in (*ROOMS, "tests") for path in modules(room))
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}
    lengths = {path: len(path.read_text().splitlines()) for room in ROOMS for path in modules(room)}
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MOST_LINES} == {}


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


NEED_TORCH = {  # or Triton: what only building with torch imports; a model of TorchSim is a torch module
    "painn_deploy.engines.fused.weights",
    "painn_deploy.engines.inductor.int8",
    "painn_deploy.engines.inductor.messages",
    "painn_deploy.engines.inductor.messages_kernel",
    "painn_deploy.engines.inductor.onnx_torch",
    "painn_deploy.runtime.torchsim",
}


def test_running_an_engine_needs_no_torch_and_no_gpu_library() -> None:
    without_torch = [dotted(path) for room in ("engines", "runtime") for path in modules(room)]
    without_torch += ["painn_deploy.export.errors", "painn_deploy.export.fields", "painn_deploy.export.manifest"]
    without_torch += ["painn_deploy.export", "painn_deploy.export.bundle", "painn_deploy.scripts.cli"]
    commands = ("md", "inspection", "screen", "doctor")
    without_torch += [f"painn_deploy.scripts.commands.{name}" for name in commands]
    names = [name for name in without_torch if name not in NEED_TORCH]
    done = run_bare("import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in names))
    assert done.returncode == 0, done.stderr


WITHOUT_TORCH = """
import sys
from ase.build import bulk, molecule
from painn_deploy.runtime import PaiNNCalculator
with PaiNNCalculator(sys.argv[1], device="cpu") as calculator:
    calculator.calculate_batch([molecule("CH3CH2OH"), bulk("C", "diamond", a=3.57, cubic=True).repeat(3)])
assert "torch" not in sys.modules, "it takes a second and 200 MB"
import torch, vesin
points, cell = torch.zeros(2, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
found = vesin.NeighborList(cutoff=1.0, full_list=True).compute(points, cell, False, "i")
assert isinstance(found[0], torch.Tensor), "whoever uses vesin beside us has it whole"
"""


def test_an_engine_loads_no_torch_where_it_is_installed(bundle: Path) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(bundle)], check=True)


def test_dynamics_run_where_torch_is_not_installed(bundle: Path, tmp_path: Path) -> None:
    start = tmp_path / "water.extxyz"
    students.water().write(start)
    given = ["painn-deploy", "md", str(bundle), str(start), "-o", str(tmp_path / "md"), "--steps", "3"]
    program = BARE.format(absent={"torch", "onnx", "safetensors"}) + f"sys.argv = {given!r}\n"
    program += "from painn_deploy.scripts.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "md" / "md.extxyz").is_file()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("from painn_deploy.export import load_student", r"painn-deploy\[export\]"),
        ("from painn_deploy.scripts import export_engines", r"painn-deploy\[export\]"),
        ("from painn_deploy.engines import get_backend; get_backend('onnxruntime').version()", r"painn-deploy\[cpu\]"),
        (
            "import sys; sys.argv[1:] = ['doctor']; from painn_deploy.scripts.cli import main\n"
            "try: main()\nfinally: sys.exit(3)",  # it succeeds: `fused` runs with nothing but NumPy and ASE
            r"\[cpu\]",
        ),
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


def test_old_import_paths_answer() -> None:
    for old, new in MOVED.items():
        assert f"painn_deploy.{new}" in EVERY
        assert f"painn_deploy.{old}" not in EVERY, "this one never asks where it went"
    with pytest.warns(DeprecationWarning, match=r"painn_deploy\.export\.half is now painn_deploy\.export\.graph\.half"):
        half = import_module("painn_deploy.export.half")
    assert half is import_module("painn_deploy.export.graph.half")
    with pytest.warns(DeprecationWarning, match=r"painn_deploy\.engines\.onnxruntime\.backend"):
        backend = import_module("painn_deploy.engines.onnxruntime").BACKEND
    assert backend is get_backend("onnxruntime")
    with pytest.warns(DeprecationWarning, match=r"neighbours\.graph_inputs is now painn_deploy\.runtime\.matrix"):
        graph_inputs = import_module("painn_deploy.runtime.neighbours").graph_inputs
    assert graph_inputs is import_module("painn_deploy.runtime.matrix").graph_inputs
    with pytest.raises(ModuleNotFoundError, match=r"painn_deploy\.export\.nothing"):
        import_module("painn_deploy.export.nothing")


@pytest.mark.parametrize("package", ["engines.tensorrt", "engines.inductor", "engines.onnxruntime"])
def test_a_module_of_a_package_is_no_old_import_path(package: str) -> None:
    """In a process of its own, where the module was not imported yet."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"from painn_deploy.{package} import backend"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_nothing_here_uses_an_old_import_path() -> None:
    old = re.compile(r"painn_deploy\.(" + "|".join(map(re.escape, MOVED)) + r")\b(?!\.)")
    texts = [*(p for room in ROOMS for p in modules(room)), *ROOT.glob("tests/**/*.py"), *ROOT.glob("docs/*.md")]
    used = {path.name: found for path in texts if (found := old.findall(path.read_text()))}
    assert used == {"test_house.py": ["export.half"]}


def test_public_names() -> None:
    assert {room: sorted(import_module(f"painn_deploy.{room}").__all__) for room in ROOMS} == {
        "export": ["load_student"],
        "engines": ["BACKENDS", "Backend", "EngineInfo", "NullSession", "Session", "get_backend"],
        "runtime": ["PaiNNCalculator"],
        "calibration": ["Accuracy", "Limits", "Tolerances", "compare"],
        "scripts": ["export_engines"],
    }


def test_every_error_is_in_the_tree_of_its_file() -> None:
    errors = import_module("painn_deploy.export.errors")
    tree = ast.parse((ROOT / "export" / "errors.py").read_text())
    assert {node.name for node in tree.body if isinstance(node, ast.ClassDef)} == set(errors.__all__)
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, errors.PaiNNDeployError)
        assert error.__doc__
        assert re.search(rf"\b{name}\b", errors.__doc__), f"{name} is not in the documented tree"
    for path in (path for room in ROOMS for path in modules(room) if path.name != "errors.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                assert not bases & set(errors.__all__), f"{path.name}: {node.name} belongs into export/errors.py"


def test_a_version_can_be_asked_for() -> None:
    package = import_module("painn_deploy")
    assert package.__version__ == metadata.version("painn-deploy") == PROJECT["project"]["version"]
    assert package.__all__ == ["__version__"]
    with pytest.raises(AttributeError, match="has no attribute 'version'"):
        _ = package.version


def test_the_changelog_s_version_is_the_package_s() -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == PROJECT["project"]["version"]


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


# distributions whose modules are called otherwise
NAMES = {"cuda": "cuda-bindings", "tensorrt": "tensorrt-cu13", "torch_sim": "torch-sim-atomistic"}
PEERS = {
    "schnetpack",
    "torch_geometric",
    "orb_models",
}  # run in environments of their own, where they are compared with


def test_every_import_is_declared() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    groups = [PROJECT["project"]["dependencies"], *extras.values()]
    declared = {re.split(r"[\[><=~ ]", requirement)[0].lower() for group in groups for requirement in group}
    for path in (path for room in ROOMS for path in modules(room)):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for top in {name.partition(".")[0] for name in names} - {"painn_deploy"} - sys.stdlib_module_names - PEERS:
                assert NAMES.get(top, top.replace("_", "-")).lower() in declared, f"{path.name} imports {top}"


def test_the_readme_s_python_runs(tmp_path: Path) -> None:
    blocks = blocks_of("README.md")
    assert blocks
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


KINDS = ("json", "log.csv", "md", "safetensors", "uncertainty.json")
DATA = {
    "calibration": {"data/aspirin.extxyz", "report/report.html.j2"},
    "export": {f"students/{size}.{kind}" for size in ("small", "base", "large") for kind in KINDS},
    "scripts": {"distillation/molecules.smi", "distillation/survey.smi", "kit/take.sh"},
}


def test_the_wheel_holds_every_module_and_its_data_and_nothing_else(tmp_path: Path) -> None:
    tree = tmp_path / "tree"  # building leaves folders behind, whose contents would be in the next wheel
    for room in (ROOT_PACKAGE, *ROOMS):
        shutil.copytree(ROOT / room, tree / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in modules(room)}
    wanted |= {f"{room}/{data}" for room in ROOMS for data in {"py.typed", *DATA.get(room, ())}}
    assert names == {f"painn_deploy/{name}" for name in {*wanted, "__init__.py", "py.typed"}}
    code = "import sys; sys.path.insert(0, sys.argv[1]); import painn_deploy as p; print(p.__file__, p.__version__)"
    done = subprocess.run([sys.executable, "-I", "-c", code, wheel], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [f"{wheel}/painn_deploy/__init__.py", PROJECT["project"]["version"]]


def test_files_that_texts_name_are_there() -> None:
    path = re.compile(r"\b((?:" + "|".join((*ROOMS, "tests", "docs")) + r")/[\w/]+\.(?:py|md|smi|sh|j2))\b")
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("export/students/*.md"), ROOT / "Makefile"]
    texts += [*(p for room in (*ROOMS, "tests") for p in modules(room))]
    gone = {(text.name, m[1]) for text in texts for m in path.finditer(text.read_text()) if not (ROOT / m[1]).exists()}
    assert gone == set()


def test_links_of_texts_lead_to_a_heading() -> None:
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("export/students/*.md")]

    def headings(path: Path) -> set[str]:
        lines = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}

    wrong = set()
    for text in texts:
        for file, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", text.read_text()):
            target = text.parent / file if file else text
            if not target.exists() or (anchor and anchor not in headings(target)):
                wrong.add((text.name, f"{file}#{anchor}"))
    assert wrong == set()
