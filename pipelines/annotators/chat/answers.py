"""Answers of a chat model: the forms they must have, how they are read, and where they are kept."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.base import storage
from infra.base.config import Config
from infra.base.errors import OacirError
from pipelines.annotators.base import Rejection

RAW_CHARACTERS = 2000
"""So much of a bad answer stands in the rejects."""


class _Form(BaseModel):
    # what else a model adds to its answer does not matter
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class TextForm(_Form):
    """The answer to a pair."""

    changes: list[str]
    text: str


class LabelForm(_Form):
    """The answer to an instance."""

    type: Literal["visual", "knowledge"]
    label: str | None
    synonyms: list[str] = Field(default_factory=list)
    reasoning: str = ""


class QuestionsForm(_Form):
    """The answer to a text: what to look for."""

    questions: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)


class LookForm(_Form):
    """The answer to questions about one photo."""

    answers: list[Literal["yes", "no", "unclear"]]


class Listed(_Form):
    """One entry of what is to be seen in a photo."""

    name: str
    descriptors: list[str]


class ObjectsForm(_Form):
    """The answer to a photo whose objects are listed."""

    objects: list[Listed]


class Difference(_Form):
    """One sentence about one entry."""

    object: str
    sentence: str


class DifferencesForm(_Form):
    """The answer to two lists."""

    differences: list[Difference]


class Shape(_Form):
    """One drawing of the canary."""

    shape: str
    colour: str


class CanaryForm(_Form):
    """The answer to the canary."""

    first: Shape
    second: Shape


FORMS: dict[str, type[_Form]] = {
    "text": TextForm,
    "label": LabelForm,
    "canary": CanaryForm,
    "questions": QuestionsForm,
    "look": LookForm,
    "objects": ObjectsForm,
    "differences": DifferencesForm,
}
F = TypeVar("F", bound=_Form)


@lru_cache  # making one takes longer than all else that a request takes here
def schema_of(form: str) -> dict[str, Any]:
    """The JSON schema of a form of `FORMS`; not to be changed."""
    return FORMS[form].model_json_schema()


class Answer(Config):
    """What a server answered to one request, as it is kept."""

    content: str | None
    """The text; None where there was none."""
    finish: str | None
    """Why the model stopped: stop, length, …"""
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str | None
    """What the server says it asked."""
    paid_by: str
    """The benchmark that it was asked for."""


class Kept:
    """Answers by the key of their question, one small file each, so that a killed build has paid for none in vain."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, key: str) -> Answer | None:
        """The answer to a question asked before; None if it was not.

        Raises:
            OacirError: it cannot be read.
        """
        place = self._place(key)
        if not storage.exists(place):
            return None
        try:
            return Answer.model_validate_json(storage.read_bytes(place))
        except ValidationError as error:
            raise OacirError(
                f"{place}: holds no answer of a chat model; delete it, and it is asked again"
            ) from error

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer."""
        storage.write_bytes(self._place(key), answer.model_dump_json().encode())

    def _place(self, key: str) -> str:
        return storage.join(self.url, key[:2], f"{key}.json")


def read_answer(answer: Answer, form: type[F]) -> F | Rejection:
    """The answer in its form, or why it is a bad one, with what the model said."""
    if answer.content is None:
        return Rejection("bad_answer", f"no text (finish reason {answer.finish}); ''")
    if answer.finish == "length":
        return _bad("it was cut at max_tokens", answer.content)
    try:
        tree = json.loads(_json_of(answer.content))
    except (ValueError, RecursionError) as error:
        return _bad(f"no JSON ({' '.join(str(error).split())})", answer.content)
    try:
        return form.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        return _bad(f"{where}: {first['msg']}", answer.content)


def _json_of(content: str) -> str:
    """The JSON object of an answer that also holds a code fence or words around it."""
    begin, end = content.find("{"), content.rfind("}")
    return content[begin : end + 1] if 0 <= begin < end else content


def _bad(why: str, content: str) -> Rejection:
    raw = content if len(content) <= RAW_CHARACTERS else content[:RAW_CHARACTERS] + "…"
    return Rejection("bad_answer", f"{why}; {raw!r}")
