"""Drill: storage fails while a build runs; that command, or the same one again, must finish with the same content.

python tests/e2e/drill_storage.py [--kind errors --kind damage …] --moments 10 --seed 0 --json result.json

    errors    source, output and intermediate state on S3, whose front answers 5 % of the calls with 500 or 503 and cuts
              2 % in mid-body; half a per cent of the writes are done and their answers lost
    damage    there, 2 % of the objects arrive with one byte changed, and of 2 % only a half, with a header that fits
    restarts  there, the front goes away at drawn calls of one build, for 2 to 8 s each
    loss      there, the front goes away at drawn moments for longer than patience lasts; each time the command stops,
              and the same one goes on
    disk      the root is on a file system of its own that is full after drawn shares of the build's bytes; each time
              the command stops, more room is made, and the same one goes on

Work is counted in objects (files on disk) that were complete when the fault came, and redone is one that was stored
again; where nothing stops, any object that was stored twice. --without-recovery takes out what a drill is for, and it
must fail: retries (errors, restarts), the checks of bodies (damage), looking for finished parts (loss), writing beside
and renaming (disk).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drilling import Build, Drill, Trial, faults, finished, judge, write_result
from storage_scene import (
    IN_PLACE,
    NO_CHECKS,
    PAGE_BYTES,
    Scene,
    front,
    planted,
    scene,
    stored,
    unreadable,
)

if TYPE_CHECKING:
    from s3_front import Front

WHAT = {
    "errors": ("5 % of the calls to S3 fail, 2 % are cut in mid-body", "every call is tried again"),
    "damage": ("4 % of the objects arrive damaged", "bodies are held against their ETag"),
    "restarts": ("S3 goes away for 2 to 8 s", "every call is tried again"),
    "loss": ("S3 goes away for longer than patience", "the next command looks for finished parts"),
    "disk": ("the disk is full", "files are written beside and renamed"),
}

_FOLDER = re.compile(r"(/\S*)?/oacir-drill-\w+/")
"""Where a drill's files lie by chance."""


@dataclass
class StorageTrial(Trial):
    """One build and what befell its storage."""

    calls: int = 0
    """Calls that came to the store's front."""
    calls_failed: dict[str, int] = field(default_factory=dict)
    """Fault → calls."""
    moments: int = 1
    """Drawn moments at which storage went away or was full; with shares of calls, one."""
    stopped_with: str = ""
    """The one line of the first command that could not go on."""
    stopped_after_s: float = 0.0
    """How long after the fault came such a command took to end, at most."""


def weather(scene: Scene, kind: str, number: int, seed: int, without: bool) -> StorageTrial:
    """One build through a front that fails all the time."""
    shares = (
        {"errors": 0.05, "cuts": 0.02, "lost": 0.005}
        if kind == "errors"
        else {"spoilt": 0.02, "shortened": 0.02}
    )
    trial, whole = StorageTrial(f"seed {seed} of the front"), scene.undisturbed("s3")
    with ExitStack() as stack:
        way = stack.enter_context(front(scene.store, seed, **shares))
        variables = {}
        if without and kind == "errors":
            variables = {"OACIR_S3_PATIENCE_S": "0"}
        elif without:  # moto stores the checksum that an upload states and gives it back; not all stores do
            variables = stack.enter_context(planted(NO_CHECKS)) | {
                "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"
            }
        build = scene.on_s3(f"{kind}-{number}-{without}", way, **variables)
        ended(trial, build, whole, scene, way)
    return trial


def restarts(scene: Scene, number: int, rng: random.Random, moments: int, without: bool) -> StorageTrial:
    """One build while the front goes away and comes back."""
    whole = scene.undisturbed("s3")
    drawn = sorted((rng.uniform(0.02, 0.98), rng.uniform(2, 8)) for _ in range(moments))
    trial = StorageTrial(", ".join(f"after {share:.3f} of the calls for {s:.1f} s" for share, s in drawn))
    with front(scene.store) as way:
        way.outages |= {round(share * scene.calls): seconds for share, seconds in drawn}
        wanted = len(way.outages)
        build = scene.on_s3(
            f"restarts-{number}-{without}", way, **({"OACIR_S3_PATIENCE_S": "0"} if without else {})
        )
        ended(trial, build, whole, scene, way)
        trial.moments = way.outages_had
        if way.outages_had < wanted and not trial.failure:
            trial.failure = f"the front went away {way.outages_had} times only"
    return trial


def loss(scene: Scene, number: int, rng: random.Random, moments: int, without: bool) -> StorageTrial:
    """One build whose front goes away for good, and the same command when it is back, again and again."""
    whole, shares = scene.undisturbed("s3"), sorted(rng.uniform(0.02, 0.98) for _ in range(moments))
    trial = StorageTrial(f"after {', '.join(f'{s:.3f}' for s in shares)} of the objects", moments=moments)
    before: Counter[str] = Counter()
    with front(scene.store) as way:
        build = scene.on_s3(
            f"loss-{number}-{without}",
            way,
            ["--without", "ignore_finished"] if without else [],
            OACIR_S3_PATIENCE_S="2",
        )
        for share in shares:
            wanted, had = round(share * len(scene.keys)), way.outages_had

            def watch(_: Any, wanted: int = wanted) -> None:
                if len(way.puts()) >= wanted:
                    way.outages.setdefault(way.came, float("inf"))

            way.watch = watch
            build.start()
            build.until(lambda had=had: way.outages_had > had)
            gone = build.seconds
            stopped(trial, build, "cannot be reached at")
            trial.stopped_after_s = max(trial.stopped_after_s, round(build.seconds - gone, 1))
            way.watch = lambda _: None
            way.outages.clear()
            now = way.puts()
            redone(trial, [path for path in before if now[path] > before[path]])
            before = now
            trial.files_before += len(before)
            trial.parts_before += sum("/_accounts/" in path for path in before)
            way.up()
        ended(trial, build, whole, scene, way, before)
    return trial


def disk(scene: Scene, number: int, rng: random.Random, moments: int, without: bool) -> StorageTrial:
    """One build whose disk is full, and the same command when there is some more room, again and again."""
    from small_disk import small_disk

    whole, shares = scene.undisturbed("local"), sorted(rng.uniform(0.05, 0.95) for _ in range(moments))
    trial = StorageTrial(f"at {', '.join(f'{s:.3f}' for s in shares)} of the bytes", moments=moments)
    rooms = [max(1, round(share * scene.pages_bytes / PAGE_BYTES)) * PAGE_BYTES for share in shares]
    root, before = scene.folder / f"disk-{number}-{without}", dict[str, int]()
    with ExitStack() as stack:
        full = stack.enter_context(small_disk(root, rooms[0]))
        variables = stack.enter_context(planted(IN_PLACE)) if without else {}
        build = Build(scene.local_recipe, root, **variables)
        for room in rooms:
            full.resize(room)
            build.start()
            stopped(trial, build, "No space left on device")
            if half := [*unreadable(root), *root.rglob(".*.tmp")]:
                trial.failure = trial.failure or f"half-written: {half[0].name}"
            now = finished(root)
            redone(trial, [path for path in before if now.get(path) != before[path]])
            before = now
            trial.files_before += len(before)
            trial.parts_before += sum("/_accounts/" in path for path in before)
        full.resize(4 * scene.pages_bytes + (64 << 20))
        last = Trial("")
        try:
            judge(last, root, before, whole, build.run())
        except RuntimeError as error:
            trial.failure = trial.failure or str(error)
        trial.same_content, trial.same_accounts = last.same_content, last.same_accounts
        trial.as_stated, trial.seconds = last.as_stated, build.seconds
        trial.files_redone += last.files_redone
        trial.parts_redone += last.parts_redone
    return trial


def redone(trial: Trial, paths: Sequence[str]) -> None:
    """Note what of the finished work was done again."""
    trial.files_redone += len(paths)
    trial.parts_redone += sum("/_accounts/" in path for path in paths)


def ended(
    trial: StorageTrial, build: Build, whole: dict[str, Any], scene: Scene, way: Front, before: Any = None
) -> None:
    """Let a build on S3 come to its end, and fill in what that shows; `before` is what was stored at the last stop."""
    root = str(build.root).removeprefix("s3://drill/")
    try:
        said = build.run()
    except RuntimeError as error:
        trial.failure = trial.failure or str(error)
    else:
        trial.same_content = said["content_hash"] == whole["content_hash"]
        trial.same_accounts = said["accounts"] == whole["accounts"]
        trial.as_stated = not faults(said["location"])
        there = stored(root)
        if there != scene.keys:
            odd = sorted(there ^ scene.keys)
            trial.failure = trial.failure or f"lost or doubled: {odd[0]} and {len(odd) - 1} more"
    now = way.puts()
    if (
        before is None
    ):  # a put whose answer is cut off is sent again, also that of a record: no part is done again
        trial.files_before, trial.files_redone = len(now), sum(times > 1 for times in now.values())
        trial.parts_before = sum("/_accounts/" in path for path in now)
    else:
        redone(trial, [path for path in before if now[path] > before[path]])
    trial.seconds, trial.calls, trial.calls_failed = build.seconds, way.came, way.fault_counts()


def stopped(trial: StorageTrial, build: Build, why: str) -> None:
    """Wait until a command has stopped by itself, with exit code 1 and one line that says why."""
    build.until(lambda: False)
    code = build.running.wait()
    build.log.seek(0)
    text = build.log.read().decode(errors="replace")
    build.log.seek(0)  # where the next start writes
    said = [line for line in text.splitlines() if line.startswith("oacir: error: ")]
    line = said[-1] if said else text[-300:]
    trial.stopped_with = trial.stopped_with or _FOLDER.sub("", line)
    if code != 1 or len(said) != 1 or "Traceback" in text or not (why in line or "keeps failing at" in line):
        trial.failure = trial.failure or f"exit code {code}, {len(said)} lines of error: {line}"


def one(
    scene: Scene, kind: str, number: int, rng: random.Random, moments: int, without: bool
) -> StorageTrial:
    """One trial of a kind."""
    if kind in ("errors", "damage"):
        return weather(scene, kind, number, rng.getrandbits(32), without)
    return {"restarts": restarts, "loss": loss, "disk": disk}[kind](scene, number, rng, moments, without)


def main() -> int:
    from small_disk import NoMountsError

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", action="append", choices=WHAT, help="which drills, default all")
    parser.add_argument("--trials", type=int, default=1, help="builds of each kind")
    parser.add_argument("--moments", type=int, default=10, help="drawn moments in a build")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--instances", type=int, default=12, help="instances of each domain")
    parser.add_argument(
        "--without-recovery", action="store_true", help="take out what the drill is for: it must fail"
    )
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    passed = True
    with (
        tempfile.TemporaryDirectory(prefix="oacir-drill-") as folder,
        scene(Path(folder), options.instances) as made,
    ):
        for kind in options.kind or WHAT:
            fault, recovery = WHAT[kind]
            left_out = " (taken out)" if options.without_recovery else ""
            drill, rng = Drill(fault, options.seed, recovery + left_out), random.Random(options.seed)
            try:
                for number in range(options.trials):
                    drill.add(one(made, kind, number, rng, options.moments, options.without_recovery))
            except NoMountsError as error:
                sys.stdout.write(f"| {drill.fault} | 0 | not drilled: {error} | |\n")
                continue
            drill.undisturbed_seconds = made.seconds["local" if kind == "disk" else "s3"]
            passed &= drill.passed
            share = f"{100 * drill.redone_share:.1f} % of finished files"
            verdict = "passed" if drill.passed else "FAILED"
            moments = sum(trial.moments for trial in drill.trials if isinstance(trial, StorageTrial))
            sys.stdout.write(f"| {drill.fault} | {moments} | {verdict} | {share} |\n")
            if options.json:
                keep(options.json, kind, drill)
    return 0 if passed else 1


def keep(place: Path, kind: str, drill: Drill) -> None:
    """Write a result beside those of other kinds, with its machine and command."""
    results = json.loads(place.read_text()) if place.exists() else {}
    write_result(place, drill.result())
    place.write_text(json.dumps(results | {kind: json.loads(place.read_text())}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
