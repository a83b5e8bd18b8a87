"""Public functions say what their arguments are: shapes, units and meaning, one line each."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .test_house import ROOMS, modules

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Functions of `__all__`, and the public methods of its classes that are no protocol's repetition."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names = set(ast.literal_eval(node.value))
    for node in tree.body:
        if isinstance(node, Function) and node.name in names:
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and node.name in names:
            for method in node.body:
                if isinstance(method, Function) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


def arguments(function: Function) -> list[str]:
    """Names that a caller gives; what a command line documents by its own help is not among them."""
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    names = [a.arg for a in every if not (a.annotation is not None and "typer." in ast.unparse(a.annotation))]
    names += [a.arg for a in (function.args.vararg, function.args.kwarg) if a is not None]
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def missing(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for name, function in public(tree):
        wanted = arguments(function)
        if len(wanted) < 2 or any(ast.unparse(d).endswith("overload") for d in function.decorator_list):
            continue
        text = ast.get_docstring(function) or ""
        if re.fullmatch(r"See `\w+\.\w+`\.", text):  # a protocol's method, documented there
            continue
        found = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", text + "\n", re.M)
        lines = re.findall(r"^ {4}([*\w]+(?:, [*\w]+)*):", found[1], re.M) if found else []
        told = {name.lstrip("*") for line in lines for name in line.split(", ")}
        if untold := [argument for argument in wanted if argument not in told]:
            yield f"{path.name}: {name} says nothing of {', '.join(untold)}"


@pytest.mark.parametrize("room", ROOMS)
def test_every_argument_of_a_public_function_is_documented(room: str) -> None:
    assert [line for path in modules(room) for line in missing(path)] == []


INCOMPLETE = '''
__all__ = ["C", "f", "g"]

def f(a, b, *, c):
    """F.

    Args:
        a: one.
        b, c: two more.
    """

def g(a, b, **more):
    """G.

    Args:
        a: one,
            b: is no argument here.
    """

class C:
    def one(self, a): ...
    def two(self, a, b): ...
    def _three(self, a, b): ...
'''


def test_what_is_not_documented_is_seen(tmp_path: Path) -> None:
    (path := tmp_path / "made.py").write_text(INCOMPLETE)
    assert list(missing(path)) == ["made.py: g says nothing of b, more", "made.py: C.two says nothing of a, b"]
