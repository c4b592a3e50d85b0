"""Which evaluations may be ranked together: same queries, same galleries, same rules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from infra.base.versions import Version
from pipelines.retrieval.compared import Compared, labelled, perturbation
from pipelines.retrieval.protocols.known import BENCHMARKS, stated_in
from pipelines.retrieval.robustness.config import in_words


class Subject(NamedTuple):
    """What an evaluation measured, apart from the model. Two scores compare where all of it is equal."""

    benchmark: str
    title: str
    revision: str
    rules: str
    split: str
    dataset: str
    """Content hash of the benchmark's version, so of its queries too."""
    galleries: tuple[tuple[str, str], ...]
    """(gallery id, hash), in order."""
    perturbed: str
    """What was done to the queries (`PerturbSection.stated`), as JSON."""


NAMES = {
    "revision": "data revision",
    "rules": "protocol",
    "split": "split",
    "dataset": "benchmark version",
    "galleries": "gallery hash",
    "perturbed": "perturbation of the queries",
}
"""Parts of a subject by which two tables of one benchmark may differ, as they are said."""


@dataclass(frozen=True)
class Group:
    """Evaluations of one subject, in the order given."""

    subject: Subject
    members: list[Compared]
    apart: list[str]
    """By what it differs from each other group of the same benchmark."""
    number: str = ""
    """Which of several tables of one title it is, in words."""

    @property
    def figures(self) -> dict[str, Any]:
        """Of the first one: what is said of benchmark and galleries holds for all."""
        return self.members[0].figures

    @property
    def title(self) -> str:
        """Of the table: the declared benchmark, else the dataset by its name; and the split."""
        return f"{_title(self.figures)}{self.number}"


def subject_of(version: Version) -> Subject:
    """What an evaluation measured."""
    figures = version.manifest.figures
    stated = stated_in(figures)
    content = figures["dataset"]["content_hash"]
    return Subject(
        benchmark=stated["name"],
        title=stated["title"],
        revision=stated["revision"],
        rules=figures["protocol"],
        split=figures["split"],
        dataset=content,
        galleries=tuple(
            sorted((part["gallery"]["id"], part["gallery"]["hash"]) for part in figures["domains"].values())
        ),
        perturbed=json.dumps(perturbation(version), sort_keys=True),
    )


def grouped(root: str, evaluations: Sequence[Version], labels: Sequence[str] | None) -> list[Group]:
    """The evaluations by subject; benchmarks by title, larger groups first.

    Args:
        root: where their runs are looked for.
        evaluations: of any benchmarks.
        labels: one for each; one given several times names seeds of one model. None takes the evaluations' names.
    """
    found: dict[Subject, list[int]] = {}
    for number, version in enumerate(evaluations):
        found.setdefault(subject_of(version), []).append(number)
    order = sorted(found, key=lambda s: (s.title, s.split != "test", s.perturbed != "{}", -len(found[s]), s))
    titles = [_title(evaluations[found[subject][0]].manifest.figures) for subject in order]
    return [
        Group(
            subject,
            labelled(
                root,
                [evaluations[i] for i in found[subject]],
                None if labels is None else [labels[i] for i in found[subject]],
            ),
            _apart(subject, order),
            _number(titles, place),
        )
        for place, subject in enumerate(order)
    ]


def newest(evaluations: Sequence[Version]) -> tuple[list[Version], int]:
    """Of several evaluations of the same model, asked the same, the newest; and how many others there are."""
    kept: dict[tuple[Any, ...], Version] = {}
    for version in sorted(evaluations, key=lambda v: v.manifest.created_at):
        figures = version.manifest.figures
        asked = json.dumps([figures.get("asked"), figures.get("foreign")], sort_keys=True)
        kept[(subject_of(version), version.manifest.parents["model"], asked)] = version
    return list(kept.values()), len(evaluations) - len(kept)


def _apart(own: Subject, every: Sequence[Subject]) -> list[str]:
    differing = [
        [words for name, words in NAMES.items() if getattr(own, name) != getattr(other, name)]
        for other in every
        if other != own and other.benchmark == own.benchmark
    ]
    return sorted({" and ".join(words) for words in differing})


def _title(figures: Mapping[str, Any]) -> str:
    stated = stated_in(figures)
    name = stated["title"] if stated["name"] in BENCHMARKS else figures["dataset"]["name"]
    changed = in_words(figures.get("perturbed", {}))
    return f"{name}, {figures['split']}" + (f", {changed}" if changed else "")


def _number(titles: Sequence[str], place: int) -> str:
    count = titles.count(titles[place])
    return f" ({titles[:place].count(titles[place]) + 1} of {count})" if count > 1 else ""
