"""What every annotator takes and gives: ordered pairs of photos in, one text and box or one reason out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.records import REASONS

PAIRS_AT_ONCE = 32
"""Pairs that an annotator is asked for together, unless it says otherwise."""


@dataclass(frozen=True)
class PairToAnnotate:
    """A reference and a target of one instance.

    Attributes:
        reference: image_id, uri, sha256, width, height (pixels, upright), box ([x1, y1, x2, y2] or None), context_json
            (or None) and the columns of `records.MEASURES`.
        target: the same of the target.
    """

    pair_id: str
    domain: str
    split: str
    instance_id: str
    category: str
    reference: dict[str, Any]
    target: dict[str, Any]


@dataclass(frozen=True)
class Annotation:
    """A modification text and the anchor box on the reference.

    Attributes:
        text: what changes from reference to target; the instance is not named.
        box: x1, y1, x2, y2 in pixels of the upright reference, half-open.
        annotator: who wrote it.
        confidence: 0..1, as the annotator defines it; None if it states none.
        extra: JSON-able record of how the text came about.
        model: the model that wrote it; None if none did.
        prompt_sha256: of the prompt that it was asked with.
        names: of the object, found while annotating; the text may say none of them.
    """

    text: str
    box: tuple[float, ...]
    annotator: str
    confidence: float | None
    extra: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    prompt_sha256: str | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejection:
    """Why a pair got no annotation."""

    reason: str
    """One of `records.REASONS`."""
    detail: str

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"unknown reason {self.reason!r}")


class Annotator(Protocol):
    """Writes texts and boxes. Kinds inherit from it; what one does not say is as here."""

    at_once: int | None = PAIRS_AT_ONCE
    """Pairs that it is asked for together; None = all of a part, for one that keeps many in flight itself."""
    free: bool = False
    """Whether its texts come from outside, so that every gate is held against them (`annotators.gates`)."""

    @property
    def name(self) -> str:
        """What the provenance of its quadruples says."""
        ...

    def annotate(self, pairs: Sequence[PairToAnnotate], seed: int) -> list[Annotation | Rejection]:
        """One answer per pair, in order; equal pairs and seed give equal answers, however the pairs are batched."""
        ...

    def revise(
        self,
        pairs: Sequence[PairToAnnotate],  # noqa: ARG002 - for those that have one
        texts: Sequence[Annotation],  # noqa: ARG002
        faults: Sequence[Rejection],
        seed: int,  # noqa: ARG002
    ) -> list[Annotation | Rejection]:
        """One more answer for each pair whose text broke a rule; by default there is none, and the fault stands."""
        return list(faults)

    def confirm(
        self,
        pairs: Sequence[PairToAnnotate],  # noqa: ARG002 - for those that look again
        texts: Sequence[Annotation],
        seed: int,  # noqa: ARG002
    ) -> list[Annotation | Rejection]:
        """Texts that the photos bear out, or why they do not; by default nobody looks again."""
        return list(texts)

    def go_on(self, used: Mapping[str, int]) -> None:  # noqa: ARG002 - for those that pay
        """Told before each part what the parts that are done have used, as `used` counts it."""
        return

    def used(self) -> Mapping[str, Mapping[str, int]]:
        """Domain → name of a count → what was used since this was last asked."""
        return {}


def check_text(text: str, *, max_words: int, banned: Iterable[str]) -> Rejection | None:
    """The rules of METHODS.md every modification text keeps, whoever wrote it; None if it keeps them.

    Args:
        text: the modification text.
        max_words: most words, separated by white space.
        banned: names of the instance; compared as whole words, without regard to case, accents, hyphens and
            underscores. A trailing number ("dog2") is no part of a name.
    """
    words = text.split()
    if not words:
        return Rejection("no_text", "the text is empty")
    if len(words) > max_words:
        return Rejection("text_too_long", f"{len(words)} words, at most {max_words}")
    said = f" {flat(text)} "
    for name in banned:
        phrase = re.sub(r"( \d+|\d+)$", "", flat(name))
        if phrase and f" {phrase} " in said:
            return Rejection("text_names_instance", f"the text says {phrase!r}")
    return None


def flat(text: str) -> str:
    """Lower-case words without accents, separated by single spaces."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return " ".join(re.findall(r"[^\W_]+", "".join(c for c in plain if not unicodedata.combining(c))))
