import json
from pathlib import Path

import pytest

from painn_deploy.engines import machine
from painn_deploy.engines.backend import CPU_BATCH_SLOTS
from painn_deploy.runtime import PaiNNCalculator, sizing


def test_measured_once_and_remembered(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAINN_DEPLOY_CACHE", str(tmp_path / "cache"))
    with PaiNNCalculator(bundle) as calculator:
        assert calculator.batch_slots == CPU_BATCH_SLOTS
        slots = calculator.tune_batches()
        assert calculator.batch_slots == slots
    (path,) = (tmp_path / "cache").iterdir()
    facts = json.loads(path.read_text())
    times = facts["microseconds_a_structure"]
    assert times[str(slots)] <= 1.05 * min(times.values()) + 0.01
    with PaiNNCalculator(bundle) as calculator:
        assert calculator.batch_slots == slots
    with PaiNNCalculator(bundle, threads=1) as other:
        assert other.batch_slots == CPU_BATCH_SLOTS, "another engine, device or number of threads is measured anew"
    for nonsense in ("", "[]", '{"batch_slots": "many"}', '{"batch_slots": -3}'):
        path.write_text(nonsense)
        with PaiNNCalculator(bundle) as calculator:
            assert calculator.batch_slots == CPU_BATCH_SLOTS


def test_what_was_measured_on_one_gpu_is_not_believed_of_another(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAINN_DEPLOY_CACHE", str(tmp_path))
    monkeypatch.setattr(sizing, "SIZES", sizing.SIZES[:2])
    monkeypatch.setattr(sizing, "ROUNDS", 1)
    with PaiNNCalculator(bundle) as calculator:
        sizes = sizing.BatchSizes(calculator.engine_info, None)
        for gpu in ("NVIDIA First", "NVIDIA Second", None):
            monkeypatch.setattr(machine, "gpu_of", lambda device, gpu=gpu: gpu)
            assert sizes.remembered() is None
            slots = sizes.measured(calculator.run_graph, 8, calculator.manifest.cutoff, None)
            assert sizes.remembered() == slots
    machines = [json.loads(path.read_text())["machine"] for path in tmp_path.iterdir()]
    assert sorted(name.rpartition(" cores")[2] for name in machines) == ["", ", NVIDIA First", ", NVIDIA Second"]


def test_a_cache_that_cannot_be_written_costs_nobody_an_answer(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PAINN_DEPLOY_CACHE", str(tmp_path / "file"))
    with PaiNNCalculator(bundle) as calculator:
        assert calculator.tune_batches() >= 512
