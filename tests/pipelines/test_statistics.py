from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_versions import rows_of, write_version

from pipelines import published
from pipelines.statistics import Statistics, as_figures, measure
from pipelines.statistics_page import _cropped, _named, _own_colours, _whole, evaluation_table, training_table


@pytest.fixture
def found(tmp_path: Path) -> Statistics:
    """cars: a (train, three images), b (dev), c (test) with a distractor; toys: d (train)."""
    rows = rows_of({"car/a": "train"}, images=3)
    for name, some in rows_of({"car/b": "dev", "car/c": "test", "toys/d": "train"}).items():
        rows[name] += some
    texts = ["put it on a table", "by night", "by night"]
    for row, text in zip(rows["quadruples"], texts, strict=False):  # the three of a
        row["modification_text"] = text
    # of the 9 × 9 px reference a's first box takes 81, 9 and 0 of 81 px
    for row, box in zip(rows["quadruples"], ([0, 0, 9, 9], [0, 0, 3, 3], [2, 2, 2, 2]), strict=False):
        row["reference_box"] = [float(v) for v in box]
    stranger: dict[str, Any] = {"gallery_id": "car/test", "split": "test", "image_id": "car/x/0.jpg"}
    rows["gallery"].append(stranger | {"instance_id": "car/x", "category": "van", "is_distractor": True})
    pair = {"domain": "car", "instance_id": "car/a", "reference_id": "r", "target_id": "t"}
    rows["pairs"] = [pair | {"pair_id": str(n), "similarity": c} for n, c in enumerate((0.501, 0.509, 1.0))]
    return measure(write_version(tmp_path, rows))


def test_sizes_are_those_of_the_rows(found: Statistics) -> None:
    assert found.domains == ["car", "toys"]
    train = found.parts["car", "train"]
    assert (train.quadruples, train.images, train.instances, train.texts) == (3, 3, 1, 2)
    assert (train.words, train.words_most) == (5 + 2 + 2, 5)
    both = found.training("car")
    assert (both.quadruples, both.images, both.instances) == (5, 5, 2)
    assert found.test("toys").quadruples == 0
    gallery = found.galleries["car", "test"]
    assert (gallery.images, gallery.distractors) == (3, 1)
    assert (gallery.instances, gallery.distractor_instances) == ({"car/c"}, {"car/x"})
    assert dict(gallery.categories) == {"van": 1}


def test_distributions_count_every_record_once(found: Statistics) -> None:
    assert found.words["car"] == {5: 1 + 2 + 2, 2: 2}
    assert found.images_of_an_instance == {"car": {3: 1, 2: 2}, "toys": {2: 1}}
    # the last bin, the third (1/9 = 0.11) and the first; of the other four cars 16 of 81 px, in 0.16 to 0.20
    shares = np.zeros(25, int)
    shares[[24, 2, 0, 4]] = [1, 1, 1, 4]
    assert found.box_shares["car"].tolist() == shares.tolist()
    cosines = found.cosines["car"]
    assert (cosines.sum(), cosines[75], cosines[99]) == (3, 2, 1)  # 0.50 to 0.52, and 1.0 in the last


def test_a_table_of_images_in_other_parts_gives_the_same_shares(tmp_path: Path) -> None:
    """An imported version's parts need not agree: then all sizes are read."""
    rows = rows_of({"car/a": "train"})
    version = write_version(tmp_path / "whole", rows)
    path = Path(version.path("images", "part-00000.parquet"))
    path.rename(path.with_name("part-00007.parquet"))
    files = [
        f.model_copy(update={"path": f.path.replace("images/part-00000", "images/part-00007")})
        for f in version.manifest.files
    ]
    moved = type(version)(version.url, version.manifest.model_copy(update={"files": files}))
    assert measure(moved).box_shares["car"].sum() == 2


def test_the_tables_state_ours_and_the_published_figures_beside(found: Statistics) -> None:
    training, evaluation = training_table(found), evaluation_table(found)
    rows = {row["name"]: row["cells"] for group in training["groups"] for row in group}
    assert rows["car"] == ("5", "5", "2", "2.5", "3.8", "5", "60 %")  # 19 words in 5 texts, 2 + 1 distinct
    assert rows["car, OACIRR"][:4] == ("12,728", "3,111", "199", "15.6")
    assert "toys, OACIRR" not in rows
    assert rows["OACIRR"] == ("127,166", "39,495", "2,647", "14.9", "20.2", "30", "–")
    rows = {row["name"]: row["cells"] for group in evaluation["groups"] for row in group}
    assert rows["car"] == ("2", "1", "3", "1", "1", "5.0")
    assert rows["toys"] == ("–",) * 6
    assert rows["OACIRR"] == ("33,449", "1,238", "26,595", "11,134", "3,707", "19.4")


def test_published_domains_add_up_to_the_published_totals() -> None:
    assert sum(t.quadruples for t in published.TRAINING.values()) == published.TRAINING_ALL.quadruples
    assert sum(t.images for t in published.TRAINING.values()) == published.TRAINING_ALL.images
    assert sum(t.instances for t in published.TRAINING.values()) == published.TRAINING_ALL.instances
    assert sum(t.quadruples for t in published.EVALUATION.values()) == published.EVALUATION_ALL.quadruples
    assert sum(t.gallery for t in published.EVALUATION.values()) == published.EVALUATION_ALL.gallery


def test_bins_of_whole_numbers_hold_all_of_them() -> None:
    edges, counts = _whole({"a": {1: 2, 100: 3}, "b": {50: 1}})
    assert edges[:3] == [0.5, 3.5, 6.5]  # three in a bin, 34 bins
    assert (len(edges), counts["a"].sum(), counts["b"].sum()) == (35, 5, 1)
    assert (counts["a"][0], counts["a"][33], counts["b"][16]) == (2, 3, 1)
    edges, counts = _whole({"a": {4: 1}})
    assert (edges, counts["a"].tolist()) == ([3.5, 4.5], [1])


def test_empty_ends_are_left_out_and_small_domains_stand_together(found: Statistics) -> None:
    edges, counts = _cropped({"a": np.array([0, 1, 0, 2, 0])}, [0, 1, 2, 3, 4, 5])
    assert (edges, counts["a"].tolist()) == ([1, 2, 3, 4], [1, 0, 2])
    many = {f"d{n}": np.array([n]) for n in range(8)}
    assert _named(many, ["d6", "d7"], 1) == [("d6", [6]), ("d7", [7]), ("6 more domains", [15])]
    assert _own_colours(found) == ["car", "toys"]


def test_figures_are_json(found: Statistics) -> None:
    figures = as_figures(found)
    assert figures["splits"]["car/train"]["mean_words"] == 3.0
    assert figures["galleries"]["car/test"]["distractor_instances"] == 1
