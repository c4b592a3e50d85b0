"""Drills of training whose fault lies outside its processes: a node, S3, the disk, the data."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from drill_train import training_workers
from drilling import environment
from training_course import GOES_ON, WORKERS, Course, Fault, Result, Scene, faulted
from training_faults import NO_RETRY, by_itself

STORE_BYTES = 100 << 20
NOTICE_S = 120.0
PAGE_BYTES = 4096
FULL_OUTAGE_S = 60.0
SHORT_OUTAGE_S = (2.0, 30.0)
FULL_OUTAGES = 2
"""How many of the outages of S3 last a full minute."""


class Nodes:
    """A Ray cluster on this machine: a head that runs nothing, and nodes for one worker each, one more than needed."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        os.environ |= {k: environment()[k] for k in ("PYTHONPATH",)}  # what the nodes hand to their workers
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add() for _ in range(count)]

    def add(self) -> Any:
        """Another node."""
        return self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def at_work(self) -> list[int]:
        """Those with a training worker."""
        return [i for i, node in enumerate(self.nodes) if self._works(node)]

    def lose(self, index: int) -> None:
        """Lose a node with all its processes."""
        self.cluster.remove_node(self.nodes.pop(index), allow_graceful=False)

    def join(self) -> None:
        """Another node comes."""
        self.nodes.append(self.add())

    def drain(self, index: int) -> None:
        """Give notice that a node will be taken away, as clouds do."""
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        client = GcsClient(address=self.cluster.address)
        why = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int(1000 * (time.time() + NOTICE_S))
        client.drain_node(self.nodes[index].node_id, why, "drilled", deadline_ms)

    def _works(self, node: Any) -> bool:
        from ray._private.ray_constants import PROCESS_TYPE_RAYLET

        raylet = psutil.Process(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
        return bool(training_workers(raylet))


@contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    """A cluster, taken down at the end."""
    made = Nodes(count)
    try:
        yield made
    finally:
        made.cluster.shutdown()


def node(scene: Scene, seed: int, moments: int, without: bool) -> Result:
    """Nodes are lost; workers go on with another one's CPU."""
    rng = random.Random(seed)
    result = Result("node", scene.steps, seed, " ".join(NO_RETRY) if without else "")
    with nodes(WORKERS + 1) as there:

        def lose(course: Course, fault: Fault, rng: random.Random) -> None:
            index = rng.choice(_all_at_work(course, there))
            by_itself(course, fault, lambda: there.lose(index), there.join)

        more = NO_RETRY if without else ()
        course = scene.course(f"node-{without}", more, "", RAY_ADDRESS=there.cluster.address)
        return faulted(course, result, scene.moments(rng, moments), lose, rng)


def drained(scene: Scene, seed: int, moments: int, without: bool) -> Result:
    """Nodes are announced to go, and are lost when the workers have left them."""
    rng, planted = random.Random(seed), "no_draining" if without else ""
    result = Result("drained", scene.steps, seed, planted, distances=0)
    with nodes(WORKERS + 1) as there:

        def give_notice(course: Course, fault: Fault, rng: random.Random) -> None:
            index = rng.choice(_all_at_work(course, there))

            def left() -> bool:
                return GOES_ON.search(course.run.said, heard) is not None

            def notice() -> None:
                there.drain(index)
                with suppress(RuntimeError):
                    course.wait(left, "leave", NOTICE_S / 4)
                if not left():
                    lose()

            def lose() -> None:
                if going:
                    there.lose(going.pop())
                    there.join()

            heard, going = len(course.run.said), [index]
            by_itself(course, fault, notice, lose)

        course = scene.course(f"drained-{without}", NO_RETRY, planted, RAY_ADDRESS=there.cluster.address)
        return faulted(course, result, scene.moments(rng, moments), give_notice, rng)


def _all_at_work(course: Course, there: Nodes) -> list[int]:
    course.wait(lambda: len(there.at_work()) == WORKERS, f"{WORKERS} nodes at work")
    return there.at_work()


def s3(scene: Scene, seed: int, moments: int, without: bool) -> Result:
    """The run lies on S3, which goes away for a while."""
    from s3_front import Faults, front_of
    from s3_server import s3_bucket

    from infra.base.versions import open_version

    rng = random.Random(seed)
    result = Result("s3", scene.steps, seed, "no_patience, OACIR_S3_PATIENCE_S=0" if without else "")
    full = set(rng.sample(range(moments), min(FULL_OUTAGES, moments)))
    with s3_bucket("drill") as bucket, front_of(os.environ["AWS_ENDPOINT_URL"], 0, Faults()) as way:

        def go_away(course: Course, fault: Fault, rng: random.Random) -> None:
            seconds = rng.uniform(*SHORT_OUTAGE_S)
            if len(result.faults) - 1 in full:
                seconds = FULL_OUTAGE_S
            had, way.outages[way.came] = way.outages_had, seconds
            fault.said = f"away for {seconds:.0f} s"
            if not course.wait(lambda: way.outages_had > had, "a call to S3"):
                raise RuntimeError(f"no call to S3 behind step {fault.planned_step}")
            back = time.monotonic() + seconds
            course.wait(lambda: time.monotonic() > back, "the end of an outage")
            # some steps may pass before the next checkpoint is due
            fault.finished = fault.resumed_at = course.counted().last
            course.wait(lambda: course.counted().last > fault.finished, "a new step")
            fault.seconds = round(time.monotonic() - back, 1)

        variables = {"AWS_ENDPOINT_URL": way.url} | ({"OACIR_S3_PATIENCE_S": "0"} if without else {})
        course = scene.course(f"s3-{without}", (), "no_patience" if without else "", **variables)
        course.out = f"{bucket}/run-{without}"
        faulted(course, result, scene.moments(rng, moments), go_away, rng)
        if not result.failure and len(open_version(course.out).manifest.figures["starts"]) != 1:
            result.failure = "workers were started more than once"
        return result


def disk(scene: Scene, seed: int, moments: int, without: bool) -> Result:
    """The run lies on a disk that is full; the command stops, room is made, the same one goes on."""
    from small_disk import NoMountsError, small_disk

    planted = "no_resume" if without else ""
    rng, result = random.Random(seed), Result("disk", scene.steps, seed, planted, distances=4)
    place, plenty = scene.folder / f"disk-{without}", 1 << 30
    with ExitStack() as stack:
        full = stack.enter_context(small_disk(place, plenty))

        def fill(course: Course, fault: Fault, rng: random.Random) -> None:
            began, free = time.monotonic(), rng.randrange(1, 200) * PAGE_BYTES
            while True:
                with suppress(NoMountsError):  # more was written since its size was asked for
                    full.resize(shutil.disk_usage(place).used + free)
                    break
            fault.said = course.stop_line(1).replace(str(place), "…")
            if "No space left" not in fault.said:
                raise RuntimeError(f"said {fault.said}")
            if half := list(place.rglob(".*.tmp")):
                raise RuntimeError(f"half-written: {half[0].name}")
            old = course.counted()
            fault.finished = old.last
            full.resize(plenty)
            saved = course.saved()
            course.start()
            course.goes_on(fault, began, old, saved)

        course = scene.course(f"disk-{without}/run", (), planted)
        return faulted(course, result, scene.moments(rng, moments), fill, rng)


def nan(scene: Scene, seed: int, moments: int, without: bool) -> Result:
    """Batches whose tokens are no numbers; each stops the command, and holds numbers again when it goes on."""
    planted = "no_judging" if without else ""
    rng, result = random.Random(seed), Result("nan", scene.steps, seed, planted)
    course = scene.course(f"nan-{without}", (), planted)
    others = list(course.planted)

    def poison(steps: list[int]) -> None:
        course.planted = [*others, *(word for step in steps for word in ("--poison", str(step)))]

    def mend(course: Course, fault: Fault, rng: random.Random) -> None:
        step, fault.said = fault.planned_step, course.stop_line(1)
        began, asked = time.monotonic(), batch_of(scene, step)
        noted = json.loads((Path(course.out) / "diverged.json").read_text())
        told = f"is nan at step {step}, in the batch of queries {asked[0]}"
        if noted["query_ids"] != asked or told not in fault.said:
            raise RuntimeError(f"other queries than those of step {step}: {fault.said}")
        kept, old = course.saved(), course.counted()
        if kept and f"the checkpoint of step {kept} is good" not in fault.said:
            raise RuntimeError(f"saved are {kept} steps: {fault.said}")
        fault.finished = step - 1  # what was done behind it came of no numbers
        poison(planned[planned.index(step) + 1 :])
        course.start()
        course.goes_on(fault, began, old, kept)

    planned = scene.moments(rng, moments)
    poison(planned)
    return faulted(course, result, planned, mend, rng, awaited=False)


def batch_of(scene: Scene, step: int) -> list[str]:
    """Ids of the queries of a step, from 1, by the sampler alone."""
    from infra.base.config import load_recipe
    from infra.base.versions import resolve
    from training.batches import Sampler
    from training.config import TrainRecipe
    from training.data import batch_groups, batch_instances, read_quadruples

    given = [word.removeprefix("--") for word in scene.options]
    recipe = load_recipe(TrainRecipe, "tiny", list(zip(given[::2], given[1::2], strict=True)))
    quadruples = read_quadruples(
        resolve(str(scene.folder), "datasets", "small", holding="quadruples"), "train"
    )
    section = recipe.training
    groups = batch_groups(quadruples, section.one_domain_per_batch)
    sampler = Sampler(
        groups, section.batch_size, section.seed, batch_instances(quadruples), section.queries_of_an_instance
    )
    epoch, number = divmod(step - 1, sampler.steps_per_epoch)
    ids: list[str] = quadruples["query_id"].take(sampler.batches(epoch)[number]).to_pylist()
    return ids
