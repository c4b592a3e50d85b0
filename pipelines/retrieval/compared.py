"""Evaluations side by side: what a report gathers from the versions, checked to speak of the same galleries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from infra.base import storage, versions
from infra.base.errors import OacirError, VersionError
from infra.base.versions import Kind, Version
from pipelines.retrieval.robustness.config import in_words


@dataclass(frozen=True)
class Compared:
    """One evaluation with the run and the data it came from."""

    label: str
    evaluation: Version
    run: Version | None
    """None for a model that no run of this root or of the recorded place made."""
    seed_of: str | None = None
    """The label that several evaluations share: seeds of one model."""

    @property
    def model(self) -> str:
        """What this evaluation is one seed of; its own label where it stands alone."""
        return self.seed_of or self.label

    @property
    def figures(self) -> dict[str, Any]:
        """The evaluation's figures, see `summary.figures`."""
        return self.evaluation.manifest.figures

    @cached_property
    def rankings(self) -> dict[str, dict[str, Any]]:
        """The ranking of every query."""
        return {row["query_id"]: row for row in self.evaluation.table("rankings").to_pylist()}

    @cached_property
    def betas(self) -> list[float]:
        """β of every query that was modulated; the mean over its query tokens where it has one for each."""
        found = self.evaluation.table("rankings", ["beta"])["beta"].to_pylist()
        return [sum(beta) / len(beta) for beta in found if beta is not None]

    def of_run(self, table: str) -> dict[str, list[Any]] | None:
        """The columns of a table of the run (history, dev); None where there is no run, or no such table or row."""
        if self.run is None or all(f.path != f"{table}.parquet" for f in self.run.manifest.files):
            return None
        rows = self.run.table(table)
        return rows.to_pydict() if len(rows) else None


def compare(root: str, references: Sequence[str], labels: Sequence[str] | None) -> list[Compared]:
    """The evaluations of a report, in order.

    Raises:
        OacirError: they ranked different queries or galleries, or queries perturbed in different ways, so that their
            figures do not compare.
    """
    found = [versions.resolve(root, "evaluations", reference) for reference in references]
    first = found[0]
    for other in found[1:]:
        if perturbation(other) != perturbation(first):
            ways = [in_words(perturbation(v)) or "as the benchmark has them" for v in (first, other)]
            raise OacirError(
                f"{other.url} and {first.url} were asked with differently perturbed queries ({ways[1]}; {ways[0]}), so"
                " their figures do not compare; evaluate both with the same --perturb options"
            )
        if _subject(other) != _subject(first):
            raise OacirError(
                f"{other.url} and {first.url} ranked different queries or galleries, so their figures do not compare;"
                " make one report for each, or a --page leaderboard, which has a table for each"
            )
    return labelled(root, found, labels)


def labelled(root: str, found: Sequence[Version], labels: Sequence[str] | None) -> list[Compared]:
    """Evaluations of any galleries with their runs, in order; those of one given label are seeds of one model."""
    names = labels or [v.manifest.name for v in found]
    return [
        Compared(
            name,
            v,
            find_parent(root, "runs", v.manifest.parents["model"], v.manifest.figures["model"]["url"]),
            None if labels is None else given,
        )
        for name, given, v in zip(_distinct(names), names, found, strict=True)
    ]


def find_parent(root: str, kind: Kind, content_hash: str, recorded_url: str) -> Version | None:
    """The version of a content hash: where it was recorded to lie, else anywhere under the root."""
    for url in (recorded_url, recorded_url.rsplit("/", 1)[0]):
        if storage.exists(storage.join(url, versions.MANIFEST)):
            version = versions.open_version(url)
            if version.manifest.content_hash == content_hash:
                return version
    fitting = [v for v in versions.list_versions(root, kind) if v.manifest.content_hash == content_hash]
    return fitting[0] if fitting else None


def dataset_of(root: str, one: Compared) -> Version:
    """The benchmark of an evaluation.

    Raises:
        VersionError: it lies neither where it was nor under the root.
    """
    stated = one.figures["dataset"]
    found = find_parent(root, "datasets", stated["content_hash"], stated["url"])
    if found is None:
        raise VersionError(
            f"{one.evaluation.url}: its benchmark {stated['name']} ({stated['content_hash'][:12]}…) is neither at"
            f" {stated['url']} nor under {storage.absolute(root)}; give the --root that holds it"
        )
    return found


def perturbation(version: Version) -> dict[str, Any]:
    """What was done to the queries of an evaluation; empty where nothing was."""
    return {k: v for k, v in version.manifest.figures.get("perturbed", {}).items() if k != "counts"}


def _subject(version: Version) -> dict[str, Any]:
    """What was asked and what was ranked."""
    figures = version.manifest.figures
    return {
        "dataset": figures["dataset"]["content_hash"],
        "split": figures["split"],
        "galleries": {name: d["gallery"]["hash"] for name, d in figures["domains"].items()},
    }


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where they repeat."""
    return [name if list(names).count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
