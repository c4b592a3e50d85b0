"""The model room in a world of its own: torch, transformers and numpy with what they need, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

from tests.training.model.conftest import small_model
from training.model.processing import AdaFocalProcessor, train_wordpiece

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "model.md"
ALONE = ("torch", "transformers", "numpy")
TEXTS = ["place it on a wooden table in the evening", "a b c d e f g h i j k l m n o p q r s t u v w x y z"]
IMPORTS = """
import importlib.util, sys
for name in ("PIL", "ray", "deepspeed", "pyarrow", "mlflow", "s3fs", "scipy", "skimage"):
    assert importlib.util.find_spec(name) is None, f"{name} is here: nothing is proven"
import torch
import training.model, training.model.convert, training.losses, training.scoring, training.metrics
from training.model.auto import MODELS, random_model
from training.model.config import preset
from training.model.regions import region_patches
model = random_model(preset("tiny"), seed=0)
tokens = model.encode_pixels(torch.zeros(1, 3, 64, 64))
region = region_patches((8, 8, 40, 40), 64, 64, 64, 4)[None]
words = torch.tensor([[2, 7, 3]])
told = model.explain(tokens, words, torch.ones_like(words), region, tokens)
assert told.beta.shape == (1, 1) and told.scores.shape == (1,)
print(sorted(MODELS))
"""


def needed(names: tuple[str, ...]) -> list[Distribution]:
    """Installed distributions of these names and of all that they require, without extras."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found[name] = distribution(name)
        wanted = [Requirement(text) for text in found[name].requires or ()]
        waiting += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return list(found.values())


def run_alone(
    place: Path, names: tuple[str, ...], program: str, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run a program that finds nothing but these distributions, the standard library and the project."""
    for one in needed(names):
        for top in {file.parts[0] for file in one.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = place / top
            if not link.exists():
                link.symlink_to(Path(str(one.locate_file(top))))
    start = f"import sys; sys.path += [{str(place)!r}, {str(ROOT)!r}]\n"
    # without the site module the environment's own packages are out of reach
    command = [sys.executable, "-I", "-S", "-c", start + program]
    return subprocess.run(command, check=False, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder


def test_it_imports_and_answers_with_torch_transformers_and_numpy_alone(place: Path, tmp_path: Path) -> None:
    done = run_alone(place, ALONE, IMPORTS, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "['adafocal', 'sprc']"


def test_the_documented_example_needs_pillow_beside_them(place: Path, tmp_path: Path) -> None:
    """docs/model.md from the first to the last block in a fresh process: what it imports is enough."""
    model = small_model(**{"qformer.vocab_size": 120})
    model.save_pretrained(tmp_path / "model")
    processor = AdaFocalProcessor.for_model(model.config, train_wordpiece(TEXTS, 120))
    processor.save_pretrained(tmp_path / "model")
    for name in ("reference", "candidate0", "candidate1", "candidate2"):
        generator = torch.Generator().manual_seed(len(name) + ord(name[-1]))
        pixels = torch.randint(0, 256, (64, 80, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{name}.jpg")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    program = "\n".join([f"FOLDER = {str(tmp_path / 'model')!r}", *blocks])
    done = run_alone(place, (*ALONE, "pillow"), program, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "β =" in done.stdout
    assert "attention inside the box" in done.stdout
