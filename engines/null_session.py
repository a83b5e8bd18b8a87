"""A session that answers zeros at once, for measuring all that is around an engine."""

from collections.abc import Sequence

import numpy as np

from painn_deploy.engines.session import Closing, EngineInfo
from painn_deploy.export.fields import OUTPUTS, Field, GraphInputs, GraphOutputs

__all__ = ["NullSession"]


class NullSession(Closing):
    """In place of an engine: `PaiNNCalculator(...).with_session(NullSession())`.

    Its results are zeros, and its `info` says that nothing computed them.

    Args:
        outputs: that it gives, see `painn_deploy.export.fields.outputs_of`.
    """

    def __init__(self, outputs: Sequence[Field] = OUTPUTS) -> None:
        self.outputs = tuple(outputs)
        self.calls = 0

    @property
    def info(self) -> EngineInfo:
        """See `Session.info`."""
        return EngineInfo(backend="null", version="", device="cpu", precision="fp32", bundle_sha256="")

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """See `Session.run`: zeros."""
        self.calls += 1
        atoms = len(inputs.atomic_numbers)
        return GraphOutputs.of(self.outputs, (np.zeros(f.sized(atoms=atoms), f.dtype) for f in self.outputs))

    def close(self) -> None:
        """See `Session.close`: there is nothing."""
