"""Drill: kill -9 of a build's driver at seeded random moments; the same command must finish with the same content.

python tests/e2e/drill_build.py [--update] --trials 10 --seed 0 --json result.json

Each kill is a build of its own, in a fresh root, killed when a drawn share of its work is done and run again at once,
while workers of the killed driver may still be alive. With --update the build adds photos to an earlier version.
--without-recovery: the second run does not look for finished parts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from drilling import (
    THRESHOLDS,
    Build,
    Drill,
    Trial,
    alive,
    command_line,
    finished,
    judge,
    moments,
    photos,
    recipe,
)

WORLD = """name: drill
source: {{kind: world, world: {{image_size_px: 64, instances_per_domain: {instances}, scenes_per_instance: 5}}}}
{thresholds}
images_per_part: {per_part}
workers: 2
"""


def drill(options: argparse.Namespace, folder: Path) -> Drill:
    made = updated(options, folder) if options.update else rendered(options, folder)
    what = "kill -9 of the driver of an update" if options.update else "kill -9 of the build's driver"
    left_out = " (taken out)" if options.without_recovery else ""
    result = Drill(what, options.seed, f"finished parts are looked for{left_out}")
    first = Build(made, folder / "whole")
    whole = first.run()
    result.undisturbed_seconds = first.seconds
    total = len(finished(folder / "whole"))
    for number, share in enumerate(moments(options.seed, options.trials)[1]):
        root = folder / f"kill-{number}"
        trial = Trial(f"after {share:.3f} of the files")
        build = Build(made, root)
        build.start()
        trial.failure = "" if build.until_files(round(share * total)) else "the build was over before"
        family, before = build.kill(), finished(root)
        again = Build(made, root, ["--without", "ignore_finished"] if options.without_recovery else [])
        judge(trial, root, before, whole, again.run())
        trial.seconds = build.seconds
        trial.left_processes = alive(family)
        result.add(trial)
    return result


def rendered(options: argparse.Namespace, folder: Path) -> Path:
    """The recipe of a build of the world: rendering is a part of the work."""
    path = folder / "recipe.yaml"
    text = WORLD.format(instances=options.instances, per_part=options.per_part, thresholds=THRESHOLDS)
    path.write_text(text)
    return path


def updated(options: argparse.Namespace, folder: Path) -> Path:
    """The recipe of an update: a collection is built, then grows by a third."""
    collection = photos(folder / "photos", options.instances)
    begun: dict[str, Any] = {"images_per_part": options.per_part}
    earlier = Build(recipe(folder, "earlier", collection, **begun), folder / "earlier").run()
    photos(collection, options.instances // 3, first=options.instances)
    return recipe(folder, "update", collection, update=earlier["location"], **begun)


if __name__ == "__main__":
    sys.exit(command_line(__doc__ or "", drill, per_part=8, update=False))
