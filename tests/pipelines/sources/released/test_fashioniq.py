"""FashionIQ: captions worked out by hand, the three protocols, and the figures of the real annotation files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_release import write_json

from infra.base.config import load_recipe
from infra.base.errors import RecipeError
from pipelines.importing import ImportRecipe
from pipelines.sources.released.base import Release, images_of
from pipelines.sources.released.fashioniq import FashionIqConfig, joined, read

PROTOCOLS = ("split", "split_without_reference", "val_triplets")


def write(root: Path, split: str, records: list[dict[str, Any]], names: list[str]) -> None:
    write_json(root, f"captions/cap.dress.{split}.json", records)
    write_json(root, f"image_splits/split.dress.{split}.json", names)


def record(reference: str, target: str, *captions: str) -> dict[str, Any]:
    return {"candidate": reference, "target": target, "captions": list(captions)}


def small(root: Path, **options: Any) -> Release:
    return read(
        FashionIqConfig(source=str(root), categories=["dress"], **({"protocol": "split"} | options))
    ).check()


@pytest.mark.parametrize(
    ("captions", "text"),
    [
        ([" is Shiny and silver.", "fit and flare? "], "Is shiny and silver and fit and flare"),
        (["", "is grey with a design"], "Is grey with a design"),
        (["Darker and not as shiny", "."], "Darker and not as shiny"),
        ([" ", ".?, "], ""),
    ],
)
def test_two_captions_become_one_text(captions: list[str], text: str) -> None:
    assert joined(captions) == text


def test_a_training_record_is_asked_in_every_wording_and_a_test_record_in_one(tmp_path: Path) -> None:
    write(
        tmp_path,
        "train",
        [record("A", "B", "is red", "is long"), record("C", "D", "", "is blue")],
        list("ABCD"),
    )
    write(tmp_path, "val", [record("E", "F", "is red", "is long")], list("EFG"))
    release = small(tmp_path, dev_share=0.0)
    texts = {q["query_id"]: q["modification_text"] for q in release.quadruples}
    assert texts == {
        "dress/train/00000-12": "Is red and is long",
        "dress/train/00000-21": "Is long and is red",
        "dress/train/00000-1": "Is red",
        "dress/train/00000-2": "Is long",
        "dress/train/00001": "Is blue",
        "dress/val/00000": "Is red and is long",
    }
    parents = {q["query_id"]: q["provenance"]["parent_id"] for q in release.quadruples}
    assert parents["dress/train/00000-21"] == "dress/train/00000"
    captions = json.loads(release.quadruples[0]["provenance"]["extra_json"])["captions"]
    assert captions == ["is red", "is long"]


def test_dev_is_asked_as_test_is(tmp_path: Path) -> None:
    pairs = [record(f"A{n}", f"B{n}", "is red", "is long") for n in range(10)]
    write(tmp_path, "train", pairs, [n for p in pairs for n in (p["candidate"], p["target"])])
    release = small(tmp_path, dev_share=0.2)
    assert Counter(q["split"] for q in release.quadruples) == {"train": 32, "dev": 2}
    assert {q["modification_text"] for q in release.quadruples if q["split"] == "dev"} == {
        "Is red and is long"
    }


def test_a_record_without_any_caption_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "val", [record("E", "F", "", "."), record("F", "E", "a", "b")], list("EF"))
    release = small(tmp_path)
    assert [(r["key"], r["reason"]) for r in release.refused] == [("dress/val/00000", "no_text")]
    assert len(release.quadruples) == 1


def test_three_protocols_three_galleries(tmp_path: Path) -> None:
    write(tmp_path, "val", [record("E", "F", "a", "b"), record("F", "G", "a", "b")], list("EFGHI"))
    found = {}
    for protocol in PROTOCOLS:
        release = small(tmp_path, protocol=protocol)
        found[protocol] = (sorted(release.galleries["dress/test"]), release.protocol["reference"])
        assert protocol in release.notes[0]
    everything = [f"dress/{n}.png" for n in "EFGHI"]
    assert found == {
        "split": (everything, "kept"),
        "split_without_reference": (everything, "removed"),
        "val_triplets": (everything[:3], "kept"),
    }


def test_the_protocol_must_be_said() -> None:
    with pytest.raises(RecipeError, match=r"'release\.protocol' is missing"):
        load_recipe(ImportRecipe, None, [("release.kind", "fashioniq"), ("release.source", "x")])


@pytest.fixture(scope="module")
def real(shared_dir: Path) -> dict[str, Release]:
    source = str(shared_dir / "data/annotations/fashioniq")
    return {
        p: read(FashionIqConfig(source=source, protocol=p)).check()  # type: ignore[arg-type]
        for p in ("split", "val_triplets")
    }


def test_the_real_files(real: dict[str, Release]) -> None:
    release = real["split"]
    assert dict(release.records) == {
        "dress train": 5985, "dress val": 2017, "dress test": 2024,
        "shirt train": 5988, "shirt val": 2038, "shirt test": 2038,
        "toptee train": 6027, "toptee val": 1961, "toptee test": 2056,
    }  # fmt: skip
    assert not release.refused
    asked = Counter((q["domain"], q["split"]) for q in release.quadruples)
    assert {s: sum(n for (_, split), n in asked.items() if split == s) for s in ("test", "hidden")} == {
        "test": 6016,
        "hidden": 6118,
    }
    dev = {d: asked[d, "dev"] for d in ("dress", "shirt", "toptee")}
    assert dev == {d: pytest.approx(0.05 * release.records[f"{d} train"], abs=5) for d in dev}
    # each training record in four wordings, but for those with one caption
    records = {
        (q["domain"], q["provenance"]["parent_id"] or q["query_id"])
        for q in release.quadruples
        if q["split"] == "train"
    }
    assert len(records) + sum(dev.values()) == 5985 + 5988 + 6027
    single = [q for q in release.quadruples if q["split"] == "train" and q["provenance"]["parent_id"] is None]
    captions = [json.loads(q["provenance"]["extra_json"])["captions"] for q in single]
    assert all(sum(bool(c.strip(".?, ")) for c in pair) == 1 for pair in captions)
    for domain in dev:
        shown = {
            s: {
                i
                for q in release.quadruples
                if (q["domain"], q["split"]) == (domain, s)
                for i in images_of(q)
            }
            for s in ("train", "dev")
        }
        assert not shown["train"] & shown["dev"]


def test_the_real_galleries(real: dict[str, Release]) -> None:
    sizes = {
        p: {d: len(r.galleries[f"{d}/test"]) for d in ("dress", "shirt", "toptee")} for p, r in real.items()
    }
    assert sizes["split"] == {"dress": 3817, "shirt": 6346, "toptee": 5373}
    assert sizes["val_triplets"] == {"dress": 2628, "shirt": 3089, "toptee": 2902}


def test_sixteen_captions_are_empty_and_one_is_a_full_stop(shared_dir: Path) -> None:
    found = Counter[str]()
    for path in (shared_dir / "data/annotations/fashioniq/captions").glob("*.json"):
        for entry in json.loads(path.read_text()):
            found.update(c for c in entry["captions"] if not c.strip(".?, "))
    assert found == {"": 16, ".": 1}
