"""What S3 and its libraries complain of, in one line: the bucket, the endpoint, and the variables that mend it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from infra.base.errors import OacirError

if TYPE_CHECKING:
    from infra.base.s3_failures import StoreLost

P = ParamSpec("P")
R = TypeVar("R")
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)"
DENIED = frozenset(
    {"403", "401", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
)


def in_one_line(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function of URLs so that whatever S3 raises in it becomes one `OacirError`; local URLs pass untouched."""

    @wraps(function)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        url = next(
            (a for a in (*args, *kwargs.values()) if isinstance(a, str) and a.startswith("s3://")), None
        )
        if url is None:
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            line = explain(error, url)
            if line is None:
                raise
            raise OacirError(line) from error

    return told


def explain(error: BaseException, url: str) -> str | None:
    """The line for an error at an s3:// URL; None where it is not of the store, or says all there is to say."""
    from botocore import exceptions as boto

    from infra.base.s3_failures import StoreLost, codes, reason

    causes = list(_causes(error))
    bucket = bucket_of(url)
    at = f"{url}: {{}} at {endpoint()}; {{}}"
    if any(isinstance(e, boto.NoCredentialsError | boto.PartialCredentialsError) for e in causes):
        return at.format(f"no credentials for bucket '{bucket}'", f"set {KEYS}")
    lost = next((e for e in causes if isinstance(e, StoreLost)), None)
    if any(isinstance(e, boto.HTTPClientError | boto.ConnectionError | TimeoutError) for e in causes):
        return at.format(
            f"the store of bucket '{bucket}' cannot be reached",
            f"check that it is up, and AWS_ENDPOINT_URL{_after(lost)}",
        )
    if lost is not None:
        return at.format(
            f"the store of bucket '{bucket}' keeps failing", f"wait until it answers{_after(lost)}"
        )
    found = {code for e in causes if isinstance(e, boto.ClientError) for code in codes(e)}
    if "NoSuchBucket" in found:
        return _no_bucket(url)
    if found & DENIED or any(isinstance(e, PermissionError) for e in causes):
        return at.format(
            f"access to bucket '{bucket}' is denied", f"check {KEYS}, and what the bucket allows them"
        )
    if isinstance(error, FileNotFoundError):
        return f"{url}: nothing lies there; check the path"
    if isinstance(error, OSError | boto.BotoCoreError | boto.ClientError):
        return at.format(
            f"bucket '{bucket}' cannot be used ({reason(error)})",
            "check the URL, AWS_ENDPOINT_URL and AWS_REGION",
        )
    return None


def require_bucket(url: str, filesystem: Any) -> None:
    """Ask once per bucket and process whether it is there, so that an absent one does not read as an empty one.

    Raises:
        OacirError: there is no such bucket.
    """
    _asked(bucket_of(url), endpoint(), filesystem)


@cache
def _asked(bucket: str, _: str, filesystem: Any) -> None:
    try:
        filesystem.call_s3("head_bucket", Bucket=bucket)
    except FileNotFoundError as error:
        raise OacirError(_no_bucket(f"s3://{bucket}")) from error
    except PermissionError:  # keys that may see a prefix of it alone: it is there
        return


def bucket_of(url: str) -> str:
    """The bucket of an s3:// URL."""
    return url.removeprefix("s3://").partition("/")[0]


def endpoint() -> str:
    """Where S3 is asked, as the environment says."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"


def _after(lost: StoreLost | None) -> str:
    told = f" ({lost.strerror})" if lost is not None else ""
    return f", and run the same command again: it goes on{told}"


def _no_bucket(url: str) -> str:
    absent = f"there is no bucket '{bucket_of(url)}' at {endpoint()}"
    return f"{url}: {absent}; create it, or correct the URL or AWS_ENDPOINT_URL"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
