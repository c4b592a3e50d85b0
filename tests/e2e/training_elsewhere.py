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
from typing import TYPE_CHECKING, Any

import psutil
from drill_train import training_workers
from drilling import environment

if TYPE_CHECKING:
    from drill_training import Course, Fault, Result, Scene

STORE_BYTES = 100 << 20
NOTICE_S = 120.0
PAGE_BYTES = 4096
NO_RETRY = ["--scaling.max_failures", "0"]


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

    def replace(self, index: int) -> None:
        """Lose a node with all its processes; another one comes."""
        self.cluster.remove_node(self.nodes[index], allow_graceful=False)
        self.nodes[index] = self.add()

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
    from drill_training import Result, by_itself, faulted, moments_of

    rng, result = (
        random.Random(seed),
        Result("node", scene.steps, seed, " ".join(NO_RETRY) if without else ""),
    )
    with nodes(3) as there:

        def lose(course: Course, fault: Fault, rng: random.Random) -> None:
            by_itself(course, fault, lambda: there.replace(rng.choice(there.at_work())))

        more = NO_RETRY if without else []
        course = scene.course(f"node-{without}", more, "", RAY_ADDRESS=there.cluster.address)
        return faulted(course, result, moments_of(scene, rng, moments), lose, rng)


def drained(scene: Scene, seed: int, moments: int, without: bool) -> Result:
    """Nodes are announced to go, and are lost when the workers have left them."""
    from drill_training import GOES_ON, Result, by_itself, faulted, moments_of

    rng, result = random.Random(seed), Result("drained", scene.steps, seed, "no_draining" if without else "")
    result.most_lost = 0
    with nodes(3) as there:

        def give_notice(course: Course, fault: Fault, rng: random.Random) -> None:
            index = rng.choice(there.at_work())

            def notice() -> None:
                there.drain(index)
                heard, limit = len(course.run.said), time.monotonic() + NOTICE_S / 4
                while not GOES_ON.search(course.run.said[heard:]) and time.monotonic() < limit:
                    course.run.poll()
                    time.sleep(0.05)
                there.replace(index)

            by_itself(course, fault, notice, saved=True)

        planted = "no_draining" if without else ""
        course = scene.course(f"drained-{without}", NO_RETRY, planted, RAY_ADDRESS=there.cluster.address)
        return faulted(course, result, moments_of(scene, rng, moments), give_notice, rng)


def s3(scene: Scene, seed: int, moments: int, without: bool) -> Result:
    """The run lies on S3, which goes away for a while."""
    from drill_training import OUTAGE_S, Result, faulted, moments_of
    from s3_front import Faults, front_of
    from s3_server import s3_bucket

    from infra.base.versions import open_version

    rng = random.Random(seed)
    result = Result("s3", scene.steps, seed, "no_patience, OACIR_S3_PATIENCE_S=0" if without else "")
    with s3_bucket("drill") as bucket, front_of(os.environ["AWS_ENDPOINT_URL"], 0, Faults()) as way:

        def go_away(course: Course, fault: Fault, rng: random.Random) -> None:
            had, seconds = way.outages_had, rng.uniform(2, OUTAGE_S)
            way.outages[way.came] = seconds
            fault.said = f"away for {seconds:.0f} s"
            while way.outages_had == had and course.run.process.poll() is None:
                course.run.poll()
                time.sleep(0.01)
            if way.outages_had == had:
                raise RuntimeError(f"no call to S3 behind step {fault.shown_step}")
            gone = time.monotonic()
            while time.monotonic() - gone < seconds and course.run.process.poll() is None:
                course.run.poll()
                time.sleep(0.01)
            fault.shown_step = course.run.step  # some may pass before the next checkpoint is due
            course.goes_on(fault, gone + seconds, course.run.step, finished=course.run.step)

        variables = {"AWS_ENDPOINT_URL": way.url} | ({"OACIR_S3_PATIENCE_S": "0"} if without else {})
        course = scene.course(f"s3-{without}", [], "no_patience" if without else "", **variables)
        course.out = f"{bucket}/run-{without}"
        faulted(course, result, moments_of(scene, rng, moments), go_away, rng)
        if not result.failure and len(open_version(course.out).manifest.figures["starts"]) != 1:
            result.failure = "workers were started more than once"
        return result


def disk(scene: Scene, seed: int, moments: int, without: bool) -> Result:
    """The run lies on a disk that is full; the command stops, room is made, the same one goes on."""
    from drill_training import Result, faulted, moments_of
    from small_disk import NoMountsError, small_disk

    planted = "no_resume" if without else ""
    rng, result = random.Random(seed), Result("disk", scene.steps, seed, planted)
    # MOST_FAILED checkpoints in a row are borne, each a twentieth of the steps behind the one before
    result.most_share = 0.25
    place, plenty = scene.folder / f"disk-{without}", 1 << 30
    with ExitStack() as stack:
        full = stack.enter_context(small_disk(place, plenty))

        def fill(course: Course, fault: Fault, rng: random.Random) -> None:
            from drill_training import complete_steps

            began, free = time.monotonic(), rng.randrange(1, 200) * PAGE_BYTES
            while True:
                with suppress(NoMountsError):  # more was written since its size was asked for
                    full.resize(shutil.disk_usage(place).used + free)
                    break
            fault.said = course.stop_line(1).replace(str(place), "…")
            if "No space left" not in fault.said:
                raise RuntimeError(f"said {fault.said}")
            finished, resumed = course.run.step, max(complete_steps(course.out), default=0)
            if half := list(place.rglob(".*.tmp")):
                raise RuntimeError(f"half-written: {half[0].name}")
            full.resize(plenty)
            course.start()
            fault.shown_step = finished
            course.goes_on(fault, began, resumed, finished=finished)

        course = scene.course(f"disk-{without}/run", [], planted)
        return faulted(course, result, moments_of(scene, rng, moments), fill, rng)


def nan(scene: Scene, seed: int, moments: int, without: bool) -> Result:
    """A batch whose tokens are no numbers; then they are numbers again."""
    from drill_training import Result, moments_of

    rng, result = random.Random(seed), Result("nan", scene.steps, seed, "no_judging" if without else "")
    for step in moments_of(scene, rng, moments):
        one = _poisoned(scene, step, without)
        result.faults += one.faults
        result.failure = result.failure or one.failure
        result.load_average = one.load_average
        goods = [one.same_losses, one.same_content, one.steps_once]
        if len(result.faults) > 1:
            goods = [
                a and b
                for a, b in zip(
                    goods, (result.same_losses, result.same_content, result.steps_once), strict=True
                )
            ]
        result.same_losses, result.same_content, result.steps_once = goods
        if result.failure:
            break
    return result


def _poisoned(scene: Scene, step: int, without: bool) -> Result:
    from drill_training import Result, complete_steps, faulted

    def read(course: Course, fault: Fault, rng: random.Random) -> None:
        fault.said = course.stop_line(1)
        began = time.monotonic()
        asked = batch_of(scene, step)
        noted = json.loads((Path(course.out) / "diverged.json").read_text())
        if (
            noted["query_ids"] != asked
            or f"is nan at step {step}, in the batch of queries {asked[0]}" not in fault.said
        ):
            raise RuntimeError(f"other queries than those of step {step}: {fault.said}")
        kept = max(complete_steps(course.out), default=0)
        if kept and f"the checkpoint of step {kept} is good" not in fault.said:
            raise RuntimeError(f"saved are {kept} steps: {fault.said}")
        course.planted = []
        course.start()
        fault.shown_step = step - 1
        course.goes_on(fault, began, kept, finished=step - 1)

    course = scene.course(f"nan-{step}-{without}", [], "no_judging" if without else "")
    course.planted += ["--poison", str(step)]
    return faulted(course, Result("nan", scene.steps, 0), [0], read, random.Random(0))


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
