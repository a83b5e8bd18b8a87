"""Proofs about an engine where it runs: no way of running it gives other results, and none leaks."""

import gc
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import molecule

from painn_deploy.engines import Session
from painn_deploy.engines.session import (
    Boxes,
    CudaGraphs,
    FollowingSession,
    MoleculesSession,
    Nearest,
    OverlappingSession,
    SearchingSession,
)
from painn_deploy.export.errors import DeviceMemoryError, ShapeError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.runtime.neighbours import find_pairs
from painn_deploy.runtime.verlet import DEFAULT_SKIN
from painn_deploy.scripts.benchmarks.cases import box_of_water
from painn_deploy.scripts.benchmarks.standing import in_boxes, resident_of
from painn_deploy.scripts.gpu.measure import same_bits
from painn_deploy.scripts.gpu.record import Unavailable
from painn_deploy.scripts.gpu.resources import used_bytes

__all__ = ["PROOFS", "Subject", "able", "farthest", "largest_difference", "proved"]

GROWTH = 16 * 2**20
"""Bytes of memory that many calls may add: a library's caches fill, a leak does not stop."""

CLOSE = 1e-4
"""eV/Å, between evaluations that a library may order differently, such as on another thread."""

THREADS = 8


class Subject:
    """An engine to be proved.

    Args:
        bundle: that holds it.
        device: that it runs on.
        calls: of the proof that many leave nothing behind.
        cutoff: Å.
    """

    def __init__(self, bundle: Path, device: str, calls: int, cutoff: float) -> None:
        self.bundle, self.device, self.calls, self.cutoff = bundle, device, calls, cutoff
        self.rng = np.random.default_rng(1)
        self.atoms = molecule("CH3CH2OH")

    def open(self, *, graphs: bool = False) -> PaiNNCalculator:
        """A calculator; with CUDA graphs if so said, and then on a GPU only."""
        calculator = PaiNNCalculator(self.bundle, device=self.device)
        session: Session = calculator.session
        if isinstance(session, CudaGraphs):
            session.cuda_graphs = graphs
        elif graphs:
            calculator.close()
            raise Unavailable(f"There are no CUDA graphs on {self.device}.")
        return calculator

    def batches(self, count: int, most: int = 3) -> list[GraphInputs]:
        """New positions of one ethanol, of two, and so on to the most.

        Args:
            count: batches.
            most: molecules in one of them.
        """
        return [self.batch(1 + index % most) for index in range(count)]

    def batch(self, size: int) -> GraphInputs:
        """So many ethanols, each perturbed on its own."""
        copies = [self.atoms.copy() for _ in range(size)]
        for copy in copies:
            copy.positions += self.rng.normal(0, 0.05, copy.positions.shape)
        return graph_inputs(copies, self.cutoff)

    def used(self) -> int:
        """Bytes that are taken: of the GPU, by whomever, or of the host by this process."""
        return used_bytes(self.device)


def able(calculator: PaiNNCalculator, capability: type) -> Any:
    """A calculator's session.

    Args:
        calculator: on the engine.
        capability: that the session must have, such as `CudaGraphs`.

    Raises:
        Unavailable: it has not.
    """
    if not isinstance(calculator.session, capability):
        raise Unavailable(f"{calculator.engine_info['backend']} is no {capability.__name__} here.")
    return calculator.session


def largest_difference(one: GraphOutputs, other: GraphOutputs) -> float:
    """Largest difference over all outputs (eV, eV/Å and eV); NaN and infinity where there is one.

    Args:
        one: outputs.
        other: outputs of the same shapes.
    """
    return float(np.max([np.max(np.abs(a - b)) for a, b in zip(one, other, strict=True)]))


def farthest(some: Sequence[GraphOutputs], others: Sequence[GraphOutputs]) -> float:
    """The largest of those differences, pair by pair; NaN where there is one, which is within no bound.

    Args:
        some: outputs.
        others: as many, to be compared with them in order.
    """
    return float(np.max([largest_difference(one, other) for one, other in zip(some, others, strict=True)]))


def replays(subject: Subject) -> tuple[bool, Any]:
    """CUDA graphs give what plain launches give, whatever the order in which sizes come."""
    batches = subject.batches(9)
    with subject.open() as plain, subject.open(graphs=True) as replayed:
        want = [plain.run_graph(inputs) for inputs in batches]
        for _ in range(3):
            got = [replayed.run_graph(inputs) for inputs in batches]
        refused = able(replayed, CudaGraphs).refused_graphs
        worst = farthest(got, want)
        to_the_bit = all(map(same_bits, got, want))
    why = {str(key): reason for key, reason in refused.items()}
    return worst <= CLOSE and not refused, {"largest difference": worst, "to the bit": to_the_bit, "refused": why}


def lanes(subject: Subject) -> tuple[bool, Any]:
    """Batches that overlap give what each gives alone."""
    batches = subject.batches(9)
    with subject.open() as calculator:
        session = able(calculator, OverlappingSession)
        want = [session.run(inputs) for inputs in batches]
        got = list(session.run_many(iter(batches)))
    worst = farthest(got, want)
    return worst <= CLOSE, {"largest difference": worst, "to the bit": all(map(same_bits, got, want))}


def positions_alone(subject: Subject) -> tuple[bool, Any]:
    """Steps that upload positions alone give what whole evaluations give, launched and replayed."""
    differences = []
    for graphs in (False, True):
        atoms = subject.atoms.copy()
        with subject.open(graphs=graphs) as calculator, subject.open() as other:
            session = able(calculator, FollowingSession)
            session.follow(resident_of(atoms, subject.cutoff))
            for _ in range(6):
                atoms.positions += subject.rng.normal(0, 0.02, atoms.positions.shape)
                want = other.run_graph(graph_inputs([atoms], subject.cutoff))
                got = session.step(np.ascontiguousarray(atoms.positions))
                differences.append(largest_difference(got, want))
    worst = float(np.max(differences))
    return worst <= CLOSE, {"largest difference": worst}


def found_by(session: SearchingSession, boxes: Boxes) -> Nearest:
    """The nearest of the neighbours that a session's device finds.

    Args:
        session: that finds them.
        boxes: the structure.

    Raises:
        Unavailable: its engine takes no such structure.
    """
    try:
        return session.search(boxes, lambda *size: None)  # noqa: ARG005
    except ShapeError as error:
        raise Unavailable(str(error)) from error


def searches(subject: Subject) -> tuple[bool, Any]:
    """Steps with neighbours that the device found give what whole evaluations give, launched and replayed."""
    differences, nearest_are_the_same = [], True
    for graphs in (False, True):
        liquid = box_of_water()
        with subject.open(graphs=graphs) as calculator, subject.open() as other:
            session = able(calculator, SearchingSession)
            for atoms in (liquid, subject.atoms.copy()):
                for _ in range(3):
                    nearest = found_by(session, in_boxes(atoms, subject.cutoff))
                    found = find_pairs(atoms, subject.cutoff + DEFAULT_SKIN).nearest()
                    nearest_are_the_same &= nearest.distance == found.distance
                    for _ in range(4):
                        want = other.run_graph(graph_inputs([atoms], subject.cutoff))
                        differences.append(largest_difference(session.step(atoms.positions.copy()), want))
                        atoms.positions += subject.rng.normal(0, 0.02, atoms.positions.shape)
    worst = float(np.max(differences))
    return worst <= CLOSE and nearest_are_the_same, {"largest difference": worst, "nearest": nearest_are_the_same}


def molecules_alone(subject: Subject) -> tuple[bool, Any]:
    """Molecules whose pairs the device forms give what whole evaluations give, launched and replayed."""
    differences, nearest_are_the_same = [], True
    for graphs in (False, True):
        with subject.open(graphs=graphs) as calculator, subject.open() as other:
            session = able(calculator, MoleculesSession)
            for size in (1, 2, 5) * 4:
                copies = [subject.atoms.copy() for _ in range(size)]
                for copy in copies:
                    copy.positions += subject.rng.normal(0, 0.05, copy.positions.shape)
                want = other.run_graph(graph_inputs(copies, subject.cutoff))
                got, nearest = session.run_molecules(
                    np.concatenate([copy.numbers for copy in copies]).astype(np.int32),
                    np.concatenate([copy.positions for copy in copies]),
                    np.arange(0, size * len(subject.atoms), len(subject.atoms)),
                    subject.cutoff,
                )
                differences.append(largest_difference(got, want))
                apart = [np.where(d := copy.get_all_distances(), d, np.inf).min(axis=1) for copy in copies]
                nearest_are_the_same &= bool(np.allclose(nearest, np.concatenate(apart), rtol=1e-12, atol=0))
    worst = float(np.max(differences))
    return worst <= CLOSE and nearest_are_the_same, {"largest difference": worst, "nearest": nearest_are_the_same}


def endurance(subject: Subject, *, graphs: bool = False) -> tuple[bool, Any]:
    """Many calls add no memory, and give what the first gave."""
    batches = subject.batches(48)
    with subject.open(graphs=graphs) as calculator:
        want = [calculator.run_graph(inputs) for inputs in batches]
        for inputs in batches * 4:
            calculator.run_graph(inputs)
        before = subject.used()
        for number in range(subject.calls):
            calculator.run_graph(batches[number % len(batches)])
        grown = subject.used() - before
        same = all(same_bits(calculator.run_graph(i), w) for i, w in zip(batches, want, strict=True))
    return grown <= GROWTH and same, {"calls": subject.calls, "MiB grown": grown / 2**20, "to the bit": same}


def endurance_of_replays(subject: Subject) -> tuple[bool, Any]:
    """The same as CUDA graphs."""
    return endurance(subject, graphs=True)


def closing(subject: Subject) -> tuple[bool, Any]:
    """Sessions that are closed, or dropped, give their memory back, and another one gives the same results."""
    if subject.device == "cpu":
        raise Unavailable("It is of a GPU's memory; the host's allocator keeps what is freed.")
    inputs = subject.batch(64)
    with subject.open() as calculator:  # what a first session leaves in the process for good
        want = calculator.run_graph(inputs)
    before = subject.used()
    for number in range(8):
        calculator = subject.open()
        got = calculator.run_graph(inputs)
        if number % 2:
            calculator.close()
        del calculator
        gc.collect()
    left = subject.used() - before
    return left <= GROWTH and same_bits(got, want), {"MiB left": left / 2**20, "to the bit": same_bits(got, want)}


def threads(subject: Subject) -> tuple[bool, Any]:
    """Threads with a session each give what one gives."""
    batches, wrong = subject.batches(24), []
    with subject.open() as calculator:
        want = [calculator.run_graph(inputs) for inputs in batches]

    def work() -> None:
        try:
            with subject.open() as own:
                for inputs, outputs in zip(batches, want, strict=True):
                    difference = largest_difference(own.run_graph(inputs), outputs)
                    if not difference <= CLOSE:
                        wrong.append(f"results differ by {difference}")
        except Exception as error:  # whatever ends a thread has to be told
            wrong.append(f"{type(error).__name__}: {error}")

    started = [threading.Thread(target=work) for _ in range(THREADS if subject.device != "cpu" else 2)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return not wrong, {"threads": len(started)} | ({"first": wrong[0]} if wrong else {})


def others_precision(subject: Subject) -> tuple[bool, Any]:
    """Another model's choice of torch's precision changes no result."""
    inputs = subject.batch(64)
    with subject.open() as calculator:
        want = calculator.run_graph(inputs)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            got = calculator.run_graph(inputs)
        finally:
            torch.set_float32_matmul_precision(before)
    return same_bits(got, want), {"largest difference": largest_difference(got, want)}


def full_memory(subject: Subject) -> tuple[bool, Any]:
    """A GPU without room is an error in words, after which the session goes on."""
    small, large = subject.batch(1), subject.batch(4096)
    with subject.open() as calculator:
        want = calculator.run_graph(small)
        able(calculator, CudaGraphs)  # and so on a GPU
        device = torch.device(subject.device)
        taken, said = [], "nothing: it found room"
        with torch.cuda.device(device):
            for size in (2**30, 2**26, 2**22):
                try:
                    while True:
                        taken.append(torch.empty(size, dtype=torch.uint8, device=device))
                except torch.OutOfMemoryError:
                    pass
            try:
                calculator.run_graph(large)
            except DeviceMemoryError as error:
                said = str(error)
            taken.clear()
            torch.cuda.empty_cache()
        again = calculator.run_graph(small)
    return "too little free memory" in said and same_bits(again, want), {"said": said[:300]}


PROOFS: dict[str, Callable[[Subject], tuple[bool, Any]]] = {
    "CUDA graphs against plain launches": replays,
    "batches that overlap": lanes,
    "positions alone against whole evaluations": positions_alone,
    "neighbours found on the device against whole evaluations": searches,
    "molecules' atoms alone against whole evaluations": molecules_alone,
    "many calls": endurance,
    "many calls as CUDA graphs": endurance_of_replays,
    "closed, dropped and opened again": closing,
    "threads with a session each": threads,
    "another model's precision": others_precision,
    "a GPU without room": full_memory,
}
"""By what each proves; a function gives whether it holds and the figures, or raises `Unavailable`."""


def proved(proof: Callable[[Subject], tuple[bool, Any]], subject: Subject) -> tuple[bool, Any]:
    """A proof, with what it warned of beside its figures.

    Args:
        proof: tells whether it holds, and its figures.
        subject: the engine that it is tried on.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", RuntimeWarning)
        holds, figures = proof(subject)
    return holds, figures | ({"warned": [str(one.message) for one in told]} if told else {})
