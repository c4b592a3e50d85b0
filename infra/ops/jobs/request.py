"""What is asked of the cluster: the command line there, its environment, and an id that says when two are the same."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from infra.base.command import Command
from infra.base.config import recipe_hash
from infra.base.errors import OacirError, RecipeError
from infra.base.ray_session import QUIET, TUNE
from infra.base.recipe_files import find_recipe, read_tree
from infra.base.secrets import texts_of
from infra.base.storage import is_s3
from infra.ops.jobs.config import EnvironmentSection, SubmitRecipe
from infra.ops.jobs.package import CODE, Package, collect, require_limit

PREFIX = "oacir"
HANDED_ON = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI",
)  # fmt: skip
"""Variables that a job gets where they are set here: where to look, never with which key."""
SETUP_S = 3600
"""Ray gives up on an environment after 10 minutes; a CUDA build of torch takes longer over a slow line."""
CODE_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Request:
    """A job that is ready to be submitted, but for its attempt's number."""

    stem: str
    """Of the id: command and recipe, whatever the code."""
    id: str
    """Of the first attempt: with the code's hash."""
    line: str
    """The command, as people type it."""
    entrypoint: str
    environment: Mapping[str, Any]
    """Ray's runtime environment, without the working directory."""
    handed_on: tuple[str, ...]
    """Variables of this process that the job gets."""
    package: Package
    warnings: tuple[str, ...]

    @property
    def metadata(self) -> dict[str, str]:
        """What is kept with the job."""
        return {"oacir_command": self.line, "oacir_code": self.package.content_hash()}


def make_request(
    recipe: SubmitRecipe, command: Command, variables: Mapping[str, str], folder: Path, code: Path = CODE_ROOT
) -> Request:
    """Put together what a command needs elsewhere.

    Args:
        recipe: how it is sent.
        command: what is sent.
        variables: this process's environment.
        folder: the working directory, below which files are included.
        code: where this package's folders lie.

    Raises:
        RecipeError: a place that no other machine sees, a variable that is not set, or a path that is not there.
        OacirError: a password in the recipe, a secret among the files, or more than the limit.
    """
    _require_places(command)
    _require_no_password(command)
    package = collect(code, recipe.include, folder)
    config, made = _recipe_file(command.config, code)
    made |= _distribution()
    requirements, pins = _requirements(recipe.environment, code)
    made |= pins
    package = replace(package, made=made)
    require_limit(package, recipe.limit_mib)
    handed = _handed_on(recipe, variables)
    environment: dict[str, Any] = {
        "env_vars": QUIET | TUNE | {"RAY_JOB_STOP_WAIT_TIME_S": str(recipe.stop_s)} | handed,
    }
    if recipe.environment.kind != "none":
        environment[recipe.environment.kind] = {"packages": requirements}
        environment["config"] = {"setup_timeout_seconds": SETUP_S}
    words = _words(command, command.config)
    meant = {
        "verb": command.verb,
        "recipe": command.recipe.model_dump(mode="json"),
        "place": [command.root, command.out],
        "switches": [word for word in command.options if "=" not in word],
    }
    stem = f"{PREFIX}-{command.verb.replace(' ', '-')}-{recipe_hash(meant)[:10]}"
    shipped = recipe_hash({"environment": environment, "python": recipe.python}, package.content_hash())
    return Request(
        stem=stem,
        id=f"{stem}-{shipped[:6]}",
        line=shlex.join(["oacir", *words]),
        # exec: the shell passes signals and the exit code on
        entrypoint=f"exec {shlex.join([recipe.python, '-m', 'infra.cli', *_words(command, config)])}",
        environment=environment,
        handed_on=tuple(handed),
        package=package,
        warnings=tuple(_only_here(command, package, folder)),
    )


def attempt_id(base: str, attempt: int) -> str:
    """The id of an attempt, counted from 1."""
    return base if attempt == 1 else f"{base}-{attempt}"


def attempt_of(job: str, base: str) -> int | None:
    """Which attempt of `base` a job is; None where it is none."""
    found = re.fullmatch(re.escape(base) + r"(?:-(\d+))?", job)
    return int(found[1] or 1) if found else None


def _words(command: Command, config: str | None) -> list[str]:
    place = [f"--root={command.root}"] + ([f"--out={command.out}"] if command.out else [])
    return [*command.verb.split(), *([f"--config={config}"] if config else []), *place, *command.options]


def _require_places(command: Command) -> None:
    for option, place in (("--root", command.root), ("--out", command.out)):
        if place is not None and not is_s3(place) and not Path(place).is_absolute():
            raise RecipeError(
                [
                    f"{option} {place}: is relative, and a job's working directory goes when the job ends; give"
                    f" {option} s3://bucket/prefix, or the absolute path of a folder that all machines of the"
                    " cluster share"
                ]
            )


def _require_no_password(command: Command) -> None:
    for key, text in texts_of(command.recipe.model_dump(mode="json")):
        if "://" in text and urlsplit(text).password:
            raise OacirError(
                f"{key}: holds a password, and whoever sees the dashboard sees a job's command; take it out, and"
                " give it to the cluster's machines as a variable (MLFLOW_TRACKING_URI)"
            )


def _recipe_file(config: str | None, code: Path) -> tuple[str | None, dict[str, bytes]]:
    """The recipe's name in the job; a file of the user goes along as one tree, with what it extends."""
    if config is None:
        return None, {}
    path = find_recipe(config).resolve()
    if any(path.is_relative_to((code / part).resolve()) for part in CODE):
        return path.name, {}
    name = f"recipes/{path.name}"
    return name, {name: yaml.safe_dump(read_tree(path), sort_keys=False, allow_unicode=True).encode()}


def _distribution() -> dict[str, bytes]:
    """What says which version of this package the code is; manifests and model cards ask for it."""
    found = metadata.distribution("oacir")
    text = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
    return {f"oacir-{found.version}.dist-info/METADATA": text.encode()}


def _requirements(section: EnvironmentSection, code: Path) -> tuple[list[str], dict[str, bytes]]:
    """What Ray installs, without Ray; and the pins, in a file named by its content so that other pins are another
    environment.

    Raises:
        RecipeError: no such constraints file.
    """
    if section.kind == "none":
        return [], {}
    own = metadata.requires("oacir") or []
    lines = [line for line in own if "extra ==" not in line and not re.match(r"ray\b", line)]
    lines += section.packages
    file = Path(section.constraints) if section.constraints else code / "constraints.txt"
    if not file.is_file():
        if section.constraints:
            raise RecipeError([f"environment.constraints {section.constraints}: no such file"])
        return lines, {}
    data = file.read_bytes()
    name = f"constraints-{hashlib.sha256(data).hexdigest()[:12]}.txt"
    return [f"-c ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{name}", *lines], {name: data}


def _handed_on(recipe: SubmitRecipe, variables: Mapping[str, str]) -> dict[str, str]:
    absent = [name for name in recipe.variables if name not in variables]
    if absent:
        raise RecipeError([f"variables: {', '.join(absent)}: not set in this environment"])
    names = [*(name for name in HANDED_ON if variables.get(name)), *recipe.variables]
    found = {name: variables[name] for name in names}
    for name, value in found.items():
        if "://" in value and urlsplit(value).password:
            raise OacirError(
                f"variable {name}: holds a password, and whoever sees the dashboard sees a job's variables; unset it"
                " here, and give it to the cluster's machines"
            )
    return found


def _only_here(command: Command, package: Package, folder: Path) -> Iterator[str]:
    for option in command.options:
        _, equals, value = option.partition("=")
        if not equals or not value or is_s3(value) or not (folder / value).exists():
            continue
        inside = Path(os.path.normpath(folder / value))
        name = inside.relative_to(folder).as_posix() if inside.is_relative_to(folder) else ""
        sent = not Path(value).is_absolute() and any(
            file == name or file.startswith(f"{name}/") for file in package.files
        )
        if not sent:
            yield (
                f"{option}: lies on this machine; the job sees it only where the cluster's machines have that path"
                " (--include sends small files, S3 holds data)"
            )
