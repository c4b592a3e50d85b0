"""The processor time of one read of an image: of a local file and of an object on S3 (moto's server, loopback).

python -m benchmarks.reads

Latency on loopback says nothing of S3's; what the client computes for a GET is the same.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result

OBJECTS, ROUNDS, OBJECT_BYTES = 200, 10, 61_000


def main() -> None:
    """Measure and write results/reads.json."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        _await(port)
        rows = {"s3": _measure("s3://volume"), "local": _measure(None)}
    finally:
        server.terminate()
        server.wait()
    result = {"command": "python -m benchmarks.reads", "object_bytes": OBJECT_BYTES, "cpu_ms_a_read": rows}
    print(result, write_result("reads", result))


def _await(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)


def _measure(bucket: str | None) -> dict[str, Any]:
    """CPU milliseconds of a read, with as many in flight as collecting has."""
    from infra.base import storage
    from pipelines.collect import READ_AHEAD

    with tempfile.TemporaryDirectory() as folder:
        if bucket:
            storage.filesystem(bucket)[0].mkdir(bucket.removeprefix("s3://"))
        urls = [storage.join(bucket or str(Path(folder)), f"{n:04d}.jpg") for n in range(OBJECTS)]
        for url in urls:
            storage.write_bytes(url, os.urandom(OBJECT_BYTES))
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            assert all(len(data) == OBJECT_BYTES for data in pool.map(storage.read_bytes, urls))
            began, busy = time.perf_counter(), time.process_time()
            for _ in range(ROUNDS):
                for _ in pool.map(storage.read_bytes, urls):
                    pass
            spent, seconds = time.process_time() - busy, time.perf_counter() - began
    reads = OBJECTS * ROUNDS
    return {"cpu_ms": round(spent / reads * 1e3, 3), "reads_per_s_on_loopback": round(reads / seconds)}


if __name__ == "__main__":
    main()
