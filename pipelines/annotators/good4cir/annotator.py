"""The good4cir annotator: what is around the object is put into words, photo by photo, and the words are compared.

After "good4cir: Generating Detailed Synthetic Captions for Composed Image Retrieval": a model that must look, compare
and phrase at once overlooks what it sees when it lists first. Here the anchored object itself is in no list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.annotators.base import Annotation, PairToAnnotate, Rejection, flat
from pipelines.annotators.chat.annotator import ChatAnnotator, Labels
from pipelines.annotators.chat.answers import (
    Answer,
    Difference,
    DifferencesForm,
    LabelForm,
    Listed,
    ObjectsForm,
    read_answer,
)
from pipelines.annotators.chat.options import ChatSetting
from pipelines.annotators.chat.prompts import Question, seed_of
from pipelines.annotators.good4cir.objects import Change, borne_out, changes, compose
from pipelines.annotators.good4cir.questions import (
    again_question,
    difference_question,
    instruction_hash,
    reference_question,
    target_question,
)


class Good4cirAnnotator(ChatAnnotator):
    """See `annotators.base.Annotator`. Reasons: those of the chat annotator."""

    def __init__(self, setting: ChatSetting) -> None:
        super().__init__(setting)
        if setting.good4cir is None:
            raise ValueError("the good4cir annotator needs its options")
        self.good = setting.good4cir
        self._compared: dict[str, tuple[Question, Mapping[str, Change], int]] = {}

    @property
    def name(self) -> str:
        """See `Annotator`."""
        return "good4cir"

    def _write(
        self, pairs: Sequence[PairToAnnotate], labels: Labels, seed: int
    ) -> list[Annotation | Rejection]:
        references = {pair.reference["image_id"]: pair for pair in pairs}  # each is listed once
        asked = [reference_question(pair, self.options, self.good, seed) for pair in references.values()]
        listed = dict(zip(references, map(_objects, self._go_on(asked)), strict=True))
        before = [listed[pair.reference["image_id"]] for pair in pairs]
        after = map(
            _objects, self._go_on([self._of_target(p, b, seed) for p, b in zip(pairs, before, strict=True)])
        )
        self._compared = {}
        questions = [self._of_both(p, b, a, seed) for p, b, a in zip(pairs, before, after, strict=True)]
        answers = self._go_on(questions)
        return [
            self._annotation(pair, answer, labels.get(pair.instance_id))
            for pair, answer in zip(pairs, answers, strict=True)
        ]

    def _go_on(self, questions: Sequence[Question | Rejection]) -> list[Answer | Rejection]:
        """Answers in the order of the questions; what was refused before stays so."""
        found = iter(self._ask([q for q in questions if isinstance(q, Question)]))
        return [q if isinstance(q, Rejection) else next(found) for q in questions]

    def _of_target(
        self, pair: PairToAnnotate, reference: list[Listed] | Rejection, seed: int
    ) -> Question | Rejection:
        if isinstance(reference, Rejection):
            return reference
        return target_question(pair, reference, self.options, self.good, seed)

    def _of_both(
        self,
        pair: PairToAnnotate,
        reference: list[Listed] | Rejection,
        target: list[Listed] | Rejection,
        seed: int,
    ) -> Question | Rejection:
        if isinstance(reference, Rejection):
            return reference
        if isinstance(target, Rejection):
            return target
        differ = changes(reference, target)
        if not differ:
            return Rejection("no_difference", "both photos have the same list")
        words = self.setting.words(pair.domain)
        question = difference_question(pair, (reference, target), self.options, self.good, words, seed)
        number = 1 + seed_of(seed, f"sentences\0{pair.pair_id}") % self.good.sentences
        self._compared[pair.pair_id] = (question, differ, number)
        return question

    def _again(self, pair: PairToAnnotate, text: Annotation, fault: Rejection, seed: int) -> Question:  # noqa: ARG002
        return again_question(self._compared[pair.pair_id][0], text, fault)

    def _annotation(
        self, pair: PairToAnnotate, answer: Answer | Rejection, label: LabelForm | Rejection | None
    ) -> Annotation | Rejection:
        if isinstance(answer, Rejection):
            return answer
        said = read_answer(answer, DifferencesForm)
        if isinstance(said, Rejection):
            return said
        _, differ, number = self._compared[pair.pair_id]
        told = borne_out(said.differences, differ)
        if not told.differences:
            why = f"{len(differ)} entries differ, {told.left_out} sentences are about others or empty"
            return Rejection("no_difference", why)
        sentences = [d.sentence for d in told.differences]
        text, taken = compose(sentences, number, self.setting.words(pair.domain))
        extra = {
            "differences": [_kept(d, differ) for d in told.differences],
            "sentences": taken,
            "left_out": told.left_out,
        }
        return self._made(pair, text, extra, answer, label)

    def _prompt_hash(self, pair: PairToAnnotate) -> str:
        profile = self.options.profile(pair.domain)
        return instruction_hash(profile, self.good, self.setting.words(pair.domain))


def _objects(answer: Answer | Rejection) -> list[Listed] | Rejection:
    said = answer if isinstance(answer, Rejection) else read_answer(answer, ObjectsForm)
    return said if isinstance(said, Rejection) else said.objects


def _kept(difference: Difference, differ: Mapping[str, Change]) -> dict[str, Any]:
    return {
        "object": difference.object,
        "change": differ[flat(difference.object)],
        "sentence": difference.sentence,
    }
