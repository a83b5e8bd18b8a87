"""torch's process-wide precision of FP32 products, held and put back."""

import itertools
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from painn_deploy.engines.inductor.matmul_precision import _read, matmul_precision

MATMUL = torch.backends.cuda.matmul


def at_odds() -> None:
    torch.set_float32_matmul_precision("high")
    MATMUL.fp32_precision = "ieee"


SETTINGS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "TF32 for all, by the old name": lambda: torch.set_float32_matmul_precision("high"),
    "BF16 for all, by the old name": lambda: torch.set_float32_matmul_precision("medium"),
    "TF32 on GPUs": lambda: setattr(MATMUL, "allow_tf32", True),
    "TF32 on GPUs, by the new name": lambda: setattr(MATMUL, "fp32_precision", "tf32"),
    "TF32 for all, by the new name": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "BF16 on CPUs": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "old and new at odds": lambda: at_odds(),
}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    def reset() -> None:
        torch.set_float32_matmul_precision("highest")
        for place in (torch.backends, MATMUL, torch.backends.mkldnn.matmul):
            place.fp32_precision = "none"

    reset()
    yield
    reset()


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_products_are_fp32_within_and_what_was_set_is_set_afterwards(setting: str) -> None:
    SETTINGS[setting]()
    before = _read(torch)
    with matmul_precision(torch):
        within = _read(torch)
        assert within["cuda"] in ("ieee", "none" if within["all"] in ("ieee", "none") else "")
        assert within["mkldnn"] in ("ieee", "none" if within["all"] in ("ieee", "none") else "")
        assert torch.get_float32_matmul_precision() == "highest"  # where old and new disagree, torch raises
        assert not MATMUL.allow_tf32
        with matmul_precision(torch):  # a recording is within a call
            assert not MATMUL.allow_tf32
        assert not MATMUL.allow_tf32
    assert _read(torch) == before
    with matmul_precision(torch, tf32=True):
        assert MATMUL.allow_tf32
    assert _read(torch) == before


def test_it_is_put_back_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    with pytest.raises(ZeroDivisionError), matmul_precision(torch):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "high"


def test_a_thread_that_ends_does_not_take_it_from_one_that_goes_on() -> None:
    torch.set_float32_matmul_precision("high")
    entered, leave, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with matmul_precision(torch):
            entered.set()
            leave.wait(10)
        seen.append("first left")

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(10)
    with matmul_precision(torch):
        leave.set()
        thread.join(10)
        assert seen == ["first left"]
        assert not MATMUL.allow_tf32
    assert torch.get_float32_matmul_precision() == "high"


def test_threads_that_want_different_precision_wait_for_each_other() -> None:
    wrong: list[bool] = []

    def work(tf32: bool) -> None:
        for _ in range(200):
            with matmul_precision(torch, tf32=tf32):
                wrong.extend([True] if MATMUL.allow_tf32 != tf32 else [])

    threads = [
        threading.Thread(target=work, args=(tf32,)) for tf32 in itertools.islice(itertools.cycle([True, False]), 6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
