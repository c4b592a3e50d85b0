from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra import cli
from infra.base.command import Context, Outcome
from infra.base.config import Config, load_recipe
from infra.base.errors import OacirError, RecipeError, RefusedError


class Toy(Config):
    count: int = 1
    """How many."""
    fail: str = ""


def run_toy(recipe: Toy, context: Context) -> Outcome:
    if recipe.fail == "known":
        raise OacirError("toy.jpg: is broken; mend it")
    if recipe.fail == "refused":
        raise RefusedError("the gate says no")
    if recipe.fail == "gate":
        return Outcome("made", context.out, {"count": 0}, refused="it holds nothing; feed it")
    if recipe.fail == "wrapped":
        try:
            raise OacirError("inner reason")
        except OacirError as error:
            raise RuntimeError("outer noise") from error
    if recipe.fail == "defect":
        raise ZeroDivisionError("x")
    if recipe.fail == "interrupt":
        raise KeyboardInterrupt
    return Outcome(
        f"made {recipe.count} in {context.root}", context.out, {"count": recipe.count}, ("a detail",)
    )


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "toy", cli.Verb("a toy", f"{__name__}:Toy", f"{__name__}:run_toy"))
    fixed = cli.Verb(
        "no place", f"{__name__}:Toy", f"{__name__}:run_toy", no_out="it makes nothing; try --fail"
    )
    monkeypatch.setitem(cli.VERBS, "fixed", fixed)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[run_toy.__module__])


@pytest.mark.usefixtures("toy")
def test_a_command_gets_its_recipe_and_says_where_the_result_lies(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "--count", "3", "--root", "R"]) == 0
    assert capsys.readouterr().out.splitlines() == ["a detail", "made 3 in R"]
    assert cli.main(["toy", "--json", "--out=O"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "message": "made 1 in oacir-data",
        "location": "O",
        "count": 1,
    }


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["toy", "--fail", "known"], 1, "oacir: error: toy.jpg: is broken; mend it"),
        (["toy", "--fail", "wrapped"], 1, "oacir: error: inner reason"),
        (["toy", "--fail", "refused"], 3, "oacir: error: the gate says no"),
        (["toy", "--fail", "interrupt"], 130, "oacir: error: interrupted; the same command goes on"),
        (["toy", "--count", "many"], 2, "count = 'many'"),
        (["toy", "--cont", "1"], 2, "did you mean 'count'?"),
        (["toy", "--count"], 2, "--count needs a value"),
        (["toy", "stray"], 2, "unexpected word 'stray'"),
        (["trian"], 2, "did you mean 'train'?"),
        (["toy", "--count", "--dry-run"], 2, "--count needs a value, and '--dry-run' looks like an option"),
        (["toy", "--root", "--json"], 2, "if it is meant: --root=--json"),
        (
            ["fixed", "--out", "X"],
            2,
            "--out X has no meaning for oacir fixed: it makes nothing; try --fail",
        ),
        (["toy", "--fail", "defect"], 1, "unexpected ZeroDivisionError"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == code
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert cli.main([*words, "--debug"]) == code
    assert ("Traceback" in capsys.readouterr().err) == (code not in (130,))


@pytest.mark.usefixtures("toy")
def test_a_value_that_looks_like_an_option_is_taken_where_it_is_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["toy", "--root=--json"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "made 1 in --json"
    assert cli.main(["toy", "--root", "-x"]) == 0


@pytest.mark.parametrize(
    "verb", ["demo", "query", "data list", "data show", "data gc", "data verify", "data diff"]
)
def test_commands_that_make_no_version_refuse_out(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*verb.split(), "--out", "X"]) == 2
    assert f"--out X has no meaning for oacir {verb}: " in capsys.readouterr().err


@pytest.mark.usefixtures("toy")
def test_help_of_a_command_lists_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "--help"]) == 0
    assert "--count  (whole number, default 1)\n      How many." in capsys.readouterr().out


@pytest.fixture
def family(toy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.FAMILIES, "toys", "all kinds of toys")
    for second in ("make", "mend"):
        verb = cli.Verb(f"{second} toys", f"{__name__}:Toy", f"{__name__}:run_toy")
        monkeypatch.setitem(cli.VERBS, f"toys {second}", verb)


@pytest.mark.usefixtures("family")
def test_a_verb_of_two_words_takes_options_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toys", "make", "--count", "3", "--root", "R"]) == 0
    assert capsys.readouterr().out.splitlines() == ["a detail", "made 3 in R"]
    assert cli.main(["toys", "--help"]) == 0
    assert capsys.readouterr().out.splitlines()[2:4] == ["  make  make toys", "  mend  mend toys"]
    assert cli.main(["toys", "mend", "--help"]) == 0
    assert "oacir toys mend: mend toys" in capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert "toys all kinds of toys: make · mend" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["toys"], "'toys' needs a second word: make, mend"),
        (["toys", "--count", "3"], "'toys' needs a second word: make, mend"),
        (["toys", "mkae"], "did you mean 'toys make'?"),
        (["toys", "make", "now"], "unexpected word 'now'"),
        (["tois"], "did you mean 'toys'?"),
        (["toy", "--yes=1"], "--yes takes no value"),
    ],
)
def test_a_wrong_second_word_is_answered_with_the_right_ones(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert says in capsys.readouterr().err


def test_yes_and_resume_are_fields_that_need_no_value() -> None:
    assert cli._parse(["data", "gc", "--yes", "--root", "R"]).overrides == (("yes", "true"),)
    assert cli._parse(["tune", "--resume", "--config", "C"]).overrides == (("resume", "true"),)


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_loads_and_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*verb.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    fields = [line for line in lines if line.lstrip(" *").startswith("--")]
    assert len(fields) >= 2


def test_help_answers_in_under_a_second_and_imports_nothing_heavy() -> None:
    best = float("inf")
    for _ in range(3):  # the best of three, so that a busy machine does not decide
        began = time.perf_counter()
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from infra.cli import main; main(['--help']); print(sorted(sys.modules))",
            ],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        best = min(best, time.perf_counter() - began)
    for heavy in ("'torch'", "'ray'", "'transformers'", "'pyarrow'", "'pydantic'"):
        assert heavy not in done.stdout
    assert best < 1.0


@pytest.mark.parametrize("verb", ["embed", "train"])
def test_what_needs_a_recipe_says_so_and_names_the_shipped_ones(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([verb, "--dataset", "nowhere"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{verb} needs a recipe; name one with --config:" in line
    assert "tiny.yaml" in line
    assert "paper.yaml" in line


@pytest.mark.usefixtures("toy")
def test_a_refused_result_is_shown_all_the_same_and_exits_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "--fail", "gate", "--json"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out)["count"] == 0
    assert said.err == "oacir: error: it holds nothing; feed it\n"


@pytest.mark.parametrize(
    "verb", ["build", "embed", "train", "tune", "evaluate", "report", "diagnose", "crossvalidate"]
)
def test_no_name_leads_out_of_the_root(verb: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(cli.VERBS[verb].load()[0], None, [("name", "../../evil")])
    assert any(line.startswith("name = '../../evil'") for line in caught.value.problems)
