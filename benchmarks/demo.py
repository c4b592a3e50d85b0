"""The demo from start to end: seconds per stage, scores, and the peak memory of all its processes.

python -m benchmarks.demo [demo options]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time

from benchmarks.machine import FamilyMemory, write_result


def main() -> None:
    """Run `oacir demo` in an empty folder and write results/demo.json."""
    options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as root, FamilyMemory() as memory:
        command = [sys.executable, "-m", "infra.cli", "demo", "--root", root, "--json", *options]
        began = time.perf_counter()
        done = subprocess.run(
            command, env=memory.environment(), stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = time.perf_counter() - began
    figures = json.loads(done.stdout)
    figures.pop("location")
    figures.pop("message")
    path = write_result(
        "demo",
        {
            "command": " ".join(["oacir", "demo", *options]),
            "seconds_total": round(seconds, 1),
            "peak_pss_gib": round(memory.peak_bytes / 2**30, 2),
            **figures,
        },
    )
    print(f"{seconds:.0f} s, peak {memory.peak_bytes / 2**30:.2f} GiB PSS; written to {path}")


if __name__ == "__main__":
    main()
