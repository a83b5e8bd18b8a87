"""A student, and its libraries of a CPU."""

import os

import pytest
import torch

from painn_deploy.engines.fused import host
from painn_deploy.engines.fused.host import Library, compiled_libraries
from painn_deploy.engines.fused.host_session import FusedHostSession
from painn_deploy.engines.fused.weights import pack
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.model.student import Student

from .molecules import opened


@pytest.fixture(scope="module")
def base() -> Student:
    return load_student("student:base", dtype=torch.float64)


@pytest.fixture(scope="module")
def libraries(base: Student) -> dict[int, Library]:
    """Of every width that this machine has."""
    made = compiled_libraries(pack(base))
    contents = {int("".join(filter(str.isdigit, name))): content for name, content in made.items()}
    assert sorted(contents) == sorted(host.WIDTHS.get(os.uname().machine, {4: ()}))
    narrowest = Library(contents[min(contents)], min(contents))
    return {width: Library(contents[width], width) for width in contents if width <= max(4, narrowest.widest)}


@pytest.fixture(scope="module")
def session(base: Student, libraries: dict[int, Library]) -> FusedHostSession:
    return opened(libraries[max(libraries)], base)
