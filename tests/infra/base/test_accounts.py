from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.base.accounts import Account, add
from infra.base.errors import OacirError

COUNTS = st.integers(0, 5)
PARTS = st.lists(
    st.builds(
        Account,
        entity=st.just("images"),
        taken_in=COUNTS,
        kept=COUNTS,
        rejected=st.dictionaries(st.sampled_from(["corrupt", "truncated", "too_small"]), COUNTS),
        reserved=COUNTS,
        not_sampled=COUNTS,
    ),
    min_size=1,
    max_size=6,
)


def test_everything_that_left_is_accounted_for() -> None:
    account = Account(
        entity="pairs", taken_in=11, kept=4, rejected={"a": 2, "b": 1}, reserved=3, not_sampled=1
    )
    assert account.accounted == 11
    assert account.check() is account


@pytest.mark.parametrize(("taken_in", "says"), [(12, "12 came in but 11"), (10, "10 came in but 11")])
def test_a_record_lost_or_doubled_is_an_error(taken_in: int, says: str) -> None:
    account = Account(entity="pairs", taken_in=taken_in, kept=8, rejected={"a": 2}, reserved=1)
    with pytest.raises(OacirError, match=f"account of pairs: {says} are accounted for"):
        account.check()


def test_accounts_sum_by_reason() -> None:
    parts = [
        Account(entity="images", taken_in=4, kept=2, rejected={"corrupt": 1, "truncated": 1}),
        Account(entity="images", taken_in=5, kept=1, rejected={"corrupt": 2}, reserved=1, not_sampled=1),
    ]
    total = add(parts).check()
    assert total.rejected == {"corrupt": 3, "truncated": 1}
    assert total.line() == (
        "images: 9 in = 3 kept + 4 rejected (corrupt 3, truncated 1) + 1 reserved + 1 not sampled"
    )


def test_a_line_leaves_out_what_there_is_none_of() -> None:
    assert Account(entity="images", taken_in=1200, kept=1200).line() == "images: 1,200 in = 1,200 kept"


@given(PARTS, st.integers(0, 6))
def test_a_sum_does_not_depend_on_how_it_is_cut(parts: list[Account], cut: int) -> None:
    whole = add(parts)
    assert add(reversed(parts)) == whole
    assert whole.accounted == sum(p.accounted for p in parts)
    if 0 < cut < len(parts):
        assert add([add(parts[:cut]), add(parts[cut:])]) == whole


@pytest.mark.parametrize("entities", [(), ("images", "pairs")])
def test_accounts_of_several_entities_have_no_sum(entities: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="accounts of one entity, at least one"):
        add(Account(entity=e) for e in entities)
