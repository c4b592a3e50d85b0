"""A directory of golden reference vectors, loaded once, and the models built from it.

Every size, model name, case, box and tolerance-free number comes from the directory itself: `OACIR_GOLDEN_DIR=DIR
pytest tests/golden` runs on any one of that form.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.conftest import GOLDEN_DIR
from training.model.adafocal import AdaFocalModel
from training.model.config import AdaFocalConfig
from training.model.convert import from_release
from training.model.regions import patch_mask

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

BASELINE = "baseline_beta"
RELEASED_CRM_HEADS = 8
"""What the release fixes in its code; a directory with another number says so under `crm_heads`."""


def modulation_of(name: str) -> tuple[str, float]:
    """Modulation and fixed β of a reference model: "scalar", "vector" or "baseline_beta1p5"."""
    if not name.startswith(BASELINE):
        return name, 0.0
    beta = float(name.removeprefix(BASELINE).replace("p", "."))
    return ("fixed", beta) if beta else ("none", 0.0)


class Golden:
    """Everything in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: dict[str, Any] = self.json("config.json")
        self.cases: dict[str, Any] = self.json("cases.json")
        self.boxes: dict[str, Any] = self.json("boxes.json")
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")
        self.gradients = load_file(folder / "gradients.safetensors")
        self.scalar = load_file(folder / "weights_scalar.safetensors")
        self.vector = {**self.scalar, **load_file(folder / "weights_vector_override.safetensors")}
        self._models: dict[tuple[str, str], AdaFocalModel] = {}

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def stored(self, output: str) -> list[tuple[str, str]]:
        """The (model, case) pairs that an output is stored for."""
        keys = [key.split(".", 2) for key in self.outputs if key.count(".") == 2]
        return [(name, case) for name, case, kind in keys if kind == output]

    def config(self, name: str) -> AdaFocalConfig:
        s, weights = self.sizes, self.scalar
        modulation, fixed_beta = modulation_of(name)
        crm = "crm_module.transformer_encoder.layers."
        return AdaFocalConfig(
            vision_config={
                "image_size": s["image_size"],
                "patch_size": s["patch_size"],
                "hidden_size": s["vit_width"],
                "num_hidden_layers": s["vit_depth"],
                "num_attention_heads": s["vit_heads"],
                "intermediate_size": len(weights["visual_encoder.blocks.0.mlp.fc1.bias"]),
            },
            qformer={
                "hidden_size": s["qformer_hidden"],
                "num_hidden_layers": s["qformer_layers"],
                "num_attention_heads": s["qformer_heads"],
                "intermediate_size": s["qformer_intermediate"],
                "cross_attention_frequency": s["cross_attention_freq"],
                "vocab_size": s["vocab_size"],
                "max_position_embeddings": s["max_position_embeddings"],
            },
            num_query_tokens=s["num_query_token"],
            num_probe_tokens=s["num_probe_token"],
            embed_dim=s["embed_dim"],
            beta_hidden=s["caam_hidden_dim"],
            crm_layers=len({key.split(".")[3] for key in weights if key.startswith(crm)}),
            crm_heads=s.get("crm_heads", RELEASED_CRM_HEADS),
            crm_feedforward=len(weights[f"{crm}0.linear1.bias"]),
            max_text_tokens=s["max_txt_len"],
            pad_ratio=self.boxes["target_ratio"],
            modulation=modulation,
            fixed_beta=fixed_beta,
        )

    def model(self, name: str, attention: str = "sdpa") -> AdaFocalModel:
        """A reference model, in eval mode (the release's vectors were made without dropout)."""
        if (name, attention) not in self._models:
            config = self.config(name)
            config._attn_implementation = attention
            model = AdaFocalModel(config)
            model.load_state_dict(from_release(self.vector if name == "vector" else self.scalar, config))
            self._models[name, attention] = model.eval()
        return self._models[name, attention]

    def our_names(self) -> dict[str, str]:
        """Released name → ours, of every weight that has a counterpart of its own."""
        marked = {key: torch.full((1,), float(i)) for i, key in enumerate(self.scalar)}
        released = list(self.scalar)
        return {
            released[int(mark)]: ours
            for ours, mark in from_release(marked, self.config("scalar")).items()
            if mark.numel() == 1
        }

    def module(self, released: str) -> nn.Module:
        """The scalar model's module of a released name."""
        return self.model("scalar").get_submodule(
            self.our_names()[f"{released}.weight"].removesuffix(".weight")
        )

    def patch_masks(self, case: str) -> Tensor:
        size, patch = self.sizes["image_size"], self.sizes["patch_size"]
        boxes = self.cases["cases"][case]
        return torch.stack([patch_mask(tuple(b) if b else None, size, patch) for b in boxes])


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per model and case of the directory; where there is none, one that is skipped with the reason."""
    wanted = [name for name in ("name", "case") if name in metafunc.fixturenames]
    if not wanted:
        return
    cases = GOLDEN_DIR / "cases.json"
    found = json.loads(cases.read_text()) if cases.is_file() else {"models": ["-"], "cases": ["-"]}
    for name, values in zip(("name", "case"), _values(found), strict=True):
        if name in wanted:
            metafunc.parametrize(name, values)


def _values(found: dict[str, Any]) -> Iterator[list[str]]:
    yield list(found["models"])
    yield list(found["cases"])
