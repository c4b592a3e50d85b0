"""What becomes of records, as Prometheus metrics of the driver: counted when a part's account arrives, so that every
record counts once however often its part was lost with a worker."""

from __future__ import annotations

from collections.abc import Iterable

from infra.base.accounts import Account
from infra.base.metrics import Metrics, served

PREFIX = "oacir_data_"
"""Ray puts `ray_` before it."""
HELP = {
    "records": "Records that came into a stage, by what became of them: kept, rejected, reserved, not_sampled",
    "rejects": "Records that a stage refused, by reason",
}


def version_label(version_url: str) -> str:
    """What the series of a version are tagged with: the last two names of its URL, name/key under a root."""
    return "/".join(version_url.rstrip("/").split("/")[-2:])


def count(version_url: str, stage: str, accounts: Iterable[Account]) -> None:
    """Add accounts to the counters; nothing where there is no Ray session."""
    if not served():
        return
    tags = {"version": version_label(version_url), "stage": stage}
    records = Metrics(PREFIX, HELP, tags, ("entity", "outcome"))
    rejects = Metrics(PREFIX, HELP, tags, ("entity", "reason"))
    for account in accounts:
        ways = {
            "kept": account.kept,
            "rejected": sum(account.rejected.values()),
            "reserved": account.reserved,
            "not_sampled": account.not_sampled,
        }
        for outcome, number in ways.items():
            records.add("records", number, entity=account.entity, outcome=outcome)
        for reason, number in account.rejected.items():
            rejects.add("rejects", number, entity=account.entity, reason=reason)
