"""What a method of composed image retrieval is made of: the parts that a new method may bring, and what they exchange.

A method is one file with a model that holds such parts, and a recipe. The loop, the evaluation and the search know
nothing but these interfaces. `Rep` is one tensor whose first axis is the item, whatever the rest means: it can be
gathered over workers, cut into chunks and stored without being understood; only the method's `Scorer` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from training.model.qformer import AttentionMaps, ImageMemory, Read, Text

Rep: TypeAlias = Tensor
"""What a query or an image is compared by: a vector [B, d] or a set of M vectors [B, M, d], of unit length. (A
Gaussian would be [B, K, 2·d], means beside deviations.)"""


class Modulation(NamedTuple):
    """What a modulator makes of a query.

    Attributes:
        bias: added to the scaled cross-attention logits of the query pass, [B, 1, 1 or M, N].
        beta: the modulation scalar itself, [B, 1 or M].
    """

    bias: Tensor
    beta: Tensor


class QueryOutput(NamedTuple):
    """What a query encoder returns.

    Attributes:
        embedding: the queries' Rep; unit vectors [B, d].
        beta: modulation used, [B, 1] (scalar, fixed) or [B, M] (vector); None if no bias was applied.
        extras: what the method's own losses need beside it, by name; empty outside training.
    """

    embedding: Rep
    beta: Tensor | None
    extras: Mapping[str, Tensor]


class LossContext(NamedTuple):
    """What a loss sees: one worker's queries against the targets of all workers.

    Attributes:
        query: of this worker's b queries.
        targets: Rep of the global batch's T targets, in its order, differentiable on every worker.
        labels: the column of each query's own target, [b].
        temperature: positive scalar, learnable.
        scorer: the method's.
        negatives: Rep of E items that are no query's target (references, targets of earlier steps); None: no such.
        excluded: true where a column, of the targets and then the negatives, is no negative of a query since it is as
            right as its target, bool [b, T + E]; never the query's own. None: all count.
    """

    query: QueryOutput
    targets: Rep
    labels: Tensor
    temperature: Tensor
    scorer: Scorer
    negatives: Rep | None = None
    excluded: Tensor | None = None


class Backbone(Protocol):
    """The image tower: pixels [B, 3, H, W] → tokens [B, N, D]; while it is frozen they can be stored."""

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, N, D]."""
        ...


class Fusion(Protocol):
    """From image and text, either of which may be None, to hidden states, through learnable queries [1 or B, Q, H].

    The bias is added to the scaled logits of the queries' attention to the image; `read` says which rows of the last
    layer are wanted.
    """

    def __call__(
        self,
        queries: Tensor,
        text: Text | None,
        image: ImageMemory | None,
        bias: Tensor | None = None,
        read: Read = "all",
        maps: AttentionMaps | None = None,
    ) -> Tensor:
        """One pass; [B, Q, H], [B, H] or packed rows [R, H], as `read` says."""
        ...


class Modulator(Protocol):
    """From image, text and region (patch mask [B, N]) to a bias of the attention; may ask the fusion for a pass."""

    def __call__(self, fusion: Fusion, image: ImageMemory, text: Text, patch_mask: Tensor) -> Modulation:
        """The bias for a batch of which at least one query has a region."""
        ...


class QueryEncoder(Protocol):
    """Reference tokens, text and region of a batch → the queries' Rep."""

    def encode_query(
        self,
        tokens: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        patch_mask: Tensor | None,
        modulate: bool | None = None,
    ) -> QueryOutput:
        """[B, N, D], [B, L], [B, L], [B, N] → Rep of B queries."""
        ...


class TargetEncoder(Protocol):
    """Image tokens [B, N, D] → the images' Rep; `target_shape` is that of one image."""

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Without the axis of the items, so that a worker without any can take part in gathering them."""
        ...

    def encode_target(self, tokens: Tensor) -> Rep:
        """[B, N, D] → Rep of B images."""
        ...


class Scorer(Protocol):
    """Every query against every target, [Q, T]; never holds more than a chunk of what lies between."""

    def __call__(self, queries: Rep, targets: Rep, chunk: int | None = None) -> Tensor:
        """Reps of Q and T items → [Q, T]; `chunk` targets at a time."""
        ...


class Loss(Protocol):
    """A scalar: the mean over this worker's queries, in nats where it is a likelihood."""

    def __call__(self, context: LossContext) -> Tensor:
        """The loss of this worker's queries."""
        ...
