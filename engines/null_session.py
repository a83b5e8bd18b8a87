"""A session that answers zeros at once, for measuring all that is around an engine."""

from collections.abc import Sequence

import numpy as np

from painn_deploy.engines.session import Closing, EngineInfo
from painn_deploy.export.fields import OUTPUTS, Field, GraphInputs, GraphOutputs

__all__ = ["NullSession"]


class NullSession(Closing):
    """In place of an engine: `calculator.with_session(NullSession(calculator.manifest.outputs))`.

    Its results are zeros, and its `info` says that nothing computed them.

    Args:
        outputs: that it gives: `manifest.outputs` of the bundle in whose place it is.

    Attributes:
        seen: batches that came are kept there, where it is a list.
    """

    seen: list[GraphInputs] | None = None

    def __init__(self, outputs: Sequence[Field] = OUTPUTS) -> None:
        self.outputs = tuple(outputs)

    @property
    def info(self) -> EngineInfo:
        """See `Session.info`."""
        return EngineInfo(backend="null", version="", device="cpu", precision="fp32", bundle_sha256="")

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """See `Session.run`: zeros."""
        if self.seen is not None:
            self.seen.append(inputs)
        atoms = len(inputs.atomic_numbers)
        return GraphOutputs.of(self.outputs, (np.zeros(f.sized(atoms=atoms), f.dtype) for f in self.outputs))

    def close(self) -> None:
        """See `Session.close`: there is nothing."""
