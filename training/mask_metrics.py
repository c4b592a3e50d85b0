"""Metrics of composed object retrieval (COR127K): how well a mask covers the object that is sought. Pure numpy."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Form = Literal["threshold", "released"]
"""threshold: sigmoid > 0.5, a binary mask; released: as the authors validate, the map stretched to 0..1, scored soft"""
Floats = NDArray[np.float64]


class MaskScores(NamedTuple):
    """Scores of one mask, or their means over masks."""

    dice: float
    """Percent."""
    iou: float
    """Of the foreground, percent."""
    mean_iou: float
    """Mean of the foreground's and the background's IoU, percent."""
    mae: float
    """Mean absolute error of the map, 0..1."""


def mask_scores(
    logits: NDArray[np.floating], target: NDArray[np.bool_], form: Form = "threshold"
) -> MaskScores:
    """Score a predicted mask.

    With `threshold` an empty prediction for an empty target is right (100), and the error is that of the sigmoid map.
    With `released` the sigmoid map is stretched so that its least value is 0 and its largest 1 (a flat map becomes 0),
    overlaps are sums of products, and the error is that of the stretched map; an empty target then scores 0 as soon as
    the map is not flat, which is why it is not the default.

    Args:
        logits: before the sigmoid, [H, W].
        target: where the object is, [H, W].
        form: see `Form`.

    Raises:
        ValueError: shapes differ, or a logit is NaN.
    """
    if np.shape(logits) != np.shape(target):
        raise ValueError(f"a map of {np.shape(logits)} does not fit a mask of {np.shape(target)}")
    values = np.asarray(logits, np.float64)
    if np.isnan(values).any():
        raise ValueError("the map holds NaN")
    truth = np.asarray(target, bool).astype(np.float64)
    probability = np.exp(-np.logaddexp(0.0, -values))
    if form == "released":
        span = probability.max() - probability.min()
        shown = (probability - probability.min()) / span if span > 0 else np.zeros_like(probability)
        error = shown
    else:
        shown, error = (probability > 0.5).astype(np.float64), probability
    foreground, background = _iou(shown, truth), _iou(1 - shown, 1 - truth)
    total = shown.sum() + truth.sum()
    dice = 2 * float((shown * truth).sum()) / float(total) if total > 0 else 1.0
    return MaskScores(
        100 * dice, 100 * foreground, 50 * (foreground + background), float(np.abs(error - truth).mean())
    )


def mean_scores(scores: list[MaskScores]) -> MaskScores:
    """Means over the masks of a set (Test_1 = base categories, Test_2 = novel ones).

    Raises:
        ValueError: there is none.
    """
    if not scores:
        raise ValueError("no mask to average over")
    return MaskScores(*(float(v) for v in np.mean(scores, axis=0)))


def _iou(shown: Floats, truth: Floats) -> float:
    both = float((shown * truth).sum())
    either = float(shown.sum() + truth.sum()) - both
    return both / either if either > 0 else 1.0
