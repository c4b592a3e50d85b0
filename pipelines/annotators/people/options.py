"""What a build makes of what people said."""

from __future__ import annotations

from typing import Literal

from infra.base.config import Config


class PeopleOptions(Config):
    """How the decisions of people are applied."""

    reviews: str | None = None
    """Folder of exported tasks and imported decisions; null = reviews/NAME under the root, NAME the benchmark's."""
    pending: Literal["keep", "leave_out"] = "keep"
    """A quadruple that was given to people and has no decision yet: kept as it was written, or a reject
    (people_pending). The build says how many there are."""
    conflict: Literal["pending", "reject", "first", "latest"] = "pending"
    """Where as many people say one thing as another: pending until one more person decides, a reject
    (people_disagree), or the first or latest decision counts."""
    faults: Literal["reject", "keep"] = "reject"
    """A person's text that breaks a gate: a reject with the gate's reason, or kept and counted."""
