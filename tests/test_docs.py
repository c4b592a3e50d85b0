"""Commands and recipes in docs/: each is understood, so that a field that was renamed fails here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from infra import cli
from infra.base.config import load_recipe

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [
    "annotators.md",
    "cluster.md",
    "evaluation.md",
    "jobs.md",
    "operations.md",
    "registry.md",
    "tracking.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_to_type_is_understood(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text()
    for name, recipe in re.findall(r"```yaml\n# (\w+\.yaml)\n(.*?)```", text, re.DOTALL):
        Path(name).write_text(recipe)
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("oacir ")]
    assert len(commands) >= (2 if page == "annotators.md" else 5)
    for words in commands:
        call = cli._parse(words)
        for one in (call, call.sent):
            if one is not None:
                recipe_class, _ = cli._verb(one.verb).load()
                load_recipe(recipe_class, one.config, one.overrides)
