"""The world's oracle: texts from the exact contexts of two scenes; test texts in wordings that training never sees."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipelines.annotators.base import Annotation, Annotator, PairToAnnotate, Rejection


class WorldAnnotator(Annotator):
    """See `annotators.base.Annotator`."""

    name = "world-oracle"

    def annotate(self, pairs: Sequence[PairToAnnotate], seed: int) -> list[Annotation | Rejection]:
        """One answer per pair; a pair's wording depends on the seed, its id and whether it is a test pair."""
        return [self._answer(pair, seed) for pair in pairs]

    def _answer(self, pair: PairToAnnotate, seed: int) -> Annotation | Rejection:
        from pipelines.world.texts import modification_text

        box = pair.reference["box"]
        contexts = [json.loads(side["context_json"] or "null") for side in (pair.reference, pair.target)]
        if None in contexts:
            raise ValueError(f"{pair.pair_id}: no context record; the world's oracle knows only the world")
        if box is None:
            return Rejection("no_box", "the anchored object is not visible in the reference")
        text = modification_text(
            pair.domain,
            reference_context=contexts[0],
            target_context=contexts[1],
            rng_seed=f"{seed}/{pair.pair_id}",
            held_out_wording=pair.split == "test",
        )
        if text is None:
            return Rejection("no_difference", "both scenes have the same context")
        return Annotation(text, tuple(box), self.name, 1.0)
