"""Wheels for another machine, downloaded by pip once and kept; `make gpu-kit` uses it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, NormalizedName, parse_wheel_filename
from packaging.version import Version
from rich.console import Console

from painn_deploy.export.errors import EngineUnavailableError, OutputError
from painn_deploy.export.files import prepare_output
from painn_deploy.scripts.kit.wheels import PLATFORMS, Target

__all__ = ["Downloads", "own_wheel"]

SOURCES = ("tensorrt-rtx", "tensorrt-rtx-cu13")
"""Packages that are published as source alone, and hold no code that is compiled."""
MIB = 2**20


@dataclass
class Downloads:
    """Wheels that lie in a folder already, or are brought there by pip.

    Attributes:
        folder: that they are kept in.
        target: the machine that they are for.
        console: where progress is shown.
        tags: of the wheels that the machine can install, with their rank.
    """

    folder: Path
    target: Target
    console: Console
    tags: dict[Tag, int] = field(init=False)

    def __post_init__(self) -> None:
        prepare_output(self.folder)
        self.tags = {tag: rank for rank, tag in enumerate(self.target.tags())}

    def wheel(self, name: NormalizedName, versions: SpecifierSet) -> Path:
        """The newest wheel kept of these versions; if there is none, the newest there is.

        Args:
            name: of the package.
            versions: that will do.

        Raises:
            EngineUnavailableError: pip cannot get it; the message says why.
        """
        if kept := self._kept(name, versions):
            return kept
        what = f"{name}{versions}"
        if name in SOURCES:
            command = ["wheel", "--no-deps", what]
        else:
            platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
            command = ["download", "--no-deps", "--only-binary=:all:", "--implementation", "cp", *platforms]
            command += ["--python-version", self.target.python, what]
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=self.folder) as partial:
            _pip(command, Path(partial), f"{what} for Python {self.target.python}", self.console)
            for path in Path(partial).glob("*.whl"):
                path.replace(self.folder / path.name)
        if kept := self._kept(name, versions):
            return kept
        raise EngineUnavailableError(f"pip brought no wheel of {what} that Python {self.target.python} can install.")

    def _kept(self, name: NormalizedName, versions: SpecifierSet) -> Path | None:
        found: list[tuple[Version, int, Path]] = []
        for path in self.folder.glob("*.whl"):
            try:
                other, version, _, tags = parse_wheel_filename(path.name)
            except InvalidWheelFilename:
                continue
            ranks = [self.tags[tag] for tag in tags if tag in self.tags]
            if other == name and ranks and versions.contains(version):
                found.append((version, -min(ranks), path))
        return max(found)[2] if found else None


def own_wheel(root: Path, folder: Path, console: Console) -> Path:
    """painn-deploy's wheel, built of a copy of its sources: a folder build/ of long ago would get in otherwise.

    Args:
        root: of the repository.
        folder: for the wheel.
        console: told what is being done.

    Raises:
        EngineUnavailableError: pip cannot build it; the message says why.
        OutputError: there are no sources.
    """
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"{root} has no pyproject.toml: run gpu_kit.py of a clone of painn-deploy.") from error
    files = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        copy = Path(temporary) / "source"
        for room in project["tool"]["setuptools"]["package-dir"].values():
            shutil.copytree(root / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
        for name in files:
            shutil.copy2(root / name, copy / name)
        (made := Path(temporary) / "made").mkdir()
        _pip(["wheel", "--no-deps", str(copy)], made, "painn-deploy", console)
        (wheel,) = made.glob("*.whl")
        return wheel.replace(folder / wheel.name)


def _pip(command: list[str], folder: Path, what: str, console: Console) -> None:
    """Run pip, which writes into a folder, and show how much has arrived."""
    call = [sys.executable, "-m", "pip", *command[:1], "--quiet", "--disable-pip-version-check"]
    call += ["-d" if command[0] == "download" else "-w", str(folder), *command[1:]]
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=folder) as temporary, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(call, stdout=said, stderr=said, env=os.environ | {"TMPDIR": temporary})  # noqa: S603
        with process, console.status(f"getting {what}") as status:
            while process.poll() is None:
                try:
                    process.wait(0.2)
                except subprocess.TimeoutExpired:
                    status.update(f"getting {what}: {_size(folder) / MIB:.1f} MiB")
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise EngineUnavailableError(f"pip could not get {what}: {_reason(text)}")


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, while they come and go."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except OSError:
                continue
    return total


def _reason(text: str) -> str:
    """Pip's complaint, without its long lists."""
    errors = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR: ")]
    reason = " ".join(errors or text.splitlines()[-3:]) or "it said nothing."
    reason = re.sub(r"\(from versions: ([^)]{0,60})[^)]*\)", r"(from versions: \1)", reason)
    if "from versions: none" in reason:
        reason += " No version was found at all: is the registry reachable from here?"
    return reason
