from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.training.model.conftest import small_config
from training.model.caam import ContextAwareAttentionModulator

SIZES = {
    "qformer.hidden_size": 16, "crm_layers": 2, "crm_heads": 4, "crm_feedforward": 24, "beta_hidden": 8,
    "num_query_tokens": 5,
}  # fmt: skip


def build(seed: int = 0, **overrides: object) -> ContextAwareAttentionModulator:
    modulator = ContextAwareAttentionModulator(small_config(**SIZES, **overrides))
    modulator.initialise(torch.Generator().manual_seed(seed))
    return modulator.eval()


def test_reasoning_equals_the_formula():
    """Post-norm ReLU encoder over [cls ; probes], head on the class token, softplus: written out with one head loop."""
    crm = build(modulation="vector").crm
    probes = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    states = torch.cat([crm.cls_token.expand(2, 1, 16), probes], dim=1)
    for layer in crm.transformer_encoder.layers:
        attention = layer.self_attn
        query, key, value = F.linear(states, attention.in_proj_weight, attention.in_proj_bias).chunk(
            3, dim=-1
        )
        heads = []
        for head in range(4):
            part = slice(4 * head, 4 * head + 4)
            weights = (query[..., part] @ key[..., part].transpose(1, 2) / 2).softmax(-1)
            heads.append(weights @ value[..., part])
        states = layer.norm1(states + attention.out_proj(torch.cat(heads, dim=-1)))
        states = layer.norm2(states + layer.linear2(layer.linear1(states).relu()))
    first, _, second = crm.output_head
    expected = F.softplus(second(first(states[:, 0]).relu()))
    torch.testing.assert_close(crm(probes), expected, atol=1e-6, rtol=1e-5)
    with torch.inference_mode():  # torch's fused encoder
        torch.testing.assert_close(crm(probes), expected, atol=1e-5, rtol=1e-5)
    assert expected.shape == (2, 5)


def test_an_mlp_reads_all_probes_and_an_average_their_mean():
    """Written out: side by side through one layer with ReLU; the mean. Both to the same head, and no transformer."""
    probes = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    for kind in ("mlp", "average"):
        crm = build(crm=kind).crm
        if kind == "mlp":
            side_by_side = torch.cat([probes[:, 0], probes[:, 1], probes[:, 2]], dim=1)
            pooled = (side_by_side @ crm.mlp.weight.T + crm.mlp.bias).relu()
        else:
            pooled = (probes[:, 0] + probes[:, 1] + probes[:, 2]) / 3
        first, _, second = crm.output_head
        torch.testing.assert_close(
            crm(probes), F.softplus(second(first(pooled).relu())), atol=1e-6, rtol=1e-5
        )
        assert not any("transformer" in name or "cls" in name for name, _ in crm.named_parameters())


def test_frozen_probes_are_the_same_but_not_trained():
    free, frozen = build(seed=3), build(seed=3, trainable_probes=False)
    assert torch.equal(free.probe_tokens, frozen.probe_tokens)
    assert free.probe_tokens.requires_grad
    assert not frozen.probe_tokens.requires_grad


def test_beta_is_never_negative():
    crm = build().crm
    with torch.no_grad():
        crm.output_head[2].bias.fill_(-50)
    assert float(crm(torch.randn(8, 3, 16)).detach().min()) >= 0


def test_start_is_seeded():
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.crm.cls_token, other.crm.cls_token)
    assert 0.005 < float(first.probe_tokens.detach().std()) < 0.05
    assert 0.5 < float(first.crm.cls_token.detach().std()) < 1.7
