"""Hugging Face `datasets` on disk, local or on S3, read with pyarrow alone: `save_to_disk` folders and parquet folders.

Two layouts are told apart by what lies in the root:
- `Dataset.save_to_disk`: `state.json`, whose `_data_files` names the `data-00000-of-00001.arrow` beside it; or, of a
  `DatasetDict`, `dataset_dict.json` ({"splits": […]}) and such a folder for each split
  (https://github.com/huggingface/datasets: `arrow_dataset.py`, `dataset_dict.py`; the files are Arrow IPC streams,
  `arrow_writer.py`);
- a repository of the Hub: any `*.parquet`, in folders or named `train-00000-of-00003.parquet`.
The image column is the `Image` feature, {"bytes", "path"}, or plain binary, or paths of files in the folder. Columns of
`ClassLabel` are read as their names. The licence of the whole stands for images that name none.

Where the pixels stay. An Arrow stream holds the bytes of an image in one piece, so that an image is a range of the
file: nothing is copied, and listing touches offsets and labels only (locally the file is mapped; from S3 one record
batch at a time is held). A parquet page is compressed, and a row cannot be read without its row group: in place, each
read of an image would decode some hundred others, in the order of instances and not of the file. So a parquet folder
is unpacked once, by Ray Data, a few rows at a time, into packs of raw images in a version of its own, which the
listing addresses by range. Either way memory is bounded by a batch of rows, and each image is decoded once.
"""

from __future__ import annotations

import functools
import json
import re
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from infra.base import storage, versions
from infra.base.config import recipe_hash
from infra.base.errors import OacirError
from pipelines.sources.hf_rows import HuggingFaceConfig, PackStage, scan_arrow
from pipelines.sources.scans import in_parallel
from pipelines.sources.tables import REFUSED, TabledSource, divide, files_below, refusals
from pipelines.stages import publish, run_stages

NAME = "hf_datasets"
_OURS = r"([.](parquet|arrow)|(^|/)(state|dataset_dict|dataset_info)[.]json|^README[.]md)$"


class HuggingFace(TabledSource):
    """The source over such a folder; parquet files are unpacked below `store` when they are first listed."""

    name = NAME
    layout = "<root>/state.json with data-*.arrow (save_to_disk), dataset_dict.json with such folders, or *.parquet"

    def __init__(self, config: HuggingFaceConfig, store: str, *, workers: int | None) -> None:
        super().__init__(config.root)
        self.config, self.store, self.workers = config, store, workers

    def look(self) -> pa.Table:
        """See `TabledSource`."""
        files = files_below(self.root)
        files = files.filter(pc.invert(pc.match_substring_regex(files["path"], "(^|/)[.]")))
        self._data(files)
        return files

    def read(self, files: pa.Table) -> tuple[pa.Table, pa.Table]:
        """See `TabledSource`."""
        if self.version:
            self.base = self.version.url
            refused = self.version.table("rejects/pack", REFUSED.names).cast(REFUSED)
            return self.version.table("listing"), refused
        scan = functools.partial(scan_arrow, root=self.root, config=self.config, licence=self._licence(files))
        items = [json.dumps(row) for row in self._data(files).to_pylist()]
        return _with_files(pa.concat_tables(in_parallel(scan, items, "list the rows", "files")), files)

    @cached_property
    def version(self) -> versions.Version | None:
        """The unpacked parquet files, made where they are missing; None for Arrow files, which are read in place."""
        files = self._look()
        paths = tuple(self._data(files)["path"].to_pylist())
        if not paths[0].endswith(".parquet"):
            return None
        options = self.config.model_dump(mode="json", exclude={"root"})
        key = recipe_hash(options, self.fingerprint())
        draft = versions.start("datasets", NAME, key, self.config, root=self.store)
        if draft.finished:
            return versions.Version(draft.url, draft.finished)
        stage = PackStage(self.config, self.root, paths, self._licence(files), draft.url)
        records = run_stages(
            [stage], draft.url, len(paths), workers=self.workers, label="unpack the parquet files"
        )
        return publish(draft, records)

    def expected_images(self) -> dict[str, int] | None:
        """Rows of the parquet files, by the domain of rows that name none, without unpacking any; None for Arrow."""
        paths = self._data(self._look())["path"].to_pylist()
        if not paths[0].endswith(".parquet"):
            return None
        count = 0
        for path in paths:
            with storage.open_parquet(storage.join(self.root, path)) as file:
                count += file.metadata.num_rows
        return {self.config.domain: count}

    def _data(self, files: pa.Table) -> pa.Table:
        """The files with the rows, in path order."""
        there = _named(files)
        if "dataset_dict.json" in there:
            folders = self._chosen(self._json("dataset_dict.json", "splits"))
            paths = [path for folder in folders for path in self._saved(f"{folder}/")]
        elif "state.json" in there:
            paths = self._saved("")
        else:
            of = {path: _split_of(path) for path in there if path.endswith(".parquet")}
            if not of:
                raise self.wrong("neither a saved data set nor a parquet file")
            chosen = self._chosen(sorted(set(of.values())))
            paths = [path for path, split in of.items() if split in chosen]
        missing = sorted(set(paths) - there)
        if missing:
            raise OacirError(
                f"source.root {self.root}: state.json names {missing[0]}, which is not there; copy it too"
            )
        return files.filter(pc.is_in(files["path"], pa.array(paths))).sort_by("path")

    def _saved(self, folder: str) -> list[str]:
        """The Arrow files of a folder that `Dataset.save_to_disk` wrote."""
        state = f"{folder}state.json"
        if self._json(state, "_indices_data_files", None):
            url = storage.join(self.root, state)
            raise OacirError(f"{url}: an index chooses the rows; save the data set after flatten_indices()")
        return [folder + str(entry["filename"]) for entry in self._json(state, "_data_files")]

    def _json(self, path: str, key: str, *default: Any) -> Any:
        url = storage.join(self.root, path)
        try:
            said = json.loads(storage.read_bytes(url))
            return said.get(key, *default) if default else said[key]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OacirError(f"{url}: no JSON with {key}; `datasets` writes it when it saves") from error

    def _chosen(self, splits: list[str]) -> list[str]:
        wanted = splits if self.config.splits is None else self.config.splits
        missing = sorted(set(wanted) - set(splits))
        if missing:
            there = ", ".join(splits) or "none"
            raise OacirError(
                f"source.splits {', '.join(missing)}: {self.root} has no such split; there are {there}"
            )
        return wanted

    def _licence(self, files: pa.Table) -> str | None:
        """The licence of the whole: of a `dataset_info.json`, or of the head of the card."""
        there = _named(files)
        for path in sorted(p for p in there if p.endswith("dataset_info.json")):
            if licence := self._json(path, "license", None):
                return str(licence)
        if "README.md" not in there:
            return None
        text = storage.read_bytes(storage.join(self.root, "README.md")).decode("utf-8", "replace")
        head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        try:
            said = yaml.safe_load(head[1]) if head else None
        except yaml.YAMLError:  # the card is for people; the data are read without it
            return None
        licence = said.get("license") if isinstance(said, dict) else None
        licences = licence if isinstance(licence, list) else [licence]
        return ", ".join(str(one) for one in licences if one) or None


def _named(files: pa.Table) -> set[str]:
    """Paths of the files that make up the layout."""
    return set(files["path"].filter(pc.match_substring_regex(files["path"], _OURS)).to_pylist())


def _split_of(path: str) -> str:
    """The split of a parquet file: what stands before its number, else its folder, else its name."""
    folder, _, name = path.rpartition("/")
    if numbered := re.match(r"(.+?)-\d+-of-\d+", name):
        return numbered[1]
    return storage.name_of(folder) if folder else name.removesuffix(".parquet")


def _with_files(scanned: pa.Table, files: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Scanned rows as those of the listing and the refused; an image in a file of its own gets its size and mark."""
    listing, refused = divide(scanned)
    apart = pc.is_null(listing["size_bytes"])
    if not pc.any(apart).as_py():
        return listing, refused
    here = files.take(pc.index_in(listing["uri"], files["path"]))
    for name in ("size_bytes", "mark"):
        at = listing.schema.get_field_index(name)
        listing = listing.set_column(at, listing.schema.field(name), pc.coalesce(listing[name], here[name]))
    gone = pc.or_kleene(pc.is_null(listing["size_bytes"]), pc.less(listing["size_bytes"], 0))
    more = refusals(listing["image_id"].filter(gone), "not_a_file", "its file is not there")
    return listing.filter(pc.invert(gone)), pa.concat_tables([refused, more])
