"""What all released benchmarks share, on hand-made queries."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_release import write_json

from infra.base.errors import OacirError
from pipelines.records import REASONS
from pipelines.sources.released.base import (
    Release,
    ReleaseConfig,
    ReleaseFiles,
    as_box,
    images_of,
    present,
    relative,
)


def release(root: Path, pairs: list[tuple[str, str]] = ()) -> Release:  # type: ignore[assignment]
    """Training queries from one letter to another, one an image."""
    found = Release("test", "MIT", ReleaseFiles(ReleaseConfig(source=str(root))))
    for number, names in enumerate(pairs):
        ids = [found.image(f"d/{name}", "d", name) for name in names]
        found.ask(f"q{number:02d}", "d", "train", ids[0], ids[1:], "a change")
    return found


def test_dev_takes_whole_groups_and_shares_no_image_with_training(tmp_path: Path) -> None:
    # three chains: a-b-c-d (3 queries), e-f (1), g-h-i (2), and ten single pairs
    chains = [("a", "b"), ("b", "c"), ("c", "d"), ("e", "f"), ("g", "h"), ("h", "i")]
    pairs = [*chains, *((f"s{n}", f"t{n}") for n in range(10))]
    for seed in range(5):
        found = release(tmp_path, pairs)
        found.hold_out(0.25, seed)
        dev = [q for q in found.quadruples if q["split"] == "dev"]
        train = [q for q in found.quadruples if q["split"] == "train"]
        assert (len(dev), len(train)) == (4, 12)  # a quarter of sixteen, exact because of the single pairs
        shown = {i for q in dev for i in images_of(q)}
        assert not shown & {i for q in train for i in images_of(q)}
        assert set(found.galleries["d/dev"]) == shown
        turned = release(tmp_path, pairs[::-1])
        turned.hold_out(0.25, seed)
        assert {q["reference_id"] for q in turned.quadruples if q["split"] == "dev"} == {
            q["reference_id"] for q in dev
        }


def test_queries_of_one_instance_stay_together(tmp_path: Path) -> None:
    found = release(tmp_path)
    for number in range(8):
        ids = [
            found.image(f"d/{number}{side}", "d", f"{number}{side}", instance_id=f"d/i{number // 4}")
            for side in "ab"
        ]
        found.ask(f"q{number}", "d", "train", ids[0], ids[1:], "t", instance_id=f"d/i{number // 4}")
    found.hold_out(0.5, 0)
    assert sorted(q["split"] for q in found.quadruples) == ["dev"] * 4 + ["train"] * 4
    assert len({(q["instance_id"], q["split"]) for q in found.quadruples}) == 2


def test_one_group_that_holds_most_queries_stays_in_training(tmp_path: Path) -> None:
    found = release(tmp_path, [(f"n{i}", f"n{i + 1}") for i in range(40)])
    found.hold_out(0.05, 0)
    assert {q["split"] for q in found.quadruples} == {"train"}


def test_what_asks_nothing_or_answers_itself_is_refused_with_a_reason(tmp_path: Path) -> None:
    found = release(tmp_path)
    a, b = (found.image(f"d/{n}", "d", n) for n in "ab")
    assert not found.ask("empty", "d", "test", a, [b], " \n")
    assert not found.ask("itself", "d", "test", a, [a], "the same")
    assert found.ask("hidden", "d", "hidden", a, [], " ")
    assert [(r["key"], r["reason"]) for r in found.refused] == [
        ("empty", "no_text"),
        ("itself", "target_is_reference"),
    ]
    assert {r["reason"] for r in found.refused} <= REASONS
    (query,) = found.check().quadruples
    # without a target or an instance, the query's is its reference
    assert (query["target_ids"], query["instance_id"]) == ([], "d/a")


def test_a_release_that_contradicts_itself_is_an_error(tmp_path: Path) -> None:
    twice = release(tmp_path, [("a", "b")])
    twice.ask("q00", "d", "train", "d/a", ["d/b"], "again")
    with pytest.raises(OacirError, match="1 query ids occur twice, first q00"):
        twice.check()
    unnamed = release(tmp_path)
    unnamed.ask("q", "d", "train", "d/x", ["d/y"], "t")
    with pytest.raises(OacirError, match="query q uses the unnamed image d/x"):
        unnamed.check()


def test_boxes_and_paths_are_judged() -> None:
    assert as_box([1, 2, 3, 4.5]) == (1.0, 2.0, 3.0, 4.5)
    for wrong in (None, [1, 2, 3], [3, 2, 1, 4], [1, 2, 1, 4], [0, 0, float("nan"), 1], ["a", 0, 1, 1]):
        assert as_box(wrong) is None
    assert relative("./dev/a.png") == "dev/a.png"
    assert relative("train\\b.jpg") == "train/b.jpg"
    for wrong in ("../x.jpg", "/etc/x.jpg", ".", "a/../../x"):
        with pytest.raises(OacirError, match="below the folder of images"):
            relative(wrong)


def test_the_fingerprint_names_what_was_read_and_the_images(tmp_path: Path) -> None:
    def fingerprint() -> str:
        files = ReleaseFiles(ReleaseConfig(source=str(tmp_path), images=str(tmp_path / "images")))
        files.json("a.json")
        return files.fingerprint(["x.jpg"])

    write_json(tmp_path, "a.json", [1])
    (tmp_path / "images").mkdir()
    found = [fingerprint()]
    (tmp_path / "images/x.jpg").write_bytes(b"1")
    found.append(fingerprint())
    (tmp_path / "images/other.jpg").write_bytes(b"1")
    assert fingerprint() == found[-1]
    write_json(tmp_path, "a.json", [1, 2])
    found.append(fingerprint())
    assert len(set(found)) == 3


def test_splits_are_those_that_are_there_and_an_asked_one_must_be(tmp_path: Path) -> None:
    write_json(tmp_path, "val.json", [])
    files = ReleaseFiles(ReleaseConfig(source=str(tmp_path)))
    paths = {"train": "train.json", "val": "val.json"}
    assert present(files, None, paths) == ["val"]
    with pytest.raises(OacirError, match=r"train\.json is missing; set release\.source"):
        present(files, ["train"], paths)
    with pytest.raises(OacirError, match=r"none of train\.json is there"):
        present(files, None, {"train": "train.json"})


def test_a_file_that_is_no_json_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1,")
    with pytest.raises(OacirError, match=r"a\.json: not valid JSON"):
        ReleaseFiles(ReleaseConfig(source=str(tmp_path))).json("a.json")
