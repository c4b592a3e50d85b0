"""Bytes that workers send each other in a training step: counted at torch.distributed, and on the wire.

python -m benchmarks.communication [--workers 1 2 4] [--stages 0 1 2 3]     # measures, and prints the tables
python -m benchmarks.communication --model                                 # the tables of docs/scaling.md alone

Each group of workers runs in a network namespace of its own, whose loopback device counts what passes (Linux with
`unshare`; left out elsewhere). The model behind the tables is held against both counts.
"""

from __future__ import annotations

import argparse
import inspect
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import RESULTS, write_result

NUMBER = 4
"""Bytes of a float32: weights, gradients and embeddings are sent as such in every precision."""
ROWS, WARM, STEPS = 8, 2, 3
"""Queries of a worker; steps before counting, and counted."""
SIZES: dict[str, Any] = {
    "qformer.hidden_size": 256, "qformer.num_attention_heads": 4, "qformer.num_hidden_layers": 2,
    "qformer.intermediate_size": 1024, "num_query_tokens": 32, "embed_dim": 256,
}  # fmt: skip
"""The paper's set of target vectors, 32 × 256, on a small Q-Former."""
OPERATIONS = {
    "all_reduce": "tensor", "reduce": "tensor", "broadcast": "tensor", "all_gather": "tensor_list",
    "all_gather_into_tensor": "output_tensor", "reduce_scatter": "input_list", "reduce_scatter_tensor": "input",
    "all_to_all_single": "input",
}  # fmt: skip
"""Operation → which of its arguments is as large as what it is about."""
OURS = "training/distributed.py"
TFLOPS, MFU = 989.5, 0.4
"""Of an H100 in bfloat16 (data sheet), and the share that is assumed to be reached."""
LINKS_GBIT = (100, 400)
WORKERS = (2, 8, 32, 128, 512)
PIECES = 24
"""Word pieces of a text."""
TOLERANCE = 0.01
"""Between the model and what was measured; on the wire come headers and acknowledgements."""
KEPT = 500_000_000
"""Parameters up to which ZeRO-3 keeps all gathered weights from the forward to the backward pass: half of DeepSpeed's
`stage3_max_reuse_distance`, since the first ones are needed again behind all others, twice."""
ON_GLOO = {"all_reduce": 2.0, "reduce_scatter_tensor": 2.0}
"""How often gloo sends what an operation is about; it scatters sums by summing everywhere."""
ON_RINGS = {"all_reduce": 2.0}
"""The same where collectives are rings, as NCCL's; what is not named is sent once."""


class Sent(NamedTuple):
    """Bytes that one worker sends in a step.

    Attributes:
        rows: for the loss: its rows to all, and the sum of the gradients of all rows.
        state: for ZeRO: gradients and weights.
    """

    rows: float
    state: float

    @property
    def total(self) -> float:
        """Both."""
        return self.rows + self.state


def sent(stage: int, workers: int, parameters: int, row_bytes: float, batch: int) -> Sent:
    """What a worker sends in a step where collectives are rings, each byte to one neighbour.

    Args:
        stage: of ZeRO.
        workers: N.
        parameters: trained ones.
        row_bytes: of one target's vectors.
        batch: queries of all workers.
    """
    ring = (workers - 1) / workers
    rows = ring * batch * row_bytes
    state = ring * NUMBER * parameters
    # ZeRO-1 and 2 sum whole gradients on every worker (DeepSpeed's bucketed all-reduce) and gather the stepped weights;
    # ZeRO-3 gathers them before the forward pass, before the backward pass where it has not kept them, and scatters the
    # sums
    gathers = 2 if parameters > KEPT else 1  # twice: one forward and one backward pass, as a tower's
    times = {0: 2, 1: 3, 2: 3, 3: 1 + gathers}[stage]
    return Sent(rows=(1 + 2) * rows, state=times * state)


def count(workers: int, stage: int, released: bool) -> dict[str, Any]:
    """Run a group of workers in this process' network and count."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        processes = [
            context.Process(target=_worker, args=(rank, workers, stage, released, folder, out))
            for rank in range(workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(p.exitcode for p in processes):
            raise RuntimeError(f"a worker failed: exit codes {[p.exitcode for p in processes]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def _worker(rank: int, workers: int, stage: int, released: bool, folder: str, out: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"}
    counted: Counter[str] = Counter()
    _count_into(counted)  # before DeepSpeed, which keeps some of the functions
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers)
    from training.config import TrainRecipe
    from training.engine import Engine
    from training.meters import Parts
    from training.model.auto import random_model
    from training.model.config import preset
    from training.task import ContrastiveTask

    torch.manual_seed(rank)
    model = random_model(preset("tiny", "adafocal", **SIZES), seed=0, with_tower=False).train()
    recipe = TrainRecipe.model_validate(
        {"training": {"batch_size": ROWS * workers}, "scaling": {"workers": workers, "zero_stage": stage}}
    )
    if released:
        _keep_nothing()
    engine = Engine(ContrastiveTask(model), recipe)
    batch = batch_of(model.config, ROWS, ROWS * workers)
    for step in range(WARM):
        engine.step(batch, step, WARM + STEPS, Parts())
    dist.barrier()
    counted.clear()
    before = wire_bytes()
    for step in range(WARM, WARM + STEPS):
        engine.step(batch, step, WARM + STEPS, Parts())
    per_step = {name: value / STEPS for name, value in counted.items()}
    dist.barrier()
    after = wire_bytes()
    if rank == 0:
        trained = sum(p.ds_numel if stage == 3 else p.numel() for p in model.parameters() if p.requires_grad)
        found = {
            "workers": workers, "stage": stage, "queries": ROWS * workers, "trained_parameters": trained,
            "row_bytes": NUMBER * int(torch.Size(model.target_shape).numel()), "payload_bytes": per_step,
            "wire_bytes_of_a_worker": (after - before) / STEPS / workers,
        }  # fmt: skip
        out.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _keep_nothing() -> None:
    """Let ZeRO-3 gather weights again whenever they are needed. The model has no line for that: it depends on how
    often a model runs a layer in a step."""
    from training.engine import import_deepspeed

    deepspeed = import_deepspeed("cpu")
    true = deepspeed.initialize

    def initialize(*, config: dict[str, Any], **named: Any) -> Any:
        none = {
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": 0,
            "stage3_param_persistence_threshold": 0,
        }
        return true(config=config | {"zero_optimization": config["zero_optimization"] | none}, **named)

    deepspeed.initialize = initialize


def batch_of(config: Any, rows: int, total: int) -> Any:
    """A worker's part of a global batch of random tokens."""
    import torch

    from training.batches import Batch

    shape = (rows, config.num_image_tokens, config.vision_config.hidden_size)
    return Batch(
        torch.randn(shape), torch.randn(shape), torch.arange(rows), torch.randint(5, 50, (rows, PIECES)),
        torch.ones(rows, PIECES, dtype=torch.long), torch.ones(shape[:2]), modulate=True, total=total,
    )  # fmt: skip


def _count_into(counted: Counter[str]) -> None:
    """Let every collective note what it is about: "operation, loss" or "operation, state" → bytes."""
    import torch.distributed as dist

    for name, argument in OPERATIONS.items():
        true = getattr(dist, name)

        def noting(
            *given: Any, _true: Any = true, _name: str = name, _argument: str = argument, **named: Any
        ) -> Any:
            about = inspect.signature(_true).bind(*given, **named).arguments[_argument]
            tensors = about if isinstance(about, list | tuple) else [about]
            frame = sys._getframe(1)
            who = "loss" if frame.f_code.co_filename.endswith(OURS) else "state"
            counted[f"{_name}, {who}"] += sum(t.numel() * t.element_size() for t in tensors)
            return _true(*given, **named)

        for module in (dist, dist.distributed_c10d):
            setattr(module, name, noting)


def wire_bytes() -> int:
    """Bytes that the loopback device of this network namespace has sent."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return 0


def measured(workers: int, stage: int, released: bool = False) -> dict[str, Any]:
    """One group in a process, and a network, of its own."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.communication",
        "--group",
        str(workers),
        str(stage),
        str(int(released)),
    ]
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *words]
    done = subprocess.run(alone, capture_output=True, text=True, check=False)
    isolated = not done.returncode
    if not isolated:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if not isolated:
        del found["wire_bytes_of_a_worker"]
    found["released"] = released
    if not released:
        found["model_bytes_of_a_worker"] = model_bytes(found)
    return found


def model_bytes(found: Mapping[str, Any]) -> float:
    """What the model says that a worker of a measured group sends in a step."""
    parameters = found["trained_parameters"]
    return sent(found["stage"], found["workers"], parameters, found["row_bytes"], found["queries"]).total


def operations_send(found: dict[str, Any], passes: Mapping[str, float]) -> float:
    """What the counted operations make a worker send.

    Args:
        found: a group.
        passes: how often an operation sends what it is about, but for the worker's own share; others once.
    """
    once = (found["workers"] - 1) / found["workers"]
    return sum(passes.get(name.split(",")[0], 1.0) * once * b for name, b in found["payload_bytes"].items())


class Setting(NamedTuple):
    """A way to train ViT-G.

    Attributes:
        name: of it.
        tower: `tower.mode`.
        stage: of ZeRO.
        parameters: trained.
    """

    name: str
    tower: str
    stage: int
    parameters: int


SETTINGS = (
    Setting("stored tokens, ZeRO-2", "stored", 2, 198_000_000),
    Setting("frozen tower on pixels, ZeRO-2", "frozen", 2, 198_000_000),
    Setting("whole tower trained, ZeRO-3", "full", 3, 1_180_000_000),
)


@cache
def _vit_g() -> Any:
    from training.model.config import preset

    return preset("vit_g")


def compute_s(setting: Setting, workers: int, batch: int) -> float:
    """Seconds of a worker's arithmetic in a step, at the assumed share of the peak.

    Args:
        setting: what is trained.
        workers: N.
        batch: queries of one worker.
    """
    from training.flops import Shapes, step_flops
    from training.tower_config import TowerSection

    mode: dict[str, Any] = {"mode": setting.tower}
    shapes = Shapes(batch, batch, batch * workers, batch * PIECES, PIECES, modulate=True)
    flops = step_flops(_vit_g(), shapes, TowerSection.model_validate(mode))
    assert flops is not None
    return flops / (1e12 * TFLOPS * MFU)


def link_s(setting: Setting, workers: int, batch: int, gbit: float) -> float:
    """Seconds that a worker's bytes take on a link of its own."""
    config = _vit_g()
    row_bytes = NUMBER * config.num_query_tokens * config.embed_dim
    found = sent(setting.stage, workers, setting.parameters, row_bytes, batch * workers)
    return 8 * found.total / (1e9 * gbit)


def least_batch(setting: Setting, workers: int, gbit: float) -> int | None:
    """Queries of a worker from which on its arithmetic takes longer than the link; None if it never does."""
    batch = 1
    while compute_s(setting, workers, batch) < link_s(setting, workers, batch, gbit):
        batch += 1 + batch // 50
        if batch > 1_000_000:
            return None
    return batch


def table() -> str:
    """The table of docs/scaling.md."""
    heads = [f"{gbit} Gbit/s: {w} workers" for gbit in LINKS_GBIT for w in WORKERS]
    lines = [f"| batch of a worker from which arithmetic exceeds the link | {' | '.join(heads)} |"]
    lines.append("|---" * (len(heads) + 1) + "|")
    for setting in SETTINGS:
        cells = [least_batch(setting, workers, gbit) for gbit in LINKS_GBIT for workers in WORKERS]
        lines.append(f"| {setting.name} | {' | '.join('never' if c is None else f'{c:,}' for c in cells)} |")
    return "\n".join(lines)


def counts(groups: Sequence[dict[str, Any]]) -> str:
    """The measured groups as a table, in MB."""
    lines = [
        "| ZeRO | workers | what its operations are about | sent on rings | model | sent by gloo | on the wire |",
        "|---|---|---|---|---|---|---|",
    ]
    for g in groups:
        about = ", ".join(
            f"{name.replace(', ', ' of ')} {b / 1e6:.2f}"
            for name, b in sorted(g["payload_bytes"].items())
            if b > 1000
        )
        wire = g.get("wire_bytes_of_a_worker")
        sizes = (
            operations_send(g, ON_RINGS),
            g.get("model_bytes_of_a_worker"),
            operations_send(g, ON_GLOO),
            wire,
        )
        told = " | ".join("-" if size is None else f"{size / 1e6:.2f}" for size in sizes)
        stage = f"{g['stage']}, nothing kept" if g.get("released") else g["stage"]
        lines.append(f"| {stage} | {g['workers']} | {about} | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write results/communication.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument(
        "--model", action="store_true", help="compute the table from the model, measure nothing"
    )
    parser.add_argument("--group", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.group:
        print(json.dumps(count(options.group[0], options.group[1], bool(options.group[2]))))
        return
    if options.model:
        print(table())
        return
    asked = [(w, s, False) for s in options.stages for w in options.workers]
    asked += [(w, 3, True) for w in options.workers if 3 in options.stages]
    groups = []
    for group in asked:
        groups.append(measured(*group))
        print(counts(groups[-1:]).splitlines()[-1], flush=True)
    problems = disagreements(groups)
    path = write_result(
        "communication",
        {
            "command": " ".join(["python -m benchmarks.communication", *sys.argv[1:]]),
            "setting": {
                "queries_of_a_worker": ROWS,
                "sizes": SIZES,
                "steps": STEPS,
                "backend": "gloo on loopback",
            },
            "largest_disagreement_with_the_model": problems,
            "groups": groups,
        },
    )
    print(
        f"{counts(groups)}\n\n{table()}\n\nlargest disagreement with the model {problems}\nwritten to {path}"
    )


def disagreements(groups: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How far the model is from the counted operations on rings, and these as gloo does them from the wire, at most,
    relative."""
    several = [g for g in groups if g["workers"] > 1]
    apart: dict[str, list[float]] = {}
    apart["operations"] = [
        operations_send(g, ON_RINGS) / g["model_bytes_of_a_worker"] - 1 for g in several if not g["released"]
    ]
    apart["wire"] = [
        g["wire_bytes_of_a_worker"] / operations_send(g, ON_GLOO) - 1
        for g in several
        if "wire_bytes_of_a_worker" in g
    ]
    return {name: round(max((abs(v), v) for v in values)[1], 4) for name, values in apart.items() if values}


def committed() -> list[dict[str, Any]]:
    """The groups of the committed result."""
    groups: list[dict[str, Any]] = json.loads((RESULTS / "communication.json").read_text())["groups"]
    return groups


if __name__ == "__main__":
    main()
