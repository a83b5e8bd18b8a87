"""Files as somebody would make them who means no good, or whose disk did: of bundles and checkpoints, with seeds.

`altered_bundles` and `altered_checkpoints` yield what to try, one after the other in a folder of their own; whoever
uses them says what must come of it. Nothing here is run, and pipes and files of holes are made and left.
"""

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from painn_deploy.export.manifest import MANIFEST, VALIDATION, manifest_digest

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "\0", "\ud800", "../../x", "/etc/passwd", "[/]", "\x1b[2J", "é" * 300, "1e5", "nan"),
    *([], {}, [5], [[]], {"": None}, [None], {"a": {"b": {}}}, ["x"] * 2000),
)
"""Values that may be where others belong."""


class Altered(NamedTuple):
    """Something to try.

    Attributes:
        label: what was done to it.
        path: of it; it is gone when the next one is asked for.
    """

    label: str
    path: Path


def nested(depth: int) -> list[Any]:
    """Lists inside each other."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree of JSON, from the top."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def edited(values: Any, rng: random.Random) -> tuple[str, Any]:
    """A tree of JSON with one change, and its name: a value of another kind, a key gone, or one more."""
    values = json.loads(json.dumps(values))
    *above, last = rng.choice([place for place in places(values) if place])
    holder = values
    for key in above:
        holder = holder[key]
    what = rng.choice(("odd", "odd", "odd", "gone", "more", "deep", "doubled"))
    name = f"{what} at {'/'.join(map(str, (*above, last)))}"
    if what == "gone":
        del holder[last]
    elif what == "more" and isinstance(holder, dict):
        holder[rng.choice(["x", "", "\0", "__proto__", "a" * 1000])] = rng.choice(ODD)
    elif what == "deep":
        holder[last] = nested(rng.choice((5, 40, 300)))
    elif what == "doubled" and isinstance(holder[last], list):
        holder[last] = holder[last] * 2
    else:
        odd = rng.choice(ODD)
        holder[last] = odd
        name += f" {str(odd)[:20]!a}"
    return name, values


def renewed(
    folder: Path, edit: Callable[[dict[str, Any]], Any] = lambda manifest: manifest, *, files: bool = True
) -> None:
    """Edit a manifest, and hash everything anew, as an attacker does.

    Args:
        folder: of the bundle.
        edit: of the manifest's values.
        files: whether the files' hashes are renewed too.
    """
    manifest = edit(json.loads((folder / MANIFEST).read_text()))
    if isinstance(manifest, dict):
        if files and isinstance(manifest.get("files"), dict):
            manifest["files"] = {
                name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]
            }
        manifest["manifest_sha256"] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def flipped(content: bytes, rng: random.Random) -> bytes:
    """A content with some bytes changed, cut out, or put in."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) or 1)
        what = rng.choice(("byte", "byte", "cut", "in"))
        if what == "byte" and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif what == "cut":
            del changed[at : at + rng.choice((1, 4, 4096))]
        else:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
    return bytes(changed)


def sparse(path: Path, size: int = 12 * 2**30) -> None:
    """Put a file of holes in the place of another."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else in the place of a file."""
    path.unlink(missing_ok=True)
    make(path)


THINGS: Mapping[str, Callable[[Path], object]] = {
    "a pipe": lambda path: replaced(path, os.mkfifo),
    "a folder": lambda path: replaced(path, Path.mkdir),
    "a link to a device": lambda path: replaced(path, lambda p: p.symlink_to("/dev/zero")),
    "a link to itself": lambda path: replaced(path, lambda p: p.symlink_to(p.name)),
    "a dangling link": lambda path: replaced(path, lambda p: p.symlink_to("absent")),
    "a file of holes": sparse,
    "nothing": lambda path: path.unlink(),
    "an empty file": lambda path: path.write_bytes(b""),
}
"""What may lie where a file is expected."""


def altered_bundles(bundle: Path, folder: Path, count: int, seed: int) -> Iterator[Altered]:
    """Bundles that were altered, and mostly hashed anew; none of them may be taken for what it was.

    Args:
        bundle: a right one.
        folder: to make them in, one at a time.
        count: how many.
        seed: of the choices.
    """
    rng = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    path = folder / "x.engine"
    for number in range(count):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(bundle, path)
        label = _alter(path, rng)
        yield Altered(f"{seed}/{number}: {label}", path)
    shutil.rmtree(path, ignore_errors=True)


def _alter(path: Path, rng: random.Random) -> str:
    manifest = json.loads((path / MANIFEST).read_text())
    names = [MANIFEST, *manifest["files"]]
    what = rng.choice(("manifest", "manifest", "manifest", "validation", "bytes", "raw", "thing", "beside"))
    if what == "manifest":
        label, values = edited(manifest, rng)
        renewed(path, lambda _: values, files=False)
        return f"manifest.json, {label}"
    if what == "validation" and VALIDATION in manifest["files"]:
        label, values = edited(json.loads((path / VALIDATION).read_text()), rng)
        (path / VALIDATION).write_text(json.dumps(values))
        renewed(path)
        return f"validation.json, {label}"
    name = rng.choice(names)
    if what == "bytes":  # hashed anew
        name = rng.choice(sorted(manifest["files"]))
        (path / name).write_bytes(flipped((path / name).read_bytes(), rng))
        renewed(path)
        return f"bytes of {name}, hashed anew"
    if what == "thing":
        label = rng.choice(list(THINGS))
        THINGS[label](path / name)
        return f"{label} for {name}"
    if what == "beside":
        label = rng.choice([label for label in THINGS if label != "nothing"])
        THINGS[label](path / rng.choice(("other", ".hidden", "a b", "model.onnx.data")))
        return f"{label} beside the files"
    content = flipped((path / name).read_bytes(), rng)
    (path / name).write_bytes(content)
    return f"bytes of {name}"


def altered_checkpoints(checkpoint: Path, folder: Path, count: int, seed: int) -> Iterator[Altered]:
    """Checkpoints that were altered, with the JSON beside them.

    Args:
        checkpoint: a right one, in safetensors, its JSON beside it.
        folder: to make them in, one at a time.
        count: how many.
        seed: of the choices.
    """
    rng = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    path, beside = folder / f"x{checkpoint.suffix}", folder / "x.json"
    for number in range(count):
        for each in (path, beside):
            if each.is_dir():
                each.rmdir()
            each.unlink(missing_ok=True)
        shutil.copy(checkpoint, path)
        shutil.copy(checkpoint.with_suffix(".json"), beside)
        yield Altered(f"{seed}/{number}: {_alter_checkpoint(path, beside, rng)}", path)


def _alter_checkpoint(path: Path, beside: Path, rng: random.Random) -> str:
    what = rng.choice(("json", "json", "header", "header", "bytes", "bytes beside", "thing", "thing beside"))
    if what == "json":
        label, values = edited(json.loads(beside.read_text()), rng)
        beside.write_text(json.dumps(values))
        return f"JSON, {label}"
    if what == "header":
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        label, values = edited(json.loads(content[8 : 8 + length]), rng)
        header = json.dumps(values).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
        return f"header, {label}"
    target = beside if what.endswith("beside") else path
    if what.startswith("thing"):
        label = rng.choice(list(THINGS))
        THINGS[label](target)
        return f"{label} for {target.name}"
    target.write_bytes(flipped(target.read_bytes(), rng))
    return f"bytes of {target.name}"
