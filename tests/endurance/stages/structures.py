"""Hostile structures, alone, in a batch and in a stream: each refused in words of ours or answered rightly, in time."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule

from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import EngineError, StructureError
from painn_deploy.runtime import PaiNNCalculator
from tests.endurance.brute_force import Reading, Reference, UnanswerableError, reading_of, reference
from tests.endurance.child import Emit, Ended, in_child, what_failed
from tests.endurance.generators_structures import hostile
from tests.endurance.record import Findings, Job, Outcome

__all__ = ["attempts", "judge", "run"]

GROUP = 100
"""Structures that one child is asked about; one that hangs or dies is followed by another from the next on."""

LIMIT, PATIENT = 10.0, 60.0
"""s of the processor for each way of asking, and s of a clock to wait for it; and to wait at a second look."""

SECOND_LOOKS = 3
"""That find the same again, after which there are none: what hangs does, and costs a minute each time."""

GIB = 6.0

CLOSE, TIMES = 1e-4, 10.0
"""eV/Å, and times the student's own float32 error there, by which a force may differ from float64."""

FEW, MANY = 20, 400
"""Atoms, and orders of sums: where five orders do not explain an error of so small a structure, many are tried."""

CRUSHED, RELATIVE = 0.1, 1e-4
"""Å, and share of the largest force: closer than any two atoms ever are, a force is a difference of numbers that go
with the inverse distance, and float32 has no more."""

BESIDE = 1e-5
"""eV/Å and eV, by which a good structure may change beside a hostile one."""

COARSE, SPOT = 1e-6, 1e-3
"""Å: where float64 is coarser, and where two atoms are closer, nothing may be answered."""

Answer = tuple[float, np.ndarray]


def good(number: int) -> Atoms:
    """A molecule beside which a hostile structure is asked about."""
    atoms = molecule(("CH3CH2OH", "H2O", "C6H6")[number % 3])
    atoms.positions += np.random.default_rng(number).normal(0, 0.05, atoms.positions.shape)
    return atoms


def attempts(emit: Emit, bundle: Path, student: str, seed: int, numbers: list[int]) -> None:
    """In a child: ask about each structure, and emit what came of it.

    Args:
        emit: to the parent.
        bundle: of the engine.
        student: that it was made of.
        seed: of the structures.
        numbers: of those to try.
    """
    import torch

    torch.set_num_threads(1)
    exact, single = load_student(student, dtype=torch.float64), load_student(student)
    beside = [good(0), good(1)]
    with PaiNNCalculator(bundle, threads=1) as calculator:
        wanted = [_of(one) for one in calculator.calculate_batch(beside)]
        emit({"ready": True})
        for number in numbers:
            ways = {
                "calculate": lambda n=number: _alone(calculator, hostile(seed, n).atoms),
                "batch": lambda n=number: _batched(calculator, beside, hostile(seed, n).atoms, wanted),
                "stream": lambda n=number: _streamed(calculator, beside, hostile(seed, n).atoms, wanted),
            }
            found: dict[str, Any] = {}
            answers: dict[str, Answer] = {}
            for way, ask in ways.items():
                emit({"number": number, "at": way})
                began = time.process_time()  # other work may share the machine
                found[way], answer = _tried(ask)
                found[way]["seconds"] = round(time.process_time() - began, 3)
                if answer is not None:
                    answers[way] = answer
            after, answer = _tried(lambda: _alone(calculator, good(0)))
            if answer is None or not _same(answer, wanted[0], BESIDE):
                found["afterwards"] = {"problem": f"a good structure afterwards: {after.get('text', 'another answer')}"}
            emit({"number": number, "found": found} | _held(seed, number, answers, exact, single))


def _of(results: dict[str, Any]) -> Answer:
    return float(results["energy"]), np.asarray(results["forces"])


def _same(one: Answer, other: Answer, within: float) -> bool:
    if one[1].shape != other[1].shape or not abs(one[0] - other[0]) <= within:
        return False
    return bool(np.abs(one[1] - other[1]).max(initial=0.0) <= within)


class BesideError(AssertionError):
    """A good structure beside a hostile one was answered wrongly, or not at all."""


def _alone(calculator: PaiNNCalculator, atoms: Atoms) -> Answer:
    calculator.calculate(atoms)
    return _of(calculator.results)


def _batched(calculator: PaiNNCalculator, beside: list[Atoms], atoms: Atoms, wanted: list[Answer]) -> Answer:
    first, found, last = calculator.calculate_batch([beside[0], atoms, beside[1]])
    if not (_same(_of(first), wanted[0], BESIDE) and _same(_of(last), wanted[1], BESIDE)):
        raise BesideError("a good structure in its batch has another answer")
    return _of(found)


def _streamed(calculator: PaiNNCalculator, beside: list[Atoms], atoms: Atoms, wanted: list[Answer]) -> Answer:
    first, found, last = calculator.stream([beside[0], atoms, beside[1]])
    for outcome, answer in ((first, wanted[0]), (last, wanted[1])):
        if outcome.results is None:
            raise BesideError(f"a good structure in its stream has no answer: {outcome.reason}")
        if not _same(_of(outcome.results), answer, BESIDE):
            raise BesideError("a good structure in its stream has another answer")
    if found.results is None:
        raise StructureError(found.reason)
    return _of(found.results)


def _tried(ask: Callable[[], Answer]) -> tuple[dict[str, Any], Answer | None]:
    try:
        answer = ask()
    except (StructureError, EngineError) as error:
        return {"refused": type(error).__name__, "text": str(error)[:200]}, None
    except Exception as error:  # a traceback, which the judge calls one
        return {"problem": "{error}: {text} ({where})".format(**what_failed(error))}, None
    return {"answered": True}, answer


def _held(seed: int, number: int, answers: dict[str, Answer], exact: Any, single: Any) -> dict[str, Any]:
    """The answers, against each other and against a reference of our own."""
    if not answers:
        return {}
    ways = list(answers)
    apart = max(_apart(answers[ways[0]], answers[way]) for way in ways)
    try:
        reading = reading_of(hostile(seed, number).atoms)
    except UnanswerableError as error:
        return {"apart": apart, "unanswerable": str(error)}
    facts = {"apart": apart, "coarse": _coarse(reading)}
    try:
        known = reference(reading, exact, single)
    except (IndexError, KeyError):  # an element that the student has no row for
        return {**facts, "unanswerable": "an element that the student does not know"}
    if known is None:
        return {**facts, "unchecked": True}
    worst = [_from(answers[way], known) for way in ways]
    energy_error, force_error = max(one[0] for one in worst), max(one[1] for one in worst)
    if force_error > TIMES * known.force_error or energy_error > TIMES * known.energy_error:
        with_luck = reference(reading, exact, single, MANY) if len(reading.numbers) <= FEW else None
        known = known if with_luck is None else with_luck
    return {
        **facts,
        "closest": known.closest,
        "energy error": energy_error,
        "force error": force_error,
        "float32": [known.energy_error, known.force_error],
        "largest force": float(np.abs(known.forces).max(initial=0.0)),
    }


def _apart(one: Answer, other: Answer) -> float:
    if one[1].shape != other[1].shape:
        return float("inf")
    return float(np.abs(one[1] - other[1]).max(initial=0.0))


def _from(answer: Answer, known: Reference) -> tuple[float, float]:
    if answer[1].shape != known.forces.shape:
        return float("inf"), float("inf")
    return abs(answer[0] - known.energy), float(np.abs(answer[1] - known.forces).max(initial=0.0))


def _coarse(reading: Reading) -> float:
    """Å between two neighbouring float64 at the farthest position."""
    return float(np.spacing(np.abs(reading.positions).max(initial=0.0)))


def judge(kind: str, sound: bool | None, found: dict[str, Any]) -> list[str]:
    """What is wrong with what came of a structure.

    Args:
        kind: of the structure.
        sound: whether it must be answered, must be refused, or either.
        found: as `attempts` emits it.
    """
    ways = found["found"]
    wrong = [f"{way}: {one['problem']}" for way, one in ways.items() if "problem" in one]
    wrong += [f"{way}: {one['seconds']} s" for way, one in ways.items() if one.get("seconds", 0.0) > LIMIT]
    answered = {way for way, one in ways.items() if "answered" in one}
    refused = {way: one for way, one in ways.items() if "refused" in one}
    if answered and refused:
        wrong.append(f"{', '.join(sorted(answered))} answered, and {', '.join(sorted(refused))} refused")
    if sound is True and refused:
        wrong.append(f"it is sound, and was refused: {next(iter(refused.values()))['text']}")
    if sound is False and answered:
        wrong.append(f"{', '.join(sorted(answered))} answered")
    if not answered:
        return wrong
    own = found.get("float32", [0.0, 0.0])
    if not found["apart"] <= CLOSE + TIMES * own[1] and not found.get("unchecked"):
        wrong.append(f"answers differ from each other by {found['apart']:.1e} eV/Å")
    if "unanswerable" in found and sound is not False:
        wrong.append(f"answered, though {found['unanswerable']}")
    if found.get("coarse", 0.0) > COARSE:
        wrong.append(f"answered where float64 is {found['coarse']:.1e} Å coarse")
    if found.get("closest", np.inf) < SPOT:
        wrong.append(f"answered, with atoms {found['closest']:.1e} Å apart")
    if "force error" in found:
        crushed = RELATIVE if found["closest"] < CRUSHED else 0.0
        if not found["force error"] <= CLOSE + TIMES * own[1] + crushed * found["largest force"]:
            wrong.append(f"forces are wrong by {found['force error']:.1e} eV/Å (float32 alone: {own[1]:.1e})")
        if not found["energy error"] <= CLOSE + TIMES * own[0] + max(crushed, 1e-6) * found["largest force"]:
            wrong.append(f"the energy is wrong by {found['energy error']:.1e} eV (float32 alone: {own[0]:.1e})")
    return wrong


def run(job: Job) -> Outcome:
    """Try all of them, in children; the record has a line for each."""
    import torch

    torch.set_num_threads(1)
    total, seed = job.stage.size, job.options.seed
    done = {line["number"]: line for line in job.record.lines("structures")}
    hung = sum("found" not in line for line in done.values())
    for start in range(0, total, GROUP):
        left = [number for number in range(start, min(start + GROUP, total)) if number not in done]
        while left:
            for first in _group(job, left, LIMIT):
                line = first
                if "found" not in line and hung < SECOND_LOOKS:  # perhaps the machine was busy
                    (line,) = _group(job, [line["number"]], PATIENT, only=True)
                hung += "found" not in line
                done[line["number"]] = line
                job.record.append("structures", line)
            left = [number for number in left if number not in done]
        job.progress(min(start + GROUP, total), total, "structures")
    return _summed([done[number] for number in range(total)], seed)


def _group(job: Job, numbers: list[int], limit: float, *, only: bool = False) -> list[dict[str, Any]]:
    """What came of structures, up to the first that its child did not survive."""
    lines: list[dict[str, Any]] = []
    at: list[tuple[int, str]] = []

    def heard(message: dict[str, Any]) -> None:
        if "found" in message:
            lines.append(message)
            at.clear()
        elif "at" in message:
            at[:] = [(message["number"], message["at"])]

    subject = (job.bundle, job.options.student, job.options.seed, numbers)
    # the first message comes when the engine is open, and the reference takes time between two ways
    ended = in_child(attempts, *subject, seconds=limit + 15, gib=GIB, heard=heard)
    if ended != Ended("done"):
        if not at and not only and len(lines) < len(numbers):  # in the reference or the opening
            at.append((numbers[len(lines)], "opening, or reference"))
        if at:
            lines.append({"number": at[0][0], "hung" if ended.how == "hang" else "died": f"{at[0][1]}: {ended}"})
        elif only:
            lines.append({"number": numbers[0], "died": str(ended)})
    return lines


def _summed(lines: list[dict[str, Any]], seed: int) -> Outcome:
    counts, kinds = Counter[str](), dict[str, Counter[str]]()
    slowest, worst, findings = 0.0, 0.0, Findings()
    for line in lines:
        one = hostile(seed, line["number"])
        kind = kinds.setdefault(one.kind, Counter())
        if "found" not in line:
            wrong = [str(line.get("hung") or line.get("died"))]
        else:
            wrong = judge(one.kind, one.sound, line)
            slowest = max(slowest, *(way.get("seconds", 0.0) for way in line["found"].values()))
            worst = max(worst, min(line.get("force error", 0.0), 1e9) if not wrong else 0.0)
        answered = "found" in line and "answered" in line["found"]["calculate"]
        counts["hung or died" if "found" not in line else "answered" if answered else "refused"] += 1
        counts["held against float64"] += "force error" in line
        kind["wrong" if wrong else "answered" if answered else "refused"] += 1
        if wrong:
            findings.add(one.kind, f"{one.kind} (seed {seed}, number {line['number']}): {'; '.join(wrong)}")
    figures = {
        "structures": len(lines),
        "wrong": findings.counts.total(),
        "counts": dict(counts),
        "kinds": {name: dict(found) for name, found in kinds.items()},
        "slowest": slowest,
        "largest force error": worst,
    }
    return Outcome(figures, findings.failures())
