"""The Python of docs/model.md runs as it stands, and its numbers are those of the parts it is made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.training.model.conftest import small_model
from training.model.processing import AdaFocalProcessor, train_wordpiece

PAGE = Path(__file__).parents[3] / "docs" / "model.md"
TEXTS = ["place it on a wooden table in the evening", "a b c d e f g h i j k l m n o p q r s t u v w x y z"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model beside a processor, and pictures beside them."""
    model = small_model(**{"qformer.vocab_size": 120})
    place = tmp_path / "model"
    model.save_pretrained(place)
    AdaFocalProcessor.for_model(model.config, train_wordpiece(TEXTS, 120)).save_pretrained(place)
    for name in ("reference", "candidate0", "candidate1", "candidate2"):
        generator = torch.Generator().manual_seed(len(name) + ord(name[-1]))
        pixels = torch.randint(0, 256, (64, 80, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{name}.jpg")
    return place


def test_the_documented_example_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {"FOLDER": str(folder)}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    assert sorted(names["ranking"]) == [0, 1, 2]
    best = names["scores"][0].max()
    products = names["query"].embedding @ names["images"].flatten(0, 1).T
    torch.testing.assert_close(best, products.max())
    assert "attention inside the box" in capsys.readouterr().out
    assert names["small"].config.num_probe_tokens == 8
    assert (folder.parent / "small" / "model.safetensors").is_file()
