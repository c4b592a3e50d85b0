"""The chat annotator: every pair is a question, every question is answered once, from what is kept or by the server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from infra.base.errors import OacirError
from pipelines.annotators.base import Annotation, Annotator, PairToAnnotate, Rejection
from pipelines.annotators.chat.answers import (
    Answer,
    Kept,
    LabelForm,
    LookForm,
    QuestionsForm,
    TextForm,
    read_answer,
)
from pipelines.annotators.chat.check import MOST_QUESTIONS, shares, verdict
from pipelines.annotators.chat.client import ChatClient, NoAnswer
from pipelines.annotators.chat.options import ChatSetting
from pipelines.annotators.chat.pictures import Pictures
from pipelines.annotators.chat.prompts import (
    Question,
    again_question,
    instruction_hash,
    label_question,
    look_question,
    pair_question,
    payload,
    question_key,
    questions_question,
)

THREADS = 16
"""That read and encode photos and read and write what is kept."""
PAID, PROMPT, COMPLETION = "chat requests", "chat prompt tokens", "chat completion tokens"
KEPT, RETRIED = "chat answers of others", "chat tries again"
T = TypeVar("T")
Labels = dict[str, LabelForm | Rejection]
"""Instance → what its object is called, or why that cannot be told."""


class ChatAnnotator(Annotator):
    """See `annotators.base.Annotator`. Reasons: no_box, bad_answer, no_answer, no_difference, not_visual."""

    at_once = None
    free = True

    def __init__(self, setting: ChatSetting) -> None:
        self.setting, self.options = setting, setting.options
        self._kept = Kept(setting.kept_url)
        self._pictures = Pictures(setting.options.image_side_px)
        self._before: Counter[str] = Counter()
        self._used: dict[str, Counter[str]] = {}
        self._in_flight = 0

    @property
    def name(self) -> str:
        """See `Annotator`."""
        return "chat"

    def go_on(self, used: Mapping[str, int]) -> None:
        """See `Annotator`: the budget is that of the whole benchmark."""
        self._before = Counter({k: n for k, n in used.items() if k.startswith("chat ")})
        self._used = {}

    def used(self) -> Mapping[str, Mapping[str, int]]:
        """See `Annotator`."""
        used, self._used = self._used, {}
        return used

    def annotate(self, pairs: Sequence[PairToAnnotate], seed: int) -> list[Annotation | Rejection]:
        """See `Annotator`. Pairs whose reference has no box, or whose object has no name, are not asked for."""
        answers: dict[str, Annotation | Rejection] = {
            pair.pair_id: Rejection("no_box", f"{pair.reference['image_id']} has no box")
            for pair in pairs
            if pair.reference["box"] is None
        }
        labels = self._name_instances([p for p in pairs if p.pair_id not in answers], seed)
        for pair in pairs:
            label = labels.get(pair.instance_id)
            if isinstance(label, Rejection):
                answers.setdefault(pair.pair_id, label)
        open_pairs = [pair for pair in pairs if pair.pair_id not in answers]
        for pair, text in zip(open_pairs, self._write(open_pairs, labels, seed), strict=True):
            answers[pair.pair_id] = text
        return [answers[pair.pair_id] for pair in pairs]

    def revise(
        self,
        pairs: Sequence[PairToAnnotate],
        texts: Sequence[Annotation],
        faults: Sequence[Rejection],
        seed: int,
    ) -> list[Annotation | Rejection]:
        """See `Annotator`: the same conversation goes on with the fault."""
        questions = [
            self._again(pair, text, fault, seed)
            for pair, text, fault in zip(pairs, texts, faults, strict=True)
        ]
        made: list[Annotation | Rejection] = []
        for pair, text, fault, answer in zip(pairs, texts, faults, self._ask(questions), strict=True):
            new = self._annotation(pair, answer, None)
            if isinstance(new, Annotation):
                extra = new.extra | {k: text.extra[k] for k in ("label",) if k in text.extra}
                new = replace(new, names=text.names, extra=extra | {"mended": fault.reason})
            made.append(new)
        return made

    def confirm(
        self, pairs: Sequence[PairToAnnotate], texts: Sequence[Annotation], seed: int
    ) -> list[Annotation | Rejection]:
        """See `Annotator`: with `check` the model says what a text wants to be seen and looks for it in both."""
        if self.options.check is None:
            return list(texts)
        told = [questions_question(p, t.text, seed) for p, t in zip(pairs, texts, strict=True)]
        asked = [_questions(answer) for answer in self._ask(told)]
        open_ones = [(p, q) for p, q in zip(pairs, asked, strict=True) if not isinstance(q, Rejection)]
        looks = [look_question(p, s, q, seed) for p, q in open_ones for s in (p.target, p.reference)]
        found = iter(self._ask(looks))
        made: list[Annotation | Rejection] = []
        for text, questions in zip(texts, asked, strict=True):
            if isinstance(questions, Rejection):
                made.append(questions)
                continue
            target, reference = (_looked(next(found), len(questions)) for _ in range(2))
            if isinstance(target, Rejection) or isinstance(reference, Rejection):
                made.extend([side for side in (target, reference) if isinstance(side, Rejection)][:1])
                continue
            yes = shares(target, reference)
            extra = text.extra | {"check": {"questions": len(questions), **yes._asdict()}}
            why = verdict(questions, target, reference, self.options.check)
            made.append(why or replace(text, extra=extra))
        return made

    def _write(
        self, pairs: Sequence[PairToAnnotate], labels: Labels, seed: int
    ) -> list[Annotation | Rejection]:
        """A text for each pair that can have one."""
        found = self._ask([self._question(pair, seed) for pair in pairs])
        return [
            self._annotation(pair, answer, labels.get(pair.instance_id))
            for pair, answer in zip(pairs, found, strict=True)
        ]

    def _again(self, pair: PairToAnnotate, text: Annotation, fault: Rejection, seed: int) -> Question:
        return again_question(self._question(pair, seed), text, fault)

    def _question(self, pair: PairToAnnotate, seed: int) -> Question:
        return pair_question(pair, self.options, self.setting.words(pair.domain), seed)

    def _name_instances(self, pairs: Sequence[PairToAnnotate], seed: int) -> Labels:
        """What the objects are called, of domains that ask for it; a rejection where that cannot be told by eye."""
        by_instance: dict[str, list[PairToAnnotate]] = {}
        for pair in pairs:
            by_instance.setdefault(pair.instance_id, []).append(pair)
        questions = {
            instance: question
            for instance, those in by_instance.items()
            if (question := label_question(those, self.options, seed))
        }
        labels: Labels = {}
        for instance, answer in zip(questions, self._ask(list(questions.values())), strict=True):
            label = answer if isinstance(answer, Rejection) else read_answer(answer, LabelForm)
            if isinstance(label, LabelForm) and (
                label.type == "knowledge" or not (label.label or "").strip()
            ):
                why = f"{label.type}: {label.reasoning}" if label.type == "knowledge" else "it has no name"
                label = Rejection("not_visual", why[:500])
            labels[instance] = label
        return labels

    def _annotation(
        self, pair: PairToAnnotate, answer: Answer | Rejection, label: LabelForm | Rejection | None
    ) -> Annotation | Rejection:
        if isinstance(answer, Rejection):
            return answer
        said = read_answer(answer, TextForm)
        if isinstance(said, Rejection):
            return said
        text = " ".join(said.text.split())
        if not text:
            return Rejection("no_difference", f"the model sees none; {len(said.changes)} changes named")
        return self._made(pair, text, {"changes": said.changes}, answer, label)

    def _made(
        self,
        pair: PairToAnnotate,
        text: str,
        extra: dict[str, Any],
        answer: Answer,
        label: LabelForm | Rejection | None,
    ) -> Annotation:
        names: tuple[str, ...] = ()
        if isinstance(label, LabelForm) and label.label:
            names = (label.label, *label.synonyms)
            extra["label"] = label.label
        return Annotation(
            text=text,
            box=tuple(float(v) for v in pair.reference["box"]),
            annotator=self.name,
            confidence=None,
            extra=extra,
            model=answer.model or self.options.model,
            prompt_sha256=self._prompt_hash(pair),
            names=names,
        )

    def _prompt_hash(self, pair: PairToAnnotate) -> str:
        return instruction_hash(self.options.profile(pair.domain), self.setting.words(pair.domain))

    def _ask(self, questions: Sequence[Question]) -> list[Answer | Rejection]:
        """Answers in the order of the questions.

        Raises:
            OacirError: the server is away or lets nobody in, or the budget is spent; what was answered is kept.
        """
        return asyncio.run(self._ask_all(questions)) if questions else []

    async def _ask_all(self, questions: Sequence[Question]) -> list[Answer | Rejection]:
        found: dict[str, Answer | Rejection] = {}
        keys: list[str] = []
        begun: set[str] = set()
        waiting = iter(questions)
        stopped: list[OacirError] = []

        if self.options.most_tokens is not None or self.options.most_money is not None:
            # answers come in any order: one that is paid for must count before another one is asked for
            for question in questions:
                key = question_key(question, self.options)
                if key not in begun and (known := self._kept.get(key)) is not None:
                    found[key] = self._known(question.domain, known)
                    begun.add(key)

        async def work() -> None:
            for question in waiting:
                if stopped:
                    return
                keys.append(key := question_key(question, self.options))
                if key in begun:  # equal ones are asked once
                    continue
                begun.add(key)
                try:
                    found[key] = await self._answer(client, pool, key, question)
                except NoAnswer as error:
                    found[key] = Rejection("no_answer", str(error))
                except OacirError as error:  # the others in flight are paid for: they end, and are kept
                    stopped.append(error)

        # more than may be in flight, so that photos are encoded and answers kept while the server works
        workers = min(2 * self.options.concurrency, len(questions))
        with ThreadPoolExecutor(min(THREADS, workers)) as pool:
            async with ChatClient(self.options, self.setting.key) as client:
                await asyncio.gather(*(work() for _ in range(workers)))
                if client.retries:
                    self._count(questions[0].domain, RETRIED, client.retries)
        if stopped:
            raise stopped[0]
        return [found[key] for key in keys]

    async def _answer(
        self, client: ChatClient, pool: ThreadPoolExecutor, key: str, question: Question
    ) -> Answer:
        async def elsewhere(function: Callable[..., T], *args: object) -> T:
            return await asyncio.get_running_loop().run_in_executor(pool, function, *args)

        known = await elsewhere(self._prepare, key, question)
        if isinstance(known, Answer):
            return self._known(question.domain, known)
        self._check_budget()
        self._in_flight += 1
        try:
            reply = await client.ask(known)
        finally:
            self._in_flight -= 1
        answer = Answer(**vars(reply), paid_by=self.setting.benchmark)
        self._pay(question.domain, answer)
        await elsewhere(self._kept.put, key, answer)
        return answer

    def _known(self, domain: str, known: Answer) -> Answer:
        """An answer that was kept, counted."""
        if known.paid_by == self.setting.benchmark:
            self._pay(domain, known)
        else:
            self._count(domain, KEPT, 1)
        return known

    def _prepare(self, key: str, question: Question) -> Answer | dict[str, Any]:
        """What is kept of a question, or the body of its request; in a thread, since it reads and encodes."""
        if (known := self._kept.get(key)) is not None:
            return known
        return payload(question, self.options, {p.sha256: self._pictures.url(p) for p in question.pictures})

    def _count(self, domain: str, name: str, number: int) -> None:
        self._used.setdefault(domain, Counter())[name] += number

    def _pay(self, domain: str, answer: Answer) -> None:
        prompt, completion = answer.prompt_tokens or 0, answer.completion_tokens or 0
        self._count(domain, PAID, 1)
        self._count(domain, PROMPT, prompt)
        self._count(domain, COMPLETION, completion)

    def _check_budget(self) -> None:
        """Raises where the answers paid for, and those in flight at their mean, take all that may be spent."""
        total = sum(self._used.values(), self._before.copy())
        prompt, completion, paid = total[PROMPT], total[COMPLETION], total[PAID]
        share = 1.0 + self._in_flight / paid if paid else 1.0
        spent = f"{prompt + completion:,} tokens in {paid:,} requests"
        most_tokens, most_money = self.options.most_tokens, self.options.most_money
        if most_tokens is not None and (prompt + completion) * share >= most_tokens:
            raise OacirError(
                f"budget: {spent} of chat.most_tokens = {most_tokens:,} are spent; raise it and run the command again,"
                " answers so far are kept"
            )
        money = self.options.money(prompt, completion)
        if most_money is not None and money is not None and money * share >= most_money:
            raise OacirError(
                f"budget: {money:,.2f} of chat.most_money = {most_money:,.2f} are spent ({spent}); raise it and run the"
                " command again, answers so far are kept"
            )


def _questions(answer: Answer | Rejection) -> list[str] | Rejection:
    said = answer if isinstance(answer, Rejection) else read_answer(answer, QuestionsForm)
    return said if isinstance(said, Rejection) else said.questions[:MOST_QUESTIONS]


def _looked(answer: Answer | Rejection, questions: int) -> list[str] | Rejection:
    said = answer if isinstance(answer, Rejection) else read_answer(answer, LookForm)
    if isinstance(said, Rejection):
        return said
    if len(said.answers) != questions:
        return Rejection("bad_answer", f"{len(said.answers)} answers to {questions} questions")
    return list(said.answers)
