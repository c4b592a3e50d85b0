"""The golden reference vectors, loaded once: sizes, weights, inputs, outputs, and the model built from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from training.model.adafocal import AdaFocalModel
from training.model.config import AdaFocalConfig
from training.model.convert import from_release
from training.model.regions import patch_mask

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

FIXED = {"baseline_beta0": ("none", 0.0), "baseline_beta1p5": ("fixed", 1.5)}
CASES = ("mixed", "all_boxes", "all_none")


class Golden:
    """Everything in the golden folder; sizes come from its config.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: dict[str, Any] = self.json("config.json")
        self.cases: dict[str, Any] = self.json("cases.json")
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")
        self.gradients = load_file(folder / "gradients.safetensors")
        self.scalar = load_file(folder / "weights_scalar.safetensors")
        self.vector = {**self.scalar, **load_file(folder / "weights_vector_override.safetensors")}
        self._models: dict[str, AdaFocalModel] = {}

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def config(self, modulation: str, fixed_beta: float = 0.0) -> AdaFocalConfig:
        s = self.sizes
        crm_layers = len(
            {k.split(".")[3] for k in self.scalar if k.startswith("crm_module.transformer_encoder.")}
        )
        return AdaFocalConfig(
            vision_config={
                "image_size": s["image_size"],
                "patch_size": s["patch_size"],
                "hidden_size": s["vit_width"],
                "num_hidden_layers": s["vit_depth"],
                "num_attention_heads": s["vit_heads"],
                "intermediate_size": len(self.scalar["visual_encoder.blocks.0.mlp.fc1.bias"]),
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
            crm_layers=crm_layers,
            crm_feedforward=len(self.scalar["crm_module.transformer_encoder.layers.0.linear1.bias"]),
            max_text_tokens=s["max_txt_len"],
            modulation=modulation,
            fixed_beta=fixed_beta,
        )

    def model(self, name: str) -> AdaFocalModel:
        """One of the four reference models, in eval mode (the release's vectors were made without dropout)."""
        if name not in self._models:
            modulation, fixed_beta = FIXED.get(name, (name, 0.0))
            config = self.config(modulation, fixed_beta)
            model = AdaFocalModel(config)
            model.load_state_dict(from_release(self.vector if name == "vector" else self.scalar, config))
            self._models[name] = model.eval()
        return self._models[name]

    def patch_masks(self, case: str) -> Tensor:
        size, patch = self.sizes["image_size"], self.sizes["patch_size"]
        boxes = self.cases["cases"][case]
        return torch.stack([patch_mask(tuple(b) if b else None, size, patch) for b in boxes])


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir)
