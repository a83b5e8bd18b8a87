"""Modules of each class that readers know are taken as they are, and with nothing else in them."""

from typing import Any

import numpy as np
import pytest
import torch

from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers import curator_parts, graph_pes_parts, nff_modules
from painn_deploy.export.readers.archive import Archive
from painn_deploy.export.readers.modules import TORCH, Code, Modules
from painn_deploy.export.readers.stand_ins import Name, StandIn
from tests.export.originals.sweep import ADDED, ADDITIONS, HOOK, LISTS
from tests.export.schnetpack.edits import packed

CODES = {"graph-pes": graph_pes_parts.CODE, "NeuralForceField": nff_modules.CODE, "curator": curator_parts.CODE}
CLASSES = [(code, name) for code, held in CODES.items() for name in (*TORCH, *held.classes)]


def modules(code: Code) -> Modules:
    return Modules(Archive(packed({"archive/data.pkl": b"\x80\x02N."}), "a.pt"), code)


def whole(code: Code, name: str) -> StandIn:
    """A module of a class with all that it may hold, and what torch gives each."""
    values, parts = {**TORCH, **code.classes}[name]
    state: dict[str, Any] = {"training": True, "_forward_hooks": {}, "_is_full_backward_hook": None}
    state |= {"_non_persistent_buffers_set": ["disp_mat"], "_parameters": {}, "_buffers": {"none": None}}
    state["_modules"] = dict.fromkeys(("0", "1") if parts is None else parts.split(), ADDED)
    state |= {value: 1 for value in values.split() if value not in state["_modules"]}
    module, _, kind = name.rpartition(".")
    return StandIn(Name(module, kind), state=state)


@pytest.mark.parametrize(("code", "name"), CLASSES)
def test_a_module_has_nothing_beside_what_its_class_has(code: str, name: str) -> None:
    walk, kind = modules(CODES[code]), name.rpartition(".")[2]
    assert walk.module(whole(CODES[code], name), "it", kind, "Other").kind == kind
    for where, key, value in ADDITIONS.values():
        thing = whole(CODES[code], name)
        (thing.state[where] if where else thing.state)[key] = value
        if where == "_modules" and kind.endswith((*LISTS, "ModuleDict")):
            assert walk.module(thing, "it", kind) is thing  # which members a list has is looked at where it is taken
            continue
        with pytest.raises(CheckpointError, match=rf"^a.pt: it holds {key}, which {kind} does not: it may change what"):
            walk.module(thing, "it", kind)


@pytest.mark.parametrize(("code", "name"), CLASSES)
def test_a_class_is_known_by_its_full_name(code: str, name: str) -> None:
    thing, kind = whole(CODES[code], name), name.rpartition(".")[2]
    for module in ("evil", f"evil.{thing.name.module}", f"{thing.name.module}.evil"):
        thing.name = Name(module, kind)
        with pytest.raises(CheckpointError) as refused:
            modules(CODES[code]).module(thing, "it", kind)
        assert str(refused.value) == f"a.pt: it is {module}.{kind}, not {name}. {CODES[code].deployed}"


@pytest.mark.parametrize("code", CODES)
def test_a_class_of_another_place_is_refused(code: str) -> None:
    linear = whole(CODES[code], "torch.nn.modules.linear.Linear")
    with pytest.raises(CheckpointError, match=r"it is \S+\.Linear, not \S+\.SiLU"):
        modules(CODES[code]).module(linear, "it", "SiLU")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    "change",
    [
        {"args": (3.0,)},  # attributes that only its constructor would make
        {"items": {0: ADDED}},
        {"state": {"_parameters": None}},
        {"state": {"_modules": [ADDED]}},
        {"state": {"weight": ADDED, "_parameters": {"weight": ADDED}}},  # torch takes the first
        {"state": {"_buffers": {"weight": ADDED}, "_parameters": {"weight": ADDED}}},
        {"state": {"_modules": {"bias": ADDED}, "_parameters": {"bias": None}}},
    ],
)
def test_a_module_is_as_torch_pickles_it(code: str, change: dict[str, Any]) -> None:
    thing = StandIn(Name("torch.nn.modules.linear", "Linear"), **change)
    with pytest.raises(CheckpointError, match="it holds its tensors and modules otherwise than torch does"):
        modules(CODES[code]).module(thing, "it", "Linear")


def listed(kind: str, *names: str) -> StandIn:
    return StandIn(Name("torch.nn.modules.container", kind), state={"_modules": dict.fromkeys(names, ADDED)})


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("kind", ["ModuleList", "Sequential"])
def test_lists_hold_numbered_members(code: str, kind: str) -> None:
    walk, hundred = modules(CODES[code]), [str(index) for index in range(100)]
    assert list(walk.members(listed(kind, *hundred), "it", kind)) == hundred
    for names in (("1",), ("1", "0"), ("0", "more"), ("0", "01"), ("00",)):
        with pytest.raises(CheckpointError, match="it names its modules otherwise than by numbers"):
            walk.members(listed(kind, *names), "it", kind)
    with pytest.raises(CheckpointError, match="it holds 101 modules, and no more than 100 are read"):
        walk.members(listed(kind, *hundred, "100"), "it", kind)
    thing = listed(kind, "0")
    thing.state["_forward_pre_hooks"] = HOOK
    with pytest.raises(CheckpointError, match="it holds _forward_pre_hooks"):
        walk.members(thing, "it", kind)


@pytest.mark.parametrize("code", CODES)
def test_dicts_hold_named_members(code: str) -> None:
    walk = modules(CODES[code])
    assert list(walk.members(listed("ModuleDict", "energy", "0"), "it", "ModuleDict")) == ["energy", "0"]
    with pytest.raises(CheckpointError, match="it holds 101 modules"):
        walk.members(listed("ModuleDict", *map(str, range(101))), "it", "ModuleDict")
    with pytest.raises(CheckpointError, match="it is .*ModuleDict, not .*ModuleList"):
        walk.members(listed("ModuleDict"), "it", "ModuleList")


def scalar(kind: str, content: Any, module: str = "numpy._core.multiarray") -> StandIn:
    return StandIn(Name(module, "scalar"), (StandIn(Name("numpy", "dtype"), (kind, False, True)), content))


def test_a_number_is_one() -> None:
    walk = modules(nff_modules.CODE)
    for number in (2, 2.5, scalar("f8", np.float64(2.5).tobytes()), scalar("f4", np.float32(2.5).tobytes())):
        assert walk.number(number, "it") == (2 if number == 2 else 2.5)
    content = np.float64(2.5).tobytes()
    for thing in (
        True,
        "2",
        None,
        torch.ones(1),
        scalar("f4", content),
        scalar("f8", content, "evil"),
        scalar("f8", "€"),
    ):
        with pytest.raises(CheckpointError, match="^a.pt: it is no number; it is "):
            walk.number(thing, "it")
