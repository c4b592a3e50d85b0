"""Secrets that get into what a command raises, logs or says, for every verb: none reaches the terminal or the log.

Errors of libraries quote what they were given, so each verb's function is replaced by one that leaks in every way.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import cli
from infra.base import logs, versions
from infra.base.config import Config
from infra.base.errors import OacirError
from infra.base.progress import Progress, announce

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEBYaDEXAMPLE",
    "MLFLOW_TRACKING_PASSWORD": "correct horse battery",
    "MLFLOW_TRACKING_TOKEN": "mlf-0123456789abcdef",
    "RAY_AUTH_TOKEN": "ray-0123456789abcdef",
    "OPENAI_API_KEY": "sk-proj-0123456789abcdef",
    "HF_TOKEN": "hf_0123456789abcdef",
}
IN_URL = "hunter22"
LEAK = " ".join([*SECRETS.values(), f"postgresql://ann:{IN_URL}@db/mlflow"])
EVERY = [*SECRETS.values(), IN_URL]


class Nothing(Config):
    """A recipe of nothing."""


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root of the loggers, whose levels come back."""
    loggers = [logging.getLogger(name) for name in ("", *logs.OURS)]
    before = [logger.level for logger in loggers]
    yield loggers[0]
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture
def leaking(monkeypatch: pytest.MonkeyPatch, root: logging.Logger) -> dict[str, Any]:
    """Every verb's function says all it knows; how it ends is set by the test."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    ends: dict[str, Any] = {}

    def leak(*_: Any) -> None:
        logging.getLogger("pipelines.leak").warning("of a library: %s", LEAK)
        announce(LEAK)
        with Progress(LEAK, 1, "things") as progress:
            progress.update(1, LEAK, at_once=True)
        raise ends["error"]

    monkeypatch.setattr(cli.Verb, "load", lambda _: (Nothing, leak))
    return ends


@pytest.mark.parametrize("form", ["plain", "json"])
@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_no_verb_lets_a_secret_out(
    verb: str,
    form: str,
    leaking: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(logs.VARIABLE, form)
    words = verb.split() + (["data", "list"] if cli.VERBS[verb].sends else [])
    if cli.VERBS[verb].needs_config:
        (tmp_path / "r.yaml").write_text("{}")
        words += ["--config", str(tmp_path / "r.yaml")]
    for error in (OacirError(LEAK), OSError(5, LEAK, LEAK), ValueError(LEAK)):
        leaking["error"] = error
        monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a process of its own
        assert cli.main([*words, "--debug"]) == 1
        said = "".join(capsys.readouterr())
        assert "of a library" in said
        assert [secret for secret in EVERY if secret in said] == []


def test_the_function_would_let_them_out(
    leaking: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the test above counts on: without the rule all of them are there."""
    monkeypatch.setattr(logs, "redacted", lambda text: text)
    leaking["error"] = OacirError(LEAK)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    cli.main(["data", "list"])
    said = "".join(capsys.readouterr())
    assert [secret for secret in EVERY if secret not in said] == []


def test_a_password_in_a_recipe_is_kept_in_no_version(tmp_path: Path) -> None:
    class Nested(Config):
        places: list[str]

    class Recipe(Config):
        name: str = "n"
        source: Nested

    def start(place: str) -> versions.Draft:
        recipe = Recipe(source=Nested(places=["/fine", place]))
        return versions.start("datasets", "n", "k", recipe, root=str(tmp_path))

    with pytest.raises(
        OacirError, match=r"^source.places: holds a password, which would be kept in the version"
    ) as told:
        start(f"https://ann:{IN_URL}@store/x")
    assert IN_URL not in str(told.value)
    assert list(tmp_path.iterdir()) == []
    draft = start("https://store/x@2")
    assert json.loads(Path(draft.url, "started.json").read_text())["recipe"]["source"]["places"][1].endswith(
        "@2"
    )
