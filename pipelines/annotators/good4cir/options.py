"""Options of the good4cir annotator, beside those of the chat model that it asks."""

from __future__ import annotations

from pydantic import Field

from infra.base.config import Config


class Good4cirOptions(Config):
    """How photos are listed and how sentences become a text."""

    objects: int = Field(8, ge=1)
    """Most entries in the list of a photo."""
    sentences: int = Field(3, ge=1)
    """Most sentences of a text; how many a text has is drawn from one to so many by the seed and the pair."""
    max_tokens: int = Field(1500, ge=64)
    """Most tokens of a list or of the sentences, in place of chat.max_tokens."""
