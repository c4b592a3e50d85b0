"""The cluster definition against Ray's own schema, and what it promises of safety and cost."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).parents[1] / "ray_cluster.yaml"
PLACEHOLDER = re.compile(r"\b(?:ami|sg)-0{17}\b|oacir-ray-\w+")


def judge(definition: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(definition)
    validate_config(prepared)
    return prepared


@pytest.fixture
def definition() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


@pytest.fixture
def pools(definition: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = definition["available_node_types"]
    return found


def commands(definition: dict[str, Any]) -> Iterator[str]:
    for key, lines in definition.items():
        if key.endswith("commands"):
            yield from lines


def test_ray_accepts_the_shipped_cluster(definition: dict[str, Any]) -> None:
    prepared = judge(definition)
    assert prepared["available_node_types"]["gpu"]["resources"]["GPU"] == 8


def test_a_wrong_key_or_head_is_refused(definition: dict[str, Any]) -> None:
    import jsonschema

    with pytest.raises(jsonschema.ValidationError):
        judge(definition | {"max_wrokers": 3})
    with pytest.raises(jsonschema.ValidationError):
        judge(definition | {"auth": {"ssh_usr": "ubuntu"}})
    with pytest.raises(ValueError, match="head_node_type"):
        judge(definition | {"head_node_type": "brain"})


def test_the_head_does_no_work_and_pools_cost_nothing_while_idle(pools: dict[str, dict[str, Any]]) -> None:
    assert pools["head"]["resources"] == {"CPU": 0}
    assert {pool["min_workers"] for pool in pools.values()} == {0}
    assert all(0 < pool["max_workers"] <= 16 for name, pool in pools.items() if name != "head")
    spot = {name for name, pool in pools.items() if pool["node_config"].get("InstanceMarketOptions")}
    assert spot == {"cpu", "gpu-spot"}
    assert pools["gpu"]["resources"] == pools["gpu-spot"]["resources"]


def test_no_machine_is_open_to_the_world_or_holds_a_key(
    definition: dict[str, Any], pools: dict[str, dict[str, Any]]
) -> None:
    """Ray makes a group with port 22 open to 0.0.0.0/0 for any pool that names none."""
    assert "security_group" not in definition["provider"]
    for pool in pools.values():
        machine = pool["node_config"]
        assert len(machine["SecurityGroupIds"]) == 1
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert machine["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
        assert machine["IamInstanceProfile"]["Name"]
    roles = {name: pool["node_config"]["IamInstanceProfile"]["Name"] for name, pool in pools.items()}
    assert [name for name, role in roles.items() if role == roles["head"]] == ["head"]
    text = FILE.read_text()
    assert "0.0.0.0" not in text
    assert not re.search(r"AKIA|SECRET|aws_access_key", text)


def test_jobs_need_a_token_and_the_dashboard_stays_on_the_head(definition: dict[str, Any]) -> None:
    starts = [line for line in commands(definition) if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert all(f" AWS_REGION={definition['provider']['region']};" in line for line in starts)
    assert definition["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any(line == "chmod 600 ~/.ray/auth_token" for line in definition["setup_commands"])


def test_every_command_is_understood_by_the_shell(definition: dict[str, Any]) -> None:
    lines = list(commands(definition))
    assert len(lines) >= 8
    for line in lines:
        done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (line, done.stderr)


def test_what_has_to_be_changed_is_marked() -> None:
    lines = [line for line in FILE.read_text().splitlines() if PLACEHOLDER.search(line.partition("#")[0])]
    assert len(lines) == 12  # three for each kind of machine
    assert [line for line in lines if "# CHANGE" not in line] == []
