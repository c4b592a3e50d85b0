"""GeneCIS: `genecis/{change,focus}_{object,attribute}.json`; every query brings a small gallery of its own.

A record is a reference, a condition (one or two words: the text), a target and 14 (object tasks) or fewer other images.
R@1,2,3 rank the target among them, so target and others are the query's `group_ids`; the gallery of a task is the union
of all of them, which names every image once instead of fifteen times. Each task is a domain. Some records occur twice
and stay two queries; one of change_object lists its target among the others, so its group has 14 members.

Object tasks name images of COCO val2017 (`val_image_id`). Attribute tasks name a box `instance_bbox` (x, y, w, h) on
an image of Visual Genome (`image_id`), and mean the part that `importing.cropped` cuts out: every such part becomes an
image of its own. The layout of the attribute files is taken from the authors' loader: their files were not at hand.
"""

from __future__ import annotations

from typing import Any, Literal

from pipelines.sources.released.base import Release, ReleaseConfig, ReleaseFiles, keys_of, present

TASKS = ("change_object", "focus_object", "change_attribute", "focus_attribute")
GENOME_FOLDERS = ("VG_100K", "VG_100K_2")


class GenecisConfig(ReleaseConfig):
    """GeneCIS."""

    kind: Literal["genecis"] = "genecis"
    """Which release this is."""
    tasks: list[Literal["change_object", "focus_object", "change_attribute", "focus_attribute"]] | None = None
    """Tasks to read; null reads those whose file is there."""


def read(config: GenecisConfig) -> Release:
    """See the module; images lie in `val2017/` and in `VG_100K/` (and `VG_100K_2/`), inside the source by default."""
    files = ReleaseFiles(config)
    release = Release("genecis", "CC BY-NC 4.0", files)
    paths = {task: f"genecis/{task}.json" for task in TASKS}
    for task in present(files, config.tasks, paths):
        for number, record in enumerate(files.json(paths[task])):
            where = f"{paths[task]}, record {number}"
            reference, target, others, text = keys_of(
                record, where, ("reference", "target", "gallery", "condition")
            )
            release.records[task] += 1
            reference_id, target_id, *other_ids = (
                _image(release, task, item, where) for item in (reference, target, *others)
            )
            group = [target_id, *other_ids]
            release.rank_in(f"{task}/test", group)
            release.ask(
                f"{task}/{number:05d}", task, "test", reference_id, [target_id], text, group_ids=group
            )
    release.protocol = {"name": "genecis", "reference": "removed", "gallery": "group_ids"}
    release.notes.append(
        "GeneCIS ranks a query among its own group_ids; R@K here ranks all images of the task, which is harder"
    )
    return release


def _image(release: Release, task: str, item: Any, where: str) -> str:
    if "val_image_id" in item:
        path = f"val2017/{int(item['val_image_id']):012d}.jpg"
        return release.image(f"{task}/{path}", task, path, attribution="COCO 2017, https://cocodataset.org")
    image, (x, y, w, h) = keys_of(item, where, ("image_id", "instance_bbox"))
    path = release.files.first(f"{folder}/{image}.jpg" for folder in GENOME_FOLDERS)
    return release.image(
        f"{task}/{GENOME_FOLDERS[0]}/{image}@{x:g},{y:g},{w:g},{h:g}.png",
        task,
        path,
        attribution="Visual Genome 1.2, https://homes.cs.washington.edu/~ranjay/visualgenome",
        crop=(x, y, w, h),
    )
