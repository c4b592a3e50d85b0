"""Builds that split groups: every variant is an instance, nothing else changes, and an update opens only new photos."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from infra.base.command import Context
from infra.base.errors import OacirError
from infra.base.versions import Version, open_version
from pipelines.build import build
from pipelines.config import BuildRecipe

pytestmark = pytest.mark.ray
COLOURS = {"red": (200, 20, 20), "blue": (20, 30, 200)}
LOOSE = {"tau_valid": 3, "tau_high": 0.9999, "tau_centric": 0.9999, "tau_count": 3}


def car(root: Path, name: str, colour: tuple[int, int, int] | None, seed: int) -> None:
    """A body in the middle of a busy ground; in stripes of all colours without one."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(60, 200, (8, 8, 3), dtype=np.uint8)).resize((96, 96))
    pen = ImageDraw.Draw(image)
    x, y = (int(v) for v in rng.integers(22, 30, 2))
    if colour:
        pen.rectangle((x, y, x + 44, y + 44), fill=colour)
    else:
        for n, stripe in enumerate(("red", "yellow", "green", "blue", "white", "black", "purple", "orange")):
            pen.rectangle((x + 6 * n, y, x + 6 * n + 6, y + 44), fill=stripe)
    path = root / "car" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)
    boxes = root / "boxes.csv"
    if not boxes.exists():
        boxes.write_text("image_path,x,y,w,h,box_source\n")
    with boxes.open("a") as stream:
        stream.write(f"car/{name},{x},{y},44,44,test\n")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four models, each in red and blue, and a photo that shows neither."""
    root = tmp_path_factory.mktemp("cars")
    for model in range(4):
        for n in range(5):
            for shift, (name, colour) in enumerate(COLOURS.items()):
                car(root, f"model-{model}/{name}-{n}.jpg", colour, 100 * model + 10 * n + shift)
    car(root, "model-0/striped.jpg", None, 7)
    return root


def made(photos: Path, root: Path, **changes: Any) -> Version:
    tree = {
        "name": "cars",
        "source": {"kind": "image_folder", "root": str(photos)},
        "thresholds": {"default": LOOSE},
        "variants": {"by": "colour"},
        "split": {"test_share": 0.3, "dev_share": 0.0},
        "images_per_part": 16,
        "workers": 1,
    }
    return open_version(
        str(build(BuildRecipe.model_validate(tree | changes), Context(root=str(root))).location)
    )


@pytest.fixture(scope="module")
def by_colour(ray_session: None, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Version:
    return made(photos, tmp_path_factory.mktemp("root"))


def colour_of(image_id: str) -> str:
    return image_id.rsplit("/", 1)[1].split("-")[0]


def test_every_colour_is_an_instance_and_no_pair_crosses_it(by_colour: Version) -> None:
    rows = by_colour.table("instances").to_pylist()
    assert len(rows) == 40
    for row in rows:
        colour = colour_of(row["image_id"])
        assert row["variant"] == colour
        assert row["instance_id"].endswith(f"~{colour}")
    assert len({row["instance_id"] for row in rows}) == 8
    pairs = by_colour.table("pairs").to_pylist()
    assert len(pairs) == 8 * 5 * 4
    assert all(colour_of(p["reference_id"]) == colour_of(p["target_id"]) for p in pairs)
    assert by_colour.table("splits").num_rows == 8
    # the rows of all tables of a part still belong together
    for name in ("images", "measures", "descriptors"):
        assert set(by_colour.table(name)["image_id"].to_pylist()) >= {r["image_id"] for r in rows}
    assert all(image["split"] for image in by_colour.table("images").to_pylist())


def test_a_photo_that_shows_no_variant_is_rejected_and_counted(by_colour: Version) -> None:
    (account,) = (a for a in by_colour.manifest.accounts["collect"] if a.entity == "images")
    assert (account.taken_in, account.kept, account.rejected) == (41, 40, {"variant_unclear": 1})
    (row,) = by_colour.table("rejects/collect").to_pylist()
    assert row["key"] == "car/model-0/striped.jpg"
    assert row["reason"] == "variant_unclear"
    assert "model-0, by colour" in row["detail"]


def test_an_update_takes_over_what_it_knows_of_the_variants(
    by_colour: Version, photos: Path, tmp_path: Path
) -> None:
    more = tmp_path / "cars"
    shutil.copytree(photos, more)
    car(more, "model-1/red-9.jpg", COLOURS["red"], 99)
    first = made(more, tmp_path / "root")
    before = {r["instance_id"]: r["split"] for r in first.table("splits").to_pylist()}
    car(more, "model-2/blue-9.jpg", COLOURS["blue"], 100)
    second = made(more, tmp_path / "root", update=first.url)
    assert second.manifest.figures["taken_over"]["images"] == 42
    whole = made(more, tmp_path / "other")
    columns = ["image_id", "instance_id", "variant"]
    key = [("image_id", "ascending")]
    ours, anew = (v.table("instances", columns).sort_by(key) for v in (second, whole))
    assert ours.equals(anew)
    assert {r["instance_id"]: r["split"] for r in second.table("splits").to_pylist()} == before
    with pytest.raises(OacirError, match=r"was built with another variants\.by \(colour, now none\)"):
        made(more, tmp_path / "root", update=first.url, variants={"by": "none"})


def test_clusters_split_without_names(ray_session: None, photos: Path, tmp_path: Path) -> None:
    version = made(photos, tmp_path, variants={"by": "cluster", "min_cosine": 0.55})
    groups: dict[str, set[str]] = {}
    for row in version.table("instances").to_pylist():
        groups.setdefault(row["instance_id"], set()).add(colour_of(row["image_id"]))
    assert all(len(colours) == 1 for colours in groups.values()), "a cluster mixes colours"
    assert len(groups) >= 8
    assert all(v is not None for v in version.table("descriptors")["object"].to_pylist())


def test_other_domains_keep_their_groups(ray_session: None, photos: Path, tmp_path: Path) -> None:
    both = tmp_path / "photos"
    shutil.copytree(photos, both)
    shutil.copytree(photos / "car" / "model-1", both / "shoe" / "model-1")
    version = made(both, tmp_path, variants={"by": "colour", "domains": ["shoe"]})
    rows = [row for row in version.table("instances").to_pylist() if row["image_id"].startswith("car/")]
    assert len({row["instance_id"] for row in rows}) == 4
    assert {row["variant"] for row in rows} == {None}
    assert version.manifest.figures["domains"]["shoe"]["variants"] == 2
    assert "variants" not in version.manifest.figures["domains"]["car"]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("section", "value"),
    [("variants", {"by": "colour", "domains": ["cars"]}), ("gallery", {"domains": {"cars": 9}})],
)
def test_a_domain_that_the_source_lacks_is_refused_before_a_photo_is_opened(
    photos: Path, tmp_path: Path, section: str, value: dict[str, Any], dry_run: bool
) -> None:
    tree = {"source": {"kind": "image_folder", "root": str(photos)}, "thresholds": {"default": LOOSE}}
    chosen = BuildRecipe.model_validate(tree | {section: value})
    with pytest.raises(OacirError, match=rf"{section}\.domains names cars; the source's domains are car$"):
        build(chosen, Context(root=str(tmp_path), dry_run=dry_run))


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (["cat", "care"], "care, cat, which the source does not have; thresholds.default is for car"),
        (
            ["car", "cat"],
            "cat, which the source does not have; thresholds.default is for none of its domains",
        ),
        (["car"], None),
    ],
)
def test_thresholds_for_a_domain_that_the_source_lacks_are_told(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, named: list[str], told: str | None
) -> None:
    tree = {"source": {"kind": "image_folder", "root": str(photos)}}
    thresholds = {"default": LOOSE, "domains": dict.fromkeys(named, LOOSE)}
    chosen = BuildRecipe.model_validate(tree | {"thresholds": thresholds})
    build(chosen, Context(root=str(tmp_path), dry_run=True))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ([f"thresholds.domains names {told}"] if told else [])
