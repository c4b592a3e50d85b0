"""tests/golden on directories of other sizes: nothing about one directory may be assumed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.reference.cases import Sizes
from tests.reference.make_golden import make

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

ROOT = Path(__file__).resolve().parents[2]
OTHER = Sizes(
    batch=3,
    image_size=30,
    patch_size=10,
    vit_width=20,
    vit_depth=3,
    vit_heads=5,
    vit_mlp=34,
    hidden=24,
    layers=3,
    heads=4,
    intermediate=30,
    cross_attention_every=1,
    vocab=41,
    positions=9,
    text_tokens=8,
    queries=4,
    probes=2,
    crm_layers=1,
    crm_heads=3,
    crm_feedforward=18,
    beta_hidden=14,
    embed_dim=7,
)


def run_golden(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/golden", *options]
    environment = {**os.environ, "OACIR_GOLDEN_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_golden_tests_run_on_a_directory_of_any_sizes(tmp_path):
    make(tmp_path, OTHER, seed=7, fixed_betas=(0.0, 0.75))
    done = run_golden(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "config.json", "cases.json", "weights_scalar.safetensors", "weights_vector_override.safetensors",
        "inputs.safetensors", "outputs.safetensors", "gradients.safetensors", "grad_norms.json", "boxes.json",
        "pixels.safetensors", "metrics.safetensors", "metrics.json",
    }  # fmt: skip


def test_golden_tests_see_a_wrong_number(tmp_path):
    """The same directory with one bias of the weights moved: it has to fail."""
    make(tmp_path, Sizes(), seed=3)
    path = tmp_path / "weights_scalar.safetensors"
    weights = load_file(path)
    weights["visual_encoder.blocks.0.attn.v_bias"] += 1e-3
    save_file(weights, path)
    done = run_golden(tmp_path, "-k", "test_image_tokens")
    assert done.returncode == 1
    assert "2 failed" in done.stdout  # eager and SDPA
