"""Models in and out: from a recipe to a model, from a finished run to a directory that loads without DeepSpeed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.base import storage
from infra.base.errors import OacirError
from infra.base.versions import MANIFEST, FileEntry, Version, file_entry, open_version
from training.config import ModelSection

if TYPE_CHECKING:
    from torch import Tensor

    from training.model.adafocal import AdaFocalModel
    from training.model.config import AdaFocalConfig
    from training.model.processing import AdaFocalProcessor

FOLDER = "export"
TOWER = "vision_model."
SHARD_SIZE = "1GB"
DEFAULT_CACHE = Path.home() / ".cache" / "oacir" / "models"
"""Where exported models on S3 are kept on this machine, one folder per content hash; safe to delete."""


def build_model(section: ModelSection, with_tower: bool = True) -> AdaFocalModel:
    """The model of a recipe, in eval mode.

    With `weights` the sizes come from there; a modulator that the weights lack (or have in another shape) starts from
    the seed, everything else must be there.

    Raises:
        OacirError: the weights do not fit, or `overrides` are given beside them.
    """
    from training.model.auto import load_model, random_model
    from training.model.config import METHODS, preset

    changes: dict[str, Any] = {
        "modulation": section.modulation,
        "crm": section.crm,
        "trainable_probes": section.trainable_probes,
        "fixed_beta": section.fixed_beta,
        "bias_scale": section.bias_scale,
        "trainable_queries": section.trainable_queries,
    }
    if section.probe_tokens is not None:
        changes["num_probe_tokens"] = section.probe_tokens
    if section.crm_layers is not None:
        changes["crm_layers"] = section.crm_layers
    if section.weights is None:
        config = preset(section.preset, section.method, **(changes | section.overrides))
        with _one_thread():
            return random_model(config, section.seed, with_tower)
    if section.overrides:
        raise OacirError(
            f"model.overrides {sorted(section.overrides)}: sizes come from model.weights {section.weights};"
            " remove one of the two"
        )
    _quiet()
    base = load_model(section.weights, with_tower=with_tower)
    sizes = {k: v for k, v in base.config.to_dict().items() if k not in ("model_type", "architectures")}
    config = METHODS[section.method](**(sizes | changes))
    model = random_model(config, section.seed, with_tower=False)
    _copy_weights(base, model, section.weights)
    if with_tower:
        model.attach_tower(base.tower)
    return model


def build_processor(
    section: ModelSection, config: AdaFocalConfig, texts: Callable[[], Sequence[str]]
) -> AdaFocalProcessor:
    """The processor of a recipe's model.

    Args:
        section: says where the tokenizer comes from.
        config: of the model.
        texts: gives the training texts; asked only where a tokenizer has to be trained.
    """
    from transformers import AutoTokenizer

    from training.model.processing import AdaFocalProcessor, train_wordpiece

    if section.tokenizer is not None:
        return AdaFocalProcessor.for_model(config, AutoTokenizer.from_pretrained(section.tokenizer))
    if section.weights is not None:
        return AdaFocalProcessor.from_pretrained(section.weights)
    return AdaFocalProcessor.for_model(config, train_wordpiece(texts(), config.qformer.vocab_size))


def write_export(model: AdaFocalModel, processor: AdaFocalProcessor, url: str) -> list[FileEntry]:
    """Write model (tower included) and processor to `<url>/export/`; the entries of the files written."""
    _quiet()
    storage.remove(storage.join(url, FOLDER))
    with tempfile.TemporaryDirectory(prefix="oacir-export-") as name:
        folder = Path(name)
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        processor.save_pretrained(folder)
        paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        for path in paths:
            storage.write_bytes(storage.join(url, FOLDER, path), (folder / path).read_bytes())
    return [file_entry(url, f"{FOLDER}/{path}") for path in paths]


def open_model(
    url: str, with_tower: bool = True, cache: Path = DEFAULT_CACHE
) -> tuple[AdaFocalModel, AdaFocalProcessor]:
    """Model and processor of a finished run (or of any directory of save_pretrained), in eval mode, on the CPU.

    Raises:
        VersionError: the run is unfinished.
        OacirError: no model lies there.
    """
    from training.model.auto import load_model
    from training.model.processing import AdaFocalProcessor

    _quiet()
    folder = Path(storage.absolute(url)) if not storage.is_s3(url) else None
    if (
        folder is None
        or not (folder / "config.json").is_file()
        or storage.exists(storage.join(url, MANIFEST))
    ):
        folder = _export_folder(open_version(url), cache)
    return (
        load_model(folder, with_tower=with_tower),
        AdaFocalProcessor.from_pretrained(folder),
    )


def _export_folder(run: Version, cache: Path) -> Path:
    entries = [f for f in run.manifest.files if f.path.startswith(f"{FOLDER}/")]
    if not entries:
        raise OacirError(
            f"{run.url}: holds no exported model; it is a {run.manifest.kind} version, give a run"
        )
    if not storage.is_s3(run.url):
        return Path(run.path(FOLDER))
    folder = cache / run.manifest.content_hash
    for entry in entries:
        path = folder / entry.path
        if not path.is_file() or path.stat().st_size != entry.size_bytes:
            storage.write_bytes(str(path), storage.read_bytes(run.path(entry.path)))
    return folder / FOLDER


def _quiet() -> None:
    """Long work of ours shows one progress line; transformers would add its own and a page of advice."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Orthogonal starts come from LAPACK, whose last bits depend on the number of threads; stored tokens may not."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _copy_weights(base: AdaFocalModel, model: AdaFocalModel, source: str) -> None:
    """All weights of `base` but the tower's into `model`; a part that a method brings only if it is the same one."""
    wanted = model.state_dict()
    given = {name: value for name, value in base.state_dict().items() if not name.startswith(TOWER)}
    own = (*base.own_parts, *model.own_parts)
    for part in own:
        if _shapes(given, (part,)) != _shapes(wanted, (part,)):
            given = {name: value for name, value in given.items() if not name.startswith(part)}
    if _shapes(given) != {k: v for k, v in _shapes(wanted).items() if k in given or not k.startswith(own)}:
        raise OacirError(f"model.weights {source}: its shapes are not those of its own config.json")
    model.load_state_dict(wanted | given)


def _shapes(state: Mapping[str, Tensor], prefixes: tuple[str, ...] = ("",)) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items() if name.startswith(prefixes)}
