from __future__ import annotations

import torch
import torch.nn.functional as F

from training.model.caam import ContextualReasoning, Modulator


def build(outputs: int = 1, seed: int = 0) -> Modulator:
    modulator = Modulator(3, ContextualReasoning(16, 2, 4, 24, 0.1, 8, outputs))
    modulator.initialise(torch.Generator().manual_seed(seed))
    return modulator.eval()


def test_reasoning_equals_the_formula():
    """Post-norm ReLU encoder over [cls ; probes], head on the class token, softplus: written out with one head loop."""
    crm = build(outputs=5).crm
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
