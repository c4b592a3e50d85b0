from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest

from infra.base import storage, versions
from infra.base.accounts import Account
from infra.base.config import Config
from infra.base.errors import OacirError
from pipelines import records
from pipelines.stages import (
    Part,
    Stage,
    StageResult,
    part_path,
    prepare,
    publish,
    run_part,
    run_stages,
    schema_name,
    sum_accounts,
    sum_counts,
    table_hash,
)

pytestmark = pytest.mark.usefixtures("module_travels")
NUMBERS = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("uri", pa.string())])


@pytest.fixture(autouse=True)
def numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(records.TABLES, "numbers", NUMBERS)
    monkeypatch.setitem(records.TABLES, "listing", NUMBERS)


@dataclass
class Add(Stage):
    """Adds the shared number to each; refuses what `log` says; writes a line per part to prove when it ran."""

    log: str
    name = "add"
    inputs = ("listing",)
    shared = ("splits",)
    outputs = ("numbers", "_work/numbers/odd")
    _more: int = field(default=0, init=False, repr=False)

    def setup(self) -> None:
        records.TABLES["numbers"] = NUMBERS  # a worker knows the shipped tables only
        self._more = self.common["splits"]["more"][0].as_py()
        with Path(self.log).open("a") as stream:
            stream.write("setup\n")

    def __call__(self, part: Part) -> StageResult:
        with Path(self.log).open("a") as stream:
            stream.write(f"{part.number}\n")
        if Path(f"{self.log}.fail-{part.number}").exists():
            raise OacirError(f"part {part.number} is told to fail; delete the file")
        values = part.tables["listing"]["n"].to_pylist()
        made = pa.table({"n": [v + self._more for v in values]})
        odd = pa.table({"n": [v for v in values if v % 2]})
        account = Account(
            entity="images", taken_in=len(values), kept=len(values) - len(odd), rejected={"corrupt": len(odd)}
        )
        return StageResult(
            {"numbers": made, "_work/numbers/odd": odd}, [account], {"d": {"seen": len(values)}}
        )


def prepared(url: Path, parts: list[list[int]]) -> str:
    for number, values in enumerate(parts):
        storage.write_table(str(url / part_path("listing", number)), pa.table({"n": values}))
    storage.write_table(str(url / "splits.parquet"), pa.table({"more": [100]}))
    return str(url)


def test_a_part_is_read_done_and_recorded(tmp_path: Path) -> None:
    url = prepared(tmp_path / "v", [[1, 2, 3]])
    stage = Add(str(tmp_path / "log"))
    prepare(stage, url)
    record = run_part(stage, url, 0)
    assert storage.read_table(f"{url}/numbers/part-00000.parquet")["n"].to_pylist() == [101, 102, 103]
    assert storage.read_table(f"{url}/_work/numbers/odd/part-00000.parquet")["n"].to_pylist() == [1, 3]
    for file in record.files:
        entry = versions.file_entry(url, file.path)
        assert (file.sha256, file.size_bytes) == (entry.sha256, entry.size_bytes)
    assert [f.rows for f in record.files] == [3, 2]
    assert (tmp_path / "v" / "_accounts" / "add" / "part-00000.json").exists()


def test_the_outputs_of_a_part_are_written_at_once_and_its_record_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = prepared(tmp_path / "v", [[1, 2, 3]])
    stage = Add(str(tmp_path / "log"))
    prepare(stage, url)
    begun, write, ended = Barrier(len(stage.outputs), timeout=30), storage.write_bytes, list[str]()

    def watched(place: str, data: bytes) -> None:
        if place.endswith(".parquet"):
            begun.wait()  # breaks where one output waits for another
        write(place, data)
        ended.append(Path(place).name)

    monkeypatch.setattr(storage, "write_bytes", watched)
    record = run_part(stage, url, 0)
    assert ended == ["part-00000.parquet", "part-00000.parquet", "part-00000.json"]
    assert [file.path.rpartition("/")[0] for file in record.files] == list(stage.outputs)


def test_a_part_of_which_an_output_cannot_be_written_has_no_record(tmp_path: Path) -> None:
    url = prepared(tmp_path / "v", [[1, 2, 3]])
    stage = Add(str(tmp_path / "log"))
    prepare(stage, url)
    (tmp_path / "v/_work/numbers/odd/part-00000.parquet/in the way").mkdir(parents=True)
    with pytest.raises(OacirError, match=r"_work/numbers/odd/part-00000\.parquet: cannot be written"):
        run_part(stage, url, 0)
    assert not (tmp_path / "v/_accounts").exists()


def test_an_output_that_was_not_declared_is_refused(tmp_path: Path) -> None:
    url = prepared(tmp_path / "v", [[1]])
    stage = Add(str(tmp_path / "log"))
    prepare(stage, url)
    Add.outputs = ("numbers",)
    try:
        with pytest.raises(ValueError, match="declares"):
            run_part(stage, url, 0)
    finally:
        Add.outputs = ("numbers", "_work/numbers/odd")
    assert not (tmp_path / "v" / "_accounts").exists()


def test_hash_is_over_rows_in_any_order_without_machine_columns() -> None:
    table = pa.table({"n": [1, 2], "uri": ["/here/a", "/here/b"]}, schema=NUMBERS)
    moved = pa.table({"n": [2, 1], "uri": ["/there/b", "/there/a"]}, schema=NUMBERS)
    assert table_hash(table, "numbers") == table_hash(moved, "numbers")
    doubled = pa.table({"n": [1, 2, 2], "uri": [None] * 3}, schema=NUMBERS)
    assert table_hash(doubled, "numbers") != table_hash(table, "numbers")
    parts = [table_hash(table.slice(i, 1), "numbers") for i in range(2)]
    assert versions.combine(parts) == table_hash(table, "numbers")


@pytest.mark.parametrize(
    ("place", "name"),
    [("pairs", "pairs"), ("rejects/filter", "rejects"), ("_work/images/collected", "images")],
)
def test_schema_of_a_table_named_by_its_place(place: str, name: str) -> None:
    assert schema_name(place) == name


@pytest.mark.ray
def test_a_rerun_does_only_what_is_not_done(tmp_path: Path, ray_session: None) -> None:
    url = prepared(tmp_path / "v", [[n, n + 1] for n in range(6)])
    log = tmp_path / "log"
    fail = tmp_path / "log.fail-3"
    fail.touch()
    with pytest.raises(
        OacirError, match=r"^adding, part 3: part 3 is told to fail; delete the file$"
    ) as error:
        run_stages([Add(str(log))], url, 6, workers=1, label="adding")
    assert "test_stages.py" in str(error.value.__cause__)  # the worker's trace, for --debug
    done = {p.stem for p in (tmp_path / "v/_accounts/add").iterdir()}
    assert "part-00003" not in done
    # a log of its own: a task of the failed run may end after it, and write, or finish its part, in the meantime
    again = tmp_path / "again"
    result = run_stages([Add(str(again))], url, 6, workers=2, label="adding")
    ran = [line for line in again.read_text().split() if line != "setup"]
    assert "3" in ran
    assert len(set(ran)) == len(ran)
    assert not {f"part-{int(n):05d}" for n in ran} & done
    assert [r.part for r in result["add"]] == list(range(6))
    again.write_text("")
    assert run_stages([Add(str(again))], url, 6, workers=2, label="adding") == result
    assert again.read_text() == ""


@pytest.mark.ray
def test_the_last_parts_which_are_the_largest_run_first(tmp_path: Path, ray_session: None) -> None:
    url = prepared(tmp_path / "v", [[n] for n in range(5)])
    log = tmp_path / "log"
    run_stages([Add(str(log))], url, 5, workers=1, label="adding")
    assert log.read_text().split() == ["setup", "4", "3", "2", "1", "0"]


@pytest.mark.ray
def test_heavy_state_is_made_once_per_worker_not_per_part(tmp_path: Path, ray_session: None) -> None:
    url = prepared(tmp_path / "v", [[n] for n in range(12)])
    log = tmp_path / "log"
    run_stages([Add(str(log))], url, 12, workers=2, label="adding")
    assert 1 <= log.read_text().split().count("setup") <= 2


@pytest.mark.ray
def test_published_version_holds_tables_hashes_and_accounts_but_no_work(
    tmp_path: Path, ray_session: None
) -> None:
    class Recipe(Config):
        pass

    results = []
    for name, layout in (("a", [[1, 2, 3], [4]]), ("b", [[4], [3], [2, 1]])):
        draft = versions.start("datasets", name, "k", Recipe(), root=str(tmp_path / name))
        prepared(Path(draft.url), layout)
        made = run_stages(
            [Add(str(tmp_path / f"log-{name}"))], draft.url, len(layout), workers=1, label="adding"
        )
        results.append(publish(draft, made, parents={"world": "w"}))
    first, second = (v.manifest for v in results)
    assert first.content_hash == second.content_hash
    assert {f.path.split("/")[0] for f in first.files} == {"numbers"}
    (account,) = first.accounts["add"]
    assert (account.taken_in, account.kept, account.rejected) == (4, 2, {"corrupt": 2})
    assert first.parents == {"world": "w"}
    assert sorted(results[1].table("numbers")["n"].to_pylist()) == [101, 102, 103, 104]


def test_sums_over_parts(tmp_path: Path) -> None:
    url = prepared(tmp_path / "v", [[1, 2], [3]])
    stage = Add(str(tmp_path / "log"))
    prepare(stage, url)
    made = [run_part(stage, url, n) for n in range(2)]
    (account,) = sum_accounts(made)
    assert (account.taken_in, account.kept, account.rejected) == (3, 1, {"corrupt": 2})
    assert sum_counts(made) == {"d": {"seen": 3}}
