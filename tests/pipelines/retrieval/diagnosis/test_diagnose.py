"""The page of a diagnosis: what it says, that it fetches nothing, and that it needs no script."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CHROMIUM, browser

from infra.base import storage, versions
from infra.base.command import Context
from infra.base.errors import OacirError
from pipelines.retrieval.config import EvaluateRecipe
from pipelines.retrieval.diagnosis.config import DiagnoseRecipe
from pipelines.retrieval.diagnosis.diagnose import diagnose
from pipelines.retrieval.evaluate import evaluate
from pipelines.retrieval.robustness.config import PerturbSection


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [a for name, a in self.elements if name == tag and kind in str(a.get("class"))]


@pytest.fixture(scope="module")
def evaluated(context: Context) -> Context:
    for name in ("adafocal", "beta0"):
        evaluate(EvaluateRecipe(name=name, model=name, dataset="benchmark", bootstrap_samples=100), context)
    return context


def written(context: Context, **changes: Any) -> tuple[Page, str, dict[str, Any]]:
    values = {"evaluations": ["adafocal", "beta0"], "labels": ["AdaFocal", "<b>β = 0</b>"]}
    outcome = diagnose(DiagnoseRecipe(**(values | changes)), context)
    assert outcome.location is not None
    text = storage.read_bytes(outcome.location).decode()
    return Page(text), text, outcome.figures


def test_the_page_of_two_models(evaluated: Context) -> None:
    page, text, figures = written(evaluated, queries=12, hardest=3)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    assert all(str(i["src"]).startswith("data:image/jpeg;base64,") for i in page.all("img"))
    assert all(i.get("alt") for i in page.all("img"))
    assert not re.search(r"url\(|@import|href=\"(?!#)", text)
    assert "<b>β = 0</b>" not in text.replace("&lt;b&gt;", "")  # labels are text
    words = " ".join(" ".join(page.words).split())
    assert "right and wrong instance are all that can be told apart" in words
    assert "48 queries: too few to rank models" in words

    cards = page.all("article", "side-first") + page.all("article", "side-second")
    assert len(page.all("article")) == 12 + 3
    assert all(card["tabindex"] == "0" for card in page.all("article"))
    assert 0 < len(cards) <= figures["differ"]
    radios = page.all("input")
    assert [r["id"] for r in radios] == ["show-all", "show-first", "show-second", "show-same"]
    assert {label["for"] for label in page.all("label")} == {r["id"] for r in radios}
    ids = {a["id"] for _, a in page.elements if a.get("id")}
    assert {str(a["href"])[1:] for a in page.all("a")} <= ids

    rankings = [
        {
            r["query_id"]: r
            for r in versions.resolve(evaluated.root, "evaluations", n).table("rankings").to_pylist()
        }
        for n in ("adafocal", "beta0")
    ]
    hits = page.all("ol", "hits")
    assert len(hits) == 2 * 15
    worst = max(rankings[0], key=lambda q: (min(r[q]["target_rank"] for r in rankings), q))
    best = min(rankings[i][worst]["target_rank"] for i in (0, 1))
    assert min(rankings[i][figures["hardest"][0]]["target_rank"] for i in (0, 1)) == best
    for one, own in zip(figures["models"].values(), rankings, strict=True):
        total = one["kinds"][-1]
        assert (total["name"], total["queries"]) == ("all", 48)
        assert total["target"] == sum(r["target_rank"] == 1 for r in own.values())
        found = sum(r["instance_rank"] == 1 for r in own.values())
        assert total["target"] + total["instance"] == found
        assert total["both"] == total["context"] == 0


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_keys_filter_and_go_from_query_to_query(evaluated: Context, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    recipe = DiagnoseRecipe(evaluations=["adafocal", "beta0"], queries=48, hardest=0, attention_queries=0)
    figures = diagnose(recipe, Context(root=evaluated.root, out=str(out))).figures
    visible = "[...document.querySelectorAll('#sides article')].filter(a => a.offsetParent)"
    with browser(tmp_path / "profile") as page:
        page.open(out.as_uri())
        assert page.run(f"{visible}.length") == 48
        page.run("document.querySelector('#show-all').focus()")
        page.press("ArrowRight")
        first = page.run(f"{visible}.map(a => a.className).join()")
        assert 0 < first.count("side-first") == len(first.split(",")) < 48
        page.press("Tab")
        assert page.run(f"document.activeElement === {visible}[0]")
        page.run("document.querySelector('#show-first').focus()")
        page.press("ArrowRight")
        second = page.run(f"{visible}.map(a => a.className).join()")
        assert first.count("side-first") + second.count("side-second") == figures["differ"]
        page.open(out.as_uri(), width=400)
        assert page.run("document.documentElement.scrollWidth") <= 400
        light = page.run("getComputedStyle(document.body).backgroundColor")
        page.open(out.as_uri(), dark=True)
        assert page.run("getComputedStyle(document.body).backgroundColor") != light
        assert page.console == []


def test_beta_and_attention_are_measured_where_there_are_any(evaluated: Context) -> None:
    _, _, figures = written(evaluated, queries=2, hardest=0, attention_queries=48)
    full, bare = figures["models"].values()
    assert bare["relations"] == []
    assert {r["where"] for r in full["relations"]} == {"car", "product", "all"}
    assert {r["second"] for r in full["relations"]} >= {
        "box area (share of the photo)",
        "text length (words)",
    }
    assert all(r["queries"] == (48 if r["where"] == "all" else 24) for r in full["relations"])
    for one in (full, bare):
        assert sum(r["queries"] for r in one["attention"][:-1]) == one["attention"][-1]["queries"] == 48
    assert [r["probes"] is None for r in bare["attention"]] == [True] * 3
    for row in full["attention"]:
        assert row["inside"] > row["unmodulated"] > 0
        assert 0 < row["probes"] < 1
    # by hand, one query at a time, over the tokens of the store
    from training.anchors import anchors_of, load_anchors
    from training.export import open_model
    from training.features import FeatureStore

    model, processor = open_model(versions.resolve(evaluated.root, "runs", "adafocal").url)
    store = FeatureStore.open(versions.list_versions(evaluated.root, "features")[0].url)
    rows = versions.resolve(evaluated.root, "datasets", "benchmark").table("quadruples").to_pylist()
    shares, areas = [], []
    for row in (r for r in rows if r["split"] == "test" and r["domain"] == "car"):
        anchors = load_anchors(anchors_of([row], {row["reference_id"]: (64, 64)}), processor)
        with torch.no_grad():
            told = model.explain(
                store.tokens(store.rows([row["reference_id"]])),
                *processor.texts([row["modification_text"]]),
                anchors.patch_masks,
            )
        inside = anchors.patch_masks[0].bool()
        shares.append(float(told.attention[0].mean(0)[inside].sum()))
        areas.append(float(inside.float().mean()))
    assert full["attention"][0]["inside"] == pytest.approx(sum(shares) / 24, abs=1e-5)
    assert full["attention"][0]["area"] == pytest.approx(sum(areas) / 24)


def test_one_model_has_no_side_by_side(evaluated: Context) -> None:
    page, _, figures = written(
        evaluated, evaluations=["adafocal"], labels=None, attention_queries=0, hardest=2
    )
    assert len(page.all("article")) == 2
    assert not page.all("input")
    assert figures["differ"] is None
    assert figures["models"]["adafocal"]["attention"] == []


def test_attention_is_not_measured_where_other_queries_were_asked(evaluated: Context) -> None:
    evaluate(
        EvaluateRecipe(
            name="moved",
            model="adafocal",
            dataset="benchmark",
            bootstrap_samples=100,
            perturb=PerturbSection(box="shifted"),
        ),
        evaluated,
    )
    page, _, figures = written(evaluated, evaluations=["moved"], labels=None, hardest=0)
    words = " ".join(" ".join(page.words).split())
    assert "the attention of moved is not measured: its queries were perturbed" in words
    assert "perturbed queries (boxes scaled and shifted to IoU 0.5" in words
    assert figures["models"]["moved"]["attention"] == []
    with pytest.raises(OacirError, match="differently perturbed"):
        diagnose(DiagnoseRecipe(evaluations=["moved", "adafocal"]), evaluated)


def test_the_plan_and_wrong_labels(evaluated: Context, tmp_path: Path) -> None:
    recipe = DiagnoseRecipe(evaluations=["adafocal"])
    plan = diagnose(recipe, Context(root=evaluated.root, out=str(tmp_path / "x.html"), dry_run=True))
    assert re.search(r"would write .*x\.html: 1 models, 48 queries", plan.message)
    assert not (tmp_path / "x.html").exists()
    with pytest.raises(ValueError, match="give each a label of its own"):
        DiagnoseRecipe(evaluations=["a", "b"], labels=["x", "x"])
