from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from infra.base.errors import OacirError
from training.model.config import preset
from training.model.processing import CLIP_MEAN, CLIP_STD, AdaFocalProcessor, train_wordpiece

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


def test_errors(tmp_path):
    with pytest.raises(OacirError, match=r"holds no processor_config\.json"):
        AdaFocalProcessor.from_pretrained(tmp_path)
    with pytest.raises(OacirError, match=r"raise qformer\.vocab_size"):
        AdaFocalProcessor.for_model(preset("tiny", **{"qformer.vocab_size": 20}), train_wordpiece(TEXTS, 200))
