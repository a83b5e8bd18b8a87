import json
from pathlib import Path

import pytest

from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.packing import DEFAULT_BUDGET


def test_measured_once_and_remembered(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAINN_DEPLOY_CACHE", str(tmp_path / "cache"))
    with PaiNNCalculator(bundle) as calculator:
        assert calculator.batch_slots == DEFAULT_BUDGET
        slots = calculator.tune_batches()
        assert calculator.batch_slots == slots
    (path,) = (tmp_path / "cache").iterdir()
    facts = json.loads(path.read_text())
    times = facts["microseconds_a_structure"]
    assert times[str(slots)] <= 1.05 * min(times.values()) + 0.01
    with PaiNNCalculator(bundle) as calculator:
        assert calculator.batch_slots == slots
    with PaiNNCalculator(bundle, threads=1) as other:
        assert other.batch_slots == DEFAULT_BUDGET, "another engine, device or number of threads is measured anew"
    for nonsense in ("", "[]", '{"batch_slots": "many"}', '{"batch_slots": -3}'):
        path.write_text(nonsense)
        with PaiNNCalculator(bundle) as calculator:
            assert calculator.batch_slots == DEFAULT_BUDGET


def test_a_cache_that_cannot_be_written_costs_nobody_an_answer(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PAINN_DEPLOY_CACHE", str(tmp_path / "file"))
    with PaiNNCalculator(bundle) as calculator:
        assert calculator.tune_batches() >= 512
