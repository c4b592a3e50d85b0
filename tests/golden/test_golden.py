"""Equality with the golden reference vectors: what the released code computes, number by number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from training.losses import info_nce
from training.metrics import oacir_ranks, recall_at
from training.model.convert import from_release
from training.model.packing import layout_of, pad_rows
from training.model.processing import AdaFocalProcessor
from training.model.qformer import AttentionMaps, image_memory
from training.model.regions import patch_mask, transform_box
from training.scoring import max_over_set

MODELS = ("scalar", "vector", "baseline_beta0", "baseline_beta1p5")
CASES = ("mixed", "all_boxes", "all_none")
HIDDEN, FEATURE, LOSS = 2e-5, 5e-6, 1e-5  # absolute tolerances the vectors' README gives for float32
# Gradients of attention key biases vanish exactly: their stored norms are rounding noise.
VANISHING = "attention.self.key.bias"


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def maps_or_none(attention: str) -> AttentionMaps | None:
    return AttentionMaps([], []) if attention == "eager" else None


@pytest.fixture(scope="module")
def tokens(golden):
    model = golden.model("scalar")
    return {side: model.encode_pixels(golden.inputs[f"{side}_pixels"]) for side in ("ref", "tgt")}


def encode(golden, tokens, name, case, maps=None):
    ids, mask = golden.inputs["input_ids"], golden.inputs["attention_mask"]
    return golden.model(name).encode_query(tokens["ref"], ids, mask, golden.patch_masks(case), maps)


def test_image_tokens(golden, tokens):
    model = golden.model("scalar")
    close(tokens["ref"], golden.outputs["vit_out_ref"], HIDDEN)
    for side in ("ref", "tgt"):
        close(model.vision_norm(tokens[side]), golden.outputs[f"image_embeds_{side}"], HIDDEN)


def test_layer_norms_have_the_reference_eps(golden):
    """Rows of tiny variance: a LayerNorm with another eps differs visibly."""
    model = golden.model("scalar")
    norms = {
        "Qformer.bert.embeddings.LayerNorm": model.qformer.layernorm,
        "crm_module.transformer_encoder.layers.0.norm1": model.caam.crm.transformer_encoder.layers[0].norm1,
        "ln_vision": model.vision_norm,
        "visual_encoder.blocks.0.norm1": model.tower.encoder.layers[0].layer_norm1,
    }
    for name, norm in norms.items():
        close(norm(golden.outputs[f"unit.{name}.in"]), golden.outputs[f"unit.{name}.out"], HIDDEN)


@pytest.mark.parametrize("case", CASES)
def test_patch_masks(golden, case):
    assert torch.equal(golden.patch_masks(case), golden.outputs[f"patch_mask.{case}"])


def test_target_sets(golden, tokens):
    model = golden.model("scalar")
    hidden = model.qformer(
        model.query_tokens, None, image_memory(tokens["tgt"], model.vision_norm), read="queries"
    )
    close(hidden, golden.outputs["target_hidden"], HIDDEN)
    close(model.encode_target(tokens["tgt"]), golden.outputs["target_features"], FEATURE)


def check_pass(golden, tokens, model, queries, expected, bias, attention):
    """Every row of a pass but padded text, which is never computed; then the rows that are read."""
    mask = golden.inputs["attention_mask"]
    text = model.embeddings(golden.inputs["input_ids"], mask)
    image = image_memory(tokens["ref"], model.vision_norm)
    count = queries.shape[1]
    rows = model.qformer(queries, text, image, bias, maps=maps_or_none(attention))
    real = torch.cat([torch.ones(len(mask), count), mask], dim=1).bool()
    hidden = pad_rows(rows, layout_of(len(mask), count, mask))
    close(hidden[real], expected[real], HIDDEN)
    close(model.qformer(queries, text, image, bias, "queries"), expected[:, :count], HIDDEN)
    close(model.qformer(queries, text, image, bias, "text_cls"), expected[:, count], HIDDEN)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_probe_pass(golden, tokens, attention):
    model = golden.model("scalar")
    expected = golden.outputs["scalar.mixed.probe_hidden"]
    check_pass(golden, tokens, model, model.caam.probe_tokens, expected, None, attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_fusion_pass(golden, tokens, name, attention):
    model = golden.model(name)
    expected = golden.outputs[f"{name}.mixed.fusion_hidden"]
    bias = golden.outputs.get(f"{name}.mixed.attention_bias")
    check_pass(golden, tokens, model, model.query_tokens, expected, bias, attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_query_similarity_and_loss(golden, tokens, name, case, attention):
    model, key = golden.model(name), f"{name}.{case}"
    query = encode(golden, tokens, name, case, maps_or_none(attention))
    close(query.embedding, golden.outputs[f"{key}.f_q"], FEATURE)

    runs = golden.cases["models"][name][case]
    assert (query.beta is not None) == runs["attention_bias_used"]
    if runs["caam_runs"]:
        close(query.beta, golden.outputs[f"{key}.beta"], HIDDEN)
        with torch.inference_mode():
            alone = encode(golden, tokens, name, case)
        close(alone.beta, golden.outputs[f"{key}.beta_inference"], HIDDEN)
    if runs["attention_bias_used"]:
        bias = model._attention_bias(query.beta, golden.patch_masks(case))
        close(bias, golden.outputs[f"{key}.attention_bias"], HIDDEN)

    targets = model.encode_target(tokens["tgt"])
    similarity = max_over_set(query.embedding, targets)
    close(similarity, golden.outputs[f"{key}.similarity"], FEATURE)
    loss = info_nce(similarity, model.temperature, torch.arange(len(similarity)))
    close(loss, golden.outputs[f"{key}.loss_align"].squeeze(), LOSS)
    gallery = torch.cat([targets, model.encode_target(tokens["ref"])])
    close(gallery, golden.outputs["gallery_features"], FEATURE)
    close(max_over_set(query.embedding, gallery, 5), golden.outputs[f"{key}.sim_gallery"], FEATURE)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_gradients(golden, tokens, name, case):
    model = golden.model(name)
    model.zero_grad(set_to_none=True)
    query = encode(golden, tokens, name, case)
    similarity = max_over_set(query.embedding, model.encode_target(tokens["tgt"]))
    info_nce(similarity, model.temperature, torch.arange(len(similarity))).backward()
    parameters = dict(model.named_parameters())

    norms = golden.json("grad_norms.json")[f"{name}.{case}"]
    compared = 0
    for released, expected in norms.items():
        if released.startswith("visual_encoder.") or released.startswith("Qformer.cls."):
            continue
        (ours,) = from_release({released: torch.empty(0)}, golden.config("scalar"))
        if ours not in parameters:
            assert expected is None, released
            continue
        gradient = parameters[ours].grad
        if expected is None:
            assert gradient is None, released
        else:
            assert gradient is not None, released
            tolerance = 1e-6 if released.endswith(VANISHING) else max(1e-4 * expected, 1e-6)
            assert float(gradient.norm()) == pytest.approx(expected, abs=tolerance), released
        compared += 1
    assert compared == len([n for n in parameters if not n.startswith("vision_model.")])
    for key, expected in golden.gradients.items():
        if key.startswith(f"{name}.{case}."):
            (ours,) = from_release({key.removeprefix(f"{name}.{case}."): expected}, golden.config("scalar"))
            # Element by element: within 1e-4 of the largest element of the tensor.
            close(parameters[ours].grad, expected, max(1e-4 * float(expected.abs().max()), 1e-6))


def test_box_tables(golden):
    table = golden.json("boxes.json")
    size, patch, ratio = table["final_size"], table["patch_size"], table["target_ratio"]
    for row in table["transform_and_mask"]:
        moved = transform_box(tuple(row["bbox_xyxy"]), *row["original_size_wh"], size, ratio)
        assert (None if moved is None else list(moved)) == row["transformed"], row
        mask = patch_mask(moved, size, patch)
        assert len(mask) == row["mask_len"]
        assert mask.nonzero().flatten().tolist() == row["mask_on"], row
    for row in table["mask_only_224"]:
        box = tuple(row["bbox"]) if row["bbox"] else None
        assert patch_mask(box, size, patch).nonzero().flatten().tolist() == row["mask_on"], row


def test_pixels(golden):
    stored = load_file(golden.folder / "pixels.safetensors")
    config = golden.config("scalar")
    processor = AdaFocalProcessor(None, config.image_size, config.patch_size, 1.25, config.max_text_tokens)
    names = sorted({name.split(".")[0] for name in stored})
    images = [Image.fromarray(stored[f"{name}.input_hwc_uint8"].numpy()) for name in names]
    expected = torch.stack([stored[f"{name}.output_chw"] for name in names])
    close(processor.pixels(images), expected, 1e-6)


def test_metric_cases(golden):
    similarities = load_file(golden.folder / "metrics.safetensors")
    for name, case in golden.json("metrics.json").items():
        scores = similarities[f"{name}.similarity"].numpy()
        instance = {image: path.split("/")[-2] for image, path in case["name_to_relpath"].items()}
        gallery, references, targets = case["index_names"], case["reference_names"], case["target_names"]
        target_rank, instance_rank = oacir_ranks(
            scores,
            gallery,
            [instance[image] for image in gallery],
            references,
            targets,
            [instance[image] for image in targets],
        )
        for metric, expected in case["metrics_percent"].items():
            kind, k = metric.split("@")
            ranks = target_rank if kind == "R" else instance_rank
            assert recall_at(ranks, [int(k)])[int(k)] == pytest.approx(expected, abs=1e-4), (name, metric)
        for query, top in enumerate(case["top10_after_reference_removal"]):
            expected_rank = top.index(targets[query]) + 1 if targets[query] in top else None
            assert (int(target_rank[query]) if target_rank[query] <= 10 else None) == expected_rank
            hits = [i for i, image in enumerate(top, 1) if instance[image] == instance[targets[query]]]
            assert (int(instance_rank[query]) if instance_rank[query] <= 10 else None) == min(
                hits, default=None
            )
        assert np.all(instance_rank <= target_rank)
