"""The plan of the job on a GPU: its options, and its stages with a time for each. It imports nothing that is slow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from painn_deploy.engines import BACKENDS
from painn_deploy.engines.forms import Form
from painn_deploy.export.errors import EngineUnavailableError

__all__ = ["FORMS", "LAUNCHED", "MAIN", "PRECISIONS", "REPLAYED", "TF32", "Figures", "Options", "Stage", "plan"]

Figures = Callable[[str, Callable[[], Any]], None]
"""Keeps a figure by name, if it is not kept already; given what measures it."""

LAUNCHED = "ms between events, launched"
"""Figure of one evaluation, many being sent one after the other: of small cases it is the time that launching takes."""

REPLAYED = "ms between events, replayed with copies"
"""Figure of a CUDA graph, the copies of inputs and results included."""

MAIN = (("inductor", "fp32"), ("fused", "fp32"), ("onnxruntime", "fp32"))
"""Engines of the first stage, in its order."""

TF32 = "tf32"
"""Precision of the job: bundles in FP32 whose products a GPU may round. It is no precision of a manifest."""

SIZED = (*MAIN, ("inductor", "fp16"), ("inductor", TF32))
"""Engines that further sizes are measured of."""

OPENED = (("inductor", "fp32"),)
"""Engines whose opening is looked at."""

HAS = {"inductor": ("fp32", "fp16", TF32), "fused": ("fp32",), "onnxruntime": ("fp32", "fp16", "int8")}
"""Precisions of engines that lack one."""

FORMS = (
    "sums+messages+side+unchecked@1024,16",
    "sums+unchecked",
    "sums+messages+split+side+unchecked@1024,16",
    "sums+messages+side+dots+unchecked@9,8",
    "plain",
    "sums+paired+side+unchecked",
    "sums+paired+unchecked@1024,16",
    "plain@4096,16",
)
"""Of the graph, that `inductor` is compiled in beside its own; `tuned` ones take many minutes, and are asked for."""

PRECISIONS = ("fp32", "fp16", "int8", TF32)
"""Those of engines that run on a GPU, the most valuable first."""

SLOWER = 6.0
"""Times that a stage takes on a CPU, where compiling has a few cores."""


@dataclass(frozen=True)
class Options:
    """The request of a job.

    Attributes:
        student: a file, or one that ships.
        device: `cpu`, or a GPU such as `cuda:0`.
        work: folder for bundles, which are made once.
        quick: small cases, few calls.
        engines: by name, in order.
        precisions: of `PRECISIONS`.
        forms: of the graph, for `inductor`.
        stages: names, or beginnings of names, of those that run; empty for all.
        calls: of the proof that many leave nothing behind; 0 for as many as suit.
    """

    student: str
    device: str
    work: str
    quick: bool = False
    engines: tuple[str, ...] = ("inductor", "fused", "onnxruntime", "tensorrt-rtx", "tensorrt")
    precisions: tuple[str, ...] = PRECISIONS
    forms: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    calls: int = 0

    def check(self) -> None:
        """Refuse names that are none.

        Raises:
            EngineUnavailableError: an engine or a precision that there is not.
            EngineError: a form that there is not.
        """
        for named, known, what in ((self.engines, BACKENDS, "engine"), (self.precisions, PRECISIONS, "precision")):
            if unknown := [name for name in named if name not in known]:
                raise EngineUnavailableError(f"There is no {what} {unknown[0]!r}; there are: {', '.join(known)}.")
        for form in self.forms:
            Form.parse(form)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Options":
        """From JSON."""
        given: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
        return cls(**given)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: what it is called everywhere.
        kind: what it does: `first`, `sizes`, `opening`, `compiled`, `builds`, `speed`, `proof`, `dynamics` or
            `benchmark`.
        seconds: past which it is cut off and has failed.
        engine: that it is about.
        precision: likewise.
        form: of the graph, likewise.
        builds: engine, precision and form of each bundle that it makes.
    """

    name: str
    kind: str
    seconds: float
    engine: str = ""
    precision: str = "fp32"
    form: str = ""
    builds: tuple[tuple[str, str, str], ...] = field(default=())


def plan(options: Options) -> list[Stage]:
    """The stages of a job, the most valuable first.

    Raises:
        EngineUnavailableError: none of them has a name that was asked for.
    """
    slower = SLOWER if options.device == "cpu" else 1.0
    pairs = [(e, p) for e, p in _pairs(options) if p in HAS.get(e, PRECISIONS)]
    main = [pair for pair in MAIN if pair in pairs]
    compiled = [(e, p, "") for e, p in pairs if e == "inductor" and (e, p) not in main]
    if "inductor" in options.engines and "fp32" in options.precisions:
        compiled += [("inductor", "fp32", form) for form in options.forms]
    stages = [Stage("first", "first", 480 * slower)]
    stages += [Stage(f"proof {e} {p}", "proof", 120 * slower, e, p) for e, p in main]
    stages += [_sizes(e, p, slower) for e, p in main]
    stages += [Stage(f"opening {e} {p}", "opening", 240 * slower, e, p) for e, p in OPENED if (e, p) in pairs]
    stages.append(Stage("torch.compile", "compiled", 300 * slower))
    if compiled:
        stages.append(Stage("builds", "builds", (120 + 60 * len(compiled)) * slower, builds=tuple(compiled)))
    stages += [Stage(f"form {f}", "speed", 150 * slower, e, p, f) for e, p, f in compiled if f]
    stages += [Stage(f"dynamics {e} {p}", "dynamics", 120 * slower, e, p) for e, p in main]
    for engine, precision in pairs:
        if (engine, precision) not in main:
            stages.append(Stage(f"speed {engine} {precision}", "speed", 240 * slower, engine, precision))
            stages.append(Stage(f"proof {engine} {precision}", "proof", 120 * slower, engine, precision))
            stages += [_sizes(engine, precision, slower)] if (engine, precision) in SIZED else []
    if "fp32" in options.precisions:
        stages.append(Stage("benchmark", "benchmark", 400 * slower))
    if options.stages:
        kept = [stage for stage in stages if stage.name.startswith(options.stages)]
        if not kept:
            raise EngineUnavailableError(
                f"No stage is called {' or '.join(options.stages)}; there are: {', '.join(s.name for s in stages)}."
            )
        return kept
    return stages


def _sizes(engine: str, precision: str, slower: float) -> Stage:
    """Further sizes of an engine; the time is enough to compile it, should no stage before have done so."""
    return Stage(f"sizes {engine} {precision}", "sizes", 400 * slower, engine, precision)


def _pairs(options: Options) -> Sequence[tuple[str, str]]:
    return [(engine, precision) for precision in options.precisions for engine in options.engines]
