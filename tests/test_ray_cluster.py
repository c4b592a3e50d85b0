"""The cluster definition against Ray's own schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).parents[1] / "ray_cluster.yaml"


def judge(definition: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(definition))


def test_ray_accepts_the_shipped_cluster() -> None:
    judge(yaml.safe_load(FILE.read_text()))


def test_a_wrong_key_or_head_is_refused() -> None:
    import jsonschema

    definition = yaml.safe_load(FILE.read_text())
    with pytest.raises(jsonschema.ValidationError):
        judge(definition | {"max_wrokers": 3})
    with pytest.raises(ValueError, match="head_node_type"):
        judge(definition | {"head_node_type": "brain"})
