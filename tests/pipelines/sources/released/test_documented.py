"""docs/benchmarks.md says of the real annotation files what the readers find in them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from small_release import write_json

from pipelines.sources.released import circo, cirr, fashioniq, genecis
from pipelines.sources.released.base import Release

PAGE = Path(__file__).parents[4] / "docs/benchmarks.md"


@pytest.fixture(scope="module")
def table() -> set[tuple[str, ...]]:
    """Cells of the rows of the page's last table."""
    section = PAGE.read_text().split("## What the real annotation files hold")[1].split("## Export")[0]
    lines = [
        line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| release")
    ]
    return {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines}


def asked(release: Release, domain: str) -> Counter[str]:
    return Counter(q["split"] for q in release.quadruples if q["domain"] == domain)


def test_every_figure_is_what_is_parsed(
    shared_dir: Path, tmp_path: Path, table: set[tuple[str, ...]]
) -> None:
    source = shared_dir / "data/annotations"
    found = cirr.read(cirr.CirrConfig(source=str(source / "cirr")))
    n, g = asked(found, "cirr"), {k: f"{len(v):,}" for k, v in found.galleries.items()}
    expected = {
        ("CIRR", "val", f"{found.records['val']:,}", "test", f"{n['test']:,}", g["cirr/test"]),
        ("CIRR", "test1", f"{found.records['test1']:,}", "hidden", f"{n['hidden']:,}", g["cirr/hidden"]),
    }
    fashion = str(source / "fashioniq")
    found = fashioniq.read(fashioniq.FashionIqConfig(source=fashion, protocol="split"))
    triplets = fashioniq.read(
        fashioniq.FashionIqConfig(source=fashion, protocol="val_triplets", splits=["val"])
    )
    g = {k: f"{len(v):,}" for k, v in found.galleries.items()}
    for d in ("dress", "shirt", "toptee"):
        n, r = asked(found, d), {s: f"{found.records[f'{d} {s}']:,}" for s in ("train", "val", "test")}
        name, other = f"FashionIQ {d}", f"{len(triplets.galleries[f'{d}/test']):,}"
        expected |= {
            (
                name,
                "train",
                r["train"],
                "train + dev",
                f"{n['train']:,} + {n['dev']:,}",
                f"{g[f'{d}/dev']} (dev)",
            ),
            (name, "val", r["val"], "test", f"{n['test']:,}", f"{g[f'{d}/test']} (val_triplets: {other})"),
            (name, "test", r["test"], "hidden", f"{n['hidden']:,}", g[f"{d}/hidden"]),
        }
    named: set[int] = set()
    for split in ("val", "test"):
        for entry in json.loads((source / f"circo/annotations/{split}.json").read_text()):
            named |= {entry["reference_img_id"], *entry.get("gt_img_ids", ())}
    write_json(tmp_path, circo.INFO, {"images": [{"id": i, "file_name": f"{i}.jpg"} for i in sorted(named)]})
    found = circo.read(circo.CircoConfig(source=str(source / "circo"), images=str(tmp_path)))
    n = asked(found, "circo")
    expected |= {
        ("CIRCO", split, f"{found.records[split]:,}", ours, f"{n[ours]:,}", "COCO's index")
        for split, ours in circo.SPLITS.items()
    }
    found = genecis.read(genecis.GenecisConfig(source=str(source / "genecis")))
    for task, records in found.records.items():
        n, size = asked(found, task), len(found.galleries[f"{task}/test"])
        expected.add((f"GeneCIS {task}", "val", f"{records:,}", "test", f"{n['test']:,}", f"{size:,}"))
    assert table == expected
