"""`oacir report`: one self-contained HTML page: evaluations of the same galleries side by side, or a leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from infra.base import charts, storage
from infra.base.command import Context, Outcome
from infra.base.html import render
from infra.base.progress import duration
from infra.base.versions import Version, list_versions
from pipelines.retrieval.attention import looks
from pipelines.retrieval.compared import Compared, compare, dataset_of
from pipelines.retrieval.config import ReportRecipe
from pipelines.retrieval.differences import differences
from pipelines.retrieval.examples import SHOWN, cards
from pipelines.retrieval.leaderboard.leaderboard import leaderboard
from pipelines.retrieval.protocols.base import AVERAGE
from pipelines.retrieval.protocols.known import stated_in
from pipelines.retrieval.summary import percent
from pipelines.summary import in_order

MARKUP_BYTES, MARKUP_BYTES_PER_IMAGE = 100_000, 250
"""What the page holds beside the images, and around each of them; with room to spare."""
LOSS_POINTS = 400


def report(recipe: ReportRecipe, context: Context) -> Outcome:
    """Write the page.

    Raises:
        OacirError: the evaluations do not compare, or their benchmark cannot be found.
    """
    url = _place(recipe, context)
    if recipe.page == "leaderboard":
        return leaderboard(recipe, context, url)
    compared = compare(context.root, recipe.evaluations, recipe.labels)
    dataset = dataset_of(context.root, compared[0])
    if context.dry_run:
        return Outcome(
            f"would write {url}: {len(compared)} models, {recipe.queries} queries of {dataset.url}"
        )
    figures = compared[0].figures
    images = recipe.queries * (2 + (SHOWN + 2 * recipe.attention) * len(compared))
    budget = recipe.page_bytes - MARKUP_BYTES - images * MARKUP_BYTES_PER_IMAGE
    shown, unreadable = cards(dataset, compared, figures["split"], recipe.queries, recipe.seed, budget)
    unseen = _add_looks(dataset, compared, shown) if recipe.attention else []
    page = render(
        "report.html.jinja",
        title=recipe.title,
        models=[one.label for one in compared],
        figures=figures,
        stated=stated_in(figures),
        dataset=dataset.manifest,
        notes=sorted({note for one in compared for note in one.figures["notes"]}),
        headline_chart=_headline_chart(compared),
        headline=_headline(compared),
        differences=differences(dataset, compared, recipe.seed),
        by_domain=_by_domain(compared),
        every=_every_figure(compared),
        training=_training_charts(compared),
        beta=_beta_charts(compared),
        unmodulated=[one.label for one in compared if not one.betas],
        accounts=in_order(dataset.manifest.accounts),
        seconds=_seconds(context.root, dataset, compared),
        cards=shown,
        shown=SHOWN,
        unreadable=unreadable,
        unseen=unseen,
        seed=recipe.seed,
        provenance=_provenance(dataset, compared),
    )
    data = str(page).encode()
    storage.write_bytes(url, data)
    lost = f", {unreadable} images could not be read" if unreadable else ""
    return Outcome(
        f"report of {len(compared)} models and {len(shown)} queries, {len(data) / 1e6:.1f} MB{lost}: {url}",
        url,
        {"bytes": len(data), "queries": [card["id"] for card in shown], "unreadable": unreadable},
    )


def _add_looks(dataset: Version, compared: Sequence[Compared], shown: Sequence[dict[str, Any]]) -> list[str]:
    """Give every shown answer where its model looked (None where there is nothing); sentences on what is missing."""
    rows = {row["query_id"]: row for row in dataset.table("quadruples").to_pylist()} if shown else {}
    missing = []
    for number, one in enumerate(compared):
        found, why = looks(dataset, one, [rows[card["id"]] for card in shown])
        missing += [why] if why else []
        for card in shown:
            card["models"][number]["look"] = found.get(card["id"])
    return missing


def _place(recipe: ReportRecipe, context: Context) -> str:
    if context.out is None:
        return storage.join(storage.absolute(context.root), "reports", f"{recipe.called}.html")
    out = storage.absolute(context.out)
    return out if out.endswith((".html", ".htm")) else storage.join(out, f"{recipe.called}.html")


def _shown(compared: Sequence[Compared]) -> list[str]:
    """The metrics that the benchmark is known by."""
    return list(stated_in(compared[0].figures)["headline"])


def _headline_chart(compared: Sequence[Compared]) -> str:
    rows = []
    for metric in _shown(compared):
        measures = [(one.label, one.figures["overall"]["metrics"][metric]) for one in compared]
        rows.append((metric, [charts.Interval(n, m["value"], m["low"], m["high"]) for n, m in measures]))
    return charts.interval_chart("Mean over the domains", rows, x="percent of queries, with 95 % interval")


def _headline(compared: Sequence[Compared]) -> dict[str, Any]:
    """Rows of the first table: every model, then what chance and the blind baselines of each reach."""
    shown = _shown(compared)
    best = _best(compared, lambda one: one.figures["overall"])
    rows: list[dict[str, Any]] = []
    for one in compared:
        measures = one.figures["overall"]["metrics"]
        rows.append(
            {
                "name": one.label,
                "kind": "model",
                "cells": [_cell(measures[m], one.label == best[m]) for m in shown],
            }
        )
        for kind, words in (("text_only", "text only"), ("reference_only", "reference only")):
            values = [percent(measures[m][kind]) for m in shown]
            rows.append({"name": f"{one.label}, {words}", "kind": "blind", "cells": values})
    measures = compared[0].figures["overall"]["metrics"]
    chance = [percent(measures[m]["chance"]) for m in shown]
    rows.append({"name": "chance", "kind": "chance", "cells": chance})
    return {"columns": shown, "rows": rows}


def _by_domain(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    found, shown = [], _shown(compared)
    for name, part in compared[0].figures["domains"].items():
        best = _best(compared, lambda one, name=name: one.figures["domains"][name])
        rows = [
            {
                "name": one.label,
                "cells": [
                    _cell(one.figures["domains"][name]["metrics"][m], one.label == best[m]) for m in shown
                ],
                "blind": [
                    " / ".join(percent(one.figures["domains"][name]["metrics"][m][kind]) for m in shown[:2])
                    for kind in ("text_only", "reference_only")
                ],
            }
            for one in compared
        ]
        chance = [percent(part["metrics"][m]["chance"]) for m in shown]
        found.append({"name": name, "part": part, "rows": rows, "chance": chance})
    return found


def _every_figure(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """All metrics with both intervals, per model and domain."""
    rows = []
    for one in compared:
        for where, part in [*one.figures["domains"].items(), ("all (macro)", one.figures["overall"])]:
            for metric in (*stated_in(one.figures)["metrics"], AVERAGE):
                rows.append({"model": one.label, "where": where, "metric": metric, **part["metrics"][metric]})
    return rows


def _training_charts(compared: Sequence[Compared]) -> list[str]:
    """Loss, β and dev recalls over the steps. A model without such a table keeps its colour and has no curve."""
    loss, beta = [], []
    for one in compared:
        history = one.of_run("history") or {}
        steps = history.get("step", [])
        loss.append(charts.Series(one.label, _thin(steps, _smooth(history.get("loss", [])))))
        modulated = bool(one.betas and history)
        points = _thin(steps, history["beta_mean"]) if modulated else []
        spread = [y for _, y in _thin(steps, history["beta_std"])] if modulated else []
        beta.append(charts.Series(one.label, points, spread))
    found = [
        charts.line_chart("Training loss (moving average)", loss, x="step", y="InfoNCE, nats"),
        charts.line_chart(
            "β during training (mean ± standard deviation)",
            beta,
            x="step",
            y="β of a batch",
            y_from_zero=True,
        ),
    ]
    for metric in ("R_ID@1", "R@1", "R@5"):
        curves = [charts.Series(one.label, _dev(one.of_run("dev") or {}, metric)) for one in compared]
        title = f"Dev {metric}, mean over the domains"
        found.append(charts.line_chart(title, curves, x="step", y="percent", y_from_zero=True))
    return [chart for chart in found if chart]


def _beta_charts(compared: Sequence[Compared]) -> list[str]:
    return [
        charts.histogram(
            f"β of {one.label} over the queries: mean {fmean(one.betas):.3g}, standard deviation"
            f" {pstdev(one.betas):.2g}",
            one.betas,
            x="β",
            y="queries",
            colour=i,
        )
        for i, one in enumerate(compared)
        if one.betas
    ]


def _seconds(root: str, dataset: Version, compared: Sequence[Compared]) -> list[tuple[str, str, str, str]]:
    """Rows (what, stage, wall time, workers' time) of every version the page rests on."""
    rows = [("benchmark", "all of it", _time(dataset.manifest.wall_seconds), "")]
    world = dataset.manifest.parents.get("world")
    rendered = [v for v in list_versions(root, "datasets") if v.manifest.content_hash == world]
    for version in (*rendered[:1], dataset):
        rows += [("benchmark", stage, "", _time(s)) for stage, s in in_order(version.manifest.seconds)]
    stores = {one.evaluation.manifest.parents.get(role) for one in compared for role in ("features", "views")}
    for version in list_versions(root, "features"):
        if version.manifest.content_hash in stores:
            rows.append(("features", "embed", _time(version.manifest.wall_seconds), ""))
    for one in compared:
        for verb, made in (("train", one.run), ("evaluate", one.evaluation)):
            if made is not None:
                rows.append((one.label, verb, _time(made.manifest.wall_seconds), ""))
    return rows


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "n/a"
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _provenance(dataset: Version, compared: Sequence[Compared]) -> list[tuple[str, str]]:
    rows = [("benchmark", f"{dataset.manifest.name}, content {dataset.manifest.content_hash}")]
    rows += [
        (f"gallery {part['gallery']['id']}", part["gallery"]["hash"])
        for part in compared[0].figures["domains"].values()
    ]
    for one in compared:
        manifest = one.evaluation.manifest
        rows.append((one.label, f"model {one.figures['model']['name']}, content {manifest.parents['model']}"))
        rows.append(
            (
                f"evaluation of {one.label}",
                f"{manifest.name}/{manifest.key}, {manifest.created_at}, code {manifest.code_version}",
            )
        )
    return rows


def _best(compared: Sequence[Compared], part: Any) -> dict[str, str | None]:
    """Metric → label of the model that is best beyond doubt: see `clear_best`."""
    return {
        metric: clear_best({one.label: part(one)["metrics"][metric] for one in compared})
        for metric in _shown(compared)
    }


def clear_best(measures: Mapping[str, Mapping[str, float | None]]) -> str | None:
    """The model whose interval lies above chance and above the intervals of all others; None where there is none.

    Args:
        measures: label → a metric's figures (`summary.figures`); with one model nothing is compared.
    """
    for label, own in measures.items():
        others = [other["high"] for name, other in measures.items() if name != label]
        low = own["low"]
        if not others or low is None or low <= (own["chance"] or 0.0):
            continue
        if all(high is not None and low > high for high in others):
            return label
    return None


def _cell(measure: dict[str, Any], best: bool) -> dict[str, Any]:
    interval = "n/a" if measure["low"] is None else f"{measure['low']:.1f} – {measure['high']:.1f}"
    return {"value": f"{measure['value']:.1f}", "interval": interval, "best": best}


def _dev(dev: dict[str, list[Any]], metric: str) -> list[tuple[float, float]]:
    """Mean over the domains at each step that was measured."""
    by_step: dict[int, list[float]] = {}
    for step, value in zip(dev.get("step", []), dev.get(metric, []), strict=True):
        by_step.setdefault(step, []).append(value)
    return [(step, sum(values) / len(values)) for step, values in sorted(by_step.items())]


def _smooth(values: Sequence[float]) -> list[float]:
    """Moving average over a fiftieth of the run."""
    window = max(1, len(values) // 50)
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def _thin(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """At most LOSS_POINTS of the points, evenly, the last one among them."""
    points = list(zip(xs, ys, strict=True))
    step = max(1, -(-len(points) // LOSS_POINTS))
    return points[::-1][::step][::-1]
