"""Which queries a diagnosis shows: the hardest ones, and those on which two models differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipelines.retrieval.compared import Compared
from pipelines.retrieval.diagnosis.classes import Kind

Side = Literal["first", "second", "same"]
TOP = 5


def hardest(compared: Sequence[Compared], asked: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The queries, those first that even the best of the models ranks worst; ties by query id."""

    def rank(row: Mapping[str, Any]) -> tuple[int, int]:
        ranks = [one.rankings[row["query_id"]]["target_rank"] for one in compared]
        return min(ranks), sum(ranks)

    return sorted(
        sorted(asked, key=lambda row: row["query_id"]), key=lambda row: tuple(-n for n in rank(row))
    )


def better(
    first: Compared, second: Compared, asked: Sequence[Mapping[str, Any]], kinds: Sequence[Sequence[Kind]]
) -> list[Side]:
    """For each query which of two models does better, or that they do the same.

    They differ where one has the target in its first five and the other has not, or where their first images are
    mistakes of different kinds; better is the one that ranks the target, and else the instance, before the other does.
    """
    sides: list[Side] = []
    for row, a, b in zip(asked, *kinds, strict=True):
        mine, other = (_ranks(one, row) for one in (first, second))
        differ = a != b or (mine[0] <= TOP) != (other[0] <= TOP)
        sides.append("same" if not differ or mine == other else "first" if mine < other else "second")
    return sides


def side_by_side(
    first: Compared, second: Compared, asked: Sequence[Mapping[str, Any]], sides: Sequence[Side]
) -> list[tuple[Mapping[str, Any], Side]]:
    """The queries with their sides: those first that differ, and of these the largest ratio of target ranks."""

    def order(pair: tuple[Mapping[str, Any], Side]) -> tuple[bool, float, str]:
        row, side = pair
        ratio = math.log(_ranks(first, row)[0] / _ranks(second, row)[0])
        return side == "same", -abs(ratio), row["query_id"]

    return sorted(zip(asked, sides, strict=True), key=order)


def _ranks(one: Compared, row: Mapping[str, Any]) -> tuple[int, int]:
    ranking = one.rankings[row["query_id"]]
    return ranking["target_rank"], ranking["instance_rank"]
