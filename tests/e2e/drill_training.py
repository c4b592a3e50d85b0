"""Drills of training: one fault at each of some seeded random moments; the losses must be those of an undisturbed run.

python tests/e2e/drill_training.py [--kind worker --kind hang …] --moments 10 --seed 0 --json result.json

    worker     SIGKILL of one training worker            the command goes on by itself
    workers    SIGKILL of all of them                    the same
    sent-away  SIGTERM to one of them                    the same, and nothing is lost
    hang       SIGSTOP of one of them                    the same, behind `scaling.hang_s`
    node       loss of the Ray node of a worker          the same, on another node
    drained    notice that such a node goes              the same, and nothing is lost
    driver     SIGKILL of the driver                     the same command goes on
    term       SIGTERM to the driver                     exit code 143, nothing is lost, the same command goes on
    damaged    the newest checkpoint has a wrong byte    the one before is gone on from
    half       of the newest one a part is missing       the same
    s3         S3 goes away for up to a minute           the command goes on
    disk       the disk is full                          exit code 1 and one line, the same command goes on
    nan        a loss is no number                       exit code 1, the batch is named, the same command goes on

damaged and half come with a SIGKILL of the driver. All faults of a kind befall one training; none comes in its last
sixth, which may be over before a fault takes effect. For each: steps that were done again, seconds until a new one was
done. A fault may cost one distance between checkpoints, a twentieth of the finished steps, and the steps done while
one is written; damaged and half two distances, disk four (three writes fail before it ends, the third is known when
the next is due). --without-recovery takes out what the drill is for, and it must fail. --together brings the faults of
several kinds (not node, drained, s3, disk, nan) in one training, in a drawn order.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from drilling import ROOT, write_result
from training_course import Course, Fault, Result, Scene, faulted, scene
from training_elsewhere import disk, drained, nan, node, s3
from training_faults import KINDS


def drill(scene: Scene, name: str, seed: int, moments: int, without: bool) -> Result:
    """All faults of a kind in one training."""
    kind = KINDS[name]
    rng = random.Random(seed)
    more = list(kind.without if without and kind.without else kind.options)
    planted = kind.planted if without else ""
    result = Result(name, scene.steps, seed, (planted or " ".join(kind.without)) if without else "")
    result.distances = kind.distances
    planned = scene.moments(rng, moments, kind.first)
    course = scene.course(f"{name}-{without}", more, planted)
    return faulted(course, result, planned, kind.act, rng)


def together(scene: Scene, names: Sequence[str], seed: int, moments: int) -> list[Result]:
    """Faults of several kinds in one training, in an order that is drawn; results by kind."""
    rng = random.Random(seed)
    results = {name: Result(name, scene.steps, seed, distances=KINDS[name].distances) for name in names}
    for name, result in results.items():
        result.others = [other for other in names if other != name]
    order = [name for name in names for _ in range(moments)]
    rng.shuffle(order)
    planned = scene.moments(rng, len(order), max(KINDS[name].first for name in names))
    # so many, that several may come between two checkpoints
    options = [*KINDS["hang"].options, "--scaling.max_failures", str(len(order))]
    course, queue = scene.course(f"together-{seed}", options, ""), iter(order)
    whole = Result("together", scene.steps, seed)

    def one(course: Course, fault: Fault, rng: random.Random) -> None:
        name = next(queue)
        results[name].faults.append(fault)
        KINDS[name].act(course, fault, rng)

    faulted(course, whole, planned, one, rng)
    for result in results.values():
        result.same_losses, result.same_content = whole.same_losses, whole.same_content
        result.steps_once, result.failure = whole.steps_once, whole.failure
        result.load_average = whole.load_average
    return list(results.values())


def everywhere() -> dict[str, Callable[[Scene, int, int, bool], Result]]:
    """Every kind by name."""

    def by_act(name: str) -> Callable[[Scene, int, int, bool], Result]:
        return lambda *given: drill(given[0], name, *given[1:])

    return {name: by_act(name) for name in KINDS} | {
        "node": node, "drained": drained, "s3": s3, "disk": disk, "nan": nan,
    }  # fmt: skip


def line(result: Result) -> str:
    """A row of a table."""
    told = result.told()
    verdict = "passed" if result.passed else "FAILED"
    return (
        f"| {result.kind} | {told['moments']} | {verdict} | at most {told['lost_at_most']} steps lost"
        f" | {told['seconds_mean']:g} s, at most {told['seconds_at_most']:g} s | {result.failure[:200]} |"
    )


def main() -> int:
    """Run from the command line; exit code 0 only if all passed."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
    kinds = everywhere()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", action="append", choices=kinds, help="which drills, default all")
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--identities", type=int, default=24)
    parser.add_argument("--without-recovery", action="store_true", help="the drills must fail then")
    parser.add_argument("--together", action="store_true", help="faults of all these kinds in one training")
    parser.add_argument("--scene", type=Path, help="where the undisturbed run lies, or shall; kept")
    parser.add_argument("--json", type=Path, help="where to write the results, behind those that lie there")
    given = parser.parse_args()
    if given.together and (given.without_recovery or set(given.kind or ()) - set(KINDS)):
        parser.error(f"--together is for {', '.join(KINDS)}, with their recovery")
    passed = True
    with ExitStack() as stack:
        folder = given.scene
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oacir-drill-")))
        made = stack.enter_context(scene(folder, given.steps, given.identities))
        asked = given.kind or list(kinds)
        results: Iterator[Result] = (
            kinds[name](made, given.seed, given.moments, given.without_recovery) for name in asked
        )
        if given.together:
            results = iter(together(made, given.kind or list(KINDS), given.seed, given.moments))
        for result in results:
            passed &= result.passed
            sys.stdout.write(line(result) + "\n")
            sys.stdout.flush()
            if given.json:
                keep(given.json, f"{result.kind}, without" if given.without_recovery else result.kind, result)
    return 0 if passed else 1


def keep(place: Path, name: str, result: Result) -> None:
    """Write a result behind those of the kind that lie there, with its machine and command."""
    results = json.loads(place.read_text()) if place.exists() else {}
    write_result(place, result.told())
    results.setdefault(name, []).append(json.loads(place.read_text()))
    place.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
