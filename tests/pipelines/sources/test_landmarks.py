from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from photo_sources import picture, reasons, refused, rows, write

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.sources.landmarks import Landmarks, LandmarksConfig

IDS = ("0123456789abcdef", "ab12000000000001", "ab12000000000002", "ffe0000000000003")
PHOTOS: dict[str, bytes | str] = {
    f"train/{i[0]}/{i[1]}/{i[2]}/{i}.jpg": picture(n) for n, i in enumerate(IDS)
}
CLEAN = f"landmark_id,images\n1,{IDS[0]} {IDS[1]}\n27,{IDS[3]}\n"
ALL = "id,url,landmark_id\n" + "".join(
    f'{i},"http://upload/a,b_{n}.jpg",{(1, 1, 5, 27)[n]}\n' for n, i in enumerate(IDS)
)
NAMES = """landmark_id,category
1,http://commons.wikimedia.org/wiki/Category:Caf%C3%A9_de_Flore
5,http://commons.wikimedia.org/wiki/Category:Happy_Valley_Racecourse
"""
KINDS = """landmark_id,category,supercategory,hierarchical_label,natural_or_human_made
1,http://commons.wikimedia.org/wiki/Category:X,cafés,restaurant,human-made
27,http://commons.wikimedia.org/wiki/Category:Y,,,natural
"""
ATTRIBUTION = f"""id,url,author,license,title
{IDS[0]},https://commons/File:A.jpg,"Doe, ""J""
of Oslo",https://creativecommons.org/licenses/by/3.0/,A view
{IDS[3]},,,https://creativecommons.org/licenses/by/2.0/,
"""


def source(root: str | Path, **options: Any) -> Landmarks:
    return Landmarks(LandmarksConfig(root=str(root), **options))


def test_the_clean_list_with_all_that_is_known(place: str) -> None:
    tables = {
        "train_clean.csv": CLEAN,
        "train_label_to_hierarchical.csv": KINDS,
        "train_attribution.csv": ATTRIBUTION,
    }
    write(place, {**PHOTOS, **tables, "train_label_to_category.csv": NAMES, "index.csv": "id\n"})
    found = rows(listed := source(place))
    assert [(r["instance_id"], r["category"], r["image_id"][-20:]) for r in found] == [
        ("landmark/1", "restaurant", f"{IDS[0]}.jpg"),
        ("landmark/1", "restaurant", f"{IDS[1]}.jpg"),
        ("landmark/27", "landmark", f"{IDS[3]}.jpg"),  # its kind is an empty cell
    ]
    assert found[0]["image_id"] == f"landmark/train/0/1/2/{IDS[0]}.jpg"
    assert [storage.read_bytes(r["uri"]) for r in found] == [picture(0), picture(1), picture(3)]
    assert [(r["licence"], r["attribution"]) for r in found] == [
        (
            "https://creativecommons.org/licenses/by/3.0/",
            'Doe, "J"\nof Oslo, A view, https://commons/File:A.jpg',
        ),
        (None, None),
        ("https://creativecommons.org/licenses/by/2.0/", None),
    ]
    assert refused(listed) == {
        f"train/a/b/1/{IDS[2]}.jpg": ("no_identity", "train_clean.csv does not name it"),
    }


def test_the_whole_list_with_names_as_categories(tmp_path: Path) -> None:
    write(str(tmp_path), {**PHOTOS, "train.csv": ALL, "train_label_to_category.csv": NAMES})
    found = rows(listed := source(tmp_path, labels="all"))
    assert [(r["instance_id"], r["category"]) for r in found] == [
        ("landmark/1", "Café de Flore"),
        ("landmark/1", "Café de Flore"),
        ("landmark/27", "landmark"),
        ("landmark/5", "Happy Valley Racecourse"),
    ]
    assert {r["licence"] for r in found} == {None}
    assert refused(listed) == {}


def test_photos_in_other_places_and_photos_not_downloaded_are_refused(tmp_path: Path) -> None:
    write(str(tmp_path), {p: d for p, d in PHOTOS.items() if IDS[1] not in p})
    write(
        str(tmp_path), {f"train/{IDS[1]}.jpg": b"x", "train/images_000.tar": b"x", "train_clean.csv": CLEAN}
    )
    found = source(tmp_path)
    assert [r["category"] for r in rows(found)] == ["landmark", "landmark"]
    assert reasons(found) == {
        f"train/a/b/1/{IDS[1]}.jpg": "not_a_file",
        f"train/{IDS[1]}.jpg": "no_identity",
        f"train/a/b/1/{IDS[2]}.jpg": "no_identity",
        "train/images_000.tar": "unsupported_format",
    }


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (
            {},
            {},
            r"no train_clean\.csv \(source\.labels says which list\); the layout of landmarks is <root>/train/<a>",
        ),
        ({"train_clean.csv": CLEAN}, {}, r"no train/; the layout"),
        ({"train_clean.csv": CLEAN, **PHOTOS}, {"labels": "all"}, r"no train\.csv \(source\.labels"),
        (
            {"train_clean.csv": ALL, **PHOTOS},
            {},
            r"train_clean\.csv: no column images; needed are landmark_id, images",
        ),
        (
            {"train_clean.csv": CLEAN + f"9,{IDS[0]}\n", **PHOTOS},
            {},
            rf"train_clean\.csv: a second row for train/0/1/2/{IDS[0]}\.jpg",
        ),
    ],
)
def test_another_layout_is_one_clear_line(
    tmp_path: Path, files: dict[str, bytes | str], options: dict[str, str], message: str
) -> None:
    write(str(tmp_path / "gld"), files)
    with pytest.raises(OacirError, match=message) as caught:
        rows(source(tmp_path / "gld", **options))
    assert "\n" not in str(caught.value)


def test_the_fingerprint_follows_the_files_that_are_read(tmp_path: Path) -> None:
    write(str(tmp_path), {**PHOTOS, "train_clean.csv": CLEAN})
    before = source(tmp_path).fingerprint()
    write(str(tmp_path), {"train.csv": ALL})
    assert source(tmp_path).fingerprint() == before
    write(str(tmp_path), {"train_attribution.csv": ATTRIBUTION})
    credited = source(tmp_path).fingerprint()
    write(str(tmp_path), {"train/1/1/1/new.jpg": b"x"})
    assert (
        len({before, credited, source(tmp_path).fingerprint(), source(tmp_path, labels="all").fingerprint()})
        == 4
    )
