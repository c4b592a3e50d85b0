"""Released benchmarks from their files to their own figures and their server's files, on stand-in images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_release import write_images, write_json
from small_root import make_run

from infra.base import storage
from infra.base.command import Context
from infra.base.errors import OacirError
from infra.base.versions import Version, list_versions, open_version
from pipelines.importing import READERS, ImportRecipe, import_release
from pipelines.retrieval.answer import answer
from pipelines.retrieval.config import AnswerRecipe, EvaluateRecipe, ReportRecipe
from pipelines.retrieval.evaluate import evaluate
from pipelines.retrieval.protocols.known import BENCHMARKS, benchmark_of
from pipelines.retrieval.report import report
from pipelines.sources.released.circo import INFO

MEMBERS = [f"set-{n}-img0" for n in range(6)]
OTHERS = [f"set-{n}-img1" for n in range(6)]


def imported(root: Path, release: dict[str, Any], per_part: int = 512) -> Version:
    """The dataset version of a release, with a run and features beside it."""
    settings = {"images_per_part": per_part, "workers": 1, "release": release}
    location = import_release(ImportRecipe.model_validate(settings), Context(root=str(root))).location
    assert location is not None
    version = open_version(location)
    make_run(str(root), version, "tiny", "none")
    return version


def evaluated(root: Path, version: Version, **more: Any) -> Version:
    recipe = EvaluateRecipe(
        model="tiny", dataset=version.url, bootstrap_samples=100, blind_references=1, **more
    )
    location = evaluate(recipe, Context(root=str(root))).location
    assert location is not None
    return open_version(location)


def own_scores(
    root: Path, version: Version, query: dict[str, Any], image_ids: list[str]
) -> np.ndarray[Any, Any]:
    """Scores of a query straight from the model."""
    import torch

    from training.export import open_model
    from training.features import FeatureStore

    model, processor = open_model(list_versions(str(root), "runs")[0].url)
    stores = [FeatureStore.open(v.url) for v in list_versions(str(root), "features")]
    store = next(s for s in stores if s.version.manifest.parents["dataset"] == version.manifest.content_hash)
    with torch.no_grad():
        tokens = store.tokens(store.rows([query["reference_id"]]))
        words = processor.texts([query["modification_text"]], [query["category"]], [query["query_id"]])
        vector = model.encode_query(
            tokens, *words, torch.zeros(1, tokens.shape[1], dtype=torch.bool)
        ).embedding[0]
        targets = model.encode_target(store.tokens(store.rows(image_ids)))
        found: np.ndarray[Any, Any] = (targets @ vector).amax(1).numpy()
    return found


def write_cirr(root: Path) -> None:
    names = {name: f"./dev/{name}.png" for name in [*MEMBERS, *OTHERS]}
    records = [
        {"pairid": 10 + n, "reference": MEMBERS[n], "target_hard": MEMBERS[n + 1], "caption": f"more of {n} things",
         "target_soft": {MEMBERS[n + 1]: 1.0, OTHERS[n]: 0.5}, "img_set": {"id": 1, "members": MEMBERS}}
        for n in range(4)
    ]  # fmt: skip
    for split in ("val", "test1"):
        write_json(root, f"image_splits/split.rc2.{split}.json", names)
    write_json(root, "captions/cap.rc2.val.json", records)
    hidden = [{k: v for k, v in r.items() if not k.startswith("target")} for r in records]
    write_json(root, "captions/cap.rc2.test1.json", hidden)
    write_images(root, [path[2:] for path in names.values()])


@pytest.mark.ray
def test_cirr_from_its_files_to_its_figures_and_its_servers_files(tmp_path: Path, ray_session: None) -> None:
    root = tmp_path / "root"
    write_cirr(tmp_path / "in")
    version = imported(root, {"kind": "cirr", "source": str(tmp_path / "in")})
    made = evaluated(root, version)
    figures = made.manifest.figures
    assert figures["benchmark"]["name"] == "cirr"
    assert figures["departures"] == [
        "cirr/test holds 12 images, CIRR val has 2,297: compare with no published score",
        "cirr/test has 4 queries, CIRR val has 4,181: compare with no published score",
    ]
    assert set(figures["departures"]) <= set(figures["notes"])
    rows = {r["query_id"]: r for r in made.table("rankings").to_pylist()}
    asked = {q["query_id"]: q for q in version.table("quadruples").to_pylist() if q["split"] == "test"}
    subset, top5 = [], []
    for query_id, query in asked.items():
        gallery = sorted(g["image_id"] for g in version.table("gallery").to_pylist() if g["split"] == "test")
        scores = dict(zip(gallery, own_scores(root, version, query, gallery), strict=True))
        group = [i for i in query["group_ids"] if i != query["reference_id"]]
        order = sorted(group, key=lambda i: (-scores[i], i))
        assert rows[query_id]["group_rank"] == order.index(query["target_ids"][0]) + 1
        assert rows[query_id]["target_ranks"] is None  # CIRR asks for target_hard alone
        subset.append(100.0 * (rows[query_id]["group_rank"] == 1))
        top5.append(100.0 * (rows[query_id]["target_rank"] <= 5))
    metrics = figures["overall"]["metrics"]
    assert metrics["R_subset@1"]["value"] == pytest.approx(np.mean(subset))
    assert metrics["R_subset@1"]["chance"] == pytest.approx(20)  # five others
    assert metrics["Avg"]["value"] == pytest.approx((np.mean(subset) + np.mean(top5)) / 2)

    page = report(ReportRecipe(evaluations=[made.url], queries=1, attention=False), Context(root=str(root)))
    assert page.location is not None
    text = storage.read_bytes(page.location).decode()
    assert '<th scope="col">R_subset@1</th>' in text
    assert "R@5, R_subset@1. Text only" in text

    outcome = answer(AnswerRecipe(model="tiny", dataset=version.url), Context(root=str(root)))
    assert outcome.figures["files"] == ["cirr_test1_recall.json", "cirr_test1_recall_subset.json"]
    files = {
        name: json.loads(storage.read_bytes(storage.join(outcome.location or "", name)))
        for name in outcome.figures["files"]
    }
    shared = answer(
        AnswerRecipe(name="shared", model="tiny", dataset=version.url, workers=2), Context(root=str(root))
    )
    for name, content in files.items():
        assert json.loads(storage.read_bytes(storage.join(shared.location or "", name))) == content
    whole, within = files["cirr_test1_recall.json"], files["cirr_test1_recall_subset.json"]
    assert (whole.pop("version"), whole.pop("metric")) == ("rc2", "recall")
    assert (within.pop("version"), within.pop("metric")) == ("rc2", "recall_subset")
    assert set(whole) == set(within) == {"10", "11", "12", "13"}
    hidden = {q["query_id"]: q for q in version.table("quadruples").to_pylist() if q["split"] == "hidden"}
    for pair, names in whole.items():
        # the hidden pairs are those of val, asked of the same images
        expected = [Path(i).stem for i in rows[f"cirr/val/{pair}"]["candidate_ids"]]
        assert names == expected
        reference = Path(hidden[f"cirr/test1/{pair}"]["reference_id"]).stem
        assert reference not in names
        assert within[pair] == [n for n in names if n in MEMBERS][:3]


@pytest.mark.ray
def test_answers_that_would_be_incomplete_are_refused(tmp_path: Path, ray_session: None) -> None:
    root, source = tmp_path / "root", tmp_path / "in"
    write_cirr(source)
    (source / "dev" / f"{OTHERS[5]}.png").write_bytes(b"no image")  # of the gallery, of no query
    version = imported(root, {"kind": "cirr", "source": str(source)})
    with pytest.raises(OacirError, match=r"gallery cirr/hidden lacks 1 of its images"):
        answer(AnswerRecipe(model="tiny", dataset=version.url), Context(root=str(root)))
    captions = source / "captions/cap.rc2.test1.json"
    records = json.loads(captions.read_text())
    captions.write_text(json.dumps([*records, records[0] | {"pairid": 99, "reference": "elsewhere"}]))
    version = imported(root, {"kind": "cirr", "source": str(source)})
    with pytest.raises(
        OacirError, match=r"4 of the 5 queries of cirr test1 are there, .* every one answered"
    ):
        answer(AnswerRecipe(model="tiny", dataset=version.url), Context(root=str(root)))


def test_a_benchmark_without_a_server_is_refused(context: Context) -> None:
    with pytest.raises(OacirError, match="no server that takes answers; cirr and circo have one"):
        answer(AnswerRecipe(model="adafocal", dataset="benchmark"), context)


def stand_ins(folder: Path, release: dict[str, Any]) -> None:
    """An image at every path that the annotation files name."""
    config = ImportRecipe.model_validate({"release": release}).release
    write_images(folder, sorted({row["uri"] for row in READERS[config.kind](config).images.values()}))


def named_by_circo(source: Path) -> Iterable[int]:
    for split in ("val", "test"):
        for entry in json.loads((source / f"annotations/{split}.json").read_text()):
            yield from (entry["reference_img_id"], *entry.get("gt_img_ids", ()))


REAL: dict[str, dict[str, Any]] = {
    "cirr": {"kind": "cirr", "splits": ["val", "test1"]},
    "fashioniq-split": {"kind": "fashioniq", "protocol": "split", "splits": ["val"]},
    "fashioniq-split_without_reference": {
        "kind": "fashioniq", "protocol": "split_without_reference", "splits": ["val"], "categories": ["dress"],
    },
    "fashioniq-val_triplets": {"kind": "fashioniq", "protocol": "val_triplets", "splits": ["val"]},
    "circo": {"kind": "circo", "splits": ["val", "test"]},
    "genecis": {"kind": "genecis"},
}  # fmt: skip


@pytest.mark.ray
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "circo" else pytest.mark.long) for n in REAL]
)
def test_the_real_annotation_files(name: str, shared_dir: Path, tmp_path: Path, ray_session: None) -> None:
    """Every real query is asked; what the declared benchmark says of galleries holds of them."""
    kind = REAL[name]["kind"]
    source = shared_dir / "data/annotations" / kind
    release = REAL[name] | {"source": str(source), "images": str(tmp_path / "images")}
    if kind == "circo":
        images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in sorted(set(named_by_circo(source)))]
        write_json(tmp_path / "images", INFO, {"images": images})
    stand_ins(tmp_path / "images", release)
    version = imported(tmp_path / "root", release)
    declared = benchmark_of(version, "test")
    assert declared is BENCHMARKS[name]
    made = evaluated(tmp_path / "root", version)
    figures = made.manifest.figures
    departures = figures["departures"]
    if kind == "circo":  # COCO's index is not at hand: its stand-in lists what the annotations name
        assert departures == [
            f"circo/test holds {len(images):,} images, CIRCO val has 123,403: compare with no published score"
        ]
        spread = [r["target_ranks"] for r in made.table("rankings").to_pylist()]
        assert sum(len(ranks) for ranks in spread) == 916
        ranks = [sorted(r) for r in spread]
        slow = [sum((i + 1) / r for i, r in enumerate(own) if r <= 10) / min(10, len(own)) for own in ranks]
        assert figures["overall"]["metrics"]["mAP@10"]["value"] == pytest.approx(100 * np.mean(slow))
    elif "categories" in release:
        assert departures == [
            f"shirt/test, toptee/test of {declared.title} are missing: compare with no published score"
        ]
    else:
        assert departures == []
    asked = {f"{d}/test": part["queries"] for d, part in figures["domains"].items()}
    assert asked == {place: n for place, n in declared.queries.items() if place in asked}
    for metric in declared.headline:
        measure = figures["overall"]["metrics"][metric]
        # the model is random: it must not beat chance by much, nor fall to nothing
        assert 0 <= measure["value"] <= 100
        assert 0 < measure["chance"] < 100
    if kind in ("cirr", "circo"):
        outcome = answer(
            AnswerRecipe(model="tiny", dataset=version.url), Context(root=str(tmp_path / "root"))
        )
        for file in outcome.figures["files"]:
            told_answers = json.loads(storage.read_bytes(storage.join(outcome.location or "", file)))
            told = {told_answers.pop(k) for k in ("version", "metric") if k in told_answers}
            assert told == ({"rc2", file.removeprefix("cirr_test1_")[:-5]} if kind == "cirr" else set())
            assert len(told_answers) == {"cirr": 4148, "circo": 800}[kind]
            assert {len(set(row)) for row in told_answers.values()} == {3 if "subset" in file else 50}
