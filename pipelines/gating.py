"""Holding texts against the gates: in the order of the pairs, with one more try for those that break a rule."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from infra.base import storage
from pipelines.annotators.base import Annotation, Annotator, PairToAnnotate, Rejection
from pipelines.annotators.gates import Rules, fault, fingerprint, kind_names
from pipelines.stages import READERS, RECORDS, part_path

Answers = dict[str, Annotation | Rejection]


class DoneParts:
    """What the finished parts of the annotate stage hold: their texts, and what they have used.

    Read from the store before each part, so that it does not matter which process did those, nor how often it was
    killed in between.
    """

    def __init__(self, version_url: str, stage: str, table: str = "quadruples") -> None:
        self.version_url, self.stage, self.table = version_url, stage, table
        self.texts: set[bytes] = set()
        self.used: Counter[str] = Counter()
        self._known: set[str] = set()

    def refresh(self) -> None:
        """Read the parts that were finished since."""
        folder = storage.join(self.version_url, RECORDS, self.stage)
        new = [f.path for f in storage.list_files(folder) if f.path not in self._known]
        with ThreadPoolExecutor(READERS) as pool:
            for texts, used in pool.map(self._read, new):
                self.texts |= texts
                self.used += used
        self._known |= set(new)

    def _read(self, name: str) -> tuple[set[bytes], Counter[str]]:
        record = json.loads(storage.read_bytes(storage.join(self.version_url, RECORDS, self.stage, name)))
        used: Counter[str] = Counter()
        for counts in record["counts"].values():
            used.update(counts)
        place = storage.join(self.version_url, part_path(self.table, record["part"]))
        texts = storage.read_table(place, ["modification_text"])["modification_text"].to_pylist()
        return {fingerprint(text) for text in texts}, used


def hold(
    writer: Annotator,
    pairs: Sequence[PairToAnnotate],
    answers: Answers,
    rules: Mapping[str, Rules],
    others: set[bytes],
    seed: int,
) -> tuple[Answers, Counter[str]]:
    """Hold the texts of a part against the gates, and have those that break a rule written once more.

    A text counts as a copy of one of an earlier pair of the part, never of a later one: the result depends on the
    order of the pairs alone, not on which answer came first.

    Args:
        writer: of the texts.
        pairs: those it was asked for, in order.
        answers: its answers, by pair.
        rules: by pair.
        others: fingerprints of the other texts of the build.
        seed: of the build.

    Returns:
        The answers by pair, a text that broke a rule twice replaced by the second fault and the text; and counts.
    """
    seen = set(others)
    faults = _judge(pairs, answers, rules, seen)
    if not faults:
        return answers, Counter()
    again = [pair for pair in pairs if pair.pair_id in faults]
    texts = [answer for pair in again if isinstance(answer := answers[pair.pair_id], Annotation)]
    found = writer.revise(again, texts, [faults[pair.pair_id] for pair in again], seed)
    second = {pair.pair_id: answer for pair, answer in zip(again, found, strict=True)}
    still = _judge(again, second, rules, seen)
    told = {
        name: dataclasses.replace(why, detail=f"{why.detail}; after {faults[name].reason}; {text.text!r}")
        for name, why in still.items()
        if isinstance(text := second[name], Annotation)
    }
    mended = sum(isinstance(answer, Annotation) for answer in second.values()) - len(still)
    return answers | second | told, Counter({"texts asked again": len(again), "texts mended": mended})


def rules_of(
    pair: PairToAnnotate,
    answer: Annotation | Rejection,
    max_words: int,
    names: tuple[str, ...],
    kinds_banned: bool,
) -> Rules:
    """The rules of one pair: its limit, its names and those the annotator found, and every name of its category."""
    found = answer.names if isinstance(answer, Annotation) else ()
    kinds = kind_names(pair.category, found) if kinds_banned else frozenset()
    return Rules(max_words, (*names, *found), kinds)


def _judge(
    pairs: Sequence[PairToAnnotate], answers: Answers, rules: Mapping[str, Rules], seen: set[bytes]
) -> dict[str, Rejection]:
    """The faults by pair; texts without one are added to `seen`."""
    faults = {}
    for pair in pairs:
        answer = answers[pair.pair_id]
        if isinstance(answer, Rejection):
            continue
        if why := fault(answer.text, rules[pair.pair_id], seen):
            faults[pair.pair_id] = why
        else:
            seen.add(fingerprint(answer.text))
    return faults
