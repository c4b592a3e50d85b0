"""Samples per second of training: the released way against ours, same weights, same batches, same losses.

python -m benchmarks.train [--preset scaled] [--batch 16] [--steps 6] [--framework]

The released way sends both images of every quadruple through the frozen tower in every step and makes three eager
passes over padded texts; ours gathers stored tokens with the pipeline's own feed, task and optimizer. Needs torch and
transformers alone; with `--framework` Ray Train + DeepSpeed are held against the bare loop, too (needs all packages).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.machine import write_result
from benchmarks.qformer import MEAN_PIECES, SPREAD_PIECES, flops
from training.batches import QuerySet, Rows, Sampler
from training.feed import Feed, make_batch
from training.losses import info_nce
from training.model.adafocal import AdaFocalModel
from training.model.auto import random_model
from training.model.config import AdaFocalConfig, preset
from training.task import ContrastiveTask

SCALED: dict[str, Any] = {
    "vision_config.hidden_size": 352, "vision_config.num_attention_heads": 4, "vision_config.intermediate_size": 1536,
    "qformer.hidden_size": 192, "qformer.num_attention_heads": 3, "qformer.intermediate_size": 768,
    "crm_feedforward": 512, "beta_hidden": 128,
}  # fmt: skip
"""ViT-G with every width divided by four: all depths, tokens and head widths of the Q-Former as they are."""
PAPER_QUADRUPLES, PAPER_IMAGES, PAPER_EPOCHS = 127_166, 39_495, 20
LOSS_TOLERANCE = 2e-3
"""Of the losses of all steps, ours on float32 tokens against the released way, relative: rounding, grown over the
steps."""
RATE = 1e-5
WARM_UP = 2
"""Steps of each way that are not counted."""


@dataclass(frozen=True)
class Subject:
    """Images, quadruples and their order; the same for every way."""

    config: AdaFocalConfig
    pixels: Tensor
    """[P, 3, S, S]"""
    queries: QuerySet
    sampler: Sampler
    device: torch.device
    precision: torch.dtype


class Tokens:
    """Stored tokens [P, N, D] in memory: what the feed asks of a feature store."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def gather(self, rows: Rows, device: torch.device) -> Tensor:
        """The tokens of those rows, from where they lie."""
        return self.tokens[torch.from_numpy(rows).to(self.tokens.device)].to(device)


class Way(Protocol):
    """A way to train."""

    def step(self) -> Tensor:
        """One optimizer step on the next batch; its loss, not waited for."""
        ...


def make_subject(options: argparse.Namespace) -> Subject:
    """Random images, texts of real length, boxes of random size."""
    config = configuration(options.preset)
    generator = torch.Generator().manual_seed(0)
    side, longest, grid = config.image_size, config.max_text_tokens, config.image_size // config.patch_size
    pixels = torch.randn(options.images, 3, side, side, generator=generator)
    count = options.quadruples
    images = torch.rand(count, options.images, generator=generator).argsort(1)[:, :2].numpy()
    lengths = MEAN_PIECES + SPREAD_PIECES * torch.randn(count, generator=generator)
    lengths = lengths.round().clamp(4, longest).int()
    ids = torch.randint(5, config.qformer.vocab_size, (count, longest), generator=generator).int()
    ids[:, 0] = 2  # padding is 0
    masks = np.zeros((count, grid, grid), bool)
    corners = torch.randint(0, grid // 2, (count, 2), generator=generator).tolist()
    sides = torch.randint(1, grid // 2 + 1, (count, 2), generator=generator).tolist()
    for mask, (top, left), (height, width) in zip(masks, corners, sides, strict=True):
        mask[top : top + height, left : left + width] = True
    patches = np.concatenate([np.zeros((count, 1), bool), masks.reshape(count, -1)], axis=1)
    inside = torch.arange(longest)[None] < lengths[:, None]
    queries = QuerySet(images[:, 0], images[:, 1], (ids * inside).numpy(), lengths.numpy(), patches)
    device = torch.device(options.device)
    sampler = Sampler(np.zeros(count, np.int64), options.batch, seed=0)
    return Subject(config, pixels, queries, sampler, device, getattr(torch, options.precision))


def configuration(name: str) -> AdaFocalConfig:
    """The paper's sizes, or those scaled to a CPU."""
    return preset("vit_g", **SCALED) if name == "scaled" else preset(name)


def new_model(subject: Subject, with_tower: bool) -> AdaFocalModel:
    """The same start for every way, without dropout, which the ways would draw differently."""
    return random_model(subject.config, seed=0, with_tower=with_tower).to(subject.device)


def optimizer_of(model: AdaFocalModel) -> torch.optim.Optimizer:
    """AdamW over what is trained."""
    trained = [p for group in model.trainable_parameters().values() for p in group]
    return torch.optim.AdamW(trained, RATE, betas=(0.9, 0.98), weight_decay=0.05)


class Released:
    """Tower on both images, three eager passes, texts padded to the model's most, the full product of scores."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.model = subject, new_model(subject, with_tower=True)
        self.optimizer = optimizer_of(self.model)
        self.rows = iter(_batches(subject.sampler))
        if subject.precision != torch.float32:
            self.model.tower.to(subject.precision)  # as released: the tower in half precision

    def loss(self, rows: Rows) -> Tensor:
        """The loss of one batch."""
        subject, queries = self.subject, self.subject.queries
        with torch.autocast(
            subject.device.type, subject.precision, enabled=subject.precision != torch.float32
        ):
            reference, target = (
                _tokens(subject, self.model, subject.pixels[torch.from_numpy(images)])
                for images in (queries.reference_rows[rows], queries.target_rows[rows])
            )
            ids = torch.from_numpy(queries.input_ids[rows]).long().to(subject.device)
            lengths = torch.from_numpy(queries.text_lengths[rows]).to(subject.device)
            mask = (torch.arange(ids.shape[1], device=subject.device) < lengths[:, None]).long()
            patches = torch.from_numpy(queries.patch_masks[rows]).float().to(subject.device)
            query = plain.encode_query(self.model, reference, ids, mask, patches).float()
            scores = plain.scores(query, plain.encode_target(self.model, target).float())
        return info_nce(scores.float(), self.model.temperature, _labels(rows, subject.device))

    def step(self) -> Tensor:
        """One optimizer step."""
        return _update(self.optimizer, self.loss(next(self.rows)))


class Ours:
    """Stored tokens through the pipeline's own feed and task."""

    def __init__(self, subject: Subject, tokens: Tensor) -> None:
        self.model = new_model(subject, with_tower=False)
        self.optimizer = optimizer_of(self.model)
        self.task = ContrastiveTask(self.model, subject.precision)
        store: Any = Tokens(tokens)
        self.feed = Feed(store, subject.queries, subject.sampler, 0, 1, subject.device, 0, 10**9)

    def __enter__(self) -> Ours:
        self.feed.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.feed.__exit__()

    def step(self) -> Tensor:
        """One optimizer step."""
        return _update(self.optimizer, self.task(next(self.feed).batch).objective)


def _labels(rows: Rows, device: torch.device) -> Tensor:
    return torch.arange(len(rows), device=device)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    optimizer.step()
    return loss.detach()


def _batches(sampler: Sampler) -> Iterator[Rows]:
    epoch = 0
    while True:
        yield from sampler.batches(epoch)
        epoch += 1


@torch.no_grad()
def store_tokens(subject: Subject, model: AdaFocalModel, batch: int) -> tuple[Tensor, float]:
    """The tokens of all images in float32, and images per second of the tower."""
    parts: list[Tensor] = []
    _wait(subject.device)
    began = time.perf_counter()
    for start in range(0, len(subject.pixels), batch):
        parts.append(_tokens(subject, model, subject.pixels[start : start + batch]))
    _wait(subject.device)
    return torch.cat(parts), len(subject.pixels) / (time.perf_counter() - began)


def _tokens(subject: Subject, model: AdaFocalModel, pixels: Tensor) -> Tensor:
    """Through the tower, in the tower's own precision."""
    return model.encode_pixels(pixels.to(subject.device, next(model.tower.parameters()).dtype)).float()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def losses(way: Way, steps: int) -> list[float]:
    """The losses of some steps."""
    return [float(way.step()) for _ in range(steps)]


def timed(ways: dict[str, Way], steps: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every step of every way, in turns: what disturbs the machine disturbs them alike."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(WARM_UP + steps):
        for name, way in ways.items():
            _wait(device)
            began = time.perf_counter()
            way.step()
            _wait(device)
            if number >= WARM_UP:
                found[name].append(time.perf_counter() - began)
    return found


def shares(subject: Subject) -> dict[str, float]:
    """GFLOP of one quadruple: both images through the tower, and the passes of each way, forward and backward."""
    released = Released(subject)
    rows = np.arange(2)

    def towers() -> Tensor:
        return _tokens(subject, released.model, subject.pixels[:2])

    ours = Ours(subject, torch.zeros(0))
    tokens = _tokens(subject, released.model, subject.pixels[:4])
    few = QuerySet(
        np.array([0, 1]), np.array([2, 3]), subject.queries.input_ids[:2], subject.queries.text_lengths[:2],
        subject.queries.patch_masks[:2],
    )  # fmt: skip
    store: Any = Tokens(tokens)
    batch = make_batch(few, store, rows, 0, 2, subject.device)
    leaves = [p for p in ours.model.parameters() if p.requires_grad]
    whole = flops(lambda: released.loss(rows), [p for p in released.model.parameters() if p.requires_grad])
    tower = flops(towers, [])  # without gradients
    return {
        "tower": tower / 1e9,  # two images: the two of one quadruple
        "released": whole / 2e9 - tower / 1e9,
        "ours": flops(lambda: ours.task(batch).objective, leaves) / 2e9,
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Equality first, then speed; everything that the result says of the two ways."""
    subject = make_subject(options)
    gflop = shares(subject)
    released = Released(subject)
    tokens, tower_rate = store_tokens(subject, released.model, options.batch)
    wanted = losses(released, options.equal_steps)
    with Ours(subject, tokens) as exact:
        found = losses(exact, options.equal_steps)
    errors = [abs(f / w - 1) for f, w in zip(found, wanted, strict=True)]
    tolerance = LOSS_TOLERANCE if subject.precision == torch.float32 else 20 * LOSS_TOLERANCE
    if max(errors) > tolerance:
        raise SystemExit(
            f"losses differ by {max(errors):.1e}, allowed is {tolerance:.0e}: {wanted} and {found}"
        )
    halves = tokens.bfloat16()
    del tokens, exact
    with Ours(subject, halves) as ours:
        ways: dict[str, Way] = {"released": released, "ours": ours}
        seconds = timed(ways, options.steps, subject.device)
        del ways, released  # nor may what they hold count in the peak
        if subject.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        ours.feed.waited_s = 0.0
        began = time.perf_counter()
        for _ in range(options.steps):
            ours.step()
            _wait(subject.device)
        alone = time.perf_counter() - began
        waited = ours.feed.waited_s / alone
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rate = options.batch * options.steps / alone
    peak = options.peak_tflops
    return {
        "gflop_per_quadruple": {name: round(value, 2) for name, value in gflop.items()},
        "tower_share_of_released": round(gflop["tower"] / (gflop["tower"] + gflop["released"]), 4),
        "times_fewer_flop": round((gflop["tower"] + gflop["released"]) / gflop["ours"], 2),
        "losses": {
            "released": [round(v, 6) for v in wanted], "ours on float32 tokens": [round(v, 6) for v in found],
            "largest_relative_error": float(f"{max(errors):.1e}"),
        },
        "seconds_per_step": {name: [round(v, 4) for v in values] for name, values in seconds.items()},
        "samples_per_s": {name: round(options.batch / value, 2) for name, value in median.items()},
        "times_faster": round(median["released"] / median["ours"], 2),
        "ours_alone": {
            "samples_per_s": round(rate, 2),
            "data_wait_share": round(waited, 4),
            "tflops": round(rate * gflop["ours"] / 1e3, 3),
            "mfu": round(rate * gflop["ours"] / 1e3 / peak, 4) if peak else None,
            "peak_gib": (
                round(torch.cuda.max_memory_allocated() / 2**30, 2) if subject.device.type == "cuda" else None
            ),
        },
        "tower_images_per_s": round(tower_rate, 2),
        "projected_hours": {
            "embedding 39,495 images": round(PAPER_IMAGES / tower_rate / 3600, 3),
            f"{PAPER_EPOCHS} epochs of {PAPER_QUADRUPLES:,} quadruples": round(
                PAPER_QUADRUPLES * PAPER_EPOCHS / rate / 3600, 3
            ),
            "the same, released way": round(
                PAPER_QUADRUPLES * PAPER_EPOCHS / (options.batch / median["released"]) / 3600, 3
            ),
        },
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The result in words."""
    gflop, rate = result["gflop_per_quadruple"], result["samples_per_s"]
    print(
        f"a quadruple: tower {gflop['tower']:.1f} GFLOP, passes {gflop['released']:.1f} released, {gflop['ours']:.1f}"
        f" ours; {result['times_fewer_flop']:.1f} x fewer in all"
    )
    print(f"losses agree to {result['losses']['largest_relative_error']:.1e}")
    print(
        f"released {rate['released']:.2f} samples/s, ours {rate['ours']:.2f}: {result['times_faster']:.1f} x faster;"
        f" waits for data {100 * result['ours_alone']['data_wait_share']:.1f} % of the time"
    )
    for what, hours in result["projected_hours"].items():
        print(f"at this size and speed, {what}: {hours:.2f} h")


def main() -> None:
    """Measure, print, write results/train.json (train_<preset>_<device>.json off the CPU)."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--preset", choices=("scaled", "vit_l", "vit_g"), default="vit_g" if cuda else "scaled"
    )
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="bfloat16" if cuda else "float32"
    )
    parser.add_argument("--batch", type=int, default=128 if cuda else 16)
    parser.add_argument("--images", type=int, default=512 if cuda else 64, help="distinct images")
    parser.add_argument("--quadruples", type=int, default=2048 if cuda else 256)
    parser.add_argument("--steps", type=int, default=20 if cuda else 6)
    parser.add_argument("--equal-steps", type=int, default=4, help="steps whose losses are compared")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the model FLOP utilisation")
    parser.add_argument(
        "--framework", action="store_true", help="Ray Train + DeepSpeed against the bare loop, too"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = [os.getloadavg()[0]]
    result = compare(options)
    show(result)
    if options.framework:
        from benchmarks.train_framework import measure

        result["framework"] = measure(options)
    load.append(os.getloadavg()[0])
    name = "train" if options.device == "cpu" else f"train_{options.preset}_{options.device}"
    path = write_result(
        name,
        {
            "command": " ".join(["python -m benchmarks.train", *sys.argv[1:]]),
            "setting": {
                "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
                **{key: getattr(options, key) for key in (
                    "preset", "precision", "batch", "images", "quadruples", "steps", "threads"
                )},
                "note": "random weights, no dropout; pixels in memory (decoding is not counted for the released way)",
                "load_average": [round(value, 2) for value in load],
            },
            **result,
        },
    )  # fmt: skip
    print(f"written to {path}")


if __name__ == "__main__":
    main()
