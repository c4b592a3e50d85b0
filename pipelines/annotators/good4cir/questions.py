"""The three questions of a pair, and the prompts beside this file. They decide the texts, so they have a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from string import Template
from typing import Any

from pipelines.annotators.base import Annotation, PairToAnnotate, Rejection
from pipelines.annotators.chat import prompts as chat
from pipelines.annotators.chat.answers import Listed
from pipelines.annotators.chat.options import ChatOptions, Profile
from pipelines.annotators.chat.prompts import Part, Question
from pipelines.annotators.good4cir.options import Good4cirOptions

FOLDER = Path(__file__).parent / "prompts"
FEWEST_WORDS = 8
"""A sentence may have so many, however short texts must be."""


def prompts_hash() -> str:
    """SHA-256 over all prompts of this annotator and those of the chat model that it shares."""
    digest = hashlib.sha256(chat.prompts_hash().encode())
    for file in sorted(FOLDER.glob("*.txt")):
        digest.update(f"{file.name}\0{file.read_text()}\0".encode())
    return digest.hexdigest()


def reference_question(
    pair: PairToAnnotate, options: ChatOptions, good: Good4cirOptions, seed: int
) -> Question:
    """What is to be seen around the object in the reference. Equal for all pairs of a reference."""
    name = f"objects\0{pair.reference['image_id']}"
    prompt = _filled("objects", _about(pair.reference, options.profile(pair.domain), good))
    return _question(pair, (prompt, chat.picture_of(pair.reference)), "objects", good, seed, name)


def target_question(
    pair: PairToAnnotate, reference: Sequence[Listed], options: ChatOptions, good: Good4cirOptions, seed: int
) -> Question:
    """The same of the target, in the reference's words where they apply."""
    about = _about(pair.target, options.profile(pair.domain), good) | {"objects": as_json(reference)}
    parts = (_filled("objects_again", about), chat.picture_of(pair.target))
    return _question(pair, parts, "objects", good, seed, f"objects again\0{pair.pair_id}")


def difference_question(
    pair: PairToAnnotate,
    lists: tuple[Sequence[Listed], Sequence[Listed]],
    options: ChatOptions,
    good: Good4cirOptions,
    max_words: int,
    seed: int,
) -> Question:
    """Sentences on what differs between the lists of reference and target. It shows no photo."""
    prompt = Template(instruction(options.profile(pair.domain), good, max_words)).substitute(
        reference=as_json(lists[0]), target=as_json(lists[1])
    )
    return _question(pair, (prompt,), "differences", good, seed, f"differences\0{pair.pair_id}")


def again_question(asked: Question, text: Annotation, fault: Rejection) -> Question:
    """The sentences once more, with the text that was made of them and the rule that it breaks."""
    said = [{k: d[k] for k in ("object", "sentence")} for d in text.extra["differences"]]
    told = _filled(
        "differences_again", {"text": text.text, "fault": f"{chat.BROKEN[fault.reason]} ({fault.detail})"}
    )
    answered = json.dumps({"differences": said}, ensure_ascii=False)
    messages = (*asked.messages, ("assistant", (answered,)), ("user", (told,)))
    return Question(messages, asked.schema, asked.seed, asked.domain, asked.max_tokens)


@lru_cache
def instruction(profile: Profile, good: Good4cirOptions, max_words: int) -> str:
    """The prompt of the sentences; both lists are still to be filled in."""
    words = str(max(FEWEST_WORDS, max_words // good.sentences))
    return Template(_read("differences")).safe_substitute(max_words=words, naming=chat.naming(profile))


@lru_cache
def instruction_hash(profile: Profile, good: Good4cirOptions, max_words: int) -> str:
    """SHA-256 of the three prompts of a pair: the provenance of its text."""
    lists = [
        Template(_read(name)).safe_substitute(hints=chat.hints(profile), most=str(good.objects))
        for name in ("objects", "objects_again")
    ]
    return hashlib.sha256("\0".join([*lists, instruction(profile, good, max_words)]).encode()).hexdigest()


def as_json(listed: Sequence[Listed]) -> str:
    """A list as the prompts show it."""
    return json.dumps({"objects": [each.model_dump() for each in listed]}, ensure_ascii=False)


def _about(side: dict[str, Any], profile: Profile, good: Good4cirOptions) -> dict[str, str]:
    where = chat.where(side, "photograph") or "It is the most prominent object of its kind."
    return {"where": where, "hints": chat.hints(profile), "most": str(good.objects)}


def _question(
    pair: PairToAnnotate, parts: tuple[Part, ...], schema: str, good: Good4cirOptions, seed: int, name: str
) -> Question:
    return Question((("user", parts),), schema, chat.seed_of(seed, name), pair.domain, good.max_tokens)


def _filled(name: str, words: dict[str, str]) -> str:
    return Template(_read(name)).substitute(words)


@lru_cache
def _read(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text().strip()
