"""`oacir jobs list | status | logs | stop`: what was submitted, and what became of it."""

from __future__ import annotations

import difflib
from datetime import UTC, datetime
from typing import Any

from infra.base.command import Context, Outcome
from infra.base.errors import OacirError
from infra.base.progress import duration
from infra.ops.jobs.cluster import Cluster, connect
from infra.ops.jobs.config import JobRecipe, ListRecipe, LogsRecipe, StopRecipe
from infra.ops.jobs.follow import FINAL, follow, seconds
from infra.ops.jobs.follow import stop as stop_and_wait

COMMAND = "oacir_command"


def list_jobs(recipe: ListRecipe, _: Context) -> Outcome:
    """Jobs that `oacir submit` sent, newest first."""
    cluster = connect(recipe.address)
    found = _jobs(cluster, everyones=recipe.all)
    rows = [_row(job) for job in found]
    width = max((len(row["job"]) for row in rows), default=0)
    lines = tuple(
        f"{row['job']:<{width}}  {row['status']:<9}  {row['began']}  {duration(row['seconds']):>9}  {row['command']}"
        for row in rows
    )
    running = sum(row["status"] not in FINAL for row in rows)
    return Outcome(
        f"{len(rows)} jobs, {running} of them not ended: {cluster.url}", None, {"jobs": rows}, lines
    )


def status(recipe: JobRecipe, _: Context) -> Outcome:
    """How one job is.

    Raises:
        OacirError: no such job.
    """
    job = find_job(connect(recipe.address), recipe.job)
    row = _row(job)
    details = [f"{name:<9} {row[name]}" for name in ("command", "began", "code")]
    if row["status"] == "FAILED" and row["exit_code"] is None:
        details.append(f"{'reason':<9} {row['message']}")
    end = "" if row["exit_code"] is None else f" with exit code {row['exit_code']}"
    return Outcome(
        f"{row['job']}: {row['status']}{end}, {duration(row['seconds'])}", None, row, tuple(details)
    )


def logs(recipe: LogsRecipe, _: Context) -> Outcome:
    """A job's log, as far as it is or to its end.

    Raises:
        OacirError: no such job, or its log is gone with its machine.
        JobFailedError: it was followed, and failed.
    """
    cluster = connect(recipe.address)
    job = find_job(cluster, recipe.job)
    name = job.submission_id
    if recipe.follow:
        return follow(cluster, name)
    text = cluster.ask(cluster.client.get_job_logs, name) or ""
    row = _row(job)
    return Outcome(f"{name}: {row['status']}", None, row | {"log": text}, tuple(text.splitlines()))


def stop(recipe: StopRecipe, context: Context) -> Outcome:
    """Tell a job to end in order (a training saves a step first), and wait for it; one that has ended is left alone.

    Raises:
        OacirError: no such job, or it has not ended in time.
    """
    cluster = connect(recipe.address)
    job = find_job(cluster, recipe.job)
    name = job.submission_id
    if str(job.status) in FINAL:
        return Outcome(f"nothing to do: {name} has ended before ({job.status})", None, _row(job))
    if context.dry_run:
        return Outcome(f"dry run: would stop {name}", None, _row(job))
    row = _row(stop_and_wait(cluster, name, recipe.wait_s))
    return Outcome(
        f"{name}: {row['status']}; the same `oacir submit` goes on from what is finished", None, row
    )


def find_job(cluster: Cluster, named: str | None) -> Any:
    """The job of an id, or of the beginning of one; None is the newest of ours.

    Raises:
        OacirError: none, or more than one.
    """
    found = _jobs(cluster, everyones=named is not None)
    if named is None:
        if not found:
            raise OacirError(
                f"{cluster.url}: no job that `oacir submit` sent; `oacir jobs list --all true` shows others"
            )
        return found[0]
    names = [job.submission_id for job in found]
    meant = [job for job in found if job.submission_id == named] or [
        job for job in found if job.submission_id.startswith(named)
    ]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise OacirError(
            f"job {named}: means {len(meant)}: {', '.join(j.submission_id for j in meant[:5])}; say more of it"
        )
    near = difflib.get_close_matches(named, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "`oacir jobs list` shows them"
    raise OacirError(f"job {named}: there is none at {cluster.url}; {hint}")


def _jobs(cluster: Cluster, *, everyones: bool) -> list[Any]:
    """Submitted jobs, newest first."""
    found = [job for job in cluster.ask(cluster.client.list_jobs) if job.submission_id]
    ours = [job for job in found if everyones or COMMAND in (job.metadata or {})]
    return sorted(ours, key=lambda job: -(job.start_time or 0))


def _row(job: Any) -> dict[str, Any]:
    told = job.metadata or {}
    began = datetime.fromtimestamp(job.start_time / 1000, UTC) if job.start_time else None
    return {
        "job": job.submission_id,
        "status": str(job.status),
        "exit_code": job.driver_exit_code,
        "began": f"{began:%Y-%m-%d %H:%M:%S} UTC" if began else "not yet",
        "seconds": seconds(job),
        "command": told.get(COMMAND, job.entrypoint),
        "code": told.get("oacir_code", "another program's"),
        "message": " ".join((job.message or "").split())[:300],
    }
