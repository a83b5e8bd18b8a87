"""Which wheels a machine lacks, resolved for its Python and not for this one; `make gpu-kit` uses it.

pip evaluates the markers of requirements, such as `python_version < "3.12"`, for the interpreter that it runs in,
whatever Python it downloads for. So requirements are followed here, through the metadata of the wheels themselves.
"""

import email
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

from painn_deploy.export.errors import EngineUnavailableError, OutputError

__all__ = ["TORCH_BRINGS", "Closure", "Target", "closure", "pins", "there"]

GLIBC = range(5, 40)
PLATFORMS = (
    *("manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"),
    *(f"manylinux_2_{minor}_x86_64" for minor in GLIBC),
    "linux_x86_64",
)
"""Oldest first: of two wheels the one that asks less of the machine is taken."""
TORCH_BRINGS = (
    *("torch", "triton", "cuda-bindings", "cuda-pathfinder", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath"),
    *("networkx", "setuptools", "sympy", "typing-extensions"),
)
"""Packages that come with torch, its CUDA libraries apart."""
NEVER = re.compile(r"torch|triton|cuda-toolkit|nvidia-.*")
"""Packages that are too large to carry, and come with torch."""
Names = Mapping[NormalizedName, Version | None]
Wheels = Callable[[NormalizedName, SpecifierSet], Path]


@dataclass(frozen=True)
class Target:
    """The machine: CPython on Linux, x86-64.

    Attributes:
        python: such as `3.12`.
    """

    python: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment that markers are evaluated for."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": "x86_64",
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def tags(self) -> Iterator[Tag]:
        """Of the wheels that can be installed there, the least demanding platforms first."""
        version = [int(part) for part in self.python.split(".")]
        interpreter = "cp" + "".join(map(str, version))
        yield from cpython_tags(version, platforms=PLATFORMS, abis=[interpreter])
        yield from compatible_tags(version, interpreter, PLATFORMS)


@dataclass
class Closure:
    """Wheels to carry, and what else there is to say.

    Attributes:
        wheels: by name, in the order in which they were found to be needed.
        remarks: sentences about packages that are there and too old.
        assumed: what is needed, is not listed, and is not carried, because it comes with torch.
    """

    wheels: dict[NormalizedName, Path] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)


def there(text: str | None) -> dict[NormalizedName, Version | None]:
    """Packages of a machine; None stands for a version that is not known, and is taken to suffice.

    Args:
        text: a file that `pip freeze` wrote, or names with commas between, or None for torch and what it brings.

    Raises:
        EngineUnavailableError: torch is not among them, or is built without CUDA.
        OutputError: the file is not there, or holds a line that is no requirement.
    """
    if text is None:
        return {canonicalize_name(name): None for name in TORCH_BRINGS}
    lines, source = text.split(","), "--there"
    if Path(text).is_file():
        lines, source = Path(text).read_text(encoding="utf-8").splitlines(), text
    elif "/" in text or text.endswith(".txt"):
        raise OutputError(f"There is no file {text}. Run `python3 -m pip freeze > {text}` on the machine and bring it.")
    found: dict[NormalizedName, Version | None] = {}
    for line in (line.strip() for line in lines):
        if not line or line.startswith(("#", "-")):
            continue  # comments, and packages installed from a folder, which have no version that counts
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise OutputError(f"{source} holds {line!r}, which pip freeze does not write: {error}.") from error
        exact = [Version(s.version) for s in requirement.specifier if s.operator in ("==", "===")]
        found[canonicalize_name(requirement.name)] = exact[0] if exact else None
    torch = found.get(canonicalize_name("torch"), "absent")
    if torch == "absent":
        raise EngineUnavailableError(
            f"{source} names no torch. torch with CUDA is too large to carry; install it on the machine first."
        )
    if isinstance(torch, Version) and torch.local and not torch.local.startswith("cu"):
        raise EngineUnavailableError(f"torch {torch} in {source} has no CUDA. Install torch with CUDA on the machine.")
    return found


def pins(constraints: Path) -> dict[NormalizedName, SpecifierSet]:
    """Versions that constraints.txt pins; onnxruntime-gpu follows onnxruntime, which is the same library."""
    lines = [line.split("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines()]
    pinned = {canonicalize_name(r.name): r.specifier for r in (Requirement(line) for line in lines if line)}
    if (same := canonicalize_name("onnxruntime")) in pinned:
        pinned.setdefault(canonicalize_name("onnxruntime-gpu"), pinned[same])
    return pinned


def closure(
    roots: Iterable[tuple[Path, Iterable[str]]],
    target: Target,
    installed: Names,
    pinned: Mapping[NormalizedName, SpecifierSet],
    wheel: Wheels,
) -> Closure:
    """Every wheel that some wheels need on a machine and that is not there.

    Args:
        roots: wheels at hand, each with the extras that are wanted of it.
        target: the machine's Python.
        installed: see `there`.
        pinned: versions to take, see `pins`.
        wheel: gets a wheel by name and versions.

    Raises:
        EngineUnavailableError: torch is there in a version that does not do.
        OutputError: a wheel is damaged.
    """
    roots = [(path, tuple(extras)) for path, extras in roots]
    allowed: dict[NormalizedName, SpecifierSet] = {}
    while True:
        found, narrowed = Closure(), False
        queue = [need for path, extras in roots for need in _requirements(path, extras, target)]
        seen: set[str] = set()
        while queue:
            need = queue.pop(0)
            if str(need) in seen:
                continue
            seen.add(str(need))
            name = canonicalize_name(need.name)
            if _is_there(need, name, installed, found):
                continue
            versions = allowed.get(name, SpecifierSet()) & need.specifier
            narrowed |= name in found.wheels and _version(found.wheels[name]) not in need.specifier
            allowed[name] = versions
            if name not in found.wheels:
                pin = pinned.get(name, SpecifierSet())
                found.wheels[name] = wheel(name, versions & pin)
            queue += _requirements(found.wheels[name], need.extras, target)
        if not narrowed:
            return found


def _is_there(need: Requirement, name: NormalizedName, installed: Names, found: Closure) -> bool:
    """Whether a requirement is met on the machine; remarks and refusals where it is not."""
    absent = name not in installed
    version = installed.get(name)
    if not absent and (version is None or need.specifier.contains(version, prereleases=True)):
        return True
    if NEVER.fullmatch(name):
        if name == "torch":
            raise EngineUnavailableError(
                f"torch {version} is there, and painn-deploy needs torch{need.specifier}. It is too large to carry; "
                "install a newer one on the machine."
            )
        found.assumed.append(f"{name}{need.specifier}")
        return True
    remark = f"{name} {version} is there and {name}{need.specifier} is needed: a newer one is carried and comes first."
    if not absent and remark not in found.remarks:
        found.remarks.append(remark)
    return False


def _version(wheel: Path) -> Version:
    return Version(wheel.name.split("-")[1])


def _requirements(wheel: Path, extras: Iterable[str], target: Target) -> list[Requirement]:
    """Requirements of a wheel on the machine, with these extras."""
    try:
        with zipfile.ZipFile(wheel) as file:
            (name,) = [n for n in file.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
            metadata = email.message_from_bytes(file.read(name))
    except (zipfile.BadZipFile, ValueError) as error:
        raise OutputError(f"{wheel} is damaged: {error}. Delete it and run this again.") from error
    own = canonicalize_name(metadata["Name"])
    needs: list[Requirement] = []
    for text in metadata.get_all("Requires-Dist", []):
        need = Requirement(text)
        wanted = [target.environment | {"extra": extra} for extra in ("", *extras)]
        if need.marker is None or any(need.marker.evaluate(environment) for environment in wanted):
            nested = canonicalize_name(need.name) == own  # an extra that is made of others
            needs += _requirements(wheel, need.extras, target) if nested else [need]
    return needs
