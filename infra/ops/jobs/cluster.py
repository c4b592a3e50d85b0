"""How a cluster's dashboard is reached: address, token, and one line for what is wrong with either."""

from __future__ import annotations

import json
import logging
import os
import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from infra.base.errors import OacirError, RecipeError

DEFAULT = "http://127.0.0.1:8265"
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
PROBE_S = 10.0
T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """A dashboard that answered."""

    url: str
    origin: str
    """What named it."""
    ray_version: str
    token: str | None
    """Where the token comes from; None where none was sent."""
    client: Any
    """Ray's JobSubmissionClient."""

    def ask(self, call: Callable[..., T], *args: Any, **named: Any) -> T:
        """A call of the client.

        Raises:
            OacirError: the cluster is gone, or refuses.
        """
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        try:
            return call(*args, **named)
        except AuthenticationError as error:
            raise OacirError(_refused(self.url, self.token)) from error
        except (RequestException, ConnectionError) as error:
            raise LostError(f"{self.url}: the cluster does not answer any more ({_short(error)})") from error
        except RuntimeError as error:
            raise OacirError(f"{self.url}: {_short(error)}") from error


class LostError(OacirError):
    """The cluster answered before, and does not now."""


def connect(address: str | None, environment: Mapping[str, str] | None = None) -> Cluster:
    """Reach a cluster.

    Args:
        address: its dashboard, http://HOST:8265; None takes the environment's.
        environment: variables; None takes this process's.

    Raises:
        RecipeError: the address is no dashboard's.
        OacirError: nobody answers there, another program does, or the token is missing, wrong or open to others.
    """
    outer = os.environ if environment is None else environment
    url, origin = find_address(address, outer)
    token, token_origin = find_token(outer)
    version = _probe(url, origin, token, token_origin)
    return Cluster(url, origin, version, token_origin, _client(url, token))


def find_address(address: str | None, environment: Mapping[str, str]) -> tuple[str, str]:
    """URL of the dashboard, and what named it.

    Raises:
        RecipeError: what is named is no http address.
    """
    named = [("--address", address), *((name, environment.get(name)) for name in VARIABLES)]
    origin, found = next(((o, value) for o, value in named if value), ("the default", DEFAULT))
    if urlsplit(found).scheme not in ("http", "https") or not urlsplit(found).hostname:
        raise RecipeError(
            [
                f"{origin} {found}: jobs are submitted to the dashboard, http://HOST:8265 (`ray dashboard"
                " ray_cluster.yaml` brings it to http://127.0.0.1:8265); give it with --address"
            ]
        )
    return found.rstrip("/"), origin


def find_token(environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The cluster's token and where it comes from, as Ray looks for it; nothing where RAY_AUTH_MODE is disabled.

    Ray's own file ~/.ray/auth_token is read only where RAY_AUTH_MODE is token: it is another cluster's otherwise.

    Raises:
        OacirError: the file is absent, empty or readable by others, or a token is asked for and none is there.
    """
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None, None
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    if path := environment.get("RAY_AUTH_TOKEN_PATH"):
        return _read_token(Path(path).expanduser()), f"RAY_AUTH_TOKEN_PATH {path}"
    if mode != "token":
        return None, None
    own = Path(environment.get("HOME", "~")).expanduser() / ".ray" / "auth_token"
    if not own.is_file():
        raise OacirError(
            f"RAY_AUTH_MODE is token, and there is none: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file, or put"
            f" it into {own}"
        )
    return _read_token(own), str(own)


def _read_token(path: Path) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        token = path.read_text().strip()
    except OSError as error:
        raise OacirError(
            f"{path}: the token cannot be read ({error.strerror}); correct RAY_AUTH_TOKEN_PATH"
        ) from error
    if mode & 0o077:
        raise OacirError(f"{path}: others may read this token (mode {mode:04o}); chmod 600 {path}")
    if not token:
        raise OacirError(f"{path}: the file of the token is empty")
    return token


def _probe(url: str, origin: str, token: str | None, token_origin: str | None) -> str:
    """Ray's version there; the client itself would wait for minutes and complain in paragraphs."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{url}/api/version", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PROBE_S) as answer:
            return str(json.load(answer)["ray_version"])
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise OacirError(_refused(url, token_origin)) from error
        raise OacirError(
            f"{url} (from {origin}): answers {error.code}, as no Ray dashboard does; correct --address"
        ) from error
    except (ValueError, KeyError, TypeError, HTTPException) as error:
        raise OacirError(
            f"{url} (from {origin}): answers, but not as a Ray dashboard; correct --address"
        ) from error
    except OSError as error:
        why = _short(getattr(error, "reason", error))
        raise OacirError(
            f"{url} (from {origin}): no Ray cluster answers there ({why}); check that it is up, and that --address or"
            f" {VARIABLES[0]} names its dashboard, as a rule port 8265"
        ) from error


def _refused(url: str, origin: str | None) -> str:
    if origin is None:
        return (
            f"{url}: the cluster asks for a token, and none was sent; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a"
            " file of mode 0600, or RAY_AUTH_MODE=token for the one in ~/.ray/auth_token"
        )
    return f"{url}: the cluster refuses the token of {origin}; take the one that its head was started with"


def _client(url: str, token: str | None) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    # the client lets variables win over its argument, and adds a header of its own unless there is one
    before = os.environ.get(VARIABLES[0])
    os.environ[VARIABLES[0]] = url
    try:
        return JobSubmissionClient(headers={"Authorization": f"Bearer {token}"} if token else None)
    except (RuntimeError, ConnectionError) as error:
        raise OacirError(f"{url}: {_short(error)}") from error
    finally:
        if before is None:
            del os.environ[VARIABLES[0]]
        else:
            os.environ[VARIABLES[0]] = before


def _short(error: object) -> str:
    return " ".join(str(error).split())[:300]
