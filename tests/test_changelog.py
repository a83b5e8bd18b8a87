"""The changelog says by day what changed for a user, and lags behind no change to the rooms."""

import re
import subprocess

import pytest

from tests.conftest import ROOT
from tests.test_house import ROOMS

TEXT = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
DAY = re.compile(r"^### (\d{4}-\d\d-\d\d)$", re.MULTILINE)


def test_days_fall() -> None:
    days = DAY.findall(TEXT)
    assert days == sorted(set(days), reverse=True)


def test_it_has_the_day_of_the_last_change() -> None:
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%as", "--", *ROOMS]
    changed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if not changed:
        pytest.skip("not a clone: no history says when something changed")
    newest = DAY.search(TEXT)
    assert newest is not None, "CHANGELOG.md has no heading with a day"
    line = TEXT.count("\n", 0, newest.start()) + 1
    assert newest[1] >= changed, (
        f"CHANGELOG.md, line {line}: the last day is {newest[1]}, and the rooms changed on {changed}: say under "
        f"'### {changed}' what that changed for a user."
    )
