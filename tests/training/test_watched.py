"""A training that is watched: in MLflow, by Prometheus, with a trace; and the same one unwatched."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_benchmark import write_benchmark

from infra.base.command import Context, Outcome
from infra.base.versions import Version, code_version, open_version
from pipelines.embed import embed
from training import checkpoints
from training.config import TrainRecipe
from training.trainer import UNTIMED, train

STEPS, EVERY, KILLED_AT = 20, 5, 12
WATCHED = {"every_steps": EVERY, "profile_from": 4, "profile_steps": 2, "peak_tflops": 0.1}

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def recipe(**tracking: Any) -> TrainRecipe:
    overrides = {
        "qformer.hidden_size": 32, "qformer.num_hidden_layers": 2, "qformer.intermediate_size": 64,
        "num_query_tokens": 4, "num_probe_tokens": 2, "crm_feedforward": 32,
    }  # fmt: skip
    return TrainRecipe.model_validate(
        {
            "name": "watched", "dataset": "small",
            "model": {"overrides": overrides, "crm_layers": 1},
            "embed": {"workers": 1},
            "training": {"epochs": 9, "steps": STEPS, "batch_size": 24, "learning_rate": 3e-3, "dev_every_epochs": 3},
            "tracking": tracking,
        }
    )  # fmt: skip


class Scraper(threading.Thread):
    """Asks Ray's metrics endpoints again and again, as Prometheus does; keeps the newest value of every series."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.values: dict[tuple[str, str], float] = {}
        self.tags: dict[str, str] = {}
        self.over = threading.Event()

    def run(self) -> None:
        import ray

        while not self.over.wait(0.2):
            for node in ray.nodes():
                url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                    self._note(answer.read().decode())

    def _note(self, text: str) -> None:
        for name, tags, value in re.findall(r"^ray_oacir_train_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            found = dict(re.findall(r'(\w+)="([^"]*)"', tags))
            self.values[name, found["rank"]] = float(value)
            self.tags = found


class Killer(threading.Thread):
    """Kills the training workers once, when a checkpoint behind a step is complete."""

    def __init__(self, run: Path, step: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.step, self.killed = run, step, 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            if max(checkpoints.complete_steps(str(self.folder)), default=0) >= self.step:
                for worker in psutil.Process().children(recursive=True):
                    if "RayTrainWorker" in " ".join(worker.cmdline()):
                        worker.kill()
                        self.killed += 1
                return


@dataclass
class Watched:
    """A run whose workers were killed in its midst, what was seen of it meanwhile, and the same one left in peace."""

    outcome: Outcome
    plain: Version
    client: Any
    scraped: dict[tuple[str, str], float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    began: float = 0.0
    """Unix time."""

    @property
    def run(self) -> Version:
        return open_version(str(self.outcome.location))

    def mlflow(self) -> Any:
        """The one run of the experiment."""
        experiment = self.client.get_experiment_by_name("oacir")
        (found,) = self.client.search_runs([experiment.experiment_id])
        return found


@pytest.fixture(scope="module")
def watched(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    import ray
    from mlflow.tracking import MlflowClient

    assert ray.nodes()[0]["MetricsExportPort"] > 0, "Ray needs its extra `default` to serve metrics"
    root = tmp_path_factory.mktemp("watched")
    write_benchmark(root, identities=12)
    embed(recipe(), Context(root=str(root)))
    uri = f"sqlite:///{root}/mlflow.db"
    client = MlflowClient(uri)
    client.create_experiment("oacir", artifact_location=f"file://{root}/artifacts")
    plain = train(recipe(), Context(root=str(root), out=str(root / "plain")))
    scraper, killer, began = Scraper(), Killer(root / "watched", KILLED_AT), time.time()
    scraper.start()
    killer.start()
    asked = recipe(**WATCHED, mlflow_uri=uri)
    outcome = train(asked, Context(root=str(root), out=str(root / "watched")))
    for thread in (scraper, killer):
        thread.over.set()
        thread.join()
    assert killer.killed == 2, "the workers were to be killed in the middle"
    return Watched(outcome, open_version(str(plain.location)), client, scraper.values, scraper.tags, began)


def history_of(client: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run_id, name)]


def test_every_n_steps_are_in_mlflow_once_whatever_was_killed(watched: Watched) -> None:
    run, rows = watched.mlflow(), watched.run.table("history").to_pydict()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "watched")
    told = {n: history_of(watched.client, run.info.run_id, f"train/{n}") for n in ("loss", "beta_mean")}
    for name, values in told.items():
        means = [sum(rows[name][i : i + EVERY]) / EVERY for i in range(0, STEPS, EVERY)]
        assert [step for step, _ in values] == [5, 10, 15, 20]
        assert [value for _, value in values] == pytest.approx(means)
    last = run.data.metrics
    assert last["train/samples_per_second"] > 0
    assert 0 <= last["train/data_wait_share"] < 1
    assert 1e7 < last["train/memory_bytes"] < 1e10
    flops = sum(rows["model_flops"][-EVERY:]) / EVERY
    assert last["train/model_flops_per_second"] == pytest.approx(
        flops * last["train/samples_per_second"] / (sum(rows["samples"][-EVERY:]) / EVERY)
    )
    assert last["train/mfu"] == pytest.approx(last["train/model_flops_per_second"] / (2 * 0.1e12))


def test_settings_origins_and_results_are_in_mlflow(watched: Watched) -> None:
    run, manifest = watched.mlflow(), watched.run.manifest
    assert run.data.params["training.batch_size"] == "24"
    assert run.data.params["model.overrides.qformer.hidden_size"] == "32"
    tags = run.data.tags
    assert tags["oacir.run"] == f"watched/{manifest.key}"
    assert {tags["oacir.dataset_hash"], tags["oacir.features_hash"]} == set(manifest.parents.values())
    assert tags["oacir.version"] == code_version().partition("+")[0]
    assert {f"version.{name}" for name in ("torch", "ray", "deepspeed", "transformers")} <= set(tags)
    assert tags["oacir.content_hash"] == manifest.content_hash
    dev = watched.run.table("dev").to_pylist()
    told = history_of(watched.client, run.info.run_id, "dev/b/R_ID_at_1")
    assert told == [(row["step"], row["R_ID@1"]) for row in dev if row["domain"] == "b"]
    assert run.data.metrics["run/loss"] == pytest.approx(manifest.figures["loss"])
    assert run.data.metrics["run/dev/R_at_1"] == pytest.approx(manifest.figures["dev"]["R@1"])
    names = {file.path for file in watched.client.list_artifacts(run.info.run_id)}
    assert names == {"recipe.yaml", "environment.txt", "model_card.md", "history.parquet", "dev.parquet"}
    inputs = {(d.dataset.digest, d.tags[0].value) for d in run.inputs.dataset_inputs}
    hashes = {role: content[:36] for role, content in manifest.parents.items()}
    assert inputs == {(hashes["dataset"], "training"), (hashes["features"], "features")}
    rows = watched.run.table("history").to_pylist()
    losses = [[r["loss"] for r in rows if r["epoch"] == e] for e in sorted({r["epoch"] for r in rows})]
    epochs = [value for _, value in history_of(watched.client, run.info.run_id, "epoch/loss")]
    assert epochs == pytest.approx([sum(values) / len(values) for values in losses])
    assert watched.outcome.details[-1].startswith(f"MLflow run {run.info.run_id} at sqlite:///")


def test_prometheus_sees_every_worker(watched: Watched) -> None:
    for name in (
        "loss",
        "temperature",
        "beta_mean",
        "gradient_norm",
        "learning_rate",
        "samples_per_second",
        "mfu",
    ):
        # the very last value may have come after the last scrape
        seen = [v for _, v in history_of(watched.client, watched.mlflow().info.run_id, f"train/{name}")]
        assert any(watched.scraped[name, "0"] == pytest.approx(value) for value in seen), name
        assert (name, "1") not in watched.scraped
    for rank in "01":
        assert watched.scraped["memory_bytes", rank] > 1e7
        assert watched.scraped["step_seconds_count", rank] > 0
        assert watched.began - 1 < watched.scraped["checkpoint_timestamp_seconds", rank] < time.time()
    assert watched.scraped["samples_total", "0"] > 0
    assert watched.tags["run"] == f"watched/{watched.run.manifest.key}"


def test_the_trace_holds_the_steps_asked_for(watched: Watched) -> None:
    path = "profile/steps-4-5.json.gz"
    assert path in {file.path for file in watched.run.manifest.files}
    assert any(line.endswith(watched.run.path(path)) for line in watched.outcome.details)
    events = json.loads(gzip.decompress(Path(watched.run.path(path)).read_bytes()))["traceEvents"]
    named = {event["name"] for event in events}
    assert {name for name in named if name.startswith("ProfilerStep")} == {"ProfilerStep#4", "ProfilerStep#5"}
    assert any("mm" in name for name in named)


def test_to_be_watched_changes_nothing(watched: Watched) -> None:
    plain, columns = watched.plain, list(UNTIMED)
    assert plain.manifest.key == watched.run.manifest.key
    assert plain.table("history", columns).equals(watched.run.table("history", columns))
    assert plain.manifest.content_hash == watched.run.manifest.content_hash
    assert not Path(plain.path("tracking")).exists()
    assert Path(watched.run.path("tracking")).is_dir()


def test_a_driver_killed_before_its_last_words_is_made_up_for_by_the_same_command(watched: Watched) -> None:
    run, root = watched.mlflow(), Path(watched.run.url).parent
    names = ("train/loss", "dev/b/R_ID_at_1", "run/loss", "epoch/loss")
    before = {name: history_of(watched.client, run.info.run_id, name) for name in names}
    folder = Path(watched.run.path("tracking"))
    (file,) = folder.glob("records-*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    told = 1 + max(i for i, line in enumerate(lines) if json.loads(line).get("group") in ("train", "dev"))
    file.write_text("".join(lines[:told]))
    sent = json.loads((folder / "sent.json").read_text())
    (folder / "sent.json").write_text(json.dumps({p: state | {"records": told} for p, state in sent.items()}))
    watched.client.update_run(run.info.run_id, status="RUNNING")
    asked = recipe(**WATCHED, mlflow_uri=f"sqlite:///{root}/mlflow.db")
    outcome = train(asked, Context(root=str(root), out=watched.run.url))
    assert outcome.message.startswith("nothing to do")
    count = len(file.read_text().splitlines()) - told
    assert outcome.details == (f"{count} records that MLflow lacked of this run were sent",)
    assert watched.mlflow().info.status == "FINISHED"
    assert {name: history_of(watched.client, run.info.run_id, name) for name in names} == before
