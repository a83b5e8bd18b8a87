"""Export in lower precisions: bundles that say what they cost, limits that hold, auto that measures."""

import json
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from ase import Atoms
from rich.console import Console

from painn_deploy import engines
from painn_deploy.calibration.accuracy.domain import find_domain
from painn_deploy.calibration.accuracy.errors import Accuracy, Tolerances
from painn_deploy.calibration.physics.audit import References, audit
from painn_deploy.calibration.physics.verdicts import Verdict
from painn_deploy.calibration.validation_set import choose_validation_set
from painn_deploy.engines import cache, get_backend
from painn_deploy.engines.backend import Backend, BuildOptions, BuiltEngine
from painn_deploy.engines.onnxruntime.backend import OnnxRuntimeBackend
from painn_deploy.engines.tensorrt.plan import read_plan
from painn_deploy.export import load_student
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import DatasetError, ExportError, OutputError, ParityError, PrecisionError, SpeciesError
from painn_deploy.export.graph.tf32 import rounded_products
from painn_deploy.export.manifest import MODEL, read_bundle
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import cli, export_engines
from painn_deploy.scripts.commands.inspection import print_errors
from tests import students

WIDE = Tolerances(energy=1.0, forces=10.0)


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    return [students.perturbed(students.zoo()["ethanol"], seed) for seed in range(40)]


@pytest.fixture(scope="module")
def bundles(painn: Path, frames: list[Atoms], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = export_engines(
        painn,
        tmp_path_factory.mktemp("precisions"),
        engines=["onnxruntime", "tensorrt-rtx"],
        precisions=["fp32", "fp16", "int8"],
        structures=frames,
        compute_capabilities=["86"],
        limits=WIDE,
    )
    return {path.name.removeprefix("painn-").removesuffix(".engine"): path for path in paths}


def validation(path: Path) -> dict:
    return json.loads(read_bundle(path).file("validation.json"))


def test_each_bundle_says_its_precision_and_its_cost(bundles: dict[str, Path]) -> None:
    assert set(bundles) == {f"{e}-{p}" for e in ("onnxruntime", "tensorrt-rtx") for p in ("fp32", "fp16", "int8")}
    for name, path in bundles.items():
        engine, precision = name.rsplit("-", 1)
        found, manifest = validation(path), read_bundle(path).manifest
        assert manifest.precision == precision
        assert ("not_executed" in found) == (engine == "tensorrt-rtx")
        assert ("against_fp32" in found) == (engine == "onnxruntime" and precision != "fp32")
        assert ("simulated" in found) == (precision == "fp16" or (engine == "tensorrt-rtx" and precision == "int8"))
        assert ("sensitivity" in found) == (precision == "int8")
        assert ("padding_waste" in found) == (engine == "tensorrt-rtx")
        assert 0 <= found.get("padding_waste", 0) < 0.5


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_int8_is_fit_for_is_said_with_its_cost(bundles: dict[str, Path], precision: str) -> None:
    told = StringIO()
    print_errors(read_bundle(bundles[f"onnxruntime-{precision}"]), Console(file=told, width=200))
    assert ("of the backward multiply-adds" in told.getvalue()) == (precision == "int8")
    assert ("dynamics at constant energy" in told.getvalue()) == (precision == "int8")


def test_a_calculator_runs_them_and_says_which(bundles: dict[str, Path], frames: list[Atoms]) -> None:
    frames = frames[4::5]  # INT8 was fitted on the others
    with PaiNNCalculator(bundles["onnxruntime-fp32"]) as exact:
        want = exact.calculate_batch(frames)
    for precision in ("fp16", "int8"):
        found = validation(bundles[f"onnxruntime-{precision}"])["against_fp32"]
        with PaiNNCalculator(bundles[f"onnxruntime-{precision}"]) as calculator:
            assert calculator.engine_info["precision"] == precision
            got = calculator.calculate_batch(frames)
        errors = np.concatenate([(a["forces"] - b["forces"]).ravel() for a, b in zip(got, want, strict=True)])
        assert np.sqrt(np.square(errors).mean()) == pytest.approx(found["force_rmse"], rel=0.02)
        assert found["force_rmse"] > 1e-6


def test_plans_hold_what_their_names_say(bundles: dict[str, Path]) -> None:
    plans = {
        p: read_plan(read_bundle(bundles[f"tensorrt-rtx-{p}"]).file("model.plan")) for p in ("fp32", "fp16", "int8")
    }
    assert not {"Half", "Int8"} & plans["fp32"].constants.keys()
    assert plans["fp16"].constants["Half"] > 0
    assert "Int8" not in plans["fp16"].constants
    assert plans["int8"].constants["Int8"] > 0


def test_the_correction_is_in_the_references(bundles: dict[str, Path]) -> None:
    exact, lossy = (read_bundle(bundles[f"onnxruntime-{p}"]).manifest for p in ("fp32", "int8"))
    shifts = validation(bundles["onnxruntime-int8"])["typed"]["energy_correction"]
    for z, before, after in zip(exact.species, exact.atomic_references, lossy.atomic_references, strict=True):
        symbol = Atoms([z]).get_chemical_formula()
        assert after - before == pytest.approx(1e-3 * shifts.get(symbol, 0.0), abs=1e-12)


def test_auto_takes_the_fastest_and_shows_its_table(painn: Path, frames: list[Atoms], tmp_path: Path) -> None:
    (path,) = export_engines(painn, tmp_path, precisions=["auto"], structures=frames, limits=WIDE)
    table = validation(path)["chosen_from"]
    assert {row["precision"] for row in table} == {"fp32", "fp16", "int8"}
    fastest = min(table, key=lambda row: row["milliseconds"])
    assert path.name == f"painn-onnxruntime-{fastest['precision']}.engine"
    assert read_bundle(path).manifest.precision == fastest["precision"]
    strict = Tolerances(energy=1e-9, forces=1e-9)
    (path,) = export_engines(painn, tmp_path / "strict", precisions=["auto"], structures=frames, limits=strict)
    table = validation(path)["chosen_from"]
    assert path.name.endswith("fp32.engine")
    assert sum("refused" in row for row in table) == 2


def test_auto_says_what_cannot_be_had_here(
    painn: Path, frames: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backend, "lacks", lambda _, precision, __: "Not here." if precision != "fp32" else "")
    (path,) = export_engines(painn, tmp_path, precisions=["auto"], structures=frames, limits=WIDE)
    fp32, *others = sorted(validation(path)["chosen_from"], key=lambda row: "refused" in row)
    assert fp32["precision"] == "fp32"
    assert others == [{"precision": precision, "refused": "Not here."} for precision in ("fp16", "int8")]


def test_auto_where_nothing_runs_is_refused(painn: Path, frames: list[Atoms], tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match="auto measures, and tensorrt-rtx cannot run here"):
        export_engines(painn, tmp_path, engines=["tensorrt-rtx"], precisions=["auto"], structures=frames)


def test_past_the_limits_nothing_is_written(painn: Path, frames: list[Atoms], tmp_path: Path) -> None:
    strict = Tolerances(energy=1.0, forces=1e-6)
    with pytest.raises(PrecisionError, match=r"fp16 costs more than it may.*force RMSE.*--max-force-error"):
        export_engines(painn, tmp_path, precisions=["fp16"], structures=frames, limits=strict)
    with pytest.raises(PrecisionError, match="No product can be INT8"):
        export_engines(painn, tmp_path, precisions=["int8"], structures=frames, limits=strict)
    assert not list(tmp_path.glob("*.engine"))


@pytest.mark.parametrize(("misses", "share"), [(0, 1.0), (1, 0.75), (2, 0.5), (3, None)])
def test_int8_that_misses_the_limits_is_searched_for_again_within_less(
    painn: Path, frames: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misses: int, share: float | None
) -> None:
    judged, verdicts = [], Accuracy.failures

    def failures(accuracy: Accuracy, limits: Tolerances) -> list[str]:
        judged.append(accuracy)
        return ["too much"] if len(judged) <= misses else verdicts(accuracy, limits)

    monkeypatch.setattr(Accuracy, "failures", failures)
    told: list[str] = []
    options = {"precisions": ["int8"], "structures": frames, "limits": WIDE, "tell": told.append}
    if share is None:
        with pytest.raises(PrecisionError, match="int8 costs more than it may, against FP32: too much, worst on"):
            export_engines(painn, tmp_path, **options)
    else:
        (path,) = export_engines(painn, tmp_path, **options)
        assert validation(path)["typed"]["share_of_limits"] == share
    assert sum("too much, on" in line for line in told) == misses
    assert sum("choosing structures to calibrate on" in line for line in told) == 1, "sensitivities are measured once"


def test_what_cannot_be_is_refused_before_any_work(painn: Path, frames: list[Atoms], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no precision 'fp8'; there are: fp32, fp16, int8, auto"):
        export_engines(painn, tmp_path, precisions=["fp8"])
    with pytest.raises(ExportError, match="tensorrt has no fp64; it has fp32, fp16, int8"):
        export_engines(painn, tmp_path, engines=["tensorrt"], precisions=["fp64"])
    with pytest.raises(DatasetError, match="1 are too few"):
        export_engines(painn, tmp_path, precisions=["int8"], structures=frames[:1])
    broken = [atoms.copy() for atoms in frames]
    broken[3].positions[0, 0] = np.nan
    with pytest.raises(ValueError, match="(?i)nan"):
        export_engines(painn, tmp_path, precisions=["int8"], structures=broken)
    strange = [Atoms("Og2", [[0, 0, 0], [0, 0, 2.0]])] * 20
    with pytest.raises((DatasetError, SpeciesError), match="Og"):
        export_engines(painn, tmp_path, precisions=["int8"], structures=strange)


def test_an_engine_is_built_once(painn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAINN_DEPLOY_CACHE", str(tmp_path / "cache"))
    model = (read_bundle(export_engines(painn, tmp_path / "one")[0])).file("model.onnx")
    backend, options = get_backend("tensorrt-rtx"), BuildOptions(("86",))
    first, before = cache.build_cached(backend, model, options)
    again, found = cache.build_cached(backend, model, options)
    assert (before, found) == (False, True)
    assert again == first
    for other in (BuildOptions(("89",)), BuildOptions(("86",), tf32=True)):
        assert cache.cache_key(backend, model, other) != cache.cache_key(backend, model, options)
    assert cache.cache_key(backend, model + b" ", options) != cache.cache_key(backend, model, options)
    (folder,) = (tmp_path / "cache" / "engines").iterdir()
    (folder / "model.plan").write_bytes(b"damaged")
    mended, found = cache.build_cached(backend, model, options)
    assert not found
    assert mended.files == first.files or len(mended.files["model.plan"]) > 1000
    assert cache.build_cached(backend, model, options)[1]
    (folder / "model.plan").unlink()
    folder.joinpath("engine.json").write_text("{")
    assert not cache.build_cached(backend, model, options)[1]


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    painn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PAINN_DEPLOY_CACHE", str(tmp_path / "file"))
    (path,) = export_engines(painn, tmp_path / "out", engines=["tensorrt-rtx"], compute_capabilities=["86"])
    assert read_bundle(path).file("model.plan")


class Rounding(OnnxRuntimeBackend):
    """A backend that has TF32 where there is no GPU."""

    name = "rounding"
    unasked = False

    def honours_tf32(self, device: str) -> bool:
        return True

    def build(self, model: bytes, options: BuildOptions, *_: object) -> BuiltEngine:
        return BuiltEngine(tf32=options.tf32)

    def open(self, bundle: Bundle, *options: object, **others: object) -> object:
        if not (bundle.manifest.tf32 or self.unasked):
            return super().open(bundle, *options, **others)
        model = rounded_products(onnx.load_from_string(bundle.file(MODEL))).SerializeToString()
        return super().open(Bundle.in_memory(bundle.manifest, {MODEL: model}), *options, **others)


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> str:
    name = Rounding.name
    monkeypatch.setattr(engines, "BACKENDS", {**engines.BACKENDS, name: "rounding_of_the_tests"})
    monkeypatch.setitem(sys.modules, "rounding_of_the_tests", SimpleNamespace(BACKEND=Rounding()))
    return name


def test_tf32_is_held_to_the_limits_of_lower_precisions(
    rounding: str, painn: Path, frames: list[Atoms], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It loses a hundred times what FP32 loses, which the parity gate would take for a wrong graph."""
    (path,) = export_engines(painn, tmp_path, engines=[rounding], structures=frames, tf32=True)
    found, manifest = validation(path), read_bundle(path).manifest
    assert (manifest.precision, manifest.tf32, manifest.arithmetic) == ("fp32", True, "tf32")
    assert path.name == f"painn-{rounding}-tf32.engine", "one in FP32 has room beside it"
    with pytest.raises(OutputError, match=r"tf32\.engine .*--overwrite"):
        export_engines(painn, tmp_path, engines=[rounding], structures=frames, tf32=True)
    assert 1e-5 < found["against_fp32"]["force_rmse"] < 5e-3
    measured, simulated = found["against_fp32"], found["simulated"]["against_fp32"]
    assert measured["force_rmse"] == pytest.approx(simulated["force_rmse"], rel=1e-3)
    assert "TF32" in found["simulated"]["how"]
    assert "half" not in found["simulated"]["how"]
    with PaiNNCalculator(path) as calculator:
        assert calculator.engine_info["precision"] == "tf32"
        assert calculator.evaluator.dtype == np.float32
        assert "precision='tf32'" in repr(calculator)
    cli.inspect(path)
    assert "tf32" in capsys.readouterr().out
    strict = Tolerances(energy=1.0, forces=1e-6)
    with pytest.raises(PrecisionError, match=r"rounding in tf32 costs more.*force RMSE.*or leave out --tf32\."):
        export_engines(painn, tmp_path / "strict", engines=[rounding], structures=frames, limits=strict, tf32=True)
    options = {"engines": [rounding], "precisions": ["auto"], "structures": frames, "limits": strict, "tf32": True}
    with pytest.raises(PrecisionError, match=r"rounding in tf32 costs more.*rounding in fp16 costs more"):
        export_engines(painn, tmp_path / "strict", **options)
    assert not list((tmp_path / "strict").glob("*.engine"))


def test_what_tf32_costs_a_plan_is_simulated_where_it_cannot_run(painn: Path, tmp_path: Path) -> None:
    asked = {"engines": ["tensorrt-rtx"], "compute_capabilities": ["86"], "precisions": ["fp32", "fp16"]}
    found = {}
    for tf32 in (False, True):
        paths = export_engines(painn, tmp_path / str(tf32), **asked, tf32=tf32)
        found[tf32] = [validation(path).get("simulated") for path in paths]
        assert all("not_executed" in validation(path) for path in paths)
    (no_fp32, fp16), (fp32, fp16_with_less) = found[False], found[True]
    assert no_fp32 is None
    assert fp32["against_fp32"]["force_rmse"] > 1e-5
    assert fp16_with_less["against_fp32"]["force_rmse"] != fp16["against_fp32"]["force_rmse"]
    assert "half" in fp16_with_less["how"]
    assert "TF32" in fp16_with_less["how"]
    assert "TF32" not in fp16["how"]


def test_an_engine_in_tf32_is_validated_as_one(rounding: str, painn: Path, frames: list[Atoms], tmp_path: Path) -> None:
    """What its rounding costs is no fault of it, and would be one of an engine that does not say so."""
    (path,) = export_engines(painn, tmp_path, engines=[rounding], structures=frames, tf32=True)
    student = load_student(painn, dtype=torch.float64)
    domain = find_domain(student, *choose_validation_set(None, student), brought=False)
    references = References.of(student, periodic=False, domain=domain)
    found = {}
    with PaiNNCalculator(path) as calculator:
        for said in ("tf32", "fp32"):
            findings = audit(calculator, references, precision=said, picoseconds=0.0).findings
            found[said] = {finding.engine_verdict for finding in findings}
    assert Verdict.BROKEN not in found["tf32"]
    assert Verdict.BROKEN in found["fp32"]


def test_tf32_that_nobody_asked_for_stops_an_export(
    rounding: str, painn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rounding, "unasked", True)
    with pytest.raises(ParityError, match="computes in TF32 or FP16"):
        export_engines(painn, tmp_path, engines=[rounding])
