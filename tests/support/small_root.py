"""A whole small root: a benchmark of rendered scenes, runs of tiny random models, and the features they read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.base import storage, versions
from infra.base.accounts import Account
from infra.base.command import Context
from infra.base.config import Config
from pipelines.records import conform

DOMAINS = ("car", "product")
INSTANCES, SCENES, TEST_INSTANCES = 8, 4, 6
TINY = {
    "vision_config.image_size": 56,
    "vision_config.patch_size": 14,
    "vision_config.hidden_size": 32,
    "qformer.hidden_size": 32,
    "qformer.num_hidden_layers": 2,
    "qformer.intermediate_size": 64,
    "num_query_tokens": 4,
    "embed_dim": 16,
    # the preset has none: without it nobody could tell whether an evaluation leaves it on
    "qformer.hidden_dropout_prob": 0.1,
    "crm_dropout": 0.1,
}


class Made(Config):
    """The recipe of a version made by hand."""

    by: str = "a test"


def make_root(folder: Path | str, change: Callable[[list[Any], list[Any]], None] | None = None) -> Context:
    """A root in a folder, with runs `adafocal` and `beta0`; `change` may alter quadruples and gallery rows before."""
    root = str(folder)
    dataset = _benchmark(root, change)
    for name, modulation in (("adafocal", "scalar"), ("beta0", "none")):
        make_run(root, dataset, name, modulation)
    return Context(root=root)


def _benchmark(root: str, change: Callable[[list[Any], list[Any]], None] | None) -> versions.Version:
    from pipelines.world.config import WorldConfig
    from pipelines.world.world import modification_text, render_scene, scene_specs

    draft = versions.start("datasets", "benchmark", "key", Made(), root=root)
    config = WorldConfig(
        domains=DOMAINS,
        image_size_px=64,
        instances_per_domain=INSTANCES,
        scenes_per_instance=SCENES,
        reserve_fraction=0,
        near_duplicate_fraction=0,
        class_centric_fraction=0,
    )
    images, instances, quadruples, gallery = [], [], [], []
    for domain in DOMAINS:
        for index in range(INSTANCES):
            scenes = [render_scene(config, spec) for spec in scene_specs(config, domain, index)][:SCENES]
            split = "test" if index < TEST_INSTANCES else "train"
            for scene in scenes:
                record = scene.record
                uri = storage.join(root, "photos", record["image_id"])
                storage.write_bytes(uri, scene.jpeg)
                images.append(
                    {
                        "image_id": record["image_id"],
                        "domain": domain,
                        "uri": uri,
                        "width": 64,
                        "height": 64,
                        "sha256": hashlib.sha256(scene.jpeg).hexdigest(),
                        "split": split,
                    }
                )
                owner = {k: record[k] for k in ("image_id", "instance_id", "category")}
                instances.append(owner | {"box": record["box"]})
                if split == "test":
                    gallery.append(
                        owner | {"gallery_id": f"{domain}/test", "split": "test", "is_distractor": False}
                    )
            for a, b in ((0, 1), (1, 2), (2, 3), (3, 0)):
                reference, target = scenes[a].record, scenes[b].record
                seed = f"{domain}{index}{a}"
                quadruples.append(
                    {
                        "query_id": f"{domain}-{index}-{a}",
                        "domain": domain,
                        "split": split,
                        "instance_id": reference["instance_id"],
                        "category": reference["category"],
                        "reference_id": reference["image_id"],
                        "reference_box": reference["box"],
                        "modification_text": modification_text(
                            domain, reference["context"], target["context"], seed, False
                        )
                        or "the same place once more, seen a second time on that day",
                        "target_ids": [target["image_id"]],
                        "provenance": {"annotator": "test"},
                    }
                )
    stated = {
        f"{d}/test": _gallery_hash(g for g in gallery if g["gallery_id"] == f"{d}/test") for d in DOMAINS
    }
    if change is not None:
        change(quadruples, gallery)
    tables = {"images": images, "instances": instances, "quadruples": quadruples, "gallery": gallery}
    files, hashes = [], {}
    for name, rows in tables.items():
        table = conform(pa.Table.from_pylist(rows), name)
        storage.write_table(draft.path(name, "part-00000.parquet"), table)
        files.append(versions.file_entry(draft.url, f"{name}/part-00000.parquet", len(table)))
        hashes[name] = versions.rows_hash(
            table.drop_columns(["uri"]).to_pylist() if name == "images" else rows
        )
    account = Account(
        entity="images", taken_in=len(images) + 3, kept=len(images), rejected={"truncated": 2, "too_small": 1}
    )
    return draft.commit(
        content_hash=versions.content_hash(hashes),
        files=files,
        seconds={"collect": 1.5, "annotate": 0.25},
        accounts={"collect": [account]},
        figures={
            "domains": {
                **{d: {"queries": {"test": TEST_INSTANCES * SCENES}} for d in DOMAINS},
                "landmark": {
                    "queries": {"train": 0, "dev": 0, "test": 0},
                    "why_no_query": "no image could be read",
                },
            },
            "galleries": {place: {"sha256": found} for place, found in stated.items()},
        },
    )


def _gallery_hash(rows: Any) -> str:
    digest = hashlib.sha256()
    for image_id in sorted(row["image_id"] for row in rows):
        digest.update(image_id.encode() + b"\n")
    return digest.hexdigest()


def make_run(
    root: str, dataset: versions.Version, name: str, modulation: str, seed: int = 0
) -> versions.Version:
    """A finished run of a tiny random model, with the features that it reads."""
    from training.config import ModelSection
    from training.export import build_model, build_processor, write_export
    from training.features import feature_key, processor_fingerprint

    section = ModelSection(preset="tiny", modulation=modulation, seed=seed, overrides=TINY)
    model = build_model(section)
    texts = dataset.table("quadruples")["modification_text"].to_pylist()
    processor = build_processor(section, model.config, lambda: texts)
    key = feature_key(model.tower_state_hash(), processor_fingerprint(processor), "bfloat16")
    _features(root, dataset, model, processor, key)
    draft = versions.start("runs", name, "key", Made(by=modulation), root=root)
    files = write_export(model, processor, draft.url)
    steps = range(1, 41)
    history = pa.table(
        {
            "step": list(steps),
            "epoch": [(s - 1) // 10 for s in steps],
            "loss": [5.0 / s + 0.5 for s in steps],
            "temperature": [0.07] * 40,
            "beta_mean": [0.5 + s / 20 for s in steps],
            "beta_std": [0.1] * 40,
            "learning_rate": [1e-3] * 40,
            "seconds": [0.3] * 40,
        }
    )
    dev = pa.table(
        {
            "step": [10, 10, 20, 20],
            "epoch": [1, 1, 2, 2],
            "domain": ["car", "product"] * 2,
            "queries": [40] * 4,
            "R_ID@1": [10.0, 20.0, 30.0, 40.0],
            "R@1": [5.0, 10.0, 15.0, 20.0],
            "R@5": [20.0, 30.0, 40.0, 50.0],
            "seconds": [0.1] * 4,
        }
    )
    for table_name, table in (("history", history), ("dev", dev)):
        storage.write_table(draft.path(f"{table_name}.parquet"), table)
        files.append(versions.file_entry(draft.url, f"{table_name}.parquet", len(table)))
    return draft.commit(
        content_hash=versions.content_hash({f.path: f.sha256 for f in files}),
        files=files,
        parents={"dataset": dataset.manifest.content_hash},
        seconds={"train": 12.0},
        figures={"feature_key": key, "steps": 40, "loss": 0.625},
    )


def _features(root: str, dataset: versions.Version, model: Any, processor: Any, key: str) -> None:
    import torch

    from pipelines.retrieval.inputs import read_image
    from training.data import used_images
    from training.features import INDEX, store_key

    images, shard = used_images(dataset), "shards/00000.bin"
    version_key = store_key(key, images["sha256"].to_pylist())
    draft = versions.start("features", "benchmark", version_key, Made(), root=root)
    if draft.finished:
        return
    tokens = model.encode_pixels(processor.pixels([read_image(uri) for uri in images["uri"].to_pylist()]))
    tokens = tokens.to(torch.bfloat16).contiguous()
    storage.write_bytes(draft.path(shard), tokens.view(torch.uint8).numpy().tobytes())
    index = pa.table(
        {
            "image_id": images["image_id"],
            "sha256": images["sha256"],
            "shard": pa.array([0] * len(images), pa.int32()),
            "row": pa.array(range(len(images)), pa.int64()),
        }
    )
    storage.write_table(draft.path(f"{INDEX}.parquet"), index)
    files = [versions.file_entry(draft.url, p) for p in (shard, f"{INDEX}.parquet")]
    draft.commit(
        content_hash=key,
        files=files,
        parents={"dataset": dataset.manifest.content_hash},
        seconds={"embed": 2.0},
        figures={
            "feature_key": key,
            "tokens": tokens.shape[1],
            "width": tokens.shape[2],
            "dtype": "bfloat16",
        },
    )
