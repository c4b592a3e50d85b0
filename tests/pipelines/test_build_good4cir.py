"""Builds whose texts come by way of lists of objects: the same gates, budget, cache and accounts as of one question."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lister
import pytest
from chat_server import ChatServer, chat_server, content
from without_ray import run_stages_here

from infra.base.command import Context
from infra.base.errors import OacirError
from infra.base.versions import Version, open_version
from pipelines.build import build
from pipelines.config import BuildRecipe
from pipelines.stages import read_parts

LOOSE = {"tau_valid": 3, "tau_high": 0.9999, "tau_centric": 0.9999, "tau_count": 3}
WORLD = {
    "domains": ["fashion"], "instances_per_domain": 5, "image_size_px": 64, "near_duplicate_fraction": 0.0,
}  # fmt: skip


def recipe(server_url: str, name: str, update: str | None = None, **chat: Any) -> BuildRecipe:
    tree = {
        "name": name,
        "source": {"kind": "world", "world": WORLD},
        "thresholds": {"default": LOOSE},
        "max_pairs_per_instance": 4,
        "images_per_part": 16,
        "update": update,
        "annotator": "good4cir",
        "chat": {"base_url": server_url, "model": "m", "tries": 2, "concurrency": 8} | chat,
    }
    return BuildRecipe.model_validate(tree)


def made(server: ChatServer, root: Path, name: str, update: str | None = None, **chat: Any) -> Version:
    outcome = build(recipe(server.url, name, update, **chat), Context(root=str(root)))
    return open_version(str(outcome.location))


def rows(version: Version, table: str) -> list[dict[str, Any]]:
    parts = len(version.table_files("quadruples"))
    return [row for t in read_parts(version.url, table, parts) for row in t.to_pylist()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        run_stages_here(patch)
        yield tmp_path_factory.mktemp("root")


def test_a_build_stops_at_its_budget_goes_on_and_adds_up(root: Path) -> None:
    with chat_server(lister.listing) as server:
        with pytest.raises(OacirError, match=r"of chat.most_tokens = 2,000 are spent"):
            made(server, root, "listed", most_tokens=2000)
        version = made(server, root, "listed")
        kinds = Counter(lister.kind(r) for r in server.pairs)
        assert max(Counter(r.digest for r in server.pairs).values()) == 1
        queries, rejects = rows(version, "quadruples"), rows(version, "rejects/annotate")
        pairs = len(queries) + len(rejects)
        assert len({q["modification_text"] for q in queries}) == len(queries) > 5
        references = {r["reference_id"] for r in rows(version, "pairs")}
        assert kinds["reference"] == len(references) < pairs
        assert kinds["target"] == pairs
        again = version.manifest.figures["chat"]["texts_asked_again"]
        assert kinds["differences"] <= pairs + again
        assert version.manifest.figures["chat"]["requests"] == len(server.pairs)
        assert version.manifest.figures["annotator"] == "good4cir"
        assert version.manifest.figures["chat"]["prompts_sha256"] == recipe("http://h/v1", "x").prompts()
        (account,) = version.manifest.accounts["annotate"]
        assert account.kept + sum(account.rejected.values()) == account.taken_in == pairs
        for query in queries:
            said = query["provenance"]
            assert (said["annotator"], said["model"]) == ("good4cir", "scripted-1")
            told = [d["sentence"] for d in json.loads(said["extra_json"])["differences"]]
            assert query["modification_text"].startswith(tuple(told))
        # an update takes the texts over, and another benchmark finds the answers
        second = made(server, root, "second", update=version.url, cache=str(root / "other"))
        assert second.manifest.figures["taken_over"]["pairs"] == pairs
        third = made(server, root, "third")
        assert third.manifest.content_hash == version.manifest.content_hash
        assert Counter(lister.kind(r) for r in server.pairs) == kinds


def test_the_same_sentence_for_all_pairs_is_kept_once(root: Path) -> None:
    def parrot(request: Any) -> str:
        if lister.kind(request) == "differences":
            names = {name for shown in lister.lists_of(request) for name in shown}
            told = [{"object": name, "sentence": "Show it on a sandy beach at sunset."} for name in names]
            return json.dumps({"differences": told})
        return lister.listing(request)

    with chat_server(parrot) as server:
        version = made(server, root, "same", model="parrot")
    texts = {q["modification_text"] for q in rows(version, "quadruples")}
    assert len(texts) <= 3  # of one, two and three sentences
    assert {r["reason"] for r in rows(version, "rejects/annotate")} == {"text_repeats"}


def test_a_server_without_eyes_is_refused_before_a_photo_is_listed(root: Path) -> None:
    with chat_server(lambda request: content("Show it on a sandy beach.")) as server:
        with pytest.raises(OacirError, match="m does not see the pictures"):
            made(server, root, "blind")
        assert len(server.requests) == 1


def test_the_plan_says_what_a_pair_takes(root: Path) -> None:
    asked = recipe("http://127.0.0.1:1/v1", "plan")
    lines = build(asked, Context(root=str(root), dry_run=True)).details
    where = "m at http://127.0.0.1:1/v1"
    assert (
        f"texts: {where}, 2 to 3 requests a pair and one for each reference, 8 at once; without a bound"
        in lines
    )
