"""SECURITY.md's table: every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROWS = re.findall(
    r"\| `(tests/\S+\.py)::(test_\w+)` \|$", (REPOSITORY / "SECURITY.md").read_text(), re.MULTILINE
)


def test_every_row_names_a_test() -> None:
    table = (REPOSITORY / "SECURITY.md").read_text().split("## Bad inputs tried", 1)[1].split("\n## ", 1)[0]
    assert len(ROWS) == len([line for line in table.splitlines() if line.startswith("| ")]) - 1
    assert len(set(ROWS)) == len(ROWS) >= 20


@pytest.mark.parametrize(("file", "name"), ROWS)
def test_what_a_row_says_is_tried(file: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (REPOSITORY / file).read_text(), re.MULTILINE)
