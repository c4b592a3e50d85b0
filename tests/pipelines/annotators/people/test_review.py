"""Photos → build → tasks → what people said → the next build, on the procedural world, stages in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from labeller import annotation, exported
from without_ray import run_stages_here

from infra.base.command import Context, Outcome
from infra.base.errors import OacirError
from infra.base.versions import Version, open_version
from pipelines.annotators.people.exporting import ReviewExportRecipe, export
from pipelines.annotators.people.importing import (
    ReviewImportRecipe,
    ReviewStatusRecipe,
    import_,
    status,
)
from pipelines.build import build
from pipelines.config import BuildRecipe
from pipelines.reviewing import ANNOTATED
from pipelines.stages import read_parts
from pipelines.statistics_page import StatsRecipe, stats
from pipelines.verify import VerifyRecipe, verify

WORLD = {
    "domains": ["car", "fashion"],
    "instances_per_domain": 8,
    "image_size_px": 64,
    "near_duplicate_fraction": 0.0,
}
LOOSE = {"tau_valid": 3, "tau_high": 0.9999, "tau_centric": 0.9999, "tau_count": 3}
EDITED = "Put it at night in the rain, seen from further away"


def make(root: Path, **options: Any) -> Outcome:
    tree = {
        "name": "looked_at",
        "source": {"kind": "world", "world": WORLD},
        "thresholds": {"default": LOOSE},
        "max_pairs_per_instance": 4,
        "images_per_part": 24,
    }
    return build(BuildRecipe.model_validate(tree | options), Context(root=str(root)))


def rows(version: Version, table: str) -> dict[str, dict[str, Any]]:
    parts = len(version.table_files("listing"))
    key = {"reviews": "task", "rejects/review": "key"}.get(table, "query_id")
    return {row[key]: row for t in read_parts(version.url, table, parts) for row in t.to_pylist()}


def tasks_of(outcome: Outcome) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((Path(str(outcome.location)) / "tasks.json").read_text())
    return found


def bring(root: Path, entries: Any, **options: Any) -> Outcome:
    file = root / "export.json"
    file.write_text(json.dumps(entries))
    return import_(ReviewImportRecipe(file=str(file), **options), Context(root=str(root)))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Version]]:
    with pytest.MonkeyPatch.context() as patch:
        run_stages_here(patch)
        root = tmp_path_factory.mktemp("root")
        yield root, open_version(str(make(root).location))


@pytest.fixture
def again(first: tuple[Path, Version]) -> Iterator[tuple[Path, Version]]:
    """The build, before anybody looked at it."""
    yield first
    shutil.rmtree(first[0] / "reviews", ignore_errors=True)


def test_what_people_say_becomes_the_next_build_with_who_when_and_what(again: tuple[Path, Version]) -> None:
    root, before = again
    context = Context(root=str(root))
    outcome = export(ReviewExportRecipe(dataset="looked_at", most=6), context)
    tasks = tasks_of(outcome)
    machine = rows(before, "quadruples")
    assert len(tasks) == outcome.figures["tasks"] == 6
    assert outcome.figures["left"] == len(machine) - 6
    one, two, three, four, five, six = (t["data"]["pair"] for t in tasks)
    bring(
        root,
        [
            exported(tasks[0], annotation(tasks[0], "accept", person=7, at="2026-03-02T10:00:00Z")),
            exported(tasks[1], annotation(tasks[1], "edit", text=f"  {EDITED} ")),
            exported(
                tasks[2],
                annotation(tasks[2], "edit", box={"x": 12.5, "y": 25.0, "width": 50.0, "height": 50.0}),
            ),
            exported(tasks[3], annotation(tasks[3], "reject", words="both are the same")),
            exported(tasks[4], annotation(tasks[4], "accept"), annotation(tasks[4], "reject", person=2)),
            exported(tasks[5]),
        ],
    )
    built = make(root, people={})
    version = open_version(str(built.location))
    after = rows(version, "quadruples")
    assert after.keys() == machine.keys() - {four}
    untouched = machine.keys() - {one, two, three, four}
    assert all(after[name] == machine[name] for name in untouched)
    assert rows(version, ANNOTATED) == machine

    accepted = json.loads(after[one]["provenance"]["extra_json"])["people"]
    assert accepted == {"verdict": "accept", "who": ["7"], "when": ["2026-03-02T10:00:00.000+00:00"]}
    assert after[one] | {"provenance": 0} == machine[one] | {"provenance": 0}
    said = after[two]["provenance"]
    assert (after[two]["modification_text"], said["annotator"], said["confidence"]) == (
        EDITED,
        "people",
        None,
    )
    changed = json.loads(said["extra_json"])["people"]
    was = machine[two]["provenance"]
    assert changed["changed"] == ["text"]
    assert changed["before"] == {
        "text": machine[two]["modification_text"],
        "box": machine[two]["reference_box"],
        "annotator": was["annotator"],
        "model": was["model"],
        "prompt_sha256": was["prompt_sha256"],
    }
    # 64 pixels: 12.5 % are 8, 50 % are 32
    assert after[three]["reference_box"] == [8.0, 16.0, 40.0, 48.0]
    assert after[three]["modification_text"] == machine[three]["modification_text"]
    assert after[three]["provenance"]["annotator"] == was["annotator"]
    assert json.loads(after[three]["provenance"]["extra_json"])["people"]["changed"] == ["box"]
    [refused] = rows(version, "rejects/review").values()
    assert refused | {"records": None} == {
        "stage": "review", "entity": "quadruples", "key": four, "reason": "person_rejected",
        "detail": "1: both are the same", "records": None,
    }  # fmt: skip

    people = version.manifest.figures["people"]
    counted = {
        k: people[k] for k in ("exported", "accepted", "edited", "rejected", "pending", "disagree", "gone")
    }
    assert counted == {
        "exported": 6, "accepted": 1, "edited": 2, "rejected": 1, "pending": 1, "disagree": 1, "gone": 0,
    }  # fmt: skip
    assert any(
        "2 pending, kept as written: 1 undecided, 1 judged in two ways" in line for line in built.details
    )
    assert people["agreement"]["tasks"] == 1
    assert people["agreement"]["kept"] == 0.0
    states = {
        (r["pair_id"], r["person"]): r["state"] for t in version.tables("reviews") for r in t.to_pylist()
    }
    assert states == {
        (one, "7"): "applied", (two, "1"): "applied", (three, "1"): "applied", (four, "1"): "applied",
        (five, "1"): "disagreement", (five, "2"): "disagreement",
    }  # fmt: skip
    queries = {d: sum(f["queries"].values()) for d, f in version.manifest.figures["domains"].items()}
    assert sum(queries.values()) == len(after)
    total = sum(len(r["modification_text"].split()) for r in after.values() if r["domain"] == "car")
    assert version.manifest.figures["domains"]["car"]["mean_words"] == round(total / queries["car"], 2)
    assert verify(VerifyRecipe(dataset=version.url), context).refused is None
    assert six not in {pair for pair, _ in states}
    # the same command is done; a third person settles the fifth, and that is another version
    assert make(root, people={}).message.startswith("nothing to do")
    bring(root, [exported(tasks[4], annotation(tasks[4], "reject", person=3))])
    third = make(root, people={}, update=version.url)
    assert five not in rows(open_version(str(third.location)), "quadruples")
    assert third.figures["taken_over"]["pairs"] == len(machine)
    assert third.figures["people"]["edited"] == 2


def test_settled_tasks_are_not_given_out_again(again: tuple[Path, Version]) -> None:
    root, version = again
    context = Context(root=str(root))
    tasks = tasks_of(export(ReviewExportRecipe(dataset=version.url, most=3), context))
    bring(root, [exported(tasks[0], annotation(tasks[0], "accept"))])
    others = export(ReviewExportRecipe(dataset=version.url, most=3), context)
    assert others.figures["settled"] == 1
    names = [t["data"]["pair"] for t in tasks_of(others)]
    assert names[:2] == [t["data"]["pair"] for t in tasks[1:]]
    assert tasks[0]["data"]["pair"] not in names
    told = status(ReviewStatusRecipe(name="looked_at"), context)
    assert told.message.startswith("3 of 4 tasks pending")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pending": "leave_out"}, {"people_pending"}),
        ({"pending": "leave_out", "conflict": "reject"}, {"people_pending", "people_disagree"}),
        ({"conflict": "latest"}, {"person_rejected"}),
        ({"conflict": "first"}, set()),
    ],
)
def test_pending_and_conflicting_tasks_go_the_way_the_recipe_says(
    again: tuple[Path, Version], options: dict[str, str], reason: set[str]
) -> None:
    root, version = again
    tasks = tasks_of(export(ReviewExportRecipe(dataset=version.url, most=2), Context(root=str(root))))
    late = annotation(tasks[0], "reject", person=2, at="2026-04-01T00:00:00Z")
    bring(root, [exported(tasks[0], annotation(tasks[0], "accept"), late)])
    made = open_version(str(make(root, people=options).location))
    refused = rows(made, "rejects/review")
    assert {r["reason"] for r in refused.values()} == reason
    left = len(rows(version, "quadruples")) - len(rows(made, "quadruples"))
    assert left == len(refused) == (2 if "pending" in options else len(reason))


@pytest.mark.parametrize("faults", ["reject", "keep"])
def test_a_persons_text_is_held_against_the_gates(again: tuple[Path, Version], faults: str) -> None:
    root, version = again
    recipe = ReviewExportRecipe(dataset=version.url, most=3, domains=("fashion",))
    tasks = tasks_of(export(recipe, Context(root=str(root))))
    texts = ["Show it in the second image", EDITED, f"{EDITED}!"]
    outcome = bring(
        root, [exported(t, annotation(t, "edit", text=text)) for t, text in zip(tasks, texts, strict=True)]
    )
    assert sum("breaks a rule" in line and "text_names_image" in line for line in outcome.details) == 1
    made = open_version(str(make(root, people={"faults": faults}).location))
    names = [t["data"]["pair"] for t in tasks]
    later = max(names[1:])
    refused = {r["key"]: r["reason"] for r in rows(made, "rejects/review").values()}
    wanted = {names[0]: "text_names_image", later: "text_repeats"}
    assert refused == (wanted if faults == "reject" else {})
    assert made.manifest.figures["people"]["fault"] == 2
    assert made.manifest.figures["people"]["edited"] == 1


def test_people_write_what_the_annotator_could_not(first: tuple[Path, Version], tmp_path: Path) -> None:
    root, _ = first
    strict = {"default": LOOSE | {"max_words": 3}}
    context = Context(root=str(root))
    narrow = open_version(str(make(root, name="narrow", thresholds=strict).location))
    machine = rows(narrow, "quadruples")
    recipe = ReviewExportRecipe(dataset=narrow.url, what="refused", reasons=("text_too_long",), most=2)
    tasks = tasks_of(export(recipe, context))
    assert "to be written: text_too_long" in tasks[0]["data"]["about"]
    kinds = [item["type"] for item in tasks[0]["predictions"][0]["result"]]
    assert kinds == ["rectanglelabels"]  # the source's box, no text
    said = annotation(tasks[0], "edit")
    text = {"text": ["make it dark"]}
    said["result"].append(
        {"id": "t", "type": "textarea", "from_name": "text", "to_name": "reference", "value": text}
    )
    bring(root, [exported(tasks[0], said), exported(tasks[1], annotation(tasks[1], "reject"))])
    made = open_version(str(make(root, name="narrow", thresholds=strict, people={}).location))
    after = rows(made, "quadruples")
    new = tasks[0]["data"]["pair"]
    assert after.keys() == machine.keys() | {new}
    assert after[new]["modification_text"] == "make it dark"
    assert after[new]["provenance"]["annotator"] == "people"
    assert len(after[new]["reference_box"]) == 4
    assert {k: made.manifest.figures["people"][k] for k in ("edited", "rejected", "pending")} == {
        "edited": 1, "rejected": 1, "pending": 0,
    }  # fmt: skip
    assert verify(VerifyRecipe(dataset=made.url), context).refused is None


def test_decisions_on_another_text_do_not_count_but_edits_of_the_same_photos_do(
    again: tuple[Path, Version],
) -> None:
    root, version = again
    context = Context(root=str(root))
    tasks = tasks_of(export(ReviewExportRecipe(dataset=version.url, most=40, splits=("train",)), context))
    half = len(tasks) // 2
    for task in tasks[:half]:
        task["said"] = annotation(task, "reject")
    for n, task in enumerate(tasks[half:]):
        task["said"] = annotation(task, "edit", text=f"{EDITED} and {n} others")
    bring(root, [exported(t, t["said"]) for t in tasks])
    # another seed of the world's texts, the same photos
    made = open_version(str(make(root, annotator="plain", people={}).location))
    after = rows(made, "quadruples")
    people = made.manifest.figures["people"]
    assert people["rejected"] == 0
    assert people["stale"] > 0
    for n, task in enumerate(tasks[half:]):
        if task["data"]["pair"] in after:
            assert after[task["data"]["pair"]]["modification_text"] == f"{EDITED} and {n} others"
    assert people["edited"] > 0


def test_without_tasks_or_where_decisions_would_be_forgotten_it_is_said(
    again: tuple[Path, Version], caplog: pytest.LogCaptureFixture
) -> None:
    root, version = again
    with pytest.raises(OacirError, match="holds no task for people; export some with `oacir review export"):
        make(root, people={})
    tasks = tasks_of(export(ReviewExportRecipe(dataset=version.url, most=1), Context(root=str(root))))
    bring(root, [exported(tasks[0], annotation(tasks[0], "accept"))])
    make(root)
    assert "holds decisions of people, which are not applied" in caplog.text


def test_the_sheet_says_what_waits_for_people(again: tuple[Path, Version]) -> None:
    root, version = again
    context = Context(root=str(root))
    tasks = tasks_of(export(ReviewExportRecipe(dataset=version.url, most=3), context))
    bring(root, [exported(tasks[0], annotation(tasks[0], "reject", words="nothing changes"))])
    made = make(root, people={})
    page = Path(
        str(stats(StatsRecipe(dataset=str(made.location), quadruples=2), context).location)
    ).read_text()
    assert "3 pairs given to 1: 0 accepted, 0 edited, 1 rejected" in page
    assert "2 pending, kept as written: 2 undecided" in page
    assert "a person refused it" in page
    assert "1: nothing changes" in page


def test_a_bad_file_changes_nothing_unless_the_rest_is_wanted(again: tuple[Path, Version]) -> None:
    root, version = again
    context = Context(root=str(root))
    tasks = tasks_of(export(ReviewExportRecipe(dataset=version.url, most=2), context))
    entries = [
        exported(tasks[0], annotation(tasks[0], "accept")),
        exported(tasks[1], annotation(tasks[1], None)),
    ]
    with pytest.raises(
        OacirError, match=r"1 cannot be used, nothing is imported .*task 1, annotation 1: no verdict"
    ):
        bring(root, entries)
    told = status(ReviewStatusRecipe(name="looked_at"), context)
    assert told.figures["pending"] == 2
    outcome = bring(root, entries, bad="skip")
    assert any(line.startswith("left out: task 1, annotation 1: no verdict") for line in outcome.details)
    assert outcome.figures["outcomes"] == {"keep": 1, "reject": 0, "pending": 1, "disagree": 0}
    assert bring(root, entries, bad="skip").figures["new"] == 0
    for other, message in (
        ([exported({"data": {"image": "a.jpg"}})], "holds no task of ours"),
        ({"a": 1}, "holds no task of ours"),
    ):
        with pytest.raises(OacirError, match=message):
            bring(root, other)


@pytest.mark.parametrize("images", ["files", "links"])
def test_photos_are_files_beside_the_tasks_or_links(again: tuple[Path, Version], images: Any) -> None:
    root, version = again
    recipe = ReviewExportRecipe(dataset=version.url, most=2, images=images)
    if images == "links":
        with pytest.raises(OacirError, match="Label Studio can follow no link to it; set images to embed"):
            export(recipe, Context(root=str(root)))
        return
    outcome = export(recipe, Context(root=str(root)))
    for task in tasks_of(outcome):
        for photo in ("reference", "target"):
            prefix, place = task["data"][photo].split("?d=")
            assert prefix == "/data/local-files/"
            assert (Path(str(outcome.location)) / place).read_bytes().startswith(b"\xff\xd8\xff")
