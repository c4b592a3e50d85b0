"""The table of docs/reliability.md, from the committed results of the drills of training.

python tests/e2e/training_table.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "drill_training.json"
FAULTS = {
    "worker": "SIGKILL of one worker",
    "workers": "SIGKILL of all workers",
    "sent-away": "SIGTERM to one worker",
    "hang": "SIGSTOP of one worker (`scaling.hang_s` 15)",
    "node": "loss of the Ray node of a worker",
    "drained": "notice that such a node goes, then its loss",
    "driver": "SIGKILL of the driver",
    "term": "SIGTERM to the driver",
    "damaged": "a wrong byte in the newest checkpoint, and SIGKILL of the driver",
    "half": "a part of the newest checkpoint missing, and SIGKILL of the driver",
    "s3": "S3 away, two times in ten for a minute",
    "disk": "disk full; room is made",
    "nan": "a batch that makes the loss NaN; then it is mended",
}
"""Kind of drill → what happens."""


def committed() -> dict[str, list[dict[str, Any]]]:
    """Results by kind; the last of a kind is what counts."""
    found: dict[str, list[dict[str, Any]]] = json.loads(RESULTS.read_text())
    return found


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """A row for each kind, with the drill that had its recovery taken out."""
    lines = [
        "| fault | moments | losses, weights, history | steps done again, at most | seconds until a new step,"
        " mean / most | without the recovery |",
        "|---|---|---|---|---|---|",
    ]
    for kind, what in FAULTS.items():
        cells = ["-"] * 4
        if kind in results:
            last = results[kind][-1]
            same = last["same_losses"] and last["same_content"] and last["steps_once"]
            cells = [
                str(last["moments"]),
                "equal" if same and last["passed"] else "NOT PASSED",
                str(last["lost_at_most"]),
                f"{last['seconds_mean']:.0f} / {last['seconds_at_most']:.0f}",
            ]
        without = results.get(f"{kind}, without", [])
        failed = f"fails ({without[-1]['taken_out']})" if without and not without[-1]["passed"] else "-"
        lines.append(f"| {what} | {' | '.join(cells)} | {failed} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table(committed()) + "\n")
