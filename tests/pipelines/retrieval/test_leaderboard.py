"""The leaderboard: what is ranked together, what is shown of the order, and what a browser makes of the page."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, browser
from small_evaluations import make_benchmark, make_evaluation

from infra.base import storage, versions
from infra.base.command import Context
from infra.base.errors import OacirError
from pipelines.retrieval.config import ReportRecipe
from pipelines.retrieval.differences import NO_DIFFERENCE
from pipelines.retrieval.leaderboard.beside import apart, beside
from pipelines.retrieval.leaderboard.groups import grouped
from pipelines.retrieval.leaderboard.published import published
from pipelines.retrieval.leaderboard.rows import Table, table_of
from pipelines.retrieval.protocols.base import AVERAGE
from pipelines.retrieval.protocols.known import BENCHMARKS
from pipelines.retrieval.report import report


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three models on one benchmark, one of them on another gallery too, and one on what is declared OACIRR."""
    made = str(tmp_path_factory.mktemp("root"))
    bench, released = make_benchmark(made), make_benchmark(made, "oacirr")
    make_evaluation(bench, made, "good", lambda n: 1 if n % 40 else 3)
    make_evaluation(bench, made, "equal", lambda n: 1 if n % 40 else 30)
    make_evaluation(bench, made, "bad", lambda n: 60)
    make_evaluation(bench, made, "other", lambda n: 1, gallery="two")
    make_evaluation(
        released, made, "tiny", lambda n: 2, benchmark=BENCHMARKS["oacirr"], departures=[], unseen=["car"]
    )
    return made


def tables(root: str, *names: str, labels: list[str] | None = None) -> list[Table]:
    found = [versions.resolve(root, "evaluations", name) for name in names]
    return [table_of(root, group) for group in grouped(root, found, labels)]


def written(root: str, **changes: Any) -> dict[str, str]:
    outcome = report(ReportRecipe(page="leaderboard", **changes), Context(root))
    return {name.rsplit(".", 1)[1]: storage.read_bytes(name).decode() for name in outcome.figures["files"]}


def test_order_intervals_and_what_is_shown_against_the_highest(root: str) -> None:
    (table,) = tables(root, "bad", "equal", "good")
    assert table.metrics[0] == table.main == AVERAGE
    assert [(r.rank, r.model, r.verdict) for r in table.rows] == [
        (1, "good", "highest"),
        (2, "equal", NO_DIFFERENCE),
        (3, "bad", "worse"),
    ]
    # 4 of 160 queries miss R_ID@1 and R@1 (97.5), none misses R@5
    good, _, bad = table.rows
    assert good.scores[AVERAGE].value == pytest.approx(295 / 3)
    low, high = good.scores[AVERAGE].low, good.scores[AVERAGE].high
    assert low is not None
    assert high is not None
    assert low < 295 / 3 < high
    assert bad.gap is not None
    assert bad.gap.value == pytest.approx(-295 / 3)
    assert bad.p is not None
    assert bad.p < 0.01
    assert not any(row.clear for row in table.rows)  # nothing is shown between the first two
    assert [row.clear for row in tables(root, "good", "bad")[0].rows] == [True, False]
    assert [row.clear for row in tables(root, "good")[0].rows] == [False]


def test_what_differs_in_anything_but_the_model_is_never_in_one_table(root: str) -> None:
    found = tables(root, "good", "other", "bad", "tiny")
    assert [(t.group.title, [r.model for r in t.rows]) for t in found] == [
        ("OACIRR, test", ["tiny"]),
        ("bench, test (1 of 2)", ["good", "bad"]),
        ("bench, test (2 of 2)", ["other"]),
    ]
    assert [t.group.apart for t in found] == [[], ["gallery hash"], ["gallery hash"]]
    bench = versions.resolve(root, "datasets", "bench")
    make_evaluation(bench, root, "early", lambda n: 1, split="dev")
    make_evaluation(bench, root, "ruled", lambda n: 1, gallery="one", protocol="the reference kept")
    typos = {"text": {"how": "typos", "share": 0.2}, "seed": 0, "counts": {"texts changed": 160}}
    make_evaluation(bench, root, "misspelt", lambda n: 1, key="typos", perturbed=typos)
    perturbed = tables(root, "misspelt", "good")
    assert [t.group.title for t in perturbed] == [
        "bench, test",
        "bench, test, a typing error in 20% of the words",
    ]
    assert [t.group.apart for t in perturbed] == [["perturbation of the queries"]] * 2
    split, ruled = tables(root, "good", "early"), tables(root, "good", "ruled")
    assert [t.group.apart for t in split] == [["split"], ["split"]]
    assert [t.group.apart for t in ruled] == [["protocol"], ["protocol"]]
    for name in ("early", "ruled", "misspelt"):
        storage.remove(storage.join(root, "evaluations", name))


def test_one_label_names_seeds_whose_mean_is_ranked(root: str) -> None:
    (table,) = tables(root, "good", "bad", "equal", labels=["ours", "ours", "base"])
    assert [(r.model, r.settings[0]) for r in table.rows] == [
        ("base", "no β"),
        ("ours", "mean of 2 seeds"),
    ]
    ours = table.rows[1]
    assert ours.scores[AVERAGE].value == pytest.approx(295 / 6)
    assert ours.verdict == NO_DIFFERENCE  # one seed is as good, the other fails: that may be chance
    assert len(ours.evaluations) == 2


def test_too_few_queries_have_no_ranks(root: str) -> None:
    bench = versions.resolve(root, "datasets", "bench")
    few = {
        "overall": versions.resolve(root, "evaluations", "good").manifest.figures["overall"] | {"queries": 99}
    }
    for name, rank in (("few", 1), ("fewer", 60)):
        make_evaluation(bench, root, name, lambda n, rank=rank: rank, gallery="few", **few)
    (table,) = tables(root, "few", "fewer")
    assert [row.rank for row in table.rows] == [None, None]
    assert not table.rows[0].clear
    assert any("too few to rank" in note for note in table.notes)
    for name in ("few", "fewer"):
        storage.remove(storage.join(root, "evaluations", name))


def test_published_rows_stand_only_where_they_compare(root: str) -> None:
    oacirr, bench = (t.group for t in tables(root, "tiny", "good"))
    shown = beside(oacirr)
    assert max(row.metrics[AVERAGE] for row in shown) == 79.0
    assert all(row.benchmark == "oacirr" and not row.doubt for row in shown)
    assert beside(bench) == []
    others = {one.title: [why for _, why in one.rows] for one in apart([oacirr, bench])}
    assert set(others) == {"OACIRR", "CIRR val", "CIRCO val", "FashionIQ val"}
    assert all("boxes" in why or "not trained on" in why for why in others["OACIRR"])
    every = len(shown) + sum(map(len, others.values()))
    assert every == len(published().rows)
    oacirr.figures["departures"].append("another size")
    assert beside(oacirr) == []
    assert "other galleries or queries than" in apart([oacirr])[0].rows[0][1]
    oacirr.figures["departures"].clear()


def test_every_published_figure_has_its_source_and_a_metric_of_its_benchmark() -> None:
    for row in published().rows:
        known = [b for name, b in BENCHMARKS.items() if name.partition("-")[0] == row.benchmark]
        assert known, row.benchmark
        assert row.metrics.keys() <= {*known[0].metrics, AVERAGE}
        assert all(0 < value < 100 for value in row.metrics.values())
        assert published().source_of(row)
    first = published().rows[0].metrics
    assert sum(first[m] for m in ("R_ID@1", "R@1", "R@5")) / 3 == pytest.approx(first[AVERAGE], abs=0.005)
    known_tables = {row.table for row in published().rows if row.table}
    assert known_tables == {12, 13}


def test_page_markdown_and_csv_say_the_same(root: str) -> None:
    files = written(root)
    rows = list(csv.DictReader(io.StringIO(files["csv"])))
    ours = [row for row in rows if row["published"] == "no"]
    theirs = [row for row in rows if row["published"] == "yes"]
    assert [(r["name"], r["rank"], r["model"]) for r in ours] == [
        ("oacirr", "1", "tiny"), ("bench", "1", "good"), ("bench", "2", "equal"), ("bench", "3", "bad"),
        ("bench", "1", "other"),
    ]  # fmt: skip
    assert len(theirs) == len(published().rows)
    assert {r["rank"] for r in theirs} == {""}
    assert float(ours[1][AVERAGE]) == pytest.approx(295 / 3)
    line = next(text for text in files["md"].splitlines() if text.startswith("| 2 | equal"))
    assert NO_DIFFERENCE in line
    assert "| *AdaFocal, ViT-G* | *79.00* | *82.59* | *62.88* | *91.53* |" in files["md"]
    assert "**" not in "".join(t for t in files["md"].splitlines() if "not ours" in t)
    assert files["html"].count("published, not ours") > len(beside(tables(root, "tiny")[0].group))
    assert "not trained on car" in files["html"]
    assert "A table of its own" in files["html"]


def test_hostile_labels_stay_text(root: str) -> None:
    hostile = "<script>alert(1)</script>|[x](y)"
    files = written(root, evaluations=["good"], labels=[hostile])
    assert files["html"].count("<script>") == 1
    assert "<script" not in files["md"]
    assert "alert(1)&lt;/script>\\|\\[x](y)" in files["md"]


def test_all_under_a_root_the_newest_of_each_model(root: str, tmp_path: Path) -> None:
    with pytest.raises(OacirError, match=r"holds no finished evaluation; run `oacir evaluate`"):
        report(ReportRecipe(page="leaderboard"), Context(str(tmp_path)))
    made = str(tmp_path / "root")
    bench = make_benchmark(made)
    make_evaluation(bench, made, "good", lambda n: 9)
    make_evaluation(bench, made, "good", lambda n: 1, key="later")
    make_evaluation(bench, made, "other", lambda n: 1)
    outcome = report(ReportRecipe(page="leaderboard", name="board"), Context(made))
    assert outcome.location == f"{made}/reports/board.html"
    assert (outcome.figures["evaluations"], outcome.figures["older"]) == (2, 1)
    assert "1 older evaluations of the same models left out" in outcome.message
    assert "bench, test: 2 models, highest good with Avg 100.0" in outcome.details
    named = [v.url for v in versions.list_versions(made, "evaluations")]
    asked = report(ReportRecipe(page="leaderboard", evaluations=named), Context(made))
    assert (asked.figures["evaluations"], asked.figures["older"]) == (3, 0)  # what is named is shown
    planned = report(ReportRecipe(page="leaderboard", name="planned"), Context(made, dry_run=True))
    assert "would write" in planned.message
    assert not Path(made, "reports", "planned.html").exists()
    with pytest.raises(ValueError, match="a comparison needs evaluations"):
        ReportRecipe()


def test_a_benchmark_that_is_gone_leaves_scores_without_tests(root: str, tmp_path: Path) -> None:
    made = str(tmp_path)
    bench = make_benchmark(made)
    for name, rank in (("one", 1), ("two", 2)):
        make_evaluation(bench, made, name, lambda n, rank=rank: rank)
    storage.remove(storage.join(made, "datasets"))
    (table,) = tables(made, "one", "two")
    assert [row.verdict for row in table.rows] == ["highest", "not tested: the benchmark is not there"]
    assert not table.rows[0].clear
    assert "differences were not tested" in table.notes[-1]


def column(name: str) -> str:
    """Script: what the first two bodies of the second table hold in a column."""
    return f"[...document.querySelectorAll('#table-2 tbody')].slice(0, 2).flatMap(b => [...b.rows]).map(r => r.{name})"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser_it_sorts_by_mouse_and_keys_and_says_so(root: str, tmp_path: Path) -> None:
    page_file = tmp_path / "page.html"
    page_file.write_text(written(root)["html"])
    names = column("cells[1].textContent")
    with browser(tmp_path / "profile") as page:
        page.open(page_file.as_uri())
        assert (
            page.console == []
        )  # the policy of the page lets its one script run, and nothing else is asked for
        assert page.run(names) == ["good", "equal", "bad", "chance"]
        heads = "[...document.querySelectorAll('#table-2 th')].map(h => h.getAttribute('aria-sort')).filter(Boolean)"
        assert page.run(heads) == ["descending"]
        page.click("#table-2 th[aria-sort] button")
        assert page.run(heads) == ["ascending"]
        assert page.run(names) == ["bad", "equal", "good", "chance"]  # chance keeps its place
        assert (
            page.run("document.querySelector('#table-2 [role=status]').textContent")
            == "sorted by Avg, ascending"
        )
        page.run("document.querySelector('#table-2 th.model button').focus()")
        page.press("Enter")
        assert page.run(names) == ["bad", "equal", "good", "chance"]
        page.press("Enter")
        assert page.run(names) == ["good", "equal", "bad", "chance"]
        page.press("Tab")
        page.press(" ")
        assert page.run(heads) == ["descending"]
        published_rows = (
            "[...document.querySelectorAll('#table-1 tbody.published tr')].map(r => r.cells[2].textContent)"
        )
        before = page.run(published_rows)
        page.click("#table-1 th[aria-sort] button")
        after = page.run(published_rows)
        assert after == sorted(before, key=float)
        assert page.run("document.querySelector('#table-1 tbody tr th').textContent") == "tiny"
        page.open(page_file.as_uri(), width=390, dark=True)
        assert page.run("document.documentElement.scrollWidth") <= 390  # tables scroll in themselves
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
