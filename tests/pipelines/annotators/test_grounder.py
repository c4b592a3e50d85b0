"""The detector's boxes against the library's own reading of the same outputs; pixels against hand-worked ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_detector import save_tiny_detector

from infra.base.errors import OacirError
from pipelines.annotators.grounder import Grounder, caption, in_pixels


def photo(seed: int, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["grounding-dino", "mm-grounding-dino"])
def test_boxes_are_those_of_the_library_in_pixels_of_the_whole_photo(kind: str, tmp_path: Path) -> None:
    import torch

    grounder = Grounder(save_tiny_detector(tmp_path / kind, kind), gpu=False)
    photos, labels = [photo(1, 90, 60), photo(2, 50, 70)], ["Red cup", "thing"]
    sizes = [(900, 600), (500, 700)]  # the photos were decoded at a tenth
    found = grounder.look_for(photos, labels, sizes)
    inputs = grounder.processor(images=photos, text=["red cup.", "thing."], padding=True, return_tensors="pt")
    with torch.inference_mode():
        outputs = grounder.model(**inputs)
    theirs = grounder.processor.post_process_grounded_object_detection(
        outputs,
        inputs["input_ids"],
        threshold=0.0,
        text_threshold=0.0,
        target_sizes=[(h, w) for w, h in sizes],
    )
    for seen, their, (width, height) in zip(found, theirs, sizes, strict=True):
        assert seen is not None
        best = int(their["scores"].argmax())
        assert seen.score == pytest.approx(float(their["scores"][best]), abs=1e-6)
        x1, y1, x2, y2 = their["boxes"][best].tolist()
        wanted = (
            max(0, np.floor(x1)),
            max(0, np.floor(y1)),
            min(width, np.ceil(x2)),
            min(height, np.ceil(y2)),
        )
        assert seen.box == pytest.approx(wanted, abs=1.001)  # a share that is whole but for its last bit
        assert seen.box[2] <= width
        assert seen.box[3] <= height


def test_other_photos_and_words_move_the_box(tmp_path: Path) -> None:
    grounder = Grounder(save_tiny_detector(tmp_path), gpu=False)
    one, two = photo(1, 90, 60), photo(2, 90, 60)
    seen = grounder.look_for([one, two, one], ["cup", "cup", "red garment"], [(90, 60)] * 3)
    assert len({s.score for s in seen if s}) == 3
    (alone,) = grounder.look_for([one], ["cup"], [(90, 60)])
    assert alone is not None
    assert seen[0] is not None
    assert alone.score == pytest.approx(seen[0].score, abs=1e-5)


def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OacirError, match="cannot be loaded") as error:
        Grounder(str(tmp_path / "absent"), gpu=False)
    assert "\n" not in str(error.value)
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(OacirError, match="is a bert model; allowed are grounding-dino, mm-grounding-dino"):
        Grounder(str(tmp_path / "bert"), gpu=False)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(OacirError, match=r"grounding.gpus asks for a GPU"):
        Grounder("anything", gpu=True)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((0.5, 0.5, 0.5, 0.5), (25, 50, 75, 150)),
        ((0.5, 0.5, 1.0, 1.0), (0, 0, 100, 200)),
        ((0.0, 0.0, 0.5, 0.5), (0, 0, 25, 50)),
        ((0.5, 0.5, 0.501, 0.5), (24, 50, 76, 150)),
        ((1.5, 0.5, 0.2, 0.2), None),
        ((0.5, 0.5, 0.0, 0.5), None),
        ((float("nan"), 0.5, 0.5, 0.5), None),
    ],
)
def test_boxes_in_pixels(place: tuple[float, ...], expected: tuple[int, ...] | None) -> None:
    assert in_pixels(place, (100, 200)) == expected


@given(st.tuples(*[st.floats(-0.5, 1.5)] * 4), st.integers(1, 5000), st.integers(1, 5000))
def test_every_box_lies_in_its_photo(place: tuple[float, ...], width: int, height: int) -> None:
    if box := in_pixels(place, (width, height)):
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height


def test_captions() -> None:
    assert [caption(c) for c in ("Red Cup", " a  cup. ", "T. shirt")] == ["red cup.", "a cup.", "t shirt."]
