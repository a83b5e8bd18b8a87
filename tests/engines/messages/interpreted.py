"""What runs in a process of its own: Triton decides when it is imported whether it interprets kernels, on a CPU."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch

from painn_deploy.engines.forms import Form

Arrays = Sequence[np.ndarray | None]


class Program(NamedTuple):
    """A traced program: the precision that each of its messages has, and elements of its widest tensor a slot."""

    precisions: list[str]
    elements: float


@contextmanager
def process(*, interprets: bool = True) -> Iterator[Callable[..., Any]]:
    """A process that calls what is in this module, and whose Triton interprets kernels, or traces them."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", str(int(interprets)))
            pool.submit(len, ()).result()  # it has started
        yield lambda function, *arguments, **named: pool.submit(function, *arguments, **named).result()


def tensors(arrays: Arrays) -> list[torch.Tensor | None]:
    return [None if array is None else torch.from_numpy(array.copy()) for array in arrays]


def _arrays(found: Sequence[torch.Tensor | None]) -> list[np.ndarray | None]:
    return [None if one is None else one.numpy() for one in found]


def sums(
    given: Arrays, masked: list[int], first: Sequence[int] = (0, 0, 0), precision: str = "ieee"
) -> list[np.ndarray | None]:
    from painn_deploy.engines.inductor import messages

    return _arrays(messages.messages(*tensors(given), masked=masked, first=first, precision=precision))


def gradients(
    given: Arrays, masked: list[int], first: Sequence[int] = (0, 0, 0), same: tuple[int, int] | None = None
) -> list[np.ndarray | None]:
    """`same`: places of two arrays that are one tensor."""
    from painn_deploy.engines.inductor import messages

    operands = tensors(given)
    if same is not None:
        operands[same[1]] = operands[same[0]]
    return _arrays(messages.adjoint(*operands, masked=masked, first=first))


def evaluate(model: bytes, form: str, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    from painn_deploy.engines.inductor.onnx_torch import OnnxModule

    module: Any = OnnxModule(Form.parse(form).lowered(onnx.load_from_string(model)))
    return [output.numpy() for output in module(*tensors(arrays))]


def trace(model: bytes, form: str) -> Program:
    from painn_deploy.engines.inductor.compile import traced

    lowered, said = Form.parse(form).lowered(onnx.load_from_string(model)), Form.parse(form)
    program, elements = traced(torch, lowered, "cpu", said.atoms, said.slots, said.products_in_kernels())
    nodes = [node for node in program.graph.nodes if "painn_deploy.messages" in str(node.target)]
    return Program([node.args[-1] for node in nodes], elements)
