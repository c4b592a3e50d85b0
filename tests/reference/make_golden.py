"""Write a directory of golden vectors of any size from the slow reference.

python -m tests.reference.make_golden DIR --seed 7 --vit-width 24 --heads 4
OACIR_GOLDEN_DIR=DIR pytest tests/golden

It has the form of a directory made with the authors' release: the same files, names and kinds of content. Values are
computed in float64 from weights rounded to float32, and stored as float32.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.reference import adafocal, images, ranking
from tests.reference.cases import Inputs, Sizes, case_boxes, random_boxes, random_inputs, random_weights

FIXED_BETAS = (0.0, 1.5)
STORED_GRADIENTS = (
    "Qformer.bert.embeddings.LayerNorm.weight",
    "Qformer.bert.encoder.layer.0.crossattention.self.query.bias",
    "contextual_probe_tokens",
    "crm_module.cls_token",
    "crm_module.output_head.2.bias",
    "crm_module.output_head.2.weight",
    "ln_vision.weight",
    "query_tokens",
    "temp",
    "text_proj.weight",
    "vision_proj.weight",
)
MODULATOR = ("crm_module.", "contextual_probe_tokens")
Tensors = dict[str, Tensor]


def make(folder: Path, sizes: Sizes, seed: int, fixed_betas: tuple[float, ...] = FIXED_BETAS) -> None:
    """Write all files of a golden directory.

    Args:
        folder: made if needed; files in it are overwritten.
        sizes: of models and batch.
        seed: of weights, inputs, boxes, photos and galleries.
        fixed_betas: one baseline model for each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scalar = _as_stored(random_weights(sizes, seed))
    vector = _as_stored(random_weights(sizes, seed, sizes.queries))
    inputs = random_inputs(sizes, seed)
    inputs = inputs._replace(
        reference_pixels=inputs.reference_pixels.float().double(),
        target_pixels=inputs.target_pixels.float().double(),
    )
    boxes = random_boxes(sizes, seed)

    head = [name for name in scalar if name.startswith("crm_module.output_head.2.")]
    index = {"Qformer.bert.embeddings.position_ids": torch.arange(sizes.positions)[None]}
    save_file(
        _stored({**scalar, **_language_head(scalar, sizes)}) | index, folder / "weights_scalar.safetensors"
    )
    save_file(_stored({name: vector[name] for name in head}), folder / "weights_vector_override.safetensors")
    _save_inputs(folder, inputs)
    _write(folder / "config.json", _config(sizes, seed, inputs, boxes))
    _make_outputs(folder, sizes, scalar, vector, inputs, boxes, fixed_betas)
    _make_boxes(folder, sizes, seed)
    _make_pixels(folder, sizes, seed)
    _make_metrics(folder, seed)


def _as_stored(weights: Tensors) -> Tensors:
    return {name: weight.float().double() for name, weight in weights.items()}


def _stored(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in tensors.items()}


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))


def _language_head(weights: Tensors, sizes: Sizes) -> Tensors:
    """BLIP-2's masked-language head, which AdaFocal does not use; its decoder is tied to the word embedding."""
    prefix, width = "Qformer.cls.predictions", sizes.hidden
    return {
        f"{prefix}.bias": torch.ones(sizes.vocab),
        f"{prefix}.decoder.bias": torch.ones(sizes.vocab),
        f"{prefix}.decoder.weight": weights["Qformer.bert.embeddings.word_embeddings.weight"],
        f"{prefix}.transform.LayerNorm.bias": torch.ones(width),
        f"{prefix}.transform.LayerNorm.weight": torch.ones(width),
        f"{prefix}.transform.dense.bias": torch.ones(width),
        f"{prefix}.transform.dense.weight": torch.eye(width),
    }


def _config(sizes: Sizes, seed: int, inputs: Inputs, boxes: list[adafocal.Box]) -> dict[str, Any]:
    return {
        "seed": seed,
        "batch": sizes.batch,
        "vit_width": sizes.vit_width,
        "vit_depth": sizes.vit_depth,
        "vit_heads": sizes.vit_heads,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "qformer_hidden": sizes.hidden,
        "qformer_layers": sizes.layers,
        "qformer_heads": sizes.heads,
        "qformer_intermediate": sizes.intermediate,
        "cross_attention_freq": sizes.cross_attention_every,
        "num_query_token": sizes.queries,
        "vocab_size": sizes.vocab,
        "max_position_embeddings": sizes.positions,
        "max_txt_len": sizes.text_tokens,
        "caam_hidden_dim": sizes.beta_hidden,
        "num_probe_token": sizes.probes,
        "embed_dim": sizes.embed_dim,
        "crm_heads": sizes.crm_heads,  # 8 in the release
        "text_lengths": inputs.mask.sum(1).tolist(),
        "boxes_mixed": case_boxes(boxes)["mixed"],
        "box_for_none": boxes[0],
    }


def _save_inputs(folder: Path, inputs: Inputs) -> None:
    tensors = {
        "ref_pixels": inputs.reference_pixels.float(),
        "tgt_pixels": inputs.target_pixels.float(),
        "input_ids": inputs.ids,
        "attention_mask": inputs.mask,
    }
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "inputs.safetensors"
    )


def _make_outputs(
    folder: Path,
    sizes: Sizes,
    scalar: Tensors,
    vector: Tensors,
    inputs: Inputs,
    boxes: list[adafocal.Box],
    fixed_betas: tuple[float, ...],
) -> None:
    baseline = {name: weight for name, weight in scalar.items() if not name.startswith(MODULATOR)}
    models = {"scalar": (scalar, "scalar", 0.0), "vector": (vector, "vector", 0.0)}
    for beta in fixed_betas:
        models[f"baseline_beta{beta:g}".replace(".", "p")] = (baseline, "fixed" if beta else "none", beta)
    options = sizes.options("none")
    with torch.no_grad():
        tokens = adafocal.tower(scalar, options, inputs.reference_pixels)
        target_tokens = adafocal.tower(scalar, options, inputs.target_pixels)
        features, hidden = adafocal.encode_target(scalar, options, target_tokens)
        gallery = torch.cat([features, adafocal.encode_target(scalar, options, tokens)[0]])
    outputs = {
        "vit_out_ref": tokens,
        "image_embeds_ref": adafocal.vision_norm(scalar, tokens),
        "image_embeds_tgt": adafocal.vision_norm(scalar, target_tokens),
        "target_hidden": hidden,
        "target_features": features,
        "gallery_features": gallery,
        **_norms_alone(scalar, sizes),
    }
    cases = case_boxes(boxes)
    runs: dict[str, dict[str, Any]] = {name: {} for name in models}
    gradients: Tensors = {}
    norms: dict[str, dict[str, float | None]] = {}
    for case, own_boxes in cases.items():
        regions = torch.stack([adafocal.patch_mask(box, options) for box in own_boxes])
        outputs[f"patch_mask.{case}"] = regions
        for name, (weights, modulation, beta) in models.items():
            leaves = {n: w.clone().requires_grad_(not n.startswith("visual")) for n, w in weights.items()}
            own = sizes.options(modulation, beta)
            query = adafocal.encode_query(leaves, own, tokens, inputs.ids, inputs.mask, regions)
            scores = adafocal.similarity(query.f_q, adafocal.encode_target(leaves, own, target_tokens)[0])
            loss = adafocal.info_nce(scores, leaves["temp"])
            key = f"{name}.{case}"
            outputs |= {
                f"{key}.similarity": scores,
                f"{key}.sim_gallery": adafocal.similarity(query.f_q, gallery),
                f"{key}.loss_align": loss[None],
            }
            outputs |= {f"{key}.{n}": value for n, value in _of_query(query, name, case).items()}
            runs[name][case] = {
                "loss_align": loss.item(),
                "caam_runs": query.probe_hidden is not None,
                "attention_bias_used": query.bias is not None,
            }
            found = _gradients(loss, leaves)
            unused = [n for n in _language_head(scalar, sizes) if ".decoder." not in n]
            norms[key] = {
                n: None if found.get(n) is None else found[n].norm().item() for n in (*leaves, *unused)
            }
            gradients |= {f"{key}.{n}": found[n] for n in STORED_GRADIENTS if found.get(n) is not None}
    save_file(_stored(outputs), folder / "outputs.safetensors")
    save_file(_stored(gradients), folder / "gradients.safetensors")
    _write(folder / "grad_norms.json", norms)
    _write(folder / "cases.json", {"cases": cases, "models": runs})


def _gradients(loss: Tensor, leaves: Tensors) -> dict[str, Tensor | None]:
    trained = {name: weight for name, weight in leaves.items() if weight.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return dict(zip(trained, found, strict=True))


def _of_query(query: adafocal.QueryPass, name: str, case: str) -> dict[str, Tensor]:
    """What is stored of the query branch: hidden states of the mixed case alone, those of the probes once."""
    found = {"f_q": query.f_q, "attention_bias": query.bias}
    if query.probe_hidden is not None:
        found |= {"beta": query.beta, "beta_inference": query.beta}
    if case == "mixed":
        found["fusion_hidden"] = query.hidden
        if name == "scalar":
            found["probe_hidden"] = query.probe_hidden
    return {kind: value for kind, value in found.items() if value is not None}


def _norms_alone(weights: Tensors, sizes: Sizes) -> Tensors:
    """One LayerNorm of each kind on rows of deviation 1e-3, 1e-2 and 1, where the eps shows."""
    generator = torch.Generator().manual_seed(0)
    kinds = {
        "Qformer.bert.embeddings.LayerNorm": (sizes.hidden, adafocal.QFORMER_EPS),
        "crm_module.transformer_encoder.layers.0.norm1": (sizes.hidden, adafocal.CRM_EPS),
        "ln_vision": (sizes.vit_width, adafocal.VISION_EPS),
        "visual_encoder.blocks.0.norm1": (sizes.vit_width, adafocal.VIT_EPS),
    }
    found = {}
    for name, (width, eps) in kinds.items():
        rows = torch.randn(3, width, generator=generator) * torch.tensor([[1e-3], [1e-2], [1.0]])
        found[f"unit.{name}.in"] = rows
        found[f"unit.{name}.out"] = adafocal.layer_norm(rows.double(), weights, name, eps)
    return found


def _make_boxes(folder: Path, sizes: Sizes, seed: int) -> None:
    """Boxes of photos of many shapes through the transform, and boxes given in the input itself."""
    random = np.random.default_rng(seed)
    size, patch, ratio = sizes.image_size, sizes.patch_size, 1.25
    options = sizes.options("none")

    def touched(box: adafocal.Box | None) -> list[int]:
        return adafocal.patch_mask(box, options).nonzero().flatten().tolist()

    moved_rows, given_rows = [], [{"bbox": None, "mask_on": []}]
    for _ in range(40):
        width, height = (int(v) for v in random.integers(20, 200, 2))
        x1, y1 = int(random.integers(0, width - 1)), int(random.integers(0, height - 1))
        box = (x1, y1, int(random.integers(x1 + 1, width + 1)), int(random.integers(y1 + 1, height + 1)))
        moved = images.move_box(box, width, height, size, ratio)
        moved_rows.append(
            {
                "original_size_wh": [width, height],
                "bbox_xyxy": list(box),
                "transformed": None if moved is None else list(moved),
                "mask_len": sizes.image_tokens,
                "mask_on": touched(moved),
            }
        )
    for _ in range(15):
        left, top = (int(v) for v in random.integers(-patch, size, 2))
        right, bottom = left + int(random.integers(1, size)), top + int(random.integers(1, size))
        given_rows.append(
            {"bbox": [left, top, right, bottom], "mask_on": touched((left, top, right, bottom))}
        )
    table = {"target_ratio": ratio, "final_size": size, "patch_size": patch, "transform_and_mask": moved_rows}
    _write(folder / "boxes.json", table | {f"mask_only_{size}": given_rows})


def _make_pixels(folder: Path, sizes: Sizes, seed: int) -> None:
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for index, (width, height) in enumerate([(30, 30), (50, 41), (80, 40), (40, 80), (33, 57), (25, 31)]):
        photo = random.integers(0, 256, (height, width, 3), np.uint8)
        tensors[f"image{index}.input_hwc_uint8"] = torch.from_numpy(photo)
        tensors[f"image{index}.output_chw"] = images.pixels(photo, sizes.image_size, 1.25).contiguous()
    save_file(tensors, folder / "pixels.safetensors")


def _make_metrics(folder: Path, seed: int) -> None:
    """Random galleries whose scores lean towards the target, so that the recalls lie between 0 and 100."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    content = {}
    for case, (queries, gallery) in enumerate([(12, 30), (20, 55)]):
        names = [f"img{random.integers(10**6):06d}_{i}" for i in range(gallery)]
        instance_of = {name: f"id{i % (gallery // 4)}" for i, name in enumerate(names)}
        pairs = [random.choice(gallery, 2, replace=False) for _ in range(queries)]
        scores = random.normal(size=(queries, gallery)).astype(np.float32)
        for row, (reference, target) in enumerate(pairs):
            scores[row, target] += 1.0
            scores[row, reference] += 2.0  # left in, the reference would come first
        references, targets = ([names[pair[side]] for pair in pairs] for side in (0, 1))
        ranked = [
            ranking.ranking(s, names, reference) for s, reference in zip(scores, references, strict=True)
        ]
        tensors[f"metric{case}.similarity"] = torch.from_numpy(scores)
        content[f"metric{case}"] = {
            "index_names": names,
            "name_to_relpath": {
                name: f"./set/{instance}/{name}.jpg" for name, instance in instance_of.items()
            },
            "reference_names": references,
            "target_names": targets,
            "metrics_percent": ranking.recalls(ranked, targets, instance_of, (1, 5, 10, 50), (1, 3, 5)),
            "top10_after_reference_removal": [images_[:10] for images_ in ranked],
        }
    save_file(tensors, folder / "metrics.safetensors")
    _write(folder / "metrics.json", content)


def main() -> None:
    """Every size of `Sizes` is an option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    options = vars(parser.parse_args())
    folder, seed = options.pop("folder"), options.pop("seed")
    torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other
    make(folder, replace(Sizes(), **options), seed)


if __name__ == "__main__":
    main()
