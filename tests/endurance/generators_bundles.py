"""Altered bundles: pure functions of a seed, a number and an engine.

Either as accidents alter them, when their hashes no longer fit, or as an attacker does, who hashes anew. Each says
what may come of it: `refuse` an error of ours, `same` the energies of before, `anew` other energies, which is by design
where weights or references were replaced and everything was hashed again.
"""

import hashlib
import json
import math
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from painn_deploy.export.manifest import MANIFEST, MODEL, VALIDATION

__all__ = ["ACCIDENTS", "ATTACKS", "Alteration", "altered"]

PACKAGES = "packages.json"

Rng = np.random.Generator
Alter = Callable[[Path, Rng], None]

MAY_BE_READ = frozenset({"refuse", "same"})
MUST_BE_REFUSED = frozenset({"refuse"})
ANYTHING = frozenset({"refuse", "same", "anew"})

ACCIDENTS: dict[str, tuple[Alter, frozenset[str]]] = {}
ATTACKS: dict[str, tuple[Alter, frozenset[str]]] = {}


@dataclass(frozen=True)
class Alteration:
    """A way to alter a bundle.

    Attributes:
        kind: what is done.
        renewed: whether everything is hashed again.
        may: what may come of it: `refuse`, `same`, `anew`.
    """

    kind: str
    renewed: bool
    may: frozenset[str]
    _alter: Alter
    _seed: tuple[int, ...]

    def apply(self, folder: Path) -> None:
        """Alter the bundle in a folder."""
        self._alter(folder, np.random.default_rng(self._seed))
        if self.renewed:
            hash_anew(folder)


def altered(seed: int, number: int, engine: str) -> Alteration:
    """One of them; accidents and attacks take turns, and every kind of them.

    Args:
        seed: of all.
        number: of this one.
        engine: whose bundle it is for.
    """
    renewed = bool(number % 2)
    table = ATTACKS if renewed else ACCIDENTS
    names = [name for name in table if engine == "inductor" or PACKAGES not in name]
    name = names[(number // 2) % len(names)]
    alter, may = table[name]
    if engine != "onnxruntime" and "graph" in name:
        may |= {"same"}  # it runs what was made of the graph, and not the graph
    return Alteration(name, renewed, may, alter, (seed, number))


def hash_anew(folder: Path) -> None:
    """What an attacker does: hash every file that the manifest lists and that is there, and the manifest itself."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(values, dict):
        return
    if isinstance(values.get("files"), dict):
        values["files"] = {name: _digest(folder, name, old) for name, old in values["files"].items()}
    rest = {key: value for key, value in values.items() if key != "manifest_sha256"}
    values["manifest_sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _digest(folder: Path, name: str, old: Any) -> Any:
    try:
        path = folder / name
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else old
    except (OSError, ValueError):  # no name of a file
        return old


def _pick(rng: Rng, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _listed(folder: Path, rng: Rng) -> Path:
    """A file that the manifest lists."""
    listed = [path for path in _files(folder) if path.name != MANIFEST]
    return listed[int(rng.integers(len(listed)))]


def _kind(table: dict[str, tuple[Alter, frozenset[str]]], may: frozenset[str]) -> Callable[[Alter], Alter]:
    def add(alter: Alter) -> Alter:
        table[alter.__name__.strip("_").replace("packages_json", PACKAGES).replace("_", " ")] = alter, may
        return alter

    return add


# --- accidents, and what lies in a folder


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_bit_of_a_file_flipped(folder: Path, rng: Rng) -> None:
    path = _listed(folder, rng)
    content = bytearray(path.read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_stretch_of_a_file_overwritten(folder: Path, rng: Rng) -> None:
    path = _listed(folder, rng)
    content = bytearray(path.read_bytes())
    start = int(rng.integers(len(content)))
    stretch = rng.bytes(int(rng.integers(8, 4096)))
    content[start : start + len(stretch)] = stretch
    path.write_bytes(content)


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_file_cut_short(folder: Path, rng: Rng) -> None:
    path = _listed(folder, rng)
    os.truncate(path, int(rng.integers(path.stat().st_size)) * int(rng.integers(2)))


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_file_made_longer(folder: Path, rng: Rng) -> None:
    with _listed(folder, rng).open("ab") as file:
        file.write(rng.bytes(int(rng.integers(1, 100))))


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_file_removed(folder: Path, rng: Rng) -> None:
    _pick(rng, _files(folder)).unlink()


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_file_renamed(folder: Path, rng: Rng) -> None:
    path = _pick(rng, _files(folder))
    path.rename(path.with_name(_pick(rng, (f"{path.name}.bak", path.name.upper(), f" {path.name}", f".{path.name}"))))


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _two_files_exchanged(folder: Path, rng: Rng) -> None:
    one, other = (_files(folder)[place] for place in rng.permutation(len(_files(folder)))[:2])
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_file_added(folder: Path, rng: Rng) -> None:
    names = ("notes.txt", ".hidden", "model.onnx.data", "x.so", "ä.bin", "model.onnx~", "a b", "-rf", "\n", "x" * 200)
    (folder / _pick(rng, names)).write_bytes(rng.bytes(64))


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_folder_added(folder: Path, rng: Rng) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "model.onnx").write_bytes(b"x")


@_kind(ACCIDENTS, MAY_BE_READ)
def _an_empty_folder_added(folder: Path, rng: Rng) -> None:
    (folder / "more" / "and more").mkdir(parents=True)


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_folder_in_place_of_a_file(folder: Path, rng: Rng) -> None:
    path = _pick(rng, _files(folder))
    path.unlink()
    path.mkdir()


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_fifo_in_place_of_a_file(folder: Path, rng: Rng) -> None:
    path = _pick(rng, _files(folder))
    path.unlink()
    os.mkfifo(path)


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_fifo_or_socket_added(folder: Path, rng: Rng) -> None:
    if rng.integers(2):
        os.mkfifo(folder / "pipe")
        return
    here = Path.cwd()  # names of sockets are short
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket")
    finally:
        os.chdir(here)


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_link_in_place_of_a_file(folder: Path, rng: Rng) -> None:
    """To a device, to itself, to nothing, to a folder."""
    path = _pick(rng, _files(folder))
    path.unlink()
    path.symlink_to(_pick(rng, ("/dev/zero", "/dev/random", path.name, "gone", "/etc", "/dev/stdin", "/proc/self/mem")))


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_link_added(folder: Path, rng: Rng) -> None:
    (folder / "more").symlink_to(_pick(rng, ("/dev/zero", ".", "..", "gone", "/etc", "model.onnx")))


@_kind(ACCIDENTS, MAY_BE_READ)
def _a_link_to_the_same_content(folder: Path, rng: Rng) -> None:
    path = _pick(rng, _files(folder))
    moved = folder.with_name(f"{folder.name}.moved")
    path.rename(moved)
    path.symlink_to(moved)


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _a_vast_sparse_file(folder: Path, rng: Rng) -> None:
    os.truncate(_pick(rng, _files(folder)), int(10 ** rng.uniform(10, 11.5)))


@_kind(ACCIDENTS, MAY_BE_READ)
def _permissions(folder: Path, rng: Rng) -> None:
    """Root reads all; anyone else may be refused."""
    _pick(rng, _files(folder)).chmod(_pick(rng, (0o000, 0o200, 0o111, 0o444, 0o777, 0o4755)))


@_kind(ACCIDENTS, MAY_BE_READ)
def _times(folder: Path, rng: Rng) -> None:
    os.utime(_pick(rng, _files(folder)), (_pick(rng, (0, 2**31, 4e9)),) * 2)


@_kind(ACCIDENTS, MAY_BE_READ)
def _manifest_flipped(folder: Path, rng: Rng) -> None:
    path = folder / MANIFEST
    content = bytearray(path.read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


@_kind(ACCIDENTS, MAY_BE_READ)
def _manifest_written_otherwise(folder: Path, rng: Rng) -> None:
    """White space, order, a key twice, another encoding."""
    path = folder / MANIFEST
    text = path.read_text(encoding="utf-8")
    values = json.loads(text)
    options = (
        json.dumps(values).encode(),
        json.dumps(dict(reversed(values.items()))).encode(),
        text.encode() + b"\n\n",
        b"\xef\xbb\xbf" + text.encode(),
        text.encode("utf-16"),
        text.replace("{", '{"cutoff": 3.0,', 1).encode(),
        text.rstrip()[:-1].encode() + b', "cutoff": 3.0}',
    )
    path.write_bytes(_pick(rng, options))


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _manifest_of_garbage(folder: Path, rng: Rng) -> None:
    options = (b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 10_000, b"NaN")
    content = _pick(rng, (*options, rng.bytes(1000), b'{"format_version": 1}', b'"' + b"x" * 2_000_000 + b'"'))
    (folder / MANIFEST).write_bytes(content)


@_kind(ACCIDENTS, MUST_BE_REFUSED)
def _manifest_edited(folder: Path, rng: Rng) -> None:
    """A value, without a new hash."""
    _edit_json(folder / MANIFEST, rng)


# --- an attacker, who hashes everything again


def _values(rng: Rng) -> Any:
    """What no one expects."""
    deep: Any = 0
    for _ in range(int(rng.integers(1, 400))):
        deep = [deep]
    numbers = (0, -1, 1, 5, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, 1e-308, math.nan, math.inf, -math.inf)
    texts = ("", "x", "a\0b", "\ud800", "../x", "/etc/passwd", "fp32", "x" * 10_000, "\n", "5.0", "true")
    others: tuple[Any, ...] = (
        None,
        True,
        False,
        [],
        {},
        [5],
        [[]],
        ["a", 1, None],
        {"a": 1},
        {"": []},
        [None] * 1000,
        deep,
    )
    return _pick(rng, (*numbers, *texts, *others))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value that JSON holds."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


def _edit_json(path: Path, rng: Rng, within: Callable[[tuple[Any, ...]], bool] = lambda _: True) -> None:
    """Replace, remove or add one value somewhere."""
    values = json.loads(path.read_text(encoding="utf-8"))
    place = _pick(rng, [found for found in _places(values) if within(found) and found[0] != "manifest_sha256"])
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    match int(rng.integers(6)):
        case 0:
            del inner[place[-1]]
        case 1 if isinstance(inner, dict):
            inner[_pick(rng, ("", "x", "a\0b", "x" * 1000, "__class__"))] = _values(rng)
        case _:
            old = inner[place[-1]]
            inner[place[-1]] = new = _values(rng)
            if new == old and type(new) is type(old):
                inner[place[-1]] = [new, new]
    path.write_text(json.dumps(values), encoding="utf-8")


DECIDES = ("atomic_references", "species")
"""Keys of a manifest that energies are computed with, which nothing else in a bundle need repeat."""


@_kind(ATTACKS, MAY_BE_READ)
def _a_manifest_value(folder: Path, rng: Rng) -> None:
    _edit_json(folder / MANIFEST, rng, lambda place: place[0] not in (*DECIDES, "files"))


@_kind(ATTACKS, MAY_BE_READ)
def _another_manifest_value(folder: Path, rng: Rng) -> None:
    """Of those at the top, each as often as another."""
    _edit_json(folder / MANIFEST, rng, lambda place: len(place) == 1 and place[0] not in (*DECIDES, "files"))


@_kind(ATTACKS, ANYTHING)
def _references_and_species(folder: Path, rng: Rng) -> None:
    _edit_json(folder / MANIFEST, rng, lambda place: place[0] in DECIDES)


@_kind(ATTACKS, MAY_BE_READ)
def _the_cutoff(folder: Path, rng: Rng) -> None:
    """The graph's own metadata says another."""
    path = folder / MANIFEST
    values = json.loads(path.read_text(encoding="utf-8"))
    values["cutoff"] = float(_pick(rng, (3.0, 4.999, 6.0, 1e-300, 1e300)))
    if rng.integers(2):
        values["configuration"]["cutoff"] = values["cutoff"]
    path.write_text(json.dumps(values), encoding="utf-8")


@_kind(ATTACKS, MUST_BE_REFUSED)
def _names_of_files(folder: Path, rng: Rng) -> None:
    path = folder / MANIFEST
    values = json.loads(path.read_text(encoding="utf-8"))
    names = ("../x", "/etc/passwd", "a\0b", "a/b", "", ".", "..", "\ud800", "x" * 300, "manifest.json", "a\nb", "C:\\x")
    name = _pick(rng, names)
    sha = hashlib.sha256(b"here").hexdigest()
    if name in ("../x", "a/b"):  # they are there, and would be read
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"here")
    values["files"][name] = _pick(rng, (sha, None, 5, [], "x"))
    path.write_text(json.dumps(values), encoding="utf-8")


@_kind(ATTACKS, MUST_BE_REFUSED)
def _the_list_of_files(folder: Path, rng: Rng) -> None:
    path = folder / MANIFEST
    values = json.loads(path.read_text(encoding="utf-8"))
    values["files"] = _pick(rng, (None, [], {}, "model.onnx", list(values["files"]), 5, {"x": "y"}))
    path.write_text(json.dumps(values), encoding="utf-8")


@_kind(ATTACKS, MAY_BE_READ)
def _a_value_of_the_validation(folder: Path, rng: Rng) -> None:
    _edit_json(folder / VALIDATION, rng)


@_kind(ATTACKS, MAY_BE_READ)
def _a_validation_of_garbage(folder: Path, rng: Rng) -> None:
    options = (
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"NaN",
        b"1" * 10_000,
        b'"x"',
    )
    (folder / VALIDATION).write_bytes(_pick(rng, (*options, rng.bytes(1000))))


@_kind(ATTACKS, ANYTHING)
def _a_byte_of_the_graph(folder: Path, rng: Rng) -> None:
    path = folder / MODEL
    content = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        content[int(rng.integers(len(content)))] = int(rng.integers(256))
    path.write_bytes(content)


@_kind(ATTACKS, MUST_BE_REFUSED)
def _a_graph_of_garbage(folder: Path, rng: Rng) -> None:
    path = folder / MODEL
    content = path.read_bytes()
    options = (b"", b"\x08", rng.bytes(2000), content[: int(rng.integers(1, len(content) - 1))], b"\x7fELF" + content)
    path.write_bytes(_pick(rng, options))


def _edit_graph(folder: Path, edit: Callable[[Any], None]) -> None:
    import onnx

    model = onnx.load(str(folder / MODEL))
    edit(model)
    (folder / MODEL).write_bytes(model.SerializeToString())


@_kind(ATTACKS, ANYTHING)
def _weights(folder: Path, rng: Rng) -> None:
    def edit(model: Any) -> None:
        tensor = _pick(rng, [t for t in model.graph.initializer if t.data_type == 1 and len(t.raw_data) > 64])
        scale = _pick(rng, (1.01, 0.0, -1.0, np.nan, np.inf))
        tensor.raw_data = (np.frombuffer(tensor.raw_data, "<f4") * np.float32(scale)).astype("<f4").tobytes()

    with np.errstate(all="ignore"):
        _edit_graph(folder, edit)


@_kind(ATTACKS, MUST_BE_REFUSED)
def _weights_outside_of_the_graph(folder: Path, rng: Rng) -> None:
    """In a file that no manifest lists: here, elsewhere, in the memory of the process."""

    def edit(model: Any) -> None:
        tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        raw = bytes(tensor.raw_data)
        outside = folder.with_name("unlisted.bin")
        outside.write_bytes((np.frombuffer(raw, "<f4") * np.float32(1.5)).tobytes())
        names = ("unlisted.bin", "../unlisted.bin", str(outside), "/dev/zero", "*/_ORT_MEM_ADDR_/*", "")
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        for key, value in (("location", _pick(rng, names)), ("offset", "0"), ("length", str(len(raw)))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    _edit_graph(folder, edit)


@_kind(ATTACKS, ANYTHING)
def _nodes_of_the_graph(folder: Path, rng: Rng) -> None:
    def edit(model: Any) -> None:
        nodes = model.graph.node
        match int(rng.integers(5)):
            case 0:
                _pick(rng, nodes).op_type = _pick(rng, ("Det", "Neg", "NoSuchNode", "Loop", ""))
            case 1:
                del nodes[int(rng.integers(len(nodes)))]
            case 2:
                _pick(rng, nodes).domain = "com.example"
            case 3:
                node = _pick(rng, [one for one in nodes if one.input])
                node.input[0] = _pick(rng, ("", "nothing", node.output[0]))
            case _:
                nodes.append(_pick(rng, nodes))

    _edit_graph(folder, edit)


@_kind(ATTACKS, ANYTHING)
def _ends_of_the_graph(folder: Path, rng: Rng) -> None:
    def edit(model: Any) -> None:
        ends = _pick(rng, (model.graph.input, model.graph.output))
        match int(rng.integers(4)):
            case 0:
                _pick(rng, ends).name = "another"
            case 1:
                del ends[int(rng.integers(len(ends)))]
            case 2:
                _pick(rng, ends).type.tensor_type.elem_type = int(_pick(rng, (7, 10, 11, 8)))
            case _:
                shape = _pick(rng, ends).type.tensor_type.shape
                del shape.dim[:]

    _edit_graph(folder, edit)


@_kind(ATTACKS, MAY_BE_READ)
def _metadata_of_the_graph(folder: Path, rng: Rng) -> None:
    def edit(model: Any) -> None:
        if not model.metadata_props:
            return
        entry = _pick(rng, model.metadata_props)
        entry.value = str(_pick(rng, ("", "x", "3.0", "{}", "[1]", "null", "[" * 5000, "\x00", "1e999")))

    _edit_graph(folder, edit)


@_kind(ATTACKS, MAY_BE_READ)
def _a_value_of_packages_json(folder: Path, rng: Rng) -> None:
    _edit_json(folder / PACKAGES, rng)


@_kind(ATTACKS, MUST_BE_REFUSED)
def _garbage_for_packages_json(folder: Path, rng: Rng) -> None:
    options = (
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b"1" * 10_000,
        b'"x"',
        b'{"a": {}}',
        b'{"large.pt2": 5}',
    )
    (folder / PACKAGES).write_bytes(_pick(rng, options))


@_kind(ATTACKS, MAY_BE_READ)
def _files_that_packages_json_names(folder: Path, rng: Rng) -> None:
    """Cut short, of garbage, or one in place of the other; never one whose code was changed, for that is run."""
    one, other = (folder / name for name in ("large.pt2", "small.pt2"))
    content = one.read_bytes()
    match int(rng.integers(4)):
        case 0:
            one.write_bytes(other.read_bytes())
            other.write_bytes(content)
        case 1:
            one.write_bytes(b"")
        case 2:
            one.write_bytes(rng.bytes(5000))
        case _:
            other.write_bytes(other.read_bytes()[: int(rng.integers(100, 100_000))])
