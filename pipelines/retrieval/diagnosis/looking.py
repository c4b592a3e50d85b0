"""How much of a model's attention lies inside the region, against the region's share of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.base.versions import Version
from pipelines.retrieval.attention import place_of
from pipelines.retrieval.compared import Compared
from pipelines.retrieval.inputs import DomainTask, StoreTokens, require_features

if TYPE_CHECKING:
    from training.model.adafocal import AdaFocalModel
    from training.model.processing import AdaFocalProcessor


@dataclass(frozen=True)
class Look:
    """What a model looked at for one query whose region touches a patch; shares 0 to 1 of its image tokens."""

    area: float
    """Image tokens inside the region, of all."""
    inside: float
    """The query tokens' cross-attention inside the region, as the model ran; mean over layers and heads."""
    unmodulated: float
    """The same with β = 0."""
    probes: float | None
    """The CAAM's probes' in the first pass, which no β reaches; None without a CAAM."""


def measure(
    root: str, dataset: Version, one: Compared, tasks: Sequence[DomainTask], wanted: set[str], batch: int
) -> dict[str, Look]:
    """Query id → what the model of an evaluation looked at; queries whose region touches no patch are left out.

    Args:
        root: where the features lie that the model reads.
        dataset: the benchmark.
        one: the evaluation.
        tasks: of its split.
        wanted: queries to measure.
        batch: queries per forward.

    Raises:
        OacirError: the model or its features are gone.
    """
    from training.stores import joined

    place = place_of(one)
    model, processor = place.load(with_tower=False)
    tokens = StoreTokens(joined(require_features(root, None, place, dataset, processor)))
    found: dict[str, Look] = {}
    for task in tasks:
        queries = task.queries
        rows = [i for i, query_id in enumerate(queries.query_ids) if query_id in wanted]
        for start in range(0, len(rows), batch):
            found |= _looks(model, processor, tokens, task, rows[start : start + batch])
    return found


def _looks(
    model: AdaFocalModel,
    processor: AdaFocalProcessor,
    source: StoreTokens,
    task: DomainTask,
    rows: Sequence[int],
) -> dict[str, Look]:
    from training.anchors import load_anchors

    queries = task.queries
    ids = [queries.query_ids[i] for i in rows]
    anchors = load_anchors([queries.anchors[i] for i in rows], processor)
    input_ids, mask = processor.texts(
        [queries.texts[i] for i in rows], [queries.categories[i] for i in rows], ids
    )
    region = anchors.patch_masks
    told = model.explain(source.tokens(anchors.reference_keys), input_ids, mask, region)
    inside, unmodulated = told.share_inside(region)
    probes = told.probes_inside(region)
    area = region.mean(dim=1)
    return {
        query_id: Look(
            float(area[i]),
            float(inside[i]),
            float(unmodulated[i]),
            None if probes is None else float(probes[i]),
        )
        for i, query_id in enumerate(ids)
        if area[i] > 0
    }
