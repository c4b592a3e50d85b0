"""`oacir export`: a dataset version → the OACIRR release's layout, or parquet that `datasets.load_dataset` opens."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from infra.base import storage, versions
from infra.base.command import Context, Outcome
from infra.base.config import Config
from infra.base.errors import OacirError
from infra.base.tables import size

MARKER = "oacir-export.json"


class ExportRecipe(Config):
    """What to export, and how."""

    dataset: str
    """The dataset: a path or URL of a version, name/key, or name (the newest of it)."""
    layout: Literal["oacirr", "huggingface"]
    """The OACIRR release's files with a sidecar that restores ours, or parquet with a data card for the Hub."""
    images: Literal["copy", "link"] = "copy"
    """oacirr: whether images are copied, or linked to where they lie (on one machine)."""
    joint: list[Literal["union", "crossdomain"]] = Field(["union", "crossdomain"])
    """oacirr: training sets beside the subsets: Union, and for each domain the set without it."""
    shard_bytes: Annotated[int, Field(ge=1_000_000)] = 200_000_000
    """huggingface: bytes of images in a parquet file."""
    push: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    """huggingface: dataset repository on the Hub (owner/name) to upload to, which needs a token (`hf auth login`);
    null uploads nothing."""
    private: bool = True
    """huggingface: whether a repository that push creates is private."""

    @model_validator(mode="after")
    def _options_of_the_layout(self) -> Self:
        if self.layout == "oacirr" and self.push is not None:
            raise ValueError("push uploads the layout huggingface; set --layout huggingface")
        if self.layout == "huggingface" and self.images == "link":
            raise ValueError(
                "images = link is of the layout oacirr; parquet files hold the images themselves"
            )
        return self


def export(recipe: ExportRecipe, context: Context) -> Outcome:
    """Export a dataset; a finished export of the same content is a no-op, a half-finished one is written anew.

    Raises:
        OacirError: the layout cannot hold the dataset, the place holds something else, or there is no token to push.
    """
    from pipelines.exporters import hub, huggingface, oacirr

    version = versions.resolve(context.root, "datasets", recipe.dataset)
    manifest = version.manifest
    if "quadruples" not in {f.path.split("/")[0] for f in manifest.files}:
        raise OacirError(
            f"{version.url}: holds no quadruples; export a benchmark that `oacir build` or `import` made"
        )
    default = storage.join(context.root, "exports", manifest.name, manifest.key, recipe.layout)
    out = storage.absolute(context.out or default)
    token = hub.token_for(recipe.push, out) if recipe.push else None
    if context.dry_run:
        return _plan(recipe, version, out)
    started = {
        "content_hash": manifest.content_hash,
        **recipe.model_dump(mode="json", exclude={"push", "private"}),
    }
    started |= {"dataset": f"{manifest.name}/{manifest.key}"}
    layout = oacirr.Layout(version) if recipe.layout == "oacirr" else None
    finished = _begin(out, started)
    figures: dict[str, Any] = {"content_hash": manifest.content_hash}
    if not finished:
        if layout is not None:
            figures |= oacirr.export(layout, out, recipe.images, recipe.joint)
        else:
            figures |= huggingface.export(version, out, recipe.shard_bytes)
        storage.write_bytes(storage.join(out, MARKER), _marker(started, done=True))
    details = tuple(f"{name}: {value}" for name, value in figures.items() if name != "content_hash")
    what = "nothing to do, exported before" if finished else f"exported as {recipe.layout}"
    if recipe.push and token:
        url = hub.push(out, recipe.push, token, recipe.private, [MARKER])
        return Outcome(f"{what} and pushed to {url}: {out}", out, figures | {"pushed": url}, details)
    return Outcome(f"{what}: {out}", out, figures, details)


def _begin(out: str, started: dict[str, Any]) -> bool:
    """Claim the place; whether the very same export is finished there.

    Raises:
        OacirError: something else lies there.
    """
    place = storage.join(out, MARKER)
    if storage.exists(place):
        found = json.loads(storage.read_bytes(place))
        done = found.pop("done")
        if found != started:
            raise OacirError(
                f"{out}: holds another export ({found['layout']} of {found['dataset']}, or other options); choose"
                " another --out, or delete it"
            )
        return bool(done)
    if next(iter(storage.list_files(out)), None) is not None:
        raise OacirError(f"{out}: holds files that are no export of oacir; choose an empty folder with --out")
    storage.write_bytes(place, _marker(started, done=False))
    return False


def _marker(started: dict[str, Any], done: bool) -> bytes:
    return json.dumps(started | {"done": done}, indent=1).encode()


def _plan(recipe: ExportRecipe, version: versions.Version, out: str) -> Outcome:
    rows = {
        name: len(version.table(name, [column]))
        for name, column in (("images", "image_id"), ("quadruples", "query_id"))
    }
    total = sum(f.size_bytes for f in version.manifest.files)
    return Outcome(
        f"would export {rows['quadruples']:,} quadruples and {rows['images']:,} images ({size(total)} of tables"
        f" beside the images) of {version.url} as {recipe.layout}: {out}",
        figures=rows,
    )
