"""S3 as a file system: s3fs with one retry around every call, bounded by the clock, and a check of every body.

botocore counts tries, and its shared quota gives up when many calls fail at once; s3fs counts again around it, and so
multiplies; neither reads the range of a large object again that was cut, and no count outlasts a store that is
restarted. So both are told to try once, and the retry here is the only one.
"""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import math
import os
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import s3fs
from botocore import exceptions as boto
from fsspec.asyn import sync_wrapper

from infra.base import s3_failures as failures
from infra.base.errors import OacirError
from infra.base.s3_failures import DamagedBodyError, StoreLost

PATIENCE = "OACIR_S3_PATIENCE_S"
DEFAULT_PATIENCE_S, MOST_PATIENCE_S = 60.0, 3600.0
CONNECT_S, SILENCE_S, TRY_S = 10, 30, 300
"""How long a connection may take, how long a connected store may say nothing, and how long one try may last in all."""
PIECE_BYTES, MOST_PIECES, PIECES_AT_ONCE = 8 << 20, 10_000, 4
"""Large objects come and go in pieces; S3 allows so many parts of an upload."""
FIRST_PAUSE_S, LONGEST_PAUSE_S, ABORT_S, TOLD_EVERY_S = 0.1, 5.0, 5.0, 10.0
_log = logging.getLogger(__name__)
_told_s = -math.inf


def file_system() -> PatientS3:
    """The file system of the endpoint that the environment names: one per process, endpoint and patience.

    Raises:
        OacirError: the patience is no number of seconds within its bounds.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return PatientS3(patience_s=patience_s(), endpoint_url=endpoint)


def patience_s() -> float:
    """Seconds for which a failing call is tried again, from the environment; 0 is a single try."""
    said = os.environ.get(PATIENCE) or str(DEFAULT_PATIENCE_S)
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MOST_PATIENCE_S:
        raise OacirError(
            f"{PATIENCE}={said}: no number of seconds from 0 to {MOST_PATIENCE_S:g} for which a failing store is"
            f" asked again; set another, or none for {DEFAULT_PATIENCE_S:g}"
        )
    return seconds


class PatientS3(s3fs.S3FileSystem):
    """s3fs whose calls are tried again until patience is over, and whose bodies are read whole and checked.

    Of what lies there nothing is remembered: other processes write to the same folders.
    """

    retries = 1
    default_block_size = PIECE_BYTES

    def __init__(self, *, patience_s: float, **options: Any) -> None:
        options.setdefault("use_listings_cache", False)
        options.setdefault(
            "config_kwargs",
            {
                "retries": {"total_max_attempts": 1, "mode": "standard"},
                "connect_timeout": CONNECT_S,
                "read_timeout": SILENCE_S,
                "tcp_keepalive": True,
            },
        )
        super().__init__(**options)
        self.patience_s = patience_s

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        # An upload that could not be finished is mostly dropped because the store is gone: no second wait for it.
        patience = min(self.patience_s, ABORT_S) if method == "abort_multipart_upload" else self.patience_s
        tries, began_s, last = 0, math.inf, None
        if isinstance(kwargs.get("Body"), memoryview):
            # its client takes bytes alone: a piece at a time, since no other thread runs while they are copied
            kwargs["Body"] = bytes(kwargs["Body"])
        while True:
            try:
                async with asyncio.timeout(TRY_S):
                    answer = await super()._call_s3(method, *akwarglist, **kwargs)
                    return await self._checked(method, kwargs, answer)
            except Exception as error:
                failure: Exception = error
            if (done := await self._done_before(method, kwargs, failure)) is not None:
                return done
            if not failures.is_transient(failure):
                raise failure
            if isinstance(failure, DamagedBodyError):
                kwargs.pop("IfNoneMatch", None)  # what lies there now is ours, and is not what we sent
                if (
                    failure.read is not None and failure.read == last
                ):  # twice: this store's ETags are other hashes
                    return {"Body": _Held(last), "ContentLength": len(last)}
                last = failure.read if method == "get_object" else None
            now_s = time.monotonic()
            began_s, tries = min(began_s, now_s), tries + 1
            left_s = began_s + patience - now_s
            if left_s <= 0:
                told = f"tried for {patience:g} s, the last of {tries}: {failures.reason(failure)}"
                raise StoreLost(errno.EIO, told) from failure
            _tell(failure, left_s)
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (tries - 1)) * random.uniform(0.5, 1)
            await asyncio.sleep(min(pause_s, left_s))

    call_s3 = sync_wrapper(_call_s3)

    async def _checked(self, method: str, kwargs: dict[str, Any], answer: Any) -> Any:
        """The answer with its body read and checked; of an upload, with what is stored checked."""
        if method == "get_object":
            try:
                data = bytes(await answer["Body"].read())
            finally:
                answer["Body"].close()
            failures.check_length(answer, data, kwargs.get("Range"))
            if "Range" not in kwargs and failures.etag_is_md5(answer, kwargs["Bucket"]):
                failures.check_hash(answer, data)
            answer["Body"] = _Held(data)
        elif method in ("put_object", "upload_part") and kwargs.get("Body"):
            if failures.etag_is_md5(answer, kwargs["Bucket"]):
                await self._check_stored(method, kwargs, answer)
            elif method == "put_object":
                await self._check_size(kwargs["Bucket"], kwargs["Key"], len(kwargs["Body"]))
        elif method == "delete_objects" and answer.get("Errors"):
            raise boto.ClientError({"Error": answer["Errors"][0]}, "DeleteObjects")
        return answer

    async def _check_stored(self, method: str, kwargs: dict[str, Any], answer: Any) -> None:
        try:
            failures.check_hash(answer, kwargs["Body"])
        except DamagedBodyError:
            if method == "put_object":
                with suppress(Exception):  # whatever it is: it is sent again then
                    there = await super()._call_s3("get_object", Bucket=kwargs["Bucket"], Key=kwargs["Key"])
                    if await there["Body"].read() == kwargs["Body"]:  # this store's ETags are other hashes
                        return
            raise

    async def _done_before(self, method: str, kwargs: dict[str, Any], failure: Exception) -> Any:
        """What an earlier try of the same call did although its answer was lost; None where it did nothing.

        Not only a try of ours: aiohttp sends a PUT again by itself when a connection that it kept is cut.
        """
        codes, place = failures.codes(failure), {k: kwargs[k] for k in ("Bucket", "Key") if k in kwargs}
        if method == "put_object" and kwargs.get("IfNoneMatch") and "PreconditionFailed" in codes:
            there = await self._call_s3("get_object", **place)
            return there if await there["Body"].read() == kwargs["Body"] else None
        if method == "abort_multipart_upload" and "NoSuchUpload" in codes:
            return {}
        if method == "complete_multipart_upload" and "NoSuchUpload" in codes:
            parts = [part["ETag"].strip('"') for part in kwargs["MultipartUpload"]["Parts"]]
            with suppress(FileNotFoundError, ValueError):  # nothing is there, or its ETags are other hashes
                there = await self._call_s3("head_object", **place)
                whole = failures.md5(b"".join(map(bytes.fromhex, parts)))
                return there if failures.etag(there) == f"{whole}-{len(parts)}" else None
        return None

    async def _pipe_file(self, path: str, data: bytes | memoryview, **kwargs: Any) -> Any:
        chunk = _part_bytes(len(data))
        answer = await super()._pipe_file(path, data, **{"chunksize": chunk} | kwargs)
        await self._finish(path, len(data), chunk)
        return answer

    async def _put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        size = Path(lpath).stat().st_size
        await super()._put_file(lpath, rpath, **kwargs | {"chunksize": _part_bytes(size)})
        await self._finish(rpath, size, _part_bytes(size))

    async def _finish(self, path: str, size: int, part_bytes: int) -> None:
        """After an upload in parts: check what is stored, and drop the parts that killed uploads of it left."""
        if size < 2 * part_bytes:  # s3fs sent it in one piece
            return
        bucket, key, _ = self.split_path(path)
        await self._check_size(bucket, key, size)
        with suppress(OSError):  # a store that does not list them, or not for these keys
            found = await self._call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
            for upload in found.get("Uploads", []):
                if upload["Key"] == key:
                    await self._abort_mpu(bucket, key, upload["UploadId"])

    async def _check_size(self, bucket: str, key: str, size: int) -> None:
        there = await self._call_s3("head_object", Bucket=bucket, Key=key)
        if there["ContentLength"] != size:
            raise DamagedBodyError(f"{size:,} bytes sent, {there['ContentLength']:,} are stored")

    async def _get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        """Copy to a local file piece by piece, all of one state of the object."""
        bucket, key, _version = self.split_path(rpath)
        try:
            there = await self._call_s3("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:  # of a bucket or of an object: a HEAD has no words for it
            there = await self._call_s3("get_object", Bucket=bucket, Key=key)
        size, state = there["ContentLength"], {"Bucket": bucket, "Key": key, "IfMatch": there["ETag"]}

        async def piece(start: int) -> bytes:
            last = min(start + PIECE_BYTES, size) - 1
            answer = await self._call_s3("get_object", Range=f"bytes={start}-{last}", **state)
            return bytes(await answer["Body"].read())

        with Path(lpath).open("wb") as file:
            step = PIECES_AT_ONCE * PIECE_BYTES
            for begin in range(0, size, step):
                starts = range(begin, min(begin + step, size), PIECE_BYTES)
                pieces = [asyncio.create_task(piece(start)) for start in starts]
                try:
                    for data in await asyncio.gather(*pieces):
                        file.write(data)
                finally:
                    for task in pieces:
                        task.cancel()


class _Held:
    """A body in memory, with the methods of one that is read from the wire."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    async def read(self, amount: int = -1) -> bytes:
        return self._stream.read(amount)

    def close(self) -> None:
        self._stream.close()


def _part_bytes(size: int) -> int:
    """Bytes of a part; s3fs sends what is twice as large, or larger, in parts."""
    return max(PIECE_BYTES, math.ceil(size / MOST_PIECES))


def _tell(failure: Exception, left_s: float) -> None:
    """Say now and then that the store is waited for: a thousand calls may wait at once."""
    global _told_s  # noqa: PLW0603 - one voice per process
    if time.monotonic() - _told_s >= TOLD_EVERY_S:
        _told_s = time.monotonic()
        _log.warning("S3 fails (%s); asking again for up to %.0f s", failures.reason(failure), left_s)
