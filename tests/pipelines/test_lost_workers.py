"""What becomes of a part whose worker dies: real Ray tasks, really killed."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from infra.base import storage
from infra.base.accounts import Account
from infra.base.errors import OacirError
from pipelines import stages as running
from pipelines.records import TABLES
from pipelines.stages import Part, Stage, StageResult, part_path, run_stages

pytestmark = pytest.mark.usefixtures("module_travels")
ROWS = 4


@dataclass
class Copies(Stage):
    """Copies its rows; a log tells each part it began."""

    log: str
    name = "first"
    inputs = ("protocol",)
    outputs = ("_work/protocol/copied",)

    def __call__(self, part: Part) -> StageResult:
        with Path(self.log).open("a") as stream:
            stream.write(f"{self.name} {part.number}\n")
        rows = part.tables[self.inputs[0]]
        return StageResult(
            {self.outputs[0]: rows}, [Account(entity="images", taken_in=len(rows), kept=len(rows))]
        )


@dataclass
class Dies(Copies):
    """Kills its worker over part 1, the first `deaths` times."""

    deaths: int = 1
    name = "second"
    inputs = ("_work/protocol/copied",)
    outputs = ("_work/protocol/again",)

    def __call__(self, part: Part) -> StageResult:
        made = super().__call__(part)
        if part.number == 1 and Path(self.log).read_text().split("\n").count("second 1") <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return made


@dataclass
class Hangs(Stage):
    """Waits for ever over the records that are called so, where the watch does not say that they hung."""

    seconds_per_record: float | None = None
    together: bool = False
    name = "hangs"
    inputs = ("protocol",)
    outputs = ("_work/protocol/copied",)

    def __call__(self, part: Part) -> StageResult:
        rows, watch, kept = part.tables["protocol"].to_pylist(), part.watch, []
        groups = (
            [range(len(rows))]
            if self.together and not watch.hung.together
            else [[n] for n in range(len(rows))]
        )
        for group in groups:
            with watch.over(group[0], len(group)):
                for n in group:
                    if n not in watch.hung.alone:
                        if rows[n]["rule"] == "hang":
                            signal.pause()
                        kept.append(rows[n])
        refused = len(rows) - len(kept)
        account = Account(
            entity="images",
            taken_in=len(rows),
            kept=len(kept),
            rejected={"timeout": refused} if refused else {},
        )
        return StageResult({self.outputs[0]: pa.Table.from_pylist(kept, TABLES["protocol"])}, [account])


def prepared(url: Path, parts: int, hanging: set[tuple[int, int]] = frozenset()) -> str:  # type: ignore[assignment]
    for number in range(parts):
        rows = [
            {"rule": "hang" if (number, n) in hanging else "r", "value": f"{number}.{n}"} for n in range(ROWS)
        ]
        storage.write_table(str(url / part_path("protocol", number)), pa.Table.from_pylist(rows))
    return str(url)


def values(url: str, table: str, parts: int) -> list[str]:
    return [v for t in running.read_parts(url, table, parts) for v in t["value"].to_pylist()]


@pytest.mark.ray
def test_a_part_of_a_dead_worker_is_done_again_and_what_was_done_of_it_is_taken_over(
    tmp_path: Path, ray_session: None, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    url, log = prepared(tmp_path / "v", 3), tmp_path / "log"
    stages = [Copies(str(log)), Dies(str(log), deaths=2)]
    records = run_stages(stages, url, 3, workers=2, label="copying")
    ran = log.read_text().splitlines()
    assert (ran.count("first 1"), ran.count("second 1")) == (1, 3)
    assert [r.accounts[0].kept for r in records["second"]] == [ROWS] * 3
    assert [r.part for r in records["first"]] == [0, 1, 2]
    assert "copying, part 1: lost 2 times with its worker or node" in caplog.text
    assert capfd.readouterr().out == ""  # where a command says its result
    assert values(url, "_work/protocol/again", 3) == [f"{p}.{n}" for p in range(3) for n in range(ROWS)]


@pytest.mark.ray
def test_deaths_over_one_part_are_bounded(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "DEATHS_OF_A_PART", 1)
    url, log = prepared(tmp_path / "v", 2), tmp_path / "log"
    with pytest.raises(
        OacirError, match=r"^copying, part 1: it was lost 2 times with its worker or node; what is done"
    ):
        run_stages([Copies(str(log)), Dies(str(log), deaths=9)], url, 2, workers=1, label="copying")
    assert log.read_text().splitlines().count("second 1") == 2
    # the same command goes on, and does not do the first stage of that part again
    run_stages([Copies(str(log)), Dies(str(log), deaths=0)], url, 2, workers=1, label="copying")
    assert log.read_text().splitlines().count("first 1") == 1


@pytest.mark.ray
@pytest.mark.parametrize("together", [False, True])
def test_records_that_hang_are_left_out_and_nothing_else(
    tmp_path: Path, ray_session: None, together: bool
) -> None:
    hanging = {(2, 1)} if together else {(0, 2), (2, 0), (2, 3)}
    url = prepared(tmp_path / "v", 3, hanging)
    made = run_stages([Hangs(1.0 if not together else 0.4, together)], url, 3, workers=2, label="waiting")
    kept = {(p, n) for p in range(3) for n in range(ROWS)} - hanging
    assert values(url, "_work/protocol/copied", 3) == [f"{p}.{n}" for p, n in sorted(kept)]
    account = running.sum_accounts(made["hangs"])[0]
    assert (account.taken_in, account.kept) == (12, len(kept))
    assert account.rejected == {"timeout": len(hanging)}


@pytest.mark.ray
def test_a_later_run_knows_what_hung_in_an_earlier_one(tmp_path: Path, ray_session: None) -> None:
    from pipelines.watchdog import note_path

    url = prepared(tmp_path / "v", 1, {(0, 1)})
    storage.write_bytes(f"{url}/{note_path('hangs', 0, 1, 1)}", b"{}")
    made = run_stages([Hangs(60.0)], url, 1, workers=1, label="waiting")
    assert made["hangs"][0].accounts[0].rejected == {"timeout": 1}
