"""`oacir submit` and `oacir jobs` against a real Ray head that asks for a token: the code travels, a double submit
joins, exit codes come back, a killed client leaves the job running, a job that is stopped ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray_head import ray_head

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).parents[2]
TOKEN = "0123456789abcdef0123456789abcdef"
WORLD = """
extends: world.yaml
source:
  kind: world
  world: {domains: [car], instances_per_domain: 6, scenes_per_instance: 4, image_size_px: 64, companions: 1}
"""


@dataclass(frozen=True)
class Client:
    """A machine that is no part of the cluster: its own working directory and variables."""

    url: str
    folder: Path
    root: Path

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        outer = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment = outer | {"PYTHONPATH": str(REPOSITORY), "RAY_AUTH_TOKEN": TOKEN} | variables
        command = [sys.executable, "-m", "infra.cli", *words]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=environment,
        )

    def run(self, *words: str, code: int = 0, **variables: str) -> tuple[str, str]:
        process = self.start(*words, **variables)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, err[-3000:]
        return out, err

    def json(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(*words, "--json")[0])
        return found


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("client")
    (folder / "mine.yaml").write_text(WORLD)
    with ray_head({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}) as url:
        yield Client(url, folder, tmp_path_factory.mktemp("root"))


def test_a_command_runs_there_with_its_own_recipe_and_its_exit_code_comes_back(client: Client) -> None:
    to, root = ("--address", client.url), ("--root", str(client.root))
    out, err = client.run("submit", *to, "build", "--config", "mine.yaml", *root)
    assert re.search(r"job oacir-build-\w{10}-\w{6} succeeded after ", out)
    assert "recipes/mine.yaml" in err  # Ray tells the command that it runs
    assert "benchmark built" in err
    victim = sorted(client.root.glob("datasets/*/*/quadruples/part-*.parquet"))[0]
    dataset = victim.parents[1]
    assert (dataset / "manifest.json").is_file()

    asked = ("submit", *to, "--estimate", "false", "data", "verify", *root, "--dataset")
    client.run(*asked, "nowhere", code=1)
    data = victim.read_bytes()
    victim.write_bytes(data[:-1] + b"x")
    _, err = client.run(*asked, str(dataset), code=3)
    assert "with exit code 3" in err
    victim.write_bytes(data)
    # the same command again is another attempt: what it found need not hold
    out, _ = client.run(*asked, str(dataset))
    assert re.search(r"job oacir-data-verify-\w{10}-\w{6}-2 succeeded", out)

    listed = client.json("jobs", "list", *to)["jobs"]
    assert [row["exit_code"] for row in listed] == [0, 3, 1, 0]
    assert client.json("jobs", "status", *to, "--job", listed[-1]["job"])["status"] == "SUCCEEDED"


def test_a_client_that_goes_leaves_the_job_and_the_same_command_joins_it(
    client: Client, tmp_path: Path
) -> None:
    to = ("--address", client.url)
    words = ("submit", *to, "--estimate", "false", "demo", "--root", str(tmp_path))
    first = client.start(*words)
    assert first.stderr is not None
    for line in first.stderr:
        if "Running entrypoint" in line:
            break
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "runs on; `oacir jobs logs" in err

    out, _ = client.run("submit", *to, "--follow", "false", *words[5:])
    joined = re.search(r"joined job (\S+);", out)
    assert joined
    (client.folder / "notes.txt").write_text("another file is another job, and would write the same versions")
    _, err = client.run("submit", *to, "--include", "notes.txt", *words[5:], code=1)
    assert f"job {joined[1]} runs this very command with other code" in err
    second = client.start(*words)
    assert second.stderr is not None
    assert "joining it" in second.stderr.readline()
    out, _ = client.run("jobs", "stop", *to, "--job", joined[1])
    assert "STOPPED" in out
    _, err = second.communicate(timeout=60)
    assert second.returncode == 143
    assert "was stopped" in err


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RAY_AUTH_TOKEN": "wrong"}, "the cluster refuses the token of RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token, and none was sent"),
    ],
)
def test_a_wrong_token_is_one_line(client: Client, variables: dict[str, str], says: str) -> None:
    _, err = client.run("jobs", "list", "--address", client.url, code=1, **variables)
    assert says in err
    assert err.count("\n") == 1
