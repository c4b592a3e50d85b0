from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_versions import rows_of, write_version

from infra.base.command import Context
from infra.base.versions import Version
from pipelines import sheets as module
from pipelines.records import REASONS
from pipelines.sheets import WORDS, draw_quadruples, draw_rejects, sheets
from pipelines.statistics_page import StatsRecipe, stats


def reject(
    key: str, reason: str, detail: str | None = None, entity: str = "images", records: int | None = None
) -> dict[str, Any]:
    row = {"stage": "collect", "entity": entity, "key": key, "reason": reason, "detail": detail}
    return row | {"records": records}


@pytest.fixture
def version(tmp_path: Path) -> Version:
    """Forty quadruples of two domains with pictures, and rejects of four kinds."""
    instances = {f"{d}/{n:02d}": "test" if n > 7 else "train" for d in ("car", "toys") for n in range(10)}
    rows = rows_of(instances)
    folder = tmp_path / "photos"
    for n, row in enumerate(rows["images"]):
        place = folder / row["image_id"]
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), (5 * n, 100, 200)).save(place)
        row["uri"] = str(place)
    listing = {"domain": "car", "instance_id": "car/00", "category": "toy", "size_bytes": 1, "mark": ""}
    (folder / "cut.jpg").write_bytes((folder / "car/00/0.jpg").read_bytes()[:200])
    Image.new("1", (9000, 9000)).save(folder / "huge.png")
    names = ("cut.jpg", "huge.png")
    rows["listing"] = [listing | {"image_id": f"car/00/{n}", "uri": str(folder / n)} for n in names]
    pair = {"pair_id": "car/p", "domain": "car", "instance_id": "car/00", "similarity": 0.5}
    rows["pairs"] = [pair | {"reference_id": "car/00/0.jpg", "target_id": "car/00/1.jpg"}]
    rows["rejects/collect"] = [
        reject("car/00/cut.jpg", "truncated", "after 200 bytes"),
        reject("car/00/huge.png", "too_many_pixels"),
        reject("car/p", "no_box", "car/00/0.jpg has no box", "quadruples"),
        reject("car/01/0.jpg", "too_similar", "nearest car/01/1.jpg, cosine 0.9500", "pairs", 3),
        *(reject(f"toys/x{n}", "too_few_images", None, "instances") for n in range(30)),
    ]
    return write_version(tmp_path, rows)


def test_every_reason_has_words_and_none_is_left_over() -> None:
    assert WORDS.keys() == REASONS


def test_quadruples_are_drawn_evenly_and_by_seed_alone(version: Version) -> None:
    drawn = draw_quadruples(version, 10, 0)
    assert [q["domain"] for q in drawn] == ["car"] * 5 + ["toys"] * 5
    assert draw_quadruples(version, 10, 0) == drawn
    assert draw_quadruples(version, 10, 1) != drawn
    assert len(draw_quadruples(version, 100, 0)) == 40
    fewer = {q["query_id"] for q in draw_quadruples(version, 4, 0)}
    assert fewer <= {q["query_id"] for q in drawn}


def test_rejects_are_counted_by_records_and_few_are_kept(version: Version) -> None:
    groups = draw_rejects(version, 2, 0)
    assert [(g.reason, g.records, len(g.rows)) for g in groups] == [
        ("too_few_images", 30, 2), ("too_similar", 3, 1), ("no_box", 1, 1), ("too_many_pixels", 1, 1),
        ("truncated", 1, 1),
    ]  # fmt: skip


def test_a_reject_is_shown_with_the_images_it_is_about(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    decode = module.decode

    def watched(data: bytes, *args: Any, **options: Any) -> Any:
        image = decode(data, *args, **options)
        opened.append(str(image.image.size))
        return image

    monkeypatch.setattr(module, "decode", watched)
    shown = sheets(version, 2, 3, 0, 10**6)
    cards = {g.reason: g.cards for g in shown.refused}
    assert [i["id"] for i in cards["no_box"][0]["images"]] == ["car/00/0.jpg", "car/00/1.jpg"]
    assert [i["id"] for i in cards["too_similar"][0]["images"]] == ["car/01/0.jpg", "car/01/1.jpg"]
    assert all(i["uri"].startswith("data:image/jpeg") for i in cards["too_similar"][0]["images"])
    assert [c["images"] for c in cards["too_few_images"]] == [[], [], []]
    assert cards["too_many_pixels"][0]["images"] == [
        {"id": "car/00/huge.png", "uri": None}
    ]  # not opened here either
    assert shown.unreadable == 2
    assert len(shown.quadruples) == 2
    assert not any("9000" in size for size in opened)


def test_the_page_stands_alone_and_keeps_to_its_size(version: Version, tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    outcome = stats(StatsRecipe(dataset=version.url), Context(root=str(tmp_path), out=str(place)))
    page = place.read_text()
    assert outcome.figures["bytes"] == len(page.encode()) < 5_000_000
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("<article") == 24 + 5
    assert "put it on a table" in page
    assert "reference and target look the same" in page
    assert "car, OACIRR" in page
    assert "<svg" in page
    assert [line.split()[0] for line in outcome.details if line][:2] == ["Training", "car"]
    small = stats(StatsRecipe(dataset=version.url, page_bytes=300_000), Context(root=str(tmp_path)))
    assert small.location == f"{tmp_path}/reports/stats-small.html"
    assert small.figures["bytes"] <= 300_000
    plan = stats(StatsRecipe(dataset=version.url), Context(root=str(tmp_path / "other"), dry_run=True))
    assert plan.message.startswith("would write ")
    assert not (tmp_path / "other").exists()
