"""The log: JSON lines with ids where they are asked for, and no secret in any line."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.base import logs
from infra.base.errors import OacirError
from infra.base.progress import Progress, announce

KEY = "wJalrXUtnFEMI/K7MDENG"


def line(message: str, *arguments: Any, **extra: Any) -> dict[str, Any]:
    record = logging.LogRecord("pipelines.build", logging.WARNING, "f.py", 1, message, arguments, None)
    vars(record).update(extra)
    found: dict[str, Any] = json.loads(logs.JsonLines().format(record))
    return found


def test_a_line_says_what_was_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_about", {})
    with logs.about(command="build", run="photos/01"), logs.about(stage="collect", trial=3):
        inside = line("%d lost", 2, done=5)
        logs.now(stage=None)
        assert "stage" not in line("x")
    assert inside.pop("time").endswith("+00:00")
    ids = {"command": "build", "run": "photos/01", "stage": "collect", "trial": 3}
    assert inside == {"level": "WARNING", "logger": "pipelines.build", "message": "2 lost", "done": 5, **ids}
    assert set(line("x")) == {"time", "level", "logger", "message"}


def test_a_trace_is_part_of_its_line() -> None:
    try:
        raise ValueError("of old")
    except ValueError:
        record = logging.LogRecord("training", logging.ERROR, "f.py", 1, "it failed", (), sys.exc_info())
    text = logs.JsonLines().format(record)
    assert "\n" not in text
    assert json.loads(text)["trace"].endswith("ValueError: of old\n")


@pytest.mark.parametrize("form", [logs.JsonLines(), logs.PlainLines(logs.PLAIN)])
def test_no_secret_is_in_a_line(form: logging.Formatter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.setenv("CHAT_API_KEY", "sk-0123456789")
    monkeypatch.setenv("RAY_AUTH_MODE", "token-mode")
    monkeypatch.setenv("OACIR_KEY_FILE", "/etc/oacir/key")
    try:
        raise ValueError(f"signature of {KEY}")
    except ValueError:
        trace = sys.exc_info()
    said = ("https://ann:hunter22@mlflow.example/x", "sk-0123456789", "token-mode", "/etc/oacir/key")
    record = logging.LogRecord("infra", logging.ERROR, "f.py", 1, "%s %s %s %s", said, trace)
    record.place = f"s3://x/{KEY}"
    text = form.format(record)
    for secret in (KEY, "sk-0123456789", "hunter22", "ann"):
        assert secret not in text
    for kept in ("[AWS_SECRET_ACCESS_KEY]", "https://mlflow.example/x", "token-mode", "/etc/oacir/key"):
        assert kept in text


def test_lines_of_the_terminal_are_records_where_json_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logs.VARIABLE, "json")
    with caplog.at_level(logging.INFO), Progress("embed", 2, "images") as progress:
        announce("goes on")
        progress.update(2, at_once=True)
    assert capsys.readouterr().err == ""
    assert [(r.message.partition(" in ")[0], vars(r).get("done")) for r in caplog.records] == [
        ("goes on", None),
        ("embed: 2 of 2 images", 2),
        ("embed: 2 of 2 images", 2),
    ]


def test_another_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, "xml")
    with pytest.raises(OacirError, match=r"^OACIR_LOG=xml: allowed are plain and json$"):
        logs.start()


@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_command_writes_one_form(form: str, tmp_path: Path) -> None:
    """In a process of its own, whose log nobody else has set up."""
    environment = {**os.environ, logs.VARIABLE: form}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "infra.cli", *words, "--root", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    fine, failed = run("data", "list"), run("data", "show", "--dataset", "photos/none")
    assert (fine.returncode, failed.returncode) == (0, 1)
    if form == "plain":
        assert fine.stderr == ""
        assert failed.stderr.startswith("oacir: error: ")
        return
    begun, ended = map(json.loads, fine.stderr.splitlines())
    assert (begun["message"], begun["command"], begun["level"]) == ("begins", "data list", "INFO")
    assert ended["message"].startswith("ends: ")
    assert json.loads(failed.stderr.splitlines()[-1])["level"] == "ERROR"
