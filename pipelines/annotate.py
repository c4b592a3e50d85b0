"""Stage 3, annotate: deal the valid instances to train, dev and test; then a text and a box for each pair."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from infra.base.accounts import Account
from pipelines.annotators.base import Annotation, Annotator, PairToAnnotate, Rejection, check_text
from pipelines.annotators.chat.options import ChatSetting
from pipelines.annotators.gates import fingerprint
from pipelines.config import AnnotatorKind, SplitOptions, Thresholds
from pipelines.earlier import Earlier
from pipelines.gating import Answers, DoneParts, hold, rules_of
from pipelines.grounding import with_boxes
from pipelines.records import TABLES
from pipelines.stages import Part, Stage, StageResult
from pipelines.variants import group_of
from pipelines.watch import Watch, alone_or_together


def draw(seed: int, purpose: str, key: str) -> int:
    """A pseudo-random 64-bit number for a key; depends on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{purpose}\0{key}".encode()).digest()[:8])


def deal(
    groups: Sequence[Mapping[str, Any]],
    same_content: Iterable[tuple[str, str]],
    options: SplitOptions,
    gallery_dev_share: float,
    seed: int,
    keep: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Deal instances to splits, each by a seeded draw of its name: independent of order and of how work is cut.

    Valid instances of a domain are taken in drawn order into test as long as that brings test closer to its share of
    the domain's pairs; where there are two, each of test and train gets one. Of the training instances `dev_share`
    (rounded; one, where train keeps another) become dev. Instances that share an image by its bytes move together.
    Where references have boxes, only pairs of those count, and dev takes instances that have some: the others need an
    annotator that finds boxes.

    Args:
        groups: rows of `records.GROUPS`.
        same_content: pairs of instances that hold a byte-identical image.
        options: shares.
        gallery_dev_share: share of the instances without a query of their own for the dev galleries.
        seed: of the draws.
        keep: instance → split that a valid instance has had before and keeps; of one in the reserve it is noted. Others
            are dealt around the valid ones; one that shares an image by its bytes with a kept one goes where that is.

    Returns:
        Rows of `records.SPLITS`, sorted by instance.
    """
    rows = {g["instance_id"]: g for g in groups}
    together = _components(rows, same_content)
    split: dict[str, str] = {}
    by_domain: dict[str, list[list[str]]] = {}
    for block in together:
        if any(rows[i]["state"] == "valid" for i in block):
            by_domain.setdefault(rows[block[0]]["domain"], []).append(block)
    for blocks in by_domain.values():
        kept = [_kept(block, rows, keep or {}) for block in blocks]
        fixed = [k[min(k)] if k else None for k in kept]
        names = _deal_domain(blocks, rows, options, seed, fixed)
        for block, name, own in zip(blocks, names, kept, strict=True):
            split |= dict.fromkeys(block, name) | own
    dealt = []
    for instance_id, group in sorted(rows.items()):
        reserve = group["state"] == "reserve"
        name = "reserve" if reserve else split[instance_id]
        if name in ("dev", "test"):
            gallery = name
        else:
            gallery = "dev" if draw(seed, "reserve", instance_id) < gallery_dev_share * 2**64 else "test"
        dealt.append(
            {
                "instance_id": instance_id,
                "domain": group["domain"],
                "category": group["category"],
                "split": name,
                "gallery": gallery,
                "last_split": (keep or {}).get(instance_id) if reserve else None,
            }
        )
    return dealt


def _kept(
    block: Sequence[str], rows: Mapping[str, Mapping[str, Any]], keep: Mapping[str, str]
) -> dict[str, str]:
    return {i: keep[i] for i in block if i in keep and rows[i]["state"] == "valid"}


def _deal_domain(
    blocks: Sequence[Sequence[str]],
    rows: Mapping[str, Mapping[str, Any]],
    options: SplitOptions,
    seed: int,
    fixed: Sequence[str | None],
) -> list[str]:
    count = "boxed" if any(rows[i]["boxed"] for block in blocks for i in block) else "pairs"
    pairs = [sum(rows[i][count] for i in block) for block in blocks]
    wanted = options.test_share * sum(pairs)
    names = [name or "train" for name in fixed]
    free = [b for b, name in enumerate(fixed) if name is None]
    drawn = sorted(free, key=lambda b: draw(seed, "test", blocks[b][0]))
    have = sum(pairs[b] for b, name in enumerate(names) if name == "test")
    training_left = names.count("train")
    for b in drawn:
        if abs(have + pairs[b] - wanted) < abs(have - wanted) and training_left > 1:
            names[b] = "test"
            have += pairs[b]
            training_left -= 1
    if not have and drawn and len(blocks) > 1:  # each is more than twice the share: the smallest with pairs
        names[min(drawn, key=lambda b: (pairs[b] == 0, pairs[b]))] = "test"
    training = [b for b, name in enumerate(names) if name == "train"]
    had = names.count("dev")
    dev = max(round(options.dev_share * (len(training) + had)), 1 if options.dev_share else 0) - had
    drawn = [b for b in training if fixed[b] is None]
    drawn.sort(key=lambda b: (pairs[b] == 0, draw(seed, "dev", blocks[b][0])))
    for position in drawn[: max(0, min(dev, len(training) - 1))]:
        names[position] = "dev"
    return names


def _components(instances: Iterable[str], links: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Instances grouped by their links, each group sorted, groups in order of their first member."""
    root = {i: i for i in instances}

    def find(i: str) -> str:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for a, b in links:
        first, second = sorted((find(a), find(b)))
        root[second] = first
    members: dict[str, list[str]] = {}
    for i in sorted(root):
        members.setdefault(find(i), []).append(i)
    return [members[k] for k in sorted(members)]


def make_annotator(kind: AnnotatorKind, chat: ChatSetting | None = None) -> Annotator:
    """The annotator of a recipe."""
    if kind == "chat":
        from pipelines.annotators.chat.annotator import ChatAnnotator

        if chat is None:
            raise ValueError("the chat annotator needs its setting")
        return ChatAnnotator(chat)
    if kind == "good4cir":
        from pipelines.annotators.good4cir.annotator import Good4cirAnnotator

        if chat is None:
            raise ValueError("the good4cir annotator needs its setting")
        return Good4cirAnnotator(chat)
    if kind == "world":
        from pipelines.annotators.world import WorldAnnotator

        return WorldAnnotator()
    from pipelines.annotators.plain import PlainAnnotator

    return PlainAnnotator()


@dataclass
class AnnotateStage(Stage):
    """Pairs of whole instances → quadruples, or reasons why not."""

    annotator: AnnotatorKind
    thresholds: Thresholds
    seed: int
    earlier: Earlier | None = None
    """What an earlier version knows; only other pairs are annotated."""
    seconds_per_record: float | None = None
    chat: ChatSetting | None = None
    """What an annotator that asks a chat model needs."""
    version_url: str = ""
    """Where the stage writes; of an annotator whose texts are held against those of the other parts."""
    name = "annotate"
    inputs: ClassVar[tuple[str, ...]] = (
        "listing", "_work/images/filtered", "instances", "measures", "pairs",
    )  # fmt: skip
    shared = ("splits", "near_duplicates")
    outputs: ClassVar[tuple[str, ...]] = ("quadruples", "rejects/annotate")
    _gone: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _writer: Annotator | None = field(default=None, init=False, repr=False)
    _done: DoneParts | None = field(default=None, init=False, repr=False)

    def setup(self) -> None:
        """Remember the images that gave way, and make the annotator."""
        near = self.common["near_duplicates"].to_pylist()
        self._gone = {row["image_id"]: row["other_id"] for row in near if row["rejected"]}
        self._writer = make_annotator(self.annotator, self.chat)
        self._done = DoneParts(self.version_url, self.name, self.outputs[0]) if self._writer.free else None

    def __call__(self, part: Part) -> StageResult:
        """Annotate every pair of the part."""
        if self._writer is None:
            raise ValueError("setup comes first")
        pairs = self._pairs(part.tables)
        open_pairs = [pair for pair in pairs if not self._given_way(pair)]
        answers = self.earlier.answers(part.tables["listing"], open_pairs) if self.earlier else {}
        known = frozenset(answers)
        counts: dict[str, Counter[str]] = {}
        if self._done is not None:
            self._done.refresh()
            self._writer.go_on(self._done.used)
        asked = self._ask(self._writer, pairs, known, part.watch)
        if self._done is not None:
            asked = self._gate(self._writer, pairs, asked, answers, self._done, counts)
        answers |= asked
        quadruples, rejects = [], []
        owners: set[tuple[str, str, str]] = set()
        for pair in pairs:
            verdict = self._given_way(pair) or self._judge(pair, answers[pair.pair_id])
            count = counts.setdefault(pair.domain, Counter())
            count["pairs taken over"] += pair.pair_id in known
            if isinstance(verdict, Rejection):
                rejects.append(_reject(pair, verdict))
                count[f"pairs {verdict.reason}"] += 1
            else:
                quadruples.append(_quadruple(pair, verdict))
                count[f"queries {pair.split}"] += 1
                owners.add((pair.domain, pair.split, pair.instance_id))
                count["words"] += len(verdict.text.split())
        for domain, split, _ in owners:
            counts[domain][f"instances with queries {split}"] += 1
        refused = Counter(r["reason"] for r in rejects)
        account = Account(
            entity="quadruples", taken_in=len(pairs), kept=len(quadruples), rejected=dict(refused)
        )
        made = {
            self.outputs[0]: pa.Table.from_pylist(quadruples, TABLES["quadruples"]),
            "rejects/annotate": pa.Table.from_pylist(rejects, TABLES["rejects"]),
        }
        return StageResult(made, [account], counts)

    def _ask(
        self, writer: Annotator, pairs: Sequence[PairToAnnotate], known: Container[str], watch: Watch
    ) -> dict[str, Annotation | Rejection]:
        """The annotator's answers for the pairs that need one, or that it took too long."""
        wanted = [n for n, p in enumerate(pairs) if p.pair_id not in known and not self._given_way(p)]
        answers: dict[str, Annotation | Rejection] = {
            pairs[n].pair_id: Rejection("timeout", watch.detail) for n in wanted if n in watch.hung.alone
        }
        for group in alone_or_together(wanted, watch.hung, writer.at_once or len(pairs)):
            asked = [pairs[n] for n in group]
            with watch.over(group[0], group[-1] - group[0] + 1):
                found = writer.annotate(asked, self.seed)
            answers |= {pair.pair_id: answer for pair, answer in zip(asked, found, strict=True)}
        return answers

    def _gate(
        self,
        writer: Annotator,
        pairs: Sequence[PairToAnnotate],
        asked: Answers,
        taken: Mapping[str, Annotation | Rejection],
        done: DoneParts,
        counts: dict[str, Counter[str]],
    ) -> Answers:
        """Hold new texts against the gates, beside those taken over and those of the other parts."""
        free = self.chat.options.may_name_category if self.chat else ()
        banned = self.chat.options.banned if self.chat else {}
        wanted = [pair for pair in pairs if pair.pair_id in asked]
        rules = {}
        for pair in wanted:
            limit, kinds = self.thresholds.of(pair.domain).max_words, pair.domain not in free
            names = (_name_of(pair), *banned.get(pair.domain, ()))
            rules[pair.pair_id] = rules_of(pair, asked[pair.pair_id], limit, names, kinds)
        beside = {fingerprint(a.text) for a in taken.values() if isinstance(a, Annotation)}
        held, tries = hold(writer, wanted, asked, rules, done.texts | beside, self.seed)
        kept = [pair for pair in wanted if isinstance(held[pair.pair_id], Annotation)]
        texts = [text for pair in kept if isinstance(text := held[pair.pair_id], Annotation)]
        seen = writer.confirm(kept, texts, self.seed)
        held |= {pair.pair_id: answer for pair, answer in zip(kept, seen, strict=True)}
        for domain, used in writer.used().items():
            counts.setdefault(domain, Counter()).update(used)
        if tries:
            counts.setdefault(wanted[0].domain, Counter()).update(tries)
        return held

    def _given_way(self, pair: PairToAnnotate) -> Rejection | None:
        """Why a pair is not asked for: an image of it nearly repeats one of another split, or its box is unsure."""
        for image in (pair.reference, pair.target):
            if other := self._gone.get(image["image_id"]):
                return Rejection("near_duplicate_across_splits", f"{image['image_id']} and {other}")
        if unsure := pair.reference.get("unsure"):
            return Rejection("box_unsure", unsure)
        return None

    def _judge(self, pair: PairToAnnotate, answer: Annotation | Rejection) -> Annotation | Rejection:
        """The rules that every text keeps, whoever wrote it."""
        if isinstance(answer, Rejection):
            return answer
        limit = self.thresholds.of(pair.domain).max_words
        return check_text(answer.text, max_words=limit, banned=[_name_of(pair)]) or answer

    def _pairs(self, tables: Mapping[str, pa.Table]) -> list[PairToAnnotate]:
        contexts = tables["listing"].select(["image_id", "context_json"])
        known: dict[str, dict[str, Any]] = {}
        images = tables["_work/images/filtered"].select(["image_id", "uri", "width", "height", "sha256"])
        for row in images.to_pylist():
            known[row["image_id"]] = row
        objects = tables["instances"].select(
            ["image_id", "box", "category", "mask_uri", "mask_sha256", "variant"]
        )
        for table in (contexts, objects, tables["measures"]):
            for row in table.to_pylist():
                if row["image_id"] in known:
                    known[row["image_id"]] |= row
        if "boxes" in tables:
            with_boxes(known, tables["boxes"])
        splits = of_instances(self.common["splits"], "split", tables["pairs"]["instance_id"])
        return [
            PairToAnnotate(
                pair_id=row["pair_id"],
                domain=row["domain"],
                split=splits[row["instance_id"]],
                instance_id=row["instance_id"],
                category=known[row["reference_id"]]["category"],
                reference=known[row["reference_id"]],
                target=known[row["target_id"]],
            )
            for row in tables["pairs"].to_pylist()
        ]


@dataclass
class GroundedAnnotateStage(AnnotateStage):
    """The same, with the boxes that a detector found."""

    inputs = (*AnnotateStage.inputs, "boxes")


def of_instances(splits: pa.Table, column: str, instances: pa.ChunkedArray) -> dict[str, str]:
    """What a column of `splits` says of some instances. Of all of them a worker holds Arrow's bytes alone."""
    rows = splits.filter(pc.is_in(splits["instance_id"], value_set=instances.unique()))
    return dict(zip(rows["instance_id"].to_pylist(), rows[column].to_pylist(), strict=True))


def _name_of(pair: PairToAnnotate) -> str:
    """What a source calls the instance: its folder, without the variant."""
    return group_of(pair.instance_id, pair.reference["variant"]).rsplit("/", 1)[-1]


def _quadruple(pair: PairToAnnotate, answer: Annotation) -> dict[str, Any]:
    extra = json.dumps(answer.extra, sort_keys=True, ensure_ascii=False) if answer.extra else None
    return {
        "query_id": pair.pair_id,
        "domain": pair.domain,
        "split": pair.split,
        "instance_id": pair.instance_id,
        "category": pair.category,
        "reference_id": pair.reference["image_id"],
        "reference_box": answer.box,
        "reference_mask_uri": pair.reference["mask_uri"],
        "reference_mask_sha256": pair.reference["mask_sha256"],
        "modification_text": answer.text,
        "target_ids": [pair.target["image_id"]],
        "provenance": {
            "annotator": answer.annotator,
            "model": answer.model,
            "prompt_sha256": answer.prompt_sha256,
            "confidence": answer.confidence,
            "parent_id": pair.pair_id,
            "extra_json": extra,
        },
    }


def _reject(pair: PairToAnnotate, why: Rejection) -> dict[str, Any]:
    row = {"stage": "annotate", "entity": "quadruples", "key": pair.pair_id}
    return row | {"reason": why.reason, "detail": why.detail}
