"""Every family against transformers' own forward of the same weights, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from local_hub import local_hub
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_foreign import TINY

from infra.base.errors import OacirError
from pipelines.retrieval.foreign.config import ForeignSection
from pipelines.retrieval.foreign.family import Family
from pipelines.retrieval.foreign.load import find_foreign, open_family

TEXTS = ["in the red box", "the same car on a place", "a"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 255, (*size, 3), np.uint8))
        for size in ((64, 48), (40, 80), (90, 90))
    ]


def opened(folder: str, **options: object) -> Family:
    return open_family(find_foreign(folder), ForeignSection.model_validate(options), CPU)


@pytest.mark.parametrize("name", TINY)
def test_vectors_are_of_unit_length_and_do_not_depend_on_their_batch(
    name: str, tiny: dict[str, str], photos: list[Image.Image]
) -> None:
    family = opened(tiny[name])
    with torch.inference_mode():
        whole = [family.images(photos), family.texts(TEXTS), family.references(photos)]
        parts = [
            torch.cat([family.images([p]) for p in photos]),
            torch.cat([family.texts([t]) for t in TEXTS]),
            torch.cat([family.references([p]) for p in photos]),
        ]
        if "joint" in family.composes:
            whole.append(family.joint(photos, TEXTS))
            parts.append(torch.cat([family.joint([p], [t]) for p, t in zip(photos, TEXTS, strict=True)]))
            other = family.joint(photos[::-1], TEXTS)
            assert (whole[-1][0] - other[0]).abs().max() > 1e-3  # it sees the photo
            other = family.joint(photos, TEXTS[::-1])
            assert (whole[-1][0] - other[0]).abs().max() > 1e-3  # and reads the text
    for all_at_once, one_by_one in zip(whole, parts, strict=True):
        torch.testing.assert_close(all_at_once, one_by_one, atol=2e-5, rtol=0)
        torch.testing.assert_close(all_at_once.norm(dim=-1), torch.ones(all_at_once.shape[:-1]))
    assert (whole[0][0] - whole[0][1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["clip", "siglip", "blip2"])
def test_scores_are_those_of_transformers_own_forward(
    name: str, tiny: dict[str, str], photos: list[Image.Image]
) -> None:
    from transformers import AutoModel, AutoProcessor, Blip2ForImageTextRetrieval

    kind = Blip2ForImageTextRetrieval if name == "blip2" else AutoModel
    model, processor = kind.from_pretrained(tiny[name]).eval(), AutoProcessor.from_pretrained(tiny[name])
    pixels = processor.image_processor(photos, return_tensors="pt")
    padding = "max_length" if name == "siglip" else True
    words = processor.tokenizer(TEXTS, padding=padding, max_length=32, return_tensors="pt")
    family = opened(tiny[name])
    with torch.inference_mode():
        told = model(**pixels, **words)
        ours = (family.images(photos) @ family.texts(TEXTS).T).amax(1)  # [photos, texts]
    theirs = told.logits_per_image
    if name != "blip2":
        theirs = theirs - (model.logit_bias if name == "siglip" else 0)
        theirs = theirs / model.logit_scale.exp()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_blip2_asks_as_our_own_model_without_modulation_does(
    tiny: dict[str, str], photos: list[Image.Image]
) -> None:
    """The same weights, converted: encode_query and encode_target of β = 0 give the same vectors."""
    from training.model.auto import new_model
    from training.model.convert.load import read_checkpoint

    converted = read_checkpoint(
        tiny["blip2"], overrides={"vision_config.num_attention_heads": 2, "qformer.num_attention_heads": 2}
    )
    model = new_model(converted.config)
    model.load_state_dict(converted.state)
    model.eval()
    family = opened(tiny["blip2"])
    with torch.inference_mode():
        pixels = family.pixels(family.image_processor, photos)["pixel_values"]  # type: ignore[attr-defined]
        words = family.tokenizer(TEXTS, padding=True, return_tensors="pt")  # type: ignore[attr-defined]
        tokens = model.encode_pixels(pixels)
        query = model.encode_query(tokens, words["input_ids"], words["attention_mask"], None).embedding
        torch.testing.assert_close(family.images(photos), model.encode_target(tokens), atol=1e-4, rtol=0)
        torch.testing.assert_close(family.joint(photos, TEXTS), query, atol=1e-4, rtol=0)


def test_qwen_takes_the_last_state_of_its_chat(tiny: dict[str, str], photos: list[Image.Image]) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(tiny["qwen_vl"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny["qwen_vl"])
    pixels = AutoImageProcessor.from_pretrained(tiny["qwen_vl"])(photos[:1], return_tensors="pt")
    count = int(pixels["image_grid_thw"].prod()) // 4
    assert count > 1
    chat = (
        f"<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * count}"
        f"<|vision_end|>{TEXTS[1]}<|im_end|>\n<|im_start|>assistant\n"
    )
    words = tokenizer(chat, return_tensors="pt", add_special_tokens=False)
    marked = (words["input_ids"] == model.config.image_token_id).int()
    with torch.inference_mode():
        told = model(**words, **pixels, mm_token_type_ids=marked, output_hidden_states=True)
        expected = torch.nn.functional.normalize(told.hidden_states[-1][:, -1], dim=-1)
        family = opened(tiny["qwen_vl"], query_instruction="Find it.")
        torch.testing.assert_close(family.joint(photos[:1], TEXTS[1:2]), expected, atol=1e-5, rtol=0)
        spelt = family.joint(photos[:1], ["<|image_pad|> there"])  # asks for no second photo
    assert torch.isfinite(spelt).all()


def test_texts_beyond_the_models_length_are_cut_and_counted(tiny: dict[str, str]) -> None:
    for name, length in (("clip", 77), ("siglip", 32), ("blip2", 32), ("qwen_vl", 512)):
        family = opened(tiny[name])
        word = "car " if name == "blip2" else "a"
        with torch.inference_mode():
            family.texts([word * 2, word * (length + 5), word * (length + 5), word * (length + 9)])
        assert len(family.cut) == 2, name


def test_what_cannot_be_asked_is_one_line(tiny: dict[str, str], tmp_path: Path) -> None:
    def refused(folder: str | Path, **options: object) -> str:
        with pytest.raises(OacirError) as caught:
            opened(str(folder), **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "Clip composes by sum, slerp, image, text" in refused(tiny["clip"], compose="joint")
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in refused(tmp_path / "empty")
    for kind, said in (
        ("bert", "is a bert model; known are clip, siglip, blip-2, qwen2_vl"),
        ("adafocal", "leave the foreign options out"),
    ):
        other = tmp_path / kind
        other.mkdir()
        (other / "config.json").write_text(json.dumps({"model_type": kind}))
        assert said in refused(other)
    holed = tmp_path / "holed"
    shutil.copytree(tiny["clip"], holed)
    weights = load_file(holed / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, holed / "model.safetensors", {"format": "pt"})
    assert (
        "1 weights of AutoModel are not in it and would be random, first visual_projection.weight"
        in refused(holed)
    )
    mute = tmp_path / "mute"
    shutil.copytree(tiny["qwen_vl"], mute)
    (mute / "chat_template.jinja").unlink()
    assert "has no chat template" in refused(mute)
    bare = tmp_path / "bare"
    shutil.copytree(tiny["clip"], bare)
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    assert "its processor cannot be loaded" in refused(bare)
    assert "copy it here first" in refused("s3://bucket/model")


def test_a_name_is_looked_up_on_the_hub(tiny: dict[str, str], tmp_path: Path) -> None:
    """In processes of their own: huggingface_hub reads where the Hub is when it is imported."""

    def found(name: str, url: str) -> tuple[int, str]:
        script = (
            "import sys; from pipelines.retrieval.foreign.load import find_foreign;"
            "place = find_foreign(sys.argv[1]); print(place.url, place.content_hash)"
        )
        env = os.environ | {
            "HF_ENDPOINT": url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run(
            [sys.executable, "-c", script, name], env=env, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout or done.stderr

    content = find_foreign(tiny["clip"]).content_hash
    with local_hub() as hub:
        files = {p.name: p.read_bytes() for p in Path(tiny["clip"]).iterdir()}
        hub.repositories["maker/tiny"] = files | {"pytorch_model.bin": b"x", "README.md": b"x"}
        code, said = found("maker/tiny", hub.url)
        assert code == 0, said
        url, their_content = said.split()
        assert their_content == content  # neither the second copy of the weights nor the words about them
        assert {p.name for p in Path(url).iterdir()} == set(files)
        code, said = found("maker/other", hub.url)
        assert code == 1
        assert "no such folder, and the Hugging Face Hub does not give it" in said.splitlines()[-1]
