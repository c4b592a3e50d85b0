from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from pipelines.annotate import AnnotateStage, deal
from pipelines.annotators.base import Annotation, Annotator, PairToAnnotate, Rejection
from pipelines.annotators.plain import PlainAnnotator
from pipelines.config import DomainThresholds, SplitOptions, Thresholds
from pipelines.records import TABLES
from pipelines.stages import Part, StageResult
from pipelines.watch import UNWATCHED, Hung, Watch

THRESHOLDS = Thresholds(default=DomainThresholds(tau_valid=2, tau_high=0.9, tau_centric=0.9, tau_count=2))


def group(name: str, pairs: int = 10, state: str = "valid", boxed: int | None = None) -> dict[str, Any]:
    domain = name.split("/")[0]
    sizes = {"found": 5, "images": 5, "pairs": pairs, "boxed": pairs if boxed is None else boxed}
    return {"instance_id": name, "domain": domain, "category": "c", "state": state, **sizes}


def dealt(
    groups: list[dict[str, Any]], links: Iterable[tuple[str, str]] = (), seed: int = 0
) -> dict[str, str]:
    rows = deal(groups, links, SplitOptions(), 0.2, seed)
    assert [r["instance_id"] for r in rows] == sorted(g["instance_id"] for g in groups)
    return {r["instance_id"]: r["split"] for r in rows}


def test_shares_of_many_instances_of_equal_size() -> None:
    splits = list(dealt([group(f"d/{n:03d}") for n in range(100)]).values())
    # 21 of 100 instances hold 21 % of the pairs; 5 % of the other 79 are dev
    assert (splits.count("test"), splits.count("dev"), splits.count("train")) == (21, 4, 75)


def test_test_is_counted_in_pairs_not_instances() -> None:
    # 21 % of 129 pairs are 27.1: the large instance would be too much, 27 of the small ones are the nearest
    groups = [group(f"d/{n}", pairs=100 if n == 0 else 1) for n in range(30)]
    for seed in range(5):
        splits = dealt(groups, seed=seed)
        assert sum(g["pairs"] for g in groups if splits[g["instance_id"]] == "test") == 27


def test_where_all_are_large_the_smallest_is_test() -> None:
    # 42 pairs are wanted, and even 90 is farther from that than nothing
    sizes = {"d/a": 90, "d/b": 110}
    assert all(
        dealt([group(n, pairs=p) for n, p in sizes.items()], seed=s)["d/a"] == "test" for s in range(5)
    )


@pytest.mark.parametrize(
    ("count", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))]
)
def test_few_instances(count: int, expected: tuple[int, int, int]) -> None:
    splits = list(dealt([group(f"d/{n}") for n in range(count)]).values())
    assert tuple(splits.count(s) for s in ("train", "dev", "test")) == expected


def test_the_order_of_groups_and_other_domains_do_not_matter() -> None:
    groups = [group(f"{d}/{n}") for d in "ab" for n in range(20)]
    straight = dealt(groups)
    shuffled = random.Random(0).sample(groups, len(groups))
    assert dealt(shuffled) == straight
    assert dealt(groups[:20]) == {i: s for i, s in straight.items() if i.startswith("a")}
    assert dealt(groups, seed=1) != straight


def test_instances_that_share_an_image_move_together() -> None:
    groups = [group(f"d/{n:02d}") for n in range(40)] + [group(f"e/{n:02d}") for n in range(40)]
    links = [(f"d/{n:02d}", f"d/{n + 1:02d}") for n in range(0, 40, 2)] + [("d/01", "e/07"), ("e/07", "e/08")]
    splits = dealt(groups, links)
    assert len(set(splits.values())) == 3
    assert all(splits[a] == splits[b] for a, b in links)


def test_reserved_instances_are_dealt_to_the_galleries() -> None:
    rows = deal(
        [group(f"d/{n}", 0, "reserve") for n in range(200)] + [group("d/x"), group("d/y")],
        [("d/0", "d/x")],
        SplitOptions(),
        0.2,
        0,
    )
    reserve = [r for r in rows if r["split"] == "reserve"]
    assert len(reserve) == 200
    assert 25 < sum(r["gallery"] == "dev" for r in reserve) < 55
    by_split = {r["split"]: r["gallery"] for r in rows}
    assert by_split["test"] == "test"


def test_where_boxes_exist_only_pairs_with_a_boxed_reference_count() -> None:
    groups = [group(f"d/{n:02d}", boxed=10 if n < 10 else 0) for n in range(60)]
    splits = dealt(groups)
    boxed = [splits[g["instance_id"]] for g in groups if g["boxed"]]
    assert (boxed.count("test"), boxed.count("dev")) == (2, 3)
    assert all(splits[g["instance_id"]] == "train" for g in groups if not g["boxed"])


def side(image_id: str, *, box: list[float] | None, brightness: float) -> dict[str, Any]:
    measures = {"contrast": 0.2, "sharpness": 0.1, "saturation": 0.5, "background": "red", "aspect": 1.0}
    return {"image_id": image_id, "box": box, "brightness": brightness, **measures}


class Counting(PlainAnnotator):
    """Says how many pairs it was asked for at once."""

    def __init__(self, asked: list[int]) -> None:
        self.asked = asked

    def annotate(self, pairs: Sequence[PairToAnnotate], seed: int) -> list[Annotation | Rejection]:
        self.asked.append(len(pairs))
        return super().annotate(pairs, seed)


NONE_NEAR = TABLES["near_duplicates"].empty_table()


def gives_way(image_id: str, other_id: str) -> dict[str, Any]:
    row = {"image_id": image_id, "instance_id": "d/i", "split": "train", "other_id": other_id}
    return row | {"other_instance_id": "d/o", "other_split": "test", "bits": 2, "rejected": True}


def annotate(
    splits: dict[str, str],
    max_words: int = 30,
    near: list[dict[str, Any]] | None = None,
    watch: Watch = UNWATCHED,
    asked: list[int] | None = None,
) -> StageResult:
    """Three images of one instance: dark with a box, bright with a box, bright without; all six pairs."""
    images = [
        side("d/i/0", box=[0, 0, 9, 9], brightness=0.1),
        side("d/i/1", box=[0, 0, 9, 9], brightness=0.9),
        side("d/i/2", box=None, brightness=0.9),
    ]
    base = {"domain": "d", "instance_id": "d/i", "category": "c", "uri": "u", "width": 64, "height": 64}
    base |= {"sha256": "s", "size_bytes": 1, "mark": ""}
    images[0] |= {"mask_uri": "/masks/0.png", "mask_sha256": "m0"}

    def table(name: str) -> pa.Table:
        schema = TABLES[name]
        return pa.Table.from_pylist(
            [{k: v for k, v in (base | i).items() if k in schema.names} for i in images], schema
        )

    pairs = [
        {"pair_id": f"d/{a}{b}", "domain": "d", "instance_id": "d/i", "reference_id": f"d/i/{a}",
         "target_id": f"d/i/{b}", "similarity": 0.5}
        for a in range(3) for b in range(3) if a != b
    ]  # fmt: skip
    thresholds = Thresholds(default=THRESHOLDS.default.model_copy(update={"max_words": max_words}))
    stage = AnnotateStage("plain", thresholds, seed=0)
    rows = [
        {"instance_id": i, "domain": "d", "category": "c", "split": s, "gallery": "test"}
        for i, s in splits.items()
    ]
    stage.common = {
        "splits": pa.Table.from_pylist(rows, TABLES["splits"]),
        "near_duplicates": pa.Table.from_pylist(near or [], TABLES["near_duplicates"]),
    }
    stage.setup()
    if asked is not None:
        stage._writer = Counting(asked)
    return stage(
        Part(
            0,
            {
                "listing": table("listing"),
                "_work/images/filtered": table("images"),
                "instances": table("instances"),
                "measures": table("measures"),
                "pairs": pa.Table.from_pylist(pairs, TABLES["pairs"]),
            },
            watch,
        )
    )


def test_stage_gives_each_pair_a_quadruple_or_a_reason() -> None:
    result = annotate({"d/i": "test"})
    quadruples = {q["query_id"]: q for q in result.tables["quadruples"].to_pylist()}
    rejects = {r["key"]: r["reason"] for r in result.tables["rejects/annotate"].to_pylist()}
    # images 1 and 2 look the same; image 2 has no box
    assert set(quadruples) == {"d/01", "d/10", "d/02"}
    assert rejects == {"d/12": "no_difference", "d/20": "no_box", "d/21": "no_box"}
    (account,) = (a.check() for a in result.accounts)
    assert (account.taken_in, account.kept) == (6, 3)
    assert account.rejected == {"no_difference": 1, "no_box": 2}
    query = quadruples["d/01"]
    assert (query["reference_id"], query["target_ids"], query["split"]) == ("d/i/0", ["d/i/1"], "test")
    assert query["reference_box"] == [0, 0, 9, 9]
    assert query["provenance"]["parent_id"] == "d/01"
    assert (query["reference_mask_uri"], query["reference_mask_sha256"]) == ("/masks/0.png", "m0")
    assert quadruples["d/10"]["reference_mask_uri"] is None  # the target's mask is not the reference's
    assert result.counts["d"]["queries test"] == 3
    assert result.counts["d"]["instances with queries test"] == 1
    assert result.counts["d"]["words"] == sum(
        len(q["modification_text"].split()) for q in quadruples.values()
    )


def test_a_pair_that_hung_is_rejected_and_those_that_hung_together_are_asked_alone() -> None:
    asked: list[int] = []
    hung = Hung(alone=frozenset({1}), together=frozenset({3, 4}))
    result = annotate({"d/i": "test"}, watch=Watch(60.0, hung), asked=asked)
    rejects = {r["key"]: (r["reason"], r["detail"]) for r in result.tables["rejects/annotate"].to_pylist()}
    assert rejects["d/02"] == ("timeout", "not done after 60 s")
    assert asked == [2, 1, 1, 1]  # d/01 and d/10; d/12; d/20; d/21
    (account,) = (a.check() for a in result.accounts)
    assert account.rejected == {"no_difference": 1, "no_box": 2, "timeout": 1}
    whole = annotate({"d/i": "test"}).tables["quadruples"].to_pylist()
    assert result.tables["quadruples"].to_pylist() == [q for q in whole if q["query_id"] != "d/02"]


def test_pairs_of_an_image_that_gave_way_are_rejected_and_not_annotated() -> None:
    stays = gives_way("d/i/0", "d/o/0") | {"rejected": False}
    result = annotate({"d/i": "train"}, near=[gives_way("d/i/1", "d/o/7"), stays])
    assert result.tables["quadruples"]["query_id"].to_pylist() == ["d/02"]
    rejects = {r["key"]: (r["reason"], r["detail"]) for r in result.tables["rejects/annotate"].to_pylist()}
    across = ("near_duplicate_across_splits", "d/i/1 and d/o/7")
    assert {k: rejects[k] for k in ("d/01", "d/10", "d/12", "d/21")} == dict.fromkeys(
        ("d/01", "d/10", "d/12", "d/21"), across
    )
    assert rejects["d/20"][0] == "no_box"
    (account,) = (a.check() for a in result.accounts)
    assert account.rejected == {"near_duplicate_across_splits": 4, "no_box": 1}


def test_rules_hold_whoever_wrote_the_text() -> None:
    result = annotate({"d/i": "train"}, max_words=3)
    assert len(result.tables["quadruples"]) == 0
    assert {"text_too_long"} <= set(result.tables["rejects/annotate"]["reason"].to_pylist())


@pytest.mark.parametrize(
    ("instance_id", "variant"), [("d/red_kettle2", None), ("d/red_kettle2~light-blue", "light blue")]
)
def test_a_text_that_names_the_instance_is_refused(instance_id: str, variant: str | None) -> None:
    class Namer(Annotator):
        name = "namer"

        def annotate(self, pairs: list[Any], seed: int) -> list[Annotation]:
            return [
                Annotation("The Red-Kettle stands in the rain now.", (0, 0, 1, 1), "namer", None)
                for _ in pairs
            ]

    stage = AnnotateStage("plain", THRESHOLDS, seed=0)
    stage.common = {
        "splits": pa.table({"instance_id": [instance_id], "split": ["train"]}),
        "near_duplicates": NONE_NEAR,
    }
    stage.setup()
    stage._writer = Namer()
    pairs = {"pair_id": ["d/1"], "domain": ["d"], "instance_id": [instance_id], "reference_id": ["a"]}
    known = {
        "image_id": ["a", "b"],
        "uri": ["a", "b"],
        "width": [9, 9],
        "height": [9, 9],
        "sha256": ["a", "b"],
    }
    more = {"image_id": ["a", "b"], "box": [None, None], "category": ["c", "c"]}
    more |= {"mask_uri": [None, None], "mask_sha256": [None, None], "variant": [variant] * 2}
    tables = {
        "listing": pa.table({"image_id": ["a", "b"], "context_json": ["", ""]}),
        "_work/images/filtered": pa.table(known),
        "instances": pa.table(more),
        "measures": pa.table({"image_id": ["a", "b"]}),
        "pairs": pa.table(pairs | {"target_id": ["b"]}),
    }
    (reject,) = stage(Part(0, tables)).tables["rejects/annotate"].to_pylist()
    assert (reject["reason"], reject["detail"]) == ("text_names_instance", "the text says 'red kettle'")
