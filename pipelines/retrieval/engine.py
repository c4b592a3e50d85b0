"""The engine: encode queries and galleries, score them exactly in chunks, and rank.

Memory: the encoded gallery of one domain ([T, M, d] float32; 390 MB for 11,801 images of the ViT-G model) and one chunk
of scores; never Q x T x M numbers at once. Scores are products in double precision rounded to float32, so that a rank
does not depend on how the work was cut: single-precision products differ in the last bits between block shapes, and
with them the order of near ties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.retrieval.protocols.base import Ranks

if TYPE_CHECKING:
    import torch

    from training.anchors import Anchor
    from training.model.adafocal import AdaFocalModel
    from training.model.interfaces import Rep, Scorer
    from training.model.processing import AdaFocalProcessor

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class TokenSource(Protocol):
    """Where tokens of the frozen tower come from: a feature store, or the images themselves."""

    def tokens(self, image_ids: Sequence[str]) -> torch.Tensor:
        """Tokens of the images (or views, by their `view_id`), float32 [n, N, D], in the order asked for."""
        ...


@dataclass(frozen=True)
class QuerySet:
    """Queries of one domain and split, in query_id order; all columns have the same length Q."""

    query_ids: list[str]
    instance_ids: list[str]
    reference_ids: list[str]
    target_ids: list[str]
    """The primary target of each."""
    texts: list[str]
    categories: list[str]
    """What the anchored object is called."""
    anchors: list[Anchor]
    """The anchored object on the reference."""
    reference_kept: bool = False
    """Whether the reference stays in the ranking, as some benchmarks have it."""
    further_ids: list[list[str]] | None = None
    """The further targets of each; None where no query has any."""
    group_ids: list[list[str]] | None = None
    """The images among which each is also ranked by itself; None where the benchmark has no groups."""

    @property
    def removed_ids(self) -> list[str | None]:
        """The image that is taken out of each query's ranking."""
        return [None if self.reference_kept else reference for reference in self.reference_ids]

    def __len__(self) -> int:
        return len(self.query_ids)


@dataclass(frozen=True)
class Gallery:
    """The images one domain's queries are ranked against, in image_id order."""

    gallery_id: str
    image_ids: list[str]
    instance_ids: list[str]

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class Ranking:
    """Ranks and the best candidates of queries in their order."""

    ranks: Ranks
    candidates: list[list[int]]
    """Columns of the gallery, best first, reference removed; at most top K each."""
    scores: list[list[float]]

    @property
    def target_rank(self) -> Ints:
        """Rank of each query's primary target; 1 = best."""
        return self.ranks.target

    @property
    def instance_rank(self) -> Ints:
        """Rank of the first image of each query's instance."""
        return self.ranks.instance


@dataclass(frozen=True)
class Prepared:
    """Texts and anchors of a query set as the model takes them, one row per query."""

    reference_keys: list[str]
    """What the source of tokens calls each reference, or the view of it that the model sees."""
    input_ids: torch.Tensor  # [Q, L]
    attention_mask: torch.Tensor  # [Q, L]
    patch_mask: torch.Tensor  # [Q, N]


class Asked(Protocol):
    """A model that queries and galleries can be put to: ours (`Encoder`), or one of another maker."""

    @property
    def scorer(self) -> Scorer:
        """Scores of its vectors."""
        ...

    def prepare(self, queries: QuerySet) -> Any:
        """What is needed of the queries, once for all uses of them."""
        ...

    def targets(self, image_ids: Sequence[str]) -> Iterator[torch.Tensor]:
        """Target vectors of the images, float32 [b, M, d] per batch, in order."""
        ...

    def queries(
        self, prepared: Any, reference_of: Ints | None = None, text_of: Ints | None = None
    ) -> Iterator[tuple[torch.Tensor, Floats | None]]:
        """Query vectors [b, d] and β [b, 1 or M] per batch, in order; a row takes the image and region of query
        `reference_of[i]` and the text of query `text_of[i]`, by default its own."""
        ...


class Encoder:
    """A model in eval mode with its processor and a source of tokens."""

    def __init__(
        self,
        model: AdaFocalModel,
        processor: AdaFocalProcessor,
        source: TokenSource,
        batch_size: int = 256,
    ) -> None:
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Dropout at test time made the release's β random; eval() is not left to the caller.
        self.model = model.eval().to(self.device)
        self.processor, self.source, self.batch_size = processor, source, batch_size

    @property
    def scorer(self) -> Scorer:
        """The model's own."""
        return self.model.score

    def prepare(self, queries: QuerySet) -> Prepared:
        """Tokenise the texts and move the regions, once for all uses of the queries."""
        from training.anchors import load_anchors

        input_ids, attention_mask = self.processor.texts(queries.texts, queries.categories, queries.query_ids)
        anchors = load_anchors(queries.anchors, self.processor)
        return Prepared(anchors.reference_keys, input_ids, attention_mask, anchors.patch_masks)

    def targets(self, image_ids: Sequence[str]) -> Iterator[torch.Tensor]:
        """Target vectors of the images, float32 [b, M, d] per batch, in order."""
        import torch

        with torch.inference_mode():
            for start in range(0, len(image_ids), self.batch_size):
                tokens = self.source.tokens(image_ids[start : start + self.batch_size])
                yield self.model.encode_target(tokens.to(self.device)).float()

    def queries(
        self, prepared: Prepared, reference_of: Ints | None = None, text_of: Ints | None = None
    ) -> Iterator[tuple[torch.Tensor, Floats | None]]:
        """Query vectors [b, d] and β [b, 1 or M] per batch, in order.

        A row takes the image and region of query `reference_of[i]` and the text of query `text_of[i]`; by default its
        own. β is None without modulation, and NaN for a row whose region leaves no patch (nothing is modulated there).
        """
        import torch

        own = np.arange(len(prepared.reference_keys))
        references = own if reference_of is None else reference_of
        texts = own if text_of is None else text_of
        with torch.inference_mode():
            for start in range(0, len(references), self.batch_size):
                rows = references[start : start + self.batch_size]
                words = torch.from_numpy(texts[start : start + self.batch_size])
                mask = prepared.patch_mask[torch.from_numpy(rows)]
                output = self.model.encode_query(
                    self.source.tokens([prepared.reference_keys[i] for i in rows]).to(self.device),
                    prepared.input_ids[words].to(self.device),
                    prepared.attention_mask[words].to(self.device),
                    mask.to(self.device),
                )
                beta = None if output.beta is None else output.beta.float().cpu().numpy()
                if beta is not None:
                    beta[~mask.any(dim=1).numpy()] = np.nan
                yield output.embedding.float(), beta


def encode_queries(
    encoder: Asked, prepared: Any, reference_of: Ints | None = None, text_of: Ints | None = None
) -> tuple[torch.Tensor, list[list[float] | None]]:
    """All query vectors [Q, d], and β of each query: one value or one per query token, None where none was used."""
    import torch

    vectors: list[torch.Tensor] = []
    betas: list[list[float] | None] = []
    for embedding, beta in encoder.queries(prepared, reference_of, text_of):
        vectors.append(embedding)
        rows = [None] * len(embedding) if beta is None else list(beta)
        betas += [None if row is None or np.isnan(row).any() else [float(v) for v in row] for row in rows]
    return torch.cat(vectors), betas


def score(scorer: Scorer, queries: Rep, targets: Rep) -> Floats:
    """Scores [Q, T] of Q queries against T targets, by the scorer of their model."""
    # In blocks of targets, so that the double-precision copy stays small beside the gallery.
    block = max(1, (1 << 22) // max(1, targets[:1].numel()))
    parts = [
        scorer(queries.double(), targets[start : start + block].double()).float()
        for start in range(0, len(targets), block)
    ]
    return np.concatenate([part.cpu().numpy() for part in parts], axis=1)


def rank(scores: Floats, queries: QuerySet, rows: slice, gallery: Gallery, top_k: int) -> Ranking:
    """Rank the gallery for the queries of `rows`, whose scores [rows, T] are given.

    The reference is removed, unless the queries keep it; ties go to the smaller image_id.
    """
    from training.metrics import oacir_ranks
    from training.rank_metrics import ranks_of

    references = queries.removed_ids[rows]
    target_rank, instance_rank = oacir_ranks(
        scores,
        gallery.image_ids,
        gallery.instance_ids,
        references,
        queries.target_ids[rows],
        queries.instance_ids[rows],
    )
    targets = group = None
    if queries.further_ids is not None:
        pairs = zip(queries.target_ids[rows], queries.further_ids[rows], strict=True)
        wanted = [[first, *others] for first, others in pairs]
        targets = ranks_of(scores, gallery.image_ids, references, wanted)
    if queries.group_ids is not None:
        wanted = [[target] for target in queries.target_ids[rows]]
        among = ranks_of(scores, gallery.image_ids, references, wanted, queries.group_ids[rows])
        group = np.concatenate(among)
    candidates, best = top(scores, gallery, references, top_k)
    return Ranking(Ranks(target_rank, instance_rank, targets, group), candidates, best)


def top(
    scores: Floats, gallery: Gallery, reference_ids: Sequence[str | None], top_k: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Columns and scores of the best candidates of each row, the row's reference left out; ties by image_id."""
    column_of = {image_id: column for column, image_id in enumerate(gallery.image_ids)}
    candidates, best = [], []
    for row, reference in zip(scores, reference_ids, strict=True):
        # Columns are in image_id order, so a stable sort settles ties.
        order = np.argsort(-row, kind="stable")
        removed = column_of.get(reference, -1) if reference is not None else -1
        kept = order[order != removed][:top_k]
        candidates.append([int(c) for c in kept])
        best.append([float(row[c]) for c in kept])
    return candidates, best


def join(rankings: Sequence[Ranking]) -> Ranking:
    """The ranking of all chunks, in order."""
    parts = [r.ranks for r in rankings]
    ranks = Ranks(
        np.concatenate([r.target for r in parts]),
        np.concatenate([r.instance for r in parts]),
        None if parts[0].targets is None else [own for r in parts for own in r.targets or ()],
        None if parts[0].group is None else np.concatenate([r.group for r in parts if r.group is not None]),
    )
    return Ranking(
        ranks,
        [c for r in rankings for c in r.candidates],
        [s for r in rankings for s in r.scores],
    )
