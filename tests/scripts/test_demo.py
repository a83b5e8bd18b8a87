"""The README's first command, run as a user runs it; fewer steps are all that differs."""

import json
from pathlib import Path

import ase.io
import pytest

from painn_deploy.export.manifest import read_bundle

from .test_cli import run


@pytest.mark.slow
def test_the_demo_runs_from_export_to_picture(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    done = run("demo", "-o", output, "--picoseconds", "0.05")
    assert done.returncode == 0, done.stderr
    made = {path.name for path in output.iterdir()}
    assert made == {"demo.json", "demo.md", "demo.png", "md.csv", "md.extxyz", "student-base-onnxruntime-fp32.engine"}
    bundle = read_bundle(output / "student-base-onnxruntime-fp32.engine")
    facts = json.loads((output / "demo.json").read_text())
    assert facts["engine"]["backend"] == bundle.manifest.engine == "onnxruntime"
    assert 0 < facts["accuracy"]["force_rmse"] < 1e-4
    assert 0 < facts["accuracy"]["energy_mae"] < 1e-5
    assert abs(facts["drift_meV_per_atom_per_ps"]) < 5.0
    assert 0 < facts["fluctuation_meV_per_atom"] < 5.0
    assert min(facts["milliseconds"].values()) > 0
    frames = ase.io.read(output / "md.extxyz", index=":")
    assert len(frames) == 11  # the start, and every tenth of 100 steps
    assert frames[-1].get_chemical_formula() == "C9H8O4"
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")
    rows = (output / "demo.md").read_text()
    for text in ("energy drift", "meV/atom/ps", "speed-up", "aspirin, 21 atoms, NVE, 0.05 ps"):
        assert text in rows
        assert text in " ".join(done.stdout.split())
    for path in ("demo.png", "demo.md", "demo.json"):
        assert f"wrote {output / path}" in done.stdout
