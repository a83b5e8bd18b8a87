"""The documentation as a site: `make docs` fails for what leads nowhere, and names where."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TREE = ("docs", "export", "engines", "runtime", "calibration", "scripts", "typings", "benchmarks")
FILES = ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for name in TREE:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


def built(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder / "site")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_site_has_every_page_and_links_lead_to_pages(copied: Path) -> None:
    done = built(copied)
    assert done.returncode == 0, done.stderr
    page = (copied / "site" / "index.html").read_text()
    assert 'href="dynamics/#lammps"' in page
    assert 'src="demo.png"' in page
    assert 'href="cards/base/"' in page
    assert "PaiNNCalculator.calculate_batch" in (copied / "site" / "api" / "calculator" / "index.html").read_text()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("See [this](nothing.md).", "docs/engines.md, line {}: the link to nothing.md leads to no file."),
        ("See [this](dynamics.md#nowhere).", "'dynamics.md' does not contain an anchor '#nowhere'"),
        (
            "See [this](../scripts/none).",
            "docs/engines.md, line {}: the link to ../scripts/none leads to no",
        ),
        ("::: painn_deploy.runtime.nothing", "'painn_deploy.runtime.nothing'"),
    ],
)
def test_what_leads_nowhere_is_told(copied: Path, line: str, told: str) -> None:
    page = copied / "docs" / "engines.md"
    text = page.read_text()
    page.write_text(f"{text}\n{line}\n")
    done = built(copied)
    page.write_text(text)
    assert done.returncode != 0
    assert told.format(text.count("\n") + 2) in done.stderr
