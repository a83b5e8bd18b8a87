"""Hooks of MkDocs: pages of the site that lie outside docs/, and links between files as links between pages.

Every page is written for the repository, where its links lead to files beside it. A link to a file that is a page leads
to that page here. One to another file of the repository, such as a program, becomes its text. One to nothing is an
error that names page and line.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    **{f"export/students/{name}.md": f"cards/{name}.md" for name in ("small", "base", "large")},
}
"""Pages by their place in the repository, and their place in the site."""

FOUND = {place: file for file, place in ELSEWHERE.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
OUTSIDE = re.compile(r"[a-z]+:|#")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie elsewhere."""
    for name, place in ELSEWHERE.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Let links lead to pages of the site."""
    place = page.file.src_uri
    name = FOUND.get(place, f"docs/{place}")
    lines = markdown.split("\n")
    return "\n".join(_linked(line, name, place, number) for number, line in enumerate(lines, start=1))


def _linked(line: str, name: str, place: str, number: int) -> str:
    """A line of a file of the repository, as the site has it at a place."""

    def moved(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        if OUTSIDE.match(target):
            return match[0]
        file, _, anchor = target.partition("#")
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(name), file))
        if not (ROOT / wanted).is_file():
            raise PluginError(f"{name}, line {number}: the link to {target} leads to no file.")
        there = ELSEWHERE.get(wanted, wanted.removeprefix("docs/") if wanted.startswith("docs/") else None)
        if there is None:
            return text
        path = posixpath.relpath(there, posixpath.dirname(place) or ".")
        return f"{picture}[{text}]({path}{'#' if anchor else ''}{anchor})"

    return LINK.sub(moved, line)
