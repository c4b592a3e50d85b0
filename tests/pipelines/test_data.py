from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_versions import rows_of, write_version

from infra import cli
from infra.base import storage, versions
from infra.base.accounts import Account
from infra.base.command import Context
from infra.base.config import Config
from infra.base.errors import VersionError
from pipelines import data
from pipelines.data import GcRecipe, ListRecipe, ShowRecipe, flat

PHOTOS = Account(entity="images", taken_in=12, kept=10, rejected={"corrupt": 2})


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Two versions of one name, one of another, and an unfinished one."""
    rows = rows_of({"toys/a": "train", "toys/b": "test", "cups/c": "dev"})
    for seed in (0, 1):
        write_version(tmp_path, rows, seed=seed, accounts=[PHOTOS])
    write_version(tmp_path, rows_of({"toys/a": "train"}), name="other")
    versions.start("features", "tower", "k", Config(), root=str(tmp_path))
    return str(tmp_path)


def age_all(root: str, year: int) -> None:
    """Let every finished version be of that year, each a day younger than the one before."""
    for n, place in enumerate(sorted(Path(root).rglob("manifest.json"))):
        manifest = json.loads(place.read_text())
        place.write_text(json.dumps(manifest | {"created_at": f"{year}-01-{n + 1:02d}T00:00:00+00:00"}))


def test_list_names_every_version_with_its_size_and_state(root: str) -> None:
    outcome = data.list_all(ListRecipe(), Context(root=root))
    lines = [line.split() for line in outcome.details]
    assert lines[0] == ["kind", "name/key", "rows", "bytes", "age", "state", "made", "from"]
    assert [line[1] for line in lines[1:]] == [
        "other/0000000000000000", "small/0000000000000000", "small/0000000000000001", "tower/k"
    ]  # fmt: skip
    assert lines[2][:3] == ["datasets", "small/0000000000000000", "6"]
    assert lines[4][-1] == "unfinished"
    assert outcome.message.startswith("4 versions, 1 of them unfinished, ")
    first = outcome.figures["versions"][1]
    stored = sum(f.stat().st_size for f in (Path(first["url"])).rglob("*.parquet"))
    assert (first["rows"], first["bytes"]) == (6, stored)
    only = data.list_all(ListRecipe(kind="datasets", name="other"), Context(root=root))
    assert [v["name"] for v in only.figures["versions"]] == ["other"]


def test_a_parent_is_shown_by_name_where_it_lies_here(root: str) -> None:
    parent = versions.resolve(root, "datasets", "other")
    draft = versions.start("features", "tower", "made", Config(), root=root)
    draft.commit(
        content_hash="f" * 64, files=[], parents={"dataset": parent.manifest.content_hash, "x": "e" * 64}
    )
    (line,) = [x for x in data.list_all(ListRecipe(), Context(root=root)).details if "tower/made" in x]
    assert line.endswith("finished    dataset other/0000000000000000, x eeeeeeeeeeee…")


def test_show_states_tables_accounts_galleries_and_recipe(root: str) -> None:
    outcome = data.show(ShowRecipe(dataset="small/0000000000000001"), Context(root=root))
    text = "\n".join(outcome.details)
    assert "  collect, images  12    10         2         –            –  corrupt 2" in text
    assert outcome.figures["tables"]["quadruples"]["rows"] == 6
    galleries = outcome.figures["figures"]["galleries"]
    assert f"  toys/test  2 images  0 distractors  {galleries['toys/test']['sha256']}" in text
    assert outcome.figures["recipe"] == {"name": "small", "seed": 1}
    assert outcome.location is not None
    with pytest.raises(VersionError, match="there are: other/0000000000000000, small"):
        data.show(ShowRecipe(dataset="nothing"), Context(root=root))


def test_gc_only_says_what_it_would_delete_until_it_is_told_to(root: str, capsys: Any) -> None:
    age_all(root, 2020)
    before = sorted(Path(root).rglob("*"))
    dry = data.gc(GcRecipe(), Context(root=root))
    assert [v["url"] for v in dry.figures["versions"]] == [
        storage.join(root, "datasets/small/0000000000000000")
    ]  # the unfinished one is new, the others are the newest of their name
    assert dry.message.startswith("would delete 1 versions")
    assert data.gc(GcRecipe(yes=True), Context(root=root, dry_run=True)).figures["deleted"] is False
    assert sorted(Path(root).rglob("*")) == before
    assert cli.main(["data", "gc", "--yes", "--root", root]) == 0
    assert "deleted 1 versions" in capsys.readouterr().out
    assert [v.manifest.name for v in versions.list_versions(root, "datasets")] == ["other", "small"]
    assert not Path(root, "datasets/small/0000000000000000").exists()
    left = data.gc(GcRecipe(), Context(root=root))
    assert left.message == "would delete 0 versions, 0 B"


def test_recipes_are_flat_as_the_command_line_takes_them() -> None:
    tree = {"name": "x", "source": {"kind": "world", "sizes": [1, 2]}, "none": None, "empty": {}}
    assert flat(tree) == {
        "name": "x", "source.kind": "world", "source.sizes": "[1, 2]", "none": "null", "empty": "{}"
    }  # fmt: skip
