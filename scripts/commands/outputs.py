"""What programs print and write: tables on a screen and in Markdown, text between the marks of a document, JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from painn_deploy.export.errors import OutputError
from painn_deploy.export.files import prepare_output, to_json, write_output
from painn_deploy.export.manifest import SUFFIX

__all__ = ["MARKS", "made_table", "markdown", "names_of", "write_between_marks", "write_result"]

MARKS = ("<!-- figures -->", "<!-- /figures -->")
"""Of a document: what stands between them a command has written."""


def made_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for a terminal: the first column to the left, the others to the right.

    Args:
        title: above it.
        columns: headings.
        rows: cells, as text; none of them is markup.
    """
    table = Table(title=escape(title))
    for index, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def names_of(bundles: Sequence[Path]) -> list[str]:
    """What to call bundles in a table: their folders' names.

    Args:
        bundles: folders NAME.engine.

    Raises:
        BadParameter: two have one name.
    """
    names = [bundle.name.removesuffix(SUFFIX) for bundle in bundles]
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"Two bundles are called {max(names, key=names.count)}: rename one.")
    return names


def markdown(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown.

    Args:
        headings: of the columns.
        rows: cells; floats are written with three significant figures.
    """
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    lines += [f"| {' | '.join(f'{c:.3g}' if isinstance(c, float) else str(c) for c in row)} |" for row in rows]
    return "\n".join(lines)


def write_between_marks(document: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Write text between the marks of a document, in place of what stands there; start a document that is not there.

    Args:
        document: Markdown.
        text: without the marks.
        marks: before and after it.

    Raises:
        OutputError: the document lacks the marks.
    """
    begin, end = marks
    old = document.read_text(encoding="utf-8") if document.is_file() else f"{begin}\n{end}\n"
    before, begun, rest = old.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise OutputError(f"{document} has no marks {begin} and {end} to write between.")
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def write_result(values: Mapping[str, Any], path: Path) -> None:
    """Write JSON.

    Args:
        values: plain types.
        path: of the file; its folder is made.

    Raises:
        OutputError: the file cannot be written.
    """
    prepare_output(path.parent)
    write_output(path, to_json(values))
