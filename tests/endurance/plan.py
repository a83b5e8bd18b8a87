"""Which stages there are, how large they are at scale 1, and how long they take; imports nothing that is slow."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from painn_deploy.export.errors import OutputError

__all__ = ["ENGINES", "KINDS", "Options", "Stage", "plan"]

ENGINES = ("onnxruntime", "inductor", "tensorrt-rtx")

RUNNABLE = ENGINES[:2]
"""Those that answer without a GPU."""


@dataclass(frozen=True)
class Options:
    """The request of a run.

    Attributes:
        student: a checkpoint, or a student that ships.
        bundles: folder that holds a bundle NAME-ENGINE-fp32.engine of it for each engine.
        scale: of the sizes of all stages.
        seed: of every generator.
    """

    student: str
    bundles: str
    scale: float = 1.0
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        kind: the module in `tests/endurance/stages` that runs it.
        engine: that it is about.
        size: how many calls, rows, bundles, structures or cycles; or seconds.
        seconds: that it takes on two cores of which it has one.
    """

    kind: str
    engine: str
    size: int
    seconds: float

    @property
    def name(self) -> str:
        """What it is called everywhere."""
        return f"{self.kind}-{self.engine}"


WHOLE = (  # the longest first, so that two side by side end together
    Stage("dynamics", "onnxruntime", 1_200, 1_400),
    Stage("structures", "onnxruntime", 10_000, 600),
    Stage("calls", "onnxruntime", 1_000_000, 500),
    Stage("cycles", "inductor", 500, 500),
    Stage("rows", "onnxruntime", 100_000, 420),
    Stage("calls", "inductor", 1_000_000, 400),
    Stage("bundles", "inductor", 300, 200),
    Stage("structures", "inductor", 2_000, 150),
    Stage("cycles", "onnxruntime", 500, 100),
    Stage("bundles", "onnxruntime", 400, 100),
    Stage("threads", "inductor", 2_000, 90),
    Stage("bundles", "tensorrt-rtx", 300, 60),
    Stage("threads", "onnxruntime", 2_000, 60),
)

KINDS = tuple(dict.fromkeys(stage.kind for stage in WHOLE))

LEAST: Mapping[str, int] = {
    "calls": 2_000,
    "rows": 600,
    "bundles": 50,
    "structures": 96,
    "cycles": 20,
    "threads": 150,
    "dynamics": 4,
}
"""Size below which a stage would show nothing."""


def plan(scale: float = 1.0, stages: Sequence[str] = (), engines: Sequence[str] = ()) -> list[Stage]:
    """The stages of a run.

    Args:
        scale: of their sizes.
        stages: kinds or names of those that run; empty for all.
        engines: likewise.

    Raises:
        OutputError: there is no such stage or engine.
    """
    names = {name for stage in WHOLE for name in (stage.kind, stage.name)}
    for asked, known in ((stages, names), (engines, set(ENGINES))):
        if unknown := [name for name in asked if name not in known]:
            raise OutputError(f"There is no {unknown[0]!r}; there are: {', '.join(sorted(known))}.")
    chosen = [
        Stage(s.kind, s.engine, max(LEAST[s.kind], round(s.size * scale)), max(30.0, s.seconds * scale))
        for s in WHOLE
        if (not stages or s.kind in stages or s.name in stages) and (not engines or s.engine in engines)
    ]
    if not chosen:
        raise OutputError("No stage of that kind is about that engine.")
    return chosen
