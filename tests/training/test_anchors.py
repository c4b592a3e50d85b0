"""Anchors of queries: boxes and masks as patch masks and views, masks as they were built, each read once."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infra.base import storage
from infra.base.errors import OacirError
from training.anchors import Anchor, MaskFile, anchors_of, load_anchors, region_counts
from training.model.processing import AdaFocalProcessor, train_wordpiece

SIZE = (40, 40)


def processor(**settings: Any) -> AdaFocalProcessor:
    """4 x 4 patches of 10 px, an image of 40 x 40 px as it is."""
    return AdaFocalProcessor(train_wordpiece(["a"], 30), 40, 10, 1.25, 8, **settings)


def mask_file(path: Path, *boxes: tuple[int, int, int, int]) -> MaskFile:
    mask = Image.new("L", SIZE)
    for box in boxes:
        mask.paste(255, box)
    stream = io.BytesIO()
    mask.save(stream, "PNG")
    path.write_bytes(stream.getvalue())
    return MaskFile(str(path), hashlib.sha256(stream.getvalue()).hexdigest())


@pytest.fixture
def anchors(tmp_path: Path) -> list[Anchor]:
    """A box; a box and a mask of two corners; the same again; neither."""
    corners = mask_file(tmp_path / "corners.png", (0, 0, 5, 5), (32, 31, 38, 39))
    return [
        Anchor("d/0", SIZE, (0.0, 0.0, 20.0, 10.0), None),
        Anchor("d/1", SIZE, (10.0, 10.0, 20.0, 20.0), corners),
        Anchor("d/1", SIZE, (10.0, 10.0, 20.0, 20.0), corners),
        Anchor("d/2", SIZE, None, None),
    ]


def patches(found: torch.Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in found]


def test_boxes_are_asked_for_unless_the_processor_wants_masks(anchors: list[Anchor]) -> None:
    found = load_anchors(anchors, processor())
    assert patches(found.patch_masks) == [[1, 2], [6], [6], []]
    assert found.reference_keys == ["d/0", "d/1", "d/1", "d/2"]
    assert found.boxes == [None] * 4
    assert region_counts(anchors, processor()) == {"mask": 0, "box": 4}


def test_a_query_without_a_mask_is_asked_with_its_box(anchors: list[Anchor]) -> None:
    masks = processor(region="mask")
    assert patches(load_anchors(anchors, masks).patch_masks) == [[1, 2], [1, 16], [1, 16], []]
    assert region_counts(anchors, masks) == {"mask": 2, "box": 2}


@pytest.mark.parametrize("view", ["crop", "drawn"])
def test_a_view_is_through_the_box_or_the_box_of_the_mask(anchors: list[Anchor], view: str) -> None:
    boxes = load_anchors(anchors[:3], processor(reference_view=view))
    assert boxes.reference_keys == ["d/0#0,0,20,10", "d/1#10,10,20,20", "d/1#10,10,20,20"]
    masks = load_anchors(anchors[:3], processor(reference_view=view, region="mask"))
    assert masks.boxes == [(0, 0, 20, 10), (0, 0, 38, 39), (0, 0, 38, 39)]
    assert masks.reference_keys == ["d/0#0,0,20,10", "d/1#0,0,38,39", "d/1#0,0,38,39"]
    shown = [[], [], []] if view == "crop" else [[1, 2], [1, 16], [1, 16]]
    assert patches(masks.patch_masks) == shown
    with pytest.raises(OacirError, match="give a box, or a mask"):
        load_anchors(anchors, processor(reference_view=view))


def test_a_mask_is_read_once_and_only_if_it_is_wanted(
    anchors: list[Anchor], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda url: read.append(url) or real(url))
    load_anchors(anchors, processor())
    assert read == []
    load_anchors(anchors, processor(region="mask"))
    assert len(read) == 1


def test_a_mask_that_changed_or_is_gone_is_refused(anchors: list[Anchor]) -> None:
    file = anchors[1].mask
    assert file is not None
    mask_file(Path(file.uri), (0, 0, 9, 9))
    with pytest.raises(OacirError, match=r"corners\.png: changed since the benchmark was built") as caught:
        load_anchors(anchors, processor(region="mask"))
    assert "\n" not in str(caught.value)
    Path(file.uri).unlink()
    with pytest.raises(OacirError, match=r"corners\.png: cannot be read"):
        load_anchors(anchors, processor(region="mask"))


def test_a_mask_of_another_size_than_the_image_is_refused(anchors: list[Anchor]) -> None:
    turned = [anchors[1]._replace(size=(40, 30))]
    with pytest.raises(OacirError, match=r"corners\.png: the mask has 40 x 40 px, its upright image 40 x 30"):
        load_anchors(turned, processor(region="mask"))


def test_rows_of_a_benchmark_become_anchors() -> None:
    row = {"reference_id": "d/0", "reference_box": [1.0, 2.0, 3.0, 4.0]}
    nothing = {"reference_mask_uri": None, "reference_mask_sha256": None}
    masked = {"reference_mask_uri": "m.png", "reference_mask_sha256": "s"}
    rows = [row | nothing, row | masked, row | {"reference_box": None}]  # the last from before masks
    assert anchors_of(rows, {"d/0": (5, 6)}) == [
        Anchor("d/0", (5, 6), (1, 2, 3, 4), None),
        Anchor("d/0", (5, 6), (1, 2, 3, 4), MaskFile("m.png", "s")),
        Anchor("d/0", (5, 6), None, None),
    ]


def test_no_query_is_fine() -> None:
    found = load_anchors([], processor())
    assert found.patch_masks.shape == (0, 17)
    assert np.array(found.reference_keys).shape == (0,)
