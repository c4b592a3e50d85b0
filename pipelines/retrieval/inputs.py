"""What evaluation and queries read: a benchmark's queries and galleries, a trained model, tokens of images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from infra.base import storage, versions
from infra.base.errors import OacirError, VersionError
from pipelines.gallery import gallery_hash
from pipelines.retrieval.engine import Gallery, QuerySet
from pipelines.retrieval.protocols.base import Benchmark, Found
from pipelines.retrieval.protocols.known import benchmark_of
from training.anchors import anchors_of
from training.tower_config import TRAINED_MODES

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from training.features import FeatureStore
    from training.model.adafocal import AdaFocalModel
    from training.model.processing import AdaFocalProcessor
    from training.stored import Dtype, Precision
    from training.stores import Contents

MODEL_CONFIG = "config.json"


@dataclass(frozen=True)
class ModelPlace:
    """Where a trained model lies and what it is called."""

    name: str
    url: str
    """The exported model: config.json, weights, processor."""
    content_hash: str
    run: versions.Version | None
    """The run that made it, where it is known."""

    @property
    def weights_option(self) -> str:
        """How `oacir embed` is told to take the image tower of this model, where the recipe's is another; else ""."""
        if self.run is None or self.run.manifest.figures.get("tower") not in TRAINED_MODES:
            return ""
        return f" --model.weights {self.run.url}"

    def token_types(self, store: FeatureStore | None) -> tuple[Dtype, Precision]:
        """Type of the stored tokens that the model reads and its tower's arithmetic: of a store, else of its run."""
        if store is not None:
            return store.dtype, store.precision
        settings = {} if self.run is None else self.run.manifest.recipe.get("embed", {})
        return settings.get("dtype", "bfloat16"), settings.get("precision", "float32")

    def load(self, with_tower: bool = True) -> tuple[AdaFocalModel, AdaFocalProcessor]:
        """The model in eval mode, with or without its frozen image tower, and its processor."""
        from training.export import open_model

        return open_model(self.url if self.run is None else self.run.url, with_tower=with_tower)

    def feature_keys(self, contents: Contents) -> set[str]:
        """Keys of the features this model can read: those it was trained on, else all of its tower."""
        from training.stored import Dtype, Precision

        role = "feature_key" if contents.view == "full" else "view_feature_key"
        if self.run is not None and role in self.run.manifest.figures:
            return {str(self.run.manifest.figures[role])}
        model, processor = self.load()
        tower = model.tower_state_hash()
        return {
            contents.feature_key(tower, processor, dtype, precision)
            for dtype in get_args(Dtype)
            for precision in get_args(Precision)
        }


@dataclass(frozen=True)
class DomainTask:
    """One domain of a split: its queries and its gallery."""

    domain: str
    queries: QuerySet
    gallery: Gallery
    gallery_hash: str
    distractors: int

    @property
    def found(self) -> Found:
        """What a declared benchmark is held against."""
        return Found(self.gallery.gallery_id, self.gallery_hash, len(self.gallery), len(self.queries))


def find_model(root: str, reference: str) -> ModelPlace:
    """The model a user means: a run (URL, name/key, name), its export folder, or any folder of an exported model.

    Raises:
        VersionError: neither a run nor a folder with a model's config.json.
    """
    url = storage.absolute(reference)
    if storage.exists(storage.join(url, MODEL_CONFIG)):
        above = url.rsplit("/", 1)[0]
        if storage.name_of(url) != "export" or not storage.exists(storage.join(above, versions.MANIFEST)):
            return ModelPlace(storage.name_of(url), url, _folder_hash(url), None)
        url = above
        run = versions.open_version(url)
    else:
        run = versions.resolve(root, "runs", reference)
    if run.manifest.kind != "runs":
        raise VersionError(f"{run.url}: is a version of kind {run.manifest.kind}; --model needs a run")
    return ModelPlace(run.manifest.name, run.path("export"), run.manifest.content_hash, run)


def find_dataset(root: str, reference: str) -> versions.Version:
    """The benchmark a user means.

    Raises:
        VersionError: nothing of that name, or a version without queries.
    """
    version = versions.resolve(root, "datasets", reference, holding="quadruples")
    if not version.holds("quadruples"):
        raise VersionError(
            f"{version.url}: holds no quadruples, so there is nothing to ask; give a benchmark that `oacir build` made"
        )
    return version


def find_features(
    root: str, reference: str | None, place: ModelPlace, contents: Contents
) -> FeatureStore | None:
    """The feature store of some contents that the model can read; None where none is named and none fits.

    Raises:
        VersionError: the named store holds other tokens than the model reads, or of other bytes.
    """
    from training.features import FeatureStore

    keys = place.feature_keys(contents)
    if reference is None:
        return contents.find(root, keys)
    store = FeatureStore.open(versions.resolve(root, "features", reference).url)
    if store.key not in keys:
        raise VersionError(
            f"{store.version.url}: these features were made by another image tower or preprocessing than"
            f" {place.url} has; run `oacir embed` for this model, or leave --features out"
        )
    contents.require(store)
    return store


def require_features(
    root: str,
    reference: str | None,
    place: ModelPlace,
    dataset: versions.Version,
    processor: AdaFocalProcessor,
) -> list[FeatureStore]:
    """All stores that the model needs for a benchmark (`stores.needed`): of the images, and of the views it sees.

    Raises:
        VersionError: one is missing, or none fits the model and the benchmark.
    """
    from training.stores import needed

    found = []
    for contents in needed(dataset, processor):
        whole = contents.view == "full"
        store = find_features(root, reference if whole else None, place, contents)
        if store is None:
            why = contents.missing(root, place.feature_keys(contents), dataset)
            raise VersionError(
                f"{why}; run `oacir embed --dataset {dataset.url}{place.weights_option}` with the recipe that trained"
                " the model" + (", or give --features" if whole else "")
            )
        found.append(store)
    return found


class StoreTokens:
    """Tokens from a feature store (of images, or of images and views joined)."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def tokens(self, image_ids: Sequence[str]) -> torch.Tensor:
        """See `engine.TokenSource`."""
        return self.store.tokens(self.store.rows(image_ids))


class ImageTokens:
    """Tokens computed from the images themselves, in the arithmetic of a feature store and rounded as in it.

    Args:
        model, processor: that the tokens are for; in bfloat16 the model's tower is rounded here.
        uri_of: image_id → URL.
        dtype: of the store.
        precision: of the tower.
    """

    def __init__(
        self,
        model: AdaFocalModel,
        processor: AdaFocalProcessor,
        uri_of: dict[str, str],
        dtype: Dtype,
        precision: Precision = "float32",
    ) -> None:
        self.model, self.processor, self.uri_of = model, processor, uri_of
        self.dtype, self.precision = dtype, precision

    @cached_property
    def device(self) -> torch.device:
        """Where the model is when it is first asked: who makes it may move it after this was made."""
        return next(self.model.parameters()).device

    @cached_property
    def encode(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The tower in its precision."""
        import torch

        from pipelines.encoding import tower_in

        with torch.inference_mode(False):  # weights rounded within it could never be used outside
            return tower_in(self.model, self.precision, self.device)

    def tokens(self, image_ids: Sequence[str]) -> torch.Tensor:
        """See `engine.TokenSource`."""
        return self.of_images([read_image(self.uri_of[image_id]) for image_id in image_ids])

    def of_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Tokens of decoded images, float32 [n, N, D]."""
        return self.of_pixels(self.processor.pixels(images))

    def of_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens of preprocessed images, float32 [n, N, D]."""
        from training.stored import rounded

        return rounded(self.encode(pixels.to(self.device)), self.dtype).cpu()


def read_image(url: str, target_px: int | None = None) -> Image.Image:
    """An image, upright and RGB; with `target_px` it may come smaller, its short side still at least that long.

    Raises:
        OacirError: nothing lies there, or it is no image that can be read.
    """
    from pipelines.images import ImageLimits, ImageRejected, decode

    # What an image may measure was judged when the benchmark was built.
    limits = ImageLimits(min_side_px=1, max_pixels=2**40, max_aspect=2.0**40)
    try:
        return decode(storage.read_bytes(url), limits, target_px=target_px).image
    except ImageRejected as error:
        raise OacirError(f"{url}: {error.reason} ({error.detail}); give an image that can be read") from error


def load_tasks(dataset: versions.Version, split: str) -> list[DomainTask]:
    """The queries and galleries of a split, by domain in order of name; domains without a query are left out.

    Raises:
        VersionError: a gallery is not the one the dataset's manifest states, or lacks a query's target.
    """
    import pyarrow.compute as pc

    from training.data import read_quadruples

    quadruples = read_quadruples(dataset, split)
    table = dataset.table("gallery")
    table = table.filter(pc.equal(table["split"], split)).sort_by("image_id")
    sizes = image_sizes(dataset)
    benchmark = benchmark_of(dataset, split)
    groups = _groups(dataset, split) if benchmark.groups else None
    tasks = []
    for domain in sorted(set(quadruples["domain"].to_pylist())):
        rows = quadruples.filter(pc.equal(quadruples["domain"], domain)).to_pylist()
        gallery_id = f"{domain}/{split}"
        members = table.filter(pc.equal(table["gallery_id"], gallery_id)).to_pylist()
        queries = _query_set(rows, sizes, benchmark, groups)
        gallery = Gallery(gallery_id, [m["image_id"] for m in members], [m["instance_id"] for m in members])
        found = gallery_hash(gallery.image_ids)
        _check_gallery(dataset, gallery, queries, found)
        tasks.append(DomainTask(domain, queries, gallery, found, sum(m["is_distractor"] for m in members)))
    return tasks


def image_sizes(dataset: versions.Version) -> dict[str, tuple[int, int]]:
    """Width and height in pixels of every image of a dataset."""
    images = dataset.table("images", ["image_id", "width", "height"])
    pairs = zip(images["width"].to_pylist(), images["height"].to_pylist(), strict=True)
    return dict(zip(images["image_id"].to_pylist(), pairs, strict=True))


def uris(dataset: versions.Version) -> dict[str, str]:
    """Where each image of a dataset lies."""
    images = dataset.table("images", ["image_id", "uri"])
    return dict(zip(images["image_id"].to_pylist(), images["uri"].to_pylist(), strict=True))


def _query_set(
    rows: list[dict[str, Any]],
    sizes: dict[str, tuple[int, int]],
    benchmark: Benchmark,
    groups: Mapping[str, list[str]] | None,
) -> QuerySet:
    several = benchmark.all_targets and any(len(r["target_ids"]) > 1 for r in rows)
    return QuerySet(
        query_ids=[r["query_id"] for r in rows],
        instance_ids=[r["instance_id"] for r in rows],
        reference_ids=[r["reference_id"] for r in rows],
        target_ids=[r["target_ids"][0] for r in rows],
        texts=[r["modification_text"] for r in rows],
        categories=[r["category"] for r in rows],
        anchors=anchors_of(rows, sizes),
        reference_kept=benchmark.reference_kept,
        further_ids=[r["target_ids"][1:] for r in rows] if several else None,
        group_ids=None if groups is None else [groups[r["query_id"]] for r in rows],
    )


def _groups(dataset: versions.Version, split: str) -> dict[str, list[str]]:
    """query_id → the images among which it is also ranked by itself.

    Raises:
        VersionError: a query has none.
    """
    import pyarrow.compute as pc

    table = dataset.table("quadruples", ["query_id", "split", "group_ids"])
    rows = table.filter(pc.equal(table["split"], split)).to_pylist()
    if alone := [r["query_id"] for r in rows if not r["group_ids"]]:
        raise VersionError(
            f"{dataset.url}: {len(alone)} queries have no group to be ranked in, first {alone[0]}; import it again"
        )
    return {r["query_id"]: r["group_ids"] for r in rows}


def _check_gallery(dataset: versions.Version, gallery: Gallery, queries: QuerySet, found: str) -> None:
    stated = dataset.manifest.figures.get("galleries", {}).get(gallery.gallery_id, {}).get("sha256")
    if stated != found:
        raise VersionError(
            f"{dataset.url}: gallery {gallery.gallery_id} has hash {found[:12]}…, its manifest states"
            f" {str(stated)[:12]}…; the dataset was changed after it was made: build it again"
        )
    inside = set(gallery.image_ids)
    further = queries.further_ids or [[]] * len(queries)
    lost = [
        query
        for query, target, others in zip(queries.query_ids, queries.target_ids, further, strict=True)
        if not inside.issuperset([target, *others])
    ]
    if lost:
        raise VersionError(
            f"{dataset.url}: the target of {len(lost)} queries is not in gallery {gallery.gallery_id}, first"
            f" {lost[0]}; the dataset is damaged: build it again"
        )


def _folder_hash(url: str) -> str:
    lines = [f"{f.path} {storage.sha256_of(storage.join(url, f.path))}" for f in storage.list_files(url)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
