"""Models and processors go to a Hub and come back, through transformers' own client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from local_hub import local_hub

from tests.training.model.conftest import small_model
from training.model.processing import AdaFocalProcessor, train_wordpiece

ROOT = Path(__file__).parents[3]
TEXTS = ["place it on a wooden table in the evening", "a b c d e f g h i j k l m n o p q r s t u v w x y z"]
PROGRAM = """
import sys
import torch
from transformers import AutoModel, AutoProcessor
import training.model
folder, name = sys.argv[1:]
model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
model.push_to_hub(name)
processor.push_to_hub(name)
again, words = AutoModel.from_pretrained(name), AutoProcessor.from_pretrained(name)
state = again.state_dict()
assert all(torch.equal(weight, state[key]) for key, weight in model.state_dict().items())
assert torch.equal(processor.texts(["on a wooden table"])[0], words.texts(["on a wooden table"])[0])
print(type(again).__name__, type(words).__name__, words.reference_view)
"""


def test_a_model_and_its_processor_are_pushed_and_loaded_by_their_hub_id(tmp_path: Path) -> None:
    model = small_model(**{"qformer.vocab_size": 120})
    processor = AdaFocalProcessor.for_model(model.config, train_wordpiece(TEXTS, 120))
    processor.reference_view = "drawn"
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with local_hub() as hub:
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": "hf_nobody",
            "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model"), "nobody/adafocal"]
        done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split() == ["AdaFocalModel", "AdaFocalProcessor", "drawn"]
        pushed = hub.repositories["nobody/adafocal"]
    names = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"}
    assert names <= set(pushed)
