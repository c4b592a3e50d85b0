from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_versions import overwrite, rows_of, write_version

from infra import cli
from infra.base import storage, versions
from infra.base.accounts import Account
from infra.base.command import Context, Outcome
from infra.base.versions import Version
from pipelines.verify import VerifyRecipe, verify

PART = "part-00000.parquet"


def rejects(count: int) -> list[dict[str, Any]]:
    return [
        {"stage": "collect", "entity": "images", "key": f"x{n}", "reason": "corrupt", "detail": None}
        for n in range(count)
    ]


@pytest.fixture
def version(tmp_path: Path) -> Version:
    rows = rows_of({"toys/a": "train", "toys/b": "test", "cups/c": "dev"})
    rows["rejects/collect"] = rejects(2)
    account = Account(entity="images", taken_in=8, kept=6, rejected={"corrupt": 2})
    return write_version(tmp_path, rows, accounts=[account])


def check(version: Version) -> Outcome:
    return verify(VerifyRecipe(dataset=version.url), Context(root="nowhere"))


def faults(version: Version) -> list[tuple[str, str]]:
    return [(f["check"], f["where"]) for f in check(version).figures["faults"]]


def edit_manifest(version: Version, change: Any) -> None:
    place = Path(version.path("manifest.json"))
    tree = json.loads(place.read_text())
    change(tree)
    place.write_text(json.dumps(tree))


def rewrite(version: Version, table: str, change: Any) -> None:
    """Change a table's rows and let the manifest state its new size and hash, as someone covering the tracks would."""
    path = f"{table}/{PART}"
    old = storage.read_table(version.path(path))
    storage.write_table(version.path(path), pa.Table.from_pylist(change(old.to_pylist()), old.schema))
    entry = versions.file_entry(version.url, path, storage.read_table(version.path(path)).num_rows)

    def put(tree: dict[str, Any]) -> None:
        tree["files"] = [f if f["path"] != path else entry.model_dump() for f in tree["files"]]

    edit_manifest(version, put)


def test_an_untouched_version_is_as_stated(version: Version, capsys: Any) -> None:
    outcome = check(version)
    assert (outcome.figures["faults"], outcome.refused) == ([], None)
    assert outcome.figures["files"] == 5
    assert cli.main(["data", "verify", "--dataset", version.url]) == 0
    assert capsys.readouterr().out.startswith("all is as the manifest states: 5 files")


def test_a_changed_cut_or_missing_file_is_named(version: Version, capsys: Any) -> None:
    whole = storage.read_bytes(version.path("images", PART))
    flipped = bytearray(whole)
    flipped[100] ^= 1
    overwrite(version, f"images/{PART}", bytes(flipped))
    overwrite(version, f"gallery/{PART}", storage.read_bytes(version.path("gallery", PART))[:-1])
    Path(version.path("splits", PART)).unlink()
    found = {f["where"]: f["problem"] for f in check(version).figures["faults"] if f["check"] == "file"}
    assert set(found) == {f"images/{PART}", f"gallery/{PART}", f"splits/{PART}"}
    assert found[f"images/{PART}"].startswith("SHA-256")
    assert "bytes, stated are" in found[f"gallery/{PART}"]
    assert found[f"splits/{PART}"].startswith("cannot be read")
    assert cli.main(["data", "verify", "--dataset", version.url]) == 3
    printed = capsys.readouterr()
    assert f"file     images/{PART}" in printed.out
    assert printed.err.splitlines()[-1].startswith("oacir: error: ")


def test_a_row_changed_together_with_its_hash_is_found_by_the_content(version: Version) -> None:
    def other_text(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[0]["modification_text"] = "put it on a chair"
        return rows

    rewrite(version, "quadruples", other_text)
    assert faults(version) == [("content", version.url)]


def test_a_gallery_that_lost_an_image_is_found_with_the_queries_it_breaks(version: Version) -> None:
    rewrite(version, "gallery", lambda rows: [r for r in rows if r["image_id"] != "toys/b/1.jpg"])
    found = check(version).figures["faults"]
    assert ("gallery", "toys/test") in [(f["check"], f["where"]) for f in found]
    assert [(f["where"], f["problem"]) for f in found if f["check"] == "query"] == [
        ("toys/b/0.jpg>", "its target toys/b/1.jpg is not in its gallery")
    ]


def test_accounts_are_held_against_their_sums_and_the_rejects(version: Version) -> None:
    rewrite(version, "rejects/collect", lambda rows: rows[:1])
    found = [f for f in check(version).figures["faults"] if f["check"] == "account"]
    assert [(f["where"], f["problem"]) for f in found] == [
        ("images, corrupt", "1 records in the table of rejects, the accounts say 2")
    ]

    def lose(tree: dict[str, Any]) -> None:
        tree["accounts"]["collect"][0]["kept"] = 5

    edit_manifest(version, lose)
    assert "8 came in, 7 are accounted for" in [f["problem"] for f in check(version).figures["faults"]]


def test_rows_are_counted(version: Version) -> None:
    def claim(tree: dict[str, Any]) -> None:
        tree["files"] = [f | {"rows": 7} if f["path"] == f"images/{PART}" else f for f in tree["files"]]

    edit_manifest(version, claim)
    assert faults(version) == [("rows", f"images/{PART}")]


def test_files_that_a_table_lists_are_read_too(tmp_path: Path) -> None:
    image = b"picture"
    entry = {"path": "images/a.jpg", "size_bytes": len(image), "sha256": storage_hash(image)}
    version = write_version(tmp_path, {"files": [entry]})
    overwrite(version, "images/a.jpg", image)
    assert faults(version) == []
    overwrite(version, "images/a.jpg", b"Picture")
    assert faults(version) == [("file", "images/a.jpg")]


def test_a_dry_run_reads_no_file(version: Version) -> None:
    Path(version.path("splits", PART)).unlink()
    outcome = verify(VerifyRecipe(dataset=version.url), Context(root="nowhere", dry_run=True))
    assert outcome.message.startswith("would read 5 files, ")


def storage_hash(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
