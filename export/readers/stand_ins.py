"""Stand-ins for the objects that a pickle describes: they hold what was written, and do nothing.

A pickle is a program. The names that it mentions would be imported and called by Python's own reader; here a name is
looked up in the lists below, and is text whatever happens. So nothing can run, and a name that is in no list is refused
all the same, since what it stands for may change the model.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.foreign import model_of_package

__all__ = ["CONVERTER", "Name", "StandIn", "Storage", "known", "refused"]

CONVERTER = "scripts/convert_schnetpack.py"
"""What reads models in SchNetPack's own environment, where their owner trusts them."""

PACKAGES = (
    *("schnetpack", "torch.nn", "torch.optim", "torchmetrics", "torch_ema"),
    *("pytorch_lightning", "lightning", "lightning_fabric"),
    *("__torch__.schnetpack", "__torch__.torch.nn"),
    *("nablaDFT", "torch_geometric"),
    *("graph_pes", "__torch__.graph_pes", "e3nn"),
    "nff",
    *("curator", "__torch__.curator", "hydra._internal.target_policy"),
)
"""Packages whose classes and functions are known by what surrounds them: modules, losses, optimisers, metrics."""

EXACT = frozenset(
    {
        *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"),
        *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"),
        *("torch.device", "torch.Size", "torch.torch.Size", "torch.serialization._get_layout"),
        *("torch.jit._pickle.restore_type_tag", "torch.jit._pickle.build_intlist"),
        *("torch.jit._pickle.build_doublelist", "torch.jit._pickle.build_boollist"),
        *("torch.jit._pickle.build_tensorlist", "torch._C._nn.gelu", "torch._C._nn.softplus", "torch._C._nn.silu"),
        *("torch.silu", "torch.tanh", "torch.sigmoid", "torch.relu", "torch.selu", "torch.celu"),
        *("collections.OrderedDict", "collections.defaultdict", "collections.Counter", "collections.deque"),
        *(f"{b}.{t}" for b in ("builtins", "__builtin__") for t in ("set", "frozenset", "list", "dict", "tuple")),
        *(f"{b}.{t}" for b in ("builtins", "__builtin__") for t in ("int", "float", "bool", "complex", "slice")),
        *("_codecs.encode", "argparse.Namespace", "functools.partial"),
        *(f"numpy.{core}.multiarray.{n}" for core in ("core", "_core") for n in ("scalar", "_reconstruct")),
        *("numpy.dtype", "numpy.ndarray"),
        *(f"pathlib.{p}" for p in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
        *(f"pathlib._local.{p}" for p in ("Path", "PosixPath", "WindowsPath")),
        *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode"),
        *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
        *(f"{b}.{t}" for b in ("builtins", "__builtin__") for t in ("getattr", "long", "type")),
        *("torch.Tensor", "_operator.getitem", "inspect._empty"),
        *(f"typing.{t}" for t in ("Any", "Union", "Tuple", "OrderedDict", "Optional", "Dict", "List")),
    }
)
STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
DTYPES = (
    "float",
    "double",
    "half",
    "float16",
    "float32",
    "float64",
    "bfloat16",
    "int",
    "int8",
    "int16",
    "int32",
    "int64",
)
TORCH = frozenset(
    {*(f"torch.{s}Storage" for s in STORAGES), *(f"torch.{d}" for d in (*DTYPES, "long", "bool", "uint8"))}
)
ABSENT = object()


@dataclass(frozen=True)
class Name:
    """A class or a function that a pickle mentions: two words, and nothing behind them."""

    module: str
    name: str

    def __str__(self) -> str:
        """As one writes it."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Storage:
    """Where a tensor's numbers are.

    Attributes:
        kind: such as `FloatStorage`.
        record: of the file, by name.
        numel: numbers that it should hold.
    """

    kind: str
    record: str
    numel: int


@dataclass(eq=False)
class StandIn:
    """What a pickle says of one object.

    Attributes:
        name: of its class, or of the function that would have made it.
        args: that it would have been made with.
        state: its attributes, if they are in a dict.
        items: of a mapping, or of a list under the keys 0, 1, ...
    """

    name: Name
    args: tuple[Any, ...] = ()
    state: dict[Any, Any] = field(default_factory=dict)
    items: dict[Any, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Its class without the modules around it."""
        return self.name.name

    def part(self, name: str, default: Any = None) -> Any:
        """An attribute, a submodule, a parameter or a buffer.

        Args:
            name: of it.
            default: where there is none.
        """
        for held in (self.state, *(self.state.get(key) for key in ("_modules", "_parameters", "_buffers"))):
            if isinstance(held, Mapping) and name in held:
                return held[name]
        return default

    def has(self, name: str) -> bool:
        """Whether there is such a part."""
        return self.part(name, ABSENT) is not ABSENT

    def children(self) -> Iterator[tuple[str, "StandIn"]]:
        """Submodules by name: of a module as Python pickles it, or of one that TorchScript flattened."""
        modules = self.state.get("_modules")
        for name, value in (modules if isinstance(modules, Mapping) else self.state).items():
            if isinstance(name, str) and isinstance(value, StandIn) and value.name.name not in NO_MODULES:
                yield name, value

    def parameters(self) -> Iterator[str]:
        """Names of its parameters, as a state dict has them; of a module that has several places, at one of them."""
        left, seen = [("", self)], {id(self)}
        while left:
            path, module = left.pop()
            held = module.state.get("_parameters")
            yield from (f"{path}{name}" for name in (held if isinstance(held, Mapping) else ()))
            for name, child in module.children():
                if id(child) not in seen:
                    seen.add(id(child))
                    left.append((f"{path}{name}.", child))


NO_MODULES = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")


def known(name: Name) -> bool:
    """Whether a name is one that files of the codes that are read are made of."""
    if not all(part.isidentifier() for part in str(name).split(".")):
        return False
    return (
        str(name) in EXACT
        or str(name) in TORCH
        or any(name.module.startswith(f"{p}.") or name.module == p for p in PACKAGES)
    )


def refused(name: Name, source: str) -> CheckpointError:
    """The error for a name that is in no list.

    Args:
        name: that the pickle mentions.
        source: the file, for the message.
    """
    shown, kind = (ascii(text)[1:-1][:100] for text in (str(name), name.name))
    if (model := model_of_package(name.module)) is not None:
        return CheckpointError(
            f"{source} is a pickle that names {shown}: it holds {model}. It cannot be deployed. Nothing was executed."
        )
    if name.module.startswith("torch._dynamo"):
        return CheckpointError(
            f"{source} holds a model that torch.compile wrapped ({shown}), which is not read. Where you trained it, "
            "save the model inside: torch.save(model._orig_mod, 'model.pt'). Nothing was executed."
        )
    root = name.module.partition(".")[0]
    yours = (
        f" If {kind} is a class of your own and you trust the file, {CONVERTER} converts it where you trained it."
        if root not in sys.stdlib_module_names | {"__builtin__", "torch", "numpy"} or root == "__main__"
        else ""
    )
    return CheckpointError(
        f"{source} is a pickle that names {shown}, which no PaiNN that can be read is made of. Nothing was executed, "
        f"and nothing of it is read.{yours}"
    )
