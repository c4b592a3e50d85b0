from __future__ import annotations

import json
import subprocess
import sys

import pytest

from infra.base.errors import OacirError
from training.model.wordpiece import SPECIAL_TOKENS, clean_text, train_wordpiece


def test_clean_text():
    assert clean_text('Put  it, "there" (now)!') == "put it, there now"
    assert clean_text("a*b#c:d;e~f.g") == "a b c d e f g"
    assert clean_text("word " * 60).count("word") == 50


def test_merges_by_hand():
    """aab x3, ab x2: letters first; then (a, ##b) has 2, (a, ##a) and (##a, ##b) 3 each: the alphabet decides."""
    tokenizer = train_wordpiece(["aab aab", "aab ab ab"], 11)
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    assert [piece for piece, _ in by_id] == [*SPECIAL_TOKENS, "##a", "##b", "a", "##ab", "aab", "ab"]
    assert tokenizer.tokenize("aab ab ba") == ["aab", "ab", "[UNK]"]


def test_special_tokens_and_template():
    tokenizer = train_wordpiece(["red car"], 40)
    assert [tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer.convert_ids_to_tokens(tokenizer("Red car")["input_ids"]) == [
        "[CLS]",
        "red",
        "car",
        "[SEP]",
    ]
    assert tokenizer.pad_token_id == 0


def test_ids_do_not_depend_on_the_process_or_the_order():
    texts = [f"word{i % 7}x{i * i % 31} other{i % 5} thing{i}" for i in range(60)]
    code = (
        "import json, sys; from training.model.wordpiece import train_wordpiece;"
        "print(json.dumps(train_wordpiece(json.loads(sys.argv[1]), 150).get_vocab()))"
    )
    command = [sys.executable, "-c", code, json.dumps(texts[::-1])]
    other = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert other == train_wordpiece(texts, 150).get_vocab()
    assert len(other) == 150


def test_too_small_a_vocabulary():
    with pytest.raises(OacirError, match="vocab_size 6 is too small"):
        train_wordpiece(["abc"], 6)
