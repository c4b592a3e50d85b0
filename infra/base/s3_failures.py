"""What S3's failures mean: which of them pass, which are verdicts, and whether a body is the one that was sent."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

TRANSIENT_STATUS = frozenset({429, 500, 502, 503, 504})
TRANSIENT_CODES = frozenset(
    {
        "InternalError", "SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded",
        "TooManyRequestsException", "BandwidthLimitExceeded", "RequestTimeout", "RequestTimeoutException",
        "OperationAborted", "ConditionalRequestConflict",
        # the body that arrived there is not the one that was sent
        "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
    }
)  # fmt: skip
"""Answers that say "later" or "again"; every other 4xx is a verdict."""
_MD5 = re.compile(r"[0-9a-f]{32}")
_QUOTED_URL = re.compile(r':? "https?://[^"]*"')
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)?")


class StoreLost(OSError):  # noqa: N818 - what happened, in plain words
    """The store gave no usable answer for as long as patience lasts; the cause is its last failure."""


class DamagedBodyError(OSError):
    """A body that is not the one that was sent; `read` is the one that arrived, where it was whole but for its hash."""

    def __init__(self, what: str, read: bytes | None = None) -> None:
        super().__init__(errno.EIO, what)
        self.read = read


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: the store is busy or gone, or a body was damaged on the way."""
    for cause in causes(error):
        if isinstance(cause, boto.ClientError):
            status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status in TRANSIENT_STATUS or bool(codes(cause) & TRANSIENT_CODES)
        if isinstance(cause, StoreLost):
            return False
        if isinstance(cause, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return False
        if isinstance(cause, _PASSING):
            return True
    return False


_PASSING = (
    DamagedBodyError,
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
    ResponseParserError,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
)


def codes(error: BaseException) -> set[str]:
    """The store's own codes for what went wrong."""
    found = (c.response.get("Error", {}) for c in causes(error) if isinstance(c, boto.ClientError))
    return {str(said.get("Code")) for said in found}


def reason(error: BaseException) -> str:
    """An error's first words, on one line, without the long URLs that botocore quotes."""
    text = _QUOTED_URL.sub("", " ".join(str(error).split()))
    return (text or type(error).__name__)[:160]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def check_length(answer: Mapping[str, Any], data: bytes, asked: str | None) -> None:
    """That a body is as long as the store says, and of the range that was asked for (`bytes=a-b`).

    Raises:
        DamagedBodyError: it is not.
        OSError: the store answers a range with something else, always.
    """
    stated = answer.get("ContentLength")
    if stated is not None and len(data) != stated:
        raise DamagedBodyError(f"{len(data):,} of {stated:,} bytes arrived")
    wanted = _RANGE.fullmatch(asked or "")
    if not wanted:
        return
    given = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
    if not given:
        raise OSError(errno.ENOTSUP, "the store does not serve byte ranges")
    first, last, size = map(int, given.groups())
    end = min(int(wanted[2]) if wanted[2] else size - 1, size - 1)
    if (first, last) != (int(wanted[1]), end) or len(data) != last - first + 1:
        raise DamagedBodyError(f"{asked} wanted, {given[0]} with {len(data):,} bytes arrived")


def check_hash(answer: Mapping[str, Any], data: bytes) -> None:
    """That a body has the MD5 that the ETag states.

    Raises:
        DamagedBodyError: it has not.
    """
    if md5(data) != etag(answer):
        raise DamagedBodyError(f"{len(data):,} bytes with MD5 {md5(data)}, the ETag is {etag(answer)}", data)


def etag_is_md5(answer: Mapping[str, Any], bucket: str) -> bool:
    """Whether the ETag is the MD5 of the content.

    It is not after an upload in parts or encryption with keys of one's own, nor in directory buckets (`--x-s3`).
    """
    encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
    return bool(_MD5.fullmatch(etag(answer))) and not encrypted and not bucket.endswith("--x-s3")


def etag(answer: Mapping[str, Any]) -> str:
    """The ETag of an answer without its quotes."""
    return str(answer.get("ETag", "")).strip('"')


def md5(data: bytes) -> str:
    """MD5 as S3 writes it into ETags."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
