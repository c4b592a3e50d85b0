from __future__ import annotations

import json
import sys

import pytest

from infra import cli
from infra.base.command import Context, Outcome
from infra.base.config import Config

SEEN: list[Context] = []


class Plain(Config):
    pass


def tell(recipe: Plain, context: Context) -> Outcome:
    """A command that does nothing but speak."""
    SEEN.append(context)
    refused = "the gate says no" if context.dry_run else None
    return Outcome("done: there", "there", {"images": 3}, ("first", "second"), refused)


@pytest.fixture(autouse=True)
def verb(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    monkeypatch.setitem(cli.VERBS, "tell", cli.Verb("speaks", f"{__name__}:Plain", f"{__name__}:tell"))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[tell.__module__])


def test_a_command_is_told_where_to_work_and_whether_to_stop() -> None:
    cli.main(["tell"])
    cli.main(["tell", "--root", "s3://b/r", "--out", "O", "--dry-run"])
    assert [Context(root="oacir-data"), Context(root="s3://b/r", out="O", dry_run=True)] == SEEN


def test_details_come_before_the_message_and_figures_only_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tell"]) == 0
    assert capsys.readouterr().out.splitlines() == ["first", "second", "done: there"]
    assert cli.main(["tell", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"message": "done: there", "location": "there", "images": 3}


def test_a_refused_result_is_shown_and_then_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tell", "--dry-run"]) == 3
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "done: there"
    assert printed.err == "oacir: error: the gate says no\n"


def test_an_outcome_alone_promises_nothing() -> None:
    first, second = Outcome("a"), Outcome("b")
    assert (first.location, first.refused, first.details, first.figures) == (None, None, (), {})
    assert first.figures is not second.figures
