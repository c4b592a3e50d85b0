"""Drill: kill -9 of a Ray Data worker at seeded random moments of a build; the same run must go on by itself.

python tests/e2e/drill_worker.py --trials 10 --seed 0 --json result.json

Killed is one of the processes that run a part of a stage just then.
--without-recovery: the part of a lost worker is not given to another one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from drilling import Build, Drill, Trial, command_line, finished, judge_end, moments, photos, recipe


def drill(options: argparse.Namespace, folder: Path) -> Drill:
    made = recipe(folder, "recipe", photos(folder / "photos", options.instances), images_per_part=8)
    left_out = " (taken out)" if options.without_recovery else ""
    result = Drill("kill -9 of a worker", options.seed, f"Ray gives the part to another worker{left_out}")
    first = Build(made, folder / "whole")
    whole = first.run()
    result.undisturbed_seconds = first.seconds
    total = len(finished(folder / "whole"))
    rng, shares = moments(options.seed, options.trials)
    for number, share in enumerate(shares):
        trial = Trial(f"after {share:.3f} of the files")
        build = Build(
            made, folder / f"kill-{number}", ["--without", "no_retries"] if options.without_recovery else []
        )
        build.start()
        build.until_files(round(share * total))
        workers = build.until_at_work(build.family)
        if not workers:
            raise RuntimeError("the build was over before a worker could be killed")
        rng.choice(workers).kill()
        result.add(judge_end(trial, build, whole))
    return result


if __name__ == "__main__":
    sys.exit(command_line(__doc__ or "", drill))
