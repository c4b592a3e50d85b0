"""Drill: one photo hangs; the build must reject it as `timeout` and have everything else.

python tests/e2e/drill_hang.py --trials 10 --seed 0 --json result.json

Drawn is the photo; how it hangs goes in turns: its file is a FIFO that nobody writes to (a read without an end, as of a
dead mount), or its decoding never returns, in Python or in C with the interpreter held. Compared is a build of the same
collection in which that photo is rejected at once.
--without-recovery: no watchdog; the build then has no end, and is killed when it takes more than twice as long as the
other one and five times the limit.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from drilling import Build, Drill, Trial, command_line, finished, judge, moments, photos, recipe
from planted import HELD, LOOP

WAYS = ("read", "decode", "decode in C")


def drill(options: argparse.Namespace, folder: Path) -> Drill:
    left_out = " (taken out)" if options.without_recovery else ""
    result = Drill("a photo that hangs", options.seed, f"a watchdog beside each worker{left_out}")
    rng, _ = moments(options.seed, 0)
    for number in range(options.trials):
        place = folder / f"photos-{number}"
        victim = rng.choice(sorted(photos(place, options.instances).rglob("*.jpg")))
        how = WAYS[(number + options.seed) % len(WAYS)]
        if how == "read":
            victim.unlink()
            os.mkfifo(victim)
        else:
            victim.write_bytes(victim.read_bytes() + {"decode": LOOP, "decode in C": HELD}[how])
        trial = Trial(f"{victim.relative_to(place)}, {how}")
        made = recipe(folder, f"r-{number}", place, images_per_part=8, seconds_per_record=options.seconds)
        rejected = Build(made, folder / f"whole-{number}", ["--reject", str(victim)])
        whole = rejected.run()
        result.undisturbed_seconds = max(result.undisturbed_seconds, rejected.seconds)
        without = ["--without", "no_watchdog"] if options.without_recovery else []
        root = folder / f"hang-{number}"
        build = Build(made, root, ["--hang", *without])
        build.start()
        no_end_s = 2 * rejected.seconds + 5 * options.seconds
        build.until(lambda root=root, build=build, limit_s=no_end_s: _noted(root) or build.seconds > limit_s)
        before, noted = finished(root), _noted(root)
        try:
            judge(trial, root, before, whole, build.end() if noted else build.end(0.1))
        except RuntimeError as error:
            trial.failure = str(error) if noted else f"no record was noted in {build.seconds:g} s"
        trial.seconds = build.seconds
        result.add(trial)
    return result


def _noted(root: Path) -> bool:
    """Whether a watchdog has written down that a record hung."""
    return next(root.glob("datasets/drill/*/_work/hung/**/*.json"), None) is not None


if __name__ == "__main__":
    sys.exit(command_line(__doc__ or "", drill, seconds=5.0))
