"""A shared library with kernels for many GPUs, reduced to what one kind of GPU needs; `make gpu-kit` uses it.

CUDA's compiler puts kernels into the section `.nv_fatbin`: containers one after the other, each with an image for every
architecture. The code of the images that are not needed is overwritten with zeros. Nothing moves, so that every offset
stands, and zeros cost nothing once compressed. The driver reads an image only when a kernel in it is first called.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

from painn_deploy.export.errors import EngineError, EngineUnavailableError

__all__ = ["UNUSED_KERNELS", "Image", "Reduced", "images", "kernels", "reduce_library"]

SECTION = b".nv_fatbin"
MAGIC, VERSION = 0xBA55ED50, 1
CONTAINER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of what follows
ENTRY = struct.Struct("<HHIQIIHHI8xQ8xQ")
PTX, ELF = 1, 2
COMPRESSED, LZ4, ZSTD = 0xA000, 0x2000, 0x8000
NOBITS = 8
LARGEST = 1 << 30
"""Bytes of an image, unpacked, beyond which its header is taken for damaged."""
UNUSED_KERNELS = re.compile(
    rb"attention|flash|fmha|kernel_mha|paged|rotary|beam|moe|onnxruntime3llm|fpa_intb|cutlass", re.IGNORECASE
)
"""Kernels of language models; no graph of painn-deploy holds an operator that calls one."""


@dataclass(frozen=True)
class Image:
    """Code for one architecture.

    Attributes:
        container: number of its container within the library.
        kind: 1 for PTX, 2 for machine code.
        arch: ten times the compute capability.
        start: of the code within the library.
        size: bytes that the code takes in the library, padding included.
        packed: bytes of it that are compressed; 0 where it is not.
        unpacked: bytes once decompressed; 0 where it is not compressed.
        flags: of the format; some say how it is compressed.
    """

    container: int
    kind: int
    arch: int
    start: int
    size: int
    packed: int
    unpacked: int
    flags: int

    def serves(self, arch: int) -> bool:
        """Whether the driver may take it for an architecture: machine code goes up within a generation, PTX always."""
        return self.arch <= arch and (self.kind == PTX or self.arch // 10 == arch // 10)


@dataclass(frozen=True)
class Reduced:
    """A library with less code in it.

    Attributes:
        library: its bytes, as many as before.
        kept: images that are whole.
        removed: images that are zeros now, by architecture.
        packed: bytes of code in `kept` that are compressed already.
    """

    library: bytes
    kept: int
    removed: dict[int, int]
    packed: int


def reduce_library(library: bytes, arch: int, *, unused: re.Pattern[bytes] | None = None) -> Reduced:
    """Overwrite code that a GPU does not need with zeros.

    Args:
        library: an ELF file with a section `.nv_fatbin`.
        arch: ten times the GPU's compute capability, such as 90.
        unused: images whose kernels all match it are removed too; an image that cannot be read is kept.

    Raises:
        EngineError: the library is not what this function understands, or holds no code for the architecture.
        EngineUnavailableError: `unused` is given and the package zstandard is missing.
    """
    found = list(images(library))
    needed = _for_arch(found, arch)
    if not needed:
        known = ", ".join(str(known) for known in sorted({image.arch for image in found}))
        raise EngineError(
            f"The library holds no code for the GPU architecture {arch}, only for {known}. Choose --arch of these."
        )
    for image in needed:
        _check_code(library, image)
    if unused is not None:
        needed = [image for image in needed if not _all_match(unused, library, image)]
    if not needed:
        raise EngineError(f"Every kernel for the GPU architecture {arch} matches {unused}; nothing would be left.")
    kept, result, removed = set(needed), bytearray(library), dict[int, int]()
    for image in found:
        if image not in kept:
            result[image.start : image.start + image.size] = bytes(image.size)
            removed[image.arch] = removed.get(image.arch, 0) + 1
    return Reduced(bytes(result), len(needed), removed, sum(image.packed for image in needed))


def images(library: bytes) -> Iterator[Image]:
    """Every image of a library, in order.

    Raises:
        EngineError: the library or a header in it is not what is expected.
    """
    start, size = _section(library)
    position, end, number = start, start + size, 0
    while position + CONTAINER.size <= end:
        magic, version, header, length = CONTAINER.unpack_from(library, position)
        if (magic, version) == (0, 0) and not any(library[position : position + 8]):
            position += 8  # containers are aligned
            continue
        where = f"container {number} of {SECTION.decode()}, at byte {position},"
        if magic != MAGIC:
            raise EngineError(f"{where} begins with {magic:#x} and not with {MAGIC:#x}. Carry the whole library.")
        if version != VERSION or header < CONTAINER.size:
            raise EngineError(f"{where} is of version {version}; only {VERSION} is known. Carry the whole library.")
        stop = position + header + length
        if stop > end:
            raise EngineError(f"{where} is cut off. The library is damaged; download it again.")
        yield from _entries(library, position + header, stop, number)
        position, number = stop, number + 1
    if any(library[position:end]):
        raise EngineError(f"{SECTION.decode()} ends within a container. The library is damaged; download it again.")
    if number == 0:
        raise EngineError(f"{SECTION.decode()} holds no container. Carry the whole library.")


def _entries(library: bytes, position: int, stop: int, number: int) -> Iterator[Image]:
    while position < stop:
        where = f"the image at byte {position}"
        if position + ENTRY.size > stop:
            raise EngineError(f"{where} is cut off. The library is damaged; download it again.")
        kind, _, header, size, packed, _, _, _, arch, flags, unpacked = ENTRY.unpack_from(library, position)
        if kind not in (PTX, ELF):
            raise EngineError(f"{where} is of the unknown kind {kind}. Carry the whole library.")
        if header < ENTRY.size or position + header + size > stop or packed > size:
            raise EngineError(f"{where} is larger than its container. The library is damaged; download it again.")
        yield Image(number, kind, arch, position + header, size, packed, unpacked, flags)
        position += header + size


def _section(library: bytes) -> tuple[int, int]:
    """Where the kernels lie: first byte and size."""
    try:
        for name, kind, start, size in _sections(library):
            if name == SECTION:
                if kind == NOBITS or start + size > len(library):
                    raise EngineError(f"{SECTION.decode()} is cut off. The library is damaged; download it again.")
                return start, size
    except (struct.error, IndexError) as error:
        raise EngineError("The library is cut off: its sections are not there. Download it again.") from error
    raise EngineError(f"The library has no section {SECTION.decode()}: it holds no kernels. Carry the whole library.")


def _sections(file: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Name, kind, first byte and size of every section of a 64-bit ELF file."""
    if file[:6] != b"\x7fELF\x02\x01":
        raise EngineError("The library is not a 64-bit little-endian ELF file. Carry the whole library.")
    (table,) = struct.unpack_from("<Q", file, 0x28)
    size, count, names = struct.unpack_from("<HHH", file, 0x3A)
    if table + count * size > len(file):  # an offset past what Python can index is no struct.error
        raise struct.error("the table of sections is cut off")
    headers = [struct.unpack_from("<II16xQQ", file, table + index * size) for index in range(count)]
    _, _, start, length = headers[names]
    text = file[start : start + length]
    for name, kind, begin, extent in headers:
        yield text[name:].split(b"\0", 1)[0], kind, begin, extent


def _for_arch(found: list[Image], arch: int) -> list[Image]:
    """Of every container, the machine code nearest to an architecture; the PTX where there is none."""
    needed = []
    containers: dict[int, list[Image]] = {}
    for image in found:
        containers.setdefault(image.container, []).append(image)
    for group in containers.values():
        serving = [image for image in group if image.serves(arch)]
        code = [image for image in serving if image.kind == ELF]
        exact = [image for image in code if image.arch == arch]
        needed += exact or code or serving
    return needed


def _check_code(library: bytes, image: Image) -> None:
    """Refuse what does not look like code: a header read wrongly would have the wrong bytes zeroed."""
    begin = library[image.start : image.start + 4]
    expected = {ZSTD: b"\x28\xb5\x2f\xfd", 0: b"\x7fELF"}.get(image.flags & COMPRESSED)
    if image.kind == ELF and expected is not None and begin != expected:
        raise EngineError(
            f"The image for {image.arch} at byte {image.start} begins with {begin.hex()}, which is no code. "
            "Carry the whole library."
        )


def kernels(library: bytes, image: Image) -> list[bytes] | None:
    """Names of an image's kernels, as the compiler mangled them; None where the image cannot be read.

    Args:
        library: bytes of the shared library.
        image: of its kernels for one architecture.

    Raises:
        EngineError: the image is damaged.
        EngineUnavailableError: the image is compressed and the package zstandard is missing.
    """
    if image.kind != ELF or image.flags & LZ4:
        return None
    code = library[image.start : image.start + image.size]
    if image.flags & ZSTD:
        code = _unpacked(code[: image.packed], image)
    try:
        return [name[6:] for name, *_ in _sections(code) if name.startswith(b".text.")]
    except (struct.error, IndexError) as error:
        raise EngineError(f"The image for {image.arch} at byte {image.start} is damaged. Download it again.") from error


def _unpacked(code: bytes, image: Image) -> bytes:
    try:
        zstandard = import_module("zstandard")
    except ImportError as error:
        raise EngineUnavailableError(
            "To see which kernels an image holds takes zstandard: pip install zstandard."
        ) from error
    try:
        result: bytes = zstandard.ZstdDecompressor().decompress(code, max_output_size=min(image.unpacked, LARGEST))
    except zstandard.ZstdError as error:
        raise EngineError(f"The image for {image.arch} at byte {image.start} is damaged: {error}.") from error
    if len(result) != image.unpacked:
        raise EngineError(f"The image for {image.arch} at byte {image.start} is not as long as its header says.")
    return result


def _all_match(unused: re.Pattern[bytes], library: bytes, image: Image) -> bool:
    names = kernels(library, image)
    return bool(names) and all(unused.search(name) for name in names or [])
