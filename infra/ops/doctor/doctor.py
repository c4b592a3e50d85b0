"""The verb: all checks, one line each, and an exit code for CI."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from infra.base.command import Context, Outcome
from infra.base.config import Config, load_recipe
from infra.base.tracking import tracking_uri
from infra.base.versions import resolve
from infra.ops.doctor import machine, reach
from infra.ops.doctor.finding import Finding, guarded

S3_PATIENCE_S = "5"
"""A store that does not answer is a finding; a command would go on asking for a minute."""


class DoctorRecipe(Config):
    """What is expected of this machine."""

    address: str | None = None
    """Dashboard of a Ray cluster; null takes RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, and none is fine."""
    mlflow_uri: str | None = None
    """A tracking server; null takes MLFLOW_TRACKING_URI, and none is fine."""
    gpu: bool = False
    """Whether a GPU has to be here."""
    train: str | None = None
    """A training recipe: whether the feature store of its tower fits; with images; null = not looked at."""
    images: str | None = None
    """How many images that store has: a number, or a benchmark (a path or URL, name/key, or name); null = not
    looked at."""
    strict: bool = False
    """Whether warnings are faults."""


def doctor(recipe: DoctorRecipe, context: Context) -> Outcome:
    """Look at everything that commands count on; the outcome is refused where something is at fault."""
    os.environ.setdefault("OACIR_S3_PATIENCE_S", S3_PATIENCE_S)
    uri = tracking_uri(recipe.mlflow_uri)
    servers = reach.time_servers(context.root, uri, recipe.address, os.environ)
    checks: dict[str, Callable[[], Finding]] = {
        "python": machine.python,
        "packages": machine.packages,
        "cuda": partial(machine.cuda, recipe.gpu),
        "ray": partial(reach.ray_cluster, recipe.address, os.environ),
        "storage": partial(reach.rights, context.root),
        "mlflow": partial(reach.mlflow_server, uri),
        "disk": partial(machine.disk, context.root),
        "shm": machine.shared_memory,
        "features": partial(_features, recipe, context.root),
        "clock": partial(reach.clock, servers),
    }
    if context.dry_run:
        return Outcome(f"would check {', '.join(checks)}")
    found = [guarded(name, look) for name, look in checks.items()]
    bad = ("fault", "warning") if recipe.strict else ("fault",)
    faults = [finding.check for finding in found if finding.state in bad]
    warnings = sum(finding.state == "warning" for finding in found)
    return Outcome(
        f"{len(found)} checks, {len(faults)} at fault, {warnings} warnings",
        None,
        {"findings": [asdict(finding) for finding in found]},
        tuple(map(str, found)),
        f"at fault: {', '.join(faults)}; their lines say what mends them" if faults else None,
    )


def _features(recipe: DoctorRecipe, root: str) -> Finding:
    if recipe.train is None or recipe.images is None:
        return Finding(
            "features",
            "unasked",
            "--train RECIPE and --images N (or a benchmark) tell whether its store fits",
        )
    from training.config import TrainRecipe
    from training.model.config import preset
    from training.stored import row_bytes

    train = load_recipe(TrainRecipe, recipe.train)
    if train.model.weights is not None:
        return Finding(
            "features", "unasked", f"{recipe.train}: its sizes come from model.weights; name their preset"
        )
    config = preset(train.model.preset, train.model.method, **train.model.overrides)
    images = machine.images_named(recipe.images)
    if images is None:
        dataset = resolve(root, "datasets", recipe.images, holding="quadruples")
        images = dataset.table("images").num_rows
    size = row_bytes(config.num_image_tokens, config.vision_config.hidden_size, train.embed.dtype)
    return machine.feature_room(images, size, root)
