"""SPRC: its passes written out with transformers' Q-Former, its losses, and SPRC† as the same with a bias."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Blip2QFormerModel

from tests.training.model.conftest import small_config
from training.losses import info_nce, prompt_alignment
from training.model.auto import config_of, load_model, random_model
from training.model.interfaces import LossContext, QueryOutput
from training.model.qformer import image_memory
from training.model.sprc import SprcModel


def sprc(seed: int = 0, **overrides: object) -> SprcModel:
    model = random_model(small_config(method="sprc", **overrides), seed)
    assert isinstance(model, SprcModel)
    return model


def text_pass(model: SprcModel, prompts: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """A pass without image of [prompts ; text], every row through the text's feed-forward: state at the text's [CLS].

    transformers' class takes all rows for text when it is told that there is no query.
    """
    oracle = Blip2QFormerModel(model.config.qformer)
    oracle.load_state_dict(model.qformer.state_dict(), strict=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    words = (
        model.embeddings.word_embeddings(ids) + model.embeddings.position_embeddings.weight[: ids.shape[1]]
    )
    count = prompts.shape[1]
    hidden = oracle.layernorm(torch.cat([prompts.expand(len(ids), -1, -1), words], dim=1))
    everyone = torch.cat([torch.ones(len(ids), count), mask], dim=1)
    additive = (1.0 - everyone)[:, None, None, :] * -10000.0
    for layer in oracle.eval().encoder.layer:
        hidden = layer(hidden, attention_mask=additive, query_length=0)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return hidden[:, count]


def test_the_second_pass_sees_prompts_and_text_alone(batch):
    model = sprc(modulation="none")
    text = model.embeddings(batch["input_ids"], batch["attention_mask"])
    image = image_memory(batch["tokens"], model.vision_norm)
    fused = model.qformer(model.query_tokens, text, image, read="queries")
    expected = F.normalize(model.text_projection(text_pass(model, fused, batch)), dim=-1)
    found = model.encode_query(**batch).embedding
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    plain = random_model(small_config(modulation="none"), 0).encode_query(**batch).embedding
    assert (found - plain).abs().max() > 0.05  # the second pass is not AdaFocal's


def test_the_extras_of_training_are_prompts_and_fused_means(batch):
    model = sprc(
        modulation="none",
        **{"qformer.hidden_dropout_prob": 0.0, "qformer.attention_probs_dropout_prob": 0.0},
    ).train()
    extras = model.encode_query(**batch).extras
    prompted = F.normalize(model.text_projection(text_pass(model, model.prompt_tokens, batch)), dim=-1)
    torch.testing.assert_close(extras["text_only"], prompted, atol=5e-6, rtol=0)
    torch.testing.assert_close(extras["prompts"][2], model.prompt_tokens[0].mean(0))
    assert extras["fused"].shape == (4, 32)
    assert model.eval().encode_query(**batch).extras == {}


def test_the_objective_weighs_three_losses():
    """Two queries, targets of one vector each; every term worked out from its definition."""
    model = sprc(modulation="none", rtc_weight=0.3, align_weight=0.2)
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    targets = torch.tensor([[[1.0, 0.0]], [[0.6, 0.8]]])
    extras = {"text_only": text, "fused": torch.tensor([[1.0, 3.0], [0.0, 0.0]]), "prompts": torch.ones(2, 2)}
    context = LossContext(
        QueryOutput(query, None, extras), targets, torch.tensor([0, 1]), torch.tensor(0.5), model.score
    )
    total = sum(weight * loss(context) for weight, loss in model.objective)
    itc = info_nce(torch.tensor([[1.0, 0.6], [0.0, 0.8]]), 0.5, torch.tensor([0, 1]))
    rtc = info_nce(torch.tensor([[0.6, 1.0], [0.0, 0.8]]), 0.5, torch.tensor([0, 1]))
    align = (0 + 4 + 1 + 1) / 4
    assert float(total) == pytest.approx(float(itc) + 0.3 * float(rtc) + 0.2 * align, abs=1e-6)


def test_alignment_moves_the_fused_tokens_and_not_the_prompts():
    fused, prompts = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    query = QueryOutput(torch.ones(2, 2), None, {"fused": fused, "prompts": prompts})
    nothing = torch.ones(1)
    prompt_alignment(LossContext(query, nothing, nothing, nothing, lambda q, t, c=None: q)).backward()
    assert fused.grad is not None
    assert prompts.grad is None


def test_with_a_modulation_the_bias_acts_in_the_first_pass(batch):
    """SPRC†: equal to SPRC where no query has a region, different where one has."""
    with_caam, without = sprc(), sprc(modulation="none")
    changed = with_caam.encode_query(**batch)
    assert changed.beta is not None
    plain = without.encode_query(**batch).embedding
    moved = (changed.embedding - plain).detach().abs().amax(dim=1)
    assert float(moved[2]) < 1e-6  # the third query has no region
    assert float(moved[[0, 1, 3]].min()) > 1e-4
    empty = {**batch, "patch_mask": torch.zeros_like(batch["patch_mask"])}
    assert torch.equal(with_caam.encode_query(**empty).embedding, without.encode_query(**empty).embedding)


def test_it_comes_back_as_itself(tmp_path, batch):
    model = sprc(seed=4)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is SprcModel
    assert config_of(loaded.config.to_dict()).rtc_weight == 0.4
    assert torch.equal(loaded.encode_query(**batch).embedding, model.encode_query(**batch).embedding)
    assert torch.equal(loaded.prompt_tokens, model.prompt_tokens)
    assert float(model.prompt_tokens.detach().std()) == pytest.approx(0.02, rel=0.3)
