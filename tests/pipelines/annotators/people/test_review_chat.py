"""People over a chat model's texts: its quadruples stay what they were, and it is not asked again for theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, chat_server
from labeller import annotation, exported
from without_ray import run_stages_here

from infra.base.command import Context
from infra.base.versions import Version, open_version
from pipelines.annotators.people.exporting import ReviewExportRecipe, export
from pipelines.annotators.people.importing import ReviewImportRecipe, import_
from pipelines.build import build
from pipelines.config import BuildRecipe

LOOSE = {"tau_valid": 3, "tau_high": 0.9999, "tau_centric": 0.9999, "tau_count": 3}
WORLD = {"domains": ["car"], "instances_per_domain": 6, "image_size_px": 64, "near_duplicate_fraction": 0.0}


def made(server: ChatServer, root: Path, **options: Any) -> Version:
    tree = {
        "name": "asked",
        "source": {"kind": "world", "world": WORLD},
        "thresholds": {"default": LOOSE},
        "max_pairs_per_instance": 3,
        "images_per_part": 24,
        "annotator": "chat",
        "chat": {"base_url": server.url, "model": "m", "tries": 2, "concurrency": 8},
    }
    return open_version(
        str(build(BuildRecipe.model_validate(tree | options), Context(root=str(root))).location)
    )


def test_a_chat_model_is_not_asked_again_for_what_people_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stages_here(monkeypatch)
    context = Context(root=str(tmp_path))
    with chat_server() as server:
        first = made(server, tmp_path)
        asked = len(server.pairs)
        place = str(export(ReviewExportRecipe(dataset="asked", most=2), context).location)
        tasks = json.loads((Path(place) / "tasks.json").read_text())
        said = [
            annotation(tasks[0], "edit", text="Show it far away in the snow"),
            annotation(tasks[1], "reject"),
        ]
        entries = [exported(t, s) for t, s in zip(tasks, said, strict=True)]
        (tmp_path / "said.json").write_text(json.dumps(entries))
        import_(ReviewImportRecipe(file=str(tmp_path / "said.json")), context)
        second = made(server, tmp_path, people={})
        third = made(server, tmp_path, people={}, update=second.url)
        back = made(server, tmp_path, update=third.url)
        assert len(server.pairs) == asked
    before, after = (v.table("quadruples").sort_by("query_id").to_pylist() for v in (first, second))
    assert third.table("quadruples").sort_by("query_id").to_pylist() == after
    assert len(before) - len(after) == 1
    [edited] = [q for q in after if q["provenance"]["annotator"] == "people"]
    was = json.loads(edited["provenance"]["extra_json"])["people"]["before"]
    assert (was["annotator"], was["model"]) == ("chat", "scripted-1")
    # people taken back: the model's own texts, none of theirs
    assert third.manifest.figures["taken_over"]["pairs"] == len(before)
    assert back.table("quadruples").sort_by("query_id").to_pylist() == before
