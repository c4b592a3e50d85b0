from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra import cli


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "MLFLOW_TRACKING_URI",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OACIR_S3_PATIENCE_S", "1")


def test_every_check_has_its_line_and_ci_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "--root", str(tmp_path), "--train", "tiny", "--images", "1,000"]
    assert cli.main(words) in (0, 3)  # 3: this machine's disk may be full
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[1] for line in lines[:-1]]
    assert names == [
        "python", "packages", "cuda", "ray", "storage", "mlflow", "disk", "shm", "features", "clock",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[:2]] == ["ok", "ok"]
    assert "1,000 images × " in lines[8]


def test_a_fault_exits_with_3_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--root", str(tmp_path), "--mlflow_uri", "http://127.0.0.1:1", "--json"])
    told = capsys.readouterr()
    assert code == 3
    found = {f["check"]: f["state"] for f in json.loads(told.out)["findings"]}
    assert found["mlflow"] == "fault"
    assert found["storage"] == "ok"
    assert "mlflow" in told.err
    assert "their lines say what mends them" in told.err


def test_a_benchmark_that_is_not_there_is_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--root", str(tmp_path), "--train", "tiny", "--images", "nowhere"]) == 3
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " features " in line]
    assert line.startswith("fault ")
    assert "nowhere" in line
