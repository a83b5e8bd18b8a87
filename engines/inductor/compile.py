"""Machine code of one form of the graph, by torch's compiler (AOTInductor), here or in a process beside this one."""

import io
import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from painn_deploy.engines.forms import Form
from painn_deploy.engines.gpu.toolchain import toolchain
from painn_deploy.engines.inductor.gpu import LEAST
from painn_deploy.engines.inductor.matmul_precision import matmul_precision
from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import FIELDS

__all__ = ["SEVERAL", "Asked", "compiled_form", "compiling", "traced"]

SEVERAL = 8
"""From so many cores on, packages are compiled side by side; one compilation keeps some four busy."""

MODEL, ASKED, PACKAGE, FACTS = "model.onnx", "asked.json", "package.pt2", "facts.json"
"""Files by which this process and one beside it speak."""


class Asked(NamedTuple):
    """A request to compile one form of a graph.

    Attributes:
        form: of the graph, as it is written.
        device: that it is for, `cpu` or a GPU such as `cuda:0`.
        tf32: let products round their operands to ten bits.
    """

    form: str
    device: str
    tf32: bool


def compiled_form(model: bytes, asked: Asked) -> tuple[bytes, float]:
    """A package, and how many elements its widest tensor has for each slot of the matrix.

    Args:
        model: model.onnx.
        asked: form, device and precision.

    Raises:
        EngineError: torch cannot compile it.
        EngineUnavailableError: CUDA's headers or the driver's library are missing, for a GPU; or Triton, for messages.
    """
    import onnx
    import torch

    form, kind = Form.parse(asked.form), asked.device.partition(":")[0]
    with toolchain() if kind == "cuda" else nullcontext():
        lowered = form.lowered(onnx.load_from_string(model))
        inside = form.products_in_kernels(tf32=asked.tf32)
        program, elements = traced(torch, lowered, asked.device, form.atoms, form.slots, inside)
        return _compiled(torch, program, _settings(torch, form, kind, tf32=asked.tf32), tf32=asked.tf32), elements


@contextmanager
def compiling(model: bytes, asked: Asked) -> Iterator[Callable[[], tuple[bytes, float]]]:
    """Compile in a process of its own, which ends with this block; the function that it gives waits for the result.

    Args:
        model: model.onnx.
        asked: form, device and precision.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / MODEL).write_bytes(model)
        (folder / ASKED).write_text(json.dumps(asked._asdict()), encoding="utf-8")
        command = [sys.executable, "-m", "painn_deploy.engines.inductor.compile", name]
        with subprocess.Popen(  # noqa: S603 - this very Python
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:

            def result() -> tuple[bytes, float]:
                _, said = process.communicate()
                if process.returncode:
                    words = " ".join(said.decode(errors="replace").split())
                    raise EngineError(f"torch could not compile the form {asked.form}: {words[-600:]}")
                facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
                return (folder / PACKAGE).read_bytes(), float(facts["elements_a_slot"])

            try:
                yield result
            finally:
                process.kill()


def _settings(torch: Any, form: Form, kind: str, *, tf32: bool) -> dict[str, Any]:
    """Settings of torch's compiler for a form, by which any number of threads gives the same."""
    # dynamic threads: else this machine's cores would be compiled in
    settings = {"cpp.dynamic_threads": True, **form.settings(kind, tf32=tf32)}
    if "cpp.threads" in settings and torch.__version__ < (2, 12):
        # Products compiled with the rest share their rows among exactly the threads that they were compiled for. Those
        # may be more than were asked for, and where OpenMP gives fewer, rows are never computed. One thread has all.
        settings["cpp.threads"] = 1
    return settings


def _compiled(torch: Any, program: Any, settings: Mapping[str, Any], *, tf32: bool) -> bytes:
    """Machine code; kernels that are compiled now are as precise as those that are called later."""
    package = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad(), matmul_precision(torch, tf32=tf32):
        warnings.simplefilter("ignore")
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=dict(settings))
        except Exception as error:  # its compiler's errors share no base class but this one
            raise EngineError(f"torch could not compile the graph: {error}") from error
    return package.getvalue()


def traced(torch: Any, model: Any, device: str, atoms: int, slots: int, precision: str = "ieee") -> tuple[Any, float]:
    """A graph as a program for any number of atoms, slots and, where it has an axis of them, pairs.

    Args:
        torch: the library.
        model: the graph.
        device: that it is compiled for.
        atoms: that block sizes are chosen for.
        slots: likewise.
        precision: of products inside of messages; see `painn_deploy.engines.inductor.messages.messages`.

    Returns:
        The program, and how many elements its widest tensor has at most for each slot of the matrix.
    """
    from painn_deploy.engines.inductor.onnx_torch import TYPES, OnnxModule

    sizes = {"atoms": atoms, "slots": slots, "pairs": atoms * slots // 2 + 12}
    axes = {name: torch.export.Dim(name, min=LEAST) for name in sizes}
    fields = [FIELDS[value.name] for value in model.graph.input]
    dtypes = [TYPES[value.type.tensor_type.elem_type] for value in model.graph.input]
    sample = [torch.ones(f.sized(**sizes), dtype=t, device=device) for f, t in zip(fields, dtypes, strict=True)]
    dynamic = tuple({i: axes[n] for i, n in enumerate(f.shape) if n in axes} for f in fields)
    with warnings.catch_warnings():  # torch's compiler warns about its own internals
        warnings.simplefilter("ignore")
        program = torch.export.export(OnnxModule(model, precision).to(device), tuple(sample), dynamic_shapes=(dynamic,))
    values = (node.meta.get("val") for node in program.graph.nodes if node.op == "call_function")
    shapes = [value.shape for value in values if isinstance(value, torch.Tensor)]
    growing = [shape for shape in shapes if not all(isinstance(size, int) for size in shape)]
    mask = program.graph_signature.user_inputs[[field.name for field in fields].index("mask")]
    (of_mask,) = (node.meta["val"].shape for node in program.graph.nodes if node.name == mask)

    def elements(shape: Any) -> float:
        # what an atom has counts most for each slot where there are the fewest
        has_slots = any(_symbols(of_mask[1]) & _symbols(size) for size in shape)
        return math.prod(_hint(size) for size in shape) / (atoms * (slots if has_slots else LEAST))

    return program, max(map(elements, growing))


def _symbols(size: Any) -> set[Any]:
    """What a dimension depends on."""
    return set() if isinstance(size, int) else set(size.node.expr.free_symbols)


def _hint(size: Any) -> int:
    """A dimension at the sizes that were traced."""
    return int(size) if isinstance(size, int) else int(size.node.hint)


def main(folder: Path) -> None:
    """Compile what a folder asks for, into it."""
    asked = Asked(**json.loads((folder / ASKED).read_text(encoding="utf-8")))
    package, elements = compiled_form((folder / MODEL).read_bytes(), asked)
    (folder / PACKAGE).write_bytes(package)
    (folder / FACTS).write_text(json.dumps({"elements_a_slot": elements}), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except EngineError as error:
        sys.exit(str(error))
