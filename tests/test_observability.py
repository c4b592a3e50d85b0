"""Dashboard and alerts: every series they ask for is one that we publish or that Ray's own dashboards ask for, and
what they say is well formed. Neither Grafana nor Prometheus is at hand."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import counters
from training.gauges import HELP, PREFIX

REPOSITORY = Path(__file__).parents[1]
BOARD = json.loads((REPOSITORY / "deploy" / "grafana" / "oacir.json").read_text())
GROUPS = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
GRAPHS = [panel for panel in BOARD["panels"] if panel["type"] == "timeseries"]
FUNCTIONS = {"sum", "max", "min", "rate", "increase", "delta", "histogram_quantile", "label_values", "time"}
WORDS = {"by", "or", "on", "le", "and"}


def asked() -> list[str]:
    """Every expression."""
    found = [target["expr"] for panel in GRAPHS for target in panel["targets"]]
    return [*found, *(rule["expr"] for rule in RULES), BOARD["templating"]["list"][1]["query"]["query"]]


@cache
def known() -> frozenset[str]:
    """Names of series."""
    import ray

    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    of_ray = {name for file in folder.glob("*.py") for name in re.findall(r"\bray_\w+", file.read_text())}
    gauges = {f"ray_{PREFIX}{name}" for name in HELP if name not in ("samples", "step_seconds")}
    counted = {f"ray_{counters.PREFIX}{name}_total" for name in counters.HELP}
    return frozenset(
        of_ray | gauges | counted | {f"ray_{PREFIX}samples_total", f"ray_{PREFIX}step_seconds_bucket"}
    )


@pytest.mark.parametrize("expression", sorted(set(asked())))
def test_an_expression_asks_for_series_that_there_are(expression: str) -> None:
    names = set(re.findall(r"\bray_\w+", expression))
    assert names
    assert names <= known()
    for opened, closed in ("()", "{}", "[]"):
        assert expression.count(opened) == expression.count(closed)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby \([^)]*\)|\"[^\"]*\"", "", expression)
    assert set(re.findall(r"\b([a-z_]+)\b", bare)) - names <= FUNCTIONS | WORDS | {"run"}
    assert all(re.fullmatch(r"\d+[smh]", window) for window in re.findall(r"\[([^\]]*)\]", expression))
    for name in re.findall(r"(?:rate|increase)\((\w+)", expression):
        assert name.endswith(("_total", "_bucket", "_rows")), f"{name} is no counter"


def test_a_series_that_is_not_there_would_be_noticed() -> None:
    assert f"ray_{PREFIX}loss" in known()
    assert "ray_node_disk_free" in known()
    assert f"ray_{PREFIX}los" not in known()


def test_what_we_tell_has_a_panel() -> None:
    shown = " ".join(asked())
    silent = {name for name in HELP if f"{PREFIX}{name}" not in shown}
    assert [name for name in counters.HELP if f"{counters.PREFIX}{name}_total" not in shown] == []
    assert silent == {"epoch", "temperature", "learning_rate", "samples_per_second", "model_flops_per_second"}


def test_panels_lie_beside_each_other() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken
        taken |= cells
    for panel in GRAPHS:
        assert panel["description"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == list("AB")[: len(panel["targets"])]


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    headings = re.findall(
        r"^#+ (Oacir\w+)$", (REPOSITORY / "docs" / "operations.md").read_text(), re.MULTILINE
    )
    assert [rule["alert"] for rule in RULES] == headings
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert len(rule["annotations"]["summary"]) > 20
        assert re.fullmatch(r"\d+m", rule.get("for", "1m"))
