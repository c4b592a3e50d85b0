"""The prompts: files beside this one, and what is filled into them. They decide the texts, so they have a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import Template
from typing import Any

from pipelines.annotators.base import Annotation, PairToAnnotate, Rejection
from pipelines.annotators.chat.options import ChatOptions, Profile

FOLDER = Path(__file__).parent / "prompts"
LABELLED: tuple[Profile, ...] = ("product", "landmark")
"""Profiles whose instances are named by the model before their texts are written."""
PICTURES_OF_A_LABEL = 4
"""Photos of an instance that it is named from."""


@dataclass(frozen=True)
class Picture:
    """A photo as part of a message."""

    uri: str
    sha256: str


Part = str | Picture
Message = tuple[str, tuple[Part, ...]]
"""Role and parts."""


@dataclass(frozen=True)
class Question:
    """One request, before its photos are opened."""

    messages: tuple[Message, ...]
    schema: str
    """Name of the answer's form in `answers.FORMS`."""
    seed: int
    domain: str
    max_tokens: int | None = None
    """Most tokens of the answer; None = as the options say."""

    @property
    def pictures(self) -> list[Picture]:
        """Its photos, in order."""
        return [part for _, parts in self.messages for part in parts if isinstance(part, Picture)]


def prompts_hash() -> str:
    """SHA-256 over all prompt files: what a recipe's texts hang on beside its options."""
    digest = hashlib.sha256()
    for file in sorted(FOLDER.glob("*.txt")):
        digest.update(f"{file.name}\0{file.read_text()}\0".encode())
    return digest.hexdigest()


@lru_cache  # asked twice for every pair
def instruction(profile: Profile, max_words: int) -> str:
    """The prompt of a pair."""
    words = {"max_words": str(max_words), "naming": naming(profile), "hints": hints(profile)}
    return Template(_read("pair")).substitute(words)


def naming(profile: Profile) -> str:
    """What a text may not call the object."""
    return _read("naming_car" if profile == "car" else "naming")


def hints(profile: Profile) -> str:
    """What to look for."""
    return _read(profile)


@lru_cache
def instruction_hash(profile: Profile, max_words: int) -> str:
    """SHA-256 of the prompt of a pair: the provenance of its text."""
    return hashlib.sha256(instruction(profile, max_words).encode()).hexdigest()


def pair_question(pair: PairToAnnotate, options: ChatOptions, max_words: int, seed: int) -> Question:
    """Both photos of a pair, and where the object is."""
    parts = (
        instruction(options.profile(pair.domain), max_words),
        "Starting photograph:",
        picture_of(pair.reference),
        "Wanted photograph:",
        picture_of(pair.target),
        where(pair.reference, "starting photograph")
        or "The object is the one that both photographs have in common.",
    )
    return Question((("user", parts),), "text", seed_of(seed, pair.pair_id), pair.domain)


def again_question(asked: Question, text: Annotation, fault: Rejection) -> Question:
    """The same once more, with the text that was given and the rule that it breaks."""
    said = json.dumps({"changes": text.extra.get("changes", []), "text": text.text}, ensure_ascii=False)
    told = Template(_read("again")).substitute(fault=f"{BROKEN[fault.reason]} ({fault.detail})")
    messages = (*asked.messages, ("assistant", (said,)), ("user", (told,)))
    return Question(messages, "text", asked.seed, asked.domain)


BROKEN = {
    "no_text": "it is empty",
    "text_too_long": "it is too long",
    "text_names_instance": "it names the object",
    "text_names_category": "it names the kind of object",
    "text_names_image": "it speaks of the photographs instead of what they show",
    "text_wrong_language": "it is not an English sentence",
    "text_repeats": "it says the same as the request for another pair; say what is particular to these photographs",
}


def label_question(pairs: Sequence[PairToAnnotate], options: ChatOptions, seed: int) -> Question | None:
    """What the object of some pairs of one instance is called; None where its profile does not ask.

    Args:
        pairs: of one instance.
        options: of the annotator.
        seed: of the build.
    """
    profile = options.profile(pairs[0].domain)
    if profile not in LABELLED:
        return None
    sides = {side["image_id"]: side for pair in pairs for side in (pair.reference, pair.target)}
    pictures = [picture_of(sides[name]) for name in sorted(sides)[:PICTURES_OF_A_LABEL]]
    parts: tuple[Part, ...] = (_read(f"label_{profile}"), *pictures)
    return Question((("user", parts),), "label", seed_of(seed, pairs[0].instance_id), pairs[0].domain)


def questions_question(pair: PairToAnnotate, text: str, seed: int) -> Question:
    """What to look for in a photo that a text wants."""
    asked = Template(_read("questions")).substitute(kind=pair.category, text=text)
    return Question((("user", (asked,)),), "questions", seed_of(seed, text), pair.domain)


def look_question(
    pair: PairToAnnotate, side: dict[str, Any], questions: Sequence[str], seed: int
) -> Question:
    """Questions about one photo of a pair."""
    listed = "\n".join(f"{n}. {' '.join(q.split())}" for n, q in enumerate(questions, 1))
    parts = (Template(_read("look")).substitute(questions=listed), picture_of(side))
    return Question((("user", parts),), "look", seed_of(seed, side["image_id"]), pair.domain)


def canary_text() -> str:
    """What the two drawings of the start are asked with."""
    return _read("canary")


def payload(question: Question, options: ChatOptions, urls: dict[str, str]) -> dict[str, Any]:
    """The body of the request.

    Args:
        question: what is asked.
        options: of the annotator.
        urls: SHA-256 of a photo → what stands for it.
    """
    from pipelines.annotators.chat.answers import schema_of

    def part(each: Part) -> dict[str, Any]:
        if isinstance(each, str):
            return {"type": "text", "text": each}
        return {"type": "image_url", "image_url": {"url": urls[each.sha256]}}

    body: dict[str, Any] = {
        "model": options.model,
        "messages": [
            {"role": role, "content": [part(p) for p in parts] if role == "user" else parts[0]}
            for role, parts in question.messages
        ],
        "temperature": options.temperature,
        "max_tokens": question.max_tokens or options.max_tokens,
        "seed": question.seed,
    }
    if options.answers_as == "json_schema":
        form = {"name": question.schema, "schema": schema_of(question.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    elif options.answers_as == "json_object":
        body["response_format"] = {"type": "json_object"}
    body |= options.parameters
    return {name: value for name, value in body.items() if value is not None}


def question_key(question: Question, options: ChatOptions) -> str:
    """64 hex digits over everything that decides the answer: model, prompt, parameters, photos by their bytes."""
    body = payload(question, options, {p.sha256: f"sha256:{p.sha256}" for p in question.pictures})
    text = json.dumps([body, options.image_side_px], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def where(side: dict[str, Any], photograph: str) -> str | None:
    """Where the object is in a photo, in words: a drawn box would find its way into the texts. None without a box.

    Args:
        side: of a pair.
        photograph: what the sentence calls it.
    """
    if side["box"] is None:
        return None
    x1, y1, x2, y2 = (
        round(100 * v / side[size]) for v, size in zip(side["box"], ("width", "height") * 2, strict=True)
    )
    return (
        f"In the {photograph} the object lies between {x1} and {x2} percent of the width, counted from the left,"
        f" and between {y1} and {y2} percent of the height, counted from the top."
    )


def picture_of(side: dict[str, Any]) -> Picture:
    """The photo of a side of a pair."""
    return Picture(side["uri"], side["sha256"])


def seed_of(seed: int, name: str) -> int:
    """A number that servers take as a seed: 31 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0chat\0{name}".encode()).digest()[:4]) >> 1


@lru_cache
def _read(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text().strip()
