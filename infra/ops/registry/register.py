"""`oacir register`: a trained model → a version in MLflow's registry that others load with MLflow and this package."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.config import Config, Name
from infra.base.errors import OacirError
from infra.base.spool import FOLDER, Spool
from infra.base.tracking import metric_name, shown
from infra.base.versions import Version, resolve
from infra.ops.mlflow_sync import scores
from infra.ops.registry import galleries, packaging
from infra.ops.registry.galleries import Encoded
from infra.ops.registry.history import champion
from infra.ops.registry.packaging import Packed
from infra.ops.registry.server import CHALLENGER, LOGGED_TAG, Registered, server_uri

if TYPE_CHECKING:
    from pipelines.retrieval.inputs import ModelPlace


class RegisterRecipe(Config):
    """Which model becomes a version of which registered model."""

    name: Name = "adafocal"
    """Name of the registered model."""
    model: str
    """A run (path or URL, name/key, or name: the newest of it), or a directory of an exported model."""
    mlflow_uri: str | None = None
    """MLflow server (http://…) or database (sqlite:///…); null takes the variable MLFLOW_TRACKING_URI."""
    experiment: str = "oacir"
    """Experiment of MLflow that the model's files are logged in."""
    evaluations: list[str] = Field(default_factory=list)
    """Evaluations of this model (path or URL, name/key, or name), for its card and as metrics."""
    galleries: list[str] = Field(default_factory=list)
    """Galleries that travel with it and that it ranks by name: all, a split (test), or domain/split."""
    dataset: str = "world"
    """The benchmark of the galleries: a path or URL of a version, name/key, or name."""
    features: str | None = None
    """The feature store of the galleries' images; null finds it under the root, and without one encodes the images."""
    package: str | None = None
    """How pip installs this package for the model, where no index has it: a path or URL of its wheel; null names the
    version that is installed here."""
    challenger: bool = True
    """Give the version the alias challenger."""

    @field_validator("package")
    @classmethod
    def _keeps_no_secret(cls, package: str | None) -> str | None:
        if package is not None and re.search(r"https?://[^/\s]*@|://[^/@\s]*:[^/@\s]+@", package):
            raise ValueError(
                "names a user or password, which everybody who reads the model's requirements.txt would see; leave"
                " them out and let pip take them from ~/.netrc or its keyring"
            )
        return package


def register(recipe: RegisterRecipe, context: Context) -> Outcome:
    """Pack the model, try it, and make it a version; the same model registered twice is the same version.

    Raises:
        OacirError: no such model or server, an evaluation of another model, or the packed model does not answer.
    """
    from pipelines.retrieval.inputs import find_model
    from training.export import model_folder

    uri = server_uri(recipe.mlflow_uri)
    place = find_model(context.root, recipe.model)
    evaluations = [_evaluation(context.root, name, place) for name in recipe.evaluations]
    if context.dry_run:
        return Outcome(f"would register {place.url} as {recipe.name} at {shown(uri)}")
    registered = Registered(uri, recipe.name)
    registered.ensure()
    origin = _origin(place)
    with tempfile.TemporaryDirectory(prefix="oacir-register-") as name:
        export = model_folder(place.url if place.run is None else place.run.url)
        encoded = _galleries(recipe, context, place)
        packed = packaging.pack(
            export,
            encoded,
            origin,
            model_card(recipe.name, export, origin, evaluations, encoded),
            place.token_types(None),
            Path(name) / "model",
            recipe.package,
        )
        try_out(packed, recipe.galleries)
        run_id = _run_id(registered, recipe, place, packed)
        version, new = registered.publish(packed, run_id, recipe.experiment, _description(place, evaluations))
    _log_scores(registered, version, evaluations)
    if recipe.challenger and registered.alias(CHALLENGER) != version and _is_no_champion(registered, version):
        registered.point(CHALLENGER, version)
    figures = {
        "name": recipe.name,
        "version": version,
        "new": new,
        "model_hash": packed.model_hash,
        "size_bytes": packed.size_bytes,
        "uri": f"models:/{recipe.name}/{version}",
    }
    what = "registered" if new else "nothing to do: the same model is registered already,"
    return Outcome(
        f"{what} version {version} of {recipe.name} at {shown(uri)}: models:/{recipe.name}/{version}",
        f"models:/{recipe.name}/{version}",
        figures,
    )


def try_out(packed: Packed, names: Sequence[str] = ()) -> None:
    """Load a packed model as others will, and ask it its example.

    Raises:
        OacirError: it does not answer.
    """
    import mlflow.pyfunc

    try:
        model = mlflow.pyfunc.load_model(str(packed.folder))
        example = model.input_example
        answer = model.predict(example)
        ranked = [model.predict(example, params={"gallery": name, "top_k": 1}) for name in names]
    except Exception as error:
        raise OacirError(
            f"{packed.folder}: the packed model does not answer its example ({' '.join(str(error).split())[:300]})"
        ) from error
    if not len(answer["embedding"][0]) or any(len(r["image_ids"][0]) != 1 for r in ranked):
        raise OacirError(f"{packed.folder}: the packed model gives an empty answer to its example")


def model_card(
    name: str,
    export: Path,
    origin: Mapping[str, str],
    evaluations: Sequence[Version],
    encoded: Sequence[Encoded] = (),
) -> str:
    """The export's own card, with where the model comes from, how it is used from a registry, what it ranks by name and
    what was measured."""
    from training.card import FILE

    own = export / FILE
    lines = [own.read_text(encoding="utf-8").rstrip() if own.is_file() else f"# {name}", ""]
    lines += ["## Registered", "", "| made from | |", "|---|---|"]
    lines += [f"| {key.replace('_', ' ')} | `{value}` |" for key, value in origin.items()]
    lines += [
        "",
        "```python",
        "import mlflow",
        "",
        f'model = mlflow.pyfunc.load_model("models:/{name}@champion")',
        "model.predict(model.input_example)",
        "```",
        "Loading needs MLflow and this package; requirements.txt pins what it was made with. No file is a pickle.",
    ]
    if encoded:
        lines += ["", "| gallery that came with it | images | benchmark (content hash) |", "|---|---|---|"]
        lines += [f"| `{g.name}` | {len(g.image_ids):,} | `{g.dataset_hash}` |" for g in encoded]
        lines += ["", f'Ranked with `params={{"gallery": "{encoded[0].name}", "top_k": 10}}`.']
    for evaluation in evaluations:
        figures = evaluation.manifest.figures
        lines += ["", f"### {figures['dataset']['name']}, {figures['split']}", ""]
        lines += ["| domain | queries | gallery (hash) | R_ID@1 | R@1 | R@5 |", "|---|---|---|---|---|---|"]
        for domain, part in figures["domains"].items():
            cells = [_interval(part["metrics"][m]) for m in ("R_ID@1", "R@1", "R@5")]
            gallery = f"{part['gallery']['images']:,} (`{part['gallery']['hash'][:12]}`)"
            lines.append(f"| {domain} | {part['queries']:,} | {gallery} | {' | '.join(cells)} |")
        lines += ["", f"Percent (95 % interval by instance). {figures['protocol']}."]
        lines += [f"Note: {note}." for note in figures["notes"]]
    return "\n".join(lines) + "\n"


def _interval(measure: Mapping[str, Any]) -> str:
    from pipelines.retrieval.summary import with_interval

    return with_interval(measure)


def _origin(place: ModelPlace) -> dict[str, str]:
    """Where a model comes from, as texts; of a plain folder its name and hash alone."""
    if place.run is None:
        return {"model": place.name, "run_hash": place.content_hash}
    manifest = place.run.manifest
    return {
        "run": f"{manifest.name}/{manifest.key}",
        "run_hash": manifest.content_hash,
        **{f"{role}_hash": content for role, content in manifest.parents.items()},
        "code_version": manifest.code_version,
        "trained_at": manifest.created_at,
    }


def _evaluation(root: str, name: str, place: ModelPlace) -> Version:
    found = resolve(root, "evaluations", name)
    if found.manifest.parents.get("model") != place.content_hash:
        raise OacirError(f"{found.url}: evaluates another model than {place.url}; name one of its own")
    if found.manifest.figures.get("perturbed"):
        raise OacirError(
            f"{found.url}: its queries were perturbed, so its figures are no scores; name another"
        )
    return found


def _galleries(recipe: RegisterRecipe, context: Context, place: ModelPlace) -> list[Encoded]:
    if not recipe.galleries:
        return []
    from pipelines.retrieval.inputs import ImageTokens, StoreTokens, find_dataset, find_features
    from pipelines.retrieval.query import select_gallery
    from training.data import used_images
    from training.stores import Contents

    dataset = find_dataset(context.root, recipe.dataset)
    model, processor = place.load()
    store = find_features(context.root, recipe.features, place, Contents("full", used_images(dataset)))
    if store is not None:
        return galleries.encode(model, processor, StoreTokens(store), dataset, recipe.galleries)
    _, uri_of = select_gallery(dataset, "all")
    source = ImageTokens(model, processor, uri_of, *place.token_types(None))
    return galleries.encode(model, processor, source, dataset, recipe.galleries)


def _run_id(registered: Registered, recipe: RegisterRecipe, place: ModelPlace, packed: Packed) -> str:
    """The MLflow run of the version: the training's own, where it is on that server, else one made here."""
    if place.run is not None:
        known = Spool(storage.join(place.run.url, FOLDER)).sent(shown(registered.uri))[0]
        if known is not None:
            return known
    return registered.run_of(packed, recipe.experiment, f"register {place.name}")


def _description(place: ModelPlace, evaluations: Sequence[Version]) -> str:
    lines = [f"{place.name}; the card is {packaging.CARD} among its files."]
    for evaluation in evaluations:
        figures = evaluation.manifest.figures
        values = ", ".join(
            f"{m} {figures['overall']['metrics'][m]['value']:.1f}" for m in ("R_ID@1", "R@1", "R@5")
        )
        lines.append(
            f"{figures['dataset']['name']} {figures['split']}: {values} (percent, mean over domains)"
        )
    return "\n".join(lines)


def _log_scores(registered: Registered, version: str, evaluations: Sequence[Version]) -> None:
    """The scores as metrics of the logged model, under the names that `mlflow sync` gives them."""
    from mlflow.entities import Metric

    if not evaluations:
        return
    found = registered.find(version)
    for evaluation in evaluations:  # told again, MLflow keeps each once
        figures = evaluation.manifest.figures
        group = f"{figures['split']}/{figures['dataset']['name']}"
        metrics = [
            Metric(
                metric_name(f"{group}/{name}"),
                value,
                _created_ms(evaluation),
                0,
                model_id=found.tags[LOGGED_TAG],
            )
            for name, value in scores(figures).items()
        ]
        registered.log_metrics(found.run_id, metrics)


def _created_ms(version: Version) -> int:
    return round(1000 * datetime.fromisoformat(version.manifest.created_at).timestamp())


def _is_no_champion(registered: Registered, version: str) -> bool:
    return champion(registered.log()) != version
