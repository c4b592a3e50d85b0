from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from infra.base.errors import OacirError
from tests.training.model.conftest import small_config, small_model
from training.model.adafocal import AdaFocalModel
from training.model.qformer import AttentionMaps


def query(model, batch, **changes):
    return model.encode_query(**{**batch, **changes})


@pytest.mark.parametrize("modulation", ["scalar", "vector", "fixed"])
def test_shapes_and_unit_length(batch, modulation):
    model = small_model(modulation=modulation, fixed_beta=2.0 if modulation == "fixed" else 0.0)
    output, targets = model(
        batch["tokens"], batch["tokens"], batch["input_ids"], batch["attention_mask"], batch["patch_mask"]
    )
    assert output.embedding.shape == (4, 12)
    assert output.beta.shape == ((4, 5) if modulation == "vector" else (4, 1))
    assert targets.shape == (4, 5, 12)
    torch.testing.assert_close(output.embedding.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(targets.norm(dim=-1), torch.ones(4, 5))


def test_no_modulation_is_fixed_zero_bit_for_bit(batch):
    none, zero = small_model(modulation="none"), small_model(modulation="fixed", fixed_beta=0.0)
    for model in (none, zero):
        assert query(model, batch).beta is None
    assert torch.equal(query(none, batch).embedding, query(zero, batch).embedding)
    assert [n for n, _ in none.named_parameters()] == [n for n, _ in zero.named_parameters()]
    for model in (none.train(), zero.train()):
        torch.manual_seed(0)
        query(model, batch).embedding.sum().backward()
    for a, b in zip(none.parameters(), zero.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("modulation", ["scalar", "vector"])
def test_a_sample_does_not_depend_on_its_batch(batch, modulation):
    """Texts of other lengths, and neighbours with or without a box, change nothing beyond rounding."""
    model = small_model(modulation=modulation)
    together = query(model, batch)
    for row, length in enumerate((4, 9, 6, 9)):
        single = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        for name in ("input_ids", "attention_mask"):
            single[name] = single[name][:, :length]
        alone = query(model, single)
        torch.testing.assert_close(alone.embedding[0], together.embedding[row], atol=2e-6, rtol=0)
        if alone.beta is not None:
            torch.testing.assert_close(alone.beta[0], together.beta[row], atol=2e-6, rtol=0)
        assert (alone.beta is None) == (row == 2)  # the third has no box: no CAAM, zero bias


def test_a_batch_without_boxes_skips_the_modulator(batch):
    model, plain = small_model(), small_model(modulation="none")
    expected = query(plain, batch)
    for mask in (torch.zeros_like(batch["patch_mask"]), None):
        output = query(model, batch, patch_mask=mask)
        assert output.beta is None
        assert torch.equal(output.embedding, expected.embedding)
    output.embedding.sum().backward()
    assert all(p.grad is None for p in model.caam.parameters())


def test_beta_moves_attention_into_the_box(batch):
    """Share of cross-attention inside the box: rises with β, is untouched between patches of a full-image box."""
    shares, maps = [], {}
    for beta in (0.0, 1.0, 4.0):
        maps[beta] = AttentionMaps([], [])
        model = small_model(modulation="fixed", fixed_beta=beta)
        model.encode_query(**batch, maps=maps[beta])
        first = maps[beta].cross_attention[0]  # [B, heads, M, N]
        shares.append((first * batch["patch_mask"][:, None, None, :]).sum(-1))
    for row in (0, 1):
        assert torch.all(shares[0][row] < shares[1][row])
        assert torch.all(shares[1][row] < shares[2][row])
    torch.testing.assert_close(shares[2][2], shares[0][2])  # no box
    before, after = (maps[beta].cross_attention[0][3, :, :, 1:] for beta in (0.0, 4.0))
    torch.testing.assert_close(before / before.sum(-1, keepdim=True), after / after.sum(-1, keepdim=True))


def test_paper_bias_is_the_released_one_divided_by_the_root_of_the_head_width(batch):
    released = small_model(modulation="fixed", fixed_beta=1.5)
    paper = small_model(modulation="fixed", fixed_beta=1.5 * 8**0.5, bias_scale="paper")  # head width 32 / 4
    torch.testing.assert_close(
        query(released, batch).embedding, query(paper, batch).embedding, atol=1e-6, rtol=0
    )
    unscaled = small_model(modulation="fixed", fixed_beta=1.5 * 8**0.5)
    assert (query(unscaled, batch).embedding - query(released, batch).embedding).abs().max() > 1e-3


def test_seed_decides_and_modulations_share_the_rest():
    first, again, other = small_model(3), small_model(3), small_model(4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert first.tower_state_hash() != other.tower_state_hash()
    plain = small_model(3, modulation="none")
    assert plain.tower_state_hash() == first.tower_state_hash()
    shared = dict(first.named_parameters())
    assert all(torch.equal(p, shared[name]) for name, p in plain.named_parameters())
    bare = small_model(3, with_tower=False)
    assert all(torch.equal(p, shared[name]) for name, p in bare.named_parameters())


def test_trainable_parameters_are_everything_but_the_tower():
    model = small_model()
    groups = model.trainable_parameters()
    names = {id(p): name for name, p in model.named_parameters()}
    caam, rest = ({names[id(p)] for p in groups[key]} for key in ("caam", "rest"))
    assert caam == {name for name in names.values() if name.startswith("caam.")}
    assert rest == {n for n in names.values() if not n.startswith(("caam.", "vision_model."))}
    assert {"temp", "vision_norm.weight", "query_tokens"} <= rest
    frozen = small_model(trainable_queries=False)
    assert not any(p is frozen.query_tokens for p in frozen.trainable_parameters()["rest"])
    assert small_model(modulation="none").trainable_parameters()["caam"] == []


def test_every_trained_parameter_gets_a_gradient(batch):
    model = small_model()
    output, targets = model(
        batch["tokens"], batch["tokens"], batch["input_ids"], batch["attention_mask"], batch["patch_mask"]
    )
    ((output.embedding @ targets.flatten(0, 1).T).square().sum() / model.temperature).backward()
    for group in model.trainable_parameters().values():
        assert all(p.grad is not None for p in group)


def test_the_tower_never_trains():
    model = small_model().train()
    assert model.qformer.training
    assert not model.tower.training
    assert not any(p.requires_grad for p in model.tower.parameters())
    pixels = torch.randn(2, 3, 28, 28)
    assert not model.encode_pixels(pixels).requires_grad


def test_save_and_load(batch, tmp_path):
    model = small_model(7, modulation="vector")
    model.save_pretrained(tmp_path)
    loaded = AdaFocalModel.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.tower_state_hash() == model.tower_state_hash()
    assert torch.equal(query(loaded, batch).embedding, query(model, batch).embedding)
    pixels = torch.randn(2, 3, 28, 28)
    assert torch.equal(loaded.encode_pixels(pixels), model.encode_pixels(pixels))


def test_train_without_the_tower_then_export_everything(batch, tmp_path):
    full = small_model(7)
    full.save_pretrained(tmp_path / "full")
    bare = AdaFocalModel.from_pretrained(tmp_path / "full", with_tower=False)
    assert torch.equal(query(bare, batch).embedding, query(full, batch).embedding)
    with pytest.raises(OacirError, match="built without its image tower"):
        bare.tower_state_hash()
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(OacirError, match="weights are missing, first vision_model"):
        AdaFocalModel.from_pretrained(tmp_path / "bare")
    bare.attach_tower(full.tower)
    bare.save_pretrained(tmp_path / "exported")
    again = AdaFocalModel.from_pretrained(tmp_path / "exported")
    assert again.tower_state_hash() == full.tower_state_hash()


def test_vit_g_without_its_tower_has_the_published_size():
    """Q-Former 161.8 M with its text embeddings and query tokens, cross-attention keys and values 1408 wide."""
    with torch.device("meta"):
        model = AdaFocalModel(small_config().__class__(), with_tower=False)
    qformer = sum(p.numel() for part in (model.qformer, model.embeddings) for p in part.parameters())
    assert qformer / 1e6 == pytest.approx(185.6, abs=1.0)


def test_beta_starts_where_the_configuration_says(batch):
    """softplus(b + w·h) with b the inverse of softplus at 6: only the head's small random part is left."""
    start = small_model(initial_beta=6.0).encode_query(**batch).beta
    assert torch.all((start - 6.0).abs() < 1.0)
    assert torch.all(small_model().encode_query(**batch).beta < 3.0)


def test_the_scale_of_beta_multiplies_what_the_head_gives(batch):
    """Same weights and same start; with a scale the head's part of β, and so each of its steps, is as many times it."""
    plain, scaled = (small_model(beta_scale=scale).encode_query(**batch).beta for scale in (1.0, 3.0))
    torch.testing.assert_close(scaled, 3 * plain)
    start = small_model(initial_beta=6.0, beta_scale=3.0).encode_query(**batch).beta
    assert torch.all((start - 6.0).abs() < 3.0)
    with pytest.raises(OacirError, match=r"beta_scale 0\.0 is not positive"):
        small_model(beta_scale=0.0)


def test_an_aligned_start_passes_tokens_through_self_attention_unchanged():
    """Orthogonal value map, its inverse behind it, equal projections."""
    model = small_model(aligned_start=True)
    for layer in model.qformer.encoder.layer:
        attention = layer.attention
        through = attention.output.dense.weight @ attention.attention.value.weight
        torch.testing.assert_close(through, torch.eye(32), atol=1e-5, rtol=0)
    assert torch.equal(model.text_projection.weight, model.vision_projection.weight)
    plain = small_model()
    assert not torch.equal(plain.text_projection.weight, plain.vision_projection.weight)


@pytest.mark.parametrize("tower", ["blip_2_vision_model", "clip_vision_model"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attn_implementation_decides_for_tower_and_qformer(
    batch, tmp_path, monkeypatch, implementation, tower
):
    """The same numbers; torch's kernel is called by one and not by the other."""
    model = small_model(modulation="none", **{"vision_config.model_type": tower})  # the CRM is torch's own
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation=implementation)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    calls, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    for way in (lambda m: m.encode_pixels(pixels), lambda m: query(m, batch).embedding):
        wanted = way(model)
        calls.clear()
        torch.testing.assert_close(way(loaded), wanted, atol=2e-6, rtol=1e-5)
        assert bool(calls) == (implementation == "sdpa")


def test_a_model_of_a_configuration_is_random_as_in_transformers(batch):
    """Drawn from torch's global generator, and every part of it usable."""
    config = small_config(modulation="vector")
    torch.manual_seed(0)
    first, other = AutoModel.from_config(config), AutoModel.from_config(config)
    torch.manual_seed(0)
    again = AutoModel.from_config(config, dtype=torch.bfloat16)
    assert first.query_tokens.std() > 0.01
    assert first.tower.embeddings.class_embedding.std() > 0.5
    assert not torch.equal(first.query_tokens, other.query_tokens)
    assert torch.equal(again.query_tokens, first.query_tokens.bfloat16())
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    embedding = query(first.eval(), batch).embedding
    assert (embedding @ embedding.T).triu(1).max() < 0.999
    with torch.device("meta"):
        assert AutoModel.from_config(config).query_tokens.is_meta


def test_weights_of_another_shape_than_the_configuration_says_are_named(tmp_path):
    small_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_query_tokens": 6}))
    told = r"1 weights have other shapes .* query_tokens \[1, 5, 32\] instead of \[1, 6, 32\]"
    with pytest.raises(OacirError, match=told):
        AdaFocalModel.from_pretrained(tmp_path)


def test_loading_info_is_given_on_request(tmp_path):
    small_model().save_pretrained(tmp_path)
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is AdaFocalModel
    assert not info["missing_keys"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda b: {"patch_mask": b["patch_mask"][:1]}, r"patch_mask \[1, 17\] is not \[4, 17\]"),
        (lambda b: {"patch_mask": b["patch_mask"][:, :1]}, r"patch_mask \[4, 1\] is not \[4, 17\]"),
        (lambda b: {"attention_mask": b["attention_mask"][:1]}, r"attention_mask \[1, 9\] is not \[4, 9\]"),
        (lambda b: {"input_ids": b["input_ids"][:2]}, r"input_ids \[2, 9\] is not \[4, 9\]; attention_mask"),
        (lambda b: {"attention_mask": b["attention_mask"].flip(1)}, "starts with padding or is empty"),
        (
            lambda b: {n: b[n].repeat(1, 4) for n in ("input_ids", "attention_mask")},
            "texts of 36 tokens, the model has positions for 32",
        ),
    ],
)
def test_what_would_broadcast_or_shift_unnoticed_is_refused(batch, change, told):
    with pytest.raises(OacirError, match=told):
        query(small_model(), batch, **change(batch))


def test_pixels_of_another_size_are_refused():
    """Fewer patches would take the positions of the first ones."""
    with pytest.raises(OacirError, match=r"\[1, 3, 14, 14\] are not \[B, 3, 28, 28\]"):
        small_model().encode_pixels(torch.zeros(1, 3, 14, 14))
