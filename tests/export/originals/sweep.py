"""Changes each module of a pickled model in turn, in every way that could change what it computes."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.modules import MOST
from painn_deploy.export.readers.stand_ins import Name, StandIn

LISTS = ("ModuleList", "Sequential")
HOOK = {0: Name("torch.nn.functional", "silu")}
ADDED = StandIn(Name("torch.nn.modules.linear", "Linear"))
CONTAINERS = ("_modules", "_parameters", "_buffers")
ADDITIONS: dict[str, tuple[str | None, str, Any]] = {
    **{f"a hook, {name}": (None, name, HOOK) for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")},
    "a method": (None, "forward", Name("evil", "forward")),
    "an attribute": (None, "temperature", 0.0),
    "a private attribute": (None, "_scale", 0.5),
    **{f"one of {where}": (where, "extra", ADDED) for where in CONTAINERS},
}
"""What is put into a module: into which of its dicts, by which name."""


def every(module: StandIn) -> Iterator[StandIn]:
    """A module and those inside it, each once."""
    found = {id(module): module}
    left = [module]
    while left:
        held = left.pop()
        yield held
        inside = [each for each in held.state.get("_modules", {}).values() if isinstance(each, StandIn)]
        left += [found.setdefault(id(each), each) for each in inside if id(each) not in found]


def count_of_refused_changes(model: StandIn, read: Callable[[], Any]) -> int:
    """Change one thing after the other, each time see that it is refused by its name, and take it back.

    Args:
        model: what is changed.
        read: reads it, and raises.
    """
    read()
    count = 0
    for module in list(every(model)):
        listed, keyed = module.kind.endswith(LISTS), module.kind.endswith("ModuleDict")
        inside = module.state["_modules"]
        for where, name, value in ADDITIONS.values():
            held = module.state[where] if where else module.state
            message = f"holds {name}, which {module.kind} does not"
            if held is inside and listed:
                message = "names its modules otherwise than by numbers"
            if held is not inside or not keyed:  # one more model in a sum is no other thing
                count += _refused(read, message, held, name, value)
        if listed or keyed:
            many = {str(index): next(iter(inside.values())) for index in range(MOST + 1)}
            count += _refused(read, "holds 101 modules, and no more than 100", module.state, "_modules", many)
        if listed:
            odd = {f"x{name}": each for name, each in inside.items()}
            count += _refused(read, "names its modules otherwise than by numbers", module.state, "_modules", odd)
        count += _refused(read, f" is evil.{module.kind}, no", vars(module), "name", Name("evil", module.kind))
    return count


def _refused(read: Callable[[], Any], message: str, held: dict[Any, Any], name: str, value: Any) -> int:
    with pytest.MonkeyPatch.context() as changed:
        changed.setitem(held, name, value)
        with pytest.raises(CheckpointError, match=re.escape(message)):
            read()
    return 1
