"""The export command as a function: a checkpoint goes in, bundles come out."""

import re
from collections.abc import Sequence
from pathlib import Path

from painn_deploy.calibration.accuracy.errors import Tolerances
from painn_deploy.calibration.accuracy.tabling import LARGEST_ERROR
from painn_deploy.engines import BACKENDS, get_backend
from painn_deploy.export.checkpoint import committee_name, find_checkpoint
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import EngineUnavailableError, ExportError
from painn_deploy.export.files import prepare_output
from painn_deploy.export.manifest import SUFFIX, check_free
from painn_deploy.export.manifest_values import arithmetic_of
from painn_deploy.export.progress import Tell, silent
from painn_deploy.scripts.commands.bundler import Bundler
from painn_deploy.scripts.commands.measuring import GATE
from painn_deploy.scripts.commands.trials import Given
from painn_deploy.scripts.commands.typed_graphs import AUTO, AUTO_CHOICE, auto_choice

__all__ = ["export_engines"]

DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")
"""That engines are built for."""


def export_engines(
    checkpoint: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    committee: bool = False,
    engines: str | Sequence[str] = ("onnxruntime",),
    precisions: str | Sequence[str] = ("fp32",),
    structures: Given = None,
    training: Given = None,
    compute_capabilities: str | Sequence[str] = (),
    limits: Tolerances | None = None,
    device: str = "auto",
    tf32: bool = False,
    form: str = "",
    radial_table: bool = False,
    max_table_error: float = LARGEST_ERROR,
    uncertainty: bool = True,
    overwrite: bool = False,
    tell: Tell = silent,
    declared: Declaration | None = None,
) -> list[Path]:
    """Export a student, or a committee of several, to one bundle for each engine and precision.

    Args:
        checkpoint: a file, see `painn_deploy.export.load_student`, or a student that ships, such as `student:base`; or
            several, for a committee.
        output: folder to write bundles NAME-ENGINE-PRECISION.engine into; those in TF32 are called `tf32`.
        committee: make one bundle of several students of one architecture: the mean of their energies, forces and
            stress, with the standard deviation over them.
        engines: backends by name, one or several.
        precisions: `fp32`, `fp16`, `int8`; or `auto`, the fastest of them within the limits, measured here; or `fp64`,
            on the CPU alone, within 1e-9 eV/Å of the student in float64.
        structures: what the student is for, as Atoms or a file that ASE reads: engines are judged on them, and their
            shape profiles planned for them; without, on those default structures where the student is sane.
        training: what uncertainties are fitted on, and INT8 and radial tables, likewise. Without, results have the
            uncertainty that NAME.uncertainty.json beside the checkpoint makes, or none, and the others are fitted on
            `structures`, of which every fifth is then held out and alone judges; without either, on a default set. The
            same file as `structures` is parted likewise.
        compute_capabilities: of the GPUs that TensorRT-RTX plans are built for, such as `86`.
        limits: what FP16 and INT8 may cost against FP32; by default 10 meV/atom and 50 meV/Å for FP16, 3 meV/atom and
            20 meV/Å for INT8, which is searched for within them.
        device: that `inductor` and `fused` compile for, `cpu` or `cuda`; by default the first that is here.
        tf32: let FP32 products round their operands to ten bits; an engine that has no such products is refused.
        form: of the graph that `inductor` compiles, see `painn_deploy.engines.forms`; by default those of the device.
        radial_table: read what depends on one distance alone from a table, in place of the radial network.
        max_table_error: eV/Å, the most that this may change a force component, measured on `structures` in float64.
        uncertainty: let results of a single student have an uncertainty; without, the graph gives no `features`.
        overwrite: replace bundles that are there.
        tell: called with a line about each step as it begins.
        declared: units, elements and the energy's name, of a checkpoint that does not say: what SchNetPack saves.

    Returns:
        The bundles' paths, engine by engine.

    Raises:
        PaiNNDeployError: see `painn_deploy.export.errors`. What was complete before the error stays, whole; nothing
            half-made does.
    """
    checkpoints = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    engines, precisions, compute_capabilities = map(_listed, (engines, precisions, compute_capabilities))
    name = _name_of(checkpoints, committee=committee)
    _check_request(engines, precisions, device)
    if committee and not uncertainty:
        raise ExportError("A committee is there for its spread. Leave out --no-uncertainty, or export one student.")
    if "fp64" in precisions:
        _check_double(device, radial_table=radial_table, tf32=tf32)
    if tf32:
        _check_tf32(engines, device)

    made_of = {engine: _candidates(engine, precisions) for engine in engines}
    asked = list(dict.fromkeys(precision for candidates in made_of.values() for precision in candidates))

    def target(engine: str, arithmetic: str) -> Path:
        return Path(output) / f"{name}-{engine}-{arithmetic}{SUFFIX}"

    for engine in engines:
        for precision in made_of[engine]:
            check_free(target(engine, arithmetic_of(precision, tf32=tf32)), overwrite=overwrite)
    prepare_output(output)
    tell(f"reading {', '.join(find_checkpoint(each)[0].name for each in checkpoints)}")
    paths: list[Path] = []
    with Bundler(
        checkpoints,
        structures,
        training,
        compute_capabilities,
        limits,
        engines=engines,
        precisions=asked,
        device=device,
        tf32=tf32,
        form=form,
        table_error=max_table_error if radial_table else None,
        uncertainty=uncertainty,
        tell=tell,
        declared=declared,
    ) as bundler:
        for engine in engines:
            for precision in precisions:
                made = bundler.fastest(engine) if precision == AUTO else bundler.bundle(engine, precision)
                path = target(engine, made.bundle.manifest.arithmetic)
                made.bundle.write(path, overwrite=overwrite or path in paths)
                paths.append(path)
    return list(dict.fromkeys(paths))


def _name_of(checkpoints: Sequence[str | Path], *, committee: bool) -> str:
    """What bundles are named after.

    Raises:
        ExportError: there are several students and no committee is wanted, or the other way round.
        CheckpointError: there is no such file or student.
    """
    names = [find_checkpoint(each)[1] for each in checkpoints]
    if committee and len(names) < 2:
        raise ExportError(
            f"A committee has two students or more, and {len(names)} was given. Give others of the same architecture, "
            "trained with other seeds, or leave out --committee."
        )
    if not committee and len(names) != 1:
        raise ExportError(
            f"{len(names)} students were given. Give --committee to make one bundle of their mean and spread, or "
            "export them one after the other."
        )
    return committee_name(names) if committee else names[0]


def _listed(names: str | Sequence[str]) -> list[str]:
    """Names, each once; a text is one of them."""
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))


def _candidates(engine: str, precisions: Sequence[str]) -> list[str]:
    """The precisions that an engine is built in, those that `auto` chooses from among them."""
    return list(dict.fromkeys(p for each in precisions for p in (auto_choice(engine) if each == AUTO else [each])))


def _check_double(device: str, *, radial_table: bool, tf32: bool) -> None:
    """Refuse what `fp64` cannot be had with."""
    if device not in ("auto", "cpu"):
        raise ExportError(f"Engines in fp64 run on the CPU alone, and not on {device}. Give --device cpu, or fp32.")
    if radial_table:
        raise ExportError(
            "A radial table changes forces, if little, and fp64 is for those that want none changed. Leave out "
            "--radial-table, or export fp64 by itself."
        )
    if tf32:
        raise ExportError(
            "TF32 rounds products to ten bits, and fp64 rounds none. Leave out --tf32, or export fp64 alone."
        )


def _check_request(engines: Sequence[str], precisions: Sequence[str], device: str) -> None:
    """Refuse now what would fail after minutes."""
    if not engines or not precisions:
        raise ExportError("Name at least one engine and one precision.")
    if not DEVICE.fullmatch(device):
        raise ExportError(
            f"There is no device {device!r} to build for; there are auto, cpu, cuda, and cuda:1 and so on."
        )
    backends, known = [get_backend(engine) for engine in engines], (*AUTO_CHOICE, AUTO, "fp64")
    for precision in precisions:
        if precision not in known:
            raise ExportError(f"There is no precision {precision!r}; there are: {', '.join(known)}.")
        for backend in backends:
            if precision != AUTO and precision not in backend.precisions:
                able = [name for name in BACKENDS if precision in get_backend(name).precisions]
                sentences = [
                    f"The engine {backend.name} has no {precision}; it has {', '.join(backend.precisions)}.",
                    *([backend.lacking[precision]] if precision in backend.lacking else []),
                    f"Engines that have {precision}: {', '.join(able)}.",
                ]
                raise ExportError(" ".join(sentences))
    for backend in backends:
        for precision in precisions:
            if precision != AUTO and (lacking := backend.lacks(precision, device)):
                raise EngineUnavailableError(f"The engine {backend.name} has no {precision} here. {lacking}")
        backend.version()
        backend.devices()
    get_backend(GATE).version()


def _check_tf32(engines: Sequence[str], device: str) -> None:
    """Refuse TF32 for an engine that would compute in FP32 all the same."""
    for engine in engines:
        if not get_backend(engine).honours_tf32(device):
            able = [name for name in BACKENDS if get_backend(name).honours_tf32("cuda")]
            where = "" if device == "auto" else f" on {device}"
            none_here = "There is none here. " if device == "auto" and engine in able else ""
            raise ExportError(
                f"The engine {engine} has no TF32{where}: its products would be FP32 all the same. "
                f"On an NVIDIA GPU these have it: {', '.join(able)}. {none_here}Leave out --tf32, or choose among them."
            )
