"""Time, memory and arithmetic of the Q-Former's training step at real size, against the straightforward version.

python -m benchmarks.qformer [--batch 8] [--rounds 5]

Every row is two or more ways to the same numbers: their equality is asserted first, then their steps are timed in turns
in one process, and the peak memory of each is taken in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain
from benchmarks.machine import write_result
from training.losses import info_nce
from training.model import qformer
from training.model.adafocal import AdaFocalModel
from training.model.auto import random_model
from training.model.config import AdaFocalConfig, preset
from training.scoring import max_over_set

MEAN_PIECES, SPREAD_PIECES = 25, 4
"""Word pieces of a modification text with [CLS] and [SEP]: 20.2 words on the mean in OACIRR."""
GRADIENT_TOLERANCE = 2e-3
"""Of a gradient's norm, in float32; a gradient that is rounding noise is measured by the largest one."""

PEAK_RUNS = 3
"""Processes per way, of whose peaks the median counts."""

Step = Callable[[], Tensor]


class Batch(NamedTuple):
    """Tokens [B, N, D] of references and targets, texts [B, L] padded to the model's most, patch masks [B, N]."""

    reference: Tensor
    target: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    patch_mask: Tensor


def make_batch(config: AdaFocalConfig, size: int, device: str) -> Batch:
    """Random tokens, texts of real length, boxes of random size; the same on every call."""
    generator = torch.Generator().manual_seed(0)
    longest, grid = config.max_text_tokens, config.image_size // config.patch_size
    tokens = torch.randn(
        2, size, config.num_image_tokens, config.vision_config.hidden_size, generator=generator
    )
    pieces = MEAN_PIECES + SPREAD_PIECES * torch.randn(size, generator=generator)
    lengths = pieces.round().clamp(min(4, longest), longest).long()
    mask = torch.arange(longest)[None] < lengths[:, None]
    ids = torch.randint(5, config.qformer.vocab_size, (size, longest), generator=generator) * mask
    regions = torch.zeros(size, grid, grid)
    for region in regions:
        top, left = (int(v) for v in torch.randint(0, max(grid // 2, 1), (2,), generator=generator))
        height, width = (int(v) for v in torch.randint(1, grid // 2 + 2, (2,), generator=generator))
        region[top : top + height, left : left + width] = 1
    patch_mask = F.pad(regions.flatten(1), (1, 0))
    return Batch(*(t.to(device) for t in (tokens[0], tokens[1], ids, mask.long(), patch_mask)))


# The variants of a step: each returns the loss


def plain_step(model: AdaFocalModel, batch: Batch) -> Tensor:
    """The straightforward version."""
    query = plain.encode_query(model, batch.reference, *batch[2:])
    return _loss(model, plain.scores(query, plain.encode_target(model, batch.target)))


def our_step(model: AdaFocalModel, batch: Batch) -> Tensor:
    """The model as it trains; texts padded to the longest of the batch, as the loader gives them."""
    longest = int(batch.attention_mask.sum(1).max())
    ids, mask = batch.input_ids[:, :longest], batch.attention_mask[:, :longest]
    query = model.encode_query(batch.reference, ids, mask, batch.patch_mask)
    return _loss(model, max_over_set(query.embedding, model.encode_target(batch.target)))


def projected_step(model: AdaFocalModel, batch: Batch) -> Tensor:
    """Ours, but image tokens are projected to keys and values in every pass; SDPA with the bias as additive mask."""
    with _projected_cross_attention(shared=False):
        return our_step(model, batch)


def shared_step(model: AdaFocalModel, batch: Batch) -> Tensor:
    """As `projected_step`, but the reference's keys and values serve the probe pass and the query pass."""
    with _projected_cross_attention(shared=True):
        return our_step(model, batch)


def _loss(model: AdaFocalModel, scores: Tensor) -> Tensor:
    return info_nce(scores, model.temperature, torch.arange(len(scores), device=scores.device))


STEPS: dict[str, Callable[[AdaFocalModel, Batch], Tensor]] = {
    "straightforward": plain_step,
    "ours": our_step,
    "keys and values per pass, SDPA": projected_step,
    "keys and values shared, SDPA": shared_step,
}


@contextmanager
def _projected_cross_attention(shared: bool) -> Iterator[None]:
    """The Q-Former's cross-attention on explicit keys and values instead of absorbed queries."""
    kept: dict[tuple[int, ...], Any] = {}

    def once(key: tuple[int, ...], make: Callable[[], Any]) -> Any:
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def forward(self: Any, rows: Tensor, image: qformer.ImageMemory, bias: Tensor | None, _: None) -> Tensor:
        # the memory is kept beside what is made of it: a freed one's id could come back
        _, tokens = once((id(image),), lambda: (image, image.standardised * image.scale + image.shift))

        def heads(states: Tensor) -> Tensor:
            return states.view(*states.shape[:2], self.heads, self.head_width).transpose(1, 2)

        def project() -> tuple[Tensor, Tensor]:
            return heads(self.key(tokens)), heads(self.value(tokens))

        key, value = once((id(image), id(self)), project) if shared else project()
        context = F.scaled_dot_product_attention(heads(self.query(rows)), key, value, bias)
        return context.transpose(1, 2).flatten(2)

    original = qformer._CrossProjections.forward
    qformer._CrossProjections.forward = forward  # type: ignore[method-assign,assignment]  # for one step
    try:
        yield
    finally:
        qformer._CrossProjections.forward = original  # type: ignore[method-assign]


def target_steps(model: AdaFocalModel, batch: Batch) -> dict[str, Step]:
    """Targets of which every fourth repeats an earlier one: encoded row by row, or once each."""
    rows = torch.arange(len(batch.target), device=batch.target.device)
    source = torch.where(rows % 4 == 3, rows - 3, rows)
    tokens = batch.target[source]
    distinct = tokens[rows % 4 != 3]
    place = source - source // 4  # of each row's target among the distinct
    weights = torch.randn(
        len(rows),
        model.config.num_query_tokens,
        model.config.embed_dim,
        generator=torch.Generator().manual_seed(1),
    ).to(tokens)

    def every_row() -> Tensor:
        return (model.encode_target(tokens) * weights).sum()

    def once_each() -> Tensor:
        return (model.encode_target(distinct)[place] * weights).sum()

    return {"every row": every_row, "distinct targets once": once_each}


def score_steps(queries: Tensor, targets: Tensor) -> dict[str, Step]:
    """Max over the set and its gradients: one broadcast product, one matrix product, or chunks of it."""
    labels = torch.arange(len(queries), device=queries.device)

    def whole() -> Tensor:
        return torch.einsum("qd,tmd->qtm", queries, targets).max(dim=-1).values

    ways: dict[str, Step] = {
        "broadcast product": lambda: plain.scores(queries, targets),
        "one product": whole,
        "chunks": lambda: max_over_set(queries, targets),
    }
    if not queries.requires_grad:  # a gallery: the broadcast copy of its targets would not fit
        ways.pop("broadcast product")
        return {name: lambda way=way: way() for name, way in ways.items()}  # type: ignore[misc]  # early binding
    return {name: lambda way=way: info_nce(way(), 0.07, labels) for name, way in ways.items()}  # type: ignore[misc]


# Measuring


class Subject(NamedTuple):
    """Ways to the same result; what has gradients is in `leaves`. The first way is the baseline."""

    steps: dict[str, Step]
    leaves: list[Tensor]


def subject(row: str, size: int, device: str, config: AdaFocalConfig | None = None) -> Subject:
    """Everything one row of the result needs, built anew.

    Args:
        row: one of `ROWS`.
        size: samples in the batch.
        device: "cpu" or "cuda".
        config: of the model; None is the paper's (ViT-G's tokens, without the tower).
    """
    if row.startswith("scores"):
        # the paper's training batch with gradients, or a part of one domain's gallery without
        queries, targets = (128, 128) if row == "scores of a training batch" else (2000, 5000)
        generator = torch.Generator().manual_seed(0)
        q = F.normalize(torch.randn(queries, 256, generator=generator), dim=-1).to(device)
        t = F.normalize(torch.randn(targets, 32, 256, generator=generator), dim=-1).to(device)
        leaves = [q.requires_grad_(), t.requires_grad_()] if queries == 128 else []
        return Subject(score_steps(q, t), leaves)
    model = random_model(config or preset("vit_g"), seed=0, with_tower=False).to(device)
    batch = make_batch(model.config, size, device)
    leaves = [p for p in model.parameters() if p.requires_grad]
    if row == "repeated targets":
        return Subject(target_steps(model, batch), leaves)
    return Subject({name: lambda s=s: s(model, batch) for name, s in STEPS.items()}, leaves)  # type: ignore[misc]


ROWS = ("step", "repeated targets", "scores of a training batch", "scores of a gallery")


def run(step: Step, leaves: list[Tensor]) -> Tensor:
    """One step: forward, and backward into the leaves' zeroed gradients."""
    value = step()
    if leaves:
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if value.is_cuda:
        torch.cuda.synchronize()
    return value.detach()


def clear(leaves: list[Tensor]) -> None:
    """Zero the gradients, keeping their memory: no way pays for it."""
    for leaf in leaves:
        if leaf.grad is None:
            # zeros_like would leave the pages for the first step to touch
            leaf.grad = torch.empty_like(leaf).zero_()
        else:
            leaf.grad.zero_()


def assert_equal(steps: Mapping[str, Step], leaves: list[Tensor], tolerance: float) -> dict[str, float]:
    """Every way's value and gradients against the first's.

    Returns:
        Each way's largest error: of a gradient, relative to its norm, or of the value where there are none.

    Raises:
        AssertionError: an error above `tolerance`.
    """
    errors: dict[str, float] = {}
    wanted: tuple[Tensor, list[Tensor]] | None = None
    for name, step in steps.items():
        clear(leaves)
        value = run(step, leaves)
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        if wanted is None:
            wanted = value, [g.clone() for g in gradients]
            continue
        largest = max((float(g.norm()) for g in wanted[1]), default=0.0)
        errors[name] = max(
            [float((value - wanted[0]).abs().max() / wanted[0].abs().max())]
            + [
                float((g - w).norm()) / max(float(w.norm()), 1e-4 * largest)
                for g, w in zip(gradients, wanted[1], strict=True)
            ]
        )
        assert errors[name] <= tolerance, f"{name}: differs by {errors[name]:.1e} of the baseline"
    return errors


def flops(step: Step, leaves: list[Tensor]) -> int:
    """Floating-point operations of all matrix products, forward and backward."""
    aten = torch.ops.aten

    def attention(query: Any, key: Any, *_: Any, **__: Any) -> int:
        batch, heads, length, width = query
        return int(4 * batch * heads * length * key[2] * width)

    def attention_backward(_: Any, query: Any, key: Any, *__: Any, **___: Any) -> int:
        return attention(query, key) * 5 // 2  # logits once more, and four products

    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run(step, leaves)
    return counter.get_total_flops()


class Times(NamedTuple):
    """Of one way, by round: seconds that passed, and seconds of processor time of all threads."""

    passed: list[float]
    processor: list[float]


def seconds(steps: Mapping[str, Step], leaves: list[Tensor], rounds: int) -> dict[str, Times]:
    """Every way in turns, one round to warm up: what disturbs the machine disturbs them alike."""
    found = {name: Times([], []) for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            clear(leaves)
            began, processor = time.perf_counter(), time.process_time()
            run(step, leaves)
            if number:
                found[name].passed.append(time.perf_counter() - began)
                found[name].processor.append(time.process_time() - processor)
    return found


def peak_bytes(step: Step, leaves: list[Tensor]) -> int:
    """Most memory of a step beyond what stands before it (weights, gradients, batch); once per process."""
    clear(leaves)
    gc.collect()
    if leaves and leaves[0].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(step, leaves)
        return torch.cuda.max_memory_allocated() - before
    with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123  # sets the high-water mark to now
        file.write("5")
    before = _status("VmHWM")
    run(step, leaves)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    with open("/proc/self/status") as file:  # noqa: PTH123  # a kernel interface, no file
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def measure(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row: equality, operations and seconds here, memory in a process for each way."""
    steps, leaves = subject(row, options.batch, options.device)
    errors = assert_equal(steps, leaves, GRADIENT_TOLERANCE)
    counted = {name: flops(step, leaves) for name, step in steps.items()}
    times = seconds(steps, leaves, options.rounds)
    del leaves
    ways: dict[str, Any] = {}
    for name in steps:
        command = [sys.executable, "-m", "benchmarks.qformer", *options.given, "--peak", row, name]
        peaks = [
            json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            for _ in range(PEAK_RUNS)
        ]
        ways[name] = {
            "seconds": round(statistics.median(times[name].passed), 4),
            "seconds_all": [round(t, 4) for t in times[name].passed],
            "processor_seconds": round(statistics.median(times[name].processor), 4),
            "peak_mib": round(statistics.median(peaks) / 2**20, 1),
            "peak_mib_all": [round(peak / 2**20, 1) for peak in peaks],
            "gflop": round(counted[name] / 1e9, 2),
            **({"largest_error": float(f"{errors[name]:.1e}")} if name in errors else {}),
        }
    base = ways[next(iter(ways))]
    for way in ways.values():
        way["times_faster"] = round(base["seconds"] / way["seconds"], 3)
        way["times_less_processor"] = round(base["processor_seconds"] / way["processor_seconds"], 3)
        way["times_fewer_flop"] = round(base["gflop"] / way["gflop"], 3)
        way["times_less_memory"] = round(base["peak_mib"] / max(way["peak_mib"], 0.1), 2)
    return ways


def show(row: str, ways: Mapping[str, Mapping[str, Any]]) -> None:
    """One row as a table; ratios against its first way."""
    print(
        f"\n{row:32} {'s':>9} {'× faster':>9} {'× less CPU':>11} {'× fewer FLOP':>13} {'peak MiB':>10} "
        f"{'largest error':>14}"
    )
    for name, way in ways.items():
        print(
            f"  {name:30} {way['seconds']:9.4f} {way['times_faster']:9.3f} {way['times_less_processor']:11.3f} "
            f"{way['times_fewer_flop']:13.3f} "
            f"{way['peak_mib']:10.1f} {way.get('largest_error', 0.0):14.1e}"
        )


def main() -> None:
    """Measure every row, print the tables, write results/qformer.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", nargs=2, metavar=("ROW", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.given = [
        "--batch",
        str(options.batch),
        "--threads",
        str(options.threads),
        "--device",
        options.device,
    ]
    torch.set_num_threads(options.threads)
    if options.peak:
        row, way = options.peak
        steps, leaves = subject(row, options.batch, options.device)
        print(peak_bytes(steps[way], leaves))
        return
    load = [os.getloadavg()[0]]
    rows = {}
    for row in ROWS:
        rows[row] = measure(row, options)
        show(row, rows[row])
        load.append(os.getloadavg()[0])
    config = preset("vit_g")
    path = write_result(
        "qformer",
        {
            "command": " ".join(["python -m benchmarks.qformer", *sys.argv[1:]]),
            "setting": {
                "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
                "threads": options.threads,
                "dtype": "float32, no dropout, frozen tokens",
                "batch": options.batch,
                "rounds": options.rounds,
                "word_pieces": make_batch(config, options.batch, "cpu").attention_mask.sum(1).tolist(),
                "load_average": [round(value, 2) for value in load],
            },
            "rows": rows,
        },
    )
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
