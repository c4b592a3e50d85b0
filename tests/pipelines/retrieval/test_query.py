"""Single queries: the same ranking as an evaluation, a picture, and errors in one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra.base import storage, versions
from infra.base.command import Context
from infra.base.errors import OacirError
from pipelines.retrieval.config import EvaluateRecipe, QueryRecipe
from pipelines.retrieval.evaluate import evaluate
from pipelines.retrieval.picture import COLOURS
from pipelines.retrieval.query import parse_box, query


def asked(context: Context, query_id: str = "product-2-1", **changes: Any) -> QueryRecipe:
    """The recipe that asks a query of the benchmark."""
    dataset = versions.resolve(context.root, "datasets", "benchmark")
    row = next(q for q in dataset.table("quadruples").to_pylist() if q["query_id"] == query_id)
    uris = {r["image_id"]: r["uri"] for r in dataset.table("images").to_pylist()}
    values = {
        "model": "adafocal",
        "dataset": "benchmark",
        "gallery": f"{row['domain']}/test",
        "image": uris[row["reference_id"]],
        "box": ",".join(str(v) for v in row["reference_box"]),
        "text": row["modification_text"],
    }
    return QueryRecipe(**(values | changes))


@pytest.mark.parametrize("query_id", ["car-0-0", "product-2-1"])
def test_a_query_ranks_as_the_evaluation_does(context: Context, query_id: str) -> None:
    location = evaluate(
        EvaluateRecipe(name="adafocal", model="adafocal", dataset="benchmark"), context
    ).location
    assert location is not None
    rows = versions.open_version(location).table("rankings").to_pylist()
    expected = next(r for r in rows if r["query_id"] == query_id)
    outcome = query(asked(context, query_id, top_k=50), context)
    results = outcome.figures["results"]
    assert [r["image_id"] for r in results] == expected["candidate_ids"]
    assert [r["score"] for r in results] == pytest.approx(expected["scores"], abs=2e-6)
    assert outcome.figures["beta"] == pytest.approx(expected["beta"], abs=1e-5)
    assert [r["rank"] for r in results] == list(range(1, 24))


def test_the_table_and_the_last_line_say_it_all(context: Context) -> None:
    outcome = query(asked(context, top_k=3), context)
    first = outcome.figures["results"][0]
    assert len(outcome.details) == 4
    assert outcome.details[1].split() == [
        "1",
        f"{first['score']:.4f}",
        first["instance_id"],
        first["image_id"],
    ]
    assert outcome.message.startswith(
        f"3 of 24 images, β = {outcome.figures['beta'][0]:.2f}; searched product/test"
    )


def test_galleries_are_one_domain_a_split_or_everything(context: Context) -> None:
    counts = [
        query(asked(context, gallery=g), context).figures["images"] for g in ("car/test", "test", "all")
    ]
    assert counts == [24, 48, 64]


def test_the_box_decides(context: Context) -> None:
    ways = [query(asked(context, box=box), context) for box in (None, "0,0,20,20", "40,40,64,64")]
    scores = [[r["score"] for r in outcome.figures["results"]] for outcome in ways]
    assert scores[0] != scores[1] != scores[2]
    assert ways[0].figures["beta"] is None
    assert "asked without a box" in ways[0].message
    baseline = query(asked(context, model="beta0"), context)
    assert "no modulation (β = 0)" in baseline.message


def test_without_a_store_the_images_are_encoded_and_it_says_so(
    make_root: Callable[..., Context], tmp_path: Path
) -> None:
    root = make_root(tmp_path)
    stored = query(asked(root), root)
    storage.remove(storage.join(root.root, "features"))
    direct = query(asked(root), root)
    assert [r["image_id"] for r in direct.figures["results"]] == [
        r["image_id"] for r in stored.figures["results"]
    ]
    assert "24 images were encoded for this one query" in direct.details[-1]
    assert not any("encoded" in line for line in stored.details)


def test_the_picture_colours_what_the_benchmark_knows(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "answer.png"
    outcome = query(asked(context, picture=str(path), top_k=23), context)
    assert outcome.location == str(path)
    known = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    found = {colour for _, colour in known.getcolors(1 << 24) or []}
    assert {hex_of(COLOURS[v]) for v in ("target", "instance", "other")} <= found
    foreign = tmp_path / "photo.png"
    Image.new("RGB", (90, 60), "#336699").save(foreign)
    query(asked(context, image=str(foreign), box="10,10,50,50", picture=str(path)), context)
    found = {c for _, c in Image.open(path).convert("RGB").getcolors(1 << 24) or []}
    assert hex_of(COLOURS["unknown"]) in found
    assert hex_of(COLOURS["target"]) not in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "  "}, "text is empty"),
        ({"image": "/nowhere/photo.jpg"}, "/nowhere/photo.jpg: cannot be read"),
        ({"box": "1,2,3"}, "not four numbers; give --box x1,y1,x2,y2"),
        ({"box": "1,2,x,4"}, "not four numbers"),
        ({"box": "1,2,nan,4"}, "not four numbers"),
        ({"box": "20,2,10,40"}, "has no area"),
        ({"box": "0,0,65,10"}, "leaves the image of 64 x 64 pixels"),
        ({"box": "-1,0,5,10"}, "leaves the image"),
        ({"gallery": "car/dev"}, "no gallery 'car/dev'; --gallery may be all, car/test, product/test, test"),
        ({"model": "nobody"}, "no finished runs 'nobody'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(context: Context, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OacirError) as caught:
        query(asked(context, **changes), context)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_image(context: Context, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(OacirError, match=r"text\.jpg: not_an_image"):
        query(asked(context, image=str(tmp_path / "text.jpg")), context)


def test_boxes_may_be_written_in_several_ways() -> None:
    assert parse_box("[1, 2, 3.5, 4]", (4, 4)) == parse_box("1,2,3.5,4", (4, 4)) == (1, 2, 3.5, 4)


def hex_of(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
