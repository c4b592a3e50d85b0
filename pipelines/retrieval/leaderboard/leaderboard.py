"""`oacir report --page leaderboard`: evaluations of any benchmarks as sorted tables: a page, Markdown and CSV."""

from __future__ import annotations

import base64
import hashlib

from infra.base import storage, versions
from infra.base.command import Context, Outcome
from infra.base.errors import OacirError
from infra.base.html import render, source
from pipelines.retrieval.config import ReportRecipe
from pipelines.retrieval.leaderboard.beside import apart, beside
from pipelines.retrieval.leaderboard.groups import grouped, newest
from pipelines.retrieval.leaderboard.published import published
from pipelines.retrieval.leaderboard.rows import table_of
from pipelines.retrieval.leaderboard.texts import as_published, csv_text, facts, markdown
from pipelines.retrieval.summary import percent

SCRIPT = "sort_tables.js"


def leaderboard(recipe: ReportRecipe, context: Context, url: str) -> Outcome:
    """Write the page to `url`, and Markdown and CSV beside it.

    Raises:
        OacirError: there is no evaluation.
    """
    root = context.root
    if recipe.evaluations:
        evaluations, older = [versions.resolve(root, "evaluations", r) for r in recipe.evaluations], 0
    else:
        evaluations, older = newest(versions.list_versions(root, "evaluations"))
    if not evaluations:
        raise OacirError(
            f"{storage.absolute(root)} holds no finished evaluation; run `oacir evaluate` first, or name evaluations"
            " with --evaluations"
        )
    groups = grouped(root, evaluations, recipe.labels)
    plan = f"{len(evaluations)} evaluations in {len(groups)} table{'' if len(groups) == 1 else 's'}"
    if context.dry_run:
        return Outcome(f"would write {url}: {plan}")
    tables = [table_of(root, group, recipe.seed) for group in groups]
    others = apart(groups)
    script = source(SCRIPT)
    page = render(
        "leaderboard.html.jinja",
        title=recipe.title,
        tables=[
            {
                "table": table,
                "anchor": f"table-{number}",
                "facts": facts(table),
                "published": beside(table.group),
            }
            for number, table in enumerate(tables, 1)
        ],
        apart=others,
        older=older,
        evaluations=len(evaluations),
        models=len({one.evaluation.manifest.parents["model"] for g in groups for one in g.members}),
        source_of=published().source_of,
        percent=percent,
        as_published=as_published,
        seed=recipe.seed,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    stem = url.rsplit(".", 1)[0]
    files = {
        url: str(page),
        f"{stem}.md": markdown(recipe.title, tables, others),
        f"{stem}.csv": csv_text(tables, others),
    }
    for place, text in files.items():
        storage.write_bytes(place, text.encode())
    lines = []
    for table in tables:
        first = table.rows[0]
        lines.append(
            f"{table.group.title}: {len(table.rows)} models, highest {first.model} with {table.main}"
            f" {first.scores[table.main].value:.1f}" + ("" if first.rank else " (too few queries to rank)")
        )
    gone = f", {older} older evaluations of the same models left out" if older else ""
    return Outcome(
        f"leaderboard of {plan}{gone}: {url}, with .md and .csv beside it",
        url,
        {
            "evaluations": len(evaluations),
            "older": older,
            "files": list(files),
            "tables": [
                {
                    "title": table.group.title,
                    "main": table.main,
                    "models": [row.model for row in table.rows],
                }
                for table in tables
            ],
        },
        tuple(lines),
    )
