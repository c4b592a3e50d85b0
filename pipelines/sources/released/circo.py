"""CIRCO: `annotations/{val,test}.json` over all of COCO 2017 unlabeled (123,403 images), which is the gallery of both.

`gt_img_ids` are the targets, the first of them the one the text was written for (`target_img_id`). test has no
targets: its queries are `hidden`. The gallery is what `annotations/image_info_unlabeled2017.json` lists, beside the
images as COCO lays them out; licence and page of each photo come from there too. `shared_concept` and
`semantic_aspects` are kept in the provenance; the text is `relative_caption` alone.
"""

from __future__ import annotations

from typing import Literal

from infra.base.errors import OacirError
from pipelines.sources.released.base import Release, ReleaseConfig, ReleaseFiles, keys_of, present

DOMAIN = "circo"
SPLITS = {"val": "test", "test": "hidden"}
INFO = "annotations/image_info_unlabeled2017.json"


class CircoConfig(ReleaseConfig):
    """CIRCO."""

    kind: Literal["circo"] = "circo"
    """Which release this is."""
    splits: list[Literal["val", "test"]] | None = None
    """The release's splits to read; null reads those whose annotations are there."""


def read(config: CircoConfig) -> Release:
    """See the module; images lie in `COCO2017_unlabeled/unlabeled2017/`."""
    files = ReleaseFiles(config, "COCO2017_unlabeled")
    release = Release("circo", "CC BY-NC 4.0", files)
    ids = _gallery(release)
    annotations = {name: f"annotations/{name}.json" for name in SPLITS}
    for name in present(files, config.splits, annotations):
        split = SPLITS[name]
        release.rank_in(f"{DOMAIN}/{split}", ids.values())
        for number, record in enumerate(files.json(annotations[name])):
            where = f"{annotations[name]}, record {number}"
            query, reference, text = keys_of(record, where, ("id", "reference_img_id", "relative_caption"))
            targets: list[int] = []
            if split != "hidden":
                first, targets = keys_of(record, where, ("target_img_id", "gt_img_ids"))
                if targets[:1] != [first]:
                    raise OacirError(f"{where}: target_img_id {first} is not the first of gt_img_ids")
            release.records[name] += 1
            unnamed = [image for image in (reference, *targets) if image not in ids]
            query_id = f"{DOMAIN}/{name}/{query}"
            if unnamed:
                release.refuse(query_id, "missing_image", f"{unnamed[0]} is not in {INFO}")
                continue
            extra = {k: record[k] for k in ("id", "shared_concept", "semantic_aspects") if k in record}
            release.ask(query_id, DOMAIN, split, ids[reference], [ids[i] for i in targets], text, extra=extra)
    release.protocol = {"name": "circo", "reference": "kept", "targets": "all"}
    release.notes.append("CIRCO is scored by mAP@K over all targets; R@K counts the first target alone")
    return release


def _gallery(release: Release) -> dict[int, str]:
    """COCO's id of each image of the index → our image id."""
    info = release.files.json(INFO, release.files.images)
    (images,) = keys_of(info, INFO, ("images",))
    licences = {entry["id"]: entry["name"] for entry in info.get("licenses", ())}
    ids = {}
    for number, image in enumerate(images):
        key, name = keys_of(image, f"{INFO}, image {number}", ("id", "file_name"))
        path = f"unlabeled2017/{name}"
        ids[key] = release.image(
            f"{DOMAIN}/{path}",
            DOMAIN,
            path,
            licence=licences.get(image.get("license")),
            attribution=image.get("flickr_url") or image.get("coco_url"),
        )
    return ids
