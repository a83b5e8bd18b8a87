"""A session whose library takes arrays of the host, the same for every engine."""

import ctypes
import os
import weakref
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from painn_deploy.engines.contract import check_inputs, padded
from painn_deploy.engines.owner import SoleUse
from painn_deploy.engines.session import Closing, EngineInfo
from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.export.fields import INPUTS, OUTPUTS, Field, GraphInputs, GraphOutputs

__all__ = ["HostSession"]

_OPEN: weakref.WeakSet["HostSession"] = weakref.WeakSet()


def _keep_what_was_inherited() -> None:
    """In a forked process, keep engines for ever: to close one, a library would wait for threads that are not here."""
    for session in list(_OPEN):
        for value in vars(session).values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


os.register_at_fork(after_in_child=_keep_what_was_inherited)


class HostSession(Closing):
    """An engine on a CPU, or on a device that its library copies to by itself. It belongs to one thread.

    Args:
        info: what the session says of itself.
        least: atoms and slots that the engine takes at least; smaller matrices are padded.
        outputs: of the graph, see `painn_deploy.export.fields.outputs_of`.
        inputs: of the graph, see `painn_deploy.export.fields.inputs_of`.
    """

    def __init__(
        self,
        info: EngineInfo,
        least: int = 1,
        outputs: Sequence[Field] = OUTPUTS,
        inputs: Sequence[Field] = INPUTS,
    ) -> None:
        self._info, self._least, self.outputs, self.inputs = info, least, tuple(outputs), tuple(inputs)
        self._checked: GraphInputs | None = None
        self._closed = False
        _OPEN.add(self)
        self._sole = SoleUse(f"This session of {info['backend']}")

    @property
    def info(self) -> EngineInfo:
        """See `Session.info`."""
        return self._info.copy()

    @property
    def cuda_graphs(self) -> bool:
        """Whether sizes that come again are replayed as CUDA graphs: never here.

        Raises:
            EngineUnavailableError: set.
        """
        return False

    @cuda_graphs.setter
    def cuda_graphs(self, wanted: bool) -> None:
        if wanted:
            raise EngineUnavailableError(f"There are no CUDA graphs on {self._info['device']!r}.")

    graphs = cuda_graphs  # its former name

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """See `Session.run`."""
        with self._sole:
            if self._closed:
                raise EngineError("This session is closed; open another one.")
            if inputs is not self._checked:  # a step of dynamics writes into the arrays of the step before
                check_inputs(inputs, self._info["precision"])
                self._checked = inputs
            atoms, slots = inputs.mask.shape
            if atoms >= self._least <= slots:
                return GraphOutputs.of(self.outputs, self._evaluate(inputs))
            outputs = self._evaluate(padded(inputs, max(atoms, self._least), max(slots, self._least)))
            return GraphOutputs.of(self.outputs, (output[:atoms] for output in outputs))

    @abstractmethod
    def _evaluate(self, inputs: GraphInputs) -> Sequence[np.ndarray]:
        """The graph's outputs, in their order, of inputs that keep the contract."""

    def close(self) -> None:
        """See `Session.close`."""
        self._closed, self._checked = True, None
