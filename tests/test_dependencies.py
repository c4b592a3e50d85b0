from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
OURS = ("infra", "pipelines", "training", "tuning")
BROUGHT = {
    "aiohttp": "s3fs",
    "botocore": "s3fs",
    "fsspec": "s3fs",
    "markupsafe": "jinja2",
    "mlflow": "mlflow",  # three distributions share its folder
    "packaging": "ray",
    "pandas": "mlflow",
    "requests": "ray",
    "tokenizers": "transformers",
}
"""Packages of which a dependency decides the version: it speaks in their types."""


def imported() -> set[str]:
    """Top-level names of every import in the package, those inside functions too."""
    found: set[str] = set()
    for folder in OURS:
        for file in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    return found - set(OURS) - sys.stdlib_module_names


def test_what_is_imported_is_a_dependency_and_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {_name(re.split(r"[\[<>=~! ]", line)[0]) for line in project["dependencies"]}
    pinned = {_name(line.partition("==")[0]) for line in (REPOSITORY / "constraints.txt").open()}
    distributions = packages_distributions()
    needed = {_name(BROUGHT.get(name, distributions[name][0])) for name in imported()}
    assert needed - declared == set()
    assert needed - pinned == set()


def _name(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
