"""Out and in through a real Label Studio. OACIR_LABEL_STUDIO names its executable, of an environment of its own."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from label_studio_server import LabelStudio, label_studio
from without_ray import run_stages_here

from infra.base.command import Context
from infra.base.versions import open_version
from pipelines.annotators.people import store
from pipelines.annotators.people.exporting import ReviewExportRecipe, export
from pipelines.annotators.people.importing import ReviewImportRecipe, import_
from pipelines.build import build
from pipelines.config import BuildRecipe

LOOSE = {"tau_valid": 3, "tau_high": 0.9999, "tau_centric": 0.9999, "tau_count": 3}
WORLD = {"domains": ["car", "fashion"], "instances_per_domain": 8, "image_size_px": 64}
TREE = {
    "name": "shown",
    "source": {"kind": "world", "world": WORLD},
    "thresholds": {"default": LOOSE},
    "max_pairs_per_instance": 4,
}


def result(task: dict[str, Any], verdict: str, text: str | None = None, x: float | None = None) -> list[Any]:
    """What the interface sends: the prediction's results, changed, and the verdict."""
    found = copy.deepcopy(task["predictions"][0]["result"])
    for item in found:
        if item["type"] == "textarea" and text is not None:
            item["value"]["text"] = [text]
        if item["type"] == "rectanglelabels" and x is not None:
            item["value"] |= {"x": x, "width": 25.0}
    chosen = {"choices": [verdict]}
    found.append(
        {"id": "v", "type": "choices", "from_name": "verdict", "to_name": "reference", "value": chosen}
    )
    return found


@pytest.mark.long
def test_tasks_go_through_label_studio_and_come_back_as_decisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable = os.environ.get("OACIR_LABEL_STUDIO")
    if not executable:
        pytest.skip(
            "OACIR_LABEL_STUDIO names no label-studio (pip install label-studio in a venv of its own)"
        )
    run_stages_here(monkeypatch)
    context = Context(root=str(tmp_path / "root"))
    first = open_version(str(build(BuildRecipe.model_validate(TREE), context).location))
    shown = Path(str(export(ReviewExportRecipe(dataset="shown", most=5, images="files"), context).location))
    (tmp_path / "server").mkdir()
    with label_studio(executable, tmp_path / "server", shown) as server:
        exports = _review(server, shown)
    read = {}
    for layout, data in exports.items():
        file = tmp_path / f"{layout}.json"
        file.write_text(json.dumps(data))
        place = tmp_path / f"reviews-{layout}"
        store.keep(
            str(place), store.TASKS, list(store.read(store.folder(context.root, "shown")).tasks.values())
        )
        told = import_(ReviewImportRecipe(file=str(file), reviews=str(place)), context)
        read[layout] = store.read(str(place)).decisions
        assert told.figures["verdicts"] == {"accept": 1, "edit": 2, "reject": 2}
    assert read["JSON"] == read["JSON_MIN"]
    recipe = TREE | {"people": {"reviews": str(tmp_path / "reviews-JSON")}}
    made = open_version(str(build(BuildRecipe.model_validate(recipe), context).location))
    people = made.manifest.figures["people"]
    states = ("accepted", "edited", "rejected", "pending", "disagree")
    assert [people[s] for s in states] == [0, 2, 1, 1, 1]
    assert people["agreement"]["kappa"] == {"1, 2": 0.0}
    edited = [
        q
        for t in made.tables("quadruples")
        for q in t.to_pylist()
        if q["provenance"]["annotator"] == "people"
    ]
    assert [q["modification_text"] for q in edited] == ["Show it in the snow, from the left"]
    moved = [
        r for t in made.tables("reviews") for r in t.to_pylist() if r["box_after"] and r["box_after"][0] == 16
    ]
    assert [r["box_after"][2] for r in moved] == [32.0]  # 25 % and 50 % of 64 pixels
    assert len(first.table("quadruples")) - len(made.table("quadruples")) == 1


def _review(server: LabelStudio, shown: Path) -> dict[str, Any]:
    """Two people work; the project's exports."""
    tasks = json.loads((shown / "tasks.json").read_text())
    number, there = server.project((shown / "labels.xml").read_text(), tasks)
    assert [t["data"] for t in there] == [t["data"] for t in tasks]
    assert [t["predictions"][0]["result"] for t in there] == [t["predictions"][0]["result"] for t in tasks]
    local = {"project": number, "path": str(shown / "images"), "use_blob_urls": True}
    server.call("POST", "/api/storages/localfiles", local)
    for address in (there[0]["data"][k] for k in ("reference", "target")):
        status, photo = server.get(address)
        assert (status, photo[:3]) == (200, b"\xff\xd8\xff")
    second = server.person("two@example.org")
    server.submit(there[0], result(there[0], "accept"))
    server.submit(there[0], result(there[0], "reject"), second)
    server.submit(there[1], result(there[1], "edit", text="Show it in the snow, from the left"))
    server.submit(there[2], result(there[2], "accept", x=25.0))
    server.submit(there[3], result(there[3], "reject"), second)
    server.submit(there[4], [], skip=True)
    return {layout: server.export(number, layout) for layout in ("JSON", "JSON_MIN")}
