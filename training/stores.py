"""Which feature stores a benchmark and a model need, and where they lie.

Always the tokens of all images (view full); where the model sees a crop or a drawn box of the reference, also the
tokens of these views, in a store of their own whose key includes the view and whose index names them by `view_id`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.base import storage, versions
from infra.base.versions import Version
from training.anchors import anchors_of, load_anchors
from training.data import all_quadruples, image_sizes, used_images
from training.features import FeatureStore, feature_key, processor_fingerprint, store_key
from training.stored import Dtype, Precision

if TYPE_CHECKING:
    import pyarrow as pa

    from training.model.processing import AdaFocalProcessor
    from training.model.views import ReferenceView


@dataclass(frozen=True)
class Contents:
    """What a feature store has to hold for a benchmark and a model."""

    view: ReferenceView
    images: pa.Table
    """image_id, uri, sha256, and for a view box (x1, y1, x2, y2, whole pixels of the upright image); sorted by
    image_id, which of a view is its `view_id`."""

    @property
    def hashes(self) -> list[str]:
        """What each row shows, whatever it is called: the image's bytes, and the box it is seen through."""
        sha256s: list[str] = self.images["sha256"].to_pylist()
        if self.view == "full":
            return sha256s
        boxes = self.images["box"].to_pylist()
        return [f"{sha}#{','.join(map(str, box))}" for sha, box in zip(sha256s, boxes, strict=True)]

    def feature_key(
        self,
        tower_hash: str,
        processor: AdaFocalProcessor,
        dtype: Dtype,
        precision: Precision = "float32",
    ) -> str:
        """The key of these tokens under a tower."""
        from training.model.views import view_key

        fingerprint = processor_fingerprint(processor)
        return feature_key(tower_hash, fingerprint, dtype, view_key(self.view), precision)

    def find(self, root: str, keys: Collection[str], name: str | None = None) -> FeatureStore | None:
        """The store under a root that holds exactly this under one of the feature keys; None where none does.

        Args:
            root: URL under which versions lie.
            keys: feature keys that the model can read.
            name: name of the store, as a rule that of the benchmark; null looks among all.
        """
        place = storage.join(storage.absolute(root), "features")
        names = [name] if name else storage.list_folders(place)
        made = sorted({store_key(key, self.hashes) for key in keys})
        urls = [storage.join(place, one, key) for one in names for key in made]
        found = next((url for url in urls if storage.exists(storage.join(url, versions.MANIFEST))), None)
        if found is None:
            return None
        store = FeatureStore.open(found)
        self.require(store)
        return store

    def missing(self, root: str, keys: Collection[str], dataset: Version) -> str:
        """Why `find` found nothing, for an error message: what the newest store of this benchmark and view holds."""
        what = "" if self.view == "full" else f" of the references' views ({self.view})"
        text = f"no features{what} of {dataset.url} that this model can read under {storage.absolute(root)}"
        stale = [
            version
            for version in versions.list_versions(root, "features", dataset.manifest.name)
            if version.manifest.figures.get("view", "full") == self.view
        ]
        if not stale:
            return text
        newest = max(stale, key=lambda version: version.manifest.created_at)
        key, wanted = newest.manifest.figures["feature_key"], " or ".join(sorted(keys))
        other = f"made with key {key} (tower, its precision, preprocessing, dtype, view), the model needs {wanted}"
        return f"{text}: {newest.url} is stale, {'of other images or boxes' if key in keys else other}"

    def require(self, store: FeatureStore) -> None:
        """Make sure that a store holds this, with these bytes; see `FeatureStore.require`."""
        store.require(self.images["image_id"], self.images["sha256"])


def needed(dataset: Version, processor: AdaFocalProcessor) -> Iterator[Contents]:
    """What has to be stored: first all images of the queries and galleries, then the references' views, if any.

    Raises:
        OacirError: an image is missing in the images table, a mask is not the benchmark's, or a query has no box.
    """
    import pyarrow as pa

    images = used_images(dataset)
    yield Contents("full", images)
    if processor.reference_view == "full":
        return
    rows = all_quadruples(dataset).to_pylist()
    anchors = load_anchors(anchors_of(rows, image_sizes(dataset)), processor)
    known = {row["image_id"]: row for row in images.to_pylist()}
    views = {
        key: known[row["reference_id"]] | {"image_id": key, "box": box}
        for key, row, box in zip(anchors.reference_keys, rows, anchors.boxes, strict=True)
    }
    schema = images.schema.append(pa.field("box", pa.list_(pa.int32())))
    yield Contents(
        processor.reference_view, pa.Table.from_pylist([view for _, view in sorted(views.items())], schema)
    )


def joined(stores: Sequence[FeatureStore]) -> FeatureStore:
    """The stores that `needed` names, in its order, as one."""
    first, *views = stores
    for store in views:
        first = first.joined(store)
    return first
