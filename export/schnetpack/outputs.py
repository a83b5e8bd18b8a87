"""What SchNetPack's output modules and postprocessors make of a PaiNN: which sum the energy is, and what else there is.

They are followed in their order, as SchNetPack runs them, with sums in the place of numbers. So what is called the
energy may be made in several steps, and whether the forces are its gradient shows in the end.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from painn_deploy.export.errors import DeclarationError
from painn_deploy.export.readers.stand_ins import StandIn
from painn_deploy.export.schnetpack.architecture import Checker
from painn_deploy.export.schnetpack.postprocessors import postprocess
from painn_deploy.export.schnetpack.repulsion import ZBL
from painn_deploy.export.schnetpack.sums import Sum

__all__ = ["Energy", "read_energy"]

DERIVED = ("Forces", "Response")
"""Modules that differentiate the energy."""

KEYS = {"forces": "force_key", "stress": "stress_key"}
"""Derivatives, and which attribute of Forces says what it calls one."""

BEFORE = frozenset({"PairwiseDistances", "Strain", *DERIVED})
"""Input modules; Strain prepares a derivative."""

APART = {
    "DipoleMoment": "that is no energy",
    "Polarizability": "that is no energy",
    "EnergyCoulomb": "charges act on each other beyond the cutoff",
    "EnergyEwald": "charges act on each other beyond the cutoff",
}
"""Modules that can be left out as long as the energy does not need them, and why they cannot be deployed."""

OFF = "Its postprocessors are switched off in the file: no mean and no references are added, and nothing is scaled."


@dataclasses.dataclass(frozen=True)
class Energy:
    """What the energy is the sum of.

    Attributes:
        place: of its Atomwise module among the output modules.
        scale: that the module's energies are multiplied by.
        repulsion: place of a ZBLRepulsionEnergy in it, and what that one is multiplied by; None where there is none.
        references: added for each atom of an element, in the model's unit, float64 [elements], or [1] if it is the same
            for all; None where nothing is.
        remarks: sentences for a user.
    """

    place: int
    scale: float
    repulsion: tuple[int, float] | None
    references: Tensor | None
    remarks: tuple[str, ...]


def read_energy(check: Checker, model: StandIn, key: str) -> Energy:
    """Find what the energy is made of.

    Args:
        check: of the file.
        model: the NeuralNetworkPotential.
        key: what it calls the energy.

    Raises:
        CheckpointError: it cannot be deployed, or its forces are no gradient of it.
        DeclarationError: no module gives that energy, and the message says what there is.
    """
    return _Follower(check, model).energy(key)


class _Follower:
    """Runs a model's outputs with sums in the place of numbers."""

    def __init__(self, check: Checker, model: StandIn) -> None:
        self._check = check
        self._results: dict[str, Sum] = {}
        self._remarks: list[str] = []
        for module in check.members(model.part("input_modules"), "the input modules"):
            if module.kind not in BEFORE:
                check.refuse(f"the input module {module.kind} is not known")
            check.module(module, (module.kind,), f"the input module {module.kind}")
        self._outputs = check.members(model.part("output_modules"), "the output modules")
        for place, module in enumerate(self._outputs):
            self._output(place, check.module(module, (module.kind,), f"the output module {module.kind}"))
        steps = check.members(model.part("postprocessors"), "the postprocessors")
        if steps and not model.part("do_postprocessing", True):
            self._remarks.append(OFF)
            return
        for place, step in enumerate(steps):
            postprocess(check, check.module(step, (step.kind,), step.kind), f"postprocessors.{place}", self._results)

    def energy(self, key: str) -> Energy:
        found = self._results.get(key)
        if found is None or found.of != "energy":
            given = (repr(name) for name, each in self._results.items() if each.of == "energy" and not each.beyond)
            raise DeclarationError(
                f"{self._check.source}: no modules give the energy {key!r}; what its Atomwise modules give is "
                f"called: {', '.join(given) or 'none'}. Say which is the energy with --energy-key."
            )
        if found.beyond is not None:
            self._check.refuse(f"the energy {key!r} {found.beyond}")
        kinds = {place: self._outputs[place].kind for place, times in found.terms.items() if times}
        atomwise, repulsion = ([p for p, kind in kinds.items() if (kind == ZBL) is zbl] for zbl in (False, True))
        if len(atomwise) != 1 or len(repulsion) > 1:
            listed = ", ".join(kinds.values()) or "nothing"
            self._check.refuse(f"the energy {key!r} adds up {listed}, not one Atomwise and at most one {ZBL}")
        self._check_atomwise(self._outputs[atomwise[0]])
        self._check_derivatives(key, found)
        self._name_ignored(kinds)
        return Energy(
            atomwise[0],
            found.terms[atomwise[0]],
            (repulsion[0], found.terms[repulsion[0]]) if repulsion else None,
            found.references,
            tuple(self._remarks),
        )

    def _output(self, place: int, module: StandIn) -> None:
        match module.kind:
            case "Atomwise" | "ZBLRepulsionEnergy":
                self._give(module.part("output_key"), Sum("energy", {place: 1.0}))
            case "Aggregation":
                self._give(module.part("output_key"), self._aggregated(module.part("keys")), again=True)
            case "Forces" | "Response":
                self._differentiate(module)
            case "Strain":
                pass
            case _ if module.kind in APART:
                why = f"comes from {module.kind}, not from Atomwise alone: {APART[module.kind]}"
                for name in _names(module):
                    self._give(name, Sum("energy", {place: 1.0}, beyond=why))
            case _:
                self._check.refuse(f"the output module {module.kind} is not known")

    def _give(self, name: Any, what: Sum, *, again: bool = False) -> None:
        if name in self._results and not again:
            self._check.refuse(f"several output modules give {name!r}")
        self._results[name] = what

    def _aggregated(self, keys: Any) -> Sum:
        if not isinstance(keys, list | tuple) or not keys:
            self._check.refuse("Aggregation does not say what it adds up")
        absent = Sum("energy", {}, beyond="adds up what no output module gives")
        first, *others = [self._results.get(name, absent) for name in keys]
        for other in others:
            first = first.plus(other)
        return first

    def _differentiate(self, module: StandIn) -> None:
        energy = self._results.get(module.part("energy_key"))
        if energy is None:
            self._check.refuse(f"{module.kind} differentiates {module.part('energy_key')!r}, which no module gives")
        for of in KEYS:
            if module.kind == "Response":
                wanted = of in (module.part("response_properties") or ())
                name = (module.part("map_properties") or {}).get(of, of)
            else:
                wanted, name = module.part(f"calc_{of}"), module.part(KEYS[of])
            if wanted:
                self._results[name] = energy.differentiated(of)

    def _check_atomwise(self, atomwise: StandIn) -> None:
        if atomwise.part("n_out") != 1:
            self._check.refuse(f"the energy has {atomwise.part('n_out')} outputs, not one")
        if (mode := atomwise.part("aggregation_mode")) != "sum":
            why = ": the energy of two molecules far apart would not be the sum of theirs" if mode == "avg" else ""
            self._check.refuse(f"energies are aggregated by {mode}, not by sum{why}")

    def _check_derivatives(self, key: str, energy: Sum) -> None:
        """What the file calls forces, of any module in the energy, has to be the energy's own gradient."""
        wanted = {place for place, times in energy.terms.items() if times}
        for of in KEYS:
            near = {n: r for n, r in self._results.items() if r.of == of and wanted & r.terms.keys()}
            if not near or any(not result.beyond and result.same(energy) for result in near.values()):
                continue
            name, result = next(iter(near.items()))
            if result.beyond is not None:
                self._check.refuse(f"the {of} {name!r} of the energy {key!r} {result.beyond}")
            ratios = [energy.terms[place] / result.terms[place] for place in wanted if result.terms.get(place)]
            if ratios and result.scaled(ratios[0]).same(energy):
                self._check.refuse(
                    f"ScaleProperty scales the energy {key!r} and {name!r} differently: they disagree, since the "
                    f"energy is {ratios[0]:g} times the one whose gradient they are"
                )
            self._check.refuse(
                f"{name!r} are the gradient of another sum than the energy {key!r}: they disagree. Name the energy "
                "that they belong to with --energy-key, if there is one"
            )

    def _name_ignored(self, kinds: Mapping[int, str]) -> None:
        for place, module in enumerate(self._outputs):
            if place not in kinds and module.kind not in {*DERIVED, "Strain", "Aggregation"}:
                said = ", ".join(map(repr, _names(module)))
                self._remarks.append(f"Its output {said} of {module.kind} is left out: it is no part of the energy.")


def _names(module: StandIn) -> list[Any]:
    """What a module calls its outputs."""
    names = [*(module.part("model_outputs") or ()), module.part("output_key")]
    return [name for name in dict.fromkeys(names) if name is not None]
