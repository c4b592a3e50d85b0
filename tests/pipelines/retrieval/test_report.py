"""The report: one page that fetches nothing, escapes everything, and shows what the rankings say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.base import storage, versions
from infra.base.command import Context
from infra.base.errors import OacirError
from pipelines.retrieval.config import EvaluateRecipe, ReportRecipe
from pipelines.retrieval.evaluate import evaluate
from pipelines.retrieval.examples import draw
from pipelines.retrieval.report import clear_best, report

HOSTILE = '<script>alert("x")</script> & <img src=http://evil.example/a.png> \' onload=x'


class Page(HTMLParser):
    """Elements and text of a page, as a browser would read them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def evaluated(context: Context) -> Context:
    _evaluate(context)
    return context


def _evaluate(context: Context) -> None:
    for name in ("adafocal", "beta0"):
        evaluate(EvaluateRecipe(name=name, model=name, dataset="benchmark", bootstrap_samples=100), context)


def written(context: Context, **changes: Any) -> tuple[Page, str]:
    values = {"evaluations": ["adafocal", "beta0"], "labels": ["AdaFocal", "β = 0"]}
    location = report(ReportRecipe(**(values | changes)), context).location
    assert location is not None
    text = storage.read_bytes(location).decode()
    return Page(text), text


def test_the_page_fetches_nothing_and_runs_nothing(evaluated: Context) -> None:
    page, text = written(evaluated)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "srcset", "data", "poster"):
                assert str(value).startswith("data:image/jpeg;base64,")
            if name == "href":
                assert str(value).startswith("#")
    assert not re.search(r"url\(|@import", text)
    assert any("default-src 'none'" in str(m.get("content")) for m in page.all("meta"))


def test_hostile_names_and_texts_stay_text(make_root: Callable[..., Context], tmp_path: Path) -> None:
    def poison(quadruples: list[Any], gallery: list[Any]) -> None:
        for row in quadruples:
            row["modification_text"] = HOSTILE
            row["category"] = HOSTILE

    context = make_root(tmp_path, poison)
    _evaluate(context)
    page, text = written(context, labels=[HOSTILE, "β = 0"], title=HOSTILE)
    assert not page.all("script")
    assert all(str(i.get("src")).startswith("data:") for i in page.all("img"))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "".join(page.words).count(HOSTILE) >= 20 + 3
    assert "&amp;lt;script" not in text


def test_borders_show_what_the_rankings_say(evaluated: Context) -> None:
    outcome = report(ReportRecipe(evaluations=["adafocal"], queries=12), evaluated)
    page, _ = written(evaluated, evaluations=["adafocal"], labels=None, queries=12)
    dataset = versions.resolve(evaluated.root, "datasets", "benchmark")
    asked = {q["query_id"]: q for q in dataset.table("quadruples").to_pylist()}
    owner = {g["image_id"]: g["instance_id"] for g in dataset.table("gallery").to_pylist()}
    rankings = versions.resolve(evaluated.root, "evaluations", "adafocal").table("rankings").to_pylist()
    expected: Counter[str] = Counter()
    for row in rankings:
        if row["query_id"] in outcome.figures["queries"]:
            query = asked[row["query_id"]]
            for image_id in row["candidate_ids"][:10]:
                target, own = image_id == query["target_ids"][0], owner[image_id] == query["instance_id"]
                expected["target" if target else "instance" if own else "other"] += 1
    shown = Counter(str(li.get("class")) for li in page.all("li") if li.get("class"))
    assert shown == expected
    assert sum(expected.values()) == 120
    assert all(image.get("alt") for image in page.all("img"))


def test_figures_curves_and_accounts_are_on_the_page(evaluated: Context) -> None:
    page, _ = written(evaluated)
    words = " ".join(" ".join(page.words).split())
    figures = versions.resolve(evaluated.root, "evaluations", "adafocal").manifest.figures
    measure = figures["overall"]["metrics"]["R_ID@1"]
    assert f"{measure['value']:.1f}" in words
    assert f"{measure['low']:.1f} – {measure['high']:.1f}" in words
    assert "48 queries: too few to rank models" in words
    assert "domain landmark is absent: no image could be read" in words
    assert "truncated 2" in words
    titles = ("Training loss", "β during training", "Dev R_ID@1", "β of AdaFocal over the queries")
    assert all(title in words for title in titles)
    assert "Without modulation (β = 0): β = 0." in words
    assert figures["domains"]["car"]["gallery"]["hash"] in words
    dataset = versions.resolve(evaluated.root, "datasets", "benchmark").manifest
    assert f"benchmark all of it {dataset.wall_seconds:.1f} s" in words
    assert "benchmark collect 1.5 s" in words  # of the workers
    betas = [
        row["beta"][0]
        for row in versions.resolve(evaluated.root, "evaluations", "adafocal").table("rankings").to_pylist()
        if row["beta"] is not None
    ]
    assert f"mean {np.mean(betas):.3g}, standard deviation {np.std(betas):.2g}" in words
    curves = [p for p in page.all("path") if "curve" in str(p.get("class"))]
    # loss of both, β of one, three dev recalls of both
    assert Counter(str(c["class"]) for c in curves) == {"curve series-0": 5, "curve series-1": 4}


def test_the_page_keeps_to_its_size(evaluated: Context) -> None:
    _, large = written(evaluated)
    _, small = written(evaluated, page_bytes=900_000)
    assert len(small.encode()) < 900_000 < len(large.encode()) < 5_000_000


def test_photos_that_are_gone_are_blank_and_counted(
    make_root: Callable[..., Context], tmp_path: Path
) -> None:
    context = make_root(tmp_path)
    _evaluate(context)
    storage.remove(storage.join(context.root, "photos", "car"))
    outcome = report(ReportRecipe(evaluations=["adafocal"]), context)
    assert outcome.figures["unreadable"] > 0
    assert f"{outcome.figures['unreadable']} images could not be read" in outcome.message
    page, _ = written(context)
    assert any("cannot be read" in str(s.get("aria-label")) for s in page.all("span"))


def test_evaluations_of_other_galleries_are_refused(
    make_root: Callable[..., Context], tmp_path: Path
) -> None:
    def shorten(quadruples: list[Any], gallery: list[Any]) -> None:
        del quadruples[-1]

    one, other = make_root(tmp_path / "one"), make_root(tmp_path / "other", shorten)
    for context in (one, other):
        evaluate(EvaluateRecipe(name="adafocal", model="adafocal", dataset="benchmark"), context)
    urls = [versions.resolve(c.root, "evaluations", "adafocal").url for c in (one, other)]
    with pytest.raises(OacirError, match="ranked different queries or galleries"):
        report(ReportRecipe(evaluations=urls), one)


def test_where_the_page_goes(evaluated: Context, tmp_path: Path) -> None:
    root, recipe = evaluated.root, ReportRecipe(name="mine", evaluations=["adafocal"], queries=1)
    assert report(recipe, evaluated).location == f"{root}/reports/mine.html"
    assert report(recipe, Context(root, out=str(tmp_path / "a.html"))).location == str(tmp_path / "a.html")
    assert report(recipe, Context(root, out=str(tmp_path / "b"))).location == str(
        tmp_path / "b" / "mine.html"
    )
    planned = report(recipe.model_copy(update={"name": "planned"}), Context(root, dry_run=True))
    assert "would write" in planned.message
    assert not Path(root, "reports", "planned.html").exists()


def measured(low: float | None, high: float | None, chance: float = 5.0) -> dict[str, float | None]:
    return {"value": 20.0, "low": low, "high": high, "chance": chance}


@pytest.mark.parametrize(
    ("measures", "best"),
    [
        ({"a": measured(10, 20), "b": measured(21, 30)}, "b"),
        ({"a": measured(10, 20), "b": measured(19, 30)}, None),  # the intervals overlap
        ({"a": measured(0, 1), "b": measured(2, 4)}, None),  # apart, but below chance
        ({"a": measured(10, 20), "b": measured(21, 30), "c": measured(25, 40)}, None),
        ({"a": measured(10, 20), "b": measured(None, None)}, None),
        ({"a": measured(10, 20)}, None),  # nothing to compare with
    ],
)
def test_bold_is_who_is_best_beyond_doubt(
    measures: dict[str, dict[str, float | None]], best: str | None
) -> None:
    assert clear_best(measures) == best


def test_labels_are_one_for_each_evaluation() -> None:
    with pytest.raises(ValueError, match="1 labels for 2 evaluations"):
        ReportRecipe(evaluations=["a", "b"], labels=["A"])


def test_queries_are_drawn_evenly_by_seed() -> None:
    rows = [
        {"query_id": f"{d}{n}", "domain": d}
        for d, count in (("a", 50), ("b", 50), ("c", 2))
        for n in range(count)
    ]
    drawn = draw(rows, 20, seed=0)
    assert Counter(r["domain"] for r in drawn) == {"a": 9, "b": 9, "c": 2}
    assert drawn == draw(rows[::-1], 20, seed=0)
    assert drawn != draw(rows, 20, seed=1)
    assert len(draw(rows[:3], 20, seed=0)) == 3
