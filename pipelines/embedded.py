"""Tokens that earlier feature stores under the root already hold, so that an update embeds only what is new.

Equal feature keys mean equal tokens for equal content (`features.feature_key`), whatever benchmark they were made for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from infra.base import storage, versions
from infra.base.errors import OacirError
from infra.base.versions import Version
from training.features import INDEX

READERS = 8


class Place(NamedTuple):
    """Where the tokens of one content lie."""

    url: str
    """Of the shard."""
    row: int


def places(root: str, feature_key: str, contents: Collection[str], row_bytes: int) -> dict[str, Place]:
    """Where finished stores under a root hold some contents under a feature key; the newest store is asked first.

    Args:
        root: URL under which versions lie.
        feature_key: of the tokens wanted.
        contents: as `stores.Contents.hashes` names them.
        row_bytes: bytes of one content's tokens.
    """
    wanted, found = set(contents), dict[str, Place]()
    stores = [
        version
        for version in versions.list_versions(root, "features")
        if version.manifest.figures.get("feature_key") == feature_key
    ]
    for store in sorted(stores, key=lambda version: version.manifest.created_at, reverse=True):
        if not wanted:
            break
        held = _held(store, wanted, row_bytes)
        found |= held
        wanted -= held.keys()
    return found


def _held(store: Version, wanted: Collection[str], row_bytes: int) -> dict[str, Place]:
    index = store.table(INDEX)
    names = index["sha256"].to_pylist()
    if (
        store.manifest.figures.get("view", "full") != "full"
    ):  # a view's name ends with the box it is seen through
        boxes = (name.rpartition("#")[2] for name in index["image_id"].to_pylist())
        names = [f"{sha256}#{box}" for sha256, box in zip(names, boxes, strict=True)]
    shards = [file for file in store.manifest.files if file.path.startswith("shards/")]
    lying = {file.path: file.size_bytes for file in storage.list_files(store.url)}
    whole = {
        number: store.path(file.path)
        for number, file in enumerate(shards)
        if lying.get(file.path) == file.size_bytes and file.size_bytes % row_bytes == 0
    }
    where = zip(names, index["shard"].to_pylist(), index["row"].to_pylist(), strict=True)
    return {name: Place(whole[shard], row) for name, shard, row in where if name in wanted and shard in whole}


def read(held: Sequence[Place], row_bytes: int) -> list[bytes]:
    """The tokens at some places, in their order; neighbours in one shard are read as one run, runs in parallel.

    Raises:
        OacirError: a shard is gone or was cut since it was listed.
    """
    if not held:
        return []
    order = sorted(range(len(held)), key=lambda i: held[i])
    breaks = [
        at
        for at in range(1, len(order))
        if held[order[at]] != Place(held[order[at - 1]].url, held[order[at - 1]].row + 1)
    ]
    runs = [part.tolist() for part in np.split(np.array(order), breaks)]

    def fetch(run: list[int]) -> bytes:
        first = held[run[0]]
        url = storage.byte_range(first.url, first.row * row_bytes, len(run) * row_bytes)
        try:
            return storage.read_bytes(url)
        except OacirError as error:
            raise OacirError(
                f"{error}; or remove that feature store, its tokens are then computed"
            ) from error

    out = [b""] * len(held)
    with ThreadPoolExecutor(READERS) as pool:
        for run, data in zip(runs, pool.map(fetch, runs), strict=True):
            for at, position in enumerate(run):
                out[position] = data[at * row_bytes : (at + 1) * row_bytes]
    return out
