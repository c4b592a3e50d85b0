"""Text rules, and a word-piece tokenizer trained from texts for models that start from nothing.

The trainer of `tokenizers` breaks ties by hash order: its ids differ from process to process, and stored token ids
would be worthless. The merging here is the same algorithm with every tie decided by the alphabet.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from infra.base.errors import OacirError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]")
CONTINUED = "##"
MAX_WORDS = 50
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def clean_text(text: str) -> str:
    """The release's caption rule: lower case, some punctuation to spaces, single spaces, at most 50 words."""
    return " ".join(_PUNCTUATION.sub(" ", text.lower()).split()[:MAX_WORDS])


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing word-piece tokenizer.

    Args:
        texts: sentences to learn from; their order does not matter.
        vocab_size: at most that many entries, the five special tokens and every letter seen included.

    Raises:
        OacirError: `vocab_size` does not even hold the special tokens and letters.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(
            word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(clean_text(text)))
        )
    pieces = [*SPECIAL_TOKENS, *_merge(counts, vocab_size - len(SPECIAL_TOKENS))]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.WordPiece(vocab=vocab, unk_token="[UNK]", continuing_subword_prefix=CONTINUED)
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[DEC]",
        padding_side="right",
        truncation_side="right",
    )


def _merge(counts: Counter[str], size: int) -> list[str]:
    """Letters first, then the most frequent neighbours joined again and again; ties by alphabet."""
    words = [[word[0], *(CONTINUED + letter for letter in word[1:])] for word in sorted(counts)]
    weights = [counts[word] for word in sorted(counts)]
    pieces = sorted({piece for word in words for piece in word})
    if len(pieces) > size:
        raise OacirError(
            f"vocab_size {size + len(SPECIAL_TOKENS)} is too small: the texts have {len(pieces)} letters beside "
            f"{len(SPECIAL_TOKENS)} special tokens"
        )
    known = set(pieces)
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += weights[index]
            where[pair].add(index)
    while len(pieces) < size and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        joined = best[0] + best[1].removeprefix(CONTINUED)
        if joined not in known:
            known.add(joined)
            pieces.append(joined)
        for index in sorted(where.pop(best)):
            before = words[index]
            words[index] = after = _join(before, best, joined)
            for pair in pairwise(before):
                pairs[pair] -= weights[index]
                if pairs[pair] <= 0:
                    del pairs[pair]
            for pair in pairwise(after):
                pairs[pair] += weights[index]
                where[pair].add(index)
    return pieces


def _join(word: list[str], pair: tuple[str, str], joined: str) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] = joined
        else:
            merged.append(piece)
    return merged
