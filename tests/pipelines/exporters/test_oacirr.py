"""The release's layout as METHODS states it, and ours → release + sidecar → ours as the identity."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import random_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.base import storage
from infra.base.command import Context
from infra.base.errors import OacirError
from infra.base.versions import Version, open_version
from pipelines.build import build
from pipelines.config import BuildRecipe
from pipelines.exporting import ExportRecipe, export
from pipelines.images import stored_box, turned, upright_box
from pipelines.importing import ImportRecipe, import_release
from pipelines.records import TABLES
from pipelines.stages import MACHINE_COLUMNS, schema_name
from pipelines.verify import VerifyRecipe, verify

RECORD = {"reference", "target", "modification_text_mllm", "object_category", "reference_bounding_box"}


def write(version: Version, out: Path, **options: Any) -> Path:
    chosen = ExportRecipe.model_validate({"dataset": version.url, "layout": "oacirr"} | options)
    export(chosen, Context(root="unused", out=str(out)))
    return out


def read_back(release: Path, root: Path, **options: Any) -> Version:
    chosen = {"name": "back", "release": {"kind": "oacirr", "source": str(release)} | options, "workers": 1}
    outcome = import_release(ImportRecipe.model_validate(chosen), Context(root=str(root)))
    assert outcome.location is not None
    return open_version(outcome.location)


def content(version: Version) -> dict[str, list[str]]:
    """Every row of every table, without what names machines."""
    found: dict[str, list[str]] = {}
    for file in version.manifest.files:
        if file.path.endswith(".parquet"):
            name = file.path.rpartition("/")[0] or file.path
            for row in storage.read_table(version.path(file.path)).to_pylist():
                known = TABLES[schema_name(name.removesuffix(".parquet"))].names
                plain = {k: v for k, v in row.items() if k in known and k not in MACHINE_COLUMNS}
                found.setdefault(name, []).append(json.dumps(plain, sort_keys=True))
    return {name: sorted(rows) for name, rows in found.items()}


def load(
    release: Path, annotations: str, split: str
) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, Any]]:
    names = ("quadruple_captions/caption_full", "image_splits/split", "image_bounding_box/bounding_box")
    return tuple(json.loads((release / annotations / f"{n}.{split}.json").read_text()) for n in names)  # type: ignore[return-value]


@pytest.mark.ray
@settings(max_examples=5)
@given(
    seed=st.integers(0, 10**6),
    domains=st.integers(1, 3),
    instances=st.integers(3, 6),
    train=st.sampled_from(("union", "subset")),
    how=st.sampled_from(("copy", "link")),
)
def test_ours_to_the_release_and_back_is_the_identity(
    ray_session: None, seed: int, domains: int, instances: int, train: str, how: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        version = random_benchmark.write(root / "a", seed, domains, instances)
        back = read_back(write(version, root / "release", images=how), root / "b", train=train)
        assert content(back) == content(version)
        assert back.manifest.content_hash == version.manifest.content_hash
        assert verify(VerifyRecipe(dataset=back.url), Context(root="unused")).refused is None


@pytest.mark.ray
def test_a_built_world_comes_back_as_it_was(tmp_path: Path, ray_session: None) -> None:
    loose = {"tau_valid": 4, "tau_high": 0.99, "tau_centric": 0.98, "tau_count": 2}
    world = {"image_size_px": 48, "supersampling": 1, "instances_per_domain": 7, "scenes_per_instance": 4,
             "domains": ["car", "product"]}  # fmt: skip
    recipe = {"source": {"kind": "world", "world": world}, "thresholds": {"default": loose}, "workers": 1}
    outcome = build(BuildRecipe.model_validate(recipe), Context(root=str(tmp_path)))
    assert outcome.location is not None
    version = open_version(outcome.location)
    assert {"train", "dev", "test"} == set(version.table("quadruples")["split"].to_pylist())
    back = read_back(write(version, tmp_path / "release"), tmp_path)
    assert back.manifest.content_hash == version.manifest.content_hash
    assert back.manifest.figures["galleries"].keys() == version.manifest.figures["galleries"].keys()
    # the leave-one-out set: the other domain's training queries and its dev, the evaluation of both
    other = read_back(tmp_path / "release", tmp_path / "wo", train="wo-car")
    splits = {(q["domain"], q["split"]) for q in other.table("quadruples").to_pylist()}
    assert splits == {("product", "train"), ("product", "dev"), ("car", "test"), ("product", "test")}
    assert verify(VerifyRecipe(dataset=other.url), Context(root="unused")).refused is None


def test_the_files_are_those_of_the_release(tmp_path: Path) -> None:
    version = random_benchmark.write(tmp_path, seed=3, domains=2)
    release = write(version, tmp_path / "release")
    quadruples = version.table("quadruples").to_pylist()
    images = {r["image_id"]: r for r in version.table("images").to_pylist()}
    domains = sorted({q["domain"] for q in quadruples})
    titled = {d: d[0].upper() + d[1:] for d in domains}
    counted = {}
    for domain in domains:
        folder = f"OACIRR-Subset/OACIRR-{titled[domain]}"
        for split, ours in (("train", ("train", "dev")), ("val", ("test",))):
            records, names, boxes = load(release, f"{folder}/oacirr-{domain}", split)
            own = sorted(
                (q for q in quadruples if q["domain"] == domain and q["split"] in ours),
                key=lambda q: str(q["query_id"]),
            )
            counted[domain, split] = records
            assert len(records) == len(own)
            for record, query in zip(records, own, strict=True):
                assert record.keys() - {"target_subset_vitG"} == RECORD
                assert record["modification_text_mllm"] == query["modification_text"]
                reference = release / folder / names[record["reference"]]
                with Image.open(reference) as image:  # as the release's code opens it: without turning it
                    size, turn = image.size, turned(reference.read_bytes())
                box = record["reference_bounding_box"]
                assert upright_box(tuple(box), *size, turn) == tuple(query["reference_box"])
                for key in ("reference", "target"):
                    path = release / folder / names[record[key]]
                    assert (
                        path.read_bytes() == Path(images[query["reference_id"]]["uri"]).read_bytes()
                        or key == "target"
                    )
                    # the parent folder IS the instance
                    assert path.parent.name == query["instance_id"].split("/", 1)[1].replace("/", "__")
            assert set(boxes) <= set(names)
            assert len(set(names.values())) == len(names)
    union, names, _ = load(release, "OACIRR-Union/oacirr-union", "train")
    assert union == [r for d in domains for r in counted[d, "train"]]
    assert all((release / "OACIRR-Union" / path).is_file() for path in names.values())
    for domain in domains:
        cross = f"OACIRR-CrossDomain/WO-{titled[domain]}"
        records, names, _ = load(release, f"{cross}/oacirr-wo-{domain}", "train")
        assert records == [r for d in domains if d != domain for r in counted[d, "train"]]
        assert all((release / cross / path).is_file() for path in names.values())


def test_a_gallery_of_val_holds_its_distractors(tmp_path: Path) -> None:
    version = random_benchmark.write(tmp_path, seed=5, domains=1)
    release = write(version, tmp_path / "release", joint=[])
    gallery = version.table("gallery")
    ranked = set(gallery.filter(pc.equal(gallery["split"], "test"))["image_id"].to_pylist())
    (folder,) = (release / "OACIRR-Subset").iterdir()
    (annotations,) = (p for p in folder.iterdir() if p.name.startswith("oacirr-"))
    names = json.loads((annotations / "image_splits/split.val.json").read_text())
    assert set(names) == ranked
    assert not (release / "OACIRR-Union").exists()


@pytest.mark.ray
def test_who_edits_the_files_imports_what_they_wrote(tmp_path: Path, ray_session: None) -> None:
    version = random_benchmark.write(tmp_path, seed=7, domains=1)
    release = write(version, tmp_path / "release")
    (captions,) = (release / "OACIRR-Subset").rglob("caption_full.val.json")
    records = json.loads(captions.read_text())
    records[0]["modification_text_mllm"] = "a better text"
    captions.write_text(json.dumps(records))
    back = read_back(release, tmp_path / "b")
    assert back.manifest.content_hash != version.manifest.content_hash
    texts = {q["query_id"]: q["modification_text"] for q in back.table("quadruples").to_pylist()}
    before = {q["query_id"]: q["modification_text"] for q in version.table("quadruples").to_pylist()}
    changed = {q: text for q, text in texts.items() if text != before[q]}
    assert list(changed.values()) == ["a better text"]
    records[0]["reference"], records[0]["target"] = records[0]["target"], records[0]["reference"]
    captions.write_text(json.dumps(records))
    with pytest.raises(OacirError, match=r"record 0: oacir\.json knows another pair of images there"):
        read_back(release, tmp_path / "c")


@pytest.mark.ray
def test_without_the_sidecar_it_is_a_release_like_any_other(tmp_path: Path, ray_session: None) -> None:
    version = random_benchmark.write(tmp_path, seed=11, domains=2, masks=False)
    release = write(version, tmp_path / "release")
    (release / "oacir.json").unlink()
    back = read_back(release, tmp_path / "b", dev_share=0.0)
    splits = [q["split"] for q in back.table("quadruples").to_pylist()]
    before = [q["split"] for q in version.table("quadruples").to_pylist()]
    assert splits.count("train") == before.count("train") + before.count("dev")
    assert splits.count("test") == before.count("test")
    boxes = sorted(q["reference_box"] for q in back.table("quadruples").to_pylist())
    assert boxes == sorted(q["reference_box"] for q in version.table("quadruples").to_pylist())


def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    version = random_benchmark.write(tmp_path, seed=1, domains=1, masks=False)
    table = version.table("quadruples")
    rows = table.to_pylist()
    rows[0]["reference_box"] = None
    storage.write_table(
        version.path("quadruples/part-00000.parquet"), type(table).from_pylist(rows, table.schema)
    )
    with pytest.raises(OacirError, match=r"1 of \d+ queries have no box .*export with --layout huggingface"):
        write(version, tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_an_image_that_changed_is_not_exported(tmp_path: Path) -> None:
    version = random_benchmark.write(tmp_path, seed=2, domains=1)
    Path(version.table("images")["uri"][0].as_py()).write_bytes(b"another")
    with pytest.raises(OacirError, match="changed since the dataset was made"):
        write(version, tmp_path / "release")
    assert not (tmp_path / "release/oacir.json").exists()


def test_an_export_is_done_once_and_keeps_to_its_place(tmp_path: Path) -> None:
    version = random_benchmark.write(tmp_path, seed=4, domains=1)
    release = write(version, tmp_path / "release")
    stamp = (release / "oacir.json").stat().st_mtime_ns
    chosen = ExportRecipe(dataset=version.url, layout="oacirr")
    assert "nothing to do" in export(chosen, Context(root="unused", out=str(release))).message
    assert (release / "oacir.json").stat().st_mtime_ns == stamp
    with pytest.raises(OacirError, match="holds another export"):
        write(version, release, joint=[])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(OacirError, match="holds files that are no export"):
        write(version, tmp_path / "mine")
    plan = export(chosen, Context(root="unused", out=str(tmp_path / "plan"), dry_run=True))
    assert plan.message.startswith("would export")
    assert not (tmp_path / "plan").exists()


def test_options_of_the_other_layout_are_refused() -> None:
    with pytest.raises(ValueError, match="push uploads the layout huggingface"):
        ExportRecipe(dataset="x", layout="oacirr", push="me/it")
    with pytest.raises(ValueError, match="images = link is of the layout oacirr"):
        ExportRecipe(dataset="x", layout="huggingface", images="link")


@given(
    orientation=st.integers(1, 8),
    width=st.integers(2, 90),
    height=st.integers(2, 90),
    corners=st.tuples(*[st.floats(0, 1, width=32)] * 4),
)
def test_a_box_turned_back_and_forth_is_itself(
    orientation: int, width: int, height: int, corners: tuple[float, float, float, float]
) -> None:
    xs, ys = (
        sorted((corners[0] * width, corners[2] * width)),
        sorted((corners[1] * height, corners[3] * height)),
    )
    if xs[1] - xs[0] < 0.01 or ys[1] - ys[0] < 0.01:
        return
    stored = (xs[0], ys[0], xs[1], ys[1])
    upright = upright_box(stored, width, height, orientation)
    assert upright is not None
    size = (width, height) if orientation < 5 else (height, width)
    assert stored_box(upright, *size, orientation) == pytest.approx(stored, abs=1e-9)
