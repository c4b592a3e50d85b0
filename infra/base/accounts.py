"""Accounts: what came into a stage and where every record of it went. Nothing leaves silently."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from infra.base.config import Config
from infra.base.errors import OacirError


class Account(Config):
    """Where the records of one entity went: taken_in = kept + rejected(reason) + reserved + not_sampled."""

    entity: str
    """images, boxes, instances, pairs or quadruples."""
    taken_in: int = 0
    """Records that entered."""
    kept: int = 0
    """Records that went on."""
    rejected: dict[str, int] = Field(default_factory=dict)
    """Records refused, by reason."""
    reserved: int = 0
    """Records put aside for the galleries."""
    not_sampled: int = 0
    """Good records that a size option left out."""

    @property
    def accounted(self) -> int:
        """Records whose way is known."""
        return self.kept + sum(self.rejected.values()) + self.reserved + self.not_sampled

    def check(self) -> Account:
        """Itself, if every record is accounted for.

        Raises:
            OacirError: records were lost or doubled; this is a defect, never the user's fault.
        """
        if self.taken_in != self.accounted:
            raise OacirError(
                f"account of {self.entity}: {self.taken_in} came in but {self.accounted} are accounted for"
                f" ({self.model_dump(exclude={'entity', 'taken_in'})}); records were lost or doubled: please report it"
            )
        return self

    def line(self) -> str:
        """One line for people."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.rejected.items()))
        parts = [f"{self.kept:,} kept"]
        if self.rejected:
            parts.append(f"{sum(self.rejected.values()):,} rejected ({reasons})")
        if self.reserved:
            parts.append(f"{self.reserved:,} reserved")
        if self.not_sampled:
            parts.append(f"{self.not_sampled:,} not sampled")
        return f"{self.entity}: {self.taken_in:,} in = " + " + ".join(parts)


def add(accounts: Iterable[Account]) -> Account:
    """The sum of accounts of one entity."""
    items = list(accounts)
    if len({a.entity for a in items}) != 1:
        raise ValueError("add needs accounts of one entity, at least one")
    rejected: dict[str, int] = {}
    for account in items:
        for reason, count in account.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + count
    return Account(
        entity=items[0].entity,
        taken_in=sum(a.taken_in for a in items),
        kept=sum(a.kept for a in items),
        rejected=dict(sorted(rejected.items())),
        reserved=sum(a.reserved for a in items),
        not_sampled=sum(a.not_sampled for a in items),
    )
