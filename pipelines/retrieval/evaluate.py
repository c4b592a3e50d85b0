"""`oacir evaluate`: a model ranks the galleries of a benchmark's split; rankings, figures and a table come out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from infra.base import storage, versions
from infra.base.command import Context, Outcome
from infra.base.errors import OacirError
from infra.base.progress import Progress
from pipelines.records import RANKINGS
from pipelines.retrieval import baselines, summary
from pipelines.retrieval.config import AnswerRecipe, EvaluateRecipe
from pipelines.retrieval.engine import Asked, Encoder, Floats, encode_queries, join, rank, score
from pipelines.retrieval.foreign.encoder import open_foreign
from pipelines.retrieval.foreign.load import find_foreign
from pipelines.retrieval.inputs import (
    DomainTask,
    ImageTokens,
    ModelPlace,
    StoreTokens,
    find_dataset,
    find_model,
    load_tasks,
    require_features,
    uris,
)
from pipelines.retrieval.protocols.base import Ranks
from pipelines.retrieval.protocols.known import BENCHMARKS, benchmark_of
from pipelines.retrieval.robustness.apply import ShownReferences, encodes_anew, perturb
from pipelines.retrieval.robustness.config import in_words
from pipelines.retrieval.summary import DomainResult
from training.anchors import region_counts

if TYPE_CHECKING:
    import pyarrow as pa

    from training.features import FeatureStore
    from training.model.views import Asking

METRICS_FILE = "metrics.json"


def evaluate(recipe: EvaluateRecipe, context: Context) -> Outcome:
    """Rank, measure and store; the same model, data and options are a no-op that repeats the table.

    Raises:
        OacirError: the split has no query, or the features do not fit the model or the dataset.
    """
    dataset = find_dataset(context.root, recipe.dataset)
    place = place_of(recipe, context.root)
    benchmark = benchmark_of(dataset, recipe.split)
    tasks = load_tasks(dataset, recipe.split)
    if not tasks:
        raise OacirError(
            f"{dataset.url}: the split {recipe.split} holds no query; choose another --split, or build a benchmark"
            " whose filters leave some"
        )
    if context.dry_run:
        return _plan(recipe, place, dataset, tasks)
    # A declared benchmark counts more than what the recipe says; its name and metrics are part of what was asked.
    declared = [benchmark.name, *benchmark.metrics] if benchmark.name in BENCHMARKS else []
    key = recipe.identity(place.content_hash, dataset.manifest.content_hash, *declared)
    draft = versions.start("evaluations", recipe.name, key, recipe, root=context.root, out=context.out)
    if draft.finished:
        return _outcome(versions.Version(draft.url, draft.finished), "already evaluated")

    from training.stores import joined

    began = time.monotonic()
    encoder: Asked
    shown: ShownReferences | None = None
    if recipe.foreign is not None:
        stores: list[FeatureStore] = []
        asking: Asking = recipe.foreign.asking
        foreign = open_foreign(place, recipe.foreign, dataset, recipe.perturb, recipe.encode_batch_size)
        encoder = foreign
        tasks, changed = perturb(tasks, recipe.perturb, asking)
    else:
        model, processor = place.load(with_tower=False)
        asking = processor
        stores = require_features(context.root, recipe.features, place, dataset, processor)
        tasks, changed = perturb(tasks, recipe.perturb, processor)
        source = StoreTokens(joined(stores))
        if encodes_anew(recipe.perturb, processor):
            model, processor = place.load()
            images = ImageTokens(model, processor, uris(dataset), *place.token_types(stores[0]))
            shown = ShownReferences(source, images, recipe.perturb)
        encoder = Encoder(model, processor, source if shown is None else shown, recipe.encode_batch_size)
    loaded = time.monotonic()
    with Progress("evaluate", sum(len(t.queries) for t in tasks), "queries") as progress:
        results = []
        for task in tasks:
            results.append(evaluate_domain(encoder, task, recipe, shown))
            progress.update(len(task.queries))
    ranked = time.monotonic()

    data = summary.figures(results, recipe.bootstrap_samples, recipe.seed, benchmark)
    data |= {
        "split": recipe.split,
        "model": {"name": place.name, "url": place.url, "content_hash": place.content_hash},
        "dataset": {
            "name": dataset.manifest.name,
            "url": dataset.url,
            "content_hash": dataset.manifest.content_hash,
            "notes": dataset.manifest.figures.get("notes", []),
        },
        "absent": absent_domains(dataset, recipe.split, [t.domain for t in tasks]),
        "unseen": unseen_domains(context.root, place, dataset, [t.domain for t in tasks]),
    }
    asked = _asked(asking, tasks)
    data["asked"] = asked
    if recipe.foreign is not None:
        data["foreign"] = foreign.stated()
    if stated := recipe.perturb.stated():
        data["perturbed"] = {**stated, "counts": changed}
    data["notes"] = summary.notes(data) + _notes(asked, data.get("foreign", {}))
    tables = {f"rankings/{r.task.domain}.parquet": rankings_table(r) for r in results}
    rows = versions.combine(versions.rows_hash(t.to_pylist()) for t in tables.values())
    files = []
    for path, table in tables.items():
        storage.write_table(draft.path(path), table)
        files.append(versions.file_entry(draft.url, path, len(table)))
    storage.write_bytes(draft.path(METRICS_FILE), json.dumps(data, indent=1, ensure_ascii=False).encode())
    files.append(versions.file_entry(draft.url, METRICS_FILE))
    version = draft.commit(
        content_hash=versions.content_hash({"rankings": rows}),
        files=files,
        parents={"model": place.content_hash, "dataset": dataset.manifest.content_hash}
        | {
            role: store.version.manifest.content_hash
            for role, store in zip(("features", "views"), stores, strict=False)
        },
        seconds={"load": loaded - began, "rank": ranked - loaded, "measure": time.monotonic() - ranked},
        figures=data,
    )
    return _outcome(version, "evaluated")


def place_of(recipe: EvaluateRecipe | AnswerRecipe, root: str) -> ModelPlace:
    """Where the model of a recipe lies, ours or another maker's.

    Raises:
        OacirError: there is none, or the options do not fit it.
    """
    if recipe.foreign is None:
        return find_model(root, recipe.model)
    if recipe.features is not None:
        raise OacirError(
            f"--features {recipe.features}: a model that is not ours reads photos; leave it out, or leave the foreign"
            " options out"
        )
    return find_foreign(recipe.model)


def evaluate_domain(
    encoder: Asked, task: DomainTask, recipe: EvaluateRecipe, shown: ShownReferences | None = None
) -> DomainResult:
    """Rank one domain's gallery for its queries, and for the two blind baselines; the gallery is encoded once.

    Args:
        encoder: the model with its source of tokens.
        task: queries and gallery.
        recipe: how many candidates are kept, and how the blind baselines are drawn.
        shown: the references as the model is shown them, where they are not those of the store.
    """
    import torch

    queries, gallery, chunk = task.queries, task.gallery, recipe.queries_per_chunk
    targets = torch.cat(list(encoder.targets(gallery.image_ids)))
    # only an encoder of our own comes with references of its own
    prepared = encoder.prepare(queries) if shown is None else shown.prepare(cast("Encoder", encoder), queries)
    vectors, betas = encode_queries(encoder, prepared)
    scorer = encoder.scorer

    def own() -> Iterator[tuple[slice, Floats]]:
        for rows in baselines.chunks(len(queries), chunk):
            yield rows, score(scorer, vectors[rows], targets)

    ranking = join([rank(s, queries, rows, gallery, recipe.top_k) for rows, s in own()])
    lent = baselines.lenders(queries, recipe.blind_references, recipe.seed)
    if lent is None:
        return DomainResult(task, ranking, betas, None, None)
    borrowed = baselines.borrow(encoder, prepared, lent)
    text = baselines.text_only(scorer, borrowed, lent, queries, gallery, targets, chunk)
    reference = baselines.reference_only(scorer, borrowed, targets, chunk)
    return DomainResult(task, ranking, betas, _ranks(task, text), _ranks(task, reference))


def rankings_table(result: DomainResult) -> pa.Table:
    """The rankings of one domain as `records.RANKINGS`, in query_id order."""
    import pyarrow as pa

    queries, gallery, ranking = result.task.queries, result.task.gallery, result.ranking
    nothing: list[Any] = [None] * len(queries)
    targets, group = ranking.ranks.targets, ranking.ranks.group
    return pa.table(
        {
            "query_id": queries.query_ids,
            "gallery_id": [gallery.gallery_id] * len(queries),
            "candidate_ids": [[gallery.image_ids[c] for c in row] for row in ranking.candidates],
            "scores": ranking.scores,
            "beta": result.betas,
            "target_rank": ranking.target_rank.astype(np.int32),
            "instance_rank": ranking.instance_rank.astype(np.int32),
            "target_ranks": nothing if targets is None else [own.tolist() for own in targets],
            "group_rank": nothing if group is None else group.astype(np.int32),
        },
        schema=RANKINGS,
    )


def absent_domains(dataset: versions.Version, split: str, present: list[str]) -> dict[str, str]:
    """Domains of the dataset without a query in the split, and why as far as the dataset tells."""
    import pyarrow.compute as pc

    stated = dataset.manifest.figures.get("domains", {})
    domains = set(stated) | set(pc.unique(dataset.table("images", ["domain"])["domain"]).to_pylist())
    reasons = {}
    for domain in sorted(domains - set(present)):
        elsewhere = {s: n for s, n in stated.get(domain, {}).get("queries", {}).items() if n}
        reasons[domain] = f"no query in {split}" + (f" (queries: {elsewhere})" if elsewhere else "")
        if split == "test":
            reasons[domain] = stated.get(domain, {}).get("why_no_query", reasons[domain])
    return reasons


def unseen_domains(
    root: str, place: ModelPlace, dataset: versions.Version, domains: list[str]
) -> list[str] | None:
    """Of these domains those that the model was not trained on; None where that is not known.

    Args:
        root: where the benchmark that the model was trained on is looked for, if it is another one.
        place: the model.
        dataset: the benchmark that is evaluated.
        domains: of it.
    """
    if place.run is None:
        return None
    wanted = place.run.manifest.parents.get("dataset")
    known = [dataset, *versions.list_versions(root, "datasets")]
    found = next((version for version in known if version.manifest.content_hash == wanted), None)
    stated = {} if found is None else found.manifest.figures.get("domains", {})
    asked = {domain: part.get("queries", {}).get("train") for domain, part in stated.items()}
    if found is None or any(asked.get(domain, 0) is None for domain in domains):
        return None
    left_out = place.run.manifest.recipe.get("training", {}).get("leave_out_domains", ())
    return [domain for domain in domains if domain in left_out or not asked.get(domain)]


def _asked(processor: Asking, tasks: list[DomainTask]) -> dict[str, Any]:
    """How the model was asked: what it saw of the references, how texts named the object, and by which regions."""
    anchors = [anchor for task in tasks for anchor in task.queries.anchors]
    return {
        "reference_view": processor.reference_view,
        "text_entity": processor.text_entity,
        "region": processor.region,
        "regions": region_counts(anchors, processor),
    }


def _notes(asked: dict[str, Any], foreign: dict[str, Any]) -> list[str]:
    boxes, masks = asked["regions"]["box"], asked["regions"]["mask"]
    said = []
    if asked["region"] == "mask" and boxes:
        said.append(f"{boxes:,} of {masks + boxes:,} queries have no mask and were asked with their box")
    if foreign.get("texts_cut"):
        said.append(f"{foreign['texts_cut']:,} texts are longer than the model reads and were cut")
    return said


def _ranks(task: DomainTask, scored: Iterator[tuple[slice, Floats]]) -> Ranks:
    return join([rank(scores, task.queries, rows, task.gallery, 1) for rows, scores in scored]).ranks


def _plan(
    recipe: EvaluateRecipe, place: ModelPlace, dataset: versions.Version, tasks: list[DomainTask]
) -> Outcome:
    queries, images = sum(len(t.queries) for t in tasks), sum(len(t.gallery) for t in tasks)
    forwards = queries * (1 + recipe.blind_references)
    pairs = sum(len(t.queries) * len(t.gallery) for t in tasks) * (1 + 2 * recipe.blind_references)
    lines = [f"{t.domain}: {len(t.queries):,} queries against {len(t.gallery):,} images" for t in tasks]
    if stated := recipe.perturb.stated():
        lines.append(f"perturbed: {in_words(stated)}")
    return Outcome(
        f"would rank {queries:,} queries of {dataset.url} ({recipe.split}) with {place.url}: {images:,} target and"
        f" {forwards:,} query forwards, {pairs:,} scores",
        figures={"queries": queries, "images": images, "query_forwards": forwards, "scores": pairs},
        details=tuple(lines),
    )


def _outcome(version: versions.Version, what: str) -> Outcome:
    data: dict[str, Any] = version.manifest.figures
    return Outcome(
        f"{what}: {version.url}",
        version.url,
        {**data, "seconds": version.manifest.seconds},
        tuple(summary.table(data)),
    )
