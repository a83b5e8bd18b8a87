"""Kernels of messages as machine code of GPUs that are not here: a program, given the capabilities to compile for.

The hook that checks annotations in these tests may not come between Triton and a kernel's source.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler

from painn_deploy.engines.inductor import messages
from painn_deploy.engines.inductor.messages_kernel import adjoint_kernel, messages_kernel

Constants = Mapping[str, Any]

TILE = {"SLOTS": messages.SLOTS, "WIDTH": messages.WIDTH, "DEPTH": messages.DEPTH, "SAME_G": True}


def constants(features: int, columns: int, *, plain: bool) -> Constants:
    """Of a student with scalars, dipoles and vectors: a `plain` one gathers for dipoles, and has no biases."""
    found = TILE | {"COLUMNS": columns, "FEATURES": features, "GATHERS_D": plain}
    found |= {"WIDTH_S": 3 * features, "WIDTH_D": 3 * features, "FIRST_S": 0, "FIRST_D": features}
    for part in "SDV":
        gives = plain or part != "D"
        found |= {f"HAS_{part}": True, f"GIVES_{part}": gives, f"BIAS_{part}": not plain}
        found[f"MASKED_{part}"] = not plain and part != "D"
    return found


WIDEST = "90"

STUDENTS = {
    "painn of 96 features": constants(96, 24, plain=True),
    "distiller of 128 features": constants(128, 128, plain=False),
}


def compiled(kernel: Any, capability: int, precision: str, said: Constants) -> Mapping[str, int]:
    """What a kernel takes: registers of a thread, and bytes that found no place in them.

    In `half` operands of sums are half, in `halves` those of products too.
    """
    said = {**said, "PRECISION": "ieee" if "hal" in precision else precision}
    given = {name: value for name, value in said.items() if name in kernel.arg_names}
    kinds = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(given, "constexpr")
    narrow = {"half": ("x_", "g_"), "halves": ("x_", "g_", "radial", "slope", "weight_", "bias_")}.get(precision, ())
    kinds |= {name: "*fp16" for name in kinds if name.startswith(tuple(narrow))}
    kinds |= {name: "i32" for name in ("atoms", "slots") if name in kinds} | {"neighbours": "*i32"}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kinds) if kinds[name].startswith("*")}
    source = triton.compiler.ASTSource(kernel, kinds, given, aligned)
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
    tool = Path(compiler.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        asked = [tool, "--dump-resource-usage", file.name]
        said_of_it = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said_of_it)}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


def main(capabilities: Sequence[str]) -> None:
    """Tell what kernels take on GPUs of these capabilities, in each precision.

    Products of a wide network take long to compile: they are compiled for one of the capabilities.
    """
    found = {
        f"{kernel.__name__}, {capability}, {precision}, {student}": compiled(kernel, int(capability), precision, said)
        for capability in capabilities
        for student, said in STUDENTS.items()
        for precision in ("ieee", "tf32", "tf32x3", "half" if student.startswith("painn") else "halves")
        if student.startswith("painn") or capability == WIDEST
        for kernel in (messages_kernel, adjoint_kernel)
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
