"""The counts of scripts/profiling/walk.py are of what was entered."""

from pathlib import Path

from painn_deploy.export.bundle import read_bundle
from painn_deploy.scripts.profiling.walk import _print, walking


def test_functions_files_and_rooms_of_a_walk(bundle: Path) -> None:
    with walking() as walk:
        read_bundle(bundle)
        read_bundle(bundle)
    assert walk.functions[0] == ("painn_deploy.export.bundle", "read_bundle")
    assert len(walk.functions) == len(set(walk.functions)) < walk.calls
    assert {"painn_deploy.export.bundle", "painn_deploy.export.manifest"} <= set(walk.files)
    assert set(walk.rooms) == {"export"}
    before = walk.calls
    read_bundle(bundle)
    assert walk.calls == before, "nothing is recorded after the block"


def test_the_table_counts_changes_and_moves(bundle: Path, capsys: object) -> None:
    with walking() as walk:
        read_bundle(bundle)
    walk.functions[:] = [
        ("painn_deploy.export.a", "f"),
        ("painn_deploy.engines.b", "g"),
        ("painn_deploy.export.a", "h"),
    ]
    walk.moves[:] = [module for module, _ in walk.functions] * 2
    walk.calls = 9
    _print({"some": walk}, listed=True)
    printed = capsys.readouterr().out  # type: ignore[attr-defined]
    assert "| some | 3 | 2 | 2 | 2 | 9 | 4 | 4 |" in printed
    assert "    engines.b: g" in printed
