"""Records of trials: written whole, read in order, refused when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sweep import ended

from infra.base.errors import OacirError
from tuning.records import TrialRecord, anew, read, write


def test_what_is_written_is_read_by_number(tmp_path: Path) -> None:
    records = [
        ended(11, {"training.seed": 1}, avg=3.0),
        TrialRecord(number=2, values={"training.betas": [0.9, 0.99]}),
    ]
    assert read(str(tmp_path)) == []
    for record in records:
        write(str(tmp_path), record)
    assert read(str(tmp_path)) == [records[1], records[0]]
    later = records[1].model_copy(update={"state": "failed", "reason": "x"})
    write(str(tmp_path), later)
    assert read(str(tmp_path))[0] == later


def test_a_failed_trial_is_tried_again_from_where_it_was_and_no_other_one() -> None:
    failed = ended(3, {"training.seed": 1}, "failed").model_copy(update={"origin": "/root/runs/small/a"})
    open_again = anew(failed)
    assert not open_again.ended
    assert (open_again.run, open_again.origin, open_again.reason) == (failed.run, failed.origin, "")
    for record in (ended(4, {}, avg=1.0), ended(5, {}, "stopped", avg=1.0), TrialRecord(number=6, values={})):
        assert anew(record) == record


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    write(str(tmp_path), ended(0, {}, avg=1.0))
    place = tmp_path / "trials" / "00000.json"
    place.write_text(place.read_text()[:20])
    with pytest.raises(OacirError, match=r"00000\.json: damaged record .* delete it") as caught:
        read(str(tmp_path))
    assert "\n" not in str(caught.value)
