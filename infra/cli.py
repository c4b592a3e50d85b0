"""The `oacir` command: one verb a stage, recipes judged as a whole, one line at the end, errors in one line."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from infra.base import logs
from infra.base.errors import OacirError, RecipeError, RefusedError

if TYPE_CHECKING:
    from infra.base.command import Command, Outcome
    from infra.base.config import Config

log = logging.getLogger("infra.cli")  # __name__ is another where this file is run
DEFAULT_ROOT = "oacir-data"
PROGRAM = "oacir"


@dataclass(frozen=True)
class Verb:
    """A command: its one-line help, its recipe class and the function that does it (both imported only when used)."""

    summary: str
    recipe: str
    function: str
    no_out: str = ""
    """Why --out has no meaning here and what to give instead; empty where it has one."""
    needs_config: bool = False
    """Whether a recipe has to be named: the defaults of its fields, taken together, suit nobody."""
    sends: bool = False
    """Whether another command follows its options, which it gets understood and not run."""
    here_alone: str = ""
    """Why no cluster can be sent it; empty where one can."""

    def load(self) -> tuple[type[Config], Any]:
        """The recipe class and the function."""
        found = []
        for place in (self.recipe, self.function):
            module, _, name = place.partition(":")
            found.append(getattr(import_module(module), name))
        return found[0], found[1]


MAKES_NOTHING = "it makes no version"
IN_MLFLOW = "what it makes lies in MLflow; --mlflow_uri names the server"
OF_COMMAND = "it is an option of the command that is sent; put it behind that"
A_SERVER = "a server lives longer than a job; start it on a machine of its own"
ABOUT_JOBS = "it speaks with the cluster from outside"

VERBS: dict[str, Verb] = {
    "demo": Verb(
        "the whole way on a procedural world, with a report",
        "infra.ops.demo:DemoRecipe",
        "infra.ops.demo:demo",
        no_out="the demo makes many versions; --root is the place of them all",
    ),
    "build": Verb("photos → benchmark (Ray Data)", "pipelines.config:BuildRecipe", "pipelines.build:build"),
    "import": Verb(
        "a released benchmark → a dataset version (Ray Data)",
        "pipelines.importing:ImportRecipe",
        "pipelines.importing:import_release",
    ),
    "export": Verb(
        "a dataset version → the OACIRR release's files, or parquet for the Hugging Face Hub",
        "pipelines.exporting:ExportRecipe",
        "pipelines.exporting:export",
    ),
    "review export": Verb(
        "quadruples of a build → tasks for people in Label Studio",
        "pipelines.annotators.people.exporting:ReviewExportRecipe",
        "pipelines.annotators.people.exporting:export",
    ),
    "review import": Verb(
        "what people said in Label Studio → decisions that the next build applies",
        "pipelines.annotators.people.importing:ReviewImportRecipe",
        "pipelines.annotators.people.importing:import_",
        no_out="--reviews is where decisions are kept",
    ),
    "review status": Verb(
        "how far people are, and how far they agree",
        "pipelines.annotators.people.importing:ReviewStatusRecipe",
        "pipelines.annotators.people.importing:status",
        no_out=MAKES_NOTHING,
    ),
    "data list": Verb(
        "every version under the root",
        "pipelines.data:ListRecipe",
        "pipelines.data:list_all",
        no_out=MAKES_NOTHING,
    ),
    "data show": Verb(
        "one version in full", "pipelines.data:ShowRecipe", "pipelines.data:show", no_out=MAKES_NOTHING
    ),
    "data verify": Verb(
        "every byte, account, hash and gallery of a version",
        "pipelines.verify:VerifyRecipe",
        "pipelines.verify:verify",
        no_out=MAKES_NOTHING,
    ),
    "data diff": Verb(
        "from one dataset to another",
        "pipelines.diff:DiffRecipe",
        "pipelines.diff:diff",
        no_out=MAKES_NOTHING,
    ),
    "data stats": Verb(
        "what a benchmark holds, beside the published one: an HTML page",
        "pipelines.statistics_page:StatsRecipe",
        "pipelines.statistics_page:stats",
    ),
    "data gc": Verb(
        "delete what nothing needs, with --yes",
        "pipelines.data:GcRecipe",
        "pipelines.data:gc",
        no_out=MAKES_NOTHING,
    ),
    "embed": Verb(
        "images → frozen features (Ray Data)",
        "training.config:TrainRecipe",
        "pipelines.embed:embed",
        needs_config=True,
    ),
    "train": Verb(
        "benchmark + features → model (Ray Train)",
        "training.config:TrainRecipe",
        "training.trainer:train",
        needs_config=True,
    ),
    "tune": Verb(
        "many trainings that differ in some fields: search, page, Pareto front (Ray Tune)",
        "tuning.config:SweepRecipe",
        "tuning.sweep:tune",
        needs_config=True,
    ),
    "reproduce": Verb(
        "the paper's ablation matrix on a procedural world, and which of its orderings show (Ray Tune)",
        "tuning.reproduce.config:ReproduceRecipe",
        "tuning.reproduce.reproduce:reproduce",
        needs_config=True,
    ),
    "convert": Verb(
        "checkpoints of the authors, LAVIS or Hugging Face → model, and back",
        "training.conversion:ConvertRecipe",
        "training.conversion:convert",
    ),
    "evaluate": Verb(
        "model + benchmark → rankings and metrics",
        "pipelines.retrieval.config:EvaluateRecipe",
        "pipelines.retrieval.evaluate:evaluate",
    ),
    "answer": Verb(
        "model + hidden split → the files that a benchmark's server takes",
        "pipelines.retrieval.config:AnswerRecipe",
        "pipelines.retrieval.answer:answer",
    ),
    "query": Verb(
        "one image, one box, one sentence → ranked images",
        "pipelines.retrieval.config:QueryRecipe",
        "pipelines.retrieval.query:query",
        no_out="a query makes no version; --picture FILE.png is where its picture goes",
    ),
    "crossvalidate": Verb(
        "a small benchmark → folds over instances, a model for each, figures over all queries",
        "pipelines.retrieval.folds.config:CrossvalidateRecipe",
        "infra.ops.crossvalidate:crossvalidate",
    ),
    "diagnose": Verb(
        "one or two evaluations → kinds of mistakes, and the two side by side: an HTML page",
        "pipelines.retrieval.diagnosis.config:DiagnoseRecipe",
        "pipelines.retrieval.diagnosis.diagnose:diagnose",
    ),
    "report": Verb(
        "evaluations → one HTML page, or a leaderboard of any number of them",
        "pipelines.retrieval.config:ReportRecipe",
        "pipelines.retrieval.report:report",
    ),
    "register": Verb(
        "model → a version in MLflow's registry that others load with MLflow and this package",
        "infra.ops.registry.register:RegisterRecipe",
        "infra.ops.registry.register:register",
        no_out=IN_MLFLOW,
    ),
    "promote": Verb(
        "a registered version → champion, if it passes the gates",
        "infra.ops.registry.promote:PromoteRecipe",
        "infra.ops.registry.promote:promote",
        no_out=IN_MLFLOW,
    ),
    "registry show": Verb(
        "versions of a registered model, its aliases, and who was champion when and why",
        "infra.ops.registry.verbs:HistoryRecipe",
        "infra.ops.registry.verbs:show",
        no_out=IN_MLFLOW,
    ),
    "registry rollback": Verb(
        "the champion before the present one is champion again",
        "infra.ops.registry.verbs:RollbackRecipe",
        "infra.ops.registry.verbs:rollback",
        no_out=IN_MLFLOW,
    ),
    "registry copy": Verb(
        "a version to another registered model or server (staging → production), as challenger there",
        "infra.ops.registry.verbs:CopyRecipe",
        "infra.ops.registry.verbs:copy",
        no_out=IN_MLFLOW,
    ),
    "mlflow start": Verb(
        "a tracking server and registry of this machine, until Ctrl-C",
        "infra.ops.mlflow_server:StartRecipe",
        "infra.ops.mlflow_server:start",
        no_out="--folder is where its database lies, --artifacts where files go",
        here_alone=A_SERVER,
    ),
    "mlflow sync": Verb(
        "send what runs tracked and a server does not have yet",
        "infra.ops.mlflow_sync:SyncRecipe",
        "infra.ops.mlflow_sync:sync",
        no_out=MAKES_NOTHING,
    ),
    "site start": Verb(
        "S3, MLflow and a Ray cluster of this machine as plain processes, until Ctrl-C",
        "infra.ops.site.site:StartRecipe",
        "infra.ops.site.site:start",
        no_out=MAKES_NOTHING,
        here_alone=A_SERVER,
    ),
    "site stop": Verb(
        "end them, also where the start was killed",
        "infra.ops.site.site:StopRecipe",
        "infra.ops.site.site:stop",
        no_out=MAKES_NOTHING,
        here_alone=A_SERVER,
    ),
    "runs list": Verb(
        "trainings: finished or how far, and what they reached on dev",
        "infra.ops.runs:ListRecipe",
        "infra.ops.runs:list_runs",
        no_out=MAKES_NOTHING,
    ),
    "runs show": Verb(
        "one training, what it was made from and what was made of it",
        "infra.ops.runs:ShowRecipe",
        "infra.ops.runs:show",
        no_out=MAKES_NOTHING,
    ),
    "runs gc": Verb(
        "delete trainings that nothing needs, with --yes",
        "infra.ops.runs:GcRecipe",
        "infra.ops.runs:gc",
        no_out=MAKES_NOTHING,
    ),
    "doctor": Verb(
        "whether this machine and what it reaches can do what commands ask; one line each with the fix",
        "infra.ops.doctor.doctor:DoctorRecipe",
        "infra.ops.doctor.doctor:doctor",
        no_out=MAKES_NOTHING,
    ),
    "submit": Verb(
        "any command as a job of a Ray cluster: submit [its options] COMMAND [the command's]",
        "infra.ops.jobs.config:SubmitRecipe",
        "infra.ops.jobs.submit:submit",
        no_out=OF_COMMAND,
        sends=True,
        here_alone=ABOUT_JOBS,
    ),
    "jobs list": Verb(
        "what was submitted, newest first",
        "infra.ops.jobs.config:ListRecipe",
        "infra.ops.jobs.verbs:list_jobs",
        no_out=MAKES_NOTHING,
        here_alone=ABOUT_JOBS,
    ),
    "jobs status": Verb(
        "how a job is",
        "infra.ops.jobs.config:JobRecipe",
        "infra.ops.jobs.verbs:status",
        no_out=MAKES_NOTHING,
        here_alone=ABOUT_JOBS,
    ),
    "jobs logs": Verb(
        "a job's log, as far as it is or to its end",
        "infra.ops.jobs.config:LogsRecipe",
        "infra.ops.jobs.verbs:logs",
        no_out=MAKES_NOTHING,
        here_alone=ABOUT_JOBS,
    ),
    "jobs stop": Verb(
        "end a job in order",
        "infra.ops.jobs.config:StopRecipe",
        "infra.ops.jobs.verbs:stop",
        no_out=MAKES_NOTHING,
        here_alone=ABOUT_JOBS,
    ),
}

FAMILIES: dict[str, str] = {
    "data": "what lies under the root",
    "jobs": "commands that were submitted to a Ray cluster",
    "mlflow": "tracking server and what it lacks",
    "registry": "registered models and their champions",
    "review": "quadruples that people look at",
    "runs": "trainings under the root",
    "site": "a small production set-up of this machine",
}
"""First words of the verbs of two words, with their one-line help."""
SWITCHES = ("json", "dry-run", "debug")
"""Options of every command without a value."""
BY_NAME = ("yes", "resume")
"""Fields of recipes that are set by their name alone."""


@dataclass(frozen=True)
class Call:
    """A parsed command line."""

    verb: str
    config: str | None
    root: str
    out: str | None
    as_json: bool
    dry_run: bool
    debug: bool
    overrides: tuple[tuple[str, str], ...]
    sent: Call | None = None
    """The command that a verb which sends one is given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 done, 1 failed, 2 wrong usage or recipe, 3 refused, 130
    interrupted, 143 ended by SIGTERM."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            _say(_overview())
            return 0 if words else 2
        if words[0] in ("-V", "--version"):
            _say(f"{PROGRAM} {version('oacir')}")
            return 0
        if {"-h", "--help"} & set(words[1:]):
            name, _ = _split_verb([w for w in words if w not in ("-h", "--help")], "help")
            _say(_verb_help(name) if name in VERBS else _family_help(name))
            return 0
        return _run(_parse(words))
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on from what is finished")
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        return _fail(error, debug)


def _run(call: Call) -> int:
    from infra.base.command import Context
    from infra.base.ray_session import quiet

    if not call.debug:
        quiet()
    recipe, function = _understood(call)
    sent = () if call.sent is None else (_command(call.sent),)
    logs.start(call.debug)
    # standard output is the outcome's alone; libraries log to it while they load
    with contextlib.redirect_stdout(sys.stderr), logs.about(command=call.verb):
        log.info("begins")
        outcome = function(recipe, Context(root=call.root, out=call.out, dry_run=call.dry_run), *sent)
        log.info("ends: %s", outcome.message, extra={"location": outcome.location})
    _say_outcome(outcome, call.as_json)
    if outcome.refused:
        _complain(outcome.refused)
        return RefusedError.exit_code
    return 0


def _understood(call: Call) -> tuple[Config, Any]:
    """A command's recipe, and the function that does it."""
    from infra.base.config import load_recipe

    recipe_class, function = _verb(call.verb).load()
    if _verb(call.verb).needs_config and call.config is None:
        from infra.base.recipe_files import shipped_for

        shipped = ", ".join(shipped_for(recipe_class))
        _usage(f"{call.verb} needs a recipe; name one with --config: {shipped} (shipped), or a file of yours")
    return load_recipe(recipe_class, call.config, call.overrides), function


def _command(call: Call) -> Command:
    """A command for one that sends it."""
    from infra.base.command import Command

    recipe, _ = _understood(call)
    options = [f"--{key}" if key in BY_NAME else f"--{key}={value}" for key, value in call.overrides]
    flags = (call.as_json, call.dry_run, call.debug)
    options += [f"--{name}" for name, given in zip(SWITCHES, flags, strict=True) if given]
    return Command(call.verb, recipe, call.config, call.root, call.out, tuple(options))


def _say_outcome(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        data = {"message": outcome.message, "location": outcome.location, **outcome.figures}
        _say(json.dumps(data, ensure_ascii=False, indent=1, default=str))
        return
    for line in outcome.details:
        _say(line)
    _say(outcome.message)


def _parse(words: Sequence[str]) -> Call:
    verb, rest = _split_verb(words)
    values: dict[str, str] = {}
    flags: set[str] = set()
    overrides: list[tuple[str, str]] = []
    sent: Call | None = None
    while rest:
        word = rest.pop(0)
        if VERBS[verb].sends and not word.startswith("-"):
            sent = _sendable(_parse([word, *rest]))
            break
        if not word.startswith("--") or len(word) < 3:
            _usage(
                f"unexpected word '{word}'; options have the form --key value (see {PROGRAM} {verb} --help)"
            )
        key, equals, value = word[2:].partition("=")
        if key in (*SWITCHES, *BY_NAME):
            if equals:
                _usage(f"--{key} takes no value")
            flags.add(key)
            continue
        if not equals:
            if not rest:
                _usage(f"--{key} needs a value (see {PROGRAM} {verb} --help)")
            value = rest.pop(0)
            if value.startswith("--"):
                _usage(
                    f"--{key} needs a value, and '{value}' looks like an option; if it is meant: --{key}={value}"
                )
        if key in ("config", "root", "out"):
            values[key] = value
        else:
            overrides.append((key, value))
    if "out" in values and (reason := VERBS[verb].no_out):
        _usage(f"--out {values['out']} has no meaning for {PROGRAM} {verb}: {reason}")
    if VERBS[verb].sends and "root" in values:
        _usage(f"--root {values['root']} has no meaning for {PROGRAM} {verb}: {OF_COMMAND}")
    if VERBS[verb].sends and sent is None:
        _usage(
            f"{verb} needs a command: {PROGRAM} {verb} train --config paper.yaml --root s3://bucket/prefix"
        )
    overrides += [(key, "true") for key in BY_NAME if key in flags]
    return Call(
        verb=verb,
        config=values.get("config"),
        root=values.get("root", DEFAULT_ROOT),
        out=values.get("out"),
        as_json="json" in flags,
        dry_run="dry-run" in flags,
        debug="debug" in flags,
        overrides=tuple(overrides),
        sent=sent,
    )


def _sendable(call: Call) -> Call:
    if reason := VERBS[call.verb].here_alone:
        _usage(f"{call.verb} cannot be sent to a cluster: {reason}")
    return call


def _split_verb(words: Sequence[str], purpose: Literal["run", "help"] = "run") -> tuple[str, list[str]]:
    """The verb, of one word or two, and the words after it; for help the first word of a family is enough."""
    first, rest = words[0], list(words[1:])
    if first not in FAMILIES:
        _verb(first)
        return first, rest
    if purpose == "help" and not rest:
        return first, rest
    second = rest.pop(0) if rest and not rest[0].startswith("-") else ""
    if not second:
        _usage(f"'{first}' needs a second word: {', '.join(_members(first))} (see {PROGRAM} {first} --help)")
    if second not in _members(first):
        _unknown(second, _members(first), f"{first} ")
    return f"{first} {second}", rest


def _members(family: str) -> list[str]:
    """The second words of a family."""
    return [name.split()[1] for name in VERBS if name.startswith(f"{family} ")]


def _verb(name: str) -> Verb:
    if name not in VERBS:
        _unknown(name, [*(n for n in VERBS if " " not in n), *FAMILIES])
    return VERBS[name]


def _unknown(name: str, known: Sequence[str], before: str = "") -> NoReturn:
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{before}{near[0]}'?" if near else f"there are: {', '.join(known)}"
    _usage(f"unknown command '{before}{name}'; {hint}")


def _usage(problem: str) -> NoReturn:
    raise RecipeError([problem])


def _overview() -> str:
    rows = {name.split()[0]: verb.summary for name, verb in VERBS.items()}
    rows |= {name: f"{text}: {' · '.join(_members(name))}" for name, text in FAMILIES.items()}
    width = max(map(len, rows))
    verbs = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in rows.items())
    return f"""{PROGRAM} {version("oacir")}: object-anchored composed image retrieval on Ray

usage: {PROGRAM} COMMAND [--config RECIPE.yaml] [--root URL] [--out URL] [--section.field VALUE …]
                [--json] [--dry-run] [--debug]

commands
{verbs}

options of every command
  --config FILE    recipe: a YAML file, or the name of a shipped one
  --root URL       where everything is kept: a folder or s3://bucket/prefix (default ./{DEFAULT_ROOT})
  --out URL        the one place for what this command makes, instead of a place under the root (where it makes one)
  --dry-run        state the plan and what it costs, then stop
  --json           print the result as JSON
  --debug          show the trace of an error and the log

{PROGRAM} COMMAND --help lists the recipe's fields. Set RAY_ADDRESS to use a running Ray cluster.
exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 3 a check refused the result, 130 interrupted and 143 ended by
SIGTERM (both resumable)"""


def _family_help(name: str) -> str:
    width = max(map(len, _members(name)))
    rows = [f"  {word:<{width}}  {VERBS[f'{name} {word}'].summary}" for word in _members(name)]
    lines = [f"{PROGRAM} {name}: {FAMILIES[name]}", "", *rows, ""]
    return "\n".join([*lines, f"{PROGRAM} {name} COMMAND --help lists the fields of each"])


def _verb_help(name: str) -> str:
    from infra.base.fields import field_rows

    verb = _verb(name)
    recipe_class, _ = verb.load()
    lines = [f"{PROGRAM} {name}: {verb.summary}", "", "fields of its recipe (--key value; * is required)"]
    under: tuple[tuple[str, str], ...] = ()
    for row in field_rows(recipe_class):
        if row.only != under:
            under = row.only
            lines += [f"{'  ' * len(under)}with --{key} {kind}:" for key, kind in under[-1:]]
        required = row.default == "required"
        value = "" if required else f", default {row.default}"
        lines.append(f"{'  ' * len(under)} {'*' if required else ' '}--{row.key}  ({row.type}{value})")
        if row.help:
            lines.append(f"{'  ' * len(under)}      {row.help}")
    return "\n".join([*lines, "", f"and the options of every command, see {PROGRAM} --help"])


def _fail(error: BaseException, debug: bool) -> int:
    if debug:
        import traceback

        sys.stderr.write(logs.redacted("".join(traceback.format_exception(error))))
    known = _known_cause(error)
    if isinstance(known, RecipeError) and len(known.problems) > 1:
        _complain(f"{len(known.problems)} problems:\n" + "\n".join(f"  - {p}" for p in known.problems))
        return known.exit_code
    if known is not None:
        _complain(str(known))
        return known.exit_code
    if isinstance(error, OSError):
        _complain(f"{error.filename or 'input/output'}: {error.strerror or error}")
        return 1
    text = " ".join(str(error).split())[:300]
    _complain(
        f"unexpected {type(error).__name__}: {text} (a defect: please report it; --debug shows the trace)"
    )
    return 1


def _known_cause(error: BaseException | None) -> OacirError | None:
    """The user-facing error inside what Ray and others wrap around it."""
    seen: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        item = waiting.pop(0)
        if not isinstance(item, BaseException) or any(item is s for s in seen):
            continue
        seen.append(item)
        inner = [getattr(item, "cause", None), item.__cause__, item.__context__]
        inner += list((getattr(item, "worker_failures", None) or {}).values())
        # Ray's RayTaskError also is an instance of its cause's class, with a trace for a message: look inside first.
        if isinstance(item, OacirError) and not isinstance(inner[0], BaseException):
            return item
        waiting += inner
    return None


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    if not logs.said(logging.ERROR, text):
        sys.stderr.write(logs.redacted(f"{PROGRAM}: error: {text}\n"))


if __name__ == "__main__":
    sys.exit(main())
