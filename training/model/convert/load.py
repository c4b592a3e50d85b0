"""From a checkpoint of others (or one of ours) to a configuration and a complete state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from infra.base.errors import OacirError
from training.model.auto import config_of, new_model, random_model
from training.model.config import METHODS, AdaFocalConfig, preset
from training.model.convert.files import model_type, read_file, read_folder
from training.model.convert.names import (
    POSITION_IDS,
    UNUSED,
    from_huggingface,
    from_release,
    listed,
    to_huggingface,
    to_release,
)
from training.model.convert.sizes import huggingface_config, release_config

Layout = Literal["released", "blip2_lavis", "huggingface", "adafocal"]
Kind = Literal["none", "fixed", "scalar", "vector"]

TOWER = "visual_encoder."
READABLE = (torch.float32, torch.float16, torch.bfloat16)
"""Types that float32 holds without loss."""


class Converted(NamedTuple):
    """A checkpoint under our names.

    Attributes:
        config: of the model.
        state: the whole state dict of that model, float32.
        layout: what was read.
        key: under which key of its file the state dict lay: the authors' class name, "model", or None.
        left_out: names in the source that our model does not have.
        started: our names that the source does not have, started as a new model's.
    """

    config: AdaFocalConfig
    state: dict[str, Tensor]
    layout: Layout
    key: str | None
    left_out: tuple[str, ...]
    started: tuple[str, ...]


def read_checkpoint(
    source: str | Path,
    layout: Layout | None = None,
    *,
    tower: str | Path | None = None,
    modulation: Kind | None = None,
    fixed_beta: float = 0.0,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> Converted:
    """Read a checkpoint and convert it; half precision becomes float32, which loses nothing.

    Args:
        source: a checkpoint file of the authors or of LAVIS (torch or safetensors), or a directory of
            save_pretrained: Hugging Face's `Blip2ForImageTextRetrieval`, or ours.
        layout: which of them; None finds out.
        tower: a second file with the image tower, for a LAVIS file that was saved without its frozen part.
        modulation: None keeps what the source has; "scalar" or "vector" start a CAAM from the seed where it has none;
            "none" and "fixed" leave its CAAM out.
        fixed_beta: the constant of modulation "fixed".
        seed: of a CAAM that is started.
        overrides: fields of the configuration that no weight tells (dotted keys reach the nested ones): heads, above
            all, where a head is not 88 wide in EVA's ViT and 64 in CLIP's and in the Q-Former.

    Raises:
        OacirError: an unreadable file, or weights that are missing, unexpected or of another shape: all of them.
    """
    path, changes = Path(source), dict(overrides or {})
    layout, key, state = _read(path, layout)
    if tower is not None:
        if layout not in ("released", "blip2_lavis") or any(name.startswith(TOWER) for name in state):
            raise OacirError(f"{path}: has its own image tower; leave --tower {tower} out")
        state = state | _read_tower(Path(tower), changes.get("vision_config.num_hidden_layers"))
    left_out = [name for name in state if UNUSED.fullmatch(name)]
    state = {name: weight for name, weight in state.items() if not UNUSED.fullmatch(name)}
    config = _config(path, layout, state, changes)
    _compare(path, layout, state, config)
    ours = _ours(layout, state, config)
    config, dropped = _modulated(path, config, modulation, fixed_beta)
    if dropped:
        left_out += [name for name in state if name.startswith(("crm_module.", "contextual_probe_", "caam."))]
        ours = {name: weight for name, weight in ours.items() if not name.startswith("caam.")}
    started = _start_missing(ours, config, seed)
    return Converted(config, ours, layout, key, tuple(left_out), started)


def _read(path: Path, layout: Layout | None) -> tuple[Layout, str | None, dict[str, Tensor]]:
    folder = path.is_dir()
    if folder:
        kind = model_type(path)
        found: Layout | None = "adafocal" if kind in METHODS else "huggingface" if kind == "blip-2" else None
        if found is None:
            raise OacirError(
                f"{path}: holds a model of type {kind!r}; can read 'blip-2' and {sorted(METHODS)}"
            )
        key, state = None, read_folder(path)
    else:
        key, state = read_file(path)
        found = "blip2_lavis" if key == "model" or "itm_head.weight" in state else "released"
    if layout is not None and layout != found and (folder or layout in ("huggingface", "adafocal")):
        raise OacirError(
            f"{path}: is no checkpoint of layout '{layout}' but looks like '{found}'; set --layout auto"
        )
    return layout or found, key, state


def _read_tower(path: Path, depth: int | None) -> dict[str, Tensor]:
    """A tower of its own file (EVA's or CLIP's, as LAVIS distributes them), cut to the blocks that BLIP-2 keeps."""
    state = {
        TOWER + re.sub(r"^(visual_encoder|visual)\.", "", name): weight
        for name, weight in read_file(path).state.items()
    }
    block = re.compile(rf"{TOWER}(blocks|transformer\.resblocks)\.(\d+)\..*")
    kinds = {found[1] for name in state if (found := block.fullmatch(name))}
    if len(kinds) != 1:
        raise OacirError(
            f"{path}: holds no image tower (no blocks.* or transformer.resblocks.*); give another --tower"
        )
    if depth is None:
        depth = preset("vit_g" if kinds == {"blocks"} else "vit_l").vision_config.num_hidden_layers
    parts = (
        "cls_token",
        "pos_embed",
        "patch_embed.proj.",
        "class_embedding",
        "positional_embedding",
        "conv1.",
        "ln_pre.",
    )
    kept: dict[str, Tensor] = {}
    for name, weight in state.items():
        found = block.fullmatch(name)
        if int(found[2]) < depth if found else name.removeprefix(TOWER).startswith(parts):
            kept[name] = weight
    return kept


def _config(
    path: Path, layout: Layout, state: Mapping[str, Tensor], changes: Mapping[str, Any]
) -> AdaFocalConfig:
    if layout == "huggingface":
        return huggingface_config(path, changes)
    if layout == "adafocal":
        if changes:
            raise OacirError(f"{path}: its config.json says all sizes; leave overrides {sorted(changes)} out")
        return config_of(AdaFocalConfig.get_config_dict(path)[0])
    return release_config({name: tuple(weight.shape) for name, weight in state.items()}, changes)


def _compare(path: Path, layout: Layout, state: Mapping[str, Tensor], config: AdaFocalConfig) -> None:
    """Every weight that the model has must be there, and no other, in its shape."""
    with torch.device("meta"):
        model = new_model(config).state_dict()
    if layout == "huggingface":
        expected = to_huggingface(model)
    elif layout == "adafocal":
        expected = model
    else:
        expected = to_release(model, config)
        del expected[POSITION_IDS]
    optional = {"temp"} if layout == "blip2_lavis" else set()
    missing = [name for name in expected if name not in state and name not in optional]
    unexpected = [name for name in state if name not in expected]
    both = [(name, weight, expected[name]) for name, weight in state.items() if name in expected]
    shapes = [
        f"{name} {list(weight.shape)} instead of {list(wanted.shape)}"
        for name, weight, wanted in both
        if weight.shape != wanted.shape
    ]
    types = [f"{name} {weight.dtype}" for name, weight, _ in both if weight.dtype not in READABLE]
    kinds = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "of an unreadable type": types,
    }
    problems = [f"{len(names):,} {kind}: {listed(names)}" for kind, names in kinds.items() if names]
    if problems:
        fix = "name sizes that no weight tells with --overrides, or another --layout"
        if missing and not unexpected and not shapes and all(name.startswith(TOWER) for name in missing):
            fix = "the file was saved without its frozen image tower: give that with --tower"
        raise OacirError(f"{path}: weights do not fit as '{layout}': {'; '.join(problems)}; {fix}")


def _ours(layout: Layout, state: Mapping[str, Tensor], config: AdaFocalConfig) -> dict[str, Tensor]:
    if layout == "huggingface":
        ours = from_huggingface(state)
    elif layout == "adafocal":
        ours = dict(state)
    else:
        ours = from_release(state, config)
    return {name: weight.to(torch.float32) for name, weight in ours.items()}


def _modulated(
    path: Path, config: AdaFocalConfig, wanted: Kind | None, fixed_beta: float
) -> tuple[AdaFocalConfig, bool]:
    """The configuration with the wanted modulation, and whether the source's CAAM is to be left out for it."""
    if wanted is None or wanted == config.modulation:
        return config, False
    has = config.modulation in ("scalar", "vector")
    if has and wanted in ("scalar", "vector"):
        raise OacirError(
            f"{path}: its CAAM is of modulation '{config.modulation}', not '{wanted}'; leave --modulation out"
        )
    tree = {
        key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")
    }
    return type(config)(**(tree | {"modulation": wanted, "fixed_beta": fixed_beta})), has


def _start_missing(ours: dict[str, Tensor], config: AdaFocalConfig, seed: int) -> tuple[str, ...]:
    """Complete a state dict with what BLIP-2 does not have: the temperature and the CAAM."""
    started = []
    if "temp" not in ours:
        ours["temp"] = torch.tensor(float(config.initial_temperature))
        started.append("temp")
    if config.modulation in ("scalar", "vector") and not any(name.startswith("caam.") for name in ours):
        own = random_model(config, seed, with_tower=False).state_dict()
        new = {name: weight for name, weight in own.items() if name.startswith("caam.")}
        ours |= new
        started += new
    return tuple(started)
