"""Photos, versions, tasks and decisions on object storage: links to the photos, and everything else by URL."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from labeller import annotation, exported
from PIL import Image
from s3_server import s3_bucket
from without_ray import run_stages_here

from infra import cli
from infra.base import storage
from infra.base.html import jpeg
from infra.base.versions import open_version

LOOSE = {"tau_valid": 3, "tau_high": 0.9999, "tau_centric": 0.9999, "tau_count": 3}


def oacir(capsys: Any, *words: str) -> dict[str, Any]:
    assert cli.main([*words, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_a_review_on_object_storage(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stages_here(monkeypatch)
    with s3_bucket("people") as bucket:
        boxes = ["image_path,x,y,w,h,box_source"]
        for name in (f"toys/thing-{i}/{n}.jpg" for i in range(3) for n in range(3)):
            rng = np.random.default_rng(len(boxes))
            coarse = Image.fromarray(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8))
            photo = coarse.resize((96, 64), Image.Resampling.BICUBIC)
            storage.write_bytes(f"{bucket}/photos/{name}", jpeg(photo, 96, 95))
            boxes.append(f"{name},8,8,40,40,test")
        storage.write_bytes(f"{bucket}/photos/boxes.csv", "\n".join(boxes).encode())
        recipe = {"name": "far", "thresholds": {"default": LOOSE}}
        recipe["source"] = {"kind": "image_folder", "root": f"{bucket}/photos"}
        words = [f"--{k}={json.dumps(v) if isinstance(v, dict) else v}" for k, v in recipe.items()]
        root = ("--root", f"{bucket}/root")
        first = oacir(capsys, "build", *words, *root)
        shown = oacir(capsys, "review", "export", "--dataset", "far", "--images", "links", *root)
        tasks = json.loads(storage.read_bytes(f"{shown['location']}/tasks.json"))
        assert shown["location"].startswith(f"{bucket}/root/reviews/far/exports/")
        assert all(t["data"]["target"].startswith(f"{bucket}/photos/toys/thing-") for t in tasks)
        said = json.dumps([exported(tasks[0], annotation(tasks[0], "reject"))]).encode()
        storage.write_bytes(f"{bucket}/said.json", said)
        oacir(capsys, "review", "import", "--file", f"{bucket}/said.json", *root)
        assert oacir(capsys, "review", "status", "--name", "far", *root)["pending"] == len(tasks) - 1
        second = oacir(capsys, "build", *words, "--people", "{}", *root)
        queries = [open_version(told["location"]).table("quadruples")["query_id"] for told in (first, second)]
        assert {*queries[0].to_pylist()} - {*queries[1].to_pylist()} == {tasks[0]["data"]["pair"]}
        assert second["people"]["pending"] == len(tasks) - 1
