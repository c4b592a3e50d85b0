"""The page of a sweep: what is best, how the objectives follow the values, and where everything comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from infra.base import charts
from infra.base.html import render
from infra.base.scatter import Axis, Point, parallel, scatter
from infra.base.versions import Version, code_version
from tuning.config import AFTERWARDS, AVERAGE, MEASURES, SweepRecipe, better
from tuning.describe import OVERALL
from tuning.importance import FEWEST, importances
from tuning.pareto import front, ranked
from tuning.published import TABLES
from tuning.records import Measured, TrialRecord
from tuning.space import Choice, Grid, LogUniform, token

BEST = 20
"""Trials in the table of the best, at most."""
COURSES = 6
"""Trials whose course over the steps is drawn, at most."""
BETA = "model.fixed_beta"
CURVES = ("R_ID@1", "R@1")
"""What Figure 5 shows."""


def page(
    recipe: SweepRecipe, dataset: Version, records: Sequence[TrialRecord], figures: dict[str, Any]
) -> str:
    """The HTML of a finished sweep.

    Args:
        recipe: with dataset and features pinned.
        dataset: that all trials were trained on.
        records: of all trials.
        figures: of the sweep (`sweep.summary`).
    """
    best = ranked(records, recipe.objectives[0])
    found = importances(records, recipe.space, recipe.objectives[0])
    return str(
        render(
            "sweep.html.jinja",
            title=recipe.title,
            recipe=recipe,
            dataset=dataset.manifest,
            figures=figures,
            notes=notes(records, recipe),
            best=best_table(best[:BEST], recipe),
            left_out=max(0, len(best) - BEST),
            beta=beta_charts(records) if BETA in recipe.space else [],
            tables=[_beside(records, name) for name in TABLES if name in recipe.space],
            across=_across(records, recipe),
            importance=found,
            fewest=FEWEST,
            pareto=_pareto(records, recipe),
            courses=_courses(best[:COURSES], recipe.objectives[0]),
            ended=[r for r in records if r.state != "finished"],
            short=short,
            provenance=_provenance(recipe, dataset, records),
        )
    )


def notes(records: Sequence[TrialRecord], recipe: SweepRecipe) -> list[str]:
    """What a reader has to know before believing the page."""
    said = [
        "All figures are of the dev split, by which the best is chosen, so its own are too good: what counts is one"
        " evaluation of it on test (oacir evaluate)."
    ]
    states = [r.state for r in records]
    if failed := states.count("failed"):
        said.append(f"{failed} of {len(records)} trials failed and count nowhere; their reasons are below.")
    if stopped := states.count("stopped"):
        said.append(
            f"{stopped} of {len(records)} trials were stopped early by {recipe.scheduler.kind}; they are in no table of"
            " the best and in no curve."
        )
    if not any(r.domains for r in records):
        said.append(
            "No trial was evaluated for intervals (intervals: false, or a trained tower): none are shown."
        )
    if len(records) < FEWEST:
        said.append(f"{len(records)} trials tell little about what matters.")
    return said


def best_table(best: Sequence[TrialRecord], recipe: SweepRecipe) -> dict[str, Any]:
    """Columns and rows of the best trials: values, objectives, the measures with their intervals."""
    metrics = list(dict.fromkeys((*recipe.objectives, AVERAGE, *MEASURES)))
    rows = []
    for record in best:
        overall = record.domains.get(OVERALL, {})
        cells = [
            {
                "value": f"{record.figures[m]:.2f}" if m in record.figures else "",
                "interval": _interval(overall.get(m)),
            }
            for m in metrics
        ]
        run = place(record.run)
        rows.append(
            {
                "number": record.number,
                "values": [short(record.values[name]) for name in recipe.space],
                "cells": cells,
                "beta": ""
                if record.beta is None
                else f"{record.beta['mean']:.2f} ± {record.beta['std']:.2f}",
                "run": run + (" (found)" if record.found else ""),
            }
        )
    beta = any(row["beta"] for row in rows)
    return {"names": list(recipe.space), "metrics": metrics, "rows": rows, "beta": beta}


def measured(record: TrialRecord, domain: str, metric: str) -> Measured | None:
    """A figure with its interval, without one where the trial was not evaluated; None where there is no figure."""
    if found := record.domains.get(domain, {}).get(metric):
        return found
    value = record.figures.get(metric if domain == OVERALL else f"{domain}/{metric}")
    return None if value is None else Measured(value=value, low=None, high=None)


def curve(
    records: Sequence[TrialRecord], name: str, domain: str, metric: str
) -> tuple[list[tuple[float, float]], list[float] | None]:
    """Means over the finished trials with one value of a field, and half widths of their mean intervals.

    Args:
        records: of all trials.
        name: of the field; its values are numbers, or null (the model's own), which has no place on the curve.
        domain: or `OVERALL`.
        metric: of `MEASURES`, or avg.
    """
    by_value: dict[float, list[Measured]] = {}
    for record in records:
        found = measured(record, domain, metric) if record.state == "finished" else None
        if found is not None and record.values[name] is not None:
            by_value.setdefault(float(record.values[name]), []).append(found)
    points = [(value, fmean(m.value for m in group)) for value, group in sorted(by_value.items())]
    bands = []
    for _, group in sorted(by_value.items()):
        widths = [(m.high - m.low) / 2 for m in group if m.low is not None and m.high is not None]
        bands.append(fmean(widths) if widths else math.nan)
    return points, None if all(math.isnan(b) for b in bands) else bands


def domains_of(records: Sequence[TrialRecord]) -> list[str]:
    """The domains that finished trials have figures of, by name."""
    return sorted(
        {
            name.rpartition("/")[0]
            for r in records
            if r.state == "finished"
            for name in r.figures
            if "/" in name
        }
    )


def beta_charts(records: Sequence[TrialRecord]) -> list[Markup]:
    """The form of the paper's Figure 5: a chart for each measure, a curve for each domain."""
    found = []
    for metric in CURVES:
        series = []
        for domain in domains_of(records):
            points, band = curve(records, BETA, domain, metric)
            series.append(charts.Series(domain, points, band))
        title = f"{metric} against fixed β, dev"
        found.append(charts.line_chart(title, series, x="fixed β", y="percent of queries"))
    return [chart for chart in found if chart]


def _beside(records: Sequence[TrialRecord], name: str) -> dict[str, Any]:
    """Our curve over one field, and its figures beside the paper's."""
    table, what, published = TABLES[name]
    series = []
    for metric in (AVERAGE, *MEASURES):
        points, band = curve(records, name, OVERALL, metric)
        series.append(charts.Series(metric, points, band))
    ours = dict(series[0].points)
    widths = dict(zip(ours, series[0].band or [math.nan] * len(ours), strict=True))
    rows = []
    for value in sorted({*ours, *map(float, published)}):
        width = widths.get(value, math.nan)
        interval = "" if math.isnan(width) else f"{ours[value] - width:.1f} – {ours[value] + width:.1f}"
        rows.append(
            {
                "value": f"{value:g}",
                "ours": f"{ours[value]:.2f}" if value in ours else "–",
                "interval": interval,
                "published": f"{published[int(value)]:.2f}" if value in published else "–",
            }
        )
    chart = charts.line_chart(
        f"Dev means over the domains, by {what}", series, x=what, y="percent of queries"
    )
    return {"table": table, "what": what, "rows": rows, "chart": chart}


def _across(records: Sequence[TrialRecord], recipe: SweepRecipe) -> Markup:
    """Parallel coordinates of the finished trials: every searched field, then the objectives."""
    finished = [r for r in records if r.state == "finished"]
    if not finished:
        return Markup()
    axes, columns = [], []
    for name, dimension in recipe.space.items():
        values = [r.values[name] for r in finished]
        if isinstance(dimension, (Choice, Grid)):
            texts = [token(v) if isinstance(v, list) else str(v) for v in dimension.values]
            shares = {t: i / max(1, len(texts) - 1) if len(texts) > 1 else 0.5 for i, t in enumerate(texts)}
            columns.append([shares[token(v) if isinstance(v, list) else str(v)] for v in values])
            axes.append(Axis(_last(name), [(shares[t], t) for t in texts]))
        else:
            log = isinstance(dimension, LogUniform)
            low, high = float(dimension.low), float(dimension.high)
            columns.append([_share(float(v), low, high, log) for v in values])
            axes.append(Axis(_last(name), [(0.0, charts.label(low)), (1.0, charts.label(high))]))
    for name in recipe.objectives:
        figures = [r.figures[name] for r in finished]
        low, high = min(figures), max(figures)
        columns.append([_share(v, low, high) for v in figures])
        axes.append(
            Axis(
                name,
                [(0.0, charts.label(low)), (1.0, charts.label(high))]
                if high > low
                else [(0.5, charts.label(low))],
            )
        )
    first = recipe.objectives[0]
    good = columns[len(recipe.space)]
    if better(first) < 0:
        good = [1 - share for share in good]
    lines = [
        (
            f"trial {r.number}, {first} {short(r.figures[first])}: {token(r.values)}",
            [column[i] for column in columns],
            good[i],
        )
        for i, r in enumerate(finished)
    ]
    return parallel("Every finished trial", axes, lines)


def _share(value: float, low: float, high: float, log: bool = False) -> float:
    if high <= low:
        return 0.5
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def _pareto(records: Sequence[TrialRecord], recipe: SweepRecipe) -> dict[str, Any] | None:
    """The plane of two objectives, and the trials that none beats."""
    if len(recipe.objectives) < 2:
        return None
    across, up = recipe.objectives[1], recipe.objectives[0]
    finished = [r for r in records if r.state == "finished"]
    kept = front(records, recipe.objectives)
    chosen = {r.number for r in kept}
    points = [
        Point(f"trial {r.number}", r.figures[across], r.figures[up], 0 if r.number in chosen else 1)
        for r in finished
    ]
    order = sorted(range(len(finished)), key=lambda i: finished[i].figures[across])
    path = [i for i in order if finished[i].number in chosen]
    says = {name: name if name in AFTERWARDS else f"{name}, percent (dev)" for name in recipe.objectives}
    chart = scatter(
        f"{up} against {across}",
        points,
        ["no other trial beats it", "beaten"],
        x=says[across],
        y=says[up],
        path=path,
    )
    return {"chart": chart, "table": best_table(kept, recipe), "meanings": AFTERWARDS}


def _courses(best: Sequence[TrialRecord], objective: str) -> Markup:
    """The first objective over the steps, of the best trials."""
    series = [
        charts.Series(
            f"trial {r.number}",
            [(float(item.step), item.figures[objective]) for item in r.readings if objective in item.figures],
        )
        for r in best
    ]
    return charts.line_chart(f"Dev {objective} while training", series, x="step", y="percent")


def _provenance(
    recipe: SweepRecipe, dataset: Version, records: Sequence[TrialRecord]
) -> list[tuple[str, str]]:
    rows = [
        (
            "benchmark",
            f"{dataset.manifest.name}/{dataset.manifest.key}, content {dataset.manifest.content_hash}",
        ),
        ("features", recipe.train.features or "none: the tower is trained"),
        ("code", code_version()),
        ("algorithm", token(recipe.algorithm.model_dump(mode="json"))),
        ("scheduler", token(recipe.scheduler.model_dump(mode="json"))),
        ("workers", token(recipe.train.scaling.model_dump(mode="json"))),
    ]
    rows += [(name, token(d.model_dump(mode="json"))) for name, d in recipe.space.items()]
    rows += [
        (f"run of trial {r.number}", f"{place(r.run)}, content {r.run_hash}") for r in records if r.run_hash
    ]
    return rows


def place(run_url: str) -> str:
    """name/key of a run."""
    return "/".join(run_url.rstrip("/").split("/")[-2:])


def _last(name: str) -> str:
    """The end of a dotted name, which is what tells fields apart on an axis."""
    return name.rpartition(".")[2]


def short(value: Any) -> str:
    """A value as people write it."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(found: Measured | None) -> str:
    return "" if found is None or found.low is None else f"{found.low:.1f} – {found.high:.1f}"
