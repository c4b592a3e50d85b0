"""A small model, a global batch of it, and real processes in one gloo group to compute its gradients on."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.batches import Batch
from training.distributed import share
from training.model.adafocal import AdaFocalModel
from training.model.auto import random_model
from training.model.config import preset

ROWS = 11
"""Not divisible by 2 or 4: shares differ by a row."""
Gradients = dict[str, Tensor]
VARIANTS: dict[str, dict[str, Any]] = {
    "scalar": {},
    "vector": {"modulation": "vector"},
    "fixed": {"modulation": "fixed", "fixed_beta": 2.0},
    "none": {"modulation": "none"},
    "mlp": {"crm": "mlp", "trainable_probes": False},
    "average, bias of the paper": {"crm": "average", "bias_scale": "paper", "trainable_queries": False},
    "SPRC": {"method": "sprc", "modulation": "none"},
    "SPRC†": {"method": "sprc", "modulation": "scalar"},
}
"""Every variant of the model, as what it has otherwise than the first."""


def small_model(
    dtype: torch.dtype,
    method: str = "adafocal",
    dropout: float = 0.0,
    with_tower: bool = False,
    **changed: Any,
) -> AdaFocalModel:
    """Two layers, every kind of parameter; without dropout, whose masks would differ between world sizes."""
    sizes = {
        "vision_config.hidden_size": 16, "vision_config.num_attention_heads": 2, "vision_config.image_size": 28,
        "qformer.hidden_size": 16, "qformer.num_attention_heads": 2, "qformer.num_hidden_layers": 2,
        "qformer.intermediate_size": 16, "qformer.vocab_size": 20, "num_query_tokens": 3, "num_probe_tokens": 2,
        "embed_dim": 8, "crm_heads": 2, "crm_layers": 1, "crm_feedforward": 16, "beta_hidden": 8,
        "qformer.hidden_dropout_prob": dropout, "qformer.attention_probs_dropout_prob": dropout,
        "crm_dropout": dropout, **changed,
    }  # fmt: skip
    return random_model(preset("tiny", method, **sizes), seed=1, with_tower=with_tower).to(dtype).train()


def variant(name: str, **changed: Any) -> AdaFocalModel:
    """One of `VARIANTS` in float64."""
    return small_model(torch.float64, **(VARIANTS[name] | changed))


def global_batch(dtype: torch.dtype) -> dict[str, Tensor]:
    """Boxes in the first rows only, so that the last worker has none: it must not skip the CAAM alone.

    The targets of rows 0 and 1 are one image, and those of rows 2 and 10, which different workers have.
    """
    generator = torch.Generator().manual_seed(5)
    references, targets = torch.randn(2, ROWS, 17, 16, generator=generator, dtype=dtype)
    targets[1], targets[10] = targets[0], targets[2]
    mask = torch.ones(ROWS, 6, dtype=torch.long)
    mask[::2, 4:] = 0
    regions = (torch.rand(ROWS, 17, generator=generator) > 0.5).to(dtype)
    regions[4:] = 0
    ids = torch.randint(5, 20, (ROWS, 6), generator=generator)
    return {
        "reference_tokens": references,
        "target_tokens": targets,
        "input_ids": ids,
        "attention_mask": mask,
        "patch_mask": regions,
    }


TARGET_IMAGES = [0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 2]
"""Of the rows of `global_batch`."""
REFERENCE_IMAGES = [20, 21, 4, 23, 24, 25, 26, 27, 9, 29, 30]
"""Row 2 starts from the target of row 4, row 8 from that of row 9."""
RIGHT_IMAGES = [[own, {3: 9, 9: 3, 4: 7}.get(row, own)] for row, own in enumerate(TARGET_IMAGES)]
"""Rows 3 and 9 may find each other's target, which other workers have, and row 4 that of row 7."""


def part(
    batch: dict[str, Tensor],
    rank: int,
    world_size: int,
    *,
    references: bool = False,
    numbered: bool = False,
    rows: Tensor | None = None,
) -> Batch:
    """A worker's rows, each distinct target once.

    Args:
        batch: the global one.
        rank, world_size: which part.
        references: whether references are encoded as targets too.
        numbered: whether the batch says which images are equal.
        rows: another order of the global batch.
    """
    rows = torch.arange(ROWS) if rows is None else rows
    start, end = share(ROWS, rank, world_size)
    own = {name: tensor[rows][start:end] for name, tensor in batch.items()}
    images = own["target_tokens"]
    if references:
        images = torch.cat([images, own["reference_tokens"]])
    distinct, index = images.unique(dim=0, return_inverse=True)
    own["target_tokens"] = distinct
    result = Batch(
        **own, target_index=index[: end - start], modulate=bool(batch["patch_mask"].any()), total=ROWS
    )
    if references:
        result = result._replace(reference_index=index[end - start :])
    if numbered:
        result = result._replace(
            target_images=torch.tensor(TARGET_IMAGES)[rows],
            reference_images=torch.tensor(REFERENCE_IMAGES)[rows],
            right_images=torch.tensor(RIGHT_IMAGES)[rows][start:end],
        )
    return result


def on_processes(world_size: int, work: Callable[[int], Any]) -> Any:
    """What rank 0's `work` returns, with all ranks in one gloo group.

    A Ray session of this process is ended first: its threads do not survive a fork, and a session that was forked may
    wait for them for ever when it ends. `tests/conftest.py` starts another for the next test that needs one.
    """
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.pt"

        def run(rank: int) -> None:
            faulthandler.enable(2)  # pytest's own lies elsewhere: a crash of a child would show no stack
            torch.set_num_threads(1)
            os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"}
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/meet",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=60),
            )
            found = work(rank)
            if rank == 0:
                torch.save(found, out)
            dist.barrier()
            dist.destroy_process_group()

        processes = [context.Process(target=run, args=(rank,)) for rank in range(world_size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=120)
            if process.is_alive():
                process.kill()
        assert [p.exitcode for p in processes] == [0] * world_size
        return torch.load(out, weights_only=True)


def largest_relative_error(found: Gradients, expected: Gradients) -> float:
    """Over the parameters whose gradient is more than rounding (biases of keys have none, for one)."""
    assert found.keys() == expected.keys()
    errors = {n: float((found[n] - expected[n]).norm() / expected[n].norm()) for n in expected}
    judged = [error for n, error in errors.items() if expected[n].norm() > 1e-12]
    assert len(judged) > len(expected) / 3
    return max(judged)
