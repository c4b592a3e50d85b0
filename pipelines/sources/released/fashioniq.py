"""FashionIQ: `captions/cap.{dress,shirt,toptee}.{train,val,test}.json`, `image_splits/split.….json`, images by ASIN.

A record has two captions of the same change. Where one is empty (16 records) or a full stop (1), the other stands
alone. The text of an evaluation query is "Cap1 and cap2", both stripped of `.?, ` and the first capitalised, as
everyone does. A training record becomes up to four queries (both orders, each caption alone), which is what drawing one
of them at 25 % each comes to over the epochs; dev queries are asked as test queries are.

Three galleries are in use and their scores cannot be compared, so `protocol` has no default:
`split` = all images of the category's split, the reference among them (CLIP4CIR, SPRC, the OACIR release);
`split_without_reference` = the same, each query's reference taken out;
`val_triplets` = references and targets of the val queries only, the reference among them (VAL, CoSMo).

test has no targets: its queries are `hidden`. A category's training images partly are another's val images (shirt and
toptee): the import counts them.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from pipelines.sources.released.base import (
    Release,
    ReleaseFiles,
    TrainingReleaseConfig,
    keys_of,
    present,
    provenance,
)

Category = Literal["dress", "shirt", "toptee"]
SPLITS = {"train": "train", "val": "test", "test": "hidden"}
SUFFIXES = (".png", ".jpg", ".jpeg")


class FashionIqConfig(TrainingReleaseConfig):
    """FashionIQ."""

    kind: Literal["fashioniq"] = "fashioniq"
    """Which release this is."""
    protocol: Literal["split", "split_without_reference", "val_triplets"]
    """Which of the three galleries in use: scores on different ones cannot be compared."""
    categories: list[Category] = Field(["dress", "shirt", "toptee"])
    """Categories to read; each is a domain."""
    splits: list[Literal["train", "val", "test"]] | None = None
    """The release's splits to read; null reads those whose captions are there."""


def read(config: FashionIqConfig) -> Release:
    """See the module; images lie in `images/` as <ASIN>.png or .jpg."""
    files = ReleaseFiles(config, "images")
    release = Release("fashioniq", "CDLA (Community Data License Agreement)", files)
    for category in config.categories:
        captions = {name: f"captions/cap.{category}.{name}.json" for name in SPLITS}
        for name in present(files, config.splits, captions):
            _read_split(release, category, name, captions[name], config.protocol)
    release.hold_out(config.dev_share, config.seed)
    release.quadruples = [row for query in release.quadruples for row in variants(query)]
    kept = config.protocol != "split_without_reference"
    gallery = "val_triplets" if config.protocol == "val_triplets" else "split"
    release.protocol = {
        "name": "fashioniq",
        "gallery": gallery,
        "reference": "kept" if kept else "removed",
    }
    release.notes.append(
        f"FashionIQ, protocol {config.protocol}: compare with scores of the same protocol only"
    )
    return release


def _read_split(release: Release, category: str, name: str, captions: str, protocol: str) -> None:
    files, split = release.files, SPLITS[name]
    ids = {
        asin: _image(release, category, asin)
        for asin in files.json(f"image_splits/split.{category}.{name}.json")
    }
    if split == "hidden" or (split == "test" and protocol != "val_triplets"):
        release.rank_in(f"{category}/{split}", ids.values())
    for number, record in enumerate(files.json(captions)):
        reference, texts = keys_of(record, f"{captions}, record {number}", ("candidate", "captions"))
        target = () if split == "hidden" else keys_of(record, f"{captions}, record {number}", ("target",))
        release.records[f"{category} {name}"] += 1
        query_id = f"{category}/{name}/{number:05d}"
        unnamed = [asin for asin in (reference, *target) if asin not in ids]
        if unnamed:
            release.refuse(query_id, "missing_image", f"{unnamed[0]} is in no split file")
            continue
        targets = [ids[asin] for asin in target]
        if split == "test" and protocol == "val_triplets":
            release.rank_in(f"{category}/test", [ids[reference], *targets])
        release.ask(
            query_id, category, split, ids[reference], targets, joined(texts), extra={"captions": texts}
        )


def _image(release: Release, category: str, asin: str) -> str:
    path = release.files.first(asin + suffix for suffix in SUFFIXES)
    return release.image(f"{category}/{path}", category, path, attribution=f"amazon.com, ASIN {asin}")


def cleaned(captions: list[str]) -> list[str]:
    """The captions without the `.?, ` around them, empty ones left out."""
    return [text for caption in captions if (text := caption.strip(".?, "))]


def joined(captions: list[str]) -> str:
    """ "Cap1 and cap2"; the one there is, where the other is empty."""
    return " and ".join([text if n else text.capitalize() for n, text in enumerate(cleaned(captions))])


def variants(query: dict[str, Any]) -> list[dict[str, Any]]:
    """A training query in every wording the release's two captions allow; any other query as it is."""
    if query["split"] != "train":
        return [query]
    captions = json.loads(query["provenance"]["extra_json"])["captions"]
    texts = cleaned(captions)
    if len(texts) < 2:
        return [query]
    wordings = {"12": texts, "21": texts[::-1], "1": texts[:1], "2": texts[1:]}
    return [
        query
        | {
            "query_id": f"{query['query_id']}-{name}",
            "modification_text": joined(words),
            "provenance": provenance("fashioniq", {"captions": captions}, parent_id=query["query_id"]),
        }
        for name, words in wordings.items()
    ]
