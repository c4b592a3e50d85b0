"""What is kept: found again by the same question, on this machine and on S3, and never half of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_server import chat_server
from s3_server import s3_bucket

from infra.base.errors import OacirError
from pipelines.annotators.base import PairToAnnotate
from pipelines.annotators.chat.annotator import ChatAnnotator
from pipelines.annotators.chat.answers import Answer, Kept

ANSWER = Answer(
    content='{"text": "ü"}', finish="stop", prompt_tokens=1, completion_tokens=2, model=None, paid_by="b/1"
)
KEY = "ab" * 32


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("answers") as url:
        yield url


def test_an_answer_is_found_again(bucket: str, tmp_path: Path) -> None:
    for url in (str(tmp_path), f"{bucket}/kept"):
        assert Kept(url).get(KEY) is None
        Kept(url).put(KEY, ANSWER)
        assert Kept(url).get(KEY) == ANSWER
        assert Kept(url).get("cd" * 32) is None


def test_a_file_that_is_no_answer_is_named(tmp_path: Path) -> None:
    Kept(str(tmp_path)).put(KEY, ANSWER)
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text()[:-9])
    with pytest.raises(OacirError, match=r"abab.*\.json: holds no answer of a chat model; delete it"):
        Kept(str(tmp_path)).get(KEY)


def test_a_benchmark_on_s3_is_paid_for_once(
    bucket: str,
    make_annotator: Callable[..., ChatAnnotator],
    make_pairs: Callable[..., list[PairToAnnotate]],
) -> None:
    import dataclasses

    pairs = make_pairs(3)
    with chat_server() as server:
        setting = dataclasses.replace(make_annotator(server.url).setting, kept_url=f"{bucket}/answers")
        first = ChatAnnotator(setting).annotate(pairs, 0)
        assert ChatAnnotator(setting).annotate(pairs, 0) == first
    assert len(server.requests) == 6
