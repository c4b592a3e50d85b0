"""One trial of each storage drill, and each with its recovery taken out; `make drills` does ten."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import NoMountsError

sys.path.insert(0, str(Path(__file__).parent))

from drill_storage import WHAT, StorageTrial, one
from storage_scene import Scene, scene

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("drill"), instances=4) as found:
        yield found


def drilled(made: Scene, kind: str, without: bool) -> StorageTrial:
    try:
        return one(made, kind, 0, random.Random(5), 1, without)  # after 0.62 of the work
    except NoMountsError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "kind", [k if k == "errors" else pytest.param(k, marks=pytest.mark.long) for k in WHAT]
)
def test_a_build_comes_through(made: Scene, kind: str) -> None:
    trial = drilled(made, kind, without=False)
    assert trial.good, trial
    assert trial.files_before > 10
    if kind in ("errors", "damage"):
        assert sum(trial.calls_failed.values()) > 5
    if kind in ("loss", "disk"):
        assert trial.stopped_with
        assert trial.parts_before > 2
        assert (
            trial.files_redone < 20
        )  # of the parts that were under way, which is no small share of so small a build


@pytest.mark.drill
@pytest.mark.parametrize("kind", WHAT)
def test_without_recovery_the_drill_fails(made: Scene, kind: str) -> None:
    trial = drilled(made, kind, without=True)
    assert not trial.good
    if kind == "disk":
        assert "half-written" in trial.failure
