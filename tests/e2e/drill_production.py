"""Drill: the production rehearsal, undisturbed and with faults; both must end in the same state.

    python tests/e2e/drill_production.py --json benchmarks/results/drill_production.json
    python tests/e2e/drill_production.py --faults s3,node-build --until build
    python tests/e2e/drill_production.py --whole whole.json

On `oacir site start` (S3, MLflow, a Ray head that runs nothing, two nodes) everything goes through `oacir submit`:
build, embed, train on two workers under ZeRO-2, tune, evaluate, register, promote. The second time, into a root and
under a registered name of its own, each fault strikes one of these while its work is under way. Compared are content
hashes, accounts and figures of all versions, every value in MLflow, and what the registry decided.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drill_train import training_workers
from drilling import at_work, write_result
from rehearsal import STEPS, VERBS, Stage, Submitted, end_state, stage, until

THROTTLED = 0.2
"""Share of the calls that S3 answers with 503 or 500."""
NODES = ("ray-node-1", "ray-node-2")
STEP = re.compile(r"/checkpoints/step-(\d{8})/")


@dataclass
class Fault:
    """One fault and what it cost."""

    name: str
    verb: str
    said: str = ""
    """What was done."""
    recovered_s: float | None = None
    """Until the work went on: the next finished part, the next saved step, an answer, a client that follows again."""
    seconds: float = 0.0
    """Of the disturbed command."""
    undisturbed_s: float = 0.0
    survived: bool = False


@dataclass
class Result:
    """What the rehearsal found."""

    verbs: dict[str, float] = field(default_factory=dict)
    """Seconds of each command, undisturbed."""
    disturbed: dict[str, float] = field(default_factory=dict)
    """The same with the faults."""
    faults: list[Fault] = field(default_factory=list)
    compared: int = 0
    """Entries of the end state."""
    differs: list[str] = field(default_factory=list)
    """Those that are not the same, or are there once only."""
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether everything was survived, and nothing lost."""
        return (
            bool(self.compared)
            and not self.differs
            and not self.failure
            and all(f.survived for f in self.faults)
        )


Act = Callable[[Stage, Submitted, Fault], None]


def node_of_build(there: Stage, job: Submitted, fault: Fault) -> None:
    """A node that works on a part goes, once others are finished."""
    job.wait(lambda: bool(job.put("/_accounts/")), "a finished part")
    node = _first(job, lambda name: bool(at_work(there.family(name))), "a part in work")
    done = len(job.put("/_accounts/"))
    fault.said = f"{there.kill(node)} processes of {node} killed after {done} finished parts"
    fault.recovered_s = job.wait(lambda: len(job.put("/_accounts/")) > done, "the next finished part")


def node_of_training(there: Stage, job: Submitted, fault: Fault) -> None:
    """A node with a training worker goes, some steps behind the beginning."""
    job.wait(lambda: _step(job) >= STEPS // 8, "a saved step")
    node = _first(job, lambda name: any(map(training_workers, there.family(name)[:1])), "a worker")
    step = _step(job)
    fault.said = f"{there.kill(node)} processes of {node} killed behind step {step} of {STEPS}"
    fault.recovered_s = job.wait(lambda: _step(job) > step, "the next saved step")


def mlflow_lost(there: Stage, job: Submitted, fault: Fault) -> None:
    """The server goes while the workers train, and is started again by the set-up."""
    job.wait(lambda: bool(job.put("/checkpoints/step-")), "a saved step")
    fault.said = f"{there.kill('mlflow')} processes of the MLflow server killed while the workers train"
    health = f"{there.variables['MLFLOW_TRACKING_URI']}/health"
    fault.recovered_s = until(lambda: _answers(health), 240, "an answer of MLflow")


def s3_throttled(there: Stage, job: Submitted, fault: Fault) -> None:
    """A fifth of all calls is refused, from now to the command's end."""
    from s3_front import Faults

    there.front.faults = Faults(errors=THROTTLED)


def calm(there: Stage, job: Submitted, fault: Fault) -> None:
    """S3 as it was, and how many calls were refused."""
    from s3_front import Faults

    there.front.faults = Faults()
    calls = there.front.calls[job.first :]
    refused = sum(bool(call.fault) for call in calls)
    fault.said = f"{refused} of {len(calls)} calls to S3 answered with 503 or 500"
    if not refused:
        raise RuntimeError("no call to S3 was refused")


def client_killed(there: Stage, job: Submitted, fault: Fault) -> None:
    """Who submitted is killed; the job goes on, and the same command joins it."""
    job.wait(lambda: "Running entrypoint" in job.said, "the job's beginning")
    job.process.kill()
    job.process.wait()
    began = time.monotonic()
    job.start()
    job.wait(lambda: "joining it" in job.said, "the second client's joining")
    fault.recovered_s = time.monotonic() - began
    fault.said = "the submitting client killed, the same command given again"


FAULTS: dict[str, tuple[str, Act]] = {
    "s3": ("build", s3_throttled),
    "node-build": ("build", node_of_build),
    "client": ("embed", client_killed),
    "mlflow": ("train", mlflow_lost),
    "node-train": ("train", node_of_training),
}
"""Name → the command that it strikes, and what is done; those of one command in this order."""


def _first(job: Submitted, fits: Callable[[str], bool], what: str) -> str:
    found: list[str] = []

    def look() -> bool:
        found[:] = [name for name in NODES if fits(name)]
        return bool(found)

    job.wait(look, what)
    return found[0]


def _step(job: Submitted) -> int:
    """The newest step of which a worker has saved its part."""
    return max((int(found[1]) for path in job.put("") if (found := STEP.search(path))), default=0)


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def rehearse(
    there: Stage, root: str, verbs: Sequence[str], names: Sequence[str], result: Result
) -> dict[str, Any]:
    """The way into a root, with these faults; the end state."""
    for verb in verbs:
        job = Submitted(there, root, verb)
        here = [
            Fault(name, verb, undisturbed_s=result.verbs.get(verb, 0.0))
            for name, (struck, _) in FAULTS.items()
            if name in names and struck == verb
        ]
        result.faults += here
        for fault in here:
            FAULTS[fault.name][1](there, job, fault)
        took = job.end()
        for fault in here:
            if fault.name == "s3":
                calm(there, job, fault)
            fault.seconds, fault.survived = took, True
            fault.recovered_s = None if fault.recovered_s is None else round(fault.recovered_s, 1)
            sys.stderr.write(f"{json.dumps(asdict(fault))}\n")
        sys.stderr.write(f"{root}: {verb} {took} s\n")
        (result.disturbed if names else result.verbs)[verb] = took
    found: dict[str, Any] = json.loads(json.dumps(end_state(there, root)))
    return found


def differences(whole: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of entries that are not the same."""
    return [name for name in sorted({*whole, *found}) if whole.get(name) != found.get(name)]


def partly(whole: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The same where the way was not gone to its end: what is not there yet does not count."""
    return [name for name in differences(whole, found) if found.get(name)]


def drill(names: Sequence[str], verbs: Sequence[str], cpus: int, kept: Path | None) -> Result:
    """Undisturbed, unless its end state is kept from before, then with the faults, on one set-up."""
    from infra.base.errors import OacirError

    result = Result()
    with stage(cpus) as there:
        try:
            if kept and kept.exists():
                before = json.loads(kept.read_text())
                whole, result.verbs = before["state"], before["verbs"]
            else:
                whole = rehearse(there, "whole", verbs, (), result)
                if kept:
                    kept.write_text(json.dumps({"state": whole, "verbs": result.verbs}))
            result.compared = len(whole)
            if names:
                found = rehearse(there, "disturbed", verbs, names, result)
                result.differs = differences(whole, found) if verbs == [*VERBS] else partly(whole, found)
                for name in result.differs:
                    sys.stderr.write(f"{name}:\n  {whole.get(name)}\n  {found.get(name)}\n")
        except (RuntimeError, OacirError) as error:
            result.failure = str(error)
            sys.stderr.write(f"{error}\n")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--faults", default=",".join(FAULTS), help="which, between commas; none for undisturbed alone"
    )
    parser.add_argument("--until", choices=[*VERBS], default=[*VERBS][-1], help="the last command")
    parser.add_argument(
        "--whole", type=Path, help="file that keeps the undisturbed end state for further drills"
    )
    parser.add_argument("--cpus", type=int, default=2, help="logical CPUs of each node")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    names = [name for name in options.faults.split(",") if name and name != "none"]
    if unknown := set(names) - set(FAULTS):
        parser.error(f"--faults {', '.join(sorted(unknown))}: there are {', '.join(FAULTS)}")
    verbs = [*VERBS][: [*VERBS].index(options.until) + 1]
    if early := [name for name in names if FAULTS[name][0] not in verbs]:
        parser.error(f"--until {options.until} comes before what {', '.join(early)} strikes")
    result = drill(names, verbs, options.cpus, options.whole)
    told = asdict(result) | {"passed": result.passed, "injected": len(names)}
    told["survived"] = sum(fault.survived for fault in result.faults)
    if options.json:
        write_result(options.json, {"drill": "production rehearsal"} | told)
    verdict = "passed" if result.passed else "FAILED"
    sys.stdout.write(
        f"| production rehearsal | {len(names)} injected, {told['survived']} survived | {verdict} |"
        f" {result.compared} entries, {len(result.differs)} differ |\n"
    )
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
