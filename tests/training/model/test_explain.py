from __future__ import annotations

import math

import torch

from tests.training.model.conftest import small_model
from training.model.qformer import AttentionMaps


def test_attention_is_the_mean_over_heads_and_queries_of_every_layer_that_looks(batch):
    model = small_model()
    told = model.explain(**batch)
    maps = AttentionMaps([], [])
    model.encode_query(**batch, maps=maps)
    assert told.attention.shape == (4, 2, 17)  # layers 0 and 2 of four
    for layer in range(2):
        weights = maps.cross_attention[layer]  # [B, 4 heads, 5 queries, N]
        expected = sum(weights[:, h, q] for h in range(4) for q in range(5)) / 20
        torch.testing.assert_close(told.attention[:, layer], expected)
    torch.testing.assert_close(told.attention.sum(-1), torch.ones(4, 2))


def test_the_first_layer_shows_what_a_constant_beta_does(batch):
    """All queries agree in the first layer but for their own weights: e^β times the odds of the region, each."""
    model = small_model(modulation="fixed", fixed_beta=1.5)
    maps, plain = AttentionMaps([], []), AttentionMaps([], [])
    model.encode_query(**batch, maps=maps)
    model.encode_query(**batch, modulate=False, maps=plain)
    inside = batch["patch_mask"][:, None, None, :]
    odds = [
        (m * inside).sum(-1) / (m * (1 - inside)).sum(-1)
        for m in (maps.cross_attention[0], plain.cross_attention[0])
    ]
    rows = [0, 1, 3]  # the third query has no region
    torch.testing.assert_close(odds[0][rows] / odds[1][rows], torch.full_like(odds[0][rows], math.exp(1.5)))

    told = model.explain(**batch)
    with_beta, without = told.share_inside(batch["patch_mask"])
    assert torch.all(with_beta[rows] > without[rows])
    assert with_beta[2] == without[2] == 0
    assert torch.equal(told.beta, torch.full((4, 1), 1.5))


def test_without_a_region_both_maps_are_one(batch):
    told = small_model().explain(**{**batch, "patch_mask": None})
    assert told.beta is None
    assert torch.equal(told.attention, told.attention_unmodulated)
    assert told.scores is None
    assert told.winning_token is None


def test_the_winning_token_gives_the_score(batch):
    model = small_model()
    candidates = batch["tokens"].flip(0)
    told = model.explain(**batch, target_tokens=candidates)
    query, targets = model.encode_query(**batch).embedding, model.encode_target(candidates)
    for row in range(4):
        cosines = [float(query[row] @ vector) for vector in targets[row]]
        assert int(told.winning_token[row]) == max(range(5), key=cosines.__getitem__)
        torch.testing.assert_close(told.scores[row], torch.tensor(max(cosines)))
    torch.testing.assert_close(told.scores, model.score(query, targets).diagonal())


def test_probes_in_the_place_of_the_queries_look_where_those_do_without_beta(batch):
    """The same tokens in both passes: what the first looks at is what the second does where β is 0."""
    model = small_model(num_probe_tokens=5)
    with torch.no_grad():
        model.caam.probe_tokens.copy_(model.query_tokens)
    told = model.explain(**batch)
    torch.testing.assert_close(told.probe_attention, told.attention_unmodulated)
    shares = told.probes_inside(batch["patch_mask"])
    torch.testing.assert_close(shares, told.share_inside(batch["patch_mask"])[1])
    assert small_model(modulation="none").explain(**batch).probe_attention is None
