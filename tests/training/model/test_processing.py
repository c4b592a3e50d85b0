from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import PreTrainedTokenizerFast

from infra.base.errors import OacirError
from training.model.config import preset
from training.model.processing import CLIP_MEAN, CLIP_STD, AdaFocalProcessor, normalise, train_wordpiece
from training.model.views import TEMPLATES

TEXTS = ["Show the dress on a mannequin, in a dark room!", "the same dress: outdoors (at night)."]


@pytest.fixture(scope="module")
def processor():
    sizes = {"vision_config.image_size": 70, "vision_config.patch_size": 7}
    config = preset("tiny", max_text_tokens=12, **sizes)
    return AdaFocalProcessor.for_model(config, train_wordpiece(TEXTS, 200))


def test_pixels_by_hand(processor):
    """A plain image of the input size is only normalised; a plain wide one gets black bars first."""
    colour = (200, 10, 90)
    expected = (torch.tensor(colour) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    square = processor.pixels([Image.new("RGB", (70, 70), colour)])
    assert square.shape == (1, 3, 70, 70)
    torch.testing.assert_close(square[0, :, 20, 30], expected)
    assert square[0].std(dim=(1, 2)).max() < 1e-6

    # 200 x 80: padded to 160 rows (ratio 1.25) by 40 on each side, that is a quarter of the height each.
    wide = processor.pixels([Image.new("RGB", (200, 80), colour)])
    black = -torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(wide[0, :, 5, 35], black)
    torch.testing.assert_close(wide[0, :, 64, 35], black)
    torch.testing.assert_close(wide[0, :, 35, 35], expected)


def test_normalising_late_changes_no_bit():
    """Feature stores made while numpy normalised each image hold the same tokens."""
    samples = np.arange(256, dtype=np.uint8).reshape(16, 16)
    unit = np.asarray(samples, np.float32)[..., None] / np.float32(255)
    expected = (unit - np.asarray(CLIP_MEAN, np.float32)) / np.asarray(CLIP_STD, np.float32)
    found = normalise(torch.from_numpy(samples).expand(2, 3, 16, 16))
    assert np.array_equal(found[1].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_mode_gives_three_channels(processor, mode):
    assert processor.pixels([Image.new(mode, (50, 90))]).shape == (1, 3, 70, 70)


@pytest.mark.parametrize("size", [(200, 200), (300, 120), (90, 210), (140, 150)])
def test_the_box_moves_with_the_pixels(processor, size):
    """Paint the box white on black: patches fully inside the mask are white, patches outside are black."""
    width, height = size
    box = (width // 4, height // 4, width * 3 // 4, height * 2 // 3)
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
    pixels = processor.pixels([image])[0, 0].numpy()
    white = ((pixels * CLIP_STD[0] + CLIP_MEAN[0]) > 0.5).reshape(10, 7, 10, 7).mean(axis=(1, 3))
    mask = processor.regions([box], [size])[0, 1:].reshape(10, 10).numpy().astype(bool)
    assert mask.any()
    assert np.all(white[~mask] < 0.2)  # half-pixel rounding at the border
    assert np.all(mask[white > 0.2])
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    assert inner.any()
    assert np.all(white[1:-1, 1:-1][inner] > 0.8)


def test_no_box_gives_an_empty_row(processor):
    regions = processor.regions([None, (0, 0, 50, 50), (0, 0, 3, 60)], [(50, 50), (50, 50), (200, 60)])
    assert regions.shape == (3, 101)
    assert regions.sum(1).tolist() == [0, 100, 0]  # the third lies outside the centre crop
    assert regions[:, 0].sum() == 0


def test_texts(processor):
    ids, mask = processor.texts(["The DRESS outdoors!", "the dress"])
    vocabulary = processor.tokenizer.get_vocab()
    assert ids[1].tolist() == [vocabulary[t] for t in ("[CLS]", "the", "dress", "[SEP]", "[PAD]")]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert processor.texts(["the dress"], pad_to_max=True)[0].shape == (1, 12)
    long_ids, _ = processor.texts(["dress " * 80])
    assert long_ids.shape == (1, 12)
    assert long_ids[0, -1] == vocabulary["[SEP]"]


def test_call_and_save(processor, tmp_path):
    arguments = ([Image.new("RGB", (80, 60))], [TEXTS[0]], [(10.0, 10.0, 30.0, 30.0)])
    inputs = processor(*arguments)
    processor.save_pretrained(tmp_path)
    again = AdaFocalProcessor.from_pretrained(tmp_path)(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(inputs, again, strict=True))
    assert inputs.patch_mask.sum() > 0


def asking(processor, **settings):
    """The same processor with other settings."""
    sizes = {n: getattr(processor, n) for n in ("image_size", "patch_size", "pad_ratio", "max_text_tokens")}
    return AdaFocalProcessor(processor.tokenizer, **sizes, **settings)


def scene():
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8))


def test_a_mask_is_a_region_too(processor):
    """A filled mask on the grid is its box; a mask with a hole is not."""
    mask = np.zeros((70, 70), bool)
    mask[7:35, 14:49] = True
    box = (14.0, 7.0, 49.0, 35.0)
    of_mask, of_box = processor.regions([mask, box], [(70, 70)] * 2)
    assert of_mask.sum() == 4 * 5
    assert torch.equal(of_mask, of_box)
    mask[14:21, 21:28] = False
    assert processor([Image.new("RGB", (70, 70))], [TEXTS[0]], [mask]).patch_mask.sum() == 4 * 5 - 1
    empty = processor.regions([mask, np.zeros((70, 70), bool), None], [(70, 70)] * 3)
    assert empty.sum(1).tolist() == [19, 0, 0]
    with pytest.raises(OacirError, match="of an image of 80 x 60 px"):
        processor([scene()], [TEXTS[0]], [mask])


def test_crop_encodes_the_box_alone_and_gives_no_region(processor):
    crop = asking(processor, reference_view="crop")
    mask = np.zeros((60, 80), bool)
    mask[10, 5] = mask[39, 44] = True  # the box around it is (5, 10, 45, 40)
    expected = processor.pixels([scene().crop((5, 10, 45, 40))] * 2)
    inputs = crop([scene()] * 2, TEXTS, [(5.0, 10.0, 45.0, 40.0), mask])
    assert torch.equal(inputs.pixels, expected)
    assert not inputs.patch_mask.any()
    assert torch.equal(crop.pixels([scene()]), processor.pixels([scene()]))  # candidates are whole


def test_drawn_shows_the_box_and_keeps_the_region(processor):
    drawn = asking(processor, reference_view="drawn")
    box = (5.0, 10.0, 45.0, 40.0)
    inputs, plain = drawn([scene()], [TEXTS[0]], [box]), processor([scene()], [TEXTS[0]], [box])
    assert torch.equal(inputs.patch_mask, plain.patch_mask)
    by_hand = np.array(scene())
    line = np.zeros((60, 80), bool)
    line[10:40, 5:45] = True
    line[13:37, 8:42] = False
    by_hand[line] = (255, 0, 0)
    assert torch.equal(inputs.pixels, processor.pixels([Image.fromarray(by_hand)]))
    assert not torch.equal(inputs.pixels, plain.pixels)


@pytest.mark.parametrize("view", ["crop", "drawn"])
@pytest.mark.parametrize("region", [None, np.zeros((60, 80), bool)], ids=["none", "empty mask"])
def test_a_view_needs_a_box(processor, view, region):
    with pytest.raises(OacirError, match="give a box, or a mask that is not empty"):
        asking(processor, reference_view=view)([scene()], [TEXTS[0]], [region])


def test_texts_name_the_object(processor):
    named, drawn = asking(processor, text_entity="named"), asking(processor, text_entity="drawn")
    plain = processor.tokenizer
    spoken = named.name_entities(["outdoors"], ["dress"], ["q7"])
    assert spoken[0] in [t.format(entity="dress", text="outdoors") for t in TEMPLATES]
    assert named.texts(["outdoors"], ["dress"], ["q7"])[0].tolist() == processor.texts(spoken)[0].tolist()
    assert "red bounding box" in drawn.name_entities(["outdoors"])[0]
    assert (
        plain.decode(processor.texts(["outdoors"], ["dress"])[0][0], skip_special_tokens=True) == "outdoors"
    )
    with pytest.raises(OacirError, match="give the category"):
        named.texts(["outdoors"])


def test_a_batch_has_one_text_and_one_region_for_each_image(processor):
    told = r"a text and a region for each image, in lists; here are 2 images, 1 texts, 2 regions"
    with pytest.raises(OacirError, match=told):
        processor([scene()] * 2, TEXTS[:1], [None, None])
    with pytest.raises(OacirError, match="in lists"):  # its letters are as many as the images
        processor([scene()] * 2, "ab", [None, None])


def test_texts_are_padded_on_the_right_whatever_the_tokenizer_prefers(processor):
    """Positions count from 0 at [CLS], where the query is read: padding before it would move both."""
    texts = [TEXTS[0], "the dress"]
    expected = processor.texts(texts)
    left = train_wordpiece(TEXTS, 200)
    left.padding_side = "left"
    found = AdaFocalProcessor.for_model(preset("tiny", max_text_tokens=12), left).texts(texts)
    assert expected[1].min() == 0  # something is padded
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]


def test_a_tokenizer_of_another_kind_is_refused():
    other = PreTrainedTokenizerFast(
        tokenizer_object=train_wordpiece(TEXTS, 200).backend_tokenizer, pad_token="[PAD]"
    )
    with pytest.raises(OacirError, match=r"has no cls_token, sep_token: .* \(bert-base-uncased\)"):
        AdaFocalProcessor.for_model(preset("tiny"), other)


def test_settings_are_saved_and_older_files_mean_the_plain_ones(processor, tmp_path):
    told = {"reference_view": "drawn", "text_entity": "drawn", "region": "mask"}
    asking(processor, **told).save_pretrained(tmp_path)
    loaded = AdaFocalProcessor.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in told} == told
    settings = tmp_path / "processor_config.json"
    tree = json.loads(settings.read_text())
    settings.write_text(json.dumps({k: v for k, v in tree.items() if k not in told}))
    old = AdaFocalProcessor.from_pretrained(tmp_path)
    assert (old.reference_view, old.text_entity, old.region) == ("full", "none", "box")
    with pytest.raises(OacirError, match=r"reference_view 'zoom' is none of \['full', 'crop', 'drawn'\]"):
        asking(processor, reference_view="zoom")


def test_errors(tmp_path):
    with pytest.raises(OacirError, match=r"holds no processor_config\.json"):
        AdaFocalProcessor.from_pretrained(tmp_path)
    with pytest.raises(OacirError, match=r"raise qformer\.vocab_size"):
        AdaFocalProcessor.for_model(preset("tiny", **{"qformer.vocab_size": 20}), train_wordpiece(TEXTS, 200))
