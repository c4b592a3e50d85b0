"""What a step costs while a checkpoint is written: none under way, one in the background, and waiting for it.

python -m benchmarks.checkpointing [--saves 4] [--hidden 768] [--folder DIR]

One worker (DeepSpeed ZeRO-2, one thread) trains on frozen tokens; its state goes to a local disk and to S3 (moto in a
process of its own, on loopback, which takes the other core). A save under way may outlast several steps, all of which
are counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result

ROWS, WARM, QUIET_STEPS = 8, 3, 12
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(":".join(map(str, server.get_host_and_port())), flush=True)
sys.stdin.read()
"""


@contextmanager
def s3() -> Iterator[str]:
    """The URL of a bucket on a server of its own."""
    import boto3  # type: ignore[import-untyped]

    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    url = f"http://{server.stdout.readline().strip()}"
    os.environ |= {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    try:
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="checkpoints")
        yield "s3://checkpoints"
    finally:
        server.kill()
        server.wait()


class Training:
    """A worker and its batch."""

    def __init__(self, hidden: int) -> None:
        import torch
        import torch.distributed as dist

        from benchmarks.communication import batch_of
        from training.config import TrainRecipe
        from training.engine import Engine
        from training.model.auto import random_model
        from training.model.config import preset
        from training.task import ContrastiveTask

        torch.set_num_threads(1)
        os.environ |= {"LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}
        dist.init_process_group("gloo", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
        sizes: dict[str, Any] = {
            "qformer.hidden_size": hidden, "qformer.num_hidden_layers": 2, "qformer.intermediate_size": 4 * hidden,
            "qformer.num_attention_heads": 4,
        }  # fmt: skip
        model = random_model(preset("tiny", "adafocal", **sizes), seed=0, with_tower=False).train()
        recipe = TrainRecipe.model_validate({"training": {"batch_size": ROWS}, "scaling": {"workers": 1}})
        self.engine = Engine(ContrastiveTask(model), recipe)
        self.batch = batch_of(model.config, ROWS, ROWS)
        self.done = 0

    def step(self) -> float:
        """Seconds of a step."""
        from training.meters import Parts

        began = time.perf_counter()
        self.engine.step(self.batch, self.done, 10_000, Parts())
        self.done += 1
        return time.perf_counter() - began


def measure(training: Training, run_url: str, saves: int) -> dict[str, Any]:
    """Step times at one place."""
    from training.checkpoints import CheckpointWriter

    writer = CheckpointWriter(run_url, 0, 1, 2)
    quiet, during, stalls, writes, waits = [], [], [], [], []
    for _ in range(saves):
        quiet += [training.step() for _ in range(QUIET_STEPS)]
        stalls.append(_timed(lambda: writer.save(training.done, training.engine.state())))
        while writer.busy:
            during.append(training.step())
        writer.wait()
        writes.append(writer.last_s)
        waits.append(_timed(lambda: _save_and_wait(writer, training)))
        training.step()
    writer.close()
    return {
        "ms_of_a_step": round(1000 * statistics.median(quiet), 1),
        "ms_of_a_step_during_a_write": round(1000 * statistics.median(during), 1),
        "times_slower_during_a_write": round(statistics.median(during) / statistics.median(quiet), 3),
        "steps_during_a_write": round(len(during) / saves, 1),
        "ms_of_save": round(1000 * statistics.median(stalls), 1),
        "ms_of_a_write_behind_the_steps": round(1000 * statistics.median(writes), 1),
        "ms_of_waiting_for_one": round(1000 * statistics.median(waits), 1),
        "lost_ms_of_a_checkpoint": round(
            1000 * (statistics.median(stalls) + sum(during) / saves - len(during) / saves * statistics.median(quiet)), 1
        ),
    }  # fmt: skip


def _save_and_wait(writer: Any, training: Training) -> None:
    writer.save(training.done, training.engine.state())
    writer.wait()


def _timed(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def main() -> None:
    """Measure both places, print, write results/checkpointing.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=768, help="width of the two layers")
    parser.add_argument("--folder", type=Path, help="of the local disk; default a temporary one")
    options = parser.parse_args()
    training = Training(options.hidden)
    for _ in range(WARM):
        training.step()
    state = sum(t.numel() * t.element_size() for t in training.engine.state().values())
    places: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, s3() as bucket:
        for name, url in (("local disk", folder), ("S3", f"{bucket}/run")):
            places[name] = measure(training, url, options.saves)
            print(f"{name:10} {places[name]}", flush=True)
    path = write_result(
        "checkpointing",
        {
            "command": " ".join(["python -m benchmarks.checkpointing", *sys.argv[1:]]),
            "setting": {
                "checkpoint_mb": round(state / 1e6, 1), "batch": ROWS, "threads": 1, "saves": options.saves,
                "load_average": [round(v, 2) for v in os.getloadavg()],
            },
            "places": places,
        },
    )  # fmt: skip
    print(f"written to {path}")


if __name__ == "__main__":
    main()
