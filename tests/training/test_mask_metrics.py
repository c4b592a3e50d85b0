"""Masks scored by hand, against set arithmetic, and what always holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.mask_metrics import MaskScores, mask_scores, mean_scores

YES, NO = 20.0, -20.0
"""Logits whose sigmoid is 1 and 0 to eight digits."""


def test_by_hand() -> None:
    logits = np.array([[YES, YES], [NO, NO], [NO, YES]])
    target = np.array([[True, False], [False, False], [True, True]])
    # shown 3, true 3, both 2: Dice 4/6; IoU 2/4; background both 2 of 4; two of six pixels are wrong
    assert mask_scores(logits, target) == pytest.approx((100 * 4 / 6, 50, 50, 2 / 6), abs=1e-6)


def test_nothing_sought_and_nothing_shown_is_right() -> None:
    nothing = np.zeros((3, 4), bool)
    assert mask_scores(np.full((3, 4), NO), nothing) == pytest.approx((100, 100, 100, 0), abs=1e-6)
    one = np.full((3, 4), NO)
    one[0, 0] = YES
    assert mask_scores(one, nothing)[:3] == pytest.approx((0, 0, 50 * 11 / 12))


def test_half_is_not_shown() -> None:
    """sigmoid(0) = 0.5: more than that is asked for."""
    assert mask_scores(np.zeros((2, 2)), np.ones((2, 2), bool)) == pytest.approx((0, 0, 0, 0.5))


def test_the_released_form_stretches_the_map_and_scores_it_soft() -> None:
    probabilities = np.array([0.2, 0.3, 0.6])  # stretched: 0, 0.25, 1
    logits = np.log(probabilities / (1 - probabilities))[None]
    target = np.array([[False, True, True]])
    found = mask_scores(logits, target, "released")
    foreground, background = 1.25 / (1.25 + 2 - 1.25), 1 / (1.75 + 1 - 1)
    assert found == pytest.approx(
        (100 * 2 * 1.25 / 3.25, 100 * foreground, 50 * (foreground + background), 0.75 / 3)
    )
    # only the order of magnitude within the map counts: a faint map scores as a sure one does
    assert mask_scores(logits, target)[:2] == pytest.approx((200 / 3, 50))
    flat = mask_scores(np.full((2, 2), 3.0), np.ones((2, 2), bool), "released")
    assert flat == pytest.approx((0, 0, 0, 1))


@given(st.integers(0, 2**32 - 1))
def test_hard_scores_are_those_of_sets(seed: int) -> None:
    draw = np.random.default_rng(seed)
    logits, target = draw.normal(size=(5, 6)), draw.random((5, 6)) < draw.random()
    shown = {tuple(p) for p in np.argwhere(logits > 0)}
    true = {tuple(p) for p in np.argwhere(target)}
    found = mask_scores(logits, target)
    either = shown | true
    assert found.iou == pytest.approx(100 * len(shown & true) / len(either) if either else 100)
    assert found.dice == pytest.approx(200 * len(shown & true) / (len(shown) + len(true)) if either else 100)
    assert found.dice >= found.iou - 1e-9
    assert found.dice == pytest.approx(100 * 2 * found.iou / (100 + found.iou))
    # the background is the foreground of the negative
    assert mask_scores(-logits, ~target).mean_iou == pytest.approx(found.mean_iou)
    soft = mask_scores(logits, target, "released")
    for scores in (found, soft):
        assert all(-1e-9 <= v <= 100 + 1e-9 for v in scores[:3])
        assert 0 <= scores.mae <= 1
    assert mask_scores(logits + 0.0, target, "released") == soft


def test_means_and_refusals() -> None:
    assert mean_scores([MaskScores(100, 50, 60, 0.1), MaskScores(0, 30, 20, 0.3)]) == pytest.approx(
        (50, 40, 40, 0.2)
    )
    with pytest.raises(ValueError, match="no mask"):
        mean_scores([])
    with pytest.raises(ValueError, match="does not fit"):
        mask_scores(np.zeros((2, 3)), np.zeros((3, 2), bool))
    with pytest.raises(ValueError, match="NaN"):
        mask_scores(np.full((2, 2), np.nan), np.zeros((2, 2), bool))
