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

CONSTANTS: dict[str, Any] = {
    f"{word}_{part}": word in ("HAS", "GIVES") for word in ("HAS", "GIVES", "BIAS", "MASKED") for part in "SDV"
}
CONSTANTS |= {"SLOTS": messages.SLOTS, "WIDTH": messages.WIDTH, "DEPTH": messages.DEPTH}
CONSTANTS |= {"COLUMNS": 24, "FEATURES": 96, "GATHERS_D": True, "SAME_G": True}
CONSTANTS |= {"WIDTH_S": 288, "WIDTH_D": 288, "FIRST_S": 0, "FIRST_D": 96}


def compiled(kernel: Any, capability: int, precision: str) -> Mapping[str, int]:
    """What a kernel takes: registers of a thread, and bytes that found no place in them."""
    said = CONSTANTS | {"PRECISION": "ieee" if precision == "half" else precision}
    constants = {name: value for name, value in said.items() if name in kernel.arg_names}
    kinds = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(constants, "constexpr")
    kinds |= {name: "*fp16" for name in kinds if precision == "half" and name.startswith(("x_", "g_"))}
    kinds |= {name: "i32" for name in ("atoms", "slots") if name in kinds} | {"neighbours": "*i32"}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kinds) if kinds[name].startswith("*")}
    source = triton.compiler.ASTSource(kernel, kinds, constants, aligned)
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
    """Tell what kernels take on GPUs of these capabilities, in each precision."""
    found = {
        f"{kernel.__name__}, {capability}, {precision}": compiled(kernel, int(capability), precision)
        for capability in capabilities
        for precision in ("ieee", "tf32x3", "half")
        for kernel in (messages_kernel, adjoint_kernel)
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
