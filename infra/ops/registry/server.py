"""One registered model on an MLflow server: versions, aliases, history. The server is named, never global."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.base.errors import OacirError, VersionError
from infra.base.tracking import settle_environment, shown, tracking_uri
from infra.ops.registry import history, packaging
from infra.ops.registry.history import Action, Entry
from infra.ops.registry.packaging import Packed

CHAMPION, CHALLENGER = "champion", "challenger"
HISTORY_TAG = "oacir.history"
"""Of a registered model: id of the run that holds its history."""
LOGGED_TAG = "oacir.logged_model"
"""Of a version: the logged model that holds its files."""
EXPERIMENT = "oacir registry"
"""Of the runs that hold histories."""
TRIES = 20
"""Of an append to a log that others append to as well."""


def server_uri(named: str | None) -> str:
    """The server that a recipe or MLFLOW_TRACKING_URI names.

    Raises:
        OacirError: neither does.
    """
    uri = tracking_uri(named)
    if uri is None:
        raise OacirError(
            "mlflow_uri is null and MLFLOW_TRACKING_URI is not set; name the server, --mlflow_uri http://127.0.0.1:5000"
        )
    return uri


class Registered:
    """A registered model by its name.

    Args:
        uri: of the server (http://…) or database (sqlite:///…).
        name: of the model.
    """

    def __init__(self, uri: str, name: str) -> None:
        settle_environment()
        from mlflow.tracking import MlflowClient

        self.uri, self.name = uri, name
        self.client: Any = MlflowClient(uri, uri)

    def ensure(self) -> None:
        """Create it where it is not there, with its history; by two at once it is created once.

        Raises:
            OacirError: it is there and was not made by `oacir register`.
        """
        from mlflow.exceptions import MlflowException

        with self._speaking():
            if self._history_run(missing_ok=True) is not None:
                return
            run_id = self.client.create_run(self.experiment(EXPERIMENT), run_name=self.name).info.run_id
            try:
                self.client.create_registered_model(self.name, tags={HISTORY_TAG: run_id})
            except MlflowException as error:
                self.client.delete_run(run_id)
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                self._history_run()
            else:
                self.client.set_terminated(run_id)

    def experiment(self, name: str) -> str:
        """Id of an experiment, made where it is not there."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self.client.get_experiment_by_name(name).experiment_id)

    def versions(self, model_hash: str | None = None) -> list[Any]:
        """Its versions by number, or those of the same model alone."""
        asked = f"name = '{self.name}'"
        if model_hash is not None:
            asked += f" and tag.`oacir.model_hash` = '{model_hash}'"
        with self._speaking():
            found, token = [], None
            while True:
                page = self.client.search_model_versions(asked, max_results=200, page_token=token)
                found += page
                token = page.token
                if not token:
                    return sorted(found, key=lambda v: int(v.version))

    def find(self, reference: str) -> Any:
        """A version by number or alias.

        Raises:
            VersionError: there is none, with what there is.
        """
        from mlflow.exceptions import MlflowException

        try:
            if reference.isdigit():
                return self.client.get_model_version(self.name, reference)
            return self.client.get_model_version_by_alias(self.name, reference)
        except MlflowException as error:
            with self._speaking():
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                there = ", ".join(str(v.version) for v in self.versions()) or "none"
                raise VersionError(
                    f"{self.name}: no version or alias '{reference}' at {shown(self.uri)}; versions: {there}"
                ) from error

    def alias(self, alias: str) -> str | None:
        """The version that an alias points to; None where there is no such alias."""
        with self._speaking():
            found = self.client.get_registered_model(self.name).aliases.get(alias)
        return None if found is None else str(found)

    def point(self, alias: str, version: str | None) -> None:
        """Move an alias, or remove it."""
        with self._speaking():
            if version is None:
                self.client.delete_registered_model_alias(self.name, alias)
            else:
                self.client.set_registered_model_alias(self.name, alias, version)

    def publish(self, packed: Packed, run_id: str, experiment: str, description: str) -> tuple[str, bool]:
        """Make a model folder a version, unless the same model is one; also by two at once, and after a kill.

        Returns:
            The version, and whether it is new.
        """
        self.ensure()
        with self._speaking():
            known = self.versions(packed.model_hash)
            if known:
                return str(known[0].version), False
            logged = self._upload(packed, run_id, experiment)
            made = self.client.create_model_version(
                self.name,
                source=logged.artifact_location,
                run_id=run_id,
                tags=packed.tags | {LOGGED_TAG: logged.model_id},
                description=description[:4000],
                model_id=logged.model_id,
            )
            # Of two that were made at once both processes keep the lower number.
            first = str(self.versions(packed.model_hash)[0].version)
            if first != str(made.version):
                self.client.delete_model_version(self.name, str(made.version))
            return first, first == str(made.version)

    def run_of(self, packed: Packed, experiment: str, name: str) -> str:
        """Id of a run that a version of this model belongs to; made where there is none."""
        with self._speaking():
            place = self.experiment(experiment)
            asked = f"tags.`oacir.model_hash` = '{packed.model_hash}'"
            found = self.client.search_runs([place], asked, max_results=1)
            if found:
                return str(found[0].info.run_id)
            made = self.client.create_run(place, run_name=name, tags=packed.tags)
            self.client.set_terminated(made.info.run_id)
            return str(made.info.run_id)

    def _upload(self, packed: Packed, run_id: str, experiment: str) -> Any:
        """The files on the server, as a logged model; one that an earlier try left is gone on with."""
        place = self.experiment(experiment)
        asked = f"tags.`oacir.model_hash` = '{packed.model_hash}'"
        found = list(self.client.search_logged_models([place], asked, max_results=1))
        logged = found[0] if found else None
        if logged is None:
            name = self.name.replace(".", "-")  # MLflow allows no dot in the name of a logged model
            logged = self.client.create_logged_model(
                place, name=name, source_run_id=run_id, tags=packed.tags, model_type="pyfunc"
            )
        if str(logged.status) != "READY":
            self.client.log_model_artifacts(logged.model_id, str(packed.folder))
            self.client.finalize_logged_model(logged.model_id, "READY")
        return logged

    def download(self, version: Any, folder: Path) -> Packed:
        """The files of a version on this machine, believed only if they are what was registered.

        Raises:
            VersionError: they are not.
        """
        import mlflow.artifacts

        with self._speaking():
            uri = self.client.get_model_version_download_uri(self.name, str(version.version))
            mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(folder), tracking_uri=self.uri, registry_uri=self.uri
            )
        root = next((p.parent for p in sorted(folder.rglob("MLmodel"))), folder)
        packed = packaging.read(root)
        stated = version.tags.get("oacir.model_hash")
        if packed.model_hash != stated:
            raise VersionError(
                f"{self.name} version {version.version} at {shown(self.uri)}: its files are not those that were"
                f" registered (hash {packed.model_hash[:12]}, was {str(stated)[:12]}); delete it and register again"
            )
        return packed

    def log_metrics(self, run_id: str, metrics: Sequence[Any]) -> None:
        """Metrics of MLflow on a run; told again, it keeps each once."""
        with self._speaking():
            self.client.log_batch(run_id, metrics=metrics)

    def log(self) -> list[Entry]:
        """Its history."""
        with self._speaking():
            return history.parse(self.client.get_run(self._history_run()).data.params)

    def append(self, entry: Entry) -> bool:
        """Add an entry; False where another process put one there first."""
        from mlflow.exceptions import MlflowException

        with self._speaking():
            run_id, value = self._history_run(), history.dump(entry)
            try:
                self.client.log_param(run_id, entry.key, value)
            except MlflowException as error:
                there = self.client.get_run(run_id).data.params.get(entry.key)
                if there is None:
                    raise
                if there != value:
                    return False
                del error
            return True

    def decide(self, seen: Sequence[Entry], action: Action, version: str, why: str) -> Entry | None:
        """Add a decision that was made knowing the history `seen`, and have the alias follow; None where others were
        faster, so that it has to be made anew."""
        entry = history.following(seen, action, version, why)
        if not self.append(entry):
            return None
        self.settle()
        return entry

    def note(self, entry: Entry, figures: Mapping[str, Any]) -> None:
        """Keep what a decision was made from, as a file beside the history."""
        with self._speaking():
            text = json.dumps(figures, indent=1, ensure_ascii=False)
            self.client.log_text(self._history_run(), text, f"{entry.key}.json")

    def refuse(self, version: str, why: str) -> Entry:
        """Note a promotion that was refused, wherever the history stands."""
        for _ in range(TRIES):
            entry = history.following(self.log(), "refuse", version, why)
            if self.append(entry):
                return entry
        raise OacirError(f"{self.name}: others write its history without a pause; try again")

    def standing(self, log: Sequence[Entry]) -> str | None:
        """The champion after a history; the one before it where that was deleted on the server. None where none is
        left."""
        return self.newest(history.stack(log))

    def newest(self, champions: Sequence[str]) -> str | None:
        """The last of some versions that is still on the server."""
        there = {str(version.version) for version in self.versions()}
        return next((version for version in reversed(champions) if version in there), None)

    def settle(self) -> str | None:
        """Have the alias `champion` point where the history says, also where a command was killed before it did, or
        someone moved it by hand or deleted the version; what it pointed to, where it was moved.

        Two that settle at once end alike: each looks at the history again after its move.
        """
        moved: str | None = None
        for _ in range(TRIES):
            wanted, there = self.standing(self.log()), self.alias(CHAMPION)
            if wanted == there:
                return moved
            moved = moved or there or "none"
            self.point(CHAMPION, wanted)
        raise OacirError(f"{self.name}: others move its alias without a pause; try again")

    def _history_run(self, missing_ok: bool = False) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            tags = self.client.get_registered_model(self.name).tags
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            if missing_ok:
                return None
            raise VersionError(
                f"{self.name}: no registered model of that name at {shown(self.uri)}; `oacir register` makes one"
            ) from error
        if HISTORY_TAG not in tags:
            raise OacirError(
                f"{self.name}: this registered model at {shown(self.uri)} was not made by `oacir register` and has no"
                " history; choose another --name"
            )
        return str(tags[HISTORY_TAG])

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """What the server or the way to it complains of, in one line."""
        try:
            yield
        except OacirError:
            raise
        except Exception as error:
            why = " ".join(str(error).split())
            why = why if len(why) <= 300 else f"{why[:140]} … {why[-140:]}"  # the cause often comes last
            raise OacirError(f"MLflow at {shown(self.uri)}: {why}") from error
