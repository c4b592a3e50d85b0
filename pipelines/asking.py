"""Stage 3 by a chat model: the canary first, then every part in one process that keeps many requests in flight."""

from __future__ import annotations

import logging
import random
from typing import Any

from infra.base import storage, versions
from infra.base.secrets import read_secret
from pipelines.annotate import AnnotateStage
from pipelines.annotators.chat.annotator import COMPLETION, KEPT, PAID, PROMPT, RETRIED
from pipelines.annotators.chat.canary import check_eyes
from pipelines.annotators.chat.options import ChatOptions, ChatSetting
from pipelines.config import AnnotatorKind, BuildRecipe
from pipelines.earlier import Earlier
from pipelines.reviewing import annotate_stage
from pipelines.stages import RECORDS, PartRecord, run_stages

log = logging.getLogger(__name__)
KEPT_ANSWERS = "answers"


def ask(
    recipe: BuildRecipe,
    chat: ChatOptions,
    draft: versions.Draft,
    root: str,
    parts: int,
    earlier: Earlier | None,
) -> dict[str, list[PartRecord]]:
    """Annotate the parts that are not done yet.

    One worker does it, whatever `workers` says: what takes time is the server, and one process alone can keep the
    number of requests in flight and the budget exactly.

    Args:
        recipe: of the build.
        chat: its options of the chat annotator.
        draft: the version being made.
        root: where versions lie.
        parts: how many parts there are.
        earlier: what an earlier version knows, for the workers.

    Returns:
        The records of the annotate stage.

    Raises:
        OacirError: the server does not see pictures, is away, or the budget is spent; what is done stays done.
    """
    key = read_secret(chat.key_variable, chat.key_file)
    done = {file.path for file in storage.list_files(draft.path(RECORDS, AnnotateStage.name))}
    if len(done) < parts:
        check_eyes(chat, key, random.Random())
    setting = ChatSetting(
        options=chat,
        key=key,
        kept_url=storage.absolute(chat.cache or storage.join(root, KEPT_ANSWERS)),
        benchmark=f"{draft.name}/{draft.key}",
        max_words={domain: t.max_words for domain, t in recipe.thresholds.domains.items()},
        default_max_words=recipe.thresholds.default.max_words,
        good4cir=recipe.good4cir,
    )
    kind = annotate_stage(recipe)
    writer: AnnotatorKind = "good4cir" if recipe.good4cir else "chat"
    stage = kind(writer, recipe.thresholds, recipe.seed, earlier, None, chat=setting, version_url=draft.url)
    return run_stages([stage], draft.url, parts, workers=1, label="ask")


def chat_figures(recipe: BuildRecipe, chat: ChatOptions, counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """What the texts of a benchmark took, from the counts of all its parts."""
    total = {name: sum(c.get(name, 0) for c in counts.values()) for name in (PAID, PROMPT, COMPLETION, KEPT)}
    return {
        "model": chat.model,
        "prompts_sha256": recipe.prompts(),
        "requests": total[PAID],
        "prompt_tokens": total[PROMPT],
        "completion_tokens": total[COMPLETION],
        "money": chat.money(total[PROMPT], total[COMPLETION]),
        "answers_of_other_benchmarks": total[KEPT],
        "tries_again": sum(c.get(RETRIED, 0) for c in counts.values()),
        "texts_asked_again": sum(c.get("texts asked again", 0) for c in counts.values()),
        "texts_mended": sum(c.get("texts mended", 0) for c in counts.values()),
    }
