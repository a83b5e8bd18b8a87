"""What an ONNX file says of itself, and whether it is whole in itself; read from its bytes, without ONNX.

The file is a protocol buffer: fields of a number, a kind and a value, some of which are messages of such fields. Its
numbers are skipped, so that this takes a few milliseconds, and no memory but for the metadata.
"""

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import NoReturn

__all__ = ["OnnxContent", "OnnxContentError", "read_onnx_content"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Kinds of fields."""

ORT_FORMAT = b"ORTM"
"""At bytes 4 to 8 of a file in ONNX Runtime's own format, which it would read in place of ONNX."""

MOST_METADATA = 2**22
"""Bytes."""

MOST_ELEMENTS = 2**31
"""Of one tensor."""

HALF, DOUBLE, INT8, UINT8 = 10, 11, 3, 2
FIELDS_OF_DATA = (4, 5, 7, 9, 10, 11)  # float_data, int32_data, int64_data, raw_data, double_data, uint64_data


class OnnxContentError(ValueError):
    """A file that is no ONNX, or is not whole in itself; the message completes `FILE ...`."""


@dataclass(frozen=True)
class OnnxContent:
    """What an ONNX file says of itself.

    Attributes:
        metadata: texts by key.
        types: ONNX's numbers of the types of its initialisers.
    """

    metadata: dict[str, str]
    types: frozenset[int]

    @property
    def precision(self) -> str:
        """That its weights are typed in: `int8` where one is, else `fp16`, else `fp64` where one is, else `fp32`."""
        if self.types & {INT8, UINT8}:
            return "int8"
        if HALF in self.types:
            return "fp16"
        return "fp64" if DOUBLE in self.types else "fp32"


_Field = tuple[int, int, int, int]
"""A field of a message: its number; its kind, see `VARINT`; a number's value, or where bytes begin; where it ends."""

OF_MODEL, OF_GRAPH, OF_NODE = frozenset({7, 8, 14, 20, 25, 26}), frozenset({1, 5, 15}), frozenset({5, 7})
OF_ATTRIBUTE, OF_TENSOR = frozenset({5, 6, 10, 11, 22, 23}), frozenset({1, 2, 13, 14, *FIELDS_OF_DATA})
ANY = range(1, 2**61)
"""Numbers of fields that something is made of; the rest is most of a file, and is passed over."""


def read_onnx_content(content: bytes) -> OnnxContent:
    """Read what an ONNX file says of itself, and hold it to being whole in itself.

    Args:
        content: of the file.

    Raises:
        OnnxContentError: it is no ONNX, refers to numbers in another file, declares more numbers than it holds, or has
            subgraphs, functions or operators of other makers, which no graph of ours has.
    """
    if content[4:8] == ORT_FORMAT:
        raise OnnxContentError("is in ONNX Runtime's own format")
    return _Reader(content).read()


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._metadata: dict[str, str] = {}
        self._types: set[int] = set()
        self._of_metadata = 0

    def read(self) -> OnnxContent:
        graphs = 0
        for field in self._fields(0, len(self._content), OF_MODEL):
            match field[0]:
                case 7:
                    graphs += 1
                    self._graph(self._inside(field))
                case 8:
                    self._opset(self._inside(field))
                case 14:
                    self._pair(self._inside(field))
                case 20 | 25 | 26:
                    self._refuse("holds functions or training steps, which no graph of ours has")
        if graphs != 1:
            self._refuse("is no ONNX file: it holds no graph, or several")
        return OnnxContent(self._metadata, frozenset(self._types))

    def _refuse(self, why: str) -> NoReturn:
        raise OnnxContentError(why)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        for place in range(at, min(at + 10, end)):
            byte = self._content[place]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place + 1
            shift += 7
        return self._refuse("is no ONNX file, or is cut short")

    def _fields(self, at: int, end: int, wanted: Container[int] = ANY) -> Iterator[_Field]:
        """The fields of these numbers; that the others are whole is seen too. It runs thousands of times for a file."""
        content = self._content
        while at < end:
            tag = content[at]
            if tag < 0x80:
                at += 1
            else:
                tag, at = self._varint(at, end)
            kind = tag & 7
            if kind == BYTES:
                if at < end and (length := content[at]) < 0x80:
                    at += 1
                else:
                    length, at = self._varint(at, end)
                value = at
                at += length
            elif kind == VARINT:
                value, at = self._varint(at, end)
            elif kind in (FIXED32, FIXED64):
                value = 0
                at += 4 if kind == FIXED32 else 8
            else:
                self._refuse("is no ONNX file: it holds a field of an unknown kind")
            number = tag >> 3
            if at > end or not number:
                self._refuse("is no ONNX file, or is cut short")
            if number in wanted:
                yield number, kind, value, at

    def _inside(self, field: _Field) -> tuple[int, int]:
        _, kind, start, end = field
        if kind != BYTES:
            self._refuse("is no ONNX file: a message is a number")
        return start, end

    def _text(self, field: _Field) -> str:
        start, end = self._inside(field)
        try:
            return self._content[start:end].decode("utf-8")
        except UnicodeDecodeError:
            return self._refuse("is no ONNX file: a text in it is none")

    def _pair(self, span: tuple[int, int]) -> None:
        self._of_metadata += span[1] - span[0]
        if self._of_metadata > MOST_METADATA:
            self._refuse(f"has more than {MOST_METADATA:,} bytes of metadata")
        words = {field[0]: self._text(field) for field in self._fields(*span)}
        key = words.get(1, "")
        if key in self._metadata:
            self._refuse(f"gives {key[:40]!r} twice in its metadata")
        self._metadata[key] = words.get(2, "")

    def _opset(self, span: tuple[int, int]) -> None:
        for field in self._fields(*span):
            if field[0] == 1:
                self._own(self._text(field))

    def _own(self, domain: str) -> None:
        if domain not in ("", "ai.onnx"):
            self._refuse(f"uses operators of {domain[:40]!r}, and graphs of ours have those of ONNX alone")

    def _graph(self, span: tuple[int, int]) -> None:
        for field in self._fields(*span, OF_GRAPH):
            match field[0]:
                case 1:
                    self._node(self._inside(field))
                case 5:
                    self._types.add(self._tensor(self._inside(field)))
                case 15:
                    self._refuse("holds sparse tensors, which no graph of ours has")

    def _node(self, span: tuple[int, int]) -> None:
        for field in self._fields(*span, OF_NODE):
            if field[0] == 5:
                self._attribute(self._inside(field))
            else:
                self._own(self._text(field))

    def _attribute(self, span: tuple[int, int]) -> None:
        for field in self._fields(*span, OF_ATTRIBUTE):
            if field[0] in (5, 10):
                self._tensor(self._inside(field))
            else:
                self._refuse("holds a graph inside a node, or sparse tensors, which no graph of ours has")

    def _tensor(self, span: tuple[int, int]) -> int:
        """Its type."""
        sizes: list[int] = []
        held = kind = 0
        for field in self._fields(*span, OF_TENSOR):
            number, of_kind, value, end = field
            if number == 1:
                sizes += self._numbers(field)
            elif number == 2 and of_kind == VARINT:
                kind = value
            elif number in (13, 14) and (number == 13 or of_kind != VARINT or value):
                self._refuse("takes numbers from another file (external data), which nothing says the hash of")
            elif number in FIELDS_OF_DATA:
                held += end - value if of_kind == BYTES else 8
        if any(size >= 2**63 for size in sizes) or (count := math.prod(sizes)) > MOST_ELEMENTS or count > 2 * held:
            self._refuse(f"declares a tensor of {tuple(sizes)[:6]}, and holds {held:,} bytes of it")
        return kind

    def _numbers(self, field: _Field) -> list[int]:
        """One number, or several that are packed."""
        _, kind, value, _ = field
        if kind == VARINT:
            return [value]
        at, end = self._inside(field)
        found: list[int] = []
        while at < end:
            number, at = self._varint(at, end)
            found.append(number)
            if len(found) > 16:
                self._refuse("declares a tensor of more than 16 axes")
        return found
