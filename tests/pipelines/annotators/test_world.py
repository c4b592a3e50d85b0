from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.annotators.base import Annotation, PairToAnnotate, Rejection
from pipelines.annotators.world import WorldAnnotator
from pipelines.world.config import WorldConfig
from pipelines.world.world import modification_text, scene_specs

SPECS = scene_specs(WorldConfig(scenes_per_instance=4), "car", 0)


def side(number: int, box: tuple[float, ...] | None = (1, 2, 30, 40)) -> dict[str, Any]:
    return {"box": box, "context_json": json.dumps(SPECS[number].context.record())}


def pair(
    reference: dict[str, Any], target: dict[str, Any], split: str = "train", name: str = "p"
) -> PairToAnnotate:
    return PairToAnnotate(f"car/{name}", "car", split, "car/x", "car", reference, target)


def answer(*args: Any, seed: int = 0, **options: Any) -> Annotation | Rejection:
    (only,) = WorldAnnotator().annotate([pair(*args, **options)], seed)
    return only


def test_the_text_is_the_oracles_and_the_box_the_references() -> None:
    given = answer(side(0), side(1), name="q")
    assert isinstance(given, Annotation)
    records = [json.loads(side(n)["context_json"]) for n in (0, 1)]
    assert given.text == modification_text("car", *records, "0/car/q", False)
    assert given.box == (1, 2, 30, 40)
    assert given.annotator == "world-oracle"


def test_test_pairs_get_the_held_out_wording() -> None:
    records = [json.loads(side(n)["context_json"]) for n in (0, 1)]
    for split, held_out in (("train", False), ("dev", False), ("test", True)):
        given = answer(side(0), side(1), split)
        assert isinstance(given, Annotation)
        assert given.text == modification_text("car", *records, "0/car/p", held_out)
    texts = {answer(side(0), side(1), s).text for s in ("train", "test")}
    assert len(texts) == 2


def test_answers_depend_on_seed_and_pair_not_on_the_batch() -> None:
    pairs = [pair(side(0), side(1), name=str(n)) for n in range(6)]
    together = WorldAnnotator().annotate(pairs, 3)
    assert together == [WorldAnnotator().annotate([p], 3)[0] for p in pairs]
    assert together != WorldAnnotator().annotate(pairs, 4)
    assert len({a.text for a in together if isinstance(a, Annotation)}) > 1


def test_reasons() -> None:
    same = answer(side(0), side(0))
    assert isinstance(same, Rejection)
    assert same.reason == "no_difference"
    boxless = answer(side(0, None), side(1))
    assert isinstance(boxless, Rejection)
    assert boxless.reason == "no_box"
    with pytest.raises(ValueError, match="knows only the world"):
        answer(side(0) | {"context_json": None}, side(1))
