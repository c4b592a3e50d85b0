from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from infra.base.config import load_recipe
from infra.base.errors import RecipeError
from pipelines.annotators.chat import prompts
from pipelines.annotators.chat.options import PROFILES, ChatOptions
from pipelines.annotators.good4cir.options import Good4cirOptions
from pipelines.config import BuildRecipe

CHAT = [("annotator", "chat"), ("chat.base_url", "http://localhost:8000/v1"), ("chat.model", "m")]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"base_url": "localhost:8000"}, "no server's address"),
        ({"base_url": "http://me:pass@host/v1"}, "holds a user or password"),
        ({"parameters": {"stream": True}}, "stream cannot be set here"),
        ({"most_money": 3.0}, "most_money needs price"),
        ({"profiles": {"toys": "nobody"}}, "profiles"),
    ],
)
def test_what_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        ChatOptions.model_validate({"base_url": "http://host/v1", "model": "m"} | options)


def test_the_section_and_the_annotator_belong_together() -> None:
    assert load_recipe(BuildRecipe, "photos", CHAT).chat is not None
    with pytest.raises(RecipeError, match=r"chat needs chat.base_url and chat.model"):
        load_recipe(BuildRecipe, "photos", [("annotator", "chat")])
    with pytest.raises(RecipeError, match="has no effect with annotator = auto"):
        load_recipe(BuildRecipe, "photos", CHAT[1:])


def test_the_key_names_what_is_asked_not_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(*more: tuple[str, str]) -> str:
        return load_recipe(BuildRecipe, "photos", [*CHAT, *more]).key("f")

    same = key()
    assert (
        key(("chat.base_url", "http://other/v1"), ("chat.most_tokens", "5"), ("chat.concurrency", "3"))
        == same
    )
    assert key(("chat.model", "n")) != same
    assert key(("chat.temperature", "0")) != same
    monkeypatch.setattr("pipelines.config.prompts_hash", lambda: "other")
    assert key() != same


def test_a_recipe_without_chat_keeps_the_key_it_had() -> None:
    data = load_recipe(BuildRecipe, "photos")
    from pipelines.config import recipe_hash

    seen: list[Any] = []
    assert data.chat is None
    assert data.key("f") == recipe_hash(*_spied(data, seen))
    assert "chat" not in seen[0]


def _spied(recipe: BuildRecipe, seen: list[Any]) -> tuple[Any, ...]:
    from unittest.mock import patch

    with patch("pipelines.config.recipe_hash", side_effect=lambda *a: seen.extend(a) or ""):
        recipe.key("f")
    return tuple(seen)


def test_parameters_join_and_leave_the_request() -> None:
    options = ChatOptions(
        base_url="http://h/v1", model="m", parameters={"seed": None, "top_p": 0.9}, answers_as="json_object"
    )
    question = prompts.Question((("user", ("hello",)),), "text", 3, "toys")
    body = prompts.payload(question, options, {})
    assert "seed" not in body
    assert (body["top_p"], body["response_format"]) == (0.9, {"type": "json_object"})


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_a_prompt_with_the_rules(profile: Any) -> None:
    text = prompts.instruction(profile, 25)
    assert "$" not in text
    assert "At most 25 words" in text
    assert ("the make, the model or the colour" in text) == (profile == "car")
    assert text == prompts.instruction(profile, 25)
    assert prompts.instruction_hash(profile, 25) != prompts.instruction_hash(profile, 30)


def test_a_domain_takes_the_prompts_of_its_name_or_as_told() -> None:
    options = ChatOptions(base_url="http://h/v1", model="m", profiles={"toys": "product"})
    assert [options.profile(d) for d in ("toys", "car", "birds")] == ["product", "car", "general"]


def test_good4cir_has_its_options_and_its_key_hangs_on_them() -> None:
    def made(name: str, *more: tuple[str, str]) -> BuildRecipe:
        return load_recipe(BuildRecipe, name, list(more))

    listed, asked = made("photos_good4cir"), made("photos_chat")
    assert (listed.annotator, listed.good4cir) == ("good4cir", Good4cirOptions())
    assert asked.good4cir is None
    assert listed.prompts() != asked.prompts() == prompts.prompts_hash()
    assert made("photos_good4cir", ("good4cir.sentences", "2")).key("f") != listed.key("f")
    with pytest.raises(RecipeError, match=r"good4cir: has no effect with annotator = chat"):
        made("photos_chat", ("good4cir.sentences", "2"))
    with pytest.raises(RecipeError, match=r"annotator = good4cir needs chat.base_url and chat.model"):
        made("photos", ("annotator", "good4cir"))


@pytest.mark.parametrize("name", ["photos_chat", "products10k_chat"])
def test_shipped_recipes_ask_a_chat_model(name: str) -> None:
    recipe = load_recipe(BuildRecipe, name)
    assert (recipe.name, recipe.annotator) == (name, "chat")
    assert recipe.chat is not None
    assert recipe.thresholds == load_recipe(BuildRecipe, name.removesuffix("_chat")).thresholds
    assert (recipe.grounding is not None) == (name == "products10k_chat")
