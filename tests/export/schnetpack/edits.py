"""SchNetPack's files in tests: where they are, and how to change what one says without SchNetPack."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from painn_deploy.export.declaration import Declaration

FILES = Path(__file__).with_name("files")
KCAL = Declaration("kcal/mol", "Ang")


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(contents: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return made.getvalue()


def edited(path: Path, output: Path, changes: Mapping[bytes, bytes]) -> Path:
    """The file with bytes of its pickle and of its texts replaced; each has to be there."""
    contents, missing = records(path), set(changes)
    for name, content in contents.items():
        if name.endswith((".pkl", ".py")):
            for old, new in changes.items():
                if old in content:
                    content = content.replace(old, new)
                    missing.discard(old)
            contents[name] = content
    assert not missing, f"{path.name} does not hold {missing}"
    output.write_bytes(packed(contents))
    return output


def text(word: str) -> bytes:
    """How a pickle of protocol 2 holds a text."""
    return b"X" + len(word.encode()).to_bytes(4, "little") + word.encode()


def with_pickle(pickle: bytes, output: Path) -> Path:
    """A file as torch writes it, of a pickle alone."""
    output.write_bytes(packed({"archive/data.pkl": pickle, "archive/byteorder": b"little", "archive/version": b"3\n"}))
    return output
