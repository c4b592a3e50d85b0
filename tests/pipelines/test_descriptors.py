from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from infra.base.config import load_recipe
from infra.base.errors import OacirError
from pipelines.collected import WORKING_SIDE_PX
from pipelines.config import BuildRecipe
from pipelines.descriptors import HubDescriber, OfflineDescriber, calibrate, make_describer, phash
from pipelines.images import ImageLimits, decode

DOMAINS = ("subjects", "grocery", "video", "nyala")


def blobs(seed: int, side: int = 96) -> Image.Image:
    """A picture of a few coloured discs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    picture = np.broadcast_to(rng.uniform(0, 255, 3), (side, side, 3)).copy()
    for _ in range(6):
        cx, cy, r = *rng.uniform(0, 1, 2), rng.uniform(0.1, 0.3)
        picture[(x - cx) ** 2 + (y - cy) ** 2 < r**2] = rng.uniform(0, 255, 3)
    return Image.fromarray(picture.astype(np.uint8))


def bits(a: int, b: int) -> int:
    return (a ^ b).bit_count()


# --- perceptual hash -------------------------------------------------------------------------------------------------


def test_a_hash_has_64_bits_half_of_them_set() -> None:
    hashes = [phash(blobs(seed)) for seed in range(20)]
    assert len(set(hashes)) == 20
    assert all(0 <= h < 1 << 64 and h.bit_count() == 32 for h in hashes)


def test_a_hash_of_one_cosine_sets_the_bits_of_its_frequency() -> None:
    y, x = (np.mgrid[0:32, 0:32] + 0.5) * np.pi / 32
    wave = np.cos(3 * y) * np.cos(
        2 * x
    )  # row frequency 3, column frequency 2: row 2, column 1 of the table of bits
    light = Image.fromarray(np.rint(128 + 100 * wave).astype(np.uint8))
    place = 63 - (2 * 8 + 1)
    assert phash(light) >> place & 1 == 1
    dark = Image.fromarray(np.rint(128 - 100 * wave).astype(np.uint8))
    assert phash(dark) >> place & 1 == 0


def test_alike_photos_differ_in_few_bits_others_in_many() -> None:
    for seed in range(5):
        picture = blobs(seed, 200)
        for like in (picture.resize((90, 90)), ImageEnhance.Brightness(picture).enhance(0.8)):
            assert bits(phash(picture), phash(like)) <= 6
        assert bits(phash(picture), phash(blobs(seed + 50, 200))) >= 16


# --- the offline descriptor ------------------------------------------------------------------------------------------


def test_rows_are_unit_vectors_that_depend_on_their_own_image_alone() -> None:
    describer = make_describer(None)
    images = [blobs(0), blobs(1, 33), Image.new("RGB", (70, 40)), Image.new("RGB", (1, 1), "red")]
    together = describer.describe(images)
    assert (together.shape, together.dtype) == ((4, 504), np.float32)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(together[1:2], describer.describe(images[1:2]))
    assert describer.describe([]).shape == (0, 504)


def test_half_of_a_cosine_is_gradients_half_is_colours() -> None:
    picture = np.asarray(blobs(3)).copy()
    luma = np.asarray(Image.fromarray(picture).convert("L"))
    grey = Image.fromarray(np.repeat(luma[..., None], 3, axis=-1))
    a, b = OfflineDescriber().describe([Image.fromarray(picture), grey])
    gradients, colours = float(a[:288] @ b[:288]), float(a[288:] @ b[288:])
    assert gradients == pytest.approx(0.5, abs=1e-3)  # same luma, same gradients, half of the weight
    assert colours < 0.3


def test_the_same_scene_is_near_another_scene_is_not() -> None:
    describer = OfflineDescriber()
    for seed in range(8):
        scene = blobs(seed, 160)
        moved = scene.crop((3, 3, 157, 157))
        same, other = describer.describe([scene, moved]), describer.describe([scene, blobs(seed + 100, 160)])
        assert same[0] @ same[1] > 0.85
        assert other[0] @ other[1] < 0.6


def test_calibrate_is_a_quantile() -> None:
    assert calibrate(np.linspace(0.0, 1.0, 101), 0.95) == 0.95
    assert calibrate(np.array([0.123456]), 0.5) == 0.12
    for similarities, quantile in ((np.array([]), 0.5), (np.array([0.1]), 1.5)):
        with pytest.raises(ValueError, match="needs cosines"):
            calibrate(similarities, quantile)


def test_describing_small_photos_is_faster_than_decoding_large_ones() -> None:
    images = [blobs(seed) for seed in range(64)]
    describer = OfflineDescriber()
    describer.describe(images[:2])
    began = time.process_time()
    describer.describe(images)
    assert len(images) / (time.process_time() - began) > 300  # images a second and core


@pytest.fixture(scope="module")
def photos(shared_dir: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Image id → descriptor of the real photos, as the collect stage sees them."""
    root = shared_dir / "data" / "photos"
    paths = [p for domain in DOMAINS for p in sorted((root / domain).rglob("*.jpg"))]
    images = [decode(p.read_bytes(), ImageLimits(), target_px=WORKING_SIDE_PX).image for p in paths]
    vectors = OfflineDescriber().describe(images)
    return {str(p.relative_to(root)): v for p, v in zip(paths, vectors, strict=True)}


def test_the_shipped_thresholds_are_the_calibrated_ones(photos: dict[str, np.ndarray[Any, Any]]) -> None:
    """0.999 quantile over different instances of a domain; what it does to the pairs of one instance."""
    shipped = load_recipe(BuildRecipe, "photos").thresholds
    too_similar = {}
    for domain in DOMAINS:
        ids = [i for i in photos if i.startswith(f"{domain}/")]
        vectors = np.stack([photos[i] for i in ids])
        cosines = vectors @ vectors.T
        owner = np.array([i.rsplit("/", 1)[0] for i in ids])
        once = np.triu(np.ones_like(cosines, dtype=bool), 1)
        same = owner[:, None] == owner[None, :]
        assert shipped.of(domain).tau_high == pytest.approx(
            calibrate(cosines[once & ~same], 0.999), abs=0.011
        )
        too_similar[domain] = float((cosines[once & same] > shipped.of(domain).tau_high).mean())
    assert too_similar["video"] > 0.5  # frames of one shot are mostly near-duplicates
    assert all(0.0 < too_similar[domain] < 0.1 for domain in ("subjects", "grocery", "nyala"))
    frames = sorted(i for i in photos if i.startswith("video/car-shadow/"))
    assert all(photos[a] @ photos[b] > shipped.of("video").tau_high for a, b in pairwise(frames))
    assert photos["subjects/dog6/01.jpg"] @ photos["subjects/dog6/02.jpg"] > 0.85  # one scene, seconds apart


# --- a named model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = str(tmp_path_factory.mktemp("clip"))
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = tower | {"image_size": 32, "patch_size": 8}
    text = tower | {"vocab_size": 99, "max_position_embeddings": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def test_a_named_model_gives_its_image_projection(tiny_clip: str) -> None:
    import torch
    from transformers import CLIPModel

    images = [blobs(0, 50), blobs(1, 32), Image.new("L", (40, 90), 200)]
    describer = make_describer(tiny_clip)
    vectors = describer.describe(images)
    assert describer.name == tiny_clip
    assert (vectors.shape, vectors.dtype) == ((3, 12), np.float32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    # the second needs no resizing: its pixels are normalised by hand with CLIP's published mean and deviation
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = (np.asarray(images[1]) / 255.0 - mean) / std
    with torch.inference_mode():
        model = CLIPModel.from_pretrained(tiny_clip)
        model.eval()
        hidden = model.vision_model(torch.tensor(pixels).permute(2, 0, 1)[None].float()).pooler_output
        by_hand = torch.nn.functional.normalize(model.visual_projection(hidden), dim=-1)[0].numpy()
    assert vectors[1] == pytest.approx(by_hand, abs=1e-4)


def test_a_model_without_projection_gives_its_pooled_output(tmp_path: Path) -> None:
    import torch
    from transformers import Dinov2Config, Dinov2Model
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    vectors = HubDescriber(str(tmp_path)).describe([blobs(0), blobs(1)])
    assert vectors.shape == (2, 16)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert abs(float(vectors[0] @ vectors[1])) < 0.9999


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(OacirError, match=r"encoder\.model .*: cannot be loaded .*allowed are") as caught:
        make_describer(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def test_a_clip_model_reads_texts_of_any_length_alike(tmp_path: Path) -> None:
    """Texts come out in the space of its images, whatever else is asked beside them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = ["[PAD]", "[UNK]", "a", "photo", "of", "red", "blue", "car"]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(words), "max_position_embeddings": 9, "eos_token_id": 7}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path
    )

    describer = HubDescriber(str(tmp_path))
    both = describer.describe_texts(["a photo of a red car", "a blue car"])
    assert both.shape == (2, 16)
    assert np.allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)
    assert np.allclose(describer.describe_texts(["a blue car"])[0], both[1], atol=1e-5)
    assert not np.allclose(both[0], both[1], atol=1e-2)


def test_the_offline_descriptor_reads_no_texts() -> None:
    with pytest.raises(OacirError, match=r"reads no texts; set encoder\.model"):
        OfflineDescriber().describe_texts(["a red car"])
