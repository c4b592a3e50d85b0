"""Reading checkpoint files of others, tensors only: safetensors, or torch files without anything to unpickle."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from infra.base.errors import OacirError

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"


class Named(NamedTuple):
    """A state dict, and under which key of its file it lay (None: the file is the state dict)."""

    key: str | None
    state: dict[str, Tensor]


def read_file(path: Path) -> Named:
    """The one state dict of a .safetensors or torch file; its tensors stay on disk until they are used.

    A torch file may keep it under a key (a class name, "model") beside an epoch, an optimizer and the like.

    Raises:
        OacirError: nothing there, damaged, more than tensors and plain values in it, or not exactly one state dict.
    """
    if not path.is_file():
        raise OacirError(f"{path}: no such file; give a checkpoint file or a directory with {CONFIG}")
    if path.suffix == ".safetensors":
        return Named(None, _read_safetensors(path))
    tree = _read_torch(path)
    if _is_state(tree):
        return Named(None, dict(tree))
    found = (
        {str(key): value for key, value in tree.items() if _is_state(value)} if isinstance(tree, dict) else {}
    )
    if "model" in found:
        found = {"model": found["model"]}
    if len(found) != 1:
        there = f"{len(found)} ({', '.join(sorted(found))})" if found else "none"
        raise OacirError(
            f"{path}: needs one dict of named tensors, found {there}; save the model's state dict alone"
        )
    ((key, state),) = found.items()
    return Named(key, dict(state))


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All weights of a directory that `save_pretrained` wrote, in one safetensors file or several.

    Raises:
        OacirError: no safetensors there, or a part of them is missing or damaged.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WEIGHTS).is_file():
            raise OacirError(
                f"{folder}: holds neither {WEIGHTS} nor {INDEX}; pickled weights (pytorch_model.bin) are not read,"
                " save them as safetensors"
            )
        return _read_safetensors(folder / WEIGHTS)
    parts: dict[str, str] = json.loads(index.read_text())["weight_map"]
    missing = sorted({part for part in parts.values() if not (folder / part).is_file()})
    if missing:
        raise OacirError(
            f"{folder}: {', '.join(missing)} named by {INDEX} is missing; fetch the whole directory"
        )
    state: dict[str, Tensor] = {}
    for part in sorted(set(parts.values())):
        state |= _read_safetensors(folder / part)
    return state


def model_type(folder: Path) -> str:
    """What kind of model a directory says to hold.

    Raises:
        OacirError: it has no readable config.json.
    """
    place = folder / CONFIG
    if not place.is_file():
        raise OacirError(
            f"{folder}: has no {CONFIG}; give a checkpoint file or a directory of save_pretrained"
        )
    try:
        return str(json.loads(place.read_text()).get("model_type"))
    except (ValueError, AttributeError) as error:
        raise OacirError(f"{place}: is no configuration ({error}); fetch it again") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise OacirError(f"{path}: is no readable safetensors file ({error}); fetch it again") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's protocol: the error below says what to do
            # only torch's present (zip) format can stay on disk
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # torch's own words advise to unpickle it after all
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        what = (
            f"holds more than tensors and plain values ({foreign[1]})"
            if foreign
            else "is no torch file of tensors"
        )
        raise OacirError(
            f"{path}: {what} and is not unpickled; where you trust it, save its state dict alone (safetensors, or"
            " torch.save) and give that"
        ) from error
    except Exception as error:  # the unpickler raises nearly anything on foreign bytes
        reason = " ".join(str(error).split())[:200]
        raise OacirError(
            f"{path}: is no readable torch file ({type(error).__name__}{': ' * bool(reason)}{reason}); fetch it again"
        ) from error


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(part, Tensor) for part in value.values())
    )
