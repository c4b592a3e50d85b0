"""What can be held of the images without building them: pinned, staged, without root, with what the package needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from infra.ops.jobs.package import CODE

REPOSITORY = Path(__file__).parents[1]
FINAL = ("cpu", "cuda")


@pytest.fixture(scope="module")
def stages() -> dict[str, list[str]]:
    """Stage → its instructions, joined lines, without comments."""
    text = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in filter(str.strip, text.splitlines()):
        if started := re.match(r"FROM (\S+) AS (\S+)$", line):
            name = started[2]
            found[name] = []
        found[name].append(" ".join(line.split()))
    return found


def test_every_base_is_pinned_or_an_earlier_stage(stages: dict[str, list[str]]) -> None:
    (argument,) = stages[""]
    image, _, tag = argument.removeprefix("ARG PYTHON=").partition(":")
    assert image == "python"
    assert re.fullmatch(r"3\.\d+\.\d+-slim-\w+", tag)
    needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    assert tuple(map(int, tag.split("-")[0].split(".")))[:2] >= tuple(
        map(int, needed.removeprefix(">=").split("."))
    )
    earlier: set[str] = set()
    for name, lines in stages.items():
        if name:
            assert lines[0].split()[1] in {"${PYTHON}", *earlier}
            earlier.add(name)


@pytest.mark.parametrize("name", FINAL)
def test_a_final_image_has_no_root_and_no_tool_that_built_it(stages: dict[str, list[str]], name: str) -> None:
    lines = stages[name]
    assert lines[-1] == "USER 1000:1000"
    assert f"COPY --from=build-{name} /opt/venv /opt/venv" in lines
    assert not [line for line in [*lines, *stages["run"]] if "pip install" in line]
    assert any("useradd --uid 1000" in line for line in stages["run"])


def test_what_is_installed_is_pinned_and_nothing_is_fetched_by_hand(stages: dict[str, list[str]]) -> None:
    lines = [line for part in stages.values() for line in part]
    installs = [command for line in lines for command in line.split(" && ") if "pip install" in command]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in command for command in installs)
    assert not [
        line for line in lines if line.startswith("ADD ") or re.search(r"curl|wget http|\| *(ba)?sh", line)
    ]
    assert not [line for line in lines if re.search(r"(ARG|ENV) .*(KEY|SECRET|TOKEN|PASSWORD)", line)]
    assert all("rm -rf /var/lib/apt/lists" in line for line in lines if "apt-get" in line)


def test_the_context_is_what_is_listed_and_what_is_copied_is_there(stages: dict[str, list[str]]) -> None:
    lines = [
        line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"
    ]
    assert lines[0] == "*"
    listed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        word
        for part in stages.values()
        for line in part
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert copied == listed
    assert set(CODE) <= listed
    assert all((REPOSITORY / name).exists() for name in listed)
