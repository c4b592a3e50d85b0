"""The tables as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from pipelines.retrieval.leaderboard.beside import Apart, beside
from pipelines.retrieval.leaderboard.published import PublishedRow, published
from pipelines.retrieval.leaderboard.rows import Row, Score, Table
from pipelines.retrieval.summary import percent

PUBLISHED = "published, not ours"


def markdown(title: str, tables: Sequence[Table], apart: Sequence[Apart]) -> str:
    """A heading and a table for each benchmark; published rows below ours, in italics and without rank."""
    lines = [f"# {_plain(title)}: leaderboard", ""]
    for table in tables:
        subject, rows = table.group.subject, beside(table.group)
        lines += [f"## {_plain(table.group.title)}", "", f"{subject.rules}.", ""]
        lines += [f"- {_plain(fact)}" for fact in facts(table)]
        lines += [f"- note: {_plain(note)}" for note in table.notes]
        heads = [
            "#",
            "model",
            *table.metrics,
            "against the highest",
            "text only / reference only",
            "run",
            "date",
        ]
        lines += ["", *_head([*heads, "settings"])]
        lines += [_line([*_ours(row, table), "; ".join(row.settings)]) for row in table.rows]
        for row in rows:
            scores = [as_published(row, m) for m in table.metrics]
            source = f"{PUBLISHED}: {published().source_of(row)}"
            cells = ["", row.model, *scores, source, "", "", "", row.settings]
            lines.append(_line([f"*{cell}*" if cell else "" for cell in cells]))
        lines.append("")
    if apart:
        lines += ["## Published, held against nothing here", ""]
    for one in apart:
        lines += [
            f"### {_plain(one.title)} ({PUBLISHED})",
            "",
            *_head(["model", *one.metrics, "settings", "source", "why apart"]),
        ]
        for row, why in one.rows:
            scores = [as_published(row, m) for m in one.metrics]
            cells = [row.model, *scores, row.settings, published().source_of(row), why]
            lines.append(_line([f"*{cell}*" if cell else "" for cell in cells]))
        lines.append("")
    return "\n".join(lines)


def facts(table: Table) -> list[str]:
    """What all rows of a table have in common, in words."""
    group = table.group
    overall, subject = group.figures["overall"], group.subject
    said = [
        f"{overall['queries']:,} queries of {overall['instances']:,} instances against"
        f" {overall['gallery']['images']:,} images",
        f"data revision: {subject.revision}; benchmark version {subject.dataset[:12]}",
        f"galleries: {', '.join(f'{name} {found[:12]}' for name, found in subject.galleries)}",
        f"chance: {', '.join(f'{m} {percent(v)}' for m, v in table.chance.items())}",
    ]
    return said + [f"a table of its own, since another has another {words}" for words in group.apart]


def csv_text(tables: Sequence[Table], apart: Sequence[Apart]) -> str:
    """One line a row of any table; the columns of metrics are those of all tables."""
    metrics = list(
        dict.fromkeys([m for t in tables for m in t.metrics] + [m for one in apart for m in one.metrics])
    )
    own = [
        "benchmark",
        "name",
        "split",
        "revision",
        "dataset",
        "galleries",
        "protocol",
        "queries",
        "published",
        "rank",
    ]
    own += ["model", "main", "verdict", "gap", "gap_low", "gap_high", "p", "text_only", "reference_only"]
    own += ["run", "evaluation", "date", "settings", "source", "note"]
    stream = io.StringIO()
    writer = csv.DictWriter(
        stream, [*own, *(name for m in metrics for name in (m, f"{m}_low", f"{m}_high"))], lineterminator="\n"
    )
    writer.writeheader()
    for table in tables:
        subject = table.group.subject
        common = {
            "benchmark": subject.title,
            "name": table.group.figures["dataset"]["name"],
            "split": subject.split,
            "revision": subject.revision,
            "dataset": subject.dataset,
            "galleries": " ".join(f"{name}={found}" for name, found in subject.galleries),
            "protocol": subject.rules,
            "queries": table.group.figures["overall"]["queries"],
            "main": table.main,
        }
        for row in table.rows:
            writer.writerow(
                common
                | {
                    "published": "no",
                    "rank": row.rank,
                    "model": row.model,
                    "verdict": row.verdict,
                    "p": row.p,
                }
                | {"text_only": row.blind[0], "reference_only": row.blind[1]}
                | _bounds("gap", row.gap)
                | {key: value for m in table.metrics for key, value in _bounds(m, row.scores[m]).items()}
                | {"run": " ".join(row.runs), "evaluation": " ".join(row.evaluations)}
                | {"date": " ".join(row.dates), "settings": "; ".join(row.settings)}
                | {"note": "; ".join(table.notes)}
            )
        for theirs in beside(table.group):
            told = {"benchmark": subject.title, "published": "yes", "model": theirs.model, "main": table.main}
            told |= {"settings": theirs.settings, "source": published().source_of(theirs)}
            writer.writerow(told | theirs.metrics)
    for one in apart:
        for theirs, why in one.rows:
            told = {"benchmark": one.title, "published": "yes", "model": theirs.model, "note": why}
            told |= {"settings": theirs.settings, "source": published().source_of(theirs)}
            writer.writerow(told | theirs.metrics)
    return stream.getvalue()


def as_published(row: PublishedRow, metric: str) -> str:
    """A figure with the two places it was published with; empty where there is none."""
    return f"{row.metrics[metric]:.2f}" if metric in row.metrics else ""


def verdict(row: Row) -> str:
    """What is shown against the highest, with the gap."""
    if row.gap is None:
        return row.verdict
    return f"{row.verdict}: {row.gap.value:+.1f} ({row.gap.low:+.1f} to {row.gap.high:+.1f})"


def _ours(row: Row, table: Table) -> list[str]:
    scores = [_score(row.scores[m]) for m in table.metrics]
    if row.clear:
        scores[0] = f"**{scores[0]}**"
    blind = " / ".join(percent(value) for value in row.blind)
    rank = "–" if row.rank is None else str(row.rank)
    return [rank, row.model, *scores, verdict(row), blind, ", ".join(row.runs), ", ".join(row.dates)]


def _score(score: Score) -> str:
    interval = "n/a" if score.low is None else f"{score.low:.1f}-{score.high:.1f}"
    return f"{score.value:.1f} ({interval})"


def _bounds(name: str, score: Score | None) -> dict[str, float | None]:
    if score is None:
        return {}
    return {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    """A text that makes no column, no line and no markup of its own."""
    text = " ".join(text.split())
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[").replace("`", "\\`")
