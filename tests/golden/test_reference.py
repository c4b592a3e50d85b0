"""The slow reference of tests/reference equals the vectors too: what a bare clone is held against is the release."""

from __future__ import annotations

import torch

from tests.golden.conftest import RELEASED_CRM_HEADS, modulation_of
from tests.reference import adafocal as reference


def distance(found, stored):
    return (found.detach() - stored.double()).abs().max().item()


def test_the_slow_reference_equals_the_vectors(golden, name):
    """Of the cases with hidden states; the vectors' own rounding is all that is left."""
    for model, case in golden.stored("fusion_hidden"):
        if model == name:
            check(golden, name, case)


def check(golden, name, case):
    s = golden.sizes
    modulation, fixed_beta = modulation_of(name)
    options = reference.Options(
        s["image_size"],
        s["patch_size"],
        s["vit_heads"],
        s["qformer_heads"],
        s.get("crm_heads", RELEASED_CRM_HEADS),
        s["cross_attention_freq"],
        modulation,
        fixed_beta,
    )
    stored = golden.vector if name == "vector" else golden.scalar
    weights = {n: w.double() for n, w in stored.items() if w.is_floating_point()}
    boxes = golden.cases["cases"][case]
    masks = torch.stack([reference.patch_mask(tuple(b) if b else None, options) for b in boxes])
    assert torch.equal(masks, golden.outputs[f"patch_mask.{case}"].double())

    tokens = reference.tower(weights, options, golden.inputs["ref_pixels"].double())
    assert distance(tokens, golden.outputs["vit_out_ref"]) < 1e-5
    texts = golden.inputs["input_ids"], golden.inputs["attention_mask"]
    query = reference.encode_query(weights, options, tokens, *texts, masks)
    targets, hidden = reference.encode_target(
        weights, options, reference.tower(weights, options, golden.inputs["tgt_pixels"].double())
    )
    scores = reference.similarity(query.f_q, targets)
    found = {
        f"{name}.{case}.f_q": query.f_q,
        f"{name}.{case}.beta": query.beta,
        f"{name}.{case}.attention_bias": query.bias,
        f"{name}.{case}.probe_hidden": query.probe_hidden,
        f"{name}.{case}.fusion_hidden": query.hidden,
        f"{name}.{case}.similarity": scores,
        f"{name}.{case}.loss_align": reference.info_nce(scores, weights["temp"]),
        "target_hidden": hidden,
        "target_features": targets,
    }
    compared = {key for key in found if key in golden.outputs}
    assert len(compared) >= 6
    for key in compared:
        assert distance(found[key], golden.outputs[key]) < 1e-5, key
