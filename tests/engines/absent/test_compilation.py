"""Forms of `inductor` for a GPU become whole packages where there is none, by the oldest torch that we allow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from painn_deploy.engines.forms import GPU_FORMS
from tests import students

TORCH = "2.11."
"""What is asked of a GPU differs from version to version; so does what a compiler cannot do."""

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built for no GPU; that of `make lowest` is"),
    pytest.mark.skipif(not torch.__version__.startswith(TORCH), reason=f"it is for torch {TORCH}x of `make lowest`"),
]

MESSAGES = "sums+messages+side+unchecked@1024,16"

CASES = {
    "molecules": ("student:base", str(GPU_FORMS["tiny.pt2"].form), "fp32"),
    "liquids": ("student:base", str(GPU_FORMS["large.pt2"].form), "fp32"),
    "messages": ("student:base", MESSAGES, "fp32"),
    "messages, halves": ("student:base", MESSAGES.replace("+side", "+split+side"), "fp16"),
    "messages of a distiller": ("distiller", MESSAGES, "tf32"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_form_is_compiled_and_linked(tmp_path: Path, name: str) -> None:
    student, form, precision = CASES[name]
    source = student if ":" in student else str(students.write(tmp_path, student))
    asked = [sys.executable, "-m", "tests.engines.absent.compilation", source, form, precision, "9", "0"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kernels"] > 20
    assert found["bytes"] > 100_000
