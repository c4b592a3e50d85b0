"""Peak memory of a training step at real size: the whole batch at once, in micro-batches, with layers computed again.

python -m benchmarks.micro_batches [--batch 64] [--micro_batch 8] [--layers 12] [--device cpu]

Every way runs once in a process of its own and hands over its gradients, which are compared with the first way's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import write_result
from benchmarks.qformer import clear, make_batch, peak_bytes
from training.batches import Batch
from training.gradients import micro_batches, recompute_layers
from training.model.auto import random_model
from training.model.config import preset
from training.task import ContrastiveTask, joined

WAYS: dict[str, dict[str, bool]] = {
    "whole batch": {},
    "micro-batches, negatives of the batch": {"cached": True},
    "micro-batches, negatives of their own": {"accumulated": True},
    "whole batch, layers computed again": {"again": True},
    "micro-batches, negatives of the batch, layers computed again": {"cached": True, "again": True},
}
SAME_LOSS = [name for name, way in WAYS.items() if "accumulated" not in way]
NO_DROPOUT: dict[str, Any] = dict.fromkeys(
    ("qformer.hidden_dropout_prob", "qformer.attention_probs_dropout_prob", "crm_dropout"), 0.0
)
"""Masks are drawn per forward; without them all ways with the same negatives have the same gradients."""
GRADIENT_TOLERANCE = 1e-4
"""Of the norm of all gradients as one vector, in float32."""


def measure(way: str, options: argparse.Namespace, out: Path) -> None:
    """One way, in this process; the figures go to standard output, the gradients to a file."""
    how = WAYS[way]
    config = preset("vit_g", **NO_DROPOUT, **{"qformer.num_hidden_layers": options.layers})
    model = random_model(config, seed=0, with_tower=False).to(options.device).train()
    if how.get("again"):
        recompute_layers(model)
    task = ContrastiveTask(model, micro_batch=options.micro_batch if how.get("cached") else None)
    given = make_batch(model.config, options.batch, options.device)
    index = torch.arange(options.batch, device=options.device)
    batch = Batch(
        given.reference, given.target, index, given.input_ids, given.attention_mask, given.patch_mask,
        modulate=True, total=options.batch,
    )  # fmt: skip
    size = options.micro_batch if how.get("accumulated") else None
    leaves: list[Tensor] = [p for p in model.parameters() if p.requires_grad]

    def step() -> Tensor:
        """Its own backward passes; a value without a graph remains for `peak_bytes`."""
        outputs = []
        for piece in micro_batches(batch, size, world_size=1):
            output = task(piece)
            (output.objective * (piece.total / options.batch)).backward()
            outputs.append(output._replace(objective=output.objective.detach()))
        return (joined(outputs).loss_sum / options.batch).requires_grad_()

    clear(leaves)
    began, processor = time.perf_counter(), time.process_time()
    peak = peak_bytes(step, leaves)
    told = {
        "peak_mib": round(peak / 2**20, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
    }
    torch.save([leaf.grad for leaf in leaves], out)
    print(json.dumps(told))


def compared(found: Path, wanted: Path) -> float:
    """Distance of two files of gradients, relative to the second's norm."""
    pairs = list(zip(*(torch.load(p, weights_only=True, mmap=True) for p in (found, wanted)), strict=True))
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return float((apart / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5)


def main() -> None:
    """Measure every way, print the table, write results/micro_batches.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro_batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12, help="of the Q-Former; 12 is real")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.way:
        measure(options.way[0], options, Path(options.way[1]))
        return
    ways: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        first, other = Path(folder) / "first.pt", Path(folder) / "other.pt"
        for name in WAYS:
            out = other if ways else first
            command = [
                sys.executable,
                "-m",
                "benchmarks.micro_batches",
                *sys.argv[1:],
                "--way",
                name,
                str(out),
            ]
            ways[name] = json.loads(
                subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            )
            base = ways["whole batch"]
            ways[name]["times_less_memory"] = round(base["peak_mib"] / ways[name]["peak_mib"], 2)
            ways[name]["times_processor"] = round(
                ways[name]["processor_seconds"] / base["processor_seconds"], 2
            )
            if name in SAME_LOSS and out is other:
                error = compared(other, first)
                assert error <= GRADIENT_TOLERANCE, f"{name}: gradients differ by {error:.1e}"
                ways[name]["gradient_error"] = float(f"{error:.1e}")
            print(f"{name:62} {ways[name]}", flush=True)
    path = write_result(
        "micro_batches",
        {
            "command": " ".join(["python -m benchmarks.micro_batches", *sys.argv[1:]]),
            "setting": {
                "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
                "threads": options.threads,
                "dtype": "float32, no dropout, frozen tokens, ViT-G's sizes",
                "batch": options.batch,
                "micro_batch": options.micro_batch,
                "layers": options.layers,
                "peak": "beyond weights, their gradients and the batch",
            },
            "ways": ways,
        },
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
