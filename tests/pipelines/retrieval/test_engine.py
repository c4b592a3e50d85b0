"""The engine: scores that do not depend on how the work is cut, and rankings worked out by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.base.command import Context
from pipelines.retrieval.engine import Encoder, Gallery, QuerySet, encode_queries, join, rank, score, top
from pipelines.retrieval.inputs import find_model
from training.anchors import Anchor
from training.scoring import max_over_set

GALLERY = Gallery("shop/test", ["a", "b", "c", "d", "e"], ["mug", "mug", "cup", "mug", "cup"])


def queries(rows: Sequence[tuple[str, str, str]]) -> QuerySet:
    """Rows of instance, reference and target."""
    count = len(rows)
    return QuerySet(
        query_ids=[f"q{i}" for i in range(count)],
        instance_ids=[r[0] for r in rows],
        reference_ids=[r[1] for r in rows],
        target_ids=[r[2] for r in rows],
        texts=["on a beach"] * count,
        categories=["mug"] * count,
        anchors=[Anchor(r[1], (64, 64), (0.0, 0.0, 10.0, 10.0), None) for r in rows],
    )


def test_the_reference_is_removed_and_ties_go_to_the_smaller_id() -> None:
    asked = queries([("mug", "b", "d"), ("cup", "c", "e")])
    scores = np.array([[0.5, 0.9, 0.7, 0.5, 0.1], [0.3, 0.3, 0.9, 0.3, 0.3]], np.float32)
    found = rank(scores, asked, slice(0, 2), GALLERY, 3)
    # first: b is the reference; c, then a before d on a tie. second: c is the reference; a, b, d, e tie.
    assert found.candidates == [[2, 0, 3], [0, 1, 3]]
    assert found.target_rank.tolist() == [3, 4]
    assert found.instance_rank.tolist() == [2, 4]
    assert found.scores[0] == pytest.approx([0.7, 0.5, 0.5])


def test_a_kept_reference_is_ranked_like_any_other_image() -> None:
    asked = dataclasses.replace(queries([("mug", "b", "d")]), reference_kept=True)
    found = rank(np.array([[0.5, 0.9, 0.7, 0.5, 0.1]], np.float32), asked, slice(0, 1), GALLERY, 3)
    # b, the reference, comes first and is of the instance; then c, a, d
    assert found.candidates == [[1, 2, 0]]
    assert (found.target_rank.tolist(), found.instance_rank.tolist()) == ([4], [1])


def test_fewer_candidates_than_asked_for() -> None:
    columns, best = top(np.array([[0.1, 0.2, 0.3, 0.4, 0.5]], np.float32), GALLERY, ["e"], 50)
    assert columns == [[3, 2, 1, 0]]
    assert len(best[0]) == 4


def test_golden_rankings(golden_dir: Path) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(golden_dir / "metrics.safetensors")
    cases = json.loads((golden_dir / "metrics.json").read_text())
    for name, case in cases.items():
        names, place = case["index_names"], case["name_to_relpath"]
        order = np.argsort(np.array(names, object))
        ids = [names[i] for i in order]
        gallery = Gallery("golden/test", ids, [str(Path(place[n]).parent) for n in ids])
        rows = [
            (str(Path(place[t]).parent), r, t)
            for r, t in zip(case["reference_names"], case["target_names"], strict=True)
        ]
        scores = tensors[f"{name}.similarity"][:, order]
        found = rank(scores, queries(rows), slice(0, len(rows)), gallery, 10)
        shown = [[ids[c] for c in row] for row in found.candidates]
        assert shown == case["top10_after_reference_removal"]


def test_scores_and_ranks_do_not_depend_on_the_chunks() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(37, 64, generator=generator), dim=-1)
    targets = torch.nn.functional.normalize(torch.randn(101, 8, 64, generator=generator), dim=-1)
    # Near ties: the same images once more, with the last bit of some coordinates changed.
    targets = torch.cat([targets, targets * (1 + 2**-24)])
    whole = score(max_over_set, vectors, targets)
    for size in (1, 2, 5, 16, 36):
        parts = [score(max_over_set, vectors[i : i + size], targets) for i in range(0, 37, size)]
        assert np.array_equal(np.concatenate(parts), whole)
    for size in (1, 7, 100):
        parts = [score(max_over_set, vectors, targets[i : i + size]) for i in range(0, 202, size)]
        assert np.array_equal(np.concatenate(parts, axis=1), whole)
    exact = (vectors.double() @ targets.double().flatten(0, 1).T).unflatten(1, (202, 8)).amax(-1)
    assert np.array_equal(whole, exact.float().numpy())


def test_joined_chunks_are_the_whole() -> None:
    asked = queries([("mug", "b", "d"), ("cup", "c", "e"), ("mug", "a", "b")])
    scores = np.random.default_rng(0).random((3, 5), np.float32)
    whole = rank(scores, asked, slice(0, 3), GALLERY, 4)
    parts = join([rank(scores[i : i + 1], asked, slice(i, i + 1), GALLERY, 4) for i in range(3)])
    assert parts.candidates == whole.candidates
    assert parts.scores == whole.scores
    assert parts.target_rank.tolist() == whole.target_rank.tolist()
    assert parts.instance_rank.tolist() == whole.instance_rank.tolist()


class RandomTokens:
    """Tokens that depend on the image id alone."""

    def tokens(self, image_ids: Sequence[str]) -> torch.Tensor:
        rows = [torch.randn(17, 32, generator=torch.Generator().manual_seed(ord(i))) for i in image_ids]
        return torch.stack(rows)


def test_the_encoder_turns_dropout_off_and_beta_is_null_without_a_patch(context: Context) -> None:
    model, processor = find_model(context.root, "adafocal").load()
    asked = queries([("mug", "b", "d"), ("cup", "c", "e"), ("mug", "a", "b")])
    asked.anchors[1] = asked.anchors[1]._replace(box=None)
    encoder = Encoder(model.train(), processor, RandomTokens(), batch_size=2)
    prepared = encoder.prepare(asked)
    first, betas = encode_queries(encoder, prepared)
    again, same = encode_queries(encoder, prepared)
    assert torch.equal(first, again)
    assert betas == same
    assert [beta is None for beta in betas] == [False, True, False]
    assert all(len(beta) == 1 and beta[0] > 0 for beta in betas if beta is not None)


def test_rows_may_borrow_reference_or_text(context: Context) -> None:
    model, processor = find_model(context.root, "adafocal").load()
    asked = queries([("mug", "b", "d"), ("cup", "c", "e"), ("mug", "a", "b")])
    asked.texts[:] = ["on a beach", "in the snow at night", "under a lamp"]
    encoder = Encoder(model, processor, RandomTokens())
    prepared = encoder.prepare(asked)
    borrowed, _ = encode_queries(encoder, prepared, reference_of=np.array([2, 0, 1]))
    mixed = queries([("mug", "a", "d"), ("cup", "b", "e"), ("mug", "c", "b")])
    mixed.texts[:] = asked.texts
    expected, _ = encode_queries(encoder, encoder.prepare(mixed))
    assert torch.allclose(borrowed, expected, atol=1e-6)
    swapped, _ = encode_queries(encoder, prepared, text_of=np.array([1, 2, 0]))
    assert not torch.allclose(swapped, borrowed, atol=1e-3)
