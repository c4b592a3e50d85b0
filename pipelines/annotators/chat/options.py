"""Options of the chat annotator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from infra.base.config import Config
from pipelines.annotators.good4cir.options import Good4cirOptions

Profile = Literal["fashion", "car", "product", "landmark", "general"]
PROFILES: tuple[Profile, ...] = ("fashion", "car", "product", "landmark", "general")
OURS = frozenset({"model", "messages", "stream", "n", "response_format"})
"""Parameters of a request that the annotator sets itself."""
EXECUTION_ONLY = frozenset(
    {
        "base_url", "concurrency", "seconds_per_request", "tries", "key_variable", "key_file", "price", "most_tokens",
        "most_money", "cache",
    }
)  # fmt: skip
"""Options that change how the server is asked, never what."""


class Price(Config):
    """What tokens cost, in whatever money."""

    prompt: float = Field(ge=0.0)
    """Of a million prompt tokens, those of the images included."""
    completion: float = Field(ge=0.0)
    """Of a million completion tokens."""


class CheckOptions(Config):
    """Whether the photos bear a text out: the model's own answers to questions made from the text."""

    min_yes: float = Field(0.75, ge=0.0, le=1.0)
    """Least share of the questions that the target answers with yes."""
    min_gap: float = Field(0.5, ge=0.0, le=1.0)
    """By how much that share must be larger than the reference's."""


class ChatOptions(Config):
    """A chat model behind an OpenAI-compatible server (vLLM, SGLang, TGI, a hosted one)."""

    base_url: str
    """Of the server, up to and with its version: http://host:8000/v1."""
    model: str
    """What the server calls the model; it must take several images in one request."""
    profiles: dict[str, Profile] = Field(default_factory=dict)
    """Domain → which prompts it is asked with; a domain not named takes those of its own name, else general."""
    temperature: float = Field(0.7, ge=0.0, le=2.0)
    """Of the model; texts of equal photos vary with it."""
    max_tokens: int = Field(400, ge=16)
    """Most tokens of an answer; one that is cut there is a bad answer."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Further parameters of every request; null takes out one that is sent otherwise (seed, for servers without it)."""
    answers_as: Literal["json_schema", "json_object", "text"] = "json_schema"
    """How the server is told to answer; whatever it does, each answer is read strictly."""
    image_side_px: int = Field(768, ge=32)
    """Longer side of the photos as they are sent; larger ones are scaled down."""
    concurrency: int = Field(16, ge=1)
    """Most requests in flight, over the whole cluster."""
    seconds_per_request: float = Field(120.0, gt=0.0)
    """Longest time of one try, from connecting to the last byte."""
    tries: int = Field(6, ge=1)
    """Most tries of a request that fails by the server's fault or meets its limits."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable of the process that starts the build, which holds the API key; none is sent where it is
    unset."""
    key_file: str | None = None
    """A file of that machine which holds the API key instead, readable by its owner alone (mode 0600);
    null = the variable."""
    price: Price | None = None
    """What tokens cost; null = money is not counted."""
    most_tokens: int | None = Field(None, ge=1)
    """Most tokens that the texts of one benchmark may take; the build stops there and goes on when it is raised; null =
    no bound."""
    most_money: float | None = Field(None, gt=0.0)
    """Most money that they may cost; needs price; null = no bound."""
    check: CheckOptions | None = None
    """Ask, too, whether the photos bear each text out (three more requests for each); null = nobody looks again."""
    cache: str | None = None
    """Folder (local or s3://) that keeps every answer, so that none is paid twice; null = answers/ under the root."""
    may_name_category: tuple[str, ...] = ("car",)
    """Domains whose texts may name the kind of object."""
    banned: dict[str, tuple[Annotated[str, Field(min_length=1)], ...]] = Field(default_factory=dict)
    """Domain → further names that its texts may not say."""

    @field_validator("base_url")
    @classmethod
    def _is_a_server(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("is no server's address; write http://host:port/v1 or https://host/v1")
        if "@" in parts.netloc:
            raise ValueError(
                "holds a user or password, which would be kept with the benchmark; use key_variable"
            )
        return url.rstrip("/")

    @field_validator("parameters")
    @classmethod
    def _leaves_ours(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OURS & set(parameters)):
            raise ValueError(f"{', '.join(taken)} cannot be set here: the annotator sets it itself")
        return parameters

    @model_validator(mode="after")
    def _money_has_a_price(self) -> ChatOptions:
        if self.most_money is not None and self.price is None:
            raise ValueError("most_money needs price.prompt and price.completion, to know what tokens cost")
        return self

    def profile(self, domain: str) -> Profile:
        """Which prompts a domain is asked with."""
        own: Profile = next((name for name in PROFILES if name == domain), "general")
        return self.profiles.get(domain, own)

    def money(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """What tokens cost; None without a price."""
        if self.price is None:
            return None
        return (prompt_tokens * self.price.prompt + completion_tokens * self.price.completion) / 1e6


@dataclass(frozen=True)
class ChatSetting:
    """What the chat annotator needs beside its options; travels to the worker.

    Attributes:
        options: of the recipe.
        key: the API key; its text is in no representation of it.
        kept_url: where answers are kept.
        benchmark: whose texts these are: what it has paid for counts towards its budget.
        max_words: domain → most words of a text.
        default_max_words: of the other domains.
        good4cir: options of that annotator; None where the chat annotator asks.
    """

    options: ChatOptions
    key: SecretStr | None
    kept_url: str
    benchmark: str
    max_words: Mapping[str, int]
    default_max_words: int
    good4cir: Good4cirOptions | None = None

    def words(self, domain: str) -> int:
        """Most words of a domain's texts."""
        return self.max_words.get(domain, self.default_max_words)
