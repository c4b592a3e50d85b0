"""`oacir answer`: answers to the queries whose targets a server keeps, in the files that the server takes.

CIRR (test1): two files, the top 50 of the split and the top 3 of the query's set. CIRCO (test): one, the top 50. Every
query of the server has to be answered, so an import that lacks some is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.base import storage, versions
from infra.base.command import Context, Outcome
from infra.base.errors import OacirError
from pipelines.gallery import gallery_hash
from pipelines.retrieval.config import AnswerRecipe
from pipelines.retrieval.engine import Asked, Encoder, Gallery, QuerySet, encode_queries, score
from pipelines.retrieval.evaluate import place_of
from pipelines.retrieval.foreign.encoder import open_foreign
from pipelines.retrieval.inputs import ModelPlace, StoreTokens, find_dataset, image_sizes, require_features
from pipelines.retrieval.robustness.config import PerturbSection
from pipelines.retrieval.search import search
from pipelines.retrieval.sharded import search_on_workers

if TYPE_CHECKING:
    from torch import Tensor

ANSWERS, SUBSET_ANSWERS = 50, 3
SERVERS = {"cirr": "test1", "circo": "test"}
"""Benchmarks with a server → their own name of the split that it keeps."""


def answer(recipe: AnswerRecipe, context: Context) -> Outcome:
    """Rank the hidden split and write the server's files.

    Raises:
        OacirError: the benchmark has no server, or a query of its split is not there.
    """
    dataset = find_dataset(context.root, recipe.dataset)
    kind, queries, groups, gallery = _hidden(dataset)
    place = place_of(recipe, context.root)
    folder = context.out or storage.join(context.root, "answers", f"{recipe.name}-{kind}")
    if context.dry_run:
        return Outcome(
            f"would answer {len(queries):,} queries of {dataset.url} in {storage.absolute(folder)}"
        )

    encoder, urls = _encoder(recipe, context.root, place, dataset)
    vectors, _ = encode_queries(encoder, encoder.prepare(queries))
    column_of = {image_id: column for column, image_id in enumerate(gallery.image_ids)}
    removed = np.array([-1 if i is None else column_of.get(i, -1) for i in queries.removed_ids])
    if recipe.workers > 1:
        model_url = place.url if place.run is None else place.run.url
        best = search_on_workers(
            model_url,
            urls,
            gallery.image_ids,
            vectors,
            ANSWERS,
            removed,
            recipe.workers,
            recipe.encode_batch_size,
        )
    else:
        best = search(vectors, encoder.targets(gallery.image_ids), ANSWERS, removed)
    subset = [] if groups is None else _top_of_groups(encoder, vectors, gallery, queries.removed_ids, groups)
    files = answers(kind, queries.query_ids, gallery.image_ids, best.rows()[0], subset)
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), json.dumps(content).encode())
    url = storage.absolute(folder)
    return Outcome(
        f"{len(queries):,} queries answered in {', '.join(files)}: {url}",
        url,
        {"queries": len(queries), "files": sorted(files), "model": place.content_hash},
    )


def _encoder(
    recipe: AnswerRecipe, root: str, place: ModelPlace, dataset: versions.Version
) -> tuple[Asked, list[str]]:
    """The model, and the feature stores that it reads."""
    from training.model.adafocal import AdaFocalModel
    from training.stores import joined

    if recipe.foreign is not None:
        if recipe.workers > 1:
            raise OacirError(
                f"workers {recipe.workers}: several workers read a feature store, and a foreign model has none;"
                " leave workers at 1"
            )
        return open_foreign(place, recipe.foreign, dataset, PerturbSection(), recipe.encode_batch_size), []
    model, processor = place.load(with_tower=False)
    stores = require_features(root, recipe.features, place, dataset, processor)
    if type(model).score is not AdaFocalModel.score:
        raise OacirError(
            f"{place.url}: {type(model).__name__} scores otherwise than by the best of a set of vectors, which is"
            " all that answer can rank by"
        )
    encoder = Encoder(model, processor, StoreTokens(joined(stores)), recipe.encode_batch_size)
    return encoder, [store.version.url for store in stores]


def answers(
    kind: str,
    query_ids: Sequence[str],
    image_ids: Sequence[str],
    ranked: Sequence[Sequence[int]],
    subset: Sequence[Sequence[int]],
) -> dict[str, dict[str, Any]]:
    """File name → what the server of a benchmark takes.

    Args:
        kind: cirr or circo.
        query_ids: `<domain>/<split>/<the release's id>`, [Q].
        image_ids: of the gallery's columns; the stem of the last part is the release's name.
        ranked: columns of the answers of each query, best first, [Q].
        subset: the same within its group; only CIRR asks for it.
    """
    asked = [query_id.rsplit("/", 1)[1] for query_id in query_ids]
    names = [PurePosixPath(image_id).stem for image_id in image_ids]
    if kind == "circo":
        pairs = zip(asked, ranked, strict=True)
        return {"circo_test.json": {key: [int(names[c]) for c in row] for key, row in pairs}}
    found = {}
    for metric, rows in (("recall", ranked), ("recall_subset", subset)):
        pairs = zip(asked, rows, strict=True)
        own = {key: [names[c] for c in row] for key, row in pairs}
        found[f"cirr_test1_{metric}.json"] = {"version": "rc2", "metric": metric, **own}
    return found


def _hidden(dataset: versions.Version) -> tuple[str, QuerySet, list[list[str]] | None, Gallery]:
    """The benchmark's kind, the queries of its hidden split in query_id order, their groups, and their gallery."""
    import pyarrow.compute as pc

    from training.anchors import anchors_of
    from training.data import read_quadruples

    figures = dataset.manifest.figures
    rules, release = figures.get("protocol") or {}, figures.get("release", {})
    kind = str(rules.get("name", release.get("kind", "a benchmark built here")))
    if kind not in SERVERS:
        raise OacirError(
            f"{dataset.url}: {kind} has no server that takes answers; {' and '.join(SERVERS)} have one"
        )
    rows = read_quadruples(dataset, "hidden").to_pylist()
    expected = release.get("records", {}).get(SERVERS[kind], 0)
    if not rows or len(rows) != expected:
        raise OacirError(
            f"{dataset.url}: {len(rows):,} of the {expected:,} queries of {kind} {SERVERS[kind]} are there, and the"
            " server wants every one answered; import the split with all its images"
        )
    members = dataset.table("gallery").filter(pc.field("split") == "hidden").sort_by("image_id")
    gallery = Gallery(f"{kind}/hidden", members["image_id"].to_pylist(), members["instance_id"].to_pylist())
    _check_gallery(figures, gallery, dataset.url)
    groups = None
    if kind == "cirr":
        table = dataset.table("quadruples", ["query_id", "group_ids"])
        group_of = dict(zip(table["query_id"].to_pylist(), table["group_ids"].to_pylist(), strict=True))
        groups = [group_of[row["query_id"]] for row in rows]
    queries = QuerySet(
        query_ids=[r["query_id"] for r in rows],
        instance_ids=[r["instance_id"] for r in rows],
        reference_ids=[r["reference_id"] for r in rows],
        target_ids=[],
        texts=[r["modification_text"] for r in rows],
        categories=[r["category"] for r in rows],
        anchors=anchors_of(rows, image_sizes(dataset)),
        reference_kept=rules.get("reference") == "kept",
    )
    return kind, queries, groups, gallery


def _check_gallery(figures: Mapping[str, Any], gallery: Gallery, url: str) -> None:
    stated = figures.get("galleries", {}).get(gallery.gallery_id, {})
    if stated.get("sha256") != gallery_hash(gallery.image_ids):
        raise OacirError(
            f"{url}: gallery {gallery.gallery_id} is not the one its manifest states; import it again"
        )
    if stated.get("named", len(gallery)) != len(gallery):
        raise OacirError(
            f"{url}: gallery {gallery.gallery_id} lacks {stated['named'] - len(gallery):,} of its images, so its"
            " answers would be worse than the model; import it with all of them"
        )


def _top_of_groups(
    encoder: Asked,
    vectors: Tensor,
    gallery: Gallery,
    removed: Sequence[str | None],
    groups: Sequence[Sequence[str]],
) -> list[list[int]]:
    """Columns of the best of each query's group, its reference left out; ties by image_id."""
    import torch

    column_of = {image_id: column for column, image_id in enumerate(gallery.image_ids)}
    targets = torch.cat(list(encoder.targets(gallery.image_ids)))
    found = []
    for vector, gone, group in zip(vectors, removed, groups, strict=True):
        columns = sorted(column_of[i] for i in {*group} - {gone})
        scores = score(encoder.scorer, vector[None], targets[columns])[0]
        found.append([columns[n] for n in np.argsort(-scores, kind="stable")[:SUBSET_ANSWERS]])
    return found
