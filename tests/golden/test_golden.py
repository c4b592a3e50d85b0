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
from training.model.adafocal import AdaFocalModel
from training.model.caam import attention_bias
from training.model.packing import layout_of, pad_rows
from training.model.processing import AdaFocalProcessor
from training.model.qformer import AttentionMaps, image_memory
from training.model.regions import patch_mask, transform_box
from training.scoring import max_over_set

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
    return golden.model(name).encode_query(tokens["ref"], ids, mask, golden.patch_masks(case), maps=maps)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_image_tokens(golden, attention):
    model = golden.model("scalar", attention)
    tokens = {side: model.encode_pixels(golden.inputs[f"{side}_pixels"]) for side in ("ref", "tgt")}
    close(tokens["ref"], golden.outputs["vit_out_ref"], HIDDEN)
    for side in ("ref", "tgt"):
        close(model.vision_norm(tokens[side]), golden.outputs[f"image_embeds_{side}"], HIDDEN)


def test_layer_norms_have_the_reference_eps(golden):
    """Rows of tiny variance: a LayerNorm with another eps differs visibly."""
    norms = [key.removeprefix("unit.").removesuffix(".in") for key in golden.outputs if key.endswith(".in")]
    assert len(norms) >= 4  # of the tower, behind it, of the Q-Former, of the CRM
    for name in norms:
        found = golden.module(name)(golden.outputs[f"unit.{name}.in"])
        close(found, golden.outputs[f"unit.{name}.out"], HIDDEN)


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
def test_probe_passes(golden, tokens, attention):
    assert golden.stored("probe_hidden")
    for name, case in golden.stored("probe_hidden"):
        model, expected = golden.model(name), golden.outputs[f"{name}.{case}.probe_hidden"]
        check_pass(golden, tokens, model, model.caam.probe_tokens, expected, None, attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_fusion_passes(golden, tokens, attention):
    assert golden.stored("fusion_hidden")
    for name, case in golden.stored("fusion_hidden"):
        model, expected = golden.model(name), golden.outputs[f"{name}.{case}.fusion_hidden"]
        bias = golden.outputs.get(f"{name}.{case}.attention_bias")
        check_pass(golden, tokens, model, model.query_tokens, expected, bias, attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
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
        bias = attention_bias(query.beta, golden.patch_masks(case), model.config)
        close(bias, golden.outputs[f"{key}.attention_bias"], HIDDEN)

    targets = model.encode_target(tokens["tgt"])
    similarity = max_over_set(query.embedding, targets)
    close(similarity, golden.outputs[f"{key}.similarity"], FEATURE)
    loss = info_nce(similarity, model.temperature, torch.arange(len(similarity)))
    close(loss, golden.outputs[f"{key}.loss_align"].squeeze(), LOSS)
    assert loss.item() == pytest.approx(runs["loss_align"], abs=LOSS)
    gallery = torch.cat([targets, model.encode_target(tokens["ref"])])
    close(gallery, golden.outputs["gallery_features"], FEATURE)
    close(max_over_set(query.embedding, gallery, 5), golden.outputs[f"{key}.sim_gallery"], FEATURE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients(golden, tokens, name, case, attention):
    """Norms of all parameters and the stored tensors; null means no gradient, of a parameter or for want of one."""
    model, key = golden.model(name, attention), f"{name}.{case}"
    model.zero_grad(set_to_none=True)
    ids, mask = golden.inputs["input_ids"], golden.inputs["attention_mask"]
    query = model.encode_query(tokens["ref"], ids, mask, golden.patch_masks(case))
    similarity = max_over_set(query.embedding, model.encode_target(tokens["tgt"]))
    info_nce(similarity, model.temperature, torch.arange(len(similarity))).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if not n.startswith("vision_model.")}
    assert all(p.grad is None for p in model.tower.parameters())

    ours, compared = golden.our_names(), set()
    for released, expected in golden.json("grad_norms.json")[key].items():
        if (
            ours.get(released) not in gradients
        ):  # the frozen tower, the unused LM head, another model's modulator
            assert expected is None, released
            continue
        compared.add(ours[released])
        gradient = gradients[ours[released]]
        if expected is None:
            assert gradient is None, released
        else:
            assert gradient is not None, released
            tolerance = 1e-6 if released.endswith(VANISHING) else max(1e-4 * expected, 1e-6)
            assert float(gradient.norm()) == pytest.approx(expected, abs=tolerance), released
    assert compared == set(gradients)
    for stored, expected in golden.gradients.items():
        if stored.startswith(f"{key}."):
            gradient = gradients[ours[stored.removeprefix(f"{key}.")]]
            # Element by element: within 1e-4 of the largest element of the tensor.
            close(gradient, expected, max(1e-4 * float(expected.abs().max()), 1e-6))


def test_stored_features_give_the_same_bits_as_pixels(golden, tokens, tmp_path):
    """Tokens through a feature store on disk, a model without its tower: every output of the online way."""
    pytest.importorskip("pyarrow", reason="the feature store needs pyarrow")
    store = write_store(tmp_path, torch.cat([tokens["ref"], tokens["tgt"]]))
    count = len(tokens["ref"])
    rows = store.rows([str(i) for i in range(2 * count)])
    cached = {"ref": store.tokens(rows[:count]), "tgt": store.tokens(rows[count:])}
    for name, case in golden.stored("f_q"):
        online = golden.model(name)
        bare = AdaFocalModel(online.config, with_tower=False).eval()
        bare.load_state_dict(
            {n: w for n, w in online.state_dict().items() if not n.startswith("vision_model.")}
        )
        ids, mask = golden.inputs["input_ids"], golden.inputs["attention_mask"]
        found = bare.encode_query(cached["ref"], ids, mask, golden.patch_masks(case))
        wanted = encode(golden, tokens, name, case)
        assert torch.equal(found.embedding, wanted.embedding)
        assert (found.beta is None) == (wanted.beta is None)
        assert found.beta is None or torch.equal(found.beta, wanted.beta)
        assert torch.equal(bare.encode_target(cached["tgt"]), online.encode_target(tokens["tgt"]))


def write_store(root, tokens):
    """A feature store of float32 tokens in one shard; image i is called str(i)."""
    import pyarrow as pa

    from infra.base import storage, versions
    from infra.base.config import Config
    from training.features import FeatureStore, feature_key, shard_path

    class Nothing(Config):
        """A recipe without fields."""

    count = len(tokens)
    names = [str(i) for i in range(count)]
    draft = versions.start("features", "golden", "k", Nothing(), root=str(root))
    shard = shard_path(0, names)
    storage.write_bytes(draft.path(shard), tokens.detach().numpy().tobytes())
    index = {
        "image_id": names,
        "sha256": names,
        "shard": pa.array([0] * count, pa.int32()),
        "row": pa.array(range(count), pa.int64()),
    }
    storage.write_table(draft.path("index.parquet"), pa.table(index))
    files = [versions.file_entry(draft.url, path) for path in (shard, "index.parquet")]
    key = feature_key("tower", "processor", "float32")
    figures = {"feature_key": key, "tokens": tokens.shape[1], "width": tokens.shape[2], "dtype": "float32"}
    draft.commit(content_hash="c" * 64, files=files, figures=figures)
    return FeatureStore.open(draft.url, key)


def test_every_stored_output_is_compared(golden):
    """What the other tests ask for, by kind: an output of a new kind must not pass unseen."""
    known = {
        "f_q", "beta", "beta_inference", "attention_bias", "similarity", "sim_gallery", "loss_align",
        "probe_hidden", "fusion_hidden",
    }  # fmt: skip
    shared = {
        "vit_out_ref", "image_embeds_ref", "image_embeds_tgt", "target_hidden", "target_features", "gallery_features",
    }  # fmt: skip
    for key in golden.outputs:
        if not key.startswith(("unit.", "patch_mask.")):
            assert key in shared or (key.count(".") == 2 and key.rsplit(".", 1)[1] in known), key
    for name in golden.cases["models"]:
        assert set(golden.cases["models"][name]) == set(golden.cases["cases"])


def test_box_tables(golden):
    table = golden.json("boxes.json")
    size, patch, ratio = table["final_size"], table["patch_size"], table["target_ratio"]
    for row in table["transform_and_mask"]:
        moved = transform_box(tuple(row["bbox_xyxy"]), *row["original_size_wh"], size, ratio)
        assert (None if moved is None else list(moved)) == row["transformed"], row
        mask = patch_mask(moved, size, patch)
        assert len(mask) == row["mask_len"]
        assert mask.nonzero().flatten().tolist() == row["mask_on"], row
    for key in (key for key in table if key.startswith("mask_only_")):
        side = int(key.removeprefix("mask_only_"))
        for row in table[key]:
            box = tuple(row["bbox"]) if row["bbox"] else None
            assert patch_mask(box, side, patch).nonzero().flatten().tolist() == row["mask_on"], row


def test_pixels(golden):
    stored = load_file(golden.folder / "pixels.safetensors")
    c = golden.config("scalar")
    processor = AdaFocalProcessor(None, c.image_size, c.patch_size, c.pad_ratio, c.max_text_tokens)
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
            hits = [i for i, image in enumerate(top, 1) if instance[image] == instance[targets[query]]]
            for found, expected in (
                (int(target_rank[query]), top.index(targets[query]) + 1 if targets[query] in top else None),
                (int(instance_rank[query]), min(hits, default=None)),
            ):
                assert (found if found <= len(top) else None) == expected, (name, query)
        assert np.all(instance_rank <= target_rank)
