"""Which kind of mistake the first image of a ranking is: of the instance, of the context, or of both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from infra.base.versions import Version

Kind = Literal["target", "both", "instance", "context", "neither"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WORDS: dict[Kind, str] = {
    "target": "the target",
    "both": "right instance and context, another image",
    "instance": "right instance, wrong context",
    "context": "right context, wrong instance",
    "neither": "both wrong",
}
WORDS_WITHOUT_CONTEXTS: dict[Kind, str] = {
    "target": "the target",
    "instance": "right instance, another image",
    "neither": "wrong instance",
}
CONTEXT = "place"
"""What of a scene's truth names its context: every text of the world states the target's place."""


@dataclass(frozen=True)
class Truth:
    """What a benchmark knows of the images of its galleries."""

    instance_of: Mapping[str, str]
    context_of: Mapping[str, str] | None
    """The context of every image; None where the benchmark does not know it of all of them."""

    @property
    def words(self) -> Mapping[Kind, str]:
        """The kinds that can be told apart, in words."""
        return WORDS_WITHOUT_CONTEXTS if self.context_of is None else WORDS

    def kind(self, image_id: str, asked: Mapping[str, Any]) -> Kind:
        """What an image is to a query (a row of `quadruples`)."""
        if image_id in asked["target_ids"]:
            return "target"
        instance = self.instance_of[image_id] == asked["instance_id"]
        if self.context_of is None:
            return "instance" if instance else "neither"
        if self.context_of[image_id] == self.context_of[asked["target_ids"][0]]:
            return "both" if instance else "context"
        return "instance" if instance else "neither"


def truth_of(dataset: Version, split: str) -> Truth:
    """What is known of the images in the galleries of a split.

    Contexts are read from `context_json` of the `listing`: of a rendered world the exact truth, of photos nothing.
    """
    rows = dataset.table("gallery", ["image_id", "instance_id", "split"]).to_pylist()
    instance_of = {row["image_id"]: row["instance_id"] for row in rows if row["split"] == split}
    if not dataset.holds("listing"):
        return Truth(instance_of, None)
    found: dict[str, str] = {}
    table = dataset.table("listing", ["image_id", "context_json"])
    for image_id, text in zip(table["image_id"].to_pylist(), table["context_json"].to_pylist(), strict=True):
        context = json.loads(text or "{}").get(CONTEXT)
        if context is not None and image_id in instance_of:
            found[image_id] = context
    return Truth(instance_of, found if len(found) == len(instance_of) else None)


def kinds(
    rankings: Mapping[str, Mapping[str, Any]], asked: Sequence[Mapping[str, Any]], truth: Truth
) -> list[Kind]:
    """What the first image of each query's ranking is, in the order of the queries."""
    return [truth.kind(rankings[row["query_id"]]["candidate_ids"][0], row) for row in asked]


def table(
    found: Sequence[Kind], asked: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], str]
) -> list[dict[str, Any]]:
    """Counts of the kinds by what `of` says of a query, largest group first: name, queries, and each kind's number."""
    groups: dict[str, Counter[Kind]] = {}
    for kind, row in zip(found, asked, strict=True):
        groups.setdefault(of(row), Counter())[kind] += 1
    rows = [
        {"name": name, "queries": counts.total(), **{kind: counts[kind] for kind in KINDS}}
        for name, counts in groups.items()
    ]
    return sorted(rows, key=lambda row: (-int(str(row["queries"])), row["name"]))


def crossed(first: Sequence[Kind], second: Sequence[Kind]) -> dict[tuple[Kind, Kind], int]:
    """How often the first model's kind meets the second's, over the same queries."""
    return dict(Counter(zip(first, second, strict=True)))
