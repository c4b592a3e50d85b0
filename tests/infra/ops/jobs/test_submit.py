"""Which attempt a submission is, what a job's end means, and how the command line holds two commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra import cli
from infra.base.errors import OacirError, RecipeError, TerminatedError
from infra.ops.jobs.cluster import Cluster
from infra.ops.jobs.config import SubmitRecipe
from infra.ops.jobs.follow import JobFailedError, ended
from infra.ops.jobs.request import Request, make_request
from infra.ops.jobs.submit import _attempt, _plan
from infra.ops.jobs.verbs import find_job


@dataclass(frozen=True)
class Job:
    submission_id: str | None
    status: str
    driver_exit_code: int | None = None
    message: str = ""
    start_time: int = 1_000
    end_time: int = 61_000
    metadata: Any = None


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    call = cli._parse(["report", "--evaluations", "x", "--root", "s3://b/r"])
    return make_request(SubmitRecipe(), cli._command(call), {}, tmp_path)


def cluster(*jobs: Job, origin: str = "the default") -> Cluster:
    return Cluster("http://c:8265", origin, "2.60.0", None, SimpleNamespace(list_jobs=lambda: list(jobs)))


@pytest.mark.parametrize(
    ("states", "number", "joins"),
    [
        ([], 1, False),
        (["PENDING"], 1, True),
        (["RUNNING"], 1, True),
        (["SUCCEEDED"], 2, False),
        (["FAILED", "RUNNING"], 2, True),
        (["FAILED", "STOPPED"], 3, False),
    ],
)
def test_what_has_not_ended_is_joined_and_what_has_is_done_again(
    request_: Request, states: list[str], number: int, joins: bool
) -> None:
    jobs = [Job(request_.id if n == 0 else f"{request_.id}-{n + 1}", state) for n, state in enumerate(states)]
    strangers = [
        Job(None, "RUNNING"),
        Job("raysubmit_x", "RUNNING"),
        Job(f"{request_.stem}-0ther0", "FAILED"),
    ]
    job, joined = _attempt(request_, [*strangers, *reversed(jobs)])
    assert job == (request_.id if number == 1 else f"{request_.id}-{number}")
    assert joined == joins


def test_the_same_recipe_with_other_code_does_not_run_beside(request_: Request) -> None:
    with pytest.raises(
        OacirError, match=r"runs this very command with other code, .*jobs stop --job \S+-0ther0-2$"
    ):
        _attempt(request_, [Job(f"{request_.stem}-0ther0-2", "PENDING")])


@pytest.mark.parametrize(
    ("job", "code", "says"),
    [
        (Job("j", "FAILED", 3), 3, "job j failed after 1:00 min with exit code 3; `oacir jobs logs --job j`"),
        (Job("j", "FAILED", -9), 137, "ended by signal 9"),
        (Job("j", "FAILED", None, "no  such\nimage"), 1, "job j failed after 1:00 min: no such image"),
        (Job("j", "STOPPED"), 143, "job j was stopped after 1:00 min"),
    ],
)
def test_a_jobs_end_is_the_exit_code(job: Job, code: int, says: str) -> None:
    with pytest.raises((JobFailedError, TerminatedError), match=says) as caught:
        ended(job, cluster(), "j")
    assert caught.value.exit_code == code


def test_a_job_is_found_by_the_beginning_of_its_id() -> None:
    ours = {"oacir_command": "oacir train"}
    jobs = (
        Job("oacir-train-a", "RUNNING", start_time=1, metadata=ours),
        Job("oacir-train-b", "RUNNING", start_time=3, metadata=ours),
        Job("raysubmit_x", "RUNNING", start_time=9),
    )
    asked = cluster(*jobs)
    assert find_job(asked, None).submission_id == "oacir-train-b"
    assert find_job(asked, "ray").submission_id == "raysubmit_x"
    assert find_job(asked, "oacir-train-a").submission_id == "oacir-train-a"
    with pytest.raises(OacirError, match="means 2: oacir-train-b, oacir-train-a"):
        find_job(asked, "oacir")
    with pytest.raises(OacirError, match="did you mean oacir-train-a"):
        find_job(asked, "oacir-trian-a")
    with pytest.raises(OacirError, match="no job that `oacir submit` sent"):
        find_job(cluster(jobs[2]), None)


def test_options_before_the_command_are_submits_own() -> None:
    call = cli._parse(
        ["submit", "--address", "http://c:1", "--dry-run", "data", "gc", "--yes", "--root", "s3://b/r"]
    )
    assert (call.verb, call.dry_run, call.overrides) == ("submit", True, (("address", "http://c:1"),))
    assert call.sent is not None
    assert (call.sent.verb, call.sent.root, call.sent.dry_run) == ("data gc", "s3://b/r", False)
    assert cli._command(call.sent).options == ("--yes",)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["submit"], "submit needs a command: oacir submit train --config"),
        (
            ["submit", "--root", "s3://b/r", "report"],
            "--root s3://b/r has no meaning for oacir submit: it is an option of",
        ),
        (["submit", "trian"], "did you mean 'train'?"),
        (["submit", "submit", "train"], "submit cannot be sent to a cluster"),
        (["submit", "mlflow", "start"], "mlflow start cannot be sent to a cluster: a server lives longer"),
        (["submit", "train", "stray"], "unexpected word 'stray'"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_asked(words: list[str], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        cli._parse(words)
    assert says in str(caught.value)


def test_a_wrong_recipe_is_refused_before_anything_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "--address", "http://127.0.0.1:1", "report", "--evaluation", "x"]) == 2
    assert "evaluation" in capsys.readouterr().err
    assert cli.main(["submit", "--address", "http://127.0.0.1:1", "train", "--root", "s3://b/r"]) == 2
    assert "train needs a recipe" in capsys.readouterr().err


def test_what_is_said_before_it_is_submitted(tmp_path: Path) -> None:
    words = ["train", "--config", "tiny", "--scaling.workers", "4", "--root", "s3://b/r"]
    recipe = SubmitRecipe.model_validate(
        {"estimate": False, "expected_hours": 2.5, "prices": {"cpu_hour": 0.2}}
    )
    command = cli._command(cli._parse(words))
    request = make_request(recipe, command, {"AWS_REGION": "eu-west-1", "HOME": "/home/me"}, tmp_path)
    lines, figures = _plan(recipe, command, request, cluster(), "oacir-train-x")
    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert told["cluster"] == "http://c:8265 (Ray 2.60.0)"
    assert told["variables"] == "AWS_REGION"
    assert told["machines"] == "4 workers of 1 CPU, 4 CPU in all"
    assert (told["time"], told["money"]) == ("2.5 hours, as you expect", "2.00 USD")
    assert told["code"].split()[1:3] == ["MiB", "in"]
    assert (figures["hours"], figures["money"], figures["workers"]) == (2.5, pytest.approx(2.0), 4)
    untold, _ = _plan(SubmitRecipe(estimate=False), command, request, cluster(), "oacir-train-x")
    assert untold[-1].startswith("money      not told: it takes hours, workers and prices")
