"""What is asked of a cluster, and which commands are the same."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from infra import cli
from infra.base.command import Command
from infra.base.config import load_recipe
from infra.base.errors import OacirError, RecipeError
from infra.ops.jobs.config import SubmitRecipe
from infra.ops.jobs.request import Request, attempt_id, attempt_of, make_request
from pipelines.config import BuildRecipe

ROOT = "s3://bucket/prefix"
Ask = Callable[..., Request]


def command(*words: str, root: str | None = ROOT) -> Command:
    place = ["--root", root] if root else []
    return cli._command(cli._parse([*words, *place]))


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """A request, made in a working directory of its own."""

    def make(
        *words: str, root: str | None = ROOT, variables: dict[str, str] | None = None, **fields: object
    ) -> Request:
        recipe = SubmitRecipe.model_validate(fields)
        return make_request(recipe, command(*words, root=root), variables or {}, tmp_path)

    return make


def test_a_recipe_of_the_user_travels_with_what_it_extends(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: world.yaml\nname: based\nseed: 3\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nseed: 4\n")
    request = ask("build", "--config", str(tmp_path / "mine.yaml"), "--max_pairs_per_instance=7")
    words = shlex.split(request.entrypoint)
    assert words[:5] == ["exec", "python", "-m", "infra.cli", "build"]
    assert words[5:] == ["--config=recipes/mine.yaml", f"--root={ROOT}", "--max_pairs_per_instance=7"]
    there = tmp_path / "there.yaml"
    there.write_bytes(request.package.made["recipes/mine.yaml"])
    assert "extends" not in yaml.safe_load(there.read_text())
    here = load_recipe(BuildRecipe, str(tmp_path / "mine.yaml"))
    assert load_recipe(BuildRecipe, str(there)) == here
    assert here.seed == 4
    assert here.name == "based"


def test_a_shipped_recipe_is_named_and_the_version_goes_along(ask: Ask) -> None:
    request = ask("train", "--config", "tiny")
    assert "--config=tiny.yaml" in shlex.split(request.entrypoint)
    (name,) = request.package.made
    assert name.startswith("oacir-")
    assert name.endswith(".dist-info/METADATA")
    assert b"Name: oacir" in request.package.made[name]


def test_words_survive_the_shell_and_switches_go_along(ask: Ask) -> None:
    request = ask(
        "query", "--text", 'it\'s a $(rm) `day`; "new"', "--json", "--model", "m", "--image", "i.jpg"
    )
    words = shlex.split(request.entrypoint)
    assert '--text=it\'s a $(rm) `day`; "new"' in words
    assert words[-1] == "--json"
    assert ask("data", "gc", "--yes").entrypoint.endswith(f"data gc --root={ROOT} --yes")


def test_the_id_is_of_recipe_place_and_code(ask: Ask, tmp_path: Path) -> None:
    one = ask("train", "--config", "tiny", "--training.steps=5")
    assert one.id == ask("train", "--config", "tiny.yaml", "--training.steps", "5", python="python").id
    assert one.id.startswith(f"{one.stem}-")
    assert one.stem.startswith("oacir-train-")
    for other in (
        ask("train", "--config", "tiny", "--training.steps=6"),
        ask("train", "--config", "tiny", "--training.steps=5", root="s3://bucket/other"),
        ask("train", "--config", "tiny", "--training.steps=5", "--dry-run"),
        ask("embed", "--config", "tiny", "--training.steps=5"),
    ):
        assert other.stem != one.stem
    (tmp_path / "boxes.csv").write_text("a")
    for other in (
        ask("train", "--config", "tiny", "--training.steps=5", include=["boxes.csv"]),
        ask("train", "--config", "tiny", "--training.steps=5", variables={"AWS_REGION": "eu-west-1"}),
    ):
        assert other.stem == one.stem
        assert other.id != one.id


def test_attempts_are_counted() -> None:
    assert [attempt_id("a-1", n) for n in (1, 2, 12)] == ["a-1", "a-1-2", "a-1-12"]
    assert [attempt_of(j, "a-1") for j in ("a-1", "a-1-2", "a-1-12", "a-12", "a", "a-1-x")] == [
        1, 2, 12, None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "root"),
    [(("demo",), None), (("demo",), "here"), (("report", "--evaluations", "x", "--out", "b"), ROOT)],
)
def test_a_place_that_goes_with_the_job_is_refused(
    ask: Ask, words: tuple[str, ...], root: str | None
) -> None:
    with pytest.raises(RecipeError, match=r"is relative, and a job's working directory goes"):
        ask(*words, root=root)
    assert ask("demo", root="/shared/root")


def test_no_secret_goes_along(ask: Ask) -> None:
    keys = {"AWS_SECRET_ACCESS_KEY": "k", "AWS_ACCESS_KEY_ID": "i", "RAY_AUTH_TOKEN": "t"}
    request = ask("demo", variables=keys | {"AWS_ENDPOINT_URL": "http://s3:9000", "EXTRA": "1"})
    handed = request.environment["env_vars"]
    assert handed["AWS_ENDPOINT_URL"] == "http://s3:9000"
    assert not set(handed) & {*keys, "EXTRA"}


def test_what_is_named_of_the_environment(ask: Ask, tmp_path: Path) -> None:
    recipe = SubmitRecipe(variables=("EXTRA",))
    request = make_request(recipe, command("demo"), {"EXTRA": "1"}, tmp_path)
    assert request.environment["env_vars"]["EXTRA"] == "1"
    with pytest.raises(RecipeError, match="variables: EXTRA: not set"):
        make_request(recipe, command("demo"), {}, tmp_path)
    with pytest.raises(ValueError, match="MY_API_KEY: by its name a secret"):
        SubmitRecipe(variables=("MY_API_KEY",))


def test_a_password_in_a_recipe_or_variable_is_refused(ask: Ask) -> None:
    with pytest.raises(OacirError, match="mlflow_uri: holds a password") as caught:
        ask("promote", "--mlflow_uri", "http://me:s3cret@server:5000")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(OacirError, match="MLFLOW_TRACKING_URI: holds a password"):
        ask("demo", variables={"MLFLOW_TRACKING_URI": "http://me:s3cret@server"})


def test_packages_are_this_packages_own_with_their_pins(ask: Ask, tmp_path: Path) -> None:
    from ray.runtime_env import RuntimeEnv

    request = ask("demo", environment={"kind": "pip", "packages": ["open-clip-torch==2.32.0"]})
    pins, *lines = request.environment["pip"]["packages"]
    name = pins.rpartition("/")[2]
    assert pins == f"-c ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{name}"
    assert b"torch==" in request.package.made[name]
    assert lines[-1] == "open-clip-torch==2.32.0"
    assert any(line.startswith("deepspeed") for line in lines)
    assert not any(line.startswith("ray") or "extra" in line for line in lines)
    assert RuntimeEnv(**request.environment)["pip"]["packages"]

    (tmp_path / "pins.txt").write_text("torch==2.6.0\n")
    other = ask("demo", environment={"kind": "uv", "constraints": str(tmp_path / "pins.txt")})
    assert other.environment["uv"]["packages"][0] != pins  # other pins are another environment of Ray's
    assert RuntimeEnv(**other.environment)["uv"]
    with pytest.raises(RecipeError, match="no such file"):
        ask("demo", environment={"kind": "uv", "constraints": "absent.txt"})


def test_a_path_of_this_machine_is_warned_of_unless_it_goes_along(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "a.csv").write_text("1")
    words = ("report", "--evaluations", "scores")
    (warning,) = ask(*words).warnings
    assert warning.startswith("--evaluations=scores: lies on this machine")
    assert ask(*words, include=["scores"]).warnings == ()
    assert ask("report", "--evaluations", "other").warnings == ()
