"""Products-10K: folders `train/` and `test/` of photos, and who they show in `train.csv` and `test_kaggletest.csv`.

The layout is that of the archives of the competition https://www.kaggle.com/competitions/products-10k: `train.csv`
has columns name, class, group; `test_kaggletest.csv`, published after it, has name, class, Usage. A class is one
product (a stock-keeping unit), so it is the instance; its group is the category, also of the test photos of the
class. The data set gives no boxes, and no licence of single photos.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from infra.base import storage
from infra.base.config import Config
from pipelines.sources.tables import TabledSource, files_below, match, read_csv, refusals, rows

DOMAIN = "product"
LABELS = {"train": "train.csv", "test": "test_kaggletest.csv"}


class Products10KConfig(Config):
    """Products-10K."""

    kind: Literal["products10k"] = "products10k"
    """Which source this is."""
    root: str
    """URL of the folder that holds train.csv."""


class Products10K(TabledSource):
    """The source over such a folder."""

    name = "products10k"
    layout = (
        "<root>/train.csv (name,class,group), train/<name>, test_kaggletest.csv (name,class), test/<name>"
    )

    def __init__(self, config: Products10KConfig) -> None:
        super().__init__(config.root)

    def look(self) -> pa.Table:
        """See `TabledSource`."""
        files = files_below(self.root)
        ours = pc.or_(
            pc.match_substring_regex(files["path"], r"^(train|test)/"),
            pc.is_in(files["path"], pa.array(list(LABELS.values()))),
        )
        files = files.filter(ours)
        missing = [n for n in ("train.csv", "train/") if not pc.any(pc.starts_with(files["path"], n)).as_py()]
        if missing:
            raise self.wrong(f"no {' and no '.join(missing)}")
        return files

    def read(self, files: pa.Table) -> tuple[pa.Table, pa.Table]:
        """See `TabledSource`."""
        groups = read_csv(storage.join(self.root, LABELS["train"]), ("class", "group"))
        found, refused = [], []
        for split, labels in LABELS.items():
            photos = files.filter(pc.starts_with(files["path"], f"{split}/"))
            photos = photos.append_column("key", photos["path"])
            if not pc.is_in(pa.scalar(labels), files["path"]).as_py():
                refused.append(refusals(photos["path"], "no_identity", f"there is no {labels}"))
                continue
            said = read_csv(storage.join(self.root, labels), ("name", "class"))
            known = said.filter(pc.and_(pc.is_valid(said["name"]), pc.is_valid(said["class"])))
            group = groups["group"].take(pc.index_in(known["class"], groups["class"]))
            claims = pa.table(
                {
                    "key": pc.binary_join_element_wise(split, known["name"], "/"),
                    "instance": known["class"],
                    "category": pc.coalesce(pc.binary_join_element_wise("group", group, " "), DOMAIN),
                }
            )
            matched, others = match(claims, photos, labels)
            found.append(matched)
            refused.append(others)
        return rows(pa.concat_tables(found), DOMAIN), pa.concat_tables(refused)
