"""The data card of an exported benchmark: what the Hub shows, and the head from which `datasets` knows its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from infra.base import versions

SPLITS = ("train", "dev", "test", "hidden", "reserve")
LICENCES = {
    "apache-2.0": "apache-2.0",
    "cc by 4.0": "cc-by-4.0",
    "cc by-sa 4.0": "cc-by-sa-4.0",
    "cc by-nc 4.0": "cc-by-nc-4.0",
    "cc by-nc-sa 4.0": "cc-by-nc-sa-4.0",
    "cc0": "cc0-1.0",
    "mit": "mit",
}
"""Licences as our tables name them → the Hub's identifiers."""


def data_card(
    version: versions.Version,
    written: Mapping[str, Mapping[str, int]],
    images: Iterable[Mapping[str, Any]],
) -> str:
    """The card: a YAML head that names the files of each configuration, then what a reader has to know."""
    manifest, figures = version.manifest, version.manifest.figures
    licences = Counter(row["licence"] or "not stated" for row in images)
    queries = sum(written["quadruples"].values())
    head = {
        "pretty_name": manifest.name,
        "language": ["en"],
        **licence_head(licences),
        "task_categories": ["image-to-image", "feature-extraction"],
        "tags": ["composed-image-retrieval", "image-retrieval", "oacir"],
        "size_categories": [_size_category(queries)],
        "configs": [
            {
                "config_name": config,
                **({"default": True} if config == "quadruples" else {}),
                "data_files": [{"split": s, "path": f"{config}/{s}-*.parquet"} for s in splits],
            }
            for config, splits in written.items()
        ],
    }
    table = [f"| {c} | " + " | ".join(f"{s.get(n, 0):,}" for n in SPLITS) + " |" for c, s in written.items()]
    first = next(iter(written["quadruples"]))
    protocol = figures.get("protocol", {})
    release = figures.get("release", {})
    lines = [
        f"# {manifest.name}",
        "",
        "Composed image retrieval: a reference image, where the benchmark anchors one a box on an object in it, and a"
        " sentence that says what should change; sought is the target image.",
        "",
        "```python",
        "from datasets import load_dataset",
        f'queries = load_dataset("<this repository>", "quadruples", split="{first}")',
        'queries[0]["image"], queries[0]["reference_box"], queries[0]["modification_text"], queries[0]["target_ids"]',
        f'images = load_dataset("<this repository>", "images", split="{next(iter(written["images"]))}")',
        "```",
        "",
        "| rows | " + " | ".join(SPLITS) + " |",
        "|---|" + "---|" * len(SPLITS),
        *table,
        "",
        "Boxes are x1, y1, x2, y2 in pixels of the upright image (EXIF orientation applied), half-open."
        " `target_ids[0]` is the primary target. An image's split is that of the queries that show it; `reserve` are"
        " distractors of the galleries; `hidden` queries have no target here.",
        "",
        "## Licences of the images",
        "",
        "Every row with an image names its licence and attribution, as its source stated them.",
        "",
        "| licence | images |",
        "|---|---|",
        *(f"| {_cell(name)} | {count:,} |" for name, count in sorted(licences.items())),
        "",
    ]
    if release:
        lines += [
            f"Imported from the release of {release['kind']}; its annotations are licensed:"
            f" {release['annotation_licence']}.",
            "",
        ]
    if protocol:
        rules = ", ".join(f"{name} = {value}" for name, value in sorted(protocol.items()))
        lines += [f"Scored as: {rules}.", ""]
    lines += [f"- {note}" for note in figures.get("notes", [])]
    lines += [
        "## Where it comes from",
        "",
        f"Made by oacir {manifest.code_version}; content hash `{manifest.content_hash}`. Galleries (SHA-256 over the"
        " sorted image ids, a line feed after each):",
        "",
        "| gallery | images | sha256 |",
        "|---|---|---|",
        *(
            f"| {_cell(place)} | {g['images']:,} | `{g['sha256']}` |"
            for place, g in sorted(figures.get("galleries", {}).items())
        ),
        "",
    ]
    return "---\n" + yaml.safe_dump(head, sort_keys=False, allow_unicode=True) + "---\n\n" + "\n".join(lines)


def licence_head(licences: Mapping[str, int]) -> dict[str, str]:
    """What the head says of the licence: one of the Hub's identifiers if all images have it, else that they differ."""
    known = {LICENCES.get(name.lower()) for name in licences}
    if len(known) == 1 and None not in known:
        return {"license": str(known.pop())}
    return {"license": "other", "license_name": "per-image", "license_details": "see the column licence"}


def _size_category(rows: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if rows < bound), "1M<n<10M")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
