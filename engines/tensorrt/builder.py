"""Building plans of TensorRT and TensorRT-RTX: one strongly typed network, one profile, errors in words."""

from collections.abc import Callable
from typing import Any, NamedTuple

from painn_deploy.engines.backend import BuildOptions
from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import INPUTS
from painn_deploy.export.progress import Tell, silent

__all__ = ["BuiltPlan", "Messages", "build_plan"]


class Messages:
    """Collects what the library logs, so that warnings and errors reach the user in words.

    Args:
        library: tensorrt or tensorrt_rtx.
    """

    def __init__(self, library: Any) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []
        lines, warnings, severity = self.lines, self.warnings, library.ILogger.Severity

        class Logger(library.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                library.ILogger.__init__(self)

            def log(self, level: Any, text: str) -> None:
                if level in (severity.INTERNAL_ERROR, severity.ERROR):
                    lines.append(text)
                elif level == severity.WARNING:
                    warnings.append(" ".join(text.split()))

        self.logger = Logger()

    def told(self) -> str:
        """The last errors, on one line."""
        return "; ".join(" ".join(line.split()) for line in self.lines[-3:]) or "it gave no reason"


class BuiltPlan(NamedTuple):
    """A plan, what the builder warned of, and what it measured for the next build (empty where it measures nothing)."""

    plan: bytes
    warnings: tuple[str, ...]
    timing_cache: bytes


def build_plan(
    library: Any,
    model: bytes,
    options: BuildOptions,
    *,
    configure: Callable[[Any, Any], None] = lambda _, __: None,
    timing_cache: bytes | None = None,
    tell: Tell = silent,
) -> BuiltPlan:
    """Build a serialised engine from the graph.

    The network is strongly typed: the graph alone decides each tensor's precision. TF32, which rounds the operands of
    FP32 products to ten bits, is cleared unless it was asked for.

    Args:
        library: tensorrt or tensorrt_rtx.
        model: the ONNX graph.
        options: what to build for.
        configure: given the library and the builder's configuration, sets what one of the two libraries alone has.
        timing_cache: what an earlier build measured on this GPU, empty at first; None to keep none.
        tell: called with a line about each phase of the build.

    Raises:
        EngineError: the library refuses the graph; with what it said.
    """
    messages = Messages(library)
    builder = library.Builder(messages.logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, messages.logger)
    if not parser.parse(model):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise EngineError(
            f"{library.__name__} {library.__version__} cannot read the graph: {errors or messages.told()}"
        )
    config = builder.create_builder_config()
    if options.tf32:
        config.set_flag(library.BuilderFlag.TF32)
    else:
        config.clear_flag(library.BuilderFlag.TF32)
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    optimisation = builder.create_optimization_profile()
    for field in INPUTS:
        triple = [
            tuple(
                {"atoms": options.profile.atoms[i], "slots": options.profile.slots[i]}.get(str(s), s)
                for s in field.shape
            )
            for i in range(3)
        ]
        optimisation.set_shape(field.name, *triple)
    config.add_optimization_profile(optimisation)
    configure(library, config)
    cache = None
    if timing_cache is not None:
        cache = config.create_timing_cache(timing_cache)
        config.set_timing_cache(cache, False)
    monitor = _progress(library, tell)  # must outlive the build
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{library.__name__} {library.__version__} cannot build the engine: {messages.told()}")
    measured = bytes(config.get_timing_cache().serialize()) if cache is not None else b""
    return BuiltPlan(bytes(plan), tuple(dict.fromkeys(messages.warnings)), measured)


def _progress(library: Any, tell: Tell) -> Any:
    """A monitor that tells of the outermost phases."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                tell(f"{library.__name__}: {phase_name}, {step + 1} of {self.steps[phase_name]}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()
