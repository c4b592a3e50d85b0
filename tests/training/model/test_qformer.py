"""transformers' Q-Former, eager and padded, is the independent slow version; both in float64."""

from __future__ import annotations

import pytest
import torch
from transformers import Blip2QFormerModel

from tests.training.model.conftest import small_model
from training.model.packing import layout_of, pad_rows
from training.model.qformer import AttentionMaps, image_memory

CLOSE = {"atol": 1e-9, "rtol": 1e-9}


@pytest.fixture
def batch(batch):
    return {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}


@pytest.fixture(scope="module")
def model():
    model = small_model(modulation="none")
    with torch.no_grad():  # a trained norm and biases that are not zero
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.dim() == 1:
                parameter += 0.3 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(len(name))
                )
    return model.double()


@pytest.fixture(scope="module")
def oracle(model):
    oracle = Blip2QFormerModel._from_config(model.config.qformer, attn_implementation="eager")
    oracle.load_state_dict(model.qformer.state_dict())
    return oracle.double().eval()


def reference(oracle, model, batch, bias, with_text=True):
    image = model.vision_norm(batch["tokens"])
    size, count = len(image), model.query_tokens.shape[1]
    embeds = model.query_tokens.expand(size, -1, -1)
    mask = torch.ones(size, count, dtype=torch.long)
    if with_text:
        length = batch["input_ids"].shape[1]
        words = model.embeddings.word_embeddings(batch["input_ids"])
        embeds = torch.cat([embeds, words + model.embeddings.position_embeddings.weight[:length]], dim=1)
        mask = torch.cat([mask, batch["attention_mask"]], dim=1)
    return oracle(
        query_embeds=embeds,
        query_length=count,
        attention_mask=mask,
        encoder_hidden_states=image,
        encoder_attention_mask=bias,
        output_attentions=True,
    )


def biases(batch):
    mask = batch["patch_mask"][:, None, None, :]
    generator = torch.Generator().manual_seed(5)
    scalar = torch.rand(4, 1, 1, 1, generator=generator) * 4
    vector = torch.rand(4, 1, 5, 1, generator=generator) * 4
    return {"zero": 0 * mask, "scalar": scalar * mask, "vector": vector * mask}


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("kind", ["zero", "scalar", "vector"])
def test_equals_the_transformers_class(model, oracle, batch, kind, eager):
    bias = biases(batch)[kind]
    expected = reference(oracle, model, batch, bias)
    text = model.embeddings(batch["input_ids"], batch["attention_mask"])
    image = image_memory(batch["tokens"], model.vision_norm)
    maps = AttentionMaps([], []) if eager else None
    rows = model.qformer(model.query_tokens, text, image, bias, maps=maps)

    hidden = pad_rows(rows, layout_of(4, 5, batch["attention_mask"]))
    real = torch.cat([torch.ones(4, 5), batch["attention_mask"]], dim=1).bool()
    torch.testing.assert_close(hidden[real], expected.last_hidden_state[real], **CLOSE)
    read = model.qformer(model.query_tokens, text, image, bias, "queries")
    torch.testing.assert_close(read, expected.last_hidden_state[:, :5], **CLOSE)
    read = model.qformer(model.query_tokens, text, image, bias, "text_cls")
    torch.testing.assert_close(read, expected.last_hidden_state[:, 5], **CLOSE)
    if maps:
        # The class records a layer's cross-attention among the self-attentions as well: told apart by the keys.
        cross = [weights for weights in expected.cross_attentions if weights.shape[-1] == 17]
        own = [weights for weights in expected.attentions if weights.shape[-1] == 14]
        assert (len(maps.cross_attention), len(cross), len(maps.self_attention), len(own)) == (2, 2, 4, 4)
        for ours, theirs in zip(maps.cross_attention, cross, strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
        for ours, theirs in zip(maps.self_attention, own, strict=True):
            torch.testing.assert_close(ours[:, :, :6], theirs[:, :, :6], **CLOSE)


def test_queries_alone_equal_the_transformers_class(model, oracle, batch):
    expected = reference(oracle, model, batch, None, with_text=False).last_hidden_state
    image = image_memory(batch["tokens"], model.vision_norm)
    torch.testing.assert_close(
        model.qformer(model.query_tokens, None, image, read="queries"), expected, **CLOSE
    )


@pytest.mark.parametrize("read", ["queries", "text_cls"])
def test_gradients_equal_those_of_the_transformers_class(model, oracle, batch, read):
    """Also where the standardised image hides them: the norm behind the tower, keys, values, and the tokens."""
    bias = biases(batch)["vector"]
    weights = torch.randn(4, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(hidden):
        return (hidden * weights).sum() if hidden.dim() == 2 else (hidden * weights[:, None]).sum()

    gradients = []
    for ours in (True, False):
        model.zero_grad(set_to_none=True)
        oracle.zero_grad(set_to_none=True)
        inputs = {**batch, "tokens": batch["tokens"].clone().requires_grad_()}
        if ours:
            text = model.embeddings(inputs["input_ids"], inputs["attention_mask"])
            image = image_memory(inputs["tokens"], model.vision_norm)
            loss(model.qformer(model.query_tokens, text, image, bias, read)).backward()
            qformer = model.qformer
        else:
            hidden = reference(oracle, model, inputs, bias).last_hidden_state
            loss(hidden[:, :5] if read == "queries" else hidden[:, 5]).backward()
            qformer = oracle
        found = {name: p.grad for name, p in qformer.named_parameters() if p.grad is not None}
        found |= {name: p.grad for name, p in model.vision_norm.named_parameters(prefix="vision_norm")}
        found |= {name: p.grad for name, p in model.embeddings.named_parameters(prefix="embeddings")}
        gradients.append({**found, "query_tokens": model.query_tokens.grad, "tokens": inputs["tokens"].grad})
    ours, theirs = gradients
    zero = {name for name in theirs if name not in ours}
    assert all(float(theirs[name].abs().max()) == 0 for name in zero)  # rows that are not read
    assert not any("crossattention" in name for name in zero)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def test_dropped_attention_weights_take_their_share_of_the_value_bias(model, batch):
    """Where every attention weight is dropped nothing is attended, not even the bias of the values."""
    attention = model.qformer.encoder.layer[0].crossattention.attention
    image = image_memory(batch["tokens"], model.vision_norm)
    rows = torch.randn(4, 5, 32, dtype=torch.float64)
    usual = attention.dropout
    attention.dropout = 1 - 2**-16
    torch.manual_seed(0)
    context = attention.train()(rows, image, None, None)
    attention.dropout = usual
    assert torch.equal(context, torch.zeros_like(context))
    assert attention.eval()(rows, image, None, None).abs().min() > 0
