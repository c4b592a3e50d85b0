"""The verb that brings checkpoints of others in, and takes ours back to the authors' layout."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.config import Config, recipe_hash
from infra.base.errors import OacirError
from infra.base.versions import MANIFEST, code_version

if TYPE_CHECKING:
    from training.model.config import AdaFocalConfig
    from training.model.convert import Converted
    from training.model.processing import AdaFocalProcessor

RECORD = "conversion.json"
"""Beside a converted model: where it came from, and that it is complete."""
RELEASED_CLASSES = {
    "none": "Blip2QformerOacirBaseline",
    "fixed": "Blip2QformerOacirBaseline",
    "scalar": "Blip2QformerOacirAdaFocal",
    "vector": "Blip2QformerOacirAdaFocalVector",
}
"""Modulation → the authors' class, under whose name their code looks for its weights."""
FLOAT32_BYTES = 4


class ConvertRecipe(Config):
    """What is read and what is made of it."""

    source: str
    """A checkpoint file (the authors' or LAVIS'), a directory of save_pretrained (Hugging Face's BLIP-2 or ours), or a
    finished run; a path or URL."""
    layout: Literal["auto", "released", "blip2_lavis", "huggingface", "adafocal"] = "auto"
    """What the source is; auto finds out."""
    to: Literal["adafocal", "released"] = "adafocal"
    """adafocal: a directory that train, evaluate and query take; released: one file for the authors' code."""
    tower: str | None = None
    """A second file with the frozen image tower, for LAVIS files, which are saved without it; null reads none."""
    tokenizer: str | None = None
    """A tokenizer directory or Hub id that is saved with the model; null leaves it to the recipe's model.tokenizer."""
    modulation: Literal["source", "none", "fixed", "scalar", "vector"] = "source"
    """source keeps what is there; none and fixed leave a CAAM out, scalar and vector start one from the seed."""
    fixed_beta: Annotated[float, Field(ge=0)] = 0.0
    """The constant β of modulation fixed."""
    seed: int = 0
    """Seed of a CAAM that is started."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields of the model's configuration that no weight tells, dotted keys for the nested ones
    (qformer.num_attention_heads); by default heads are as wide as in BLIP-2."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.modulation != "fixed" and self.fixed_beta:
            raise ValueError("fixed_beta has an effect only with modulation 'fixed'")
        if self.to == "released" and self.tokenizer is not None:
            raise ValueError("the released layout has no place for a tokenizer; leave tokenizer out")
        if {"modulation", "fixed_beta"} & set(self.overrides):
            raise ValueError("modulation and fixed_beta are fields of their own, no overrides")
        return self


def convert(recipe: ConvertRecipe, context: Context) -> Outcome:
    """Read a checkpoint and write it in the other layout; a finished conversion is left alone.

    Returns:
        where the result lies: `--out`, by default `models/` or `released/` under the root.

    Raises:
        OacirError: weights that do not fit, a tokenizer that cannot be loaded, or a place that holds something else.
    """
    with ExitStack() as stack:
        source = stack.enter_context(_local(recipe.source))
        tower = stack.enter_context(_local(recipe.tower)) if recipe.tower else None
        if recipe.to == "released":
            return _to_released(recipe, context, _read(recipe, source, tower))
        return _to_adafocal(recipe, context, source, tower)


def _read(recipe: ConvertRecipe, source: Path, tower: Path | None) -> Converted:
    from training.model.convert import read_checkpoint

    return read_checkpoint(
        source,
        None if recipe.layout == "auto" else recipe.layout,
        tower=tower,
        modulation=None if recipe.modulation == "source" else recipe.modulation,
        fixed_beta=recipe.fixed_beta,
        seed=recipe.seed,
        overrides=recipe.overrides,
    )


def _to_adafocal(recipe: ConvertRecipe, context: Context, source: Path, tower: Path | None) -> Outcome:
    out = _place(context, "models", Path(recipe.source).stem)
    place = storage.join(out, RECORD)
    record: dict[str, Any] = {}
    if not context.dry_run:
        hashes = [digest for read in (source, tower) if read is not None for digest in _sha256s(read)]
        identity = recipe_hash(recipe.model_dump(mode="json", exclude={"source", "tower"}), *hashes)
        record = {
            "identity": identity,
            "recipe": recipe.model_dump(mode="json"),
            "code_version": code_version(),
        }
        begun = _begun(out, identity)
        if begun.get("finished"):
            return Outcome(f"nothing to do: converted before: {out}", out, begun)
    converted = _read(recipe, source, tower)
    if converted.layout == "adafocal":
        raise OacirError(
            f"{recipe.source}: is a model of oacir already; use it as it is, or set --to released"
        )
    processor = _processor(recipe.tokenizer, converted.config)
    figures, details = _account(converted, recipe)
    what = f"{figures['parameters'] / 1e6:,.1f} M parameters from '{converted.layout}'"
    if context.dry_run:
        return Outcome(f"dry run: would write a model of {what}: {out}", None, figures, details)
    _write_json(place, record | {"finished": False})
    _write_model(converted, processor, out)
    _write_json(place, record | figures | {"finished": True})
    return Outcome(f"converted {what}: {out}", out, figures, details)


def _begun(out: str, identity: str) -> dict[str, Any]:
    """The record of this very conversion, finished or not, in a place that holds no other thing."""
    place = storage.join(out, RECORD)
    if not storage.exists(place):
        if next(iter(storage.list_files(out)), None) is not None:
            raise OacirError(f"{out}: holds files that are no conversion; choose an empty folder with --out")
        return {}
    begun: dict[str, Any] = json.loads(storage.read_bytes(place))
    if begun["identity"] != identity:
        raise OacirError(
            f"{out}: holds the conversion of another source or recipe; choose another --out, or delete it"
        )
    return begun


def _to_released(recipe: ConvertRecipe, context: Context, converted: Converted) -> Outcome:
    import torch
    from safetensors.torch import save_file

    from training.model.convert import to_release

    released = to_release(converted.state, converted.config)
    name = RELEASED_CLASSES[converted.config.modulation]
    out = _place(context, "released", f"{Path(recipe.source).stem}.pt")
    if not out.endswith((".pt", ".pth", ".safetensors")):
        raise OacirError(
            f"{out}: the released layout is one file; name it .pt, .pth or .safetensors with --out"
        )
    figures, details = _account(converted, recipe)
    figures |= {"tensors": len(released), "class": name}
    details += (
        "BLIP-2's language head (Qformer.cls) is not in it; the authors' code loads a file without it",
    )
    if converted.config.fixed_beta:
        details += (
            f"β = {converted.config.fixed_beta} is no weight: give it to the authors' class as fixed_beta",
        )
    what = f"{figures['parameters'] / 1e6:,.1f} M parameters for {name}"
    if context.dry_run:
        return Outcome(f"dry run: would write {what}: {out}", None, figures, details)
    if storage.exists(out):
        raise OacirError(f"{out}: exists; choose another --out, or delete it")
    with tempfile.TemporaryDirectory(prefix="oacir-convert-") as folder:
        file = Path(folder) / storage.name_of(out)
        if file.suffix == ".safetensors":
            save_file(released, file, {"class": name, "format": "pt"})
        else:
            torch.save({name: released}, file)
        storage.send(file, out)
    return Outcome(f"wrote {what}: {out}", out, figures, details)


def _write_model(converted: Converted, processor: AdaFocalProcessor | None, out: str) -> None:
    import torch

    from training.export import write_model
    from training.model.auto import new_model

    with torch.device("meta"):
        model = new_model(converted.config)
    model.load_state_dict(converted.state, assign=True)
    write_model(model, processor, out)


def _processor(tokenizer: str | None, config: AdaFocalConfig) -> AdaFocalProcessor | None:
    from training.export import load_tokenizer
    from training.model.processing import AdaFocalProcessor

    return None if tokenizer is None else AdaFocalProcessor.for_model(config, load_tokenizer(tokenizer))


def _account(converted: Converted, recipe: ConvertRecipe) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the model holds, what was left out and what was added, as numbers and as lines."""
    config = converted.config
    vision, qformer = config.vision_config, config.qformer
    parameters = sum(weight.numel() for weight in converted.state.values())
    figures: dict[str, Any] = {
        "layout": converted.layout,
        "key": converted.key,
        "tensors": len(converted.state),
        "parameters": parameters,
        "bytes": FLOAT32_BYTES * parameters,
        "modulation": config.modulation,
        "left_out": list(converted.left_out),
        "started": list(converted.started),
    }
    details = [
        f"read as '{converted.layout}'" + (f", from under the key {converted.key}" if converted.key else ""),
        f"tower: {vision.model_type}, {vision.num_hidden_layers} blocks of {vision.hidden_size},"
        f" {vision.num_attention_heads} heads, {vision.image_size} px in patches of {vision.patch_size}",
        f"Q-Former: {qformer.num_hidden_layers} layers of {qformer.hidden_size}, {qformer.num_attention_heads} heads,"
        f" {config.num_query_tokens} queries, {qformer.vocab_size:,} words; modulation {config.modulation}",
        f"{figures['tensors']:,} tensors, {parameters:,} parameters, {figures['bytes'] / 1e6:,.1f} MB as float32",
    ]
    if converted.layout in ("released", "blip2_lavis"):
        details.append("the file does not tell the heads: as wide as in BLIP-2, or as --overrides says")
    if converted.left_out:
        details.append(f"left out, the model has none: {_parts(converted.left_out)}")
    if converted.started:
        details.append(f"started anew, the source has none: {_parts(converted.started)}")
    if recipe.to == "adafocal" and recipe.tokenizer is None:
        details.append(
            "no tokenizer beside it: a recipe that starts from it must name one (model.tokenizer; BLIP-2's is"
            " bert-base-uncased)"
        )
    return figures, tuple(details)


def _parts(names: tuple[str, ...]) -> str:
    """Names by the part of the model they belong to: "7 of Qformer.cls, 1 of itm_head"."""
    counts = Counter(
        name if name.endswith("position_ids") else ".".join(name.split(".")[: 2 if name[0] == "Q" else 1])
        for name in names
    )
    return ", ".join(f"{count:,} of {part}" for part, count in sorted(counts.items()))


def _place(context: Context, folder: str, name: str) -> str:
    default = storage.join(storage.absolute(context.root), folder, name)
    return storage.absolute(context.out) if context.out else default


def _write_json(url: str, tree: dict[str, Any]) -> None:
    storage.write_bytes(url, (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())


def _sha256s(source: Path) -> list[str]:
    files = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
    return [storage.sha256_of(str(file)) for file in files]


@contextmanager
def _local(url: str) -> Iterator[Path]:
    """Something to read on this machine: a file, a directory, or the model of a finished run; S3 is copied."""
    from training.export import CONFIG, model_folder

    if storage.exists(storage.join(url, MANIFEST)) or storage.exists(storage.join(url, CONFIG)):
        yield model_folder(url)
    elif not storage.is_s3(url):
        yield Path(storage.absolute(url))
    else:
        with tempfile.TemporaryDirectory(prefix="oacir-convert-") as folder:
            copy = Path(folder) / storage.name_of(url)
            storage.fetch(url, copy)
            try:
                yield copy
            except OacirError as error:
                raise OacirError(str(error).replace(str(copy), url)) from error
