"""A model card's figures as text and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from painn_deploy.calibration.report.drawing import drawn
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["DESCRIPTIONS", "picture", "sections"]

DESCRIPTIONS = {
    "conformer": "RDKit conformers and short relaxations",
    "md": "Langevin dynamics at 300, 600 and 1000 K",
    "distorted": "perturbed by 0.05 to 0.2 Å",
    "dimer": "two molecules at many distances",
    "cluster": "water clusters and droplets",
    "wall": "atoms pushed together",
}
KINDS = ("structures", "how many", "energy MAE (meV/atom)", "force MAE (meV/Å)", "force RMSE (meV/Å)")
MINIMA = ("molecule", "shortest bond (Å)", "teacher's", "mean frequency error (1/cm)", "largest frequency error (1/cm)")
DRIFTS = ("test molecule", "atoms", "drift (meV/atom/ps)", "standard error", "fluctuation (meV/atom)", "mean T (K)")


def sections(results: Mapping[str, Any]) -> list[str]:
    """The tables and sentences of a card, in order."""
    text = [
        "### Against the teacher, on molecules never trained on",
        markdown(KINDS, [(DESCRIPTIONS.get(kind, kind), *rest) for kind, *rest in results["kinds"]]),
        "### At the minimum",
        markdown(MINIMA, results["vibrations"]),
        "### Butane's torsion and the water dimer",
        torsion_text(*results["butane"]),
        dimer_text(results["dimer"]),
    ]
    if runs := results.get("nve"):
        columns = ("name", "atoms", "drift", "error", "fluctuation", "temperature")
        text += [
            f"### Energy conservation: NVE, 0.5 fs, {results['claim']['picoseconds']:g} ps, after 2 ps at 300 K",
            markdown(DRIFTS, [[run[column] for column in columns] for run in runs]),
            conservation_text(runs),
        ]
    if box := results.get("box"):
        text += ["### A box of 64 waters", box_text(box)]
    return text


def torsion_text(student: Sequence[Sequence[float]], teacher: Sequence[Sequence[float]]) -> str:
    """Sentences about butane's torsion.

    Args:
        student: pairs of an angle (degrees) and an energy (meV).
        teacher: the same.
    """
    ours, theirs = ({float(angle): float(energy) for angle, energy in profile} for profile in (student, teacher))
    worst = max(ours, key=lambda angle: abs(ours[angle] - theirs[angle]))

    def heights(profile: Mapping[float, float]) -> str:
        gauche = min(energy for angle, energy in profile.items() if 45 <= angle <= 90)
        barrier = max(energy for angle, energy in profile.items() if 90 <= angle <= 150)
        return f"gauche {gauche:.0f}, barrier {barrier:.0f}, syn {profile[0.0]:.0f} meV"

    return (
        f"C-C-C-C profile of butane, relaxed at each of {len(ours)} angles, above anti: {heights(ours)}; the teacher: "
        f"{heights(theirs)}. Largest difference {abs(ours[worst] - theirs[worst]):.0f} meV, at {worst:.0f}°."
    )


def dimer_text(rows: Sequence[Sequence[float]]) -> str:
    """How two waters are bound; rows are an O-O distance (Å), and energies (meV) of student and teacher."""
    ours, theirs = min(rows, key=lambda row: row[1]), min(rows, key=lambda row: row[2])
    inside = [abs(a - b) for distance, a, b in rows if 2.6 <= distance <= 5.0]
    beyond = max(rows, key=lambda row: row[0])
    return (
        f"Two rigid waters: lowest at {ours[0]:.1f} Å with {ours[1]:.0f} meV; the teacher at {theirs[0]:.1f} Å with "
        f"{theirs[2]:.0f} meV. Largest difference between 2.6 and 5 Å {max(inside):.0f} meV. The student sees 5 Å from "
        f"each atom: at {beyond[0]:.1f} Å it gives {beyond[1]:.0f} meV, the teacher {beyond[2]:.0f}."
    )


def conservation_text(runs: Sequence[Mapping[str, Any]]) -> str:
    """How far energy drifted in runs of `conserved`."""
    worst = max(runs, key=lambda run: abs(run["drift"]))
    resolved = sum(abs(run["drift"]) > 2 * run["error"] for run in runs)
    below = sum(abs(run["drift"]) < 0.01 for run in runs)
    return (
        "The drift is the slope of a straight line through the means of ten equal blocks of the total energy, with the "
        f"standard error of that slope. {below} of {len(runs)} are below 0.01 meV/atom/ps; the largest is "
        f"{worst['drift']:.2g} ± {worst['error']:.1g} ({worst['name']}); {resolved} differ from zero by more than two "
        "standard errors. No run diverged."
    )


def box_text(box: Mapping[str, Any]) -> str:
    """Sentences about the box of `water_box`."""
    return (
        f"{box['picoseconds']:g} ps at 300 K (Bussi, 0.5 fs) at the density of the liquid, from a lattice; the student "
        f"never saw a periodic cell. The longest O-H bond of any molecule was {box['longest_bond']:.2f} Å; over the "
        f"second half the temperature was {box['temperature']:.0f} K and the O-O distribution peaks at "
        f"{box['peak']:.2f} Å with a height of {box['height']:.1f}."
    )


def picture(results: Mapping[str, Any], path: Path) -> None:
    """Draw torsion, dimer, energy conservation and the structure of water, as far as there are results.

    Args:
        results: of the studies, by name.
        path: of the picture.
    """
    with drawn(path, (9.0, 6.4), 2, 2) as ((torsion, dimer), (energy, water)):
        for profile, label, style in zip(results["butane"], ("student", "teacher"), ("o", "-"), strict=True):
            torsion.plot(*zip(*profile, strict=True), style, label=label)
        torsion.set(xlabel="C-C-C-C angle of butane (°)", ylabel="energy (meV)")
        torsion.legend()
        distances, ours, theirs = zip(*results["dimer"], strict=True)
        dimer.plot(distances, ours, "o", label="student")
        dimer.plot(distances, theirs, "-", label="teacher")
        dimer.set(xlabel="O-O distance of two waters (Å)", ylabel="interaction (meV)")
        dimer.legend()
        for run in results.get("nve", ()):
            energy.plot(run["times"], run["energies"], lw=0.8, label=run["name"])
        energy.set(xlabel="time (ps), NVE", ylabel="total energy (meV/atom)")
        if results.get("nve"):
            energy.legend(fontsize=6, ncols=2)
        if box := results.get("box"):
            water.plot(box["distances"], box["rdf"])
            water.axhline(1, color="0.7", lw=0.8)
        water.set_visible(bool(box))
        water.set(xlabel="O-O distance, 64 waters at 300 K (Å)", ylabel="radial distribution")
