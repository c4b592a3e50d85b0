"""A script for the server of `chat_server`: lists of what photos show, and sentences on what differs between lists."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from chat_server import LIGHTS, PLACES, STATES, Request, good

SENTENCES = {
    "place": "Put it near the {}.",
    "light": "It should be seen {}.",
    "view": "This time have it {}.",
    "sign": "Beside it there is a sign that says {}.",
}
"""Name of an entry → what is said when it differs."""


def kind(request: Request) -> str:
    """Which of the three questions a request is; empty for another one."""
    if "List what is to be seen around the anchor" in request.text:
        return "reference"
    if "Make such a list" in request.text:
        return "target"
    return "differences" if "Write one sentence for each entry" in request.text else ""


def seen(picture: Any) -> dict[str, str]:
    """What a photo shows, by its pixels."""
    digest = hashlib.sha256(picture.tobytes()).digest()
    tail = digest[8:12].hex().translate(str.maketrans("0123456789", "ghijklmnop"))
    return {
        "place": PLACES[digest[0] % len(PLACES)],
        "light": LIGHTS[digest[1] % 3],  # few, so that some photos share theirs
        "view": STATES[digest[2] % len(STATES)],
        "sign": tail,
    }


def lists_of(request: Request) -> list[dict[str, str]]:
    """The lists that a request shows, name → its one descriptor."""
    found = re.findall(r'\{"objects": \[.*?\]\}(?=\n|$)', request.body["messages"][0]["content"][0]["text"])
    return [
        {e["name"]: e["descriptors"][0] for e in json.loads(text)["objects"]}
        for text in found
        if "..." not in text
    ]


def as_list(shown: dict[str, str]) -> str:
    """The answer to a photo."""
    return json.dumps({"objects": [{"name": k, "descriptors": [v]} for k, v in shown.items()]})


def listing(request: Request) -> str:
    """Right answers to the three questions, and to all that `good` knows."""
    asked = kind(request)
    if asked in ("reference", "target"):
        return as_list(seen(request.pictures[0]))
    if asked == "differences":
        before, after = lists_of(request)
        told = [{"object": k, "sentence": SENTENCES[k].format(v)} for k, v in after.items() if before[k] != v]
        return json.dumps({"differences": told})
    return good(request)


def seed_is_even(request: Request) -> bool:
    """A coin that each question throws for itself, always the same way."""
    return request.body["seed"] % 2 == 0
