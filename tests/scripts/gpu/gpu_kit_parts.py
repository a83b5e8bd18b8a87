"""Small wheels and libraries with kernels, made by hand, and what a machine does with a portion of them."""

import base64
import hashlib
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from packaging.specifiers import SpecifierSet
from packaging.utils import NormalizedName
from packaging.version import Version

from painn_deploy.scripts.kit.onnxruntime_wheel import PROVIDER

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def make_wheel(
    folder: Path,
    name: str,
    files: Mapping[str, bytes],
    *,
    version: str = "1.0",
    requires: Sequence[str] = (),
    extras: Sequence[str] = (),
    tag: str = "py3-none-any",
) -> Path:
    """A small wheel that pip installs."""
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Provides-Extra: {extra}\n" for extra in extras)
    metadata += "".join(f"Requires-Dist: {need}\n" for need in requires)
    info = f"{name}-{version}.dist-info"
    wheel = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
    whole = {**files, f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": wheel.encode()}
    lines = [f"{member},sha256={digest(content)},{len(content)}" for member, content in whole.items()]
    record = "\n".join([*lines, f"{info}/RECORD,,", ""])
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as file:
        for member, content in whole.items():
            file.writestr(member, content)
        file.writestr(f"{info}/RECORD", record)
    return path


def digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


class Shelf:
    """Wheels that could be downloaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

    def add(self, name: str, version: str = "1.0", requires: Sequence[str] = ()) -> None:
        make_wheel(self.folder, name.replace("-", "_"), {}, version=version, requires=requires)

    def __call__(self, name: NormalizedName, versions: SpecifierSet) -> Path:
        self.asked.append(f"{name}{versions}")
        found = {Version(p.name.split("-")[1]): p for p in self.folder.glob(f"{name.replace('-', '_')}-*.whl")}
        return found[max(versions.filter(found))]


def take(portion: Path, target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PAINN_KIT": str(target), "PYTHON": sys.executable, "PIP_NO_INDEX": "1"} | environment
    command = ["bash", str(portion / "take.sh")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd="/")


def values(target: Path, *names: str) -> str:
    """What a shell sees that has sourced env.sh."""
    program = f"import os, {', '.join(names)}; print({', '.join(f'{n}.value' for n in names)})"
    command = ["bash", "-euc", f'. "{target}/env.sh"; "{sys.executable}" -c "{program}"; echo "$PAINN_DEPLOY_CACHE"']
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    return done.stdout if done.returncode == 0 else done.stderr


def elf(sections: Mapping[str, bytes]) -> bytes:
    """A 64-bit ELF file that holds nothing but sections."""
    text, body, headers = b"\0", b"", [bytes(64)]
    for name, content in {**sections, ".shstrtab": b""}.items():
        at = len(text)
        text += name.encode() + b"\0"
        if name == ".shstrtab":
            content = text
        body += bytes(-len(body) % 8)
        headers.append(struct.pack("<IIQQQQIIQQ", at, 1, 0, 0, 64 + len(body), len(content), 0, 0, 8, 0))
        body += content
    body += bytes(-len(body) % 8)
    start = b"\x7fELF\x02\x01\x01" + bytes(9)
    counts = (64, 0, 0, 64, len(headers), len(headers) - 1)
    return start + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64 + len(body), 0, *counts) + body + b"".join(headers)


def image(arch: int, *names: str, zstd: ModuleType | None = None, kind: int = 2) -> bytes:
    """An entry of a container: header, code, padding."""
    plain = elf({f".text.{name}": bytes([arch]) * 64 for name in names}) if kind == 2 else b".version 8.0\0"
    code = plain if zstd is None else zstd.ZstdCompressor().compress(plain)
    size = len(code) + -len(code) % 8
    packed, unpacked, flags = (0, 0, 0x11) if zstd is None else (len(code), len(plain), 0x8011)
    header = struct.pack("<HHIQIIHHIIIQQQ", kind, 257, 64, size, packed, 0, 8, 1, arch, 0, 0, flags, 0, unpacked)
    return header + code.ljust(size, b"\0")


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def library(*containers: bytes, padding: int = 0) -> bytes:
    return elf({".text": b"code" * 8, ".nv_fatbin": bytes(padding).join(containers), ".data": b"after"})


def make_gpu_wheel(folder: Path, zstd: ModuleType) -> Path:
    """onnxruntime-gpu in small: incompressible code for two architectures, in images of two kinds."""
    random = "".join(f"x{byte:02x}" for byte in os.urandom(30_000))
    provider = library(
        container(image(80, f"gather{random}", zstd=zstd), image(90, f"gather{random[:9000]}", zstd=zstd)),
        container(image(80, f"attention{random}", zstd=zstd), image(90, f"attention{random}", zstd=zstd)),
    )
    files = {PROVIDER: provider, "onnxruntime/__init__.py": b"value = 7\n"}
    return make_wheel(folder, "onnxruntime_gpu", files, version="1.31.1")
