"""A benchmark cut into folds over instances: each fold a benchmark of its own, with the same images and galleries."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from infra.base import versions
from infra.base.accounts import Account
from infra.base.config import Config, recipe_hash
from infra.base.errors import OacirError
from infra.base.versions import Version
from pipelines.gallery import gallery_hash, gallery_id
from pipelines.records import conform
from pipelines.stages import part_path, table_hash, write_part

ASKED = ("train", "dev", "test")
PASSED_ON = ("instances", "listing")
RULES = (
    "fold {number} of {folds} of {name}: its instances are asked, those of the next fold are dev, the others are"
    " trained on; the galleries hold every image of the domain, also of instances that were trained on"
)


class FoldRecipe(Config):
    """What a fold is made of."""

    source: str
    """Content hash of the benchmark that was cut."""
    folds: int
    """How many there are."""
    number: int
    """Which one this is, from 1."""
    seed: int
    """Of the deal."""


def deal(queries: Mapping[str, int], folds: int, seed: int) -> dict[str, int]:
    """Instance → its fold, from 0: folds of about equally many queries.

    The instances with most queries are dealt first, each to the fold with fewest; ties by a draw of their names.

    Raises:
        OacirError: there are fewer instances than folds.
    """
    if len(queries) < folds:
        raise OacirError(
            f"{len(queries)} instances have a query, which makes no {folds} folds; choose fewer (at least 3), or add"
            " photos of other instances"
        )
    sums, fold_of = [0] * folds, {}
    for name in sorted(queries, key=lambda name: (-queries[name], _lot(seed, name))):
        fold = min(range(folds), key=lambda f: (sums[f], f))
        fold_of[name] = fold
        sums[fold] += queries[name]
    return fold_of


def make_folds(dataset: Version, folds: int, seed: int, root: str) -> list[Version]:
    """The folds of a benchmark as versions `<its name>-fold-<n>-of-<k>`; those that are there are taken as they are.

    Instances are dealt in each domain by itself. All queries with a known target are asked once, whatever split they
    had.

    Raises:
        OacirError: a domain has fewer instances with a query than there are folds, or the benchmark's authors said how
            it is split and scored.
    """
    if dataset.holds("protocol"):
        raise OacirError(f"{dataset.url}: its authors said how it is split and scored; evaluate it as it is")
    rows = dataset.table("quadruples").to_pylist()
    asked = [row for row in rows if row["target_ids"]]
    fold_of: dict[tuple[str, str], int] = {}
    for domain in sorted({row["domain"] for row in asked}):
        counts = Counter(row["instance_id"] for row in asked if row["domain"] == domain)
        try:
            dealt = deal(counts, folds, seed)
        except OacirError as error:
            raise OacirError(f"{dataset.url}: domain {domain}: {error}") from error
        fold_of |= {(domain, name): fold for name, fold in dealt.items()}
    account = Account(
        entity="quadruples", taken_in=len(rows), kept=len(asked), not_sampled=len(rows) - len(asked)
    )
    return [
        _make(
            dataset,
            asked,
            fold_of,
            account,
            FoldRecipe(source=dataset.manifest.content_hash, folds=folds, number=number, seed=seed),
            root,
        )
        for number in range(1, folds + 1)
    ]


def _make(
    dataset: Version,
    asked: Sequence[Mapping[str, Any]],
    fold_of: Mapping[tuple[str, str], int],
    account: Account,
    recipe: FoldRecipe,
    root: str,
) -> Version:
    name = f"{dataset.manifest.name}-fold-{recipe.number}-of-{recipe.folds}"
    draft = versions.start("datasets", name, recipe_hash(recipe), recipe, root=root)
    if draft.finished:
        return Version(draft.url, draft.finished)
    quadruples = [
        {**row, "split": _split(fold_of[row["domain"], row["instance_id"]], recipe)} for row in asked
    ]
    split_of: dict[str, str] = {}
    for row in quadruples:
        split_of |= dict.fromkeys([row["reference_id"], *row["target_ids"]], row["split"])
    images = [
        row | {"split": split_of.get(row["image_id"], "reserve")}
        for row in dataset.table("images").to_pylist()
    ]
    owners = {row["image_id"]: row for row in dataset.table("instances").to_pylist()}
    domains = sorted({row["domain"] for row in quadruples})
    gallery = [
        {
            "gallery_id": gallery_id(row["domain"], split),
            "split": split,
            "image_id": row["image_id"],
            "instance_id": owners[row["image_id"]]["instance_id"],
            "category": owners[row["image_id"]]["category"],
            "is_distractor": split_of.get(row["image_id"]) != split,
        }
        for split in ("dev", "test")
        for row in images
        if row["domain"] in domains
    ]
    made = {"quadruples": quadruples, "images": images, "gallery": gallery}
    tables = {table: conform(pa.Table.from_pylist(rows), table) for table, rows in made.items()}
    tables |= {table: dataset.table(table) for table in PASSED_ON if dataset.holds(table)}
    galleries = {
        place: {"images": len(ids), "sha256": gallery_hash(ids)}
        for place in sorted({str(row["gallery_id"]) for row in gallery})
        if (ids := [str(row["image_id"]) for row in gallery if row["gallery_id"] == place])
    }
    counts = {d: Counter(row["split"] for row in quadruples if row["domain"] == d) for d in domains}
    return draft.commit(
        content_hash=versions.content_hash({t: table_hash(found, t) for t, found in tables.items()}),
        files=[write_part(draft.url, part_path(t, 0), found) for t, found in sorted(tables.items())],
        parents={"dataset": dataset.manifest.content_hash},
        accounts={"folds": [account]},
        figures={
            "domains": {d: {"queries": {split: counts[d][split] for split in ASKED}} for d in domains},
            "galleries": galleries,
            "fold": {
                "of": dataset.manifest.content_hash,
                "name": dataset.manifest.name,
                "number": recipe.number,
                "folds": recipe.folds,
            },
            "notes": [
                RULES.format(number=recipe.number, folds=recipe.folds, name=dataset.manifest.name),
                *dataset.manifest.figures.get("notes", []),
            ],
        },
    )


def _split(fold: int, recipe: FoldRecipe) -> str:
    ahead = (fold - (recipe.number - 1)) % recipe.folds
    return "test" if ahead == 0 else "dev" if ahead == 1 else "train"


def _lot(seed: int, name: str) -> str:
    return hashlib.sha256(f"folds {seed}\0{name}".encode()).hexdigest()
