"""Every command that a document shows is there, with every option that it is shown with."""

import re
import runpy
import shlex
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import ase.io
import pytest
import typer
from ase.build import molecule

from painn_deploy.scripts import cli, export_engines
from painn_deploy.scripts.commands import entry
from tests.conftest import ROOT
from tests.scripts.commands.pages import blocks_of, commands_of, prose_of, run_program

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "export/students/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
BLOCKS_RUN = {
    "docs/batching.md": "tests/scripts/test_batched_examples.py",
    "docs/dynamics.md": "tests/scripts/commands/test_dynamics.py",
    "docs/programs.md": "tests/scripts/commands/test_programs.py",
    "docs/uncertainty.md": "tests/scripts/commands/test_pages.py",
    "docs/validation.md": "tests/scripts/commands/test_pages.py",
    "README.md": "tests/test_house.py",
}
"""Which test runs the blocks of Python of a page."""

PROGRAMS = r"(?:painn-deploy|python3?|pytest|make)\b"
AFTER = re.compile(r"\s(?:\||>|&|;|#).*")
OF_PYTHON = ("-m", "-c", "-u")


def shown_commands(page: str) -> list[str]:
    """What a document shows of our programs: indented and fenced lines, and spans in the text."""
    fenced = [line for block in blocks_of(page, "(?:sh|bash)?") for line in block.replace("\\\n", " ").splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(rf"`({PROGRAMS} [^`]+)`", prose_of(page))]
    shown = [*fenced, *commands_of(page), *spans]
    found = [match[1] for line in shown if (match := re.match(rf"\s*(?:mpiexec -n \d+ )?({PROGRAMS}.*)", line))]
    return sorted({AFTER.sub("", command) for command in found})


@cache
def command_of(*words: str) -> Any:
    """The command that a shell would run for `python` and these words, without running it."""
    taken: list[Any] = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that a module runs which was imported before
        patch.setattr(entry, "run_command", taken.append)
        patch.setattr("sys.argv", [words[-1]])
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__")
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    app = typer.Typer()
    app.command()(taken[0])
    return typer.main.get_command(app)


def checked_options(command: Any, words: list[str]) -> None:
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = words[: words.index("--")] if "--" in words else words
    options = {word.partition("=")[0] for word in given if re.match(r"--?[a-z]", word)}
    assert options <= known | {"--help"}, f"there are {', '.join(sorted(known))}"


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in PAGES for command in shown_commands(page)])
def test_a_command_is_there_as_it_is_shown(page: str, command: str) -> None:
    program, *words = shlex.split(command)
    if program == "painn-deploy":
        app: Any = typer.main.get_command(cli.app)
        if words and words[0] in app.commands:
            checked_options(app.commands[words[0]], words[1:])
        else:
            checked_options(app, words)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in words if re.fullmatch(r"[a-z-]+", word)} <= {*targets}
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    elif words and words[0] == "-m" and words[1].startswith("painn_deploy."):
        checked_options(command_of(*words[:2]), words[2:])
    elif words and words[0].startswith("scripts/"):
        checked_options(command_of(words[0]), words[1:])
    else:
        assert not words or words[0] in OF_PYTHON or not (ROOT / words[0]).parent.samefile(ROOT / "scripts")


def test_an_option_that_is_not_there_is_found() -> None:
    with pytest.raises(AssertionError, match="there are --compiled"):
        checked_options(command_of("scripts/train_student.py"), ["--data", "data", "--hurry"])


def test_every_block_of_python_is_run_by_a_test() -> None:
    assert {page for page in PAGES if blocks_of(page)} == {*BLOCKS_RUN}
    for page, test in BLOCKS_RUN.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8"), f"{test} runs nothing of {page}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages' blocks read."""
    folder = tmp_path_factory.mktemp("base")
    molecules = [molecule("H2O"), molecule("CH3CH2OH")]
    export_engines("student:base", folder / "engines", structures=molecules)
    ase.io.write(folder / "molecules.extxyz", molecules)
    return folder


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("docs/uncertainty.md", "0 structures were past the limit"),
        ("docs/validation.md", r"^\S+ \[\]\n(?:holds .*\n)+$"),
    ],
)
def test_the_python_of_a_page_runs(base: Path, page: str, said: str) -> None:
    (block,) = blocks_of(page)
    done = run_program(block, base, base)
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout)


def test_times_of_the_readme_are_those_of_the_pages_that_have_them() -> None:
    """Each ratio as it stands there, each time of an engine as one of it rounds: no figure is kept up in two places."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## How fast")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in readme.splitlines() if line.startswith("| ")]
    page = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("performance.md", "kernels.md"))
    known = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", page)]
    ratios = [cell for row in rows for cell in row if re.fullmatch(r"\d+\.\dx", cell)]
    times = [match[1] for row in rows for cell in row[1:3] if (match := re.match(r"(\d+(?:\.\d+)?) ms", cell))]
    assert (len(ratios), len(times)) == (9, 11)
    assert [ratio for ratio in ratios if ratio not in page] == []
    assert [time for time in times if not any(f"{one:.{len(time.partition('.')[2])}f}" == time for one in known)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_a_page_says_first_what_it_answers(page: str) -> None:
    title, empty, first = (ROOT / page).read_text(encoding="utf-8").split("\n")[:3]
    assert title.startswith("# ")
    assert not empty
    assert re.match(r"[A-Z`]", first), (
        f"{page}, line 3: a sentence says what the page answers, before commands and tables"
    )
