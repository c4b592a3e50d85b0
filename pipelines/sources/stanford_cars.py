"""Stanford Cars (Cars196), in either of its two published forms.

- One folder: `car_ims/000001.jpg` and `cars_annos.mat`, an array `annotations` of relative_im_path, bbox_x1, bbox_y1,
  bbox_x2, bbox_y2, class, test, beside `class_names`.
- Two folders and a devkit, as torchvision's `StanfordCars` reads it (torchvision/datasets/stanford_cars.py):
  `cars_train/00001.jpg`, `cars_test/00001.jpg`, `devkit/cars_meta.mat` (class_names), `devkit/cars_train_annos.mat` and
  `cars_test_annos_withlabels.mat` (bbox_x1 … bbox_y2, class, fname). The devkit's own `cars_test_annos.mat` has no
  classes: without the file with labels the test photos show nobody knows which car.
These files may lie in folders of their own below the root (as `car_devkit/devkit/`, `cars_train/cars_train/`).

A class (make, model, year) is the group that the paper calls an instance; the category is "car". Boxes are MATLAB's:
counted from 1, both corners inside, so that x1 − 1, y1 − 1, x2, y2 are half-open pixels. There is no licence of single
photos in the data.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.base import storage
from infra.base.config import Config
from infra.base.errors import OacirError
from pipelines.sources.tables import TabledSource, boxes, files_below, match, refusals, rows

DOMAIN = "car"
WHOLE, META = "cars_annos.mat", "cars_meta.mat"
LABELS = {"cars_train": "cars_train_annos.mat", "cars_test": "cars_test_annos_withlabels.mat"}
CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


class StanfordCarsConfig(Config):
    """Stanford Cars."""

    kind: Literal["stanford_cars"] = "stanford_cars"
    """Which source this is."""
    root: str
    """URL of the folder that holds the photos' folders and the .mat files."""


class StanfordCars(TabledSource):
    """The source over such a folder."""

    name = "stanford_cars"
    layout = (
        f"<root>/car_ims/000001.jpg and {WHOLE}, or <root>/cars_train/00001.jpg, cars_test/00001.jpg,"
        f" devkit/{META}, devkit/{LABELS['cars_train']}, {LABELS['cars_test']}"
    )

    def __init__(self, config: StanfordCarsConfig) -> None:
        super().__init__(config.root)

    def look(self) -> pa.Table:
        """See `TabledSource`."""
        files = files_below(self.root)
        names = "|".join([WHOLE, META, *LABELS.values()]).replace(".", "[.]")
        files = files.filter(
            pc.match_substring_regex(files["path"], rf"(^|/)((car_ims|cars_train|cars_test)/|({names})$)")
        )
        if not any(len(self._photos(files, folder)) for folder in ("car_ims", *LABELS)):
            raise self.wrong("no photos")
        if self._place(files, WHOLE) is None and self._place(files, META) is None:
            raise self.wrong(f"no {WHOLE} and no {META}")
        return files

    def read(self, files: pa.Table) -> tuple[pa.Table, pa.Table]:
        """See `TabledSource`."""
        sets: list[tuple[str, str, str | None, list[str]]]
        if (place := self._place(files, WHOLE)) is not None and len(self._photos(files, "car_ims")):
            sets = [("car_ims", WHOLE, place, _texts(self._mat(place, "class_names")))]
        else:
            place = self._place(files, META)
            if place is None:
                raise self.wrong(f"no {META}")
            classes = _texts(self._mat(place, "class_names"))
            sets = [(f, m, self._place(files, m), classes) for f, m in LABELS.items()]
        found, refused = [], []
        for folder, mat, place, classes in sets:
            photos = self._photos(files, folder)
            if place is None:
                refused.append(refusals(photos["path"], "no_identity", f"there is no {mat}"))
                continue
            matched, others = match(self._claims(place, folder, classes), photos, mat)
            found.append(matched)
            refused.append(others)
        return rows(pa.concat_tables(found), DOMAIN), pa.concat_tables(refused)

    def _claims(self, place: str, folder: str, classes: list[str]) -> pa.Table:
        """What the annotations of a .mat file say; a photo goes by its folder and name."""
        said = self._mat(place, "annotations")
        fields = said.dtype.names or ()
        file = "relative_im_path" if "relative_im_path" in fields else "fname"
        missing = [n for n in (file, "class", *CORNERS) if n not in fields]
        if missing:
            raise OacirError(f"{storage.join(self.root, place)}: annotations have no {', '.join(missing)}")
        corners = np.array([[float(v) for v in said[n]] for n in CORNERS]).T - np.array([1.0, 1.0, 0.0, 0.0])
        column, none = boxes(corners)
        numbers = np.array([int(n) for n in said["class"]], np.int64)
        known = (numbers > 0) & (numbers <= len(classes))
        detail = pc.if_else(
            pa.array(known), "a box without an area", f"a class that {META} or {WHOLE} does not name"
        )
        wrong = pc.or_(none, pa.array(~known))
        return pa.table(
            {
                "key": [f"{folder}/{storage.name_of(str(name))}" for name in said[file]],
                "instance": pa.array([*classes, ""]).take(
                    pa.array(np.where(known, numbers - 1, len(classes)))
                ),
                "category": pa.repeat(DOMAIN, len(said)),
                "box": column,
                "reason": pc.if_else(wrong, "bad_label", pa.scalar(None, pa.string())),
                "detail": detail,
            }
        )

    def _mat(self, place: str, name: str) -> Any:
        """A variable of a .mat file, as an array of one axis."""
        from scipy.io import loadmat

        url = storage.join(self.root, place)
        data = storage.read_bytes(url)
        try:
            held = loadmat(io.BytesIO(data), squeeze_me=True)
        except Exception as error:  # scipy's parsers raise nearly anything on bytes that are no .mat file
            raise OacirError(f"{url}: not a .mat file ({' '.join(str(error).split())[:200]})") from error
        if name not in held:
            raise OacirError(
                f"{url}: holds no {name}; it is not the file of this name that Stanford Cars has"
            )
        return np.atleast_1d(held[name])

    @staticmethod
    def _photos(files: pa.Table, folder: str) -> pa.Table:
        """The files of a photo folder, at any depth, with `<folder>/<name>` as their key."""
        inside = files.filter(pc.match_substring_regex(files["path"], f"(^|/){folder}/"))
        names = pc.replace_substring_regex(inside["path"], "^.*/", "")
        return inside.append_column("key", pc.binary_join_element_wise(folder, names, "/"))

    @staticmethod
    def _place(files: pa.Table, name: str) -> str | None:
        """Where a file of this name lies; the first in path order."""
        found = files["path"].filter(
            pc.match_substring_regex(files["path"], f"(^|/){name.replace('.', '[.]')}$")
        )
        return min(found.to_pylist(), default=None)


def _texts(names: Any) -> list[str]:
    return [str(name).strip() for name in names]
