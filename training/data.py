"""From a benchmark's tables to what the training loop reads: rows of the feature store, token ids and patch masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from infra.base.errors import OacirError
from infra.base.versions import Version
from pipelines.records import conform
from training.anchors import anchors_of, load_anchors
from training.batches import QuerySet, Rows

if TYPE_CHECKING:
    import pyarrow as pa

    from training.model.processing import AdaFocalProcessor
    from training.model.views import TextEntity

QUADRUPLE_COLUMNS = [
    "query_id", "domain", "split", "instance_id", "category", "reference_id", "reference_box", "reference_mask_uri",
    "reference_mask_sha256", "modification_text", "target_ids",
]  # fmt: skip


def batch_groups(quadruples: pa.Table, one_domain_per_batch: bool) -> Rows:
    """The sampler's group of each quadruple, [n]: its domain, or one group for all."""
    if not one_domain_per_batch:
        return np.zeros(len(quadruples), np.int64)
    domains = np.array(quadruples["domain"].to_pylist())
    groups: Rows = np.unique(domains, return_inverse=True)[1].astype(np.int64)
    return groups


def batch_instances(quadruples: pa.Table) -> Rows:
    """The number of each quadruple's instance, [n]."""
    names = np.array(quadruples["instance_id"].to_pylist())
    numbers: Rows = np.unique(names, return_inverse=True)[1].astype(np.int64)
    return numbers


class ImageRows(Protocol):
    """What knows images by a row number: a feature store, or a benchmark's image files (`pixels.ImageSet`)."""

    @property
    def version(self) -> Version:
        """Where they lie."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D) of an image's tokens."""
        ...

    def rows(self, image_ids: Sequence[str]) -> Rows:
        """The row of each image."""
        ...


def load_queries(
    quadruples: pa.Table, sizes: dict[str, tuple[int, int]], store: ImageRows, processor: AdaFocalProcessor
) -> QuerySet:
    """Quadruples as a set: texts tokenised, regions turned into patch masks, images looked up in the store.

    Args:
        quadruples: rows of the `quadruples` table.
        sizes: image_id → (width, height) of the upright image, pixels.
        store: the images themselves, or the feature store; where the processor shows a view of the references, joined
            with the store of those.
        processor: the model's.

    Raises:
        OacirError: an image is missing in the store, or a mask is not the benchmark's.
    """
    targets = [ids[0] for ids in quadruples["target_ids"].to_pylist()]
    input_ids, mask = processor.texts(
        quadruples["modification_text"].to_pylist(),
        quadruples["category"].to_pylist(),
        quadruples["query_id"].to_pylist(),
    )
    anchors = load_anchors(anchors_of(quadruples.to_pylist(), sizes), processor)
    if anchors.patch_masks.shape[1] != store.shape[0]:
        raise OacirError(
            f"{store.version.url}: {store.shape[0]} tokens per image, the processor makes"
            f" {anchors.patch_masks.shape[1]}"
        )
    return QuerySet(
        store.rows(anchors.reference_keys),
        store.rows(targets),
        input_ids.numpy().astype(np.int32),
        mask.sum(1).numpy().astype(np.int32),
        anchors.patch_masks.numpy().astype(np.bool_),
    )


def training_texts(quadruples: pa.Table, entity: TextEntity) -> list[str]:
    """The modification texts as the model reads them: what a tokenizer is trained on."""
    from training.model.views import name_entity

    columns = (quadruples[name].to_pylist() for name in ("modification_text", "category", "query_id"))
    return [name_entity(text, entity, *known) for text, *known in zip(*columns, strict=True)]


def read_quadruples(dataset: Version, split: str, without: Sequence[str] = ()) -> pa.Table:
    """The quadruples of a split, sorted by query_id so that no file layout changes the training.

    Args:
        dataset: the benchmark.
        split: train, dev or test.
        without: domains that are left out.

    Raises:
        OacirError: the benchmark has no such domain to leave out.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = all_quadruples(dataset)
    domains = pc.unique(table["domain"]).to_pylist()
    if unknown := sorted(set(without) - set(domains)):
        raise OacirError(
            f"{dataset.url}: training.leave_out_domains names {', '.join(unknown)}; its domains are"
            f" {', '.join(sorted(domains))}"
        )
    table = table.filter(pc.equal(table["split"], split))
    left_out = pc.is_in(table["domain"], value_set=pa.array(list(without), pa.string()))
    return table.filter(pc.invert(left_out)).sort_by("query_id")


def all_quadruples(dataset: Version) -> pa.Table:
    """All quadruples; a column that an older benchmark lacks (masks) is null."""
    return conform(dataset.table("quadruples"), "quadruples").select(QUADRUPLE_COLUMNS)


def image_sizes(dataset: Version) -> dict[str, tuple[int, int]]:
    """image_id → (width, height) of the upright image, pixels."""
    table = dataset.table("images", ["image_id", "width", "height"])
    values = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
    return dict(zip(table["image_id"].to_pylist(), values, strict=True))


def used_images(dataset: Version) -> pa.Table:
    """image_id, uri, sha256 of every image that a quadruple or a gallery uses, sorted by image_id.

    Raises:
        OacirError: a used image is missing in the images table.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    quadruples = dataset.table("quadruples", ["reference_id", "target_ids"])
    gallery = dataset.table("gallery", ["image_id"])
    used = pc.unique(
        pa.chunked_array(
            [
                *quadruples["reference_id"].chunks,
                *pc.list_flatten(quadruples["target_ids"]).chunks,
                *gallery["image_id"].chunks,
            ],
            pa.string(),
        )
    )
    images = dataset.table("images", ["image_id", "uri", "sha256"])
    found = images.filter(pc.is_in(images["image_id"], value_set=used)).sort_by("image_id")
    if len(found) != len(used):
        missing: Sequence[str] = sorted(set(used.to_pylist()) - set(found["image_id"].to_pylist()))
        raise OacirError(
            f"{dataset.url}: {len(missing)} images of quadruples or gallery are not in its images table,"
            f" first {missing[0]}; run `oacir data verify`"
        )
    return found
