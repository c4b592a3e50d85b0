"""`oacir promote`: the alias champion moves through gates alone, both models measured here and now."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.config import Config, Name
from infra.base.errors import OacirError, VersionError
from infra.base.tables import aligned
from infra.base.tracking import shown
from infra.ops.registry import gates as gating
from infra.ops.registry import history
from infra.ops.registry.gates import Check, GatesSection, Measured
from infra.ops.registry.packaging import Packed
from infra.ops.registry.server import CHALLENGER, CHAMPION, TRIES, Registered, server_uri

TIMED, WARM_UP = 40, 3
"""Queries that are timed, and others before them that are not."""


class PromoteRecipe(Config):
    """Which version is to become champion, measured on what, through which gates."""

    name: Name = "adafocal"
    """Name of the registered model."""
    version: str = CHALLENGER
    """The version: its number or an alias."""
    mlflow_uri: str | None = None
    """MLflow server (http://…) or database (sqlite:///…); null takes the variable MLFLOW_TRACKING_URI."""
    dataset: str = "world"
    """The benchmark that both are measured on: a path or URL of a version, name/key, or name."""
    split: Literal["dev", "test"] = "test"
    """Which of its queries and galleries."""
    features: str | None = None
    """The feature store of its images; null finds the one of each model under the root."""
    gates: GatesSection = Field(default_factory=GatesSection)
    """What the version has to pass."""


Measure = Callable[[PromoteRecipe, Context, Any, Packed], Measured]
"""Measures a downloaded version; its third argument is MLflow's entity of it."""


def promote(recipe: PromoteRecipe, context: Context) -> Outcome:
    """Measure version and champion on the same galleries, and move the alias if every gate is passed; exit 3 if not.

    Raises:
        OacirError: no such version or benchmark, features are missing, or the server does not answer.
    """
    return promoted(recipe, context, measure)


def promoted(recipe: PromoteRecipe, context: Context, measured_by: Measure) -> Outcome:
    """The same with an evaluator of the caller's.

    Two at once leave one champion: whoever finds that another decision was made meanwhile measures against the new
    champion.
    """
    uri = server_uri(recipe.mlflow_uri)
    registered = Registered(uri, recipe.name)
    lines: list[str] = []
    known: dict[str, Measured] = {}

    def find_out(version: str) -> Measured:
        if version not in known:
            found = registered.find(version)
            with tempfile.TemporaryDirectory(prefix="oacir-promote-") as folder:
                known[version] = measured_by(recipe, context, found, registered.download(found, Path(folder)))
        return known[version]

    asked = str(registered.find(recipe.version).version)  # an alias may move while this runs
    for _ in range(TRIES):
        log = registered.log()
        decided, present = history.champion(log), registered.standing(log)
        if context.dry_run:
            return Outcome(
                f"would measure version {asked} of {recipe.name} against champion {present or 'none'}"
            )
        moved = registered.settle()
        if decided != present:
            lines.append(
                f"champion {decided} was deleted on the server: {present or 'none'} stands in its place"
            )
        elif moved is not None:
            lines.append(
                f"alias {CHAMPION} pointed to {moved}, which no promotion made: set to {present or 'none'}"
            )
        if present == asked:
            _drop_challenger(registered, asked)
            message = f"nothing to do: version {asked} is champion of {recipe.name} at {shown(uri)}"
            return Outcome(message, _uri(recipe), {"version": asked, "promoted": False}, tuple(lines))
        challenger = find_out(asked)
        champion = None if present is None else find_out(present)
        checks = gating.judge(recipe.gates, challenger, champion)
        failed = [check for check in checks if not check.passed]
        figures = _figures(asked, present, checks)
        said = (*lines, *(aligned(gating.table(checks), right=(1, 2, 3)) if checks else ()))
        if failed:
            why = "; ".join(f"{c.gate}: {c.challenger}, allowed {c.allowed}" for c in failed)
            registered.note(registered.refuse(asked, why), figures)
            message = (
                f"version {asked} of {recipe.name} is not promoted, champion stays {present}: {shown(uri)}"
            )
            return Outcome(
                message, None, figures, said, f"{len(failed)} of {len(checks)} gates failed: {why}"
            )
        against = f"passed {len(checks)} gates against version {present}" if present else "the first champion"
        entry = registered.decide(log, "promote", asked, against)
        if entry is not None:
            registered.note(entry, figures | {"promoted": True})
            _drop_challenger(registered, asked)
            message = (
                f"version {asked} of {recipe.name} is champion, {against}: {_uri(recipe)} at {shown(uri)}"
            )
            return Outcome(message, _uri(recipe), figures | {"promoted": True}, said)
        lines.append(f"another decision was made meanwhile ({registered.log()[-1].action}): judged again")
    raise OacirError(f"{recipe.name}: others decide about it without a pause; try again")


def measure(recipe: PromoteRecipe, context: Context, version: Any, packed: Packed) -> Measured:
    """A downloaded version, evaluated anew on the benchmark; what earlier evaluations found is not asked."""
    from pipelines.retrieval.config import EvaluateRecipe
    from pipelines.retrieval.evaluate import evaluate

    evaluation = EvaluateRecipe(
        name="gate",
        model=str(packed.export),
        dataset=recipe.dataset,
        features=recipe.features or _features(recipe, context, packed),
        split=recipe.split,
        bootstrap_samples=100,  # no gate asks for intervals or blind baselines
        blind_references=1,
    )
    with tempfile.TemporaryDirectory(prefix="oacir-gate-") as folder:
        outcome = evaluate(evaluation, Context(root=context.root, out=str(Path(folder) / "evaluation")))
    latency = latency_ms(recipe, context, packed) if recipe.gates.latency_p95_ms is not None else []
    return Measured(str(version.version), outcome.figures, packed.schema_hash, packed.size_bytes, latency)


def latency_ms(recipe: PromoteRecipe, context: Context, packed: Packed) -> list[float]:
    """Milliseconds of single queries of the benchmark as others ask them: bytes, box and text → embedding."""
    import mlflow.pyfunc
    import pandas as pd

    model = mlflow.pyfunc.load_model(str(packed.folder))
    rows = _queries(recipe, context)
    taken = []
    for number, row in enumerate([*rows[:WARM_UP], *rows]):
        table = pd.DataFrame([row])
        began = time.perf_counter()
        model.predict(table)
        if number >= min(WARM_UP, len(rows)):
            taken.append(1000 * (time.perf_counter() - began))
    return sorted(taken)


def _queries(recipe: PromoteRecipe, context: Context) -> list[dict[str, Any]]:
    """Rows of the model's input from queries spread over the split."""
    from pipelines.retrieval.inputs import find_dataset
    from training.data import read_quadruples

    dataset = find_dataset(context.root, recipe.dataset)
    quadruples = read_quadruples(dataset, recipe.split).to_pylist()
    images = dataset.table("images", ["image_id", "uri"]).to_pylist()
    uri_of = {row["image_id"]: row["uri"] for row in images}
    step = max(1, len(quadruples) // TIMED)
    return [
        {
            "image": storage.read_bytes(uri_of[q["reference_id"]]),
            "box": [float(v) for v in q["reference_box"]],
            "text": q["modification_text"],
            "category": q["category"],
        }
        for q in quadruples[::step][:TIMED]
    ]


def _features(recipe: PromoteRecipe, context: Context, packed: Packed) -> str:
    """The feature store of the benchmark's images in the very arithmetic that the model was trained on.

    Raises:
        VersionError: there is none.
    """
    from pipelines.retrieval.inputs import find_dataset
    from training.export import open_model
    from training.stores import needed

    dataset = find_dataset(context.root, recipe.dataset)
    model, processor = open_model(str(packed.export))
    images = next(iter(needed(dataset, processor)))
    key = images.feature_key(model.tower_state_hash(), processor, *packed.tokens)
    store = images.find(context.root, [key])
    if store is None:
        why = images.missing(context.root, [key], dataset)
        raise VersionError(f"{why}; run `oacir embed` for the model first, or give --features")
    return store.version.url


def _drop_challenger(registered: Registered, version: str) -> None:
    if registered.alias(CHALLENGER) == version:
        registered.point(CHALLENGER, None)


def _uri(recipe: PromoteRecipe) -> str:
    return f"models:/{recipe.name}@{CHAMPION}"


def _figures(asked: str, present: str | None, checks: Sequence[Check]) -> dict[str, Any]:
    return {
        "version": asked,
        "champion_before": present,
        "promoted": False,
        "gates": [asdict(check) for check in checks],
    }
