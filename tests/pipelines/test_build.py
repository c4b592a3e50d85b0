from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.base.command import Context, Outcome
from infra.base.config import load_recipe
from infra.base.errors import OacirError
from infra.base.versions import Version, open_version
from pipelines.build import build
from pipelines.config import BuildRecipe
from pipelines.embed import embed
from pipelines.gallery import gallery_hash
from pipelines.verify import VerifyRecipe, verify
from training.config import TrainRecipe


def recipe(root: Path, **options: object) -> BuildRecipe:
    """Thresholds for the made-up photos: blobs are alike, so only copies count as too similar."""
    loose = {"tau_valid": 4, "tau_high": 0.99, "tau_centric": 0.98, "tau_count": 2}
    tree = {"source": {"kind": "image_folder", "root": str(root)}, "thresholds": {"default": loose}}
    return BuildRecipe.model_validate(tree | {"workers": 1, "images_per_part": 16} | options)


def run(chosen: BuildRecipe, place: Path) -> tuple[Outcome, Version]:
    outcome = build(chosen, Context(root=str(place)))
    assert outcome.location is not None
    return outcome, open_version(outcome.location)


def content(version: Version) -> dict[str, list[str]]:
    """Rows of every table that names what was built, sorted; no paths."""
    tables = {}
    for name in ("images", "instances", "pairs", "quadruples", "gallery", "rejects", "splits"):
        rows = version.table(name).to_pylist()
        tables[name] = sorted(json.dumps({k: v for k, v in r.items() if k != "uri"}) for r in rows)
    return tables


@pytest.fixture(scope="module")
def photos(photo_folder: Any) -> Path:
    root = photo_folder(instances=9, images=5)
    for n in (3, 4):  # a group that is too small, and an image that two instances of one domain share
        (root / "toys/thing-08" / f"{n}.jpg").unlink()
    shutil.copy(root / "cups/thing-01/0.jpg", root / "cups/thing-02/shared.jpg")
    (root / "cups/thing-03/broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    return root


@pytest.fixture(scope="module")
def built(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> tuple[Outcome, Version]:
    return run(recipe(photos), tmp_path_factory.mktemp("root"))


@pytest.mark.ray
def test_every_image_instance_and_pair_is_accounted_for(photos: Path, built: tuple[Outcome, Version]) -> None:
    version = built[1]
    accounts = {(s, a.entity): a for s, items in version.manifest.accounts.items() for a in items}
    # 2 domains x 9 instances x 5 images - 2 + the shared and the broken one
    assert accounts["listing", "images"].kept == accounts["collect", "images"].taken_in == 90
    assert accounts["collect", "images"].rejected == {"truncated": 1} or accounts[
        "collect", "images"
    ].rejected == {"corrupt": 1}
    assert accounts["filter", "images"].taken_in == accounts["collect", "images"].kept == 89
    assert accounts["filter", "instances"].reserved == 1
    assert accounts["filter", "images"].reserved == 3
    assert accounts["annotate", "quadruples"].taken_in == accounts["filter", "pairs"].kept
    assert accounts["annotate", "quadruples"].kept == len(version.table("quadruples"))
    filtered = accounts["filter", "images"]
    assert accounts["gallery", "images"].taken_in == filtered.kept + filtered.reserved
    assert accounts["gallery", "images"].kept == len(version.table("images"))
    rejected = sum(row["records"] or 1 for row in version.table("rejects").to_pylist())
    assert rejected == sum(sum(a.rejected.values()) for a in accounts.values())


@pytest.mark.ray
def test_no_instance_image_or_content_is_in_two_splits(built: tuple[Outcome, Version]) -> None:
    version = built[1]
    where: dict[str, set[str]] = {}
    sha256 = {r["image_id"]: r["sha256"] for r in version.table("images").to_pylist()}
    for query in version.table("quadruples").to_pylist():
        used = [query["reference_id"], *query["target_ids"]]
        for name in (query["instance_id"], *used, *(sha256[i] for i in used)):
            where.setdefault(name, set()).add(query["split"])
    assert {s for splits in where.values() for s in splits} == {"train", "dev", "test"}
    assert all(len(splits) == 1 for splits in where.values())
    splits = {r["instance_id"]: r["split"] for r in version.table("splits").to_pylist()}
    assert splits["cups/thing-01"] == splits["cups/thing-02"]
    assert splits["toys/thing-08"] == "reserve"


@pytest.mark.ray
def test_galleries_hold_their_queries_and_strangers(built: tuple[Outcome, Version]) -> None:
    version = built[1]
    galleries: dict[str, dict[str, dict[str, Any]]] = {}
    for row in version.table("gallery").to_pylist():
        gallery = galleries.setdefault(row["gallery_id"], {})
        assert row["image_id"] not in gallery
        gallery[row["image_id"]] = row
    queries = version.table("quadruples").to_pylist()
    for query in queries:
        if query["split"] != "train":
            gallery = galleries[f"{query['domain']}/{query['split']}"]
            assert {query["reference_id"], *query["target_ids"]} <= gallery.keys()
    trained = {i for q in queries if q["split"] == "train" for i in (q["reference_id"], *q["target_ids"])}
    asked = {q["instance_id"] for q in queries}
    for place, gallery in galleries.items():
        assert not gallery.keys() & trained
        for row in gallery.values():
            assert row["is_distractor"] == (row["instance_id"] not in asked)
        figures = version.manifest.figures["galleries"][place]
        assert (figures["images"], figures["sha256"]) == (len(gallery), gallery_hash(gallery))
    strangers = [r["image_id"] for g in galleries.values() for r in g.values() if r["is_distractor"]]
    assert sorted(strangers) == [f"toys/thing-08/{n}.jpg" for n in range(3)]
    images = {r["image_id"]: r["split"] for r in version.table("images").to_pylist()}
    assert set(images) == trained | {i for g in galleries.values() for i in g}
    assert {images[i] for i in strangers} == {"reserve"}


@pytest.mark.ray
def test_the_hardest_distractors_are_those_most_like_the_queries_images(
    photos: Path, built: tuple[Outcome, Version], tmp_path: Path
) -> None:
    options = {"choice": "hardest", "domains": {"toys": 1}}
    version = run(recipe(photos, gallery=options), tmp_path)[1]
    members = version.table("gallery").to_pylist()
    plain = [r for r in built[1].table("gallery").to_pylist() if not r["is_distractor"]]
    assert [r for r in members if not r["is_distractor"]] == plain
    (chosen,) = (r for r in members if r["is_distractor"])
    vectors = {r["image_id"]: np.array(r["descriptor"]) for r in version.table("descriptors").to_pylist()}
    asked = [vectors[r["image_id"]] for r in plain if r["gallery_id"] == chosen["gallery_id"]]
    names = [f"toys/thing-08/{n}.jpg" for n in range(3)]
    near = {name: max(float(a @ vectors[name]) for a in asked) for name in names}
    assert chosen["image_id"] == max(near, key=near.__getitem__)


@pytest.fixture(scope="module")
def repeated(
    photo_folder: Any, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> tuple[Path, Outcome, Version]:
    """A build of photos of which every instance but the first of a domain holds the one before it, saved anew."""
    root = photo_folder(instances=9, images=5)
    for domain in ("toys", "cups"):
        folders = sorted((root / domain).iterdir())
        for before, here in itertools.pairwise(folders):
            Image.open(before / "0.jpg").save(here / "again.jpg", quality=60)
    return root, *run(recipe(root), tmp_path_factory.mktemp("repeated"))


@pytest.mark.ray
def test_near_duplicates_are_reported_and_none_lie_in_two_splits(
    repeated: tuple[Path, Outcome, Version],
) -> None:
    """Against comparing all images that the benchmark uses with all."""
    _, outcome, version = repeated
    found = version.manifest.figures["near_duplicates"]
    assert found["pairs"] >= 16  # eight a domain, and what blobs have in common by chance
    gone = {r["image_id"] for r in version.table("near_duplicates").to_pylist() if r["rejected"]}
    assert len(gone) == sum(found["images_rejected"].values()) > 0
    assert set(found["images_rejected"]) <= {"train", "dev"}  # the test split keeps its images
    rejects = version.table("rejects").to_pylist()
    assert gone == {r["key"] for r in rejects if r["stage"] == "split"}
    assert not gone & set(version.table("images")["image_id"].to_pylist())
    assert any(line.startswith("near-duplicates: ") for line in outcome.details)
    accounts = version.manifest.accounts
    (split,), (gallery,), (filtered, *_) = accounts["split"], accounts["gallery"], accounts["filter"]
    assert (split.taken_in, split.rejected) == (filtered.kept, {"near_duplicate_across_splits": len(gone)})
    assert gallery.taken_in == filtered.kept + filtered.reserved - len(gone)

    owner = {r["image_id"]: r["instance_id"] for r in version.table("instances").to_pylist()}
    splits = {r["image_id"]: r["split"] for r in version.table("images").to_pylist()}
    rows = [r for r in version.table("descriptors").to_pylist() if r["image_id"] in splits]
    near = [
        (a["image_id"], b["image_id"])
        for a, b in itertools.combinations(rows, 2)
        if owner[a["image_id"]] != owner[b["image_id"]]
        and (a["phash"] ^ b["phash"]).bit_count() <= 8
        and float(np.dot(a["descriptor"], b["descriptor"])) >= 0.9
    ]
    assert near
    assert all(splits[a] == splits[b] for a, b in near)


@pytest.mark.ray
def test_the_layout_does_not_change_which_images_give_way(
    repeated: tuple[Path, Outcome, Version], tmp_path: Path
) -> None:
    root, _, version = repeated
    other = run(recipe(root, images_per_part=1, workers=2), tmp_path)[1]
    assert other.table("near_duplicates").equals(version.table("near_duplicates"))
    assert other.manifest.content_hash == version.manifest.content_hash
    assert verify(VerifyRecipe(dataset=other.url), Context(root=str(tmp_path))).figures["faults"] == []


@pytest.mark.ray
@pytest.mark.parametrize(("per_part", "workers"), [(64, 1), (16, 2), (1, 2)])
def test_layout_and_workers_change_nothing(
    photos: Path, built: tuple[Outcome, Version], tmp_path: Path, per_part: int, workers: int
) -> None:
    _, version = run(recipe(photos, images_per_part=per_part, workers=workers), tmp_path)
    assert version.manifest.content_hash == built[1].manifest.content_hash
    assert content(version) == content(built[1])
    assert version.manifest.figures == built[1].manifest.figures
    assert version.manifest.key == built[1].manifest.key
    parts = len({f.path for f in version.manifest.files if f.path.startswith("listing/")})
    assert parts == {64: 2, 16: 5, 1: 18}[per_part]


@pytest.mark.ray
def test_the_content_moves_with_the_photos_but_another_seed_is_other_content(
    photos: Path, built: tuple[Outcome, Version], tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "elsewhere")
    moved = run(recipe(tmp_path / "elsewhere"), tmp_path / "a")[1].manifest
    assert moved.content_hash == built[1].manifest.content_hash
    assert moved.key != built[1].manifest.key
    seeded = run(recipe(photos, seed=1), tmp_path / "b")[1].manifest
    assert seeded.content_hash != built[1].manifest.content_hash


@pytest.mark.ray
def test_a_finished_build_is_a_no_op_that_says_so(photos: Path, built: tuple[Outcome, Version]) -> None:
    root = Path(built[1].url).parents[2]
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    again = build(recipe(photos, workers=2), Context(root=str(root)))
    assert again.message.startswith("nothing to do")
    assert again.location == built[0].location
    assert again.details == built[0].details
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()} == before


@pytest.mark.ray
def test_a_changed_photo_is_another_version(photos: Path, tmp_path: Path, ray_session: None) -> None:
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    chosen = recipe(root)
    first = build(chosen, Context(root=str(tmp_path / "root")))
    (root / "toys/thing-00/0.jpg").write_bytes((root / "toys/thing-05/1.jpg").read_bytes())
    second = build(chosen, Context(root=str(tmp_path / "root")))
    assert first.location != second.location
    with pytest.raises(OacirError, match="of another recipe or input"):
        build(chosen, Context(root=str(tmp_path / "root"), out=first.location))


def test_a_dry_run_states_the_plan_and_writes_nothing(photos: Path, tmp_path: Path) -> None:
    outcome = build(recipe(photos), Context(root=str(tmp_path / "root"), dry_run=True))
    assert outcome.location is None
    assert outcome.figures["images"] == {"cups": 47, "toys": 43}
    assert any("90 images" in line for line in outcome.details)
    assert any("cups: 47 images, τ_valid 4" in line for line in outcome.details)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_source_without_an_image_is_refused_also_by_a_dry_run(tmp_path: Path, dry_run: bool) -> None:
    (tmp_path / "photos/cups/a").mkdir(parents=True)
    (tmp_path / "photos/cups/a/notes.txt").touch()
    with pytest.raises(
        OacirError, match=r"holds no image; refused: \{'unsupported_format': 1\}; check source"
    ):
        build(recipe(tmp_path / "photos"), Context(root=str(tmp_path / "root"), dry_run=dry_run))


@pytest.mark.ray
def test_a_domain_without_queries_says_why(photo_folder: Any, tmp_path: Path, ray_session: None) -> None:
    root = photo_folder(domains=("boxless", "copies", "single", "small", "toys"), instances=3, images=5)
    lines = (root / "boxes.csv").read_text().splitlines()
    (root / "boxes.csv").write_text("\n".join(x for x in lines if not x.startswith("boxless")) + "\n")
    for n in range(3):
        for image in (root / "small" / f"thing-0{n}").glob("[234].jpg"):
            image.unlink()
        if n:
            shutil.rmtree(root / "single" / f"thing-0{n}")
        for image in (root / "copies" / f"thing-0{n}").glob("*.jpg"):
            first = (root / "copies" / f"thing-0{n}" / "0.jpg").read_bytes()
            image.write_bytes(first + image.name.encode())  # other bytes after the end: the same picture
    outcome, version = run(recipe(root), tmp_path)
    figures = version.manifest.figures["domains"]
    why = {domain: f["why_no_query"] for domain, f in figures.items() if "why_no_query" in f}
    assert why == {
        "boxless": "none of 60 pairs could be annotated (no_box 60)",
        "copies": "no instance keeps τ_valid = 4 images and a pair (15 images class-centric, 0 pairs too similar)",
        "single": "only one instance is valid, it is kept for training",
        "small": "no instance has τ_valid = 4 readable images (the largest has 2)",
    }
    assert any(line.startswith("small: no test query: no instance") for line in outcome.details)


@pytest.mark.ray
@pytest.mark.slow
def test_real_photos_with_nasty_files_among_them(shared_dir: Path, tmp_path: Path, ray_session: None) -> None:
    root, data = tmp_path / "photos", shared_dir / "data"
    shutil.copytree(data / "photos/subjects", root / "subjects")
    shutil.copytree(data / "nasty", root / "subjects/dog", dirs_exist_ok=True)
    shutil.copy(data / "photos/boxes_subjects_estimated.csv", root)
    options = [("source.root", str(root)), ("source.domains", "[subjects]"), ("workers", "2")]
    _, version = run(load_recipe(BuildRecipe, "photos", options), tmp_path / "root")
    known = set(version.table("listing")["image_id"].to_pylist())
    rejects = [r for r in version.table("rejects").to_pylist() if r["entity"] == "images"]
    seen = set(version.table("instances")["image_id"].to_pylist()) | {r["key"] for r in rejects}
    files = {p.relative_to(root).as_posix() for p in (root / "subjects").rglob("*") if p.is_file()}
    inside = {f for f in files if "directory.jpg/" in f}
    assert known <= seen
    assert seen == (files - inside) | {"subjects/dog/directory.jpg"}
    assert version.manifest.figures["domains"]["subjects"]["queries"]["test"] > 20


@pytest.mark.ray
def test_photos_without_boxes_make_a_benchmark_that_is_refused_and_never_embedded(
    photo_folder: Any, tmp_path: Path, ray_session: None
) -> None:
    root = photo_folder(domains=("toys",), instances=4)
    (root / "boxes.csv").unlink()
    for what in ("benchmark built", "nothing to do"):  # the second time, too
        outcome, version = run(recipe(root), tmp_path)
        assert outcome.message.startswith(what)
        assert outcome.refused is not None
        assert "none of 80 pairs could be annotated" in outcome.refused
        assert "add boxes*.csv" in outcome.refused
    with pytest.raises(
        OacirError, match=r"uses an image of it, so there is nothing to embed; .*`oacir data show"
    ):
        embed(TrainRecipe(dataset=version.url), Context(root=str(tmp_path)))
