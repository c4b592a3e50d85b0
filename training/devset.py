"""Measurement on the dev galleries while training: every worker encodes and ranks its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from infra.base.versions import Version
from training.batches import QuerySet, Rows
from training.data import ImageRows, image_sizes, load_queries, read_quadruples
from training.distributed import gather_rows, share
from training.metrics import instance_recall_at, oacir_ranks, recall_at
from training.model.adafocal import AdaFocalModel

if TYPE_CHECKING:
    from training.model.processing import AdaFocalProcessor

MEASURES = ("R_ID@1", "R@1", "R@5")


@dataclass(frozen=True)
class Gallery:
    """Queries and candidates of one domain."""

    domain: str
    queries: QuerySet
    reference_ids: list[str]
    target_ids: list[str]
    instance_ids: list[str]
    candidate_rows: Rows
    candidate_ids: list[str]
    candidate_instances: list[str]


DEV_COLUMNS = ("step", "epoch", "gallery", "queries", *MEASURES, "seconds")


def mean_by_step(rows: Sequence[Sequence[float]]) -> dict[int, float]:
    """Mean of the measures over the galleries at every measured step, in order; rows as in `DEV_COLUMNS`."""
    by_step: dict[int, list[float]] = {}
    for row in rows:
        measures = [row[DEV_COLUMNS.index(name)] for name in MEASURES]
        by_step.setdefault(int(row[0]), []).append(sum(measures) / len(measures))
    return {step: sum(values) / len(values) for step, values in by_step.items()}


class TokenRows(Protocol):
    """What gives tokens by row: a feature store, or a tower as it is at the moment (`pixels.PixelTokens`)."""

    def tokens(self, rows: Rows) -> Tensor:
        """[n, N, D] float32, in the order of `rows`."""
        ...


def dev_readings(rows: Sequence[Sequence[float]], galleries: Sequence[Gallery]) -> list[dict[str, float]]:
    """Every measured step's figures: the measures of each domain as `domain/measure`, and their `mean`; rows as in
    `DEV_COLUMNS`."""
    means = mean_by_step(rows)
    found = {step: {"step": float(step), "mean": mean} for step, mean in means.items()}
    for row in rows:
        columns = dict(zip(DEV_COLUMNS, row, strict=True))
        domain = galleries[int(columns["gallery"])].domain
        found[int(columns["step"])] |= {f"{domain}/{name}": columns[name] for name in MEASURES}
    return list(found.values())


def load_dev(
    dataset: Version, store: ImageRows, processor: AdaFocalProcessor, without: Sequence[str] = ()
) -> list[Gallery]:
    """The dev galleries, one per domain that has dev queries and is not left out, in order of the domain's name."""
    import pyarrow.compute as pc

    quadruples = read_quadruples(dataset, "dev", without)
    sizes = image_sizes(dataset)
    table = dataset.table("gallery")
    table = table.filter(pc.equal(table["split"], "dev")).sort_by("image_id")
    galleries = []
    for domain in sorted(set(quadruples["domain"].to_pylist())):
        own = quadruples.filter(pc.equal(quadruples["domain"], domain))
        candidates = table.filter(pc.equal(table["gallery_id"], f"{domain}/dev"))
        ids = candidates["image_id"].to_pylist()
        galleries.append(
            Gallery(
                domain,
                load_queries(own, sizes, store, processor),
                own["reference_id"].to_pylist(),
                [targets[0] for targets in own["target_ids"].to_pylist()],
                own["instance_id"].to_pylist(),
                store.rows(ids),
                ids,
                candidates["instance_id"].to_pylist(),
            )
        )
    return galleries


def measure(
    model: AdaFocalModel,
    store: TokenRows,
    galleries: list[Gallery],
    device: torch.device,
    batch_size: int,
    beat: Callable[[], None] | None = None,
) -> list[tuple[float, ...]]:
    """Dev metrics, the same on every worker: one row (queries, R_ID@1, R@1, R@5) per gallery, percent; `beat` is called
    before each forward."""
    beat = beat or _nothing
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    step = max(1, batch_size // world_size)
    was_training = model.training
    model.eval()
    found: list[tuple[float, ...]] = []
    with torch.no_grad():
        for gallery in galleries:
            start, end = share(len(gallery.candidate_rows), rank, world_size)
            own = gallery.candidate_rows[start:end]
            empty = torch.zeros(0, *model.target_shape, device=device)
            vectors = []
            for i in range(0, len(own), step):
                beat()
                vectors.append(model.encode_target(store.tokens(own[i : i + step]).to(device)).float())
            targets = gather_rows(torch.cat([empty, *vectors]), len(gallery.candidate_rows))
            start, end = share(len(gallery.queries), rank, world_size)
            ranks = _ranks(model, store, gallery, np.arange(start, end), targets, step, beat)
            target_rank, instance_rank = gather_rows(ranks.to(device), len(gallery.queries)).cpu().numpy().T
            recall = recall_at(target_rank, (1, 5))
            found.append(
                (float(len(target_rank)), instance_recall_at(instance_rank, (1,))[1], recall[1], recall[5])
            )
    model.train(was_training)
    return found


def _nothing() -> None:
    pass


def _ranks(
    model: AdaFocalModel,
    store: TokenRows,
    gallery: Gallery,
    rows: Rows,
    targets: Tensor,
    step: int,
    beat: Callable[[], None],
) -> Tensor:
    """Ranks of target and instance for some queries of a gallery, int64 [n, 2]."""
    queries, parts = gallery.queries, [torch.zeros(0, 2, dtype=torch.int64)]
    for i in range(0, len(rows), step):
        beat()
        some = rows[i : i + step]
        tokens = store.tokens(queries.reference_rows[some])
        input_ids, mask = queries.texts(some)
        query = model.encode_query(
            tokens.to(targets.device),
            input_ids.to(targets.device),
            mask.to(targets.device),
            queries.regions(some).to(targets.device),
        )
        scores = model.score(query.embedding.float(), targets)
        ranks = oacir_ranks(
            scores.cpu().numpy(),
            gallery.candidate_ids,
            gallery.candidate_instances,
            *(
                [ids[r] for r in some]
                for ids in (gallery.reference_ids, gallery.target_ids, gallery.instance_ids)
            ),
        )
        parts.append(torch.from_numpy(np.stack(ranks, axis=1)))
    return torch.cat(parts)
