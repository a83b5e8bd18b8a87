"""`MovingStructure`: what an engine gives for one structure that moves from call to call."""

import math

import numpy as np
from ase import Atoms

from painn_deploy.engines import Session
from painn_deploy.engines.session import FollowingSession
from painn_deploy.export.fields import GraphOutputs
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.limits import too_many_neighbours
from painn_deploy.runtime.verlet import WIDER, VerletList

__all__ = ["MovingStructure"]


class MovingStructure:
    """Neighbours that are kept from call to call, and the engine that answers for them.

    Args:
        evaluator: whose engine answers.
        skin: Å; see `PaiNNCalculator`.

    Attributes:
        neighbour_list: of the structure; its `weights` are those of its atoms.
    """

    def __init__(self, evaluator: Evaluator, skin: float | None) -> None:
        self._evaluator = evaluator
        self.neighbour_list = VerletList(evaluator.manifest.cutoff, skin, admit=evaluator.limits.check)
        self.with_session(evaluator.session)

    def with_session(self, session: Session) -> None:
        """Run on this session from now on.

        Args:
            session: of the evaluator.
        """
        # whether it can follow a structure is asked once, since asking takes as long as packing
        self._follower = session if isinstance(session, FollowingSession) else None
        neighbours, evaluator = self.neighbour_list, self._evaluator
        neighbours.dtype = evaluator.dtype
        neighbours.slot_step = evaluator.slot_step  # on a CPU each column is worth saving
        neighbours.most_widening = WIDER if self._follower is None else math.inf
        neighbours.finder = evaluator.finder

    def outputs(self, atoms: Atoms) -> GraphOutputs:
        """The engine's outputs, digested, without atomic references.

        Args:
            atoms: a structure that `check_structure` gave back.

        Raises:
            StructureError: two atoms are on one spot, or more are crowded than in any matter.
            ShapeError: it is larger than the engine takes.
            EngineError: the engine failed.
        """
        evaluator, follower = self._evaluator, self._follower
        with evaluator.timings.phase("neighbours"):
            try:
                resident = None if follower is None else self.neighbour_list.resident(atoms, follower.following)
                if resident is None:
                    inputs = self.neighbour_list.inputs(atoms)
            except MemoryError as error:
                raise too_many_neighbours(len(atoms), error) from error
        with evaluator.timings.phase("engine"):
            if follower is None or resident is None:
                outputs = evaluator.run(inputs)
            else:
                with evaluator.turn:
                    if follower.following is not resident:
                        follower.follow(resident)
                    outputs = follower.step(np.ascontiguousarray(atoms.positions))
        with evaluator.timings.phase("results"):
            return evaluator.digested(atoms.numbers, outputs)
