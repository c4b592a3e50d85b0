"""Which families there are, where a model lies, and how it becomes an encoder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.retrieval.foreign.blip2 import Blip2
from pipelines.retrieval.foreign.clip import Clip
from pipelines.retrieval.foreign.config import ForeignSection
from pipelines.retrieval.foreign.family import Family
from pipelines.retrieval.foreign.qwen_vl import QwenVL
from pipelines.retrieval.foreign.siglip import Siglip
from pipelines.retrieval.inputs import MODEL_CONFIG, ModelPlace

if TYPE_CHECKING:
    import torch

FAMILIES: tuple[type[Family], ...] = (Clip, Siglip, Blip2, QwenVL)
OURS = ("adafocal", "sprc")
NOT_NEEDED = (
    "*.onnx",
    "*.msgpack",
    "*.h5",
    "*.ot",
    "*.gguf",
    "onnx/*",
    "openvino/*",
    "*.md",
    ".gitattributes",
)
"""Files of a repository of the Hub that no model here reads."""


def find_foreign(reference: str) -> ModelPlace:
    """The model a user means: a local folder of `save_pretrained`, else a repository of the Hugging Face Hub.

    Raises:
        OacirError: neither.
    """
    url = storage.absolute(reference)
    if "://" in url:
        raise OacirError(
            f"--model {reference}: a model that is not ours is read from a local folder or by its name on the Hub; copy"
            " it here first"
        )
    folder = Path(url)
    if not (folder / MODEL_CONFIG).is_file():
        if folder.exists():
            raise OacirError(
                f"--model {reference}: the folder holds no {MODEL_CONFIG}; give one of save_pretrained"
            )
        folder = Path(_fetched(reference))
        return ModelPlace(reference.split("/")[-1], str(folder), content_hash(folder), None)
    return ModelPlace(folder.name, str(folder), content_hash(folder), None)


def family_of(place: ModelPlace) -> type[Family]:
    """The family that reads a model.

    Raises:
        OacirError: none does.
    """
    try:
        kind = str(json.loads((Path(place.url) / MODEL_CONFIG).read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError) as error:
        raise OacirError(
            f"--model {place.url}: its {MODEL_CONFIG} names no model_type; give a folder of save_pretrained"
        ) from error
    if kind in OURS:
        raise OacirError(f"--model {place.url}: is a model of this package; leave the foreign options out")
    found = next((family for family in FAMILIES if kind in family.model_types), None)
    if found is None:
        known = ", ".join(name for family in FAMILIES for name in family.model_types)
        raise OacirError(
            f"--model {place.url}: is a {kind} model; known are {known}. Another kind is a file in"
            " pipelines/retrieval/foreign and a name in load.FAMILIES"
        )
    return found


def open_family(place: ModelPlace, section: ForeignSection, device: torch.device) -> Family:
    """The model in memory.

    Raises:
        OacirError: no family reads it, it does not compose queries so, or it cannot be loaded.
    """
    family = family_of(place)
    if section.compose is not None and section.compose not in family.composes:
        raise OacirError(
            f"foreign.compose {section.compose}: {family.__name__} composes by {', '.join(family.composes)}"
        )
    try:
        return family(place.url, section, device)
    except (OSError, ValueError, ImportError) as error:
        line = " ".join(str(error).split())[:300]
        raise OacirError(f"--model {place.url}: its processor cannot be loaded ({line})") from error


def content_hash(folder: Path) -> str:
    """Over names and bytes of every file in a folder, in order of their names; links are followed."""
    lines = []
    for path in sorted(
        p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts[len(folder.parts) :]
    ):
        with path.open("rb") as stream:
            lines.append(f"{path.relative_to(folder)} {hashlib.file_digest(stream, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _fetched(name: str) -> str:
    """The folder of a repository's snapshot; weights as safetensors where there are any."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        files = HfApi().model_info(name).siblings or ()
        safe = any(file.rfilename.endswith(".safetensors") for file in files)
        ignored = [*NOT_NEEDED, *(("*.bin", "*.pt", "*.pth") if safe else ())]
        return str(snapshot_download(name, ignore_patterns=ignored))
    except Exception as error:
        try:  # without the network what was fetched before will do
            return str(snapshot_download(name, local_files_only=True))
        except Exception:
            line = " ".join(str(error).split())[:200]
            raise OacirError(
                f"--model {name}: no such folder, and the Hugging Face Hub does not give it ({type(error).__name__}:"
                f" {line}); name a folder of save_pretrained"
            ) from error
