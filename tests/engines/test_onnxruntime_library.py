"""Which ONNX Runtime is installed, and why it cannot use a GPU: packages in folders, libraries that gcc makes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from painn_deploy.engines.gpu.shared_libraries import needed, pip_folders
from painn_deploy.engines.onnxruntime.backend import load_graph
from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.scripts.commands.measuring import GATE

from .test_driver import made_driver, shared_library

REAL = Path(onnxruntime.__file__).parent
VERSION = onnxruntime.__version__

GPU_PACKAGE = """
import ctypes, pathlib, types
__version__, package_name, cuda_version = "1.31.1", "onnxruntime-gpu", "13.0"
def get_available_providers():
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
class SessionOptions:
    def add_session_config_entry(self, key, value):
        pass
class InferenceSession:
    def __init__(self, model, options, providers, enable_fallback=1):
        if enable_fallback:
            print("Falling back to ['CPUExecutionProvider'] and retrying.")
        try:
            ctypes.CDLL(str(pathlib.Path(__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"))
        except OSError:
            raise RuntimeError("nodes that are assigned to the default CPU EP, but fallback to CPU EP is disabled")
    def get_modelmeta(self):
        return types.SimpleNamespace(custom_metadata_map={})
    def get_providers(self):
        return ["CUDAExecutionProvider"]
"""
"""What onnxruntime-gpu does with a CUDA that cannot be loaded: the system's loader is the real one."""

OPEN = """
import sys
from painn_deploy.engines.onnxruntime.backend import load_graph
from painn_deploy.export.errors import PaiNNDeployError
try:
    load_graph(b"", sys.argv[1], None)
except PaiNNDeployError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
DEVICES = "from painn_deploy.engines import get_backend; print(*get_backend('onnxruntime').devices())"


def python(
    code: str, *arguments: object, path: tuple[Path, ...] = (), libraries: tuple[Path, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run with folders before the environment's own, and with libraries that the system's loader finds."""
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (*path, *filter(None, [os.environ.get("PYTHONPATH")]))))
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, libraries))
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def distribution(folder: Path, name: str) -> None:
    """What pip leaves of a package beside its modules."""
    info = folder / f"{name.replace('-', '_')}-{VERSION}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two packages in one folder."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "onnxruntime").symlink_to(REAL, target_is_directory=True)
    distribution(folder, "onnxruntime")
    distribution(folder, "onnxruntime-gpu")
    return folder


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package in a folder of its own, as `pip install --target` makes it, before the environment's."""
    folder = tmp_path_factory.mktemp("apart")
    (folder / "onnxruntime").mkdir()
    for child in REAL.iterdir():
        (folder / "onnxruntime" / child.name).symlink_to(child)
    distribution(folder, "onnxruntime-gpu")
    return folder


@pytest.fixture(scope="module")
def gpu_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package for GPUs whose CUDA libraries are not beside it."""
    folder = tmp_path_factory.mktemp("gpu")
    distribution(folder, "onnxruntime-gpu")
    wheels = cuda_wheels(folder / "while-linking")
    capi = folder / "onnxruntime" / "capi"
    asks = [str(wheels / "nvidia" / "cu13" / "lib" / f"lib{name}.so.13") for name in ("cublasLt", "cublas")]
    flags = ("-Wl,--no-as-needed", *asks, "-Wl,--unresolved-symbols=ignore-all")
    shared_library(capi / "libonnxruntime_providers_cuda.so", "int provider;", *flags)
    shared_library(capi / "libonnxruntime_providers_shared.so", "int shared;")
    (folder / "onnxruntime" / "__init__.py").write_text(GPU_PACKAGE)
    return folder


NO_WHEELS = """
from painn_deploy.engines.gpu import shared_libraries
shared_libraries.pip_folders.__code__ = (lambda kind: ()).__code__  # torch of PyPI brings CUDA's libraries
"""


def cuda_wheels(folder: Path) -> Path:
    """Where pip puts CUDA's libraries, one of which asks for another."""
    libraries = folder / "nvidia" / "cu13" / "lib"
    first = shared_library(libraries / "libcublasLt.so.13", "int lt;", "-Wl,-soname,libcublasLt.so.13")
    second = ("-Wl,-soname,libcublas.so.13", "-Wl,--no-as-needed", str(first))
    shared_library(libraries / "libcublas.so.13", "int blas;", *second)
    return folder


def test_two_packages_in_one_folder_are_refused_but_for_the_cpu_by_name(both: Path, bundle: Path) -> None:
    code = """
import sys
from ase.build import molecule
from painn_deploy.engines import get_backend
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.runtime import PaiNNCalculator
backend = get_backend("onnxruntime")
print(backend.version())
with PaiNNCalculator(sys.argv[1], device="cpu") as calculator:
    atoms = molecule("H2O")
    atoms.calc = calculator
    print(atoms.get_potential_energy())
for refused in (
    backend.devices,
    lambda: PaiNNCalculator(sys.argv[1]),
    lambda: PaiNNCalculator(sys.argv[1], device="cuda"),
):
    try:
        print("not refused", refused())
    except EngineUnavailableError as error:
        print(error)
"""
    done = python(code, bundle, path=(both,))
    assert done.returncode == 0, done.stderr
    version, energy, *refusals = done.stdout.splitlines()
    assert version == VERSION
    alone = python(code, bundle)
    assert energy == alone.stdout.splitlines()[1]
    assert len(refusals) == 3
    for refusal in refusals:
        assert f"onnxruntime {VERSION} and onnxruntime-gpu {VERSION} are installed in one folder" in refusal
        assert "pip uninstall -y onnxruntime onnxruntime-gpu" in refusal
        assert "painn-deploy[cuda]" in refusal
        assert "painn-deploy[cpu]" in refusal


def test_two_packages_in_two_folders_are_whole(apart: Path) -> None:
    done = python(f"import onnxruntime; print(onnxruntime.__file__); {DEVICES}", path=(apart,))
    assert done.stdout.split() == [str(apart / "onnxruntime" / "__init__.py"), "cpu"], done.stderr
    hidden = python(DEVICES, path=(Path(REAL).parent, apart))
    assert hidden.stdout == "cpu\n", hidden.stderr


def test_nothing_is_sent_or_left_behind(bundle: Path, tmp_path: Path) -> None:
    """By default ONNX Runtime keeps a number in the home folder by which it is known again, and sends it."""
    code = f"""
import os, sys
os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = {str(tmp_path)!r}
from painn_deploy.runtime import PaiNNCalculator
from ase.build import molecule
with PaiNNCalculator(sys.argv[1]) as calculator:
    calculator.calculate_batch([molecule("H2O")])
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
    done = python(code, bundle)
    assert done.stdout == "1\n", done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_other_engines_are_exported_all_the_same(both: Path, painn: Path, tmp_path: Path) -> None:
    code = """
import sys
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.commands.export import _check_request
try:
    export_engines(sys.argv[1], sys.argv[2], engines=["onnxruntime"], tell=print)
except EngineUnavailableError as error:
    print(error)
_check_request(["inductor", "tensorrt-rtx"], ["fp32"], "auto")
(path,) = export_engines(sys.argv[1], sys.argv[2], engines=["tensorrt-rtx"])
print(path.name)
"""
    done = python(code, painn, tmp_path, path=(both,))
    assert done.returncode == 0, done.stderr
    refusal, name = done.stdout.splitlines()
    assert "installed in one folder" in refusal, f"before anything is read, and {GATE} is asked for"
    assert name == "painn-tensorrt-rtx-fp32.engine"


def test_what_a_removal_left_behind_is_called_broken(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("")
    for contents, why in (("", "no module in it"), ("import nothing_like_it", "No module named")):
        (tmp_path / "onnxruntime" / "__init__.py").write_text(contents)
        done = python(DEVICES, path=(tmp_path,))
        assert "onnxruntime is installed and broken" in done.stderr
        assert why in done.stderr
        assert "pip uninstall -y" in done.stderr


def test_a_gpu_is_offered_where_a_driver_has_one(gpu_site: Path, tmp_path: Path) -> None:
    assert python(DEVICES, path=(gpu_site,)).stdout == "cpu\n"
    made_driver(tmp_path / "none", gpus=0, name="libcuda.so.1")
    assert python(DEVICES, path=(gpu_site,), libraries=(tmp_path / "none",)).stdout == "cpu\n"
    made_driver(tmp_path / "one", gpus=1, name="libcuda.so.1")
    assert python(DEVICES, path=(gpu_site,), libraries=(tmp_path / "one",)).stdout == "cuda cpu\n"
    assert python(DEVICES, libraries=(tmp_path / "one",)).stdout == "cpu\n", "this one is built for the CPU alone"


def test_libraries_are_loaded_from_where_pip_puts_them(gpu_site: Path, tmp_path: Path) -> None:
    made_driver(tmp_path, gpus=1, name="libcuda.so.1")
    wheels = cuda_wheels(tmp_path / "elsewhere")
    done = python(OPEN, "cuda", path=(gpu_site, wheels), libraries=(tmp_path,))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = python(OPEN, "cuda:0", path=(gpu_site,), libraries=(tmp_path, wheels / "nvidia" / "cu13" / "lib"))
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("device", "made", "message"),
    [
        ("cuda", None, r"onnxruntime-gpu 1\.31\.1 cannot use a GPU here: no NVIDIA driver \(libcuda\.so\.1\)"),
        ("cuda", {"version": 12040}, r"The NVIDIA driver serves CUDA 12\.4, and onnxruntime-gpu 1\.31\.1 needs 13"),
        ("cuda:2", {"gpus": 2}, r"'cuda:2' here: the driver shows 2 GPUs, counted from 0"),
        ("cuda", {}, r"cannot be loaded, libcublasLt\.so\.13: cannot open.*pip install .painn-deploy\[cuda\]"),
        ("tensorrt", {}, r"cannot run on 'tensorrt' here, only on cuda, cpu\."),
        ("gpu", {}, r"cannot run on 'gpu' here, only on cuda, cpu\."),
    ],
)
def test_a_refusal_names_the_true_reason(
    device: str, made: dict[str, int] | None, message: str, gpu_site: Path, tmp_path: Path
) -> None:
    if made is not None:
        made_driver(tmp_path, name="libcuda.so.1", **made)
    done = python(NO_WHEELS + OPEN, device, path=(gpu_site,), libraries=(tmp_path,))
    assert done.stdout == ""
    assert done.stderr.startswith("EngineUnavailableError: "), done.stderr
    assert re.search(message, done.stderr), done.stderr


def test_a_provider_that_cannot_be_loaded_is_named_though_all_that_it_needs_is_there(
    gpu_site: Path, tmp_path: Path
) -> None:
    made_driver(tmp_path, name="libcuda.so.1")
    copy = tmp_path / "site"
    (copy / "onnxruntime" / "capi").mkdir(parents=True)
    (copy / "onnxruntime" / "__init__.py").write_text(GPU_PACKAGE)
    shared_library(copy / "onnxruntime" / "capi" / "libonnxruntime_providers_shared.so", "int shared;")
    source = "int absent(void); int provider(void) { return absent(); }"
    shared_library(copy / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so", source, "-Wl,-z,now")
    done = python(OPEN, "cuda", path=(copy,), libraries=(tmp_path,))
    assert done.stdout == ""
    assert "EngineUnavailableError: onnxruntime cannot run on 'cuda' here:" in done.stderr
    assert "undefined symbol: absent" in done.stderr


def test_a_graph_that_cannot_be_loaded_is_not_blamed_on_the_device() -> None:
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["x"], ["y"])], "g",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(EngineError, match="cannot load this graph on 'cpu'") as raised:
        load_graph(model.SerializeToString(), "cpu", 1)
    assert not isinstance(raised.value, EngineUnavailableError)


def test_what_a_library_needs_is_read_from_its_file(gpu_site: Path, tmp_path: Path) -> None:
    provider = gpu_site / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    assert list(needed(provider))[:2] == ["libcublasLt.so.13", "libcublas.so.13"]
    (state,) = (REAL / "capi").glob("onnxruntime_pybind11_state*.so")
    assert {"libc.so.6", "libm.so.6"} <= set(needed(state))
    for contents in (b"", b"\x7fELF\x01\x01" + bytes(100), b"no library at all" * 9):
        (tmp_path / "file.so").write_bytes(contents)
        with pytest.raises(ValueError, match="is no 64-bit little-endian ELF file"):
            needed(tmp_path / "file.so")


def test_a_damaged_library_is_told_and_nothing_else_is_raised(gpu_site: Path, tmp_path: Path) -> None:
    whole = (gpu_site / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so").read_bytes()
    damaged, random, refused = tmp_path / "file.so", np.random.default_rng(0), 0
    for _ in range(500):
        broken = bytearray(whole)
        for at in random.integers(0, 900, 3):
            broken[at] = random.choice([0, 127, 128, 255])
        damaged.write_bytes(broken[: random.choice([len(broken), 700])])
        try:
            needed(damaged)
        except (ValueError, OSError):
            refused += 1
    assert refused > 10


def test_folders_of_wheels_are_those_of_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a/nvidia/cudnn/lib", "a/nvidia/cu13/lib", "b/nvidia/cu13/lib", "a/nvidia/cu13/include"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "a"), "none"])
    found = [str(folder.relative_to(tmp_path.resolve())) for folder in pip_folders("lib")]
    assert found == ["a/nvidia/cu13/lib", "a/nvidia/cudnn/lib", "b/nvidia/cu13/lib"]
    assert [folder.name for folder in pip_folders("include")] == ["include"]
