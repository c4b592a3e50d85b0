"""`oacir submit`: any command as a job of a Ray cluster."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infra.base.command import Command, Context, Outcome
from infra.base.errors import OacirError
from infra.base.progress import announce
from infra.ops.jobs.cluster import Cluster, connect
from infra.ops.jobs.config import SubmitRecipe
from infra.ops.jobs.follow import FINAL, follow, log_command
from infra.ops.jobs.package import MIB, Package, write
from infra.ops.jobs.price import Estimate, cost, estimate, need
from infra.ops.jobs.request import Request, attempt_id, attempt_of, make_request


def submit(recipe: SubmitRecipe, context: Context, command: Command) -> Outcome:
    """Send a command, follow it, and end as it ends. While the same command with the same code waits or runs there,
    this joins it; once it has ended, it is sent again, as the next attempt: commands go on from what is finished.

    Raises:
        OacirError: the cluster is not reached, too much would go along, or the same recipe runs there with other code.
        JobFailedError: the command failed there; with its exit code.
    """
    request = make_request(recipe, command, os.environ, Path.cwd())
    cluster = connect(recipe.address)
    job, running = _attempt(request, cluster.ask(cluster.client.list_jobs))
    if running:
        announce(f"this command is job {job} on {cluster.url} already; joining it")
        if context.dry_run:
            return Outcome(f"dry run: would join job {job}", None, {"job": job, "joined": True})
    else:
        lines, figures = _plan(recipe, command, request, cluster, job)
        if context.dry_run:
            return Outcome(f"dry run: would submit job {job}", None, {"job": job} | figures, lines)
        for line in lines:
            announce(line)
        _send(recipe, request, cluster, job)
    if not recipe.follow:
        told = f"{log_command(job, cluster, follow=True)} follows it"
        return Outcome(
            f"{'joined' if running else 'submitted'} job {job}; {told}", None, {"job": job, "joined": running}
        )
    return follow(cluster, job)


def _attempt(request: Request, jobs: Iterable[Any]) -> tuple[str, bool]:
    """The id to submit under, or that of the attempt that has not ended; and whether it is that.

    Raises:
        OacirError: the same recipe runs there with other code: two would write one version.
    """
    last, running = 0, False
    for job in jobs:
        name = job.submission_id or ""
        number = attempt_of(name, request.id)
        active = str(job.status) not in FINAL
        if number is None and active and name.startswith(f"{request.stem}-"):
            raise OacirError(
                f"job {name} runs this very command with other code, environment or files, and two would write one"
                f" version; wait for it, or stop it first: oacir jobs stop --job {name}"
            )
        if number is not None and number > last:
            last, running = number, active
    return attempt_id(request.id, last if running else last + 1), running


def _plan(
    recipe: SubmitRecipe, command: Command, request: Request, cluster: Cluster, job: str
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What will be done, in lines and figures."""
    words = shlex.split(request.line)[1:]
    needed = need(command.verb, command.recipe)
    told = estimate(words, recipe.estimate_s) if recipe.estimate else Estimate("not asked (estimate false)")
    hours = told.hours if recipe.expected_hours is None else recipe.expected_hours
    money = cost(needed, hours, told.workers, recipe.prices)
    expected = recipe.expected_hours
    time = told.message if expected is None else f"{expected:g} hours, as you expect"
    rows = {
        "cluster": f"{cluster.url} (Ray {cluster.ray_version}{f', token of {cluster.token}' if cluster.token else ''})",
        "command": request.line,
        "job": job,
        "code": _along(request.package),
        "packages": "the machines' own"
        if recipe.environment.kind == "none"
        else f"{recipe.environment.kind} installs",
        "variables": ", ".join(request.handed_on) or "none of this shell's",
        "machines": str(needed),
        "time": time,
        "money": "not told: it takes hours, workers and prices (--prices.gpu_hour, --prices.cpu_hour)"
        if money is None
        else f"{money:,.2f} {recipe.prices.currency}",
    }
    lines = [f"{name:<10} {text}" for name, text in rows.items()]
    lines += [f"warning: {line}" for line in request.warnings]
    figures = {"hours": hours, "money": money, "currency": recipe.prices.currency, "workers": needed.workers}
    figures |= {"bytes": request.package.size_bytes, "code": request.package.content_hash()}
    return tuple(lines), figures


def _along(package: Package) -> str:
    files = len(package.files) + len(package.made)
    left = [
        f"{len(names)} {reason}{'s' if len(names) > 1 else ''}"
        + (f" ({', '.join(names)})" if reason != "cache" else "")
        for reason, names in package.left_out.items()
    ]
    return f"{package.size_bytes / MIB:,.1f} MiB in {files} files" + (
        f"; stays here: {', '.join(left)}" if left else ""
    )


def _send(recipe: SubmitRecipe, request: Request, cluster: Cluster, job: str) -> None:
    """Upload and submit. Whoever submits the same at the same time wins, and this joins his."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "code.zip"
        write(request.package, archive)
        options = {"entrypoint_num_cpus": recipe.driver_cpus} if recipe.driver_cpus else {}
        try:
            cluster.ask(
                cluster.client.submit_job,
                entrypoint=request.entrypoint,
                submission_id=job,
                runtime_env={**request.environment, "working_dir": str(archive)},
                metadata=request.metadata,
                **options,
            )
        except OacirError as error:
            if "already exists" not in str(error):
                raise
            announce(f"job {job} was submitted by another at this moment; joining it")
