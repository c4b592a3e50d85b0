"""The Makefile's way to an environment, with a python and a pip that only pretend."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"
PYTHON = """#!/bin/sh
# -c asks for the version; -m venv FOLDER makes an environment
[ "$1" = -c ] && exit 0
mkdir -p "$3/bin"
cp pip_to_install "$3/bin/pip"
"""
PIP = """#!/bin/sh
echo called >> pip_calls
[ -e network ] || exit 1
printf '#!/bin/sh\\necho "demo with $*"\\n' > .venv/bin/oacir
chmod +x .venv/bin/oacir
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(MAKEFILE, tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    for name, text in (("python", PYTHON), ("pip_to_install", PIP)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def make(checkout: Path, target: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    words = ["make", "PYTHON=./python", target]
    return subprocess.run(words, cwd=checkout, capture_output=True, text=True, check=False, env=clean)


def pip_calls(checkout: Path) -> int:
    return len((checkout / "pip_calls").read_text().splitlines())


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_environment_that_failed_is_made_again(checkout: Path) -> None:
    """pip fails, then has its network; nothing is deleted by hand in between."""
    failed = make(checkout, "demo")
    assert failed.returncode != 0
    assert (checkout / ".venv").is_dir()
    (checkout / "network").touch()
    done = make(checkout, "demo")
    assert done.returncode == 0, done.stderr
    assert "demo with demo" in done.stdout
    assert pip_calls(checkout) == 2


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_environment_is_made_once_and_again_when_its_definition_changes(checkout: Path) -> None:
    (checkout / "network").touch()
    for target in (".venv", ".venv", "demo"):
        assert make(checkout, target).returncode == 0
    assert pip_calls(checkout) == 1
    os.utime(checkout / "constraints.txt", (4e9, 4e9))
    assert make(checkout, ".venv").returncode == 0
    assert pip_calls(checkout) == 2
