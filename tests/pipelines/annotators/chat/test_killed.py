"""kill -9 in the middle of asking: no answer that was kept is paid for again."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from chat_server import Request, chat_server, good

from pipelines.annotators.base import Annotation, PairToAnnotate
from pipelines.annotators.chat.annotator import ChatAnnotator

CONCURRENCY = 6
ASK = """
import pickle, sys
from pipelines.annotators.chat.annotator import ChatAnnotator
setting, pairs = pickle.load(open(sys.argv[1], "rb"))
ChatAnnotator(setting).annotate(pairs, 0)
"""


def test_no_answer_that_was_kept_is_asked_for_again(
    make_annotator: Callable[..., ChatAnnotator],
    make_pairs: Callable[..., list[PairToAnnotate]],
    tmp_path: Path,
) -> None:
    pairs = make_pairs(9)  # 72 of them
    process: list[subprocess.Popen[bytes]] = []

    def kills(request: Request) -> str:
        if request.number == 40:
            os.kill(process[0].pid, signal.SIGKILL)
        return good(request)

    with chat_server(kills, latency_s=0.05) as server:
        annotator = make_annotator(server.url, concurrency=CONCURRENCY)
        job = tmp_path / "job"
        job.write_bytes(pickle.dumps((annotator.setting, pairs)))
        process.append(subprocess.Popen([sys.executable, "-c", ASK, str(job)]))
        assert process[0].wait(60) == -signal.SIGKILL
        kept = len(list((tmp_path / "kept").rglob("*.json")))
        asked_before = len(server.requests)
        assert asked_before - 2 * CONCURRENCY <= kept <= asked_before
        assert kept > 20
        answers = annotator.annotate(pairs, 0)
        assert len(server.requests) == asked_before + len(pairs) - kept
    assert all(isinstance(a, Annotation) for a in answers)
    times = Counter(r.digest for r in server.requests)
    assert len(times) == len(pairs)
    # twice: only what was in flight, or arrived and was not yet written
    assert sum(n - 1 for n in times.values()) == asked_before - kept <= 2 * CONCURRENCY
