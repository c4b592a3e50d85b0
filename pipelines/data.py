"""`oacir data …`: what lies under a root. Lists versions, shows one in full, deletes what nothing needs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from infra.base import catalogue, versions
from infra.base.catalogue import Entry
from infra.base.command import Context, Outcome
from infra.base.config import Config
from infra.base.progress import duration
from infra.base.tables import age, aligned, size
from infra.base.versions import Kind, Manifest

HASH_DIGITS = 12
"""Of a content hash in a table; JSON has all of them."""


class ListRecipe(Config):
    """Which versions to list."""

    kind: Kind | None = None
    """Only this kind; null lists all."""
    name: str | None = None
    """Only versions of this name; null lists all."""


class ShowRecipe(Config):
    """Which version to show."""

    dataset: str
    """The version: a path or URL, name/key, or name (the newest of it)."""
    kind: Kind = "datasets"
    """Its kind, where it is not given by a path or URL."""


class GcRecipe(Config):
    """What may be deleted."""

    kinds: tuple[Kind, ...] = ("datasets", "features")
    """Kinds of which versions may go; runs and evaluations are results, so they go only where they are named."""
    older_than_days: Annotated[float, Field(ge=0)] = 7.0
    """Only what is older: finished before, or unfinished and untouched since."""
    yes: bool = False
    """Delete (--yes); without it the command only says what it would delete."""


def list_all(recipe: ListRecipe, context: Context) -> Outcome:
    """Every version under the root, finished or not."""
    kinds = (recipe.kind,) if recipe.kind else catalogue.KINDS
    found = catalogue.entries(context.root, kinds, recipe.name)
    now = _now()
    by_content = {e.manifest.content_hash: e for e in found if e.manifest}
    rows = [["kind", "name/key", "rows", "bytes", "age", "state", "made from"]]
    for entry in found:
        rows.append(
            [
                entry.kind,
                f"{entry.name}/{entry.key}",
                "" if entry.rows is None else f"{entry.rows:,}",
                size(entry.listed_bytes),
                age(entry.age_days(now)),
                entry.state,
                ", ".join(_parents(entry, by_content)),
            ]
        )
    figures = [_entry_figures(entry, now) for entry in found]
    total = sum(e.listed_bytes or 0 for e in found)
    unfinished = sum(e.state == "unfinished" for e in found)
    said = f", {unfinished} of them unfinished" if unfinished else ""
    return Outcome(
        f"{len(found)} versions{said}, {size(total)} in files that manifests list: {context.root}",
        figures={"versions": figures},
        details=tuple(aligned(rows, right=(2, 3, 4))) if found else (),
    )


def show(recipe: ShowRecipe, context: Context) -> Outcome:
    """One version: what it holds, where every record went, its splits and galleries, and the recipe that made it.

    Raises:
        VersionError: there is no such version.
    """
    version = versions.resolve(context.root, recipe.kind, recipe.dataset)
    manifest = version.manifest
    heads = [
        ["kind", manifest.kind],
        ["name/key", f"{manifest.name}/{manifest.key}"],
        ["content", manifest.content_hash],
        ["made", f"{manifest.created_at} by oacir {manifest.code_version}"],
        *([f"parent {role}", value] for role, value in manifest.parents.items()),
    ]
    lines = [*aligned(heads), "", *_sections(manifest)]
    figures = manifest.model_dump(mode="json", exclude={"files"}) | {"tables": _tables(manifest)}
    return Outcome(version.url, version.url, figures, tuple(lines))


def gc(recipe: GcRecipe, context: Context) -> Outcome:
    """Delete unfinished and superseded versions that nothing needs (see `catalogue.garbage`); only with --yes."""
    now = _now()
    found = catalogue.garbage(catalogue.entries(context.root), recipe.kinds, recipe.older_than_days, now)
    really = recipe.yes and not context.dry_run
    rows = [[g.entry.kind, f"{g.entry.name}/{g.entry.key}", size(g.stored_bytes), g.why] for g in found]
    if really:
        for one in found:
            catalogue.delete(one.entry)
    total = sum(g.stored_bytes for g in found)
    message = f"{'deleted' if really else 'would delete'} {len(found)} versions, {size(total)}"
    return Outcome(
        message + ("" if really or not found else "; --yes deletes them"),
        figures={
            "deleted": really,
            "bytes": total,
            "versions": [
                {
                    "kind": g.entry.kind,
                    "url": g.entry.url,
                    "why": g.why,
                    "bytes": g.stored_bytes,
                    "files": g.files,
                }
                for g in found
            ],
        },
        details=tuple(aligned(rows, right=(2,))),
    )


def _sections(manifest: Manifest) -> Iterator[str]:
    """The paragraphs of `show`, an empty line between them."""
    tables = _tables(manifest)
    if tables:
        yield "tables"
        rows = [[f"  {t}", f"{v['rows']:,}", f"{v['files']:,}", size(v["bytes"])] for t, v in tables.items()]
        yield from aligned([["", "rows", "files", "bytes"], *rows], right=(1, 2, 3))
        yield ""
    if manifest.accounts:
        yield "accounts: taken in = kept + rejected + reserved + not sampled"
        yield from aligned(list(_account_rows(manifest)), right=(1, 2, 3, 4, 5))
        yield ""
    domains = manifest.figures.get("domains", {})
    if manifest.kind == "datasets" and domains:
        yield "splits: queries (instances)"
        rows = list(_split_rows(domains))
        yield from aligned(rows, right=range(1, len(rows[0])))
        yield ""
    galleries = manifest.figures.get("galleries", {})
    if galleries:
        yield "galleries"
        rows = [
            [
                f"  {g}",
                f"{v['images']:,} images",
                f"{sum(v['distractors'].values()):,} distractors",
                v["sha256"],
            ]
            for g, v in galleries.items()
        ]
        yield from aligned(rows, right=(1, 2))
        yield ""
    if manifest.seconds:
        spent = "  ".join(f"{stage} {duration(s)}" for stage, s in manifest.seconds.items())
        whole = "n/a" if manifest.wall_seconds is None else duration(manifest.wall_seconds)
        yield f"time: {whole} for the run that finished it; summed over workers: {spent}"
        yield ""
    yield "recipe"
    yield from aligned([[f"  {key}", value] for key, value in flat(manifest.recipe).items()])


def _account_rows(manifest: Manifest) -> Iterator[list[str]]:
    from pipelines.summary import in_order

    yield ["", "in", "kept", "rejected", "reserved", "not sampled", "reasons"]
    for stage, accounts in in_order(manifest.accounts):
        for a in accounts:
            numbers = (a.taken_in, a.kept, sum(a.rejected.values()), a.reserved, a.not_sampled)
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(a.rejected.items()) if n)
            yield [f"  {stage}, {a.entity}", *(f"{n:,}" if n else "–" for n in numbers), reasons]


def _split_rows(domains: Mapping[str, Any]) -> Iterator[list[str]]:
    from pipelines.summary import QUERY_SPLITS

    more = {s for f in domains.values() for s in f["queries"]} - set(
        QUERY_SPLITS
    )  # a release's hidden targets
    splits = [*QUERY_SPLITS, *sorted(more)]
    yield ["", *splits, "reserve"]
    for domain, f in domains.items():
        cells = [f"{f['queries'].get(s, 0):,} ({f['instances'].get(s, 0):,})" for s in splits]
        yield [f"  {domain}", *cells, f"({f['instances']['reserve']:,})"]


def _tables(manifest: Manifest) -> dict[str, dict[str, int]]:
    sizes = catalogue.table_sizes(manifest)
    return {name: {"files": f, "rows": r, "bytes": b} for name, (f, r, b) in sizes.items()}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A recipe's values by dotted key, as the command line takes them."""
    rows: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows |= flat(value, f"{prefix}{key}.")
        else:
            rows[prefix + key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return rows


def _parents(entry: Entry, by_content: Mapping[str, Entry]) -> Iterator[str]:
    for role, content in entry.manifest.parents.items() if entry.manifest else ():
        parent = by_content.get(content)
        yield f"{role} {parent.name}/{parent.key}" if parent else f"{role} {content[:HASH_DIGITS]}…"


def _entry_figures(entry: Entry, now: datetime.datetime) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "kind": entry.kind,
        "name": entry.name,
        "key": entry.key,
        "url": entry.url,
        "state": entry.state,
        "rows": entry.rows,
        "bytes": entry.listed_bytes,
        "age_days": entry.age_days(now),
        "content_hash": manifest.content_hash if manifest else None,
        "parents": manifest.parents if manifest else {},
        "problem": entry.problem or None,
    }


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
