"""What a bundle is, and the errors that were measured at its export: what `inspect` and `export` print."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from painn_deploy import engines
from painn_deploy.calibration.accuracy.left_out import LeftOut, summary
from painn_deploy.calibration.labels import Labelled
from painn_deploy.export.bundle import Bundle, read_bundle
from painn_deploy.export.declaration import species_text
from painn_deploy.export.errors import BundleError, PaiNNDeployError
from painn_deploy.export.manifest import VALIDATION, Manifest

__all__ = ["print_bundle", "print_errors", "print_remarks"]

NONSENSE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What code raises that meets values of other kinds than it wrote; errors of ours pass, since they say more."""


def print_bundle(path: Path, out: Console) -> None:
    """Check every file of a bundle, and print what the bundle is, what it was made of, and its errors.

    Args:
        path: of the bundle's folder.
        out: console to print on.

    Raises:
        BundleError: the bundle is damaged, foreign or of a newer format.
    """
    bundle = read_bundle(path)
    m = bundle.manifest
    made = Table(title=_shown(path.name), show_header=False)
    made.add_column()
    made.add_column(overflow="fold")
    made.add_row("engine", _shown(f"{m.engine} {m.engine_version}, {m.arithmetic}"))
    made.add_row("bound to", _shown(", ".join(m.bound_to)) or "nothing: it runs on any machine")
    made.add_row("architecture", _shown(f"{m.architecture}: {json.dumps(dict(m.configuration))}"))
    made.add_row("cutoff", f"{m.cutoff:g} Å")
    made.add_row("species", species_text(m.species, verified=m.species_verified))
    if said := {key: value for key, value in m.declared.items() if key != "remarks"}:
        made.add_row("declared", ", ".join(f"{_shown(key)} {_words(value)}" for key, value in said.items()))
    made.add_row("profiles", "any atoms, any slots" if not m.profiles else _shown(json.dumps(list(m.profiles))))
    made.add_row("radial table", "none" if m.radial_table is None else _shown(json.dumps(dict(m.radial_table))))
    made.add_row("checkpoint", f"sha256 {m.checkpoint_sha256}{', of those of its members' if m.members else ''}")
    for member in m.members:
        made.add_row("member", _shown(f"{member['name']}, sha256 {member['checkpoint_sha256']}"))
    made.add_row("bundle", f"sha256 {bundle.sha256}, format {m.format_version}")
    made.add_row("built", _shown(f"{m.built_at} with " + ", ".join(f"{k} {v}" for k, v in m.built_with.items())))
    if m.engine in engines.BACKENDS:
        try:
            contents = engines.get_backend(m.engine).contents(bundle)
        except PaiNNDeployError:
            raise
        except NONSENSE as error:
            raise BundleError(f"The files of {bundle} hold what makes no sense ({error}). Export it again.") from error
        for heading, words in contents.items():
            made.add_row(heading, _shown(words))
    for name in m.files:
        made.add_row("file", f"{_shown(name)}, {len(bundle.file(name)) / 1e6:.2f} MB, as written at export")
    out.print(made)
    if VALIDATION in m.files:
        print_errors(bundle, out)


def print_errors(bundle: Bundle, out: Console) -> None:
    """Print what a bundle's validation.json holds: its errors, and what a user should know about them.

    Args:
        bundle: which holds one.
        out: console to print on.

    Raises:
        BundleError: the file is gone, was altered, never was there, or holds what makes no sense.
    """
    errors = bundle.json(VALIDATION)
    try:
        lines = list(_lines(bundle.manifest, errors))
    except NONSENSE as error:
        raise BundleError(
            f"{VALIDATION} of {bundle} holds values that make no sense ({type(error).__name__}: {str(error)[:80]}). "
            "Export the bundle again."
        ) from error
    print_remarks(bundle.manifest.declared.get("remarks", ()), out)
    for line in lines:
        out.print(f"  {line}", soft_wrap=True)


def _lines(manifest: Manifest, errors: Mapping[str, Any]) -> Iterator[str]:
    """What validation.json says, in lines with markup; whatever comes from a file is escaped."""
    if not manifest.species_verified:
        yield "[yellow]elements unverified[/]: nobody said which the student was trained on"
    if "not_executed" in errors:
        yield f"[yellow]built, not executed[/]: {_shown(str(errors['not_executed']))}"
    else:
        yield f"against the student in float64: {_errors(errors)}"
    if "left_out" in errors:
        yield f"judged on: {_shown(str(errors['measured_on']))}"
        for line in summary([LeftOut(**each) for each in errors["left_out"]]):
            yield f"  [yellow]{_shown(line)}[/]"
    if "labels" in errors:
        labelled = Labelled(**errors["labels"])
        yield labelled.sentence
        if labelled.doubt:
            yield f"  [yellow]{_shown(labelled.doubt)}[/]"
    if (table := manifest.radial_table) is not None:
        yield (
            f"radial table of {table['rank']} functions: it changes forces by at most "
            f"{1e3 * table['max_force_error']:.4f} meV/Å ({table['structures']} structures)"
        )
    if "against_fp32" in errors:
        yield f"against FP32: {_errors(errors['against_fp32'])}"
    if "simulated" in errors:
        yield f"at most, by simulated rounding: {_errors(errors['simulated']['against_fp32'])}"
    if "int8_multiply_adds" in (typed := errors.get("typed", {})):
        shares, others = typed["int8_multiply_adds"], str(typed["other_products"]).upper()
        yield (
            f"in INT8: {_shown(str(typed['int8_products']))} products, {shares['forward']:.0%} of the forward and "
            f"{shares['backward']:.0%} of the backward multiply-adds; the others in {_shown(others)}"
        )
        yield (
            "fit for screening, sampling with a thermostat and first relaxations; dynamics at constant energy, tight "
            "minima and vibrations want fp32"
        )
    for row in errors.get("chosen_from", []):
        found = row.get("refused") or f"{row['milliseconds']:.3f} ms a structure"
        yield f"{_shown(str(row['precision']))}: {_shown(str(found))}"
    yield from _sure(manifest, errors)
    parity = errors["graph_parity"]
    if manifest.precision == "fp64":
        if (blur := parity["float64_forces"]) > 1e-4:
            yield (
                f"[yellow]forces jump[/]: where atoms are 1e-14 Å away, by up to {1e3 * blur:.2f} meV/Å in the student "
                "itself, most on symmetric molecules"
            )
    elif (blur := parity["float32_forces"]) > 1e-4:
        yield (
            f"[yellow]float32 blurs this student[/]: its own forces, in PyTorch, are up to {1e3 * blur:.2f} meV/Å "
            "from float64, most on symmetric molecules"
        )


def _sure(manifest: Manifest, errors: Mapping[str, Any]) -> Iterator[str]:
    """What validation.json says of uncertainties."""
    if manifest.members:
        yield f"a committee of {len(manifest.members)}: {_shown(', '.join(one['name'] for one in manifest.members))}"
    if (found := errors.get("uncertainty")) is None:
        return
    made, calibrated = (int(count) for count in found["frames"])
    in_energy = ", in eV too" if found.get("factor") is not None else ""
    of = "" if manifest.members else f"made of {made:,} frames, "
    yield (
        f"uncertainty: {of}calibrated on {calibrated:,} of {_shown(str(found['fitted_on']))}"
        f"{in_energy}; {100 * found['quantile']:g} % of these are at most {found['threshold']:.2f} times as uncertain "
        "as the median"
    )
    for remark in found["remarks"]:
        yield f"[yellow]uncertainty[/]: {_shown(str(remark))}"


def print_remarks(remarks: Sequence[str], out: Console) -> None:
    """Print what a user should know about how a checkpoint was read.

    Args:
        remarks: see `painn_deploy.export.checkpoint.Checkpoint`.
        out: console to print on.
    """
    for remark in remarks:
        out.print(f"  [yellow]of the checkpoint[/]: {_shown(str(remark))}", soft_wrap=True)


def _shown(text: str) -> str:
    """A text of a file as a console shows it: neither markup nor anything that a terminal would obey."""
    return escape("".join(sign if sign.isprintable() else " " for sign in text))


def _milli(value: float) -> str:
    """A thousand times an error, to four places, or to two digits where these would be zeros."""
    return f"{1e3 * value:.4f}" if 1e3 * value >= 1e-4 or value == 0 else f"{1e3 * value:.1e}"


def _words(value: Any) -> str:
    return _shown(" ".join(map(str, value)) if isinstance(value, list) else str(value))


def _errors(found: Mapping[str, Any]) -> str:
    return (
        f"energy {_milli(found['energy_mae'])} meV/atom (MAE), forces {_milli(found['force_rmse'])} meV/Å (RMSE), "
        f"{int(found['structures'])} structures"
    )
