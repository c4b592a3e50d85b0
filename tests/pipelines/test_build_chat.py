"""Builds whose texts come from a chat model: the scripted server answers, the stages run in this process."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, chat_server, content, good
from without_ray import run_stages_here

from infra.base.command import Context
from infra.base.config import load_recipe
from infra.base.errors import OacirError
from infra.base.versions import Version, open_version
from pipelines.annotators.chat.prompts import instruction_hash, prompts_hash
from pipelines.build import build
from pipelines.config import BuildRecipe
from pipelines.stages import read_parts

WORLD = {
    "domains": ["car", "fashion"],
    "instances_per_domain": 8,
    "image_size_px": 64,
    "near_duplicate_fraction": 0.0,
}
LOOSE = {"tau_valid": 3, "tau_high": 0.9999, "tau_centric": 0.9999, "tau_count": 3}


def made(
    server: ChatServer, root: Path, name: str = "asked", update: str | None = None, **chat: Any
) -> Version:
    tree = {
        "name": name,
        "source": {"kind": "world", "world": WORLD},
        "thresholds": {"default": LOOSE, "domains": {"car": LOOSE | {"max_words": 25}}},
        "max_pairs_per_instance": 4,
        "images_per_part": 24,
        "update": update,
        "annotator": "chat",
        "chat": {"base_url": server.url, "model": "m", "tries": 2, "concurrency": 8} | chat,
    }
    outcome = build(BuildRecipe.model_validate(tree), Context(root=str(root)))
    return open_version(str(outcome.location))


def rows(version: Version, table: str) -> list[dict[str, Any]]:
    parts = len(version.table_files("quadruples"))
    return [row for t in read_parts(version.url, table, parts) for row in t.to_pylist()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        run_stages_here(patch)
        yield tmp_path_factory.mktemp("root")


def test_a_build_stops_at_its_budget_goes_on_and_is_answered_from_what_is_kept(root: Path) -> None:
    with chat_server() as server:
        with pytest.raises(
            OacirError, match=r"budget: .* of chat.most_tokens = 3,000 are spent; raise it and run"
        ):
            made(server, root, most_tokens=3000)
        stopped_at = len(server.pairs)
        assert 10 <= stopped_at <= 25
        version = made(server, root)
        queries = rows(version, "quadruples")
        assert len(server.pairs) == len(queries) > 40
        assert max(Counter(r.digest for r in server.pairs).values()) == 1
        figures = version.manifest.figures["chat"]
        assert figures == {
            "model": "m", "prompts_sha256": prompts_hash(), "requests": len(queries),
            "prompt_tokens": 100 * len(queries), "completion_tokens": 20 * len(queries), "money": None,
            "answers_of_other_benchmarks": 0, "tries_again": 0, "texts_asked_again": 0, "texts_mended": 0,
        }  # fmt: skip
        for query in queries:
            said = query["provenance"]
            limit = 25 if query["domain"] == "car" else 30
            assert said["prompt_sha256"] == instruction_hash(query["domain"], limit)
            assert (said["annotator"], said["model"]) == ("chat", "scripted-1")
            assert json.loads(said["extra_json"]) == {"changes": ["another place"]}
        second = made(server, root, name="again")
        assert rows(second, "quadruples") == queries
        assert second.manifest.content_hash == version.manifest.content_hash
        assert len(server.pairs) == len(queries)
        assert second.manifest.figures["chat"]["answers_of_other_benchmarks"] == len(queries)
        assert second.manifest.figures["chat"]["requests"] == 0


def test_the_same_text_for_all_pairs_is_kept_once_over_all_parts(root: Path) -> None:
    def script(request: Any) -> str:
        same = content("Show it on a sandy beach at sunset, farther away.")
        return good(request) if "two drawings" in request.text else same

    with chat_server(script) as server:
        version = made(server, root, name="same", model="parrot")
    assert len(version.table_files("quadruples")) > 1
    assert len(rows(version, "quadruples")) == 1
    rejects = rows(version, "rejects/annotate")
    assert {r["reason"] for r in rejects} == {"text_repeats"}
    figures = version.manifest.figures["chat"]
    assert (figures["texts_asked_again"], figures["texts_mended"]) == (len(rejects), 0)
    # each of them was told and had its second try
    assert len(server.pairs) == 1 + 2 * len(rejects)


def test_a_server_without_eyes_is_refused_before_a_single_pair(root: Path) -> None:
    def blind(request: Any) -> str:
        return content("Show it on a sandy beach.")

    with chat_server(blind) as server:
        with pytest.raises(OacirError, match="m does not see the pictures"):
            made(server, root, name="blind")
        assert len(server.requests) == 1


def test_an_update_takes_texts_over_while_model_prompts_and_options_are_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chat_server() as server:
        first = made(server, root, name="first", cache=str(root / "first"))
        asked = len(server.pairs)
        # another cache: what is not asked was taken over, not found there
        second = made(server, root, name="second", update=first.url, cache=str(root / "second"))
        assert len(server.pairs) == asked
        assert rows(second, "quadruples") == rows(first, "quadruples")
        assert second.manifest.figures["taken_over"]["pairs"] == asked
        changed = {"model": "n", "cache": str(root / "third")}
        third = made(server, root, name="third", update=first.url, **changed)
        assert third.manifest.figures["taken_over"]["pairs"] == 0
        assert len(server.pairs) == 2 * asked
        monkeypatch.setattr("pipelines.config.prompts_hash", lambda: "other")
        fourth = made(server, root, name="fourth", update=first.url, cache=str(root / "fourth"))
        assert fourth.manifest.figures["taken_over"]["pairs"] == 0


def test_the_plan_says_who_is_asked_and_asks_nobody(root: Path) -> None:
    more = [("annotator", "chat"), ("chat.base_url", "http://127.0.0.1:1/v1"), ("chat.model", "m")]
    recipe = load_recipe(
        BuildRecipe, "world", [*more, ("chat.most_tokens", "5000"), ("grounding.model", "d")]
    )
    lines = build(recipe, Context(root=str(root), dry_run=True)).details
    assert "texts: m at http://127.0.0.1:1/v1, 1 to 2 requests a pair, 16 at once; 5,000 tokens" in lines
    assert "boxes of photos without one: d, from 0.3" in lines


def test_with_a_check_texts_that_fit_both_photos_are_refused_and_accounted_for(root: Path) -> None:
    def script(request: Any) -> str:
        if "Turn the request" in request.text:
            return json.dumps({"questions": ["Is it there?", "Is it dark?"]})
        if "answer each question" in request.text:
            bright = request.pictures[0].convert("L").resize((1, 1)).getpixel((0, 0)) > 120
            return json.dumps({"answers": ["yes", "yes" if bright else "no"]})
        return good(request)

    with chat_server(script) as server:
        version = made(server, root, name="checked", check={"min_yes": 1.0, "min_gap": 0.5})
        looks = [r for r in server.pairs if "answer each question" in r.text]
    queries, rejects = rows(version, "quadruples"), rows(version, "rejects/annotate")
    assert queries
    assert {r["reason"] for r in rejects} == {"text_untrue", "text_not_separating"}
    checks = [json.loads(q["provenance"]["extra_json"])["check"] for q in queries]
    assert checks == [{"questions": 2, "target": 1.0, "reference": 0.5}] * len(queries)
    (account,) = version.manifest.accounts["annotate"]
    assert account.kept + sum(account.rejected.values()) == account.taken_in == len(queries) + len(rejects)
    assert all(len(r.pictures) == 1 for r in looks)
    assert max(Counter(r.digest for r in server.pairs).values()) == 1
