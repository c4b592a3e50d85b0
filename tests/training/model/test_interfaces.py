"""The parts that interfaces.py names are there in every method, and a method with parts of its own trains and ranks."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipelines.retrieval.engine import score
from tests.training.model.conftest import small_config
from training import losses
from training.batches import Batch
from training.model import interfaces
from training.model.adafocal import AdaFocalModel, initialise
from training.model.auto import MODELS, random_model
from training.model.caam import ContextAwareAttentionModulator, FixedModulator
from training.model.interfaces import Loss, QueryOutput, Rep
from training.model.qformer import QFormer
from training.scoring import max_over_set
from training.task import ContrastiveTask

PARTS: list[tuple[str, Callable[..., object], Callable[..., object]]] = [
    ("Fusion", interfaces.Fusion.__call__, QFormer.forward),
    ("Modulator (CAAM)", interfaces.Modulator.__call__, ContextAwareAttentionModulator.forward),
    ("Modulator (fixed)", interfaces.Modulator.__call__, FixedModulator.__call__),
    *(
        (f"{part} ({name})", getattr(getattr(interfaces, part), method), getattr(model, method))
        for name, model in MODELS.items()
        for part, method in (
            ("Backbone", "encode_pixels"),
            ("QueryEncoder", "encode_query"),
            ("TargetEncoder", "encode_target"),
        )
    ),
    *((f"Scorer ({name})", interfaces.Scorer.__call__, model.score) for name, model in MODELS.items()),
]


def parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    """Without self."""
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


@pytest.mark.parametrize(("asked", "offered"), [p[1:] for p in PARTS], ids=[p[0] for p in PARTS])
def test_every_part_takes_what_its_interface_says(
    asked: Callable[..., object], offered: Callable[..., object]
) -> None:
    """The same names in the same order with the same defaults; what a part takes beyond them has a default."""
    wanted, found = parameters(asked), parameters(offered)
    same = [(p.name, p.default) for p in found[: len(wanted)]]
    assert same == [(p.name, p.default) for p in wanted]
    assert all(p.default is not inspect.Parameter.empty for p in found[len(wanted) :])


def test_scores_and_losses_take_what_their_interfaces_say() -> None:
    assert [p.name for p in parameters(max_over_set)] == [
        p.name for p in parameters(interfaces.Scorer.__call__)
    ]
    for loss in (losses.query_to_target, losses.text_to_target, losses.prompt_alignment):
        assert [p.name for p in parameters(loss)] == [p.name for p in parameters(Loss.__call__)]


class Gaussians(AdaFocalModel):
    """A foreign method: an item is K Gaussians, [B, K, 2·d], means beside deviations, compared by a distance."""

    def encode_query(self, tokens: Tensor, *_: object, **__: object) -> QueryOutput:
        return QueryOutput(self.encode_target(tokens), None, {})

    def encode_target(self, tokens: Tensor) -> Rep:
        means = tokens[:, :3, :4]
        return torch.cat([means, means.square() + 0.1], dim=-1)

    @property
    def target_shape(self) -> tuple[int, ...]:
        return 3, 8

    def score(self, queries: Rep, targets: Rep, chunk: int | None = None) -> Tensor:
        apart = queries[:, None, :, :4] - targets[None, :, :, :4]
        spread = queries[:, None, :, 4:] + targets[None, :, :, 4:]
        return -(apart.square() + spread).mean((2, 3))


@pytest.fixture
def gaussians() -> Gaussians:
    model = Gaussians(small_config(modulation="none"), with_tower=False)
    initialise(model, 0)
    return model.eval()


def by_hand(queries: Tensor, targets: Tensor) -> Tensor:
    """One pair, one number at a time: minus the mean of squared distance and both deviations."""
    rows = []
    for query in queries[:, :3, :4].flatten(1):
        own = [
            (query - t).square() + query.square() + t.square() + 0.2 for t in targets[:, :3, :4].flatten(1)
        ]
        rows.append(torch.stack([-o.mean() for o in own]))
    return torch.stack(rows)


def test_a_foreign_method_trains_without_a_change_of_the_loop(gaussians: Gaussians) -> None:
    references, targets = torch.randn(2, 4, 17, 24, generator=torch.Generator().manual_seed(0))
    words = torch.ones(4, 3, dtype=torch.long)
    which = torch.tensor([1, 0, 3, 2])
    batch = Batch(references, targets, which, words, words, torch.zeros(4, 17), modulate=False, total=4)
    loss = ContrastiveTask(gaussians)(batch).loss_sum / 4
    logits = by_hand(references, targets[which]) / gaussians.config.initial_temperature
    torch.testing.assert_close(loss, -logits.log_softmax(1).diagonal().mean())


def test_a_foreign_method_is_ranked_by_its_own_scores(gaussians: Gaussians) -> None:
    queries, targets = torch.randn(2, 5, 17, 24, generator=torch.Generator().manual_seed(1))
    found = score(
        gaussians.score, gaussians.encode_query(queries).embedding, gaussians.encode_target(targets)
    )
    torch.testing.assert_close(torch.from_numpy(found), by_hand(queries, targets))


def test_the_shape_of_a_target_is_known_before_there_is_one() -> None:
    """Workers without an item of their own take part in gathering all the same."""
    for method in MODELS:
        model = random_model(small_config(method=method), 0)
        assert model.encode_target(torch.randn(2, 17, 24)).shape[1:] == model.target_shape
