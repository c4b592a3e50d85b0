"""Models in and out: from a recipe to a model, from a finished run to a directory that loads without DeepSpeed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.base import storage
from infra.base.config import recipe_hash
from infra.base.errors import OacirError
from infra.base.versions import MANIFEST, FileEntry, file_entry, open_version
from training.config import ModelSection

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from training.model.adafocal import AdaFocalModel
    from training.model.config import AdaFocalConfig
    from training.model.processing import AdaFocalProcessor

FOLDER, CONFIG = "export", "config.json"
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
            return random_model(config, section.seed, with_tower, section.tower_seed)
    if section.overrides:
        raise OacirError(
            f"model.overrides {sorted(section.overrides)}: sizes come from model.weights {section.weights};"
            " remove one of the two"
        )
    _quiet()
    with _named(f"model.weights {section.weights}"):
        base = load_model(_start(section.weights), with_tower=with_tower)
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
    """The processor of a recipe's model, with the recipe's settings of what it sees and reads.

    Args:
        section: says where the tokenizer comes from.
        config: of the model.
        texts: gives the training texts as the model reads them; asked only where a tokenizer has to be trained.
    """
    from training.model.processing import AdaFocalProcessor, train_wordpiece

    if section.tokenizer is not None:
        processor = AdaFocalProcessor.for_model(config, load_tokenizer(section.tokenizer))
    elif section.weights is not None:
        processor = _load_processor(
            _start(section.weights), "name one with model.tokenizer, a directory or Hub id"
        )
    else:
        processor = AdaFocalProcessor.for_model(config, train_wordpiece(texts(), config.qformer.vocab_size))
    # also over those of the weights: the recipe says how this model is trained
    processor.reference_view = section.reference_view
    processor.text_entity = section.text_entity
    processor.region = section.region
    return processor


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of a directory or Hub id.

    Raises:
        OacirError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with _named(f"tokenizer {name}"):
        return AutoTokenizer.from_pretrained(name)


def write_export(model: AdaFocalModel, processor: AdaFocalProcessor, url: str) -> list[FileEntry]:
    """Write model (tower included) and processor to `<url>/export/`; the entries of the files written."""
    storage.remove(storage.join(url, FOLDER))
    paths = write_model(model, processor, storage.join(url, FOLDER))
    return [file_entry(url, f"{FOLDER}/{path}") for path in paths]


def write_model(model: AdaFocalModel, processor: AdaFocalProcessor | None, url: str) -> list[str]:
    """Write model (tower included) and processor, where there is one, into the folder `url`; the files' names."""
    _quiet()
    with tempfile.TemporaryDirectory(prefix="oacir-export-") as name:
        folder = Path(name)
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        if processor is not None:
            processor.save_pretrained(folder)
        paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        for path in paths:
            storage.write_bytes(storage.join(url, path), (folder / path).read_bytes())
    return paths


def open_model(
    url: str, with_tower: bool = True, cache: Path = DEFAULT_CACHE
) -> tuple[AdaFocalModel, AdaFocalProcessor]:
    """Model and processor of a finished run (or of any directory of save_pretrained), in eval mode, on the CPU.

    Raises:
        VersionError: the run is unfinished.
        OacirError: no model lies there, or no tokenizer with it.
    """
    from training.model.auto import load_model

    _quiet()
    folder = model_folder(url, cache)
    processor = _load_processor(folder, "convert it with --tokenizer, or give the run that trained it")
    return load_model(folder, with_tower=with_tower), processor


def model_folder(url: str, cache: Path = DEFAULT_CACHE) -> Path:
    """The local folder of a model: of a directory of save_pretrained, or of a finished run; from S3 through the cache.

    Raises:
        VersionError: neither, or the run is unfinished.
        OacirError: a version that holds no model.
    """
    plain = storage.exists(storage.join(url, CONFIG)) and not storage.exists(storage.join(url, MANIFEST))
    if plain and not storage.is_s3(url):
        return Path(storage.absolute(url))
    if plain:
        files = list(storage.list_files(url))
        key = recipe_hash({f.path: [f.size_bytes, f.mark] for f in files})
        return _fetch(url, {f.path: f.size_bytes for f in files}, cache / key)
    run = open_version(url)
    sizes = {f.path: f.size_bytes for f in run.manifest.files if f.path.startswith(f"{FOLDER}/")}
    if not sizes:
        raise OacirError(
            f"{run.url}: holds no exported model; it is a {run.manifest.kind} version, give a run"
        )
    if not storage.is_s3(run.url):
        return Path(run.path(FOLDER))
    return _fetch(run.url, sizes, cache / run.manifest.content_hash) / FOLDER


def _fetch(url: str, sizes: Mapping[str, int], folder: Path) -> Path:
    """Copy files below `url` into `folder` unless they lie there."""
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            storage.write_bytes(str(path), storage.read_bytes(storage.join(url, name)))
    return folder


def _start(weights: str) -> str | Path:
    """What a recipe's `weights` means: a folder or run, or, where nothing lies there, a Hub id."""
    return model_folder(weights) if storage.is_s3(weights) or Path(weights).is_dir() else weights


def _load_processor(place: str | Path, fix: str) -> AdaFocalProcessor:
    from training.model.processing import SETTINGS_FILE, AdaFocalProcessor

    if Path(place).is_dir() and not (Path(place) / SETTINGS_FILE).is_file():
        raise OacirError(f"{place}: its model has no tokenizer beside it; {fix}")
    return AdaFocalProcessor.from_pretrained(place)


def _quiet() -> None:
    """Long work of ours shows one progress line; transformers would add its own and a page of advice."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def _named(what: str) -> Iterator[None]:
    """transformers' complaints do not say what was asked for, and speak in paragraphs."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OacirError(f"{what}: cannot be loaded ({reason}); give a directory or Hub id") from error


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
