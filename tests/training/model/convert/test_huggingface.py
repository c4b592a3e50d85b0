"""A directory of Hugging Face's `Blip2ForImageTextRetrieval` → the same numbers from ours."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import Blip2Config, Blip2ForImageTextRetrieval

from infra.base.errors import OacirError
from training.model.auto import new_model
from training.model.convert import read_checkpoint, to_huggingface

QUERIES, TOKENS = 5, 17


@pytest.fixture(scope="module")
def theirs() -> Blip2ForImageTextRetrieval:
    """Small, with random weights everywhere: as transformers starts it, its tower and queries are nearly zero."""
    config = Blip2Config(
        vision_config={
            "hidden_size": 24, "intermediate_size": 52, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 28, "patch_size": 7,
        },
        qformer_config={
            "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 8,
            "intermediate_size": 48, "max_position_embeddings": 20, "use_qformer_text_input": True,
        },
        num_query_tokens=QUERIES,
        image_text_hidden_size=12,
        attn_implementation="eager",
    )  # fmt: skip
    model = Blip2ForImageTextRetrieval(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            fan_in = max(1, weight[0].numel()) if weight.ndim > 1 else 1
            weight.copy_(
                torch.randn(weight.shape, generator=generator) * (0.2 if fan_in == 1 else fan_in**-0.5)
            )
            if "norm" in name.lower() and name.endswith("weight"):
                weight.add_(1)
            if name.endswith("qkv.bias"):
                weight[24:48] = 0  # BLIP-2's keys have no bias
    # the class takes the tower's 1e-6 here, BLIP-2 was trained with 1e-5
    model.vision_model.post_layernorm.eps = 1e-5
    return model


@pytest.fixture(scope="module", params=["10GB", "20KB"], ids=["one-file", "sharded"])
def folder(request, theirs, tmp_path_factory):
    place = tmp_path_factory.mktemp("blip2")
    theirs.save_pretrained(place, max_shard_size=request.param)
    assert (place / "model.safetensors.index.json").exists() == (request.param == "20KB")
    return place


@torch.no_grad()
def test_image_tokens_target_features_and_query_are_equal(theirs, folder):
    found = read_checkpoint(folder)
    assert (found.layout, found.started) == ("huggingface", ("temp",))
    assert set(found.left_out) == {"itm_head.weight", "itm_head.bias"}
    assert found.config.qformer.num_attention_heads == 8
    ours = new_model(found.config)
    ours.load_state_dict(found.state)
    ours.eval()

    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 28, 28, generator=generator)
    mask = (torch.arange(9)[None] < torch.tensor([9, 4, 6])[:, None]).long()
    ids = torch.randint(1, 50, (3, 9), generator=generator) * mask

    image = theirs.vision_model(pixels).last_hidden_state
    assert image.std() > 0.5
    tokens = ours.encode_pixels(pixels)
    torch.testing.assert_close(ours.vision_norm(tokens), image, atol=2e-5, rtol=0)

    queries, seen = theirs.query_tokens.expand(3, -1, -1), torch.ones(3, TOKENS)
    targets = theirs.qformer(query_embeds=queries, encoder_hidden_states=image, encoder_attention_mask=seen)
    features = F.normalize(theirs.vision_projection(targets.last_hidden_state), dim=-1)
    torch.testing.assert_close(ours.encode_target(tokens), features, atol=5e-6, rtol=0)

    fused = theirs.qformer(
        query_embeds=theirs.embeddings(input_ids=ids, query_embeds=queries),
        query_length=QUERIES,
        attention_mask=torch.cat([torch.ones(3, QUERIES), mask], dim=1),
        encoder_hidden_states=image,
        encoder_attention_mask=seen,
    )
    f_q = F.normalize(theirs.text_projection(fused.last_hidden_state[:, QUERIES]), dim=-1)
    assert (f_q @ f_q.T).triu(1).max() < 0.99  # the three queries differ
    torch.testing.assert_close(ours.encode_query(tokens, ids, mask, None).embedding, f_q, atol=5e-6, rtol=0)


def test_every_weight_comes_back(theirs, folder):
    found = read_checkpoint(folder, modulation="scalar", overrides={"crm_feedforward": 20, "beta_hidden": 8})
    assert found.config.modulation == "scalar"
    assert len([name for name in found.started if name.startswith("caam.")]) == len(found.started) - 1
    back = to_huggingface(found.state)
    expected = {
        name: weight for name, weight in theirs.state_dict().items() if not name.startswith("itm_head.")
    }
    assert set(back) == set(expected)
    assert all(torch.equal(back[name], weight) for name, weight in expected.items())


def test_what_is_missing_is_named(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    lost = index["query_tokens"]
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(OacirError, match=rf"{lost} named by model\.safetensors\.index\.json is missing"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(
        OacirError, match=r"holds neither .* pickled weights \(pytorch_model\.bin\) are not read"
    ):
        read_checkpoint(tmp_path)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(OacirError, match="no checkpoint of layout 'released' but looks like 'huggingface'"):
        read_checkpoint(tmp_path, "released")


def test_a_model_of_other_sizes_than_its_configuration_is_refused(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_query_tokens"] = 7
    config["qformer_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OacirError) as error:
        read_checkpoint(tmp_path)
    assert "'query_tokens [1, 5, 32] instead of [1, 7, 32]'" in str(error.value)
    assert "22 unexpected: 'qformer.encoder.layer.3." in str(error.value)
