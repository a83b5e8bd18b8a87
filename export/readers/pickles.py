"""A reader of pickles that builds stand-ins: it knows few instructions, imports nothing and calls nothing."""

import io
import pickletools
from contextlib import suppress
from typing import Any

from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.stand_ins import CONVERTER, Name, StandIn, Storage, known, refused

__all__ = ["check_names", "read_pickle", "read_storages"]

LARGEST = 8 * 2**20
"""Bytes of a pickle: a hundred times SchNetPack's. The numbers of a model are in records of their own."""

SCALARS = frozenset(
    {
        *("BINFLOAT", "BININT", "BININT1", "BININT2", "LONG1", "BINBYTES", "SHORT_BINBYTES"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    }
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
BUILTINS = ("builtins", "__builtin__")
SEQUENCES = ("set", "frozenset", "list", "tuple")
PROTO = b"\x80"
"""How a pickle begins since its second protocol."""

MARK = object()


def read_pickle(data: bytes, source: str) -> Any:
    """Read a pickle into plain values, names and stand-ins.

    Sets become lists, and an OrderedDict a dict. Nothing is hashed but text, numbers and names, so that no nesting can
    make it slow; what refers to itself stays so, and whoever walks it has to take known paths.

    Args:
        data: the pickle.
        source: the file, for messages.

    Raises:
        CheckpointError: it is cut short, uses an instruction or names a thing that no model needs.
    """
    return _run(_Machine(source), data, source)


def read_storages(data: bytes, source: str) -> dict[str, Storage]:
    """Storages that a pickle refers to, by their names.

    Args:
        data: the pickle.
        source: the file, for messages.

    Raises:
        CheckpointError: see `read_pickle`.
    """
    machine = _Machine(source)
    _run(machine, data, source)
    return machine.storages


def _run(machine: "_Machine", data: bytes, source: str) -> Any:
    if len(data) > LARGEST:
        raise CheckpointError(f"{source}: its pickle has {len(data):,} bytes, and no model's is that large.")
    try:
        return machine.run(data)
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{source}: its pickle is corrupt or cut short ({str(error)[:100]}).") from error


def check_names(data: bytes, source: str) -> None:
    """Refuse pickles, one after the other as torch wrote them before 1.6, that name more than tensors need.

    Args:
        data: of the file; what follows the pickles is numbers.
        source: the file, for messages.

    Raises:
        CheckpointError: a name is in no list, or is that of a module; it is in the message.
    """
    for name in _names(data):
        if not known(name):
            raise refused(name, source)
        if name.module.startswith("schnetpack."):
            raise CheckpointError(
                f"{source} holds a model ({name}) as torch wrote it before 1.6, which is not read. Load and save it "
                f"with a newer torch, or convert it with {CONVERTER}, both where you trained it."
            )


def _names(data: bytes) -> list[Name]:
    """What pickles mention, the first first; nothing of them is built."""
    stream, found, words = io.BytesIO(data), list[Name](), ["", ""]
    with suppress(ValueError, IndexError):  # where the pickles end
        while data[stream.tell() : stream.tell() + 1] == PROTO:
            for code, argument, _ in pickletools.genops(stream):
                if code.name in ("GLOBAL", "INST"):
                    module, _, name = str(argument).partition(" ")
                    found.append(Name(module, name))
                elif code.name == "STACK_GLOBAL":
                    found.append(Name(*words))
                elif isinstance(argument, str):
                    words = [words[1], argument]
    return found


class _Machine:
    """The stack machine that a pickle is a program for."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, data: bytes) -> Any:
        for code, argument, position in pickletools.genops(io.BytesIO(data)):
            name = code.name
            if name == "STOP":
                if len(self._stack) != 1:
                    raise ValueError("it leaves more than one value")
                return self._stack[0]
            if name in SCALARS:
                self._stack.append(argument)
            elif name in CONSTANTS:
                self._stack.append(CONSTANTS[name])
            elif name in EMPTY:
                self._stack.append(EMPTY[name]())
            elif name in TUPLES:
                self._stack.append(tuple(self._taken(TUPLES[name])))
            elif name in ("PROTO", "FRAME"):
                pass
            elif (does := getattr(self, f"_{name.lower()}", None)) is not None:
                does(argument)
            else:
                raise CheckpointError(
                    f"{self._source}: its pickle has the instruction {name} at byte {position}, which no model "
                    "needs. Nothing was executed."
                )
        raise ValueError("it has no end")

    def _taken(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("it takes more than it holds")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _since_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is MARK:
                taken = self._stack[index + 1 :]
                del self._stack[index:]
                return taken
        raise ValueError("a mark is missing")

    # Instructions, by pickletools' names for them.

    def _mark(self, _: Any) -> None:
        self._stack.append(MARK)

    def _pop(self, _: Any) -> None:
        self._stack.pop()

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _frozenset(self, _: Any) -> None:
        self._stack.append(self._since_mark())

    def _binput(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _long_binput = _binput

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _binget(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _long_binget = _binget

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_name(module, name)

    def _stack_global(self, _: Any) -> None:
        module, name = self._taken(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name is no text")
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        made = Name(module, name)
        if not known(made):
            raise refused(made, self._source)
        self._stack.append(made)

    def _reduce(self, _: Any) -> None:
        function, arguments = self._taken(2)
        if isinstance(function, StandIn):  # a method; a module that keeps one is fine, a call of it is not
            raise refused(function.name, self._source)
        self._stack.append(_made(function, arguments))

    def _newobj(self, _: Any) -> None:
        kind, arguments = self._taken(2)
        self._stack.append(_made(kind, arguments))

    def _newobj_ex(self, _: Any) -> None:
        kind, arguments, _ = self._taken(3)
        self._stack.append(_made(kind, arguments))

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        held = self._stack[-1]
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]
        if isinstance(held, StandIn) and isinstance(state, dict):
            if held.state:
                raise ValueError("an object gets its attributes twice")
            held.state = state  # never copied: what a pickle shares, however often, is there once

    def _append(self, _: Any) -> None:
        self._extend(self._taken(1))

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    _additems = _appends

    def _extend(self, values: list[Any]) -> None:
        held = self._stack[-1]
        if isinstance(held, list):
            held.extend(values)
        elif isinstance(held, StandIn):
            held.items.update(enumerate(values, len(held.items)))
        else:
            raise ValueError("something is appended to what is no list")

    def _setitem(self, _: Any) -> None:
        self._fill(self._taken(2))

    def _setitems(self, _: Any) -> None:
        self._fill(self._since_mark())

    def _fill(self, values: list[Any]) -> None:
        held = self._stack[-1]
        target = held.items if isinstance(held, StandIn) else held
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("items are set in what is no mapping")
        for key, value in zip(values[::2], values[1::2], strict=True):
            flat = key if isinstance(key, tuple) else (key,)  # no deeper: hashing what is nested often takes for ever
            if not all(isinstance(part, str | int | float | Name | None) for part in flat):
                raise ValueError(f"a mapping has a key that is a {type(key).__name__}")
            target[key] = value

    def _binpersid(self, _: Any) -> None:
        match self._stack.pop():
            case ("storage", Name("torch", kind), str(record), _, int(numel), *views) if views in ([], [None]):
                storage = Storage(kind, record, numel)
                self.storages.setdefault(record, storage)
                self._stack.append(storage)
            case ("module", Name() as name, str(), str() | None):  # before 1.6: a class, and the text of its source
                self._stack.append(name)
            case _:
                raise ValueError("it refers to something that is no storage of numbers")


def _made(made_by: Any, arguments: Any) -> Any:
    """What a call would have made."""
    if not isinstance(made_by, Name) or not isinstance(arguments, tuple):
        raise ValueError("it calls what is no name")
    if str(made_by) == "collections.OrderedDict" and not arguments:
        return {}
    if made_by.module in BUILTINS and made_by.name in SEQUENCES:
        (values,) = arguments or ([],)
        if not isinstance(values, list | tuple):
            raise ValueError(f"a {made_by.name} is made of what is no list")
        return values
    if made_by.module == "torch.jit._pickle":
        return arguments[0]
    return StandIn(made_by, arguments)
