"""The parquet layout as `datasets` opens it, and the push."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import random_benchmark
import yaml
from PIL import Image

from infra.base.command import Context
from infra.base.errors import OacirError
from infra.base.versions import Version
from pipelines.exporters import huggingface
from pipelines.exporters.huggingface import CONFIGS, with_features
from pipelines.exporting import ExportRecipe, export


def features_of(schema: pa.Schema) -> dict[str, Any]:
    features: dict[str, Any] = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    return features


def write(version: Version, out: Path, **options: Any) -> Path:
    chosen = {"dataset": version.url, "layout": "huggingface"} | options
    export(ExportRecipe.model_validate(chosen), Context(root="unused", out=str(out)))
    return out


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return random_benchmark.write(tmp_path_factory.mktemp("root"), seed=9, domains=2)


@pytest.fixture(scope="module")
def exported(version: Version, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(version, tmp_path_factory.mktemp("out"))


def rows(exported: Path, config: str) -> list[dict[str, Any]]:
    return [
        r for path in sorted((exported / config).glob("*.parquet")) for r in pq.read_table(path).to_pylist()
    ]


def test_load_dataset_opens_every_configuration_and_split(
    version: Version, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    images = {r["image_id"]: r for r in version.table("images").to_pylist()}
    quadruples = {r["query_id"]: r for r in version.table("quadruples").to_pylist()}
    boxes = {(r["image_id"], r["instance_id"]): r["box"] for r in version.table("instances").to_pylist()}
    seen = set()
    for config in CONFIGS:
        opened = datasets.load_dataset(str(exported), config, cache_dir=str(tmp_path))
        assert sorted(opened) == sorted({path.name.split("-")[0] for path in (exported / config).iterdir()})
        for split, table in opened.items():
            assert table.column_names == CONFIGS[config].names
            for row in table:
                if config == "quadruples":
                    query = quadruples[row["query_id"]]
                    image_id = query["reference_id"]
                    assert (row["reference_box"], query["split"]) == (query["reference_box"], split)
                    mask = row["reference_mask"]
                    assert (mask is None) == (query["reference_mask_uri"] is None)
                    if mask is not None:
                        assert mask.tobytes() == Image.open(query["reference_mask_uri"]).tobytes()
                elif config == "images":
                    image_id = row["image_id"]
                    assert all(boxes[image_id, i["instance_id"]] == i["box"] for i in row["instances"])
                else:
                    continue
                # an image, not a struct of bytes, with the pixels of the photo
                assert row["image"].convert("RGB").tobytes() == pixels(images[image_id]["uri"])
                seen.add(image_id)
    assert seen == set(images)
    # without a name: the queries
    plain = datasets.load_dataset(str(exported), cache_dir=str(tmp_path))
    assert sum(len(table) for table in plain.values()) == len(quadruples)


def pixels(uri: str) -> bytes:
    from PIL import ImageOps

    with Image.open(uri) as image:
        return ImageOps.exif_transpose(image).convert("RGB").tobytes()


def test_images_are_images_wherever_they_are() -> None:
    assert features_of(with_features(CONFIGS["images"]))["image"] == {"_type": "Image"}
    features = features_of(with_features(CONFIGS["quadruples"]))
    assert [n for n, f in features.items() if f == {"_type": "Image"}] == ["image", "reference_mask"]
    assert features["reference_box"] == [{"dtype": "float32", "_type": "Value"}]


def test_quadruples_hold_reference_box_text_and_ids(version: Version, exported: Path) -> None:
    found = {row["query_id"]: row for row in rows(exported, "quadruples")}
    images = {r["image_id"]: r for r in version.table("images").to_pylist()}
    quadruples = version.table("quadruples").to_pylist()
    assert len(found) == len(quadruples)
    for query in quadruples:
        row = found[query["query_id"]]
        same = (
            "reference_box",
            "modification_text",
            "target_ids",
            "group_ids",
            "instance_id",
            "category",
            "domain",
        )
        assert {k: row[k] for k in same} == {k: query[k] for k in same}
        image = images[query["reference_id"]]
        assert hashlib.sha256(row["image"]["bytes"]).hexdigest() == image["sha256"]
        assert row["image"]["path"] == query["reference_id"].rsplit("/", 1)[1]
        Image.open(io.BytesIO(row["image"]["bytes"])).verify()
        assert (row["licence"], row["attribution"]) == (image["licence"], image["attribution"])
        assert json.loads(row["provenance_json"]) == query["provenance"]
        mask = query["reference_mask_sha256"]
        assert (row["reference_mask"] is None) == (mask is None)
        if mask:
            assert hashlib.sha256(row["reference_mask"]["bytes"]).hexdigest() == mask


def test_every_image_is_there_once_with_what_it_shows(version: Version, exported: Path) -> None:
    found = {row["image_id"]: row for row in rows(exported, "images")}
    assert len(found) == len(rows(exported, "images"))
    images = {r["image_id"]: r for r in version.table("images").to_pylist()}
    assert found.keys() == images.keys()
    shown = version.table("instances").to_pylist()
    for image_id, row in found.items():
        assert {k: row[k] for k in ("width", "height", "sha256", "licence", "attribution")} == {
            k: images[image_id][k] for k in ("width", "height", "sha256", "licence", "attribution")
        }
        own = [
            {k: r[k] for k in ("instance_id", "category", "box")} for r in shown if r["image_id"] == image_id
        ]
        assert row["instances"] == own
    gallery = [{k: r[k] for k in CONFIGS["gallery"].names} for r in version.table("gallery").to_pylist()]
    assert sorted(map(str, rows(exported, "gallery"))) == sorted(map(str, gallery))


def test_the_card_names_files_that_are_there(version: Version, exported: Path) -> None:
    head, body = (exported / "README.md").read_text().split("---\n")[1:3]
    meta = yaml.safe_load(head)
    named = set()
    for config in meta["configs"]:
        for entry in config["data_files"]:
            files = sorted(exported.glob(entry["path"]))
            assert files
            named |= set(files)
    assert named == set(exported.rglob("*.parquet"))
    assert [c["config_name"] for c in meta["configs"] if c.get("default")] == ["quadruples"]
    # licences differ from image to image: the head may not name one of them for all
    assert meta["license"] == "other"
    assert "| MIT | " in body
    assert "| not stated | " in body
    assert version.manifest.content_hash in body
    for place, gallery in version.manifest.figures["galleries"].items():
        assert f"| {place} | {gallery['images']} | `{gallery['sha256']}` |" in body


@pytest.mark.parametrize(
    ("licences", "named"),
    [({"CC BY 4.0": 3}, "cc-by-4.0"), ({"MIT": 1, "CC0": 1}, "other"), ({"my own": 1}, "other")],
)
def test_the_head_names_a_licence_only_if_it_is_everyones(licences: dict[str, int], named: str) -> None:
    from pipelines.exporters.datacard import licence_head

    assert licence_head(licences)["license"] == named


def test_shards_hold_about_as_many_bytes_as_asked(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(Path(r["uri"]).stat().st_size for r in version.table("images").to_pylist())
    huggingface.export(version, str(tmp_path), shard_bytes=total // 6)
    files = sorted((tmp_path / "images").glob("train-*.parquet"))
    assert len(files) > 1
    assert [f.name for f in files] == [f"train-{n:05d}.parquet" for n in range(len(files))]
    whole = rows(write(version, tmp_path / "whole"), "images")
    assert sorted(map(str, rows(tmp_path, "images"))) == sorted(map(str, whole))


def test_without_a_token_nothing_is_written(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    # the client's own way to a token, on a machine that has none
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(
        OacirError, match=r"push me/bench: no Hugging Face token on this machine; run `hf auth login`"
    ):
        write(version, tmp_path / "out", push="me/bench")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    with pytest.raises(OacirError, match="uploads local folders"):
        write(version, "s3://bucket/out", push="me/bench")  # type: ignore[arg-type]


def test_with_a_token_the_folder_goes_to_a_dataset_repository(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    calls: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def __init__(self, token: str) -> None:
            assert token == "hf_x"

        def create_repo(self, repo_id: str, **options: Any) -> str:
            calls.append(("create", {"repo_id": repo_id, **options}))
            return f"https://hub/datasets/{repo_id}"

        def upload_folder(self, **options: Any) -> None:
            calls.append(("upload", options))
            if options["repo_id"] == "me/refused":
                raise OSError("403 Forbidden:\n no rights")

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    chosen = {"dataset": version.url, "layout": "huggingface", "push": "me/bench"}
    context = Context(root="unused", out=str(tmp_path / "out"))
    outcome = export(ExportRecipe.model_validate(chosen), context)
    assert "pushed to https://hub/datasets/me/bench" in outcome.message
    assert [name for name, _ in calls] == ["create", "upload"]
    assert calls[0][1] == {"repo_id": "me/bench", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert calls[1][1]["folder_path"] == str(tmp_path / "out")
    assert calls[1][1]["ignore_patterns"] == ["oacir-export.json"]
    with pytest.raises(OacirError, match=r"the Hub did not take it \(403 Forbidden: no rights\)"):
        export(ExportRecipe.model_validate(chosen | {"push": "me/refused"}), context)
