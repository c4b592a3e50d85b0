"""A build with an image model in a pool of GPU workers: a tiny random CLIP, and a GPU that Ray only counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = """
import sys
import ray
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
import numpy as np
from infra.base.command import Context
from infra.base.versions import open_version
from pipelines.build import build
from pipelines.config import BuildRecipe
loose = {"tau_valid": 3, "tau_high": 1.0, "tau_centric": 1.0, "tau_count": 3}
recipe = BuildRecipe.model_validate({
    "source": {"kind": "image_folder", "root": sys.argv[1]},
    "encoder": {"model": sys.argv[2], "gpus": 0.5},
    "thresholds": {"calibrated_for": "model", "default": loose},
    "images_per_part": 8, "workers": 2})
version = open_version(build(recipe, Context(root=sys.argv[3])).location)
vectors = np.stack(version.table("descriptors")["descriptor"].to_numpy())
assert vectors.shape == (30, 16), vectors.shape
assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
assert version.manifest.figures["descriptor"] == sys.argv[2]
assert len(version.table("quadruples")) > 20
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_named_model_describes_in_a_pool_of_gpu_workers(photo_folder: Any, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=sizes, vision_config=sizes | {"image_size": 32, "patch_size": 8}, projection_dim=16
    )
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "clip"
    )
    photos = photo_folder(instances=3, images=5)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(photos), str(tmp_path / "clip"), str(tmp_path / "root")],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
