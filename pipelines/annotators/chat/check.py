"""The consistency check: yes-or-no questions from a text, asked of both photos. The answers must tell the two apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipelines.annotators.base import Rejection
from pipelines.annotators.chat.options import CheckOptions

MOST_QUESTIONS = 6


class Shares(NamedTuple):
    """Share of the questions that a photo answers with yes."""

    target: float
    reference: float


def shares(target: Sequence[str], reference: Sequence[str]) -> Shares:
    """The shares of yes among the answers of both photos to the same questions."""
    return Shares(*(sum(a == "yes" for a in answers) / len(answers) for answers in (target, reference)))


def verdict(
    questions: Sequence[str], target: Sequence[str], reference: Sequence[str], options: CheckOptions
) -> Rejection | None:
    """Why the photos do not bear a text out; None if they do.

    Args:
        questions: at least one.
        target: the target's answers (yes, no, unclear), one for each.
        reference: the reference's.
        options: how clear it must be.
    """
    yes = shares(target, reference)
    told = "; ".join(f"{q} {t}/{r}" for q, t, r in zip(questions, target, reference, strict=True))
    if yes.target < options.min_yes:
        return Rejection(
            "text_untrue", f"{yes.target:.2f} yes of the target, {options.min_yes:g} wanted: {told}"
        )
    if yes.target - yes.reference < options.min_gap:
        gap = f"target {yes.target:.2f}, reference {yes.reference:.2f}, a gap of {options.min_gap:g} wanted"
        return Rejection("text_not_separating", f"{gap}: {told}")
    return None
