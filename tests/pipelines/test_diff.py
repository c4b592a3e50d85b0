from __future__ import annotations

from pathlib import Path
from typing import Any

from small_versions import rows_of, write_version

from infra.base.command import Context, Outcome
from pipelines.diff import DiffRecipe, Record, compare, diff, recipe_changes


def run(before: str, after: str, **options: Any) -> Outcome:
    return diff(DiffRecipe(before=before, after=after, **options), Context(root="nowhere"))


def test_what_was_added_removed_changed_and_moved_is_counted_and_named(tmp_path: Path) -> None:
    old = rows_of({"toys/a": "train", "toys/b": "test", "toys/c": "train"})
    new = rows_of({"toys/a": "train", "toys/b": "train", "toys/d": "dev"}, images=3)
    new["images"][0]["sha256"] = "0" * 64  # toys/a/0.jpg has other bytes
    new["quadruples"][0]["modification_text"] = "put it on a chair"
    first, second = write_version(tmp_path, old), write_version(tmp_path, new, seed=1)
    outcome = run(first.url, second.url, names=2)
    instances, images, quadruples = (outcome.figures[k] for k in ("instances", "images", "quadruples"))
    assert instances == {
        "before": 3, "after": 3, "added": 1, "removed": 1, "changed": 0, "moved": 1,
        "moves": {"test → train": 1},
        "first": {"added": ["toys/d"], "removed": ["toys/c"], "moved": ["toys/b"]},
    }  # fmt: skip
    # added: a third image of a and b, three of d
    assert [images[k] for k in ("before", "after", "added", "removed", "changed", "moved")] == [
        6,
        9,
        5,
        2,
        1,
        2,
    ]
    assert images["first"]["added"] == ["toys/a/2.jpg", "toys/b/2.jpg"]
    assert images["first"]["changed"] == ["toys/a/0.jpg"]
    # a/0's text changed; a/1 and b/1, which led back to the first image, now lead to the third
    assert quadruples["changed"] == 3
    assert outcome.figures["recipe"] == {"seed": ("0", "1")}
    text = "\n".join(outcome.details)
    assert "moved (test → train 2): toys/b/0.jpg, toys/b/1.jpg" in text
    assert "added: toys/a/2.jpg, toys/b/2.jpg, …" in text
    assert outcome.message.endswith("differ")


def test_equal_versions_are_said_to_be_equal(tmp_path: Path) -> None:
    rows = rows_of({"toys/a": "train"})
    first, second = write_version(tmp_path, rows), write_version(tmp_path, rows, seed=1)
    outcome = run(first.url, second.url)
    assert outcome.figures["same_content"] is True
    assert all(not outcome.figures["images"][k] for k in ("added", "removed", "changed", "moved"))
    assert outcome.message.endswith("have the same content")


def test_a_move_is_no_change_and_a_change_is_no_move() -> None:
    before = {"x": Record("train", 1), "y": Record("train", 1)}
    found = compare(before, {"x": Record("test", 1), "y": Record("train", 2)}, 5)
    assert (found["moved"], found["changed"]) == (1, 1)
    assert found["first"] == {"changed": ["y"], "moved": ["x"]}


def test_recipes_differ_by_dotted_key() -> None:
    assert recipe_changes({"a": {"b": 1}, "c": "x"}, {"a": {"b": 2}, "d": None, "c": "x"}) == {
        "a.b": ("1", "2"),
        "d": ("—", "null"),
    }
