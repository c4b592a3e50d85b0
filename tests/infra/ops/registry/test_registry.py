"""Registry and promotion against a real MLflow server, with real models: from register to load, promote and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer
from small_root import make_root, make_run

from infra.base.command import Context
from infra.base.errors import OacirError, RecipeError, VersionError
from infra.base.versions import resolve
from infra.ops.registry import packaging
from infra.ops.registry.gates import GatesSection
from infra.ops.registry.promote import PromoteRecipe, promote
from infra.ops.registry.register import RegisterRecipe, register
from infra.ops.registry.server import CHALLENGER, CHAMPION, Registered
from infra.ops.registry.verbs import CopyRecipe, HistoryRecipe, RollbackRecipe, copy, rollback, show
from pipelines.retrieval.config import EvaluateRecipe
from pipelines.retrieval.evaluate import evaluate

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[4]


@dataclass
class Scene:
    """A root with two trained models, their evaluations and a server."""

    context: Context
    uri: str
    scores: dict[str, Any] = field(default_factory=dict)

    def register(self, model: str, name: str = "shop", **more: Any) -> dict[str, Any]:
        recipe = RegisterRecipe(name=name, model=model, mlflow_uri=self.uri, **more)
        return register(recipe, self.context).figures

    def promotion(self, version: str, name: str = "shop", **gates: Any) -> PromoteRecipe:
        return PromoteRecipe(
            name=name, version=version, mlflow_uri=self.uri, dataset="benchmark", gates=GatesSection(**gates)
        )


@pytest.fixture(scope="module")
def scene(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    context = make_root(tmp_path_factory.mktemp("root"))
    scores = {
        name: evaluate(
            EvaluateRecipe(name=name, model=name, dataset="benchmark", bootstrap_samples=100), context
        ).figures
        for name in ("adafocal", "beta0")
    }
    yield Scene(context, mlflow_server.uri, scores)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def first(scene: Scene) -> dict[str, Any]:
    return scene.register("adafocal", dataset="benchmark", galleries=["car/test"], evaluations=["adafocal"])


def load(scene: Scene, uri: str) -> Any:
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        # set_tracking_uri sets the variable, too, and every training of this process would track from then on
        patch.setenv("MLFLOW_TRACKING_URI", scene.uri)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(scene.uri)
        try:
            return mlflow.pyfunc.load_model(uri)
        finally:
            mlflow.set_tracking_uri(before)


def queries(scene: Scene) -> list[dict[str, Any]]:
    dataset = resolve(scene.context.root, "datasets", "benchmark")
    uri_of = {r["image_id"]: r["uri"] for r in dataset.table("images").to_pylist()}
    rows = [r for r in dataset.table("quadruples").to_pylist() if r["query_id"] in ("car-0-0", "car-3-2")]
    return [row | {"uri": uri_of[row["reference_id"]]} for row in rows]


def test_others_load_it_and_get_the_rankings_of_the_evaluation(scene: Scene, first: dict[str, Any]) -> None:
    """Bytes or URL, with the gallery that came with it; the same ranks as `oacir evaluate`."""
    import pandas as pd

    model = load(scene, f"models:/shop/{first['version']}")
    rows = queries(scene)
    table = pd.DataFrame(
        [
            {"image": Path(r["uri"]).read_bytes(), "box": r["reference_box"], "text": r["modification_text"]}
            for r in rows
        ]
    )
    answer = model.predict(table, params={"gallery": "car/test", "top_k": 5})
    evaluation = resolve(scene.context.root, "evaluations", "adafocal")
    expected = {r["query_id"]: r for r in evaluation.table("rankings").to_pylist()}
    for row, ids, scores, beta in zip(
        rows, answer["image_ids"], answer["scores"], answer["beta"], strict=True
    ):
        assert list(ids) == expected[row["query_id"]]["candidate_ids"][:5]
        assert list(scores) == pytest.approx(expected[row["query_id"]]["scores"][:5], abs=1e-5)
        assert list(beta) == pytest.approx(expected[row["query_id"]]["beta"], abs=1e-5)
    by_url = table.drop(columns=["image"]).assign(image_url=[r["uri"] for r in rows])
    embedded = model.predict(by_url)
    assert [len(v) for v in embedded["embedding"]] == [16, 16]
    assert list(embedded["embedding"][1]) == pytest.approx(list(answer["embedding"][1]))
    assert "image_ids" not in embedded
    targets = model.predict(by_url[["image_url"]], params={"encode": "target"})
    assert len(targets["targets"][0]) == 4
    assert len(targets["targets"][0][0]) == 16
    unmarked = model.predict(by_url.drop(columns=["box"]))
    assert unmarked["beta"].isna().all()
    assert list(unmarked["embedding"][0]) != pytest.approx(list(embedded["embedding"][0]))


def test_what_it_cannot_answer_is_said_with_the_row(scene: Scene, first: dict[str, Any]) -> None:
    import pandas as pd

    model = load(scene, f"models:/shop/{first['version']}")
    good = {"image_url": queries(scene)[0]["uri"], "text": "on a table", "box": [1.0, 2.0, 30.0, 40.0]}
    for changed, says in (
        ({"text": " "}, "row 1: text is empty"),
        ({"box": [1.0, 2.0, 300.0, 40.0]}, "leaves the image of 64 x 64"),
        ({"image_url": None}, "row 1: give the image's bytes in image or where it lies"),
        ({"image_url": __file__}, "row 1: image cannot be read"),
        (
            {"image_url": "https://example.org/a.jpg"},
            "row 1: image_url https://.* allowed are a local path or s3://",
        ),
    ):
        with pytest.raises(OacirError, match=says):
            model.predict(pd.DataFrame([good, good | changed]))
    with pytest.raises(
        RecipeError, match="gallery 'toys' did not come with this model; those that did: car/test"
    ):
        model.predict(pd.DataFrame([good]), params={"gallery": "toys"})
    for top_k in (0, -1):  # would have been 10, and all but the last
        with pytest.raises(RecipeError, match=f"top_k is {top_k}; it counts images from 1"):
            model.predict(pd.DataFrame([good]), params={"gallery": "car/test", "top_k": top_k})


def test_its_files_say_all_and_hold_no_pickle(scene: Scene, first: dict[str, Any], tmp_path: Path) -> None:
    import yaml
    from mlflow.tracking import MlflowClient

    registered = Registered(scene.uri, "shop")
    version = registered.find(first["version"])
    packed = registered.download(version, tmp_path)
    files = [p for p in packed.folder.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".yaml", ".txt", ".md", ".py", ""}
    for file in files:
        assert file.read_bytes()[:2] not in (b"\x80\x04", b"\x80\x05", b"PK"), file
    flavors = yaml.safe_load((packed.folder / "MLmodel").read_text())
    assert "python_model" not in flavors["flavors"]["python_function"]  # where a pickle would be
    assert flavors["flavors"]["python_function"]["model_code_path"].endswith("model_code.py")
    assert {c["name"] for c in json.loads(flavors["signature"]["inputs"])} == {
        "image", "image_url", "box", "text", "category",
    }  # fmt: skip
    pinned = (packed.folder / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in pinned)
    assert {line.split("==")[0] for line in pinned} >= {"oacir", "mlflow", "torch", "transformers"}
    card = (packed.folder / "MODEL_CARD.md").read_text()
    run = resolve(scene.context.root, "runs", "adafocal").manifest
    figures = scene.scores["adafocal"]
    assert f"`{run.parents['dataset']}`" in card
    assert f"`{run.content_hash}`" in card
    assert figures["domains"]["car"]["gallery"]["hash"][:12] in card
    images = figures["domains"]["car"]["gallery"]["images"]
    assert f"| `car/test` | {images:,} | `{run.parents['dataset']}` |" in card
    assert f"{figures['domains']['car']['metrics']['R_ID@1']['value']:.1f} (" in card
    assert version.tags["oacir.run"] == "adafocal/key"
    assert int(version.tags["oacir.size_bytes"]) == sum(p.stat().st_size for p in files)
    client = MlflowClient(scene.uri)
    metrics = client.get_run(version.run_id).data.metrics
    value = figures["domains"]["product"]["metrics"]["R@1"]["value"]
    assert metrics["test/benchmark/product/R_at_1"] == pytest.approx(value)
    logged = client.get_logged_model(version.tags["oacir.logged_model"])
    assert {m.key: m.value for m in logged.metrics}["test/benchmark/product/R_at_1"] == pytest.approx(value)


def test_the_same_model_is_the_same_version_also_by_two_at_once(
    scene: Scene, first: dict[str, Any], tmp_path: Path
) -> None:
    again = scene.register("adafocal", dataset="benchmark", galleries=["car/test"])
    assert (again["version"], again["new"]) == (first["version"], False)
    assert again["model_hash"] == first["model_hash"]
    packed = Registered(scene.uri, "shop").download(Registered(scene.uri, "shop").find("1"), tmp_path)
    run_id = Registered(scene.uri, "twins").run_of(packed, "oacir twins", "twins")
    barrier, found = threading.Barrier(3), []

    def publish() -> None:
        registered = Registered(scene.uri, "twins")
        registered.ensure()
        barrier.wait()
        found.append(registered.publish(packed, run_id, "oacir twins", ""))

    threads = [threading.Thread(target=publish) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({version for version, _ in found}) == 1
    assert [new for _, new in found].count(True) <= 1
    assert len(Registered(scene.uri, "twins").versions()) == 1


def test_only_gates_move_the_champion(scene: Scene, first: dict[str, Any]) -> None:
    other = scene.register("beta0")
    registered = Registered(scene.uri, "shop")
    assert registered.alias(CHALLENGER) == other["version"]
    assert registered.alias(CHAMPION) is None
    outcome = promote(scene.promotion(first["version"]), scene.context)
    assert outcome.refused is None
    assert registered.alias(CHAMPION) == first["version"]
    assert promote(scene.promotion("champion"), scene.context).message.startswith(
        "nothing to do: version 1 is"
    )

    refused = promote(scene.promotion(CHALLENGER, tolerance=0.0, size_bytes=1000), scene.context)
    by_hand = [
        f"{metric}, {domain}"
        for domain, part in scene.scores["beta0"]["domains"].items()
        for metric in ("R_ID@1", "R@1")
        if part["metrics"][metric]["value"]
        < scene.scores["adafocal"]["domains"][domain]["metrics"][metric]["value"] - 1e-9
    ]
    failed = [check["gate"] for check in refused.figures["gates"] if not check["passed"]]
    assert failed == [*by_hand, "size, bytes"]
    assert refused.refused is not None
    assert refused.refused.startswith(f"{len(failed)} of {len(refused.figures['gates'])} gates failed: ")
    assert refused.details[1].endswith("FAILED")
    assert registered.alias(CHAMPION) == first["version"]
    assert registered.alias(CHALLENGER) == other["version"]

    passed = promote(scene.promotion(CHALLENGER, tolerance=100.0, latency_p95_ms=60_000.0), scene.context)
    assert passed.figures["promoted"] is True
    assert registered.alias(CHAMPION) == other["version"]
    assert registered.alias(CHALLENGER) is None
    timed = next(c for c in passed.figures["gates"] if c["gate"] == "latency p95, ms")
    assert 0.1 < float(timed["challenger"]) < 60_000


def test_back_to_the_champion_before_and_all_of_it_is_history(scene: Scene, first: dict[str, Any]) -> None:
    registered = Registered(scene.uri, "shop")
    recipe = RollbackRecipe(name="shop", mlflow_uri=scene.uri, why="customers complained")
    assert rollback(recipe, scene.context).figures == {"version": "1", "before": "2"}
    assert registered.alias(CHAMPION) == "1"
    with pytest.raises(OacirError, match=r"no champion before the present one \(1\)"):
        rollback(recipe, scene.context)
    registered.point(CHAMPION, "2")  # by hand, past all gates
    shown = show(HistoryRecipe(name="shop", mlflow_uri=scene.uri), scene.context)
    assert [(e["action"], e["version"], e["champion"]) for e in shown.figures["history"]] == [
        ("promote", "1", "1"),
        ("refuse", "2", "1"),
        ("promote", "2", "2"),
        ("rollback", "1", "1"),
    ]
    assert shown.figures["history"][3]["why"] == "customers complained"
    assert "alias champion points to 2, which no decision made" in shown.details[-1]
    outcome = promote(scene.promotion("1"), scene.context)
    assert outcome.details == ("alias champion pointed to 2, which no promotion made: set to 1",)
    assert registered.alias(CHAMPION) == "1"


def test_a_champion_that_was_deleted_on_the_server_gives_way_to_the_one_before(scene: Scene) -> None:
    for model, number in (("adafocal", "1"), ("beta0", "2")):
        assert scene.register(model, name="gone")["version"] == number
        assert promote(scene.promotion(number, "gone", tolerance=100.0), scene.context).refused is None
    registered = Registered(scene.uri, "gone")
    registered.client.delete_model_version("gone", "2")
    assert registered.alias(CHAMPION) is None
    shown = show(HistoryRecipe(name="gone", mlflow_uri=scene.uri), scene.context)
    assert shown.details[-1].startswith(
        "champion 2 was deleted on the server; for the next promotion 1 stands"
    )
    again = scene.register("beta0", name="gone")["version"]
    judged = promote(scene.promotion(again, "gone", tolerance=0.0, size_bytes=1), scene.context)
    assert judged.details[0] == "champion 2 was deleted on the server: 1 stands in its place"
    assert {c["champion"] for c in judged.figures["gates"] if c["gate"] == "schema"} != {""}
    assert judged.figures["champion_before"] == "1"
    assert registered.alias(CHAMPION) == "1"
    back = rollback(RollbackRecipe(name="gone", mlflow_uri=scene.uri), scene.context)
    assert back.figures == {"version": "1", "before": "2"}
    registered.client.delete_model_version("gone", "1")
    outcome = promote(scene.promotion(again, "gone", tolerance=0.0), scene.context)
    assert outcome.details == ("champion 1 was deleted on the server: none stands in its place",)
    assert registered.alias(CHAMPION) == again


def test_to_production_it_goes_as_challenger_and_once(
    scene: Scene, first: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = CopyRecipe(name="shop", mlflow_uri=scene.uri, to_name="shop.production", version="champion")
    copied = copy(recipe, scene.context)
    assert (copied.figures["version"], copied.figures["new"]) == ("1", True)
    assert copied.figures["model_hash"] == first["model_hash"]
    assert copy(recipe, scene.context).figures["new"] is False
    there = Registered(scene.uri, "shop.production")
    assert (there.alias(CHALLENGER), there.alias(CHAMPION)) == ("1", None)
    assert len(load(scene, "models:/shop.production@challenger").predict(example())) == 1
    monkeypatch.chdir(tmp_path)  # a database without a server keeps files in the working directory
    elsewhere = f"sqlite:///{tmp_path}/production.db"
    moved = copy(recipe.model_copy(update={"to_uri": elsewhere, "to_name": None}), scene.context)
    assert (moved.figures["version"], moved.figures["new"]) == ("1", True)
    other = Registered(elsewhere, "shop")
    assert other.alias(CHALLENGER) == "1"
    assert other.download(other.find("1"), tmp_path / "back").model_hash == first["model_hash"]
    with pytest.raises(OacirError, match="copied onto itself"):
        copy(CopyRecipe(name="shop", mlflow_uri=scene.uri), scene.context)


def example() -> Any:
    from infra.ops.registry.retriever import input_example

    return input_example()


DECIDING = """
import sys
from pathlib import Path
from infra.base.command import Context
from infra.ops.registry.gates import GatesSection, Measured
from infra.ops.registry.promote import PromoteRecipe, promoted

uri, version, meeting, values = sys.argv[1], sys.argv[2], Path(sys.argv[3]), {values}

def measure(recipe, context, found, packed):
    # both have read the history before either of them decides
    (meeting / version).touch()
    while len(list(meeting.iterdir())) < 2:
        pass
    part = {{"metrics": {{"R_ID@1": {{"value": values[str(found.version)]}}}}, "gallery": {{"hash": "g"}}}}
    figures = {{"domains": {{"car": part}}, "overall": {{"metrics": {{}}}}}}
    return Measured(str(found.version), figures, "s", 1)

gates = GatesSection(metrics=("R_ID@1",), tolerance=0.0)
recipe = PromoteRecipe(name="race", version=version, mlflow_uri=uri, gates=gates)
outcome = promoted(recipe, Context(root="/none"), measure)
print(outcome.refused or "promoted")
"""


def test_two_promotions_at_once_leave_one_champion_and_the_whole_history(
    scene: Scene, first: dict[str, Any], tmp_path: Path
) -> None:
    """Both pass against the champion they saw, but only the better one may end as champion: who is second has to pass
    against who was first."""
    dataset = resolve(scene.context.root, "datasets", "benchmark")
    for seed in (1, 2):
        make_run(scene.context.root, dataset, f"seed{seed}", "none", seed=seed)
    for model in ("beta0", "seed1", "seed2"):
        scene.register(model, name="race")
    registered = Registered(scene.uri, "race")
    assert registered.decide([], "promote", "1", "the first") is not None
    values = {"1": 10.0, "2": 30.0, "3": 20.0}
    script = DECIDING.format(values=values)
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, scene.uri, version, str(meeting)],
            stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        for version in ("2", "3")
    ]  # fmt: skip
    said = [racer.communicate(timeout=120)[0] for racer in racers]
    assert said[0] == "promoted\n"
    log = registered.log()
    assert [e.number for e in log] == list(range(1, len(log) + 1))
    assert log[-1].champion == "2" == registered.alias(CHAMPION)
    if log[1].version == "2":  # then 20 did not pass against 30
        assert [(e.action, e.version) for e in log[1:]] == [("promote", "2"), ("refuse", "3")]
        assert said[1].startswith("1 of 2 gates failed: R_ID@1, car: 20.00, allowed ≥ 30.00")
    else:
        assert [(e.action, e.version, e.before) for e in log[1:]] == [
            ("promote", "3", "1"),
            ("promote", "2", "3"),
        ]


def test_a_number_of_the_history_is_taken_once(scene: Scene, first: dict[str, Any]) -> None:
    """And a decision that its process did not live to carry out is carried out by the next."""
    registered = Registered(scene.uri, "shop")
    log = registered.log()
    from infra.ops.registry.history import following

    mine, theirs = (following(log, "promote", v, "why") for v in ("2", "1"))
    assert registered.append(theirs)
    assert not registered.append(mine)
    assert registered.append(theirs)  # an answer that was lost
    assert registered.decide(log, "promote", "2", "on an old history") is None
    assert registered.log()[-1] == theirs
    last = registered.log()
    assert registered.append(following(last, "promote", "2", "killed behind this"))
    assert registered.alias(CHAMPION) == "1"
    assert registered.settle() == "1"
    assert registered.alias(CHAMPION) == "2"


def test_files_that_were_changed_on_the_server_are_refused(
    scene: Scene, first: dict[str, Any], tmp_path: Path
) -> None:
    registered = Registered(scene.uri, "shop")
    version = registered.find("2")
    packed = registered.download(version, tmp_path / "a")
    weights = next(packed.folder.rglob("model.safetensors"))
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    registered.client.log_model_artifacts(version.tags["oacir.logged_model"], str(packed.folder))
    with pytest.raises(VersionError, match="its files are not those that were registered"):
        registered.download(version, tmp_path / "b")


def test_what_is_wrong_is_said_in_one_line(scene: Scene, first: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(VersionError, match="none: no registered model of that name"):
        show(HistoryRecipe(name="none", mlflow_uri=scene.uri), scene.context)
    with pytest.raises(VersionError, match=r"shop: no version or alias '99' at .*; versions: 1, 2"):
        promote(scene.promotion("99"), scene.context)
    with pytest.raises(OacirError, match="evaluates another model"):
        scene.register("adafocal", evaluations=["beta0"])
    Registered(scene.uri, "x").client.create_registered_model("foreign")
    with pytest.raises(OacirError, match="was not made by `oacir register`"):
        scene.register("beta0", name="foreign")
    (tmp_path / "weights.bin").write_bytes(b"\x80\x04 anything")
    with pytest.raises(OacirError, match=r"weights\.bin: is or may be a pickle"):
        packaging.refuse_pickles(tmp_path)
    (tmp_path / "weights.bin").rename(tmp_path / "weights.json")
    with pytest.raises(OacirError, match="pickle"):
        packaging.refuse_pickles(tmp_path)


@pytest.mark.parametrize(
    ("package", "told"),
    [
        ("https://me:secret@wheels.example.org/oacir.whl", False),
        ("oacir @ https://token@wheels.example.org/oacir.whl", False),
        ("git+ssh://me:secret@example.org/oacir", False),
        ("git+ssh://git@example.org/oacir@v1", True),
        ("git+https://example.org/oacir@v1", True),
        ("/wheels/oacir.whl", True),
    ],
)
def test_requirements_tell_no_password(package: str, told: bool) -> None:
    if told:
        assert RegisterRecipe(model="m", package=package).package == package
    else:
        with pytest.raises(ValueError, match=r"names a user or password, .* leave them out"):
            RegisterRecipe(model="m", package=package)


def test_a_server_that_is_away_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(OacirError, match=r"MLflow at http://127\.0\.0\.1:9: .*refused"):
        show(HistoryRecipe(name="shop", mlflow_uri="http://127.0.0.1:9"), Context(root="/none"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(OacirError, match="mlflow_uri is null and MLFLOW_TRACKING_URI is not set"):
        show(HistoryRecipe(name="shop"), Context(root="/none"))
