"""Commands and recipes in docs/: each is understood, so that a field that was renamed fails here; the pages of the
site, as far as building it (`make docs`) does not hold them together."""

from __future__ import annotations

import re
import shlex
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from infra import cli
from infra.base.config import load_recipe

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [
    "annotators.md",
    "cluster.md",
    "evaluation.md",
    "foreign.md",
    "jobs.md",
    "operations.md",
    "registry.md",
    "reproduction.md",
    "tracking.md",
    "tutorial.md",
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
    assert len(commands) >= {"annotators.md": 2, "reproduction.md": 4}.get(page, 5)
    for words in commands:
        call = cli._parse(words)
        for one in (call, call.sent):
            if one is not None:
                recipe_class, _ = cli._verb(one.verb).load()
                load_recipe(recipe_class, one.config, one.overrides)


def test_every_command_has_its_place_in_the_reference() -> None:
    pages = sorted((DOCS / "reference" / "commands").glob("*.md"))
    told = [verb for page in pages for verb in re.findall(r"```{oacir-command} (.+)\n", page.read_text())]
    assert sorted(told) == sorted(cli.VERBS)


def test_every_decision_is_in_the_list() -> None:
    listed = re.findall(r"\]\((2\S+)\)", (DOCS / "decisions" / "README.md").read_text())
    assert sorted(listed) == sorted(page.name for page in (DOCS / "decisions").glob("2*.md"))


def test_the_python_reference_says_what_a_docstring_says(tmp_path: Path) -> None:
    """From the sources' text alone: signature, fields, sections; what looks like markup stays text."""
    module = tmp_path / "infra" / "shapes.py"
    module.parent.mkdir()
    module.with_name("__init__.py").write_text("")
    module.write_text(SOURCE)
    for name in ("pipelines", "training", "tuning"):
        (tmp_path / name).mkdir()
    api = _api()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gone.md").write_text("of an earlier module")
    assert api.write(tmp_path, tmp_path / "out") == ["infra.md"]
    assert [page.name for page in (tmp_path / "out").iterdir()] == ["infra.md"]
    assert (tmp_path / "out" / "infra.md").read_text() == PAGE


def _api() -> ModuleType:
    spec = spec_from_file_location("api", DOCS / "site" / "api.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCE = '''"""Shapes of `a*b`."""
MOST = 3
"""Of <them>."""
_HIDDEN = 4

def area(side: float, *, scale: int = 2) -> float:
    """Side * side.

    Args:
        side: in pixels,
            above 0.
        scale: of all.

    Raises:
        ValueError: a side of 0.
    """

def _inner(): ...

class Box(Base):
    """A box."""

    width: int = 1
    """In pixels."""

    def wide(self) -> bool:
        """Whether it is."""
'''
PAGE = """# infra

## infra.shapes

Shapes of `a*b`.

- `MOST = 3`: Of \\<them>.

### area

```python
def area(side: float, *, scale: int=2) -> float
```

Side \\* side.

**Args**

- `side`: in pixels, above 0.
- `scale`: of all.

**Raises**

- `ValueError`: a side of 0.

### Box

```python
class Box(Base)
```

A box.

- `width: int = 1`: In pixels.

```python
def wide(self) -> bool
```

Whether it is.
"""
