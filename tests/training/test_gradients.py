"""Micro-batches: GradCache gives the gradients of the whole batch, accumulation those of smaller contrastive batches.

Worked out in float64 on one and on two real processes, and by the real ZeRO engine in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_training import (
    ROWS,
    VARIANTS,
    Gradients,
    global_batch,
    largest_relative_error,
    on_processes,
    part,
    small_model,
    variant,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from training import gradients
from training.batches import Batch
from training.config import TrainRecipe
from training.distributed import share
from training.gradients import encode, micro_batches, recompute_layers
from training.losses import info_nce
from training.model.adafocal import AdaFocalModel
from training.scoring import max_over_set
from training.task import ContrastiveTask, joined
from training.tower_config import TowerSection
from training.towers import prepare_tower

MICRO = 4
"""Of 11 rows on one worker: pieces of 4, 4 and 3; of 6 and 5 on two: two each."""
Found = tuple[float, Tensor | None, Gradients]


def of_task(task: ContrastiveTask, rank: int = 0, world_size: int = 1) -> Found:
    """Global loss, this worker's β and the gradients as data parallelism gets them."""
    torch.manual_seed(3)
    output = task(part(global_batch(torch.float64), rank, world_size))
    output.objective.backward()
    found = {n: p.grad for n, p in task.model.named_parameters() if p.grad is not None}
    loss = output.loss_sum.clone()
    if world_size > 1:
        for gradient in [*found.values(), loss]:
            dist.all_reduce(gradient)
        found = {n: g / world_size for n, g in found.items()}
    return loss.item() / ROWS, output.beta, found


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_gradients_of_cached_micro_batches_are_those_of_the_whole_batch(world_size: int, name: str) -> None:
    loss, beta, expected = of_task(ContrastiveTask(variant(name)))

    def work(rank: int) -> Found:
        return of_task(ContrastiveTask(variant(name), micro_batch=MICRO), rank, world_size)

    found_loss, found_beta, found = on_processes(world_size, work) if world_size > 1 else work(0)
    assert found_loss == pytest.approx(loss, abs=1e-12)
    assert largest_relative_error(found, expected) <= 1e-9
    assert (found_beta is None) == (beta is None) == (VARIANTS[name].get("modulation") == "none")
    if beta is not None and found_beta is not None:  # also of pieces without any region
        assert torch.allclose(found_beta, beta[: share(ROWS, 0, world_size)[1]])


@pytest.mark.parametrize("again", [False, True])
def test_micro_batches_of_pixels_train_the_tower_as_the_whole_batch_does(again: bool) -> None:
    """The tower runs within each piece: its tokens are never there for the whole batch."""

    def found(micro_batch: int | None) -> tuple[Gradients, list[int]]:
        model = small_model(torch.float64, with_tower=True, **{"vision_config.image_size": 16})
        prepare_tower(model, TowerSection(mode="last", layers=1), seed=0)
        if again:
            recompute_layers(model.train())
        sizes: list[int] = []
        model.tower.embeddings.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
        generator = torch.Generator().manual_seed(6)
        pixels = torch.randn(2, ROWS, 3, 16, 16, generator=generator, dtype=torch.float64)
        batch = part(global_batch(torch.float64), 0, 1)
        batch = batch._replace(
            reference_tokens=pixels[0], target_tokens=pixels[1][: len(batch.target_tokens)]
        )
        ContrastiveTask(model, micro_batch=micro_batch)(batch).objective.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, sizes

    (expected, whole), (cached, pieces) = found(None), found(MICRO)
    assert any(name.startswith("vision_model.") for name in expected)
    assert max(whole) == ROWS
    assert max(pieces) == MICRO
    assert largest_relative_error(cached, expected) <= 1e-9


def test_no_more_than_a_micro_batch_is_encoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    for kind in ("encode_query", "encode_target"):
        right: Callable[..., Any] = getattr(AdaFocalModel, kind)

        def counted(
            self: AdaFocalModel, tokens: Tensor, *rest: Any, right: Any = right, kind: str = kind
        ) -> Any:
            seen.append((kind, len(tokens)))
            return right(self, tokens, *rest)

        monkeypatch.setattr(AdaFocalModel, kind, counted)
    of_task(ContrastiveTask(variant("scalar"), micro_batch=MICRO))
    # the three rows that share targets leave nine distinct ones
    forward = [("encode_query", 4), ("encode_query", 4), ("encode_query", 3), *[("encode_target", 3)] * 3]
    assert seen == forward + forward[::-1]  # each once more, the last first


@pytest.mark.parametrize("name", ["scalar", "SPRC†"])
def test_the_second_forward_draws_the_dropout_of_the_first(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> Found:
        return of_task(ContrastiveTask(variant(name, dropout=0.3), micro_batch=MICRO))

    loss, _, cached = found()
    with monkeypatch.context() as patch:  # all pieces kept: there is no second forward to draw otherwise
        patch.setattr(gradients, "recomputed", lambda function, *arguments: function(*arguments))
        kept_loss, _, expected = found()
    assert loss == pytest.approx(kept_loss, abs=1e-12)
    assert largest_relative_error(cached, expected) <= 1e-9

    monkeypatch.setattr(
        gradients, "recomputed", partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    )
    other_loss, _, other = found()
    assert other_loss == pytest.approx(loss, abs=1e-12)  # the loss alone would not tell
    assert largest_relative_error(other, expected) > 0.01


def with_temperature_in_every_piece(task: ContrastiveTask) -> None:
    """The temperature's gradient once for each of two surrogates, the usual mistake of a GradCache."""
    task.model.temp.register_hook(lambda gradient: 2 * gradient)


def with_negatives_of_the_piece_alone(task: ContrastiveTask) -> None:
    """The loss of every piece by itself."""
    whole = task.forward
    task.forward = lambda batch: joined([whole(b) for b in micro_batches(batch, MICRO, 1)])  # type: ignore[method-assign]


@pytest.mark.parametrize("plant", [with_temperature_in_every_piece, with_negatives_of_the_piece_alone])
def test_mistakes_of_the_cache_would_be_noticed(plant: Callable[[ContrastiveTask], None]) -> None:
    _, _, expected = of_task(ContrastiveTask(variant("scalar")))
    task = ContrastiveTask(variant("scalar"), micro_batch=MICRO)
    plant(task)
    assert largest_relative_error(of_task(task)[2], expected) > 0.01


SMALLER_BATCHES = {
    1: [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]],
    2: [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10]],
}
"""Rows by world size that are contrasted with each other, of micro-batches of at most 4 (1 worker) or 3 (2 workers)."""


def accumulated(world_size: int) -> tuple[float, Gradients]:
    """One process and plain InfoNCE, batch by batch; the mean over all queries."""
    model, batch = small_model(torch.float64), global_batch(torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for rows in SMALLER_BATCHES[world_size]:
        query, targets = model(**{n: t[rows] for n, t in batch.items()}, modulate=True)
        loss = info_nce(max_over_set(query.embedding, targets), model.temp, torch.arange(len(rows)))
        total = total + loss * len(rows) / ROWS
    total.backward()
    return total.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("world_size", [1, 2])
def test_accumulated_gradients_are_the_mean_over_the_queries_of_all_micro_batches(world_size: int) -> None:
    loss, expected = accumulated(world_size)

    def work(rank: int) -> tuple[float, Gradients]:
        task = ContrastiveTask(small_model(torch.float64))
        whole = part(global_batch(torch.float64), rank, world_size)
        outputs = []
        for piece in micro_batches(whole, 5 - world_size, world_size):
            outputs.append(task(piece))
            (outputs[-1].objective * (piece.total / ROWS)).backward()
        output = joined(outputs)
        assert output.beta is not None
        assert len(output.beta) == len(whole.reference_tokens)  # pieces without a region ask the CAAM too
        found = {n: p.grad for n, p in task.model.named_parameters() if p.grad is not None}
        sums = [*found.values(), output.loss_sum]
        if world_size > 1:
            for value in sums:
                dist.all_reduce(value)
        return output.loss_sum.item() / ROWS, {n: g / world_size for n, g in found.items()}

    found_loss, found = on_processes(world_size, work) if world_size > 1 else work(0)
    assert found_loss == pytest.approx(loss, abs=1e-12)
    assert largest_relative_error(found, expected) <= 1e-9


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_pieces_of_all_workers_are_batches_that_each_holds_its_share_of(world_size: int) -> None:
    cases = [(rows, size) for rows in range(world_size, 40) for size in range(2, rows)]
    for rows, size in cases:
        of_workers = []
        for rank in range(world_size):
            start, end = share(rows, rank, world_size)
            numbers = torch.arange(start, end)
            tokens = numbers[:, None, None].float()
            own = Batch(tokens, tokens, numbers - start, *[numbers[:, None]] * 3, modulate=True, total=rows)
            of_workers.append(micro_batches(own, size, world_size))
        assert len({len(pieces) for pieces in of_workers}) == 1
        for pieces in zip(*of_workers, strict=True):
            (total,) = {piece.total for piece in pieces}
            held = [len(piece.reference_tokens) for piece in pieces]
            assert held == [e - s for s, e in (share(total, r, world_size) for r in range(world_size))]
            assert min(held) >= 1
            assert max(held) <= size
        seen = [int(v) for pieces in of_workers for p in pieces for v in p.input_ids.flatten()]
        assert seen == list(range(rows))
        for piece in (p for pieces in of_workers for p in pieces):
            assert torch.equal(piece.target_tokens[piece.target_index], piece.reference_tokens)


@pytest.mark.parametrize(
    ("negatives", "stage"), [("batch", 2), ("batch", 1), ("micro_batch", 2), ("micro_batch", 1)]
)
def test_zero_gets_the_same_gradients_from_micro_batches(negatives: str, stage: int) -> None:
    """The real engine on two workers, as it hands them to the optimizer: nothing divided, nothing reduced twice."""
    from training.engine import Engine, import_deepspeed
    from training.meters import Parts
    from training.task import make_task

    import_deepspeed()  # before the fork, so that no child has to
    recipe = TrainRecipe.model_validate(
        {
            "training": {"batch_size": ROWS, "micro_batch_size": 3, "negatives": negatives},
            "scaling": {"workers": 2, "zero_stage": stage},
        }
    )

    def work(rank: int) -> Gradients:
        from deepspeed.utils import safe_get_full_grad

        engine = Engine(make_task(small_model(torch.float32), recipe.training), recipe)
        engine.model.train()
        found: Gradients = {}

        def instead_of_a_step() -> None:
            parameters = {n: p for n, p in engine.model.named_parameters() if p.requires_grad}
            found.update({n: safe_get_full_grad(p).clone() for n, p in parameters.items()})

        engine.deepspeed.step = instead_of_a_step
        engine.step(part(global_batch(torch.float32), rank, 2), 0, 10, Parts())
        return found

    expected = expected_in_float32(negatives)
    found = {n: g.reshape(expected[n].shape) for n, g in on_processes(2, work).items()}
    # as one vector: single parameters with tiny gradients are all rounding in float32
    whole = [torch.cat([g[n].flatten() for n in expected]) for g in (found, expected)]
    assert float((whole[0] - whole[1]).norm() / whole[1].norm()) <= 1e-3


def expected_in_float32(negatives: str) -> Gradients:
    task, batch = ContrastiveTask(small_model(torch.float32)), global_batch(torch.float32)
    wholes = [list(range(ROWS))] if negatives == "batch" else SMALLER_BATCHES[2]
    for rows in wholes:
        own = {n: t[rows] for n, t in batch.items()}
        output = task(Batch(**own, target_index=torch.arange(len(rows)), modulate=True, total=len(rows)))
        (output.objective * (len(rows) / ROWS)).backward()
    return {n: p.grad for n, p in task.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["scalar", "vector", "average, bias of the paper", "SPRC†"])
def test_layers_computed_again_give_the_same_bits(name: str, precision: torch.dtype) -> None:
    """With dropout; the only way to save memory that a run's key does not know of."""

    def found(again: bool) -> tuple[Gradients, int]:
        model = small_model(torch.float32, dropout=0.2, **VARIANTS[name])
        calls: list[int] = []
        model.qformer.encoder.layer[1].attention.register_forward_hook(lambda *_: calls.append(1))
        if again:
            recompute_layers(model)
        torch.manual_seed(4)
        ContrastiveTask(model, precision)(part(global_batch(torch.float32), 0, 1)).objective.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, len(calls)

    (expected, once), (again, twice) = found(False), found(True)
    assert twice == 2 * once
    assert expected.keys() == again.keys()
    assert all(torch.equal(again[n], expected[n]) for n in expected)


def test_layers_are_kept_where_nothing_is_trained() -> None:
    model = small_model(torch.float32)
    recompute_layers(model)
    calls: list[int] = []
    model.qformer.encoder.layer[0].register_forward_hook(lambda *_: calls.append(1))
    batch = part(global_batch(torch.float32), 0, 1)
    with torch.no_grad():
        plain = encode(model.eval(), batch, None)[0].embedding
    assert len(calls) == 3  # probes, query, target
    assert torch.equal(plain, encode(small_model(torch.float32).eval(), batch, None)[0].embedding)


def test_texts_padded_to_the_longest_of_the_part_give_what_full_padding_gives() -> None:
    """Embeddings, loss and every gradient; the feed cuts texts to the longest of a worker's part."""
    batch = part(global_batch(torch.float64), 0, 1)
    longer = 9
    padding = longer - batch.input_ids.shape[1]
    padded = batch._replace(
        # not only zeros: what stands in padding must not matter
        input_ids=torch.cat([batch.input_ids, torch.randint(5, 20, (ROWS, padding))], dim=1),
        attention_mask=torch.cat([batch.attention_mask, torch.zeros(ROWS, padding, dtype=torch.long)], dim=1),
    )
    for name in ("scalar", "SPRC†"):
        results = []
        for each in (batch, padded):
            task = ContrastiveTask(variant(name))
            output = task(each)
            output.objective.backward()
            query = task.model.encode_query(
                each.reference_tokens, each.input_ids, each.attention_mask, each.patch_mask
            )
            grads = {n: p.grad for n, p in task.model.named_parameters() if p.grad is not None}
            results.append((output.loss_sum, query.embedding, grads))
        (loss, embedding, expected), (padded_loss, padded_embedding, found) = results
        assert torch.allclose(padded_loss, loss, rtol=0, atol=1e-12)
        assert torch.allclose(padded_embedding, embedding, rtol=0, atol=1e-12)
        assert largest_relative_error(found, expected) <= 1e-9
