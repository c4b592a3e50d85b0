"""CIRR, version rc2: `captions/cap.rc2.{train,val,test1}.json`, `image_splits/split.rc2.{train,val,test1}.json`.

Every query is asked within a set of six images; the released metric ranks the whole split without the reference
(R@1,5,10,50) and the five other members of the set (R_subset@1,2,3), so the set is the query's `group_ids`. The primary
target is `target_hard`. `target_soft` gives images a number between -1 and 1: those above 0 become further targets,
best first, except the reference, which 37 records of val name. What the numbers below 0 mean is documented nowhere
that we could read, so the whole entry stays in the provenance.

test1 has no targets: its queries are `hidden`. One of them has an empty caption and is kept, because the server wants
an answer to every pair. `captions_ext` is not read. Images are NLVR2's, laid out as CIRR's README says (`img_raw`).
"""

from __future__ import annotations

from typing import Literal

from infra.base import storage
from pipelines.sources.released.base import (
    Release,
    ReleaseFiles,
    TrainingReleaseConfig,
    keys_of,
    present,
    relative,
)

DOMAIN = "cirr"
SPLITS = {"train": "train", "val": "test", "test1": "hidden"}


class CirrConfig(TrainingReleaseConfig):
    """CIRR."""

    kind: Literal["cirr"] = "cirr"
    """Which release this is."""
    splits: list[Literal["train", "val", "test1"]] | None = None
    """The release's splits to read; null reads those whose captions are there."""


def read(config: CirrConfig) -> Release:
    """See the module; images lie in `img_raw/`, or in the source itself where that folder is not there."""
    files = ReleaseFiles(config, "img_raw" if storage.exists(storage.join(config.source, "img_raw")) else "")
    release = Release("cirr", "MIT", files)
    captions = {name: f"captions/cap.rc2.{name}.json" for name in SPLITS}
    for name in present(files, config.splits, captions):
        _read_split(release, name, captions[name])
    release.hold_out(config.dev_share, config.seed)
    release.protocol = {"name": "cirr", "reference": "removed", "subset": "group_ids"}
    return release


def _read_split(release: Release, name: str, captions: str) -> None:
    files, split = release.files, SPLITS[name]
    ids: dict[str, str] = {}
    for image, path in files.json(f"image_splits/split.rc2.{name}.json").items():
        path = relative(path)
        ids[image] = release.image(
            f"{DOMAIN}/{path}", DOMAIN, path, attribution="NLVR2, https://lil.nlp.cornell.edu/nlvr"
        )
    if split != "train":
        release.rank_in(f"{DOMAIN}/{split}", ids.values())
    for number, record in enumerate(files.json(captions)):
        where = f"{captions}, record {number}"
        pair, reference, caption, group = keys_of(
            record, where, ("pairid", "reference", "caption", "img_set")
        )
        (members,) = keys_of(group, where, ("members",))
        release.records[name] += 1
        targets: list[str] = []
        if split != "hidden":
            hard, soft = keys_of(record, where, ("target_hard", "target_soft"))
            further = sorted((-score, image) for image, score in soft.items() if score > 0)
            targets = [hard, *(image for _, image in further if image not in (hard, reference))]
        query_id = f"{DOMAIN}/{name}/{pair}"
        unnamed = [i for i in (reference, *targets, *members) if i not in ids]
        if unnamed:
            release.refuse(query_id, "missing_image", f"{unnamed[0]} is in no split file")
            continue
        extra = {k: record[k] for k in ("pairid", "target_soft") if k in record} | {
            "img_set": group.get("id")
        }
        release.ask(
            query_id,
            DOMAIN,
            split,
            ids[reference],
            [ids[i] for i in targets],
            caption,
            group_ids=[ids[i] for i in members],
            extra=extra,
        )
