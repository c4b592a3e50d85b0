"""What is reached from this machine: a Ray cluster, storage, MLflow, and the time that others have."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from infra.base import storage
from infra.base.errors import OacirError
from infra.base.tracking import shown
from infra.ops.doctor.finding import Finding
from infra.ops.jobs.cluster import VARIABLES, connect, find_token

ASK_S = 10.0
CLOCK_FAULT_S, CLOCK_WARNING_S = 300.0, 30.0
"""S3 refuses requests whose time is 15 minutes off."""


def ray_cluster(address: str | None, environment: Mapping[str, str]) -> Finding:
    """The cluster that commands and jobs go to, and the token for it.

    Args:
        address: of a dashboard; None takes what the environment names.
        environment: variables.
    """
    import ray

    named = address or next((environment[name] for name in VARIABLES if environment.get(name)), None)
    _, origin = find_token(environment)
    token = f"token of {origin}" if origin else "no token"
    if named is None or named == "local":
        return Finding(
            "ray", "ok", f"{ray.__version__} here, no cluster named: commands start a session of this machine"
        )
    if "://" in named and named.startswith("http"):
        cluster = connect(address, environment)
        if cluster.ray_version != ray.__version__:
            fix = "commands of this machine cannot join it (jobs can); install its version here"
            return Finding(
                "ray", "warning", f"{named} has Ray {cluster.ray_version}, here is {ray.__version__}", fix
            )
        return Finding("ray", "ok", f"{named} answers: Ray {cluster.ray_version}, {token}")
    host, _, port = named.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return Finding("ray", "unasked", f"RAY_ADDRESS {named}: names no host and port that could be asked")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_S).close()
    except OSError as error:
        fix = "check that the cluster is up and that this machine may reach it"
        return Finding("ray", "fault", f"{named}: {error.strerror or error}", fix)
    return Finding("ray", "ok", f"{named} listens, {token}")


def rights(root: str) -> Finding:
    """Write, read and delete a probe under the root, and write it anew only where none lies: a manifest needs that."""
    url = storage.join(storage.absolute(root), f".doctor-{uuid.uuid4().hex}")
    data, began = uuid.uuid4().bytes, time.monotonic()
    if not storage.is_s3(root) and not storage.exists(root):
        return Finding("storage", "unasked", f"{root} is not there yet: the first command makes it")
    try:
        storage.write_bytes(url, data)
        if storage.read_bytes(url) != data:
            return Finding(
                "storage", "fault", f"{root}: what was written is not what is read", "use another store"
            )
        if storage.write_new(url, b"second"):
            fix = "use a store that knows conditional puts (If-None-Match), as S3 does"
            return Finding("storage", "fault", f"{root}: a second writer took the place of the first", fix)
    finally:
        with suppress(OacirError, OSError):  # the next line tells
            storage.remove(url)
    if storage.exists(url):
        return Finding("storage", "fault", f"{root}: may be written, not deleted", "allow s3:DeleteObject")
    ms = (time.monotonic() - began) * 1000
    return Finding("storage", "ok", f"{root}: write, read, write only once and delete, {ms:,.0f} ms together")


def mlflow_server(uri: str | None) -> Finding:
    """Whether the tracking server answers.

    Args:
        uri: as MLflow takes it; None tracks nothing.
    """
    if uri is None:
        return Finding("mlflow", "ok", "no server named (MLFLOW_TRACKING_URI): nothing is tracked")
    if not uri.startswith("http"):
        return Finding("mlflow", "ok", f"{shown(uri)}: a database or folder of this machine")
    place = shown(uri).rstrip("/")
    try:
        with urllib.request.urlopen(f"{place}/health", timeout=ASK_S) as answer:
            healthy = answer.read(64).strip() == b"OK"
        with urllib.request.urlopen(f"{place}/version", timeout=ASK_S) as answer:
            version = answer.read(64).decode().strip()
    except (OSError, ValueError) as error:
        fix = "start it (oacir mlflow start), or correct MLFLOW_TRACKING_URI"
        return Finding("mlflow", "fault", f"{place}: {getattr(error, 'reason', error)}", fix)
    if not healthy:
        return Finding(
            "mlflow", "fault", f"{place}: answers, but not as MLflow", "correct MLFLOW_TRACKING_URI"
        )
    return Finding("mlflow", "ok", f"{place} answers: MLflow {version}")


def clock(urls: Iterable[str], now: float | None = None) -> Finding:
    """This machine's time against that of the servers it speaks with.

    Args:
        urls: of servers; the first that says its time is believed.
        now: seconds since 1970, instead of this machine's.
    """
    asked = list(urls)
    for url in asked:
        theirs = _date(url)
        if theirs is None:
            continue
        off = (time.time() if now is None else now) - theirs
        text = f"{abs(off):,.0f} s {'ahead of' if off > 0 else 'behind'} {url}"
        if abs(off) >= CLOCK_FAULT_S:
            return Finding(
                "clock", "fault", text, "set the time (timedatectl set-ntp true); S3 refuses at 15 min"
            )
        if abs(off) >= CLOCK_WARNING_S:
            return Finding("clock", "warning", text, "set the time (timedatectl set-ntp true)")
        return Finding("clock", "ok", f"within {CLOCK_WARNING_S:.0f} s of {url}")
    return Finding(
        "clock", "unasked", "no server that says the time" + (f" ({', '.join(asked)})" if asked else "")
    )


def time_servers(
    root: str, uri: str | None, address: str | None, environment: Mapping[str, str]
) -> list[str]:
    """Servers that say the time, of those that commands speak with anyway."""
    found = []
    if storage.is_s3(root):
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
        own = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
        found.append(own or f"https://s3.{region}.amazonaws.com")
    found += [shown(uri)] if uri and uri.startswith("http") else []
    named = address or next((environment[name] for name in VARIABLES if environment.get(name)), "")
    return found + ([named] if named.startswith("http") else [])


def _date(url: str) -> float | None:
    """Seconds since 1970 by the server's header; an answer of refusal has one, too."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ASK_S) as answer:
            headers: Any = answer.headers
    except urllib.error.HTTPError as error:
        headers = error.headers
    except (OSError, ValueError):
        return None
    told = headers.get("Date")
    return parsedate_to_datetime(told).timestamp() if told else None
