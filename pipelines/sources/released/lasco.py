"""LaSCo: `lasco_{train,val}.json`, `lasco_val_corpus.json`, on the images of COCO train2014 and val2014.

A record is {qid, query-image: [id, path], query-text, target-image: [id, path]}, as the authors' README documents;
the val gallery is the corpus file, a list of {id, path} whose paths are written `val/val2014/…`. That last form is
known from other people's loaders only: no LaSCo file was at hand. Nothing says that a `qid` is unique, so the ids of
queries count records.
"""

from __future__ import annotations

from typing import Any, Literal

from infra.base.errors import OacirError
from pipelines.sources.released.base import (
    Release,
    ReleaseFiles,
    TrainingReleaseConfig,
    keys_of,
    present,
    relative,
)

DOMAIN = "lasco"
SPLITS = {"train": "train", "val": "test"}
CORPUS = "lasco_val_corpus.json"


class LascoConfig(TrainingReleaseConfig):
    """LaSCo."""

    kind: Literal["lasco"] = "lasco"
    """Which release this is."""
    splits: list[Literal["train", "val"]] | None = None
    """The release's splits to read; null reads those whose queries are there."""


def read(config: LascoConfig) -> Release:
    """See the module; images lie in `train2014/` and `val2014/`, inside the source by default."""
    files = ReleaseFiles(config)
    release = Release("lasco", "MIT", files)
    paths = {name: f"lasco_{name}.json" for name in SPLITS}
    for name in present(files, config.splits, paths):
        split = SPLITS[name]
        if split == "test":
            release.rank_in(f"{DOMAIN}/test", _corpus(release))
        for number, record in enumerate(files.json(paths[name])):
            where = f"{paths[name]}, record {number}"
            reference, text, target, qid = keys_of(
                record, where, ("query-image", "query-text", "target-image", "qid")
            )
            release.records[name] += 1
            ids = [_image(release, image, where) for image in (reference, target)]
            query_id = f"{DOMAIN}/{name}/{number:06d}"
            if split == "test" and ids[1] not in release.galleries[f"{DOMAIN}/test"]:
                release.refuse(query_id, "missing_image", f"target {ids[1]} is not in {CORPUS}")
                continue
            release.ask(query_id, DOMAIN, split, ids[0], ids[1:], text, extra={"qid": qid})
    release.hold_out(config.dev_share, config.seed)
    release.protocol = {"name": "lasco", "reference": "removed"}
    return release


def _corpus(release: Release) -> list[str]:
    entries = release.files.json(CORPUS)
    if isinstance(entries, dict):  # the train corpus is written so: id → path
        entries = [{"id": key, "path": path} for key, path in entries.items()]
    ids = []
    for number, entry in enumerate(entries):
        (path,) = keys_of(entry, f"{CORPUS}, entry {number}", ("path",))
        ids.append(_image(release, (None, path), f"{CORPUS}, entry {number}"))
    return ids


def _image(release: Release, image: Any, where: str) -> str:
    if not isinstance(image, list | tuple) or len(image) != 2:
        raise OacirError(
            f"{where}: an image is [id, path], found {image!r}; this is not the release's layout"
        )
    parts = relative(str(image[1])).split("/")
    path = "/".join(parts[-2:])  # train2014/… or val2014/…
    return release.image(f"{DOMAIN}/{path}", DOMAIN, path, attribution="COCO 2014, https://cocodataset.org")
