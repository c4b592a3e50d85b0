"""Updates of a benchmark: only what is new is opened and annotated, and what is old stays where it was."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.errors import OacirError, VersionError
from infra.base.versions import Version, open_version
from pipelines.annotate import AnnotateStage, deal
from pipelines.annotators.plain import PlainAnnotator
from pipelines.build import build
from pipelines.config import BuildRecipe, SplitOptions
from pipelines.diff import DiffRecipe, diff
from pipelines.earlier import kept_splits, open_earlier
from pipelines.records import conform
from pipelines.stages import Part, part_path, prepare, schema_name
from pipelines.verify import VerifyRecipe, verify


def recipe(root: Path, **options: object) -> BuildRecipe:
    loose = {"tau_valid": 4, "tau_high": 0.99, "tau_centric": 0.98, "tau_count": 2}
    tree = {"source": {"kind": "image_folder", "root": str(root)}, "thresholds": {"default": loose}}
    tree["duplicates"] = {
        "max_bits": 0,
        "min_cosine": 0.999,
    }  # blobs are alike by chance, and splits decide over that
    return BuildRecipe.model_validate(tree | {"workers": 1, "images_per_part": 16} | options)


def run(chosen: BuildRecipe, place: Path) -> tuple[Outcome, Version]:
    outcome = build(chosen, Context(root=str(place)))
    assert outcome.location is not None
    return outcome, open_version(outcome.location)


def rows(
    version: Version, table: str, without: tuple[str, ...] = ("split", "uri")
) -> dict[str, dict[str, Any]]:
    found = version.table(table).to_pylist()
    name = next(iter(found[0]))
    return {r[name]: {k: v for k, v in r.items() if k not in without} for r in found}


@pytest.fixture(scope="module")
def photos(photo_folder: Any) -> Path:
    """Sixteen instances of five photos, one photo broken, one copied, one with a box beside the picture."""
    root: Path = photo_folder(instances=8, images=5)
    (root / "cups/thing-03/broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    shutil.copy(root / "cups/thing-01/0.jpg", root / "cups/thing-01/copy.jpg")
    with (root / "boxes.csv").open("a") as boxes:
        shutil.copy(root / "cups/thing-02/0.jpg", root / "cups/thing-04/other.jpg")
        boxes.write("cups/thing-04/other.jpg,500,500,10,10,test\n")
    return root


@pytest.fixture(scope="module")
def first(photos: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Version:
    return run(recipe(photos), tmp_path_factory.mktemp("root"))[1]


def blank(photos: Path, keep: set[str]) -> None:
    """Replace the bytes of every photo but some by zeros of the same size and time: who opens one must refuse it."""
    for file in photos.rglob("*.jpg"):
        if file.relative_to(photos).as_posix() not in keep:
            status = file.stat()
            file.write_bytes(bytes(status.st_size))
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.ray
def test_an_unchanged_collection_is_the_same_benchmark_without_opening_a_photo(
    photos: Path, first: Version, tmp_path: Path
) -> None:
    blind = tmp_path / "photos"
    shutil.copytree(photos, blind)
    blank(blind, {"cups/thing-01/copy.jpg"})
    outcome, version = run(recipe(blind, update=first.url, images_per_part=7), tmp_path / "root")
    assert version.manifest.content_hash == first.manifest.content_hash
    # 80 photos, the broken one, the copied one, the other one; the copy is told from its bytes, so it is read again
    assert version.manifest.figures["taken_over"]["images"] == 82
    assert version.manifest.parents == {"earlier": first.manifest.content_hash}
    assert any(line.startswith("taken over from the earlier version: 82 images") for line in outcome.details)


@pytest.mark.ray
def test_an_instance_gets_its_split_back_after_the_reserve(
    photos: Path, first: Version, tmp_path: Path
) -> None:
    def splits(version: Version, column: str = "split") -> dict[str, str]:
        return {s["instance_id"]: s[column] for s in version.table("splits").to_pylist()}

    before = splits(first)
    fell = sorted(i for i, split in before.items() if split == "train")[:4]
    less = tmp_path / "photos"
    shutil.copytree(photos, less)
    for instance in fell:
        for n in range(3):
            (less / instance / f"{n}.jpg").unlink()
    lines = (photos / "boxes.csv").read_text().splitlines()
    there = [line for line in lines[1:] if (less / line.split(",")[0]).exists()]
    (less / "boxes.csv").write_text("\n".join([lines[0], *there, ""]))

    second = run(recipe(less, update=first.url), tmp_path / "root")[1]
    assert splits(second) == before | dict.fromkeys(fell, "reserve")
    assert {i: s for i, s in splits(second, "last_split").items() if s} == dict.fromkeys(fell, "train")
    third = run(recipe(less, update=second.url, seed=1), tmp_path / "root")[1]  # still few
    assert splits(third, "last_split") == splits(second, "last_split")
    fourth = run(recipe(photos, update=third.url, seed=2), tmp_path / "root")[1]
    assert splits(fourth) == before
    assert set(splits(fourth, "last_split").values()) == {None}


@pytest.mark.ray
def test_new_photos_are_opened_and_described_and_the_old_ones_are_not(
    photos: Path, first: Version, photo_folder: Any, tmp_path: Path
) -> None:
    grown = tmp_path / "photos"
    shutil.copytree(photos, grown)
    more = photo_folder(domains=("toys",), instances=12, images=6)
    new = {f"toys/thing-{n:02d}/{i}.jpg" for n in range(8, 12) for i in range(6)}
    new |= {"toys/thing-00/5.jpg", "toys/thing-05/5.jpg"}  # a photo more of two known instances
    for name in new:
        (grown / name).parent.mkdir(exist_ok=True)
        # the folder's pictures begin anew with each folder: turned, they are others
        Image.open(more / name).transpose(Image.Transpose.ROTATE_90).save(grown / name)
    with (grown / "boxes.csv").open("a") as boxes:
        boxes.writelines(f"{name},8,8,24,16,test\n" for name in sorted(new))
    fresh = run(recipe(grown), tmp_path / "fresh")[1]
    blank(grown, {*new, "cups/thing-01/copy.jpg"})
    _, version = run(recipe(grown, update=first.url), tmp_path / "root")

    known = version.manifest.figures["taken_over"]
    opened = len(version.table("listing")) - known["images"]
    assert opened == len(new) + 1  # and the copy, which only its bytes tell
    for table in ("instances", "descriptors", "measures", "pairs"):
        assert rows(version, table) == rows(fresh, table)
    # texts of pairs between old photos are the old ones, those of others as a build of everything writes them
    quadruples = rows(version, "quadruples")
    assert quadruples == rows(fresh, "quadruples")
    old = rows(first, "quadruples")
    assert known["pairs"] >= len(quadruples.keys() & old.keys()) > 0
    splits = {s["instance_id"]: s["split"] for s in version.table("splits").to_pylist()}
    before = {s["instance_id"]: s["split"] for s in first.table("splits").to_pylist()}
    assert {i: splits[i] for i in before} == before
    assert {splits[f"toys/thing-{n:02d}"] for n in range(8, 12)} <= {"train", "dev", "test"}
    changes = diff(DiffRecipe(before=first.url, after=version.url), Context(root=""))
    assert changes.figures["instances"]["added"] == 4
    assert changes.figures["instances"]["moved"] == changes.figures["instances"]["removed"] == 0
    assert changes.figures["images"]["moved"] == changes.figures["images"]["changed"] == 0
    assert verify(VerifyRecipe(dataset=version.url), Context(root="")).figures["faults"] == []


@pytest.mark.ray
def test_a_photo_that_changed_is_opened_again(photos: Path, first: Version, tmp_path: Path) -> None:
    changed = tmp_path / "photos"
    shutil.copytree(photos, changed)
    turned = Image.open(photos / "toys/thing-00/0.jpg").transpose(Image.Transpose.ROTATE_90)
    turned.save(changed / "toys/thing-00/0.jpg")
    version = run(recipe(changed, update=first.url), tmp_path / "root")[1]
    fresh = run(recipe(changed), tmp_path / "fresh")[1]
    assert version.manifest.figures["taken_over"]["images"] == 81
    assert rows(version, "descriptors") == rows(fresh, "descriptors")
    assert rows(version, "quadruples") == rows(fresh, "quadruples")


@pytest.mark.ray
def test_an_update_is_another_version_and_doing_it_again_is_a_no_op(
    photos: Path, first: Version, tmp_path: Path
) -> None:
    chosen = recipe(photos, update=f"benchmark/{first.manifest.key}")
    root = str(Path(first.url).parents[2])
    made = build(chosen, Context(root=root))
    assert made.location != first.url
    assert build(chosen, Context(root=root)).message.startswith("nothing to do")
    other = chosen.model_copy(update={"update": str(made.location)})
    assert build(other, Context(root=root)).message.startswith("nothing to do")  # the same content before


@pytest.mark.ray
@pytest.mark.parametrize("moment", ["unreadable", "timeout"])
def test_verdicts_on_the_bytes_are_taken_over_but_not_those_of_a_bad_moment(
    photos: Path, first: Version, tmp_path: Path, moment: str
) -> None:
    place = tmp_path / "version"
    shutil.copytree(first.url, place)
    (number,) = (
        n
        for n in range(len(first.table_files("listing")))
        if "cups/thing-03/broken.jpg"
        in storage.read_table(first.path(part_path("listing", n)))["image_id"].to_pylist()
    )
    listing = storage.read_table(first.path(part_path("listing", number)))
    rejects = part_path("rejects/collect", number)

    def known() -> dict[str, Any]:
        return open_earlier("nowhere", str(place), recipe(photos)).images(listing)

    refusal = known()["cups/thing-03/broken.jpg"].refusal
    assert refusal is not None
    assert refusal.reason in ("truncated", "corrupt")
    old = storage.read_table(str(place / rejects))
    changed = [r | {"reason": moment} for r in old.to_pylist()]
    storage.write_table(str(place / rejects), pa.Table.from_pylist(changed, old.schema))
    assert "cups/thing-03/broken.jpg" not in known()


@pytest.mark.ray
def test_an_unclear_variant_is_looked_at_again_under_another_category(
    photos: Path, first: Version, tmp_path: Path
) -> None:
    place = tmp_path / "version"
    shutil.copytree(first.url, place)
    (number, listing) = next(
        (n, table)
        for n in range(len(first.table_files("listing")))
        if "cups/thing-03/broken.jpg"
        in (table := storage.read_table(first.path(part_path("listing", n))))["image_id"].to_pylist()
    )
    rejects = part_path("rejects/collect", number)
    old = storage.read_table(first.path(rejects))
    unclear = [r | {"reason": "variant_unclear"} for r in old.to_pylist()]
    storage.write_table(str(place / rejects), pa.Table.from_pylist(unclear, old.schema))
    earlier = open_earlier("nowhere", str(place), recipe(photos))
    assert "cups/thing-03/broken.jpg" in earlier.images(listing)
    renamed = [row | {"category": "mug"} for row in listing.to_pylist()]
    found = earlier.images(pa.Table.from_pylist(renamed, listing.schema))
    assert "cups/thing-03/broken.jpg" not in found
    assert "cups/thing-03/0.jpg" in found


@pytest.mark.ray
@pytest.mark.parametrize("known", [True, False])
def test_known_pairs_are_not_given_to_the_annotator(photos: Path, first: Version, known: bool) -> None:
    asked: list[str] = []

    class Spy(PlainAnnotator):
        def annotate(self, pairs: Any, seed: int) -> Any:
            asked.extend(pair.pair_id for pair in pairs)
            return super().annotate(pairs, seed)

    earlier = open_earlier("nowhere", first.url, recipe(photos)).for_workers()
    if not known:
        earlier = dataclasses.replace(earlier, texts_of=frozenset())
    stage = AnnotateStage("plain", recipe(photos).thresholds, 0, earlier)
    prepare(stage, first.url)
    stage._writer = Spy()
    tables = {t: storage.read_table(first.path(part_path(t, 1))) for t in stage.inputs}
    result = stage(Part(1, tables))
    pairs = tables["pairs"]["pair_id"].to_pylist()
    assert len(pairs) > 50
    assert asked == ([] if known else pairs)
    for table in ("quadruples", "rejects/annotate"):
        before = storage.read_table(first.path(part_path(table, 1)))
        assert conform(result.tables[table], schema_name(table)).to_pylist() == before.to_pylist()


@pytest.mark.ray
def test_a_pair_that_took_too_long_is_annotated_again(photos: Path, first: Version, tmp_path: Path) -> None:
    place = tmp_path / "version"
    shutil.copytree(first.url, place)
    earlier = open_earlier("nowhere", str(place), recipe(photos))
    stage = AnnotateStage("plain", recipe(photos).thresholds, 0, earlier)
    prepare(stage, first.url)
    number, refused = next(
        (n, table)
        for n in range(len(first.table_files("listing")))
        if len(table := storage.read_table(first.path(part_path("rejects/annotate", n))))
    )
    tables = {t: storage.read_table(first.path(part_path(t, number))) for t in stage.inputs}
    pairs = stage._pairs(tables)
    names, late = {p.pair_id for p in pairs}, refused["key"][0].as_py()
    assert earlier.answers(tables["listing"], pairs).keys() == names
    changed = [r | ({"reason": "timeout"} if r["key"] == late else {}) for r in refused.to_pylist()]
    where = str(place / part_path("rejects/annotate", number))
    storage.write_table(where, pa.Table.from_pylist(changed, refused.schema))
    assert earlier.answers(tables["listing"], pairs).keys() == names - {late}


@pytest.mark.ray
def test_another_writer_writes_everything_again(photos: Path, first: Version, tmp_path: Path) -> None:
    loose = {"tau_valid": 4, "tau_high": 0.99, "tau_centric": 0.98, "tau_count": 2, "max_words": 29}
    chosen = recipe(photos, update=first.url, thresholds={"default": loose})
    known = run(chosen, tmp_path)[1].manifest.figures["taken_over"]
    assert (known["images"], known["pairs"]) == (82, 0)


@pytest.mark.ray
def test_what_was_measured_in_another_way_is_not_taken_over(
    photos: Path, first: Version, tmp_path: Path
) -> None:
    def refused(version: str, **options: object) -> str:
        with pytest.raises(OacirError) as error:
            build(recipe(photos, update=version, **options), Context(root=str(tmp_path)))
        return str(error.value)

    assert "limits.min_side_px (16, now 20)" in refused(first.url, limits={"min_side_px": 20})
    other = tmp_path / "other"
    shutil.copytree(first.url, other)
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(manifest.replace("offline-hog-colour-1", "offline-hog-colour-0"))
    assert "described by offline-hog-colour-0, today's descriptor is" in refused(str(other))
    gone = tmp_path / "gone"
    shutil.copytree(first.url, gone)
    shutil.rmtree(gone / "_work")
    assert "working tables (_work/images/collected) are gone" in refused(str(gone))
    assert "a name alone means the newest" in refused("benchmark")
    with pytest.raises(VersionError, match="no finished datasets 'none/such'"):
        build(recipe(photos, update="none/such"), Context(root=str(tmp_path)))


def group(name: str, pairs: int = 10, state: str = "valid") -> dict[str, Any]:
    return {
        "instance_id": name,
        "domain": "d",
        "category": "c",
        "state": state,
        "pairs": pairs,
        "boxed": pairs,
    }


def dealt(
    groups: list[dict[str, Any]], keep: dict[str, str], links: list[tuple[str, str]] | None = None
) -> dict[str, str]:
    found = deal(groups, links or [], SplitOptions(test_share=0.25, dev_share=0.25), 0.2, 0, keep)
    return {row["instance_id"]: row["split"] for row in found}


def test_kept_splits_stay_and_the_new_instances_fill_up_the_shares() -> None:
    old = {f"a{n}": "train" for n in range(6)}
    new = dealt([group(i) for i in (*old, "b0", "b1", "b2", "b3", "b4", "b5")], old)
    assert {i: new[i] for i in old} == old
    # of 120 pairs 30 are wanted for test: three of the new ones; of nine others a quarter, two, for dev
    assert sorted(new[f"b{n}"] for n in range(6)) == ["dev", "dev", "test", "test", "test", "train"]


def test_what_is_full_already_gets_nothing_new() -> None:
    old = {"a0": "train", "a1": "test", "a2": "test", "a3": "dev", "a4": "dev", "a5": "train"}
    new = dealt([group(i) for i in (*old, "b0", "b1")], old)
    assert (new["b0"], new["b1"]) == ("train", "train")


def test_a_new_instance_goes_where_the_kept_one_is_that_holds_the_same_bytes() -> None:
    old = {"a0": "test", "a1": "train", "a2": "train"}
    new = dealt([group(i) for i in (*old, "b0")], old, [("a0", "b0"), ("a1", "a0")])
    assert (new["a0"], new["a1"], new["b0"]) == (
        "test",
        "train",
        "test",
    )  # kept ones part where they were parted


def test_the_split_of_an_instance_in_the_reserve_is_remembered() -> None:
    old = dict.fromkeys(("a0", "a1", "a2", "a3"), "train")
    fell = [group("a0", state="reserve"), *(group(i) for i in ("a1", "a2", "a3"))]
    found = deal(fell, [], SplitOptions(test_share=0.25, dev_share=0), 0.2, 0, old)
    assert kept_splits(found) == old
    # without it the only one that is free would become the test split
    again = [group(i) for i in old]
    assert dealt(again, {i: s for i, s in old.items() if i != "a0"})["a0"] == "test"
    assert dealt(again, kept_splits(found))["a0"] == "train"


def test_the_split_of_a_version_that_remembers_none_is_read() -> None:
    rows = [{"instance_id": "a", "split": "dev"}, {"instance_id": "b", "split": "reserve"}]
    assert kept_splits(rows) == {"a": "dev"}


def test_an_instance_that_is_no_longer_valid_goes_to_the_reserve() -> None:
    assert dealt([group("a0", state="reserve"), group("a1"), group("a2")], {"a0": "test"})["a0"] == "reserve"
