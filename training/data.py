"""What the training loop reads: quadruples as rows of the feature store, token ids and patch masks.

A set is plain numpy, made once by the driver and shared with the workers; tokens stay in the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infra.base.errors import OacirError
from infra.base.versions import Version
from pipelines.records import conform
from training.anchors import anchors_of, load_anchors
from training.distributed import share
from training.features import FeatureStore

if TYPE_CHECKING:
    import pyarrow as pa

    from training.model.processing import AdaFocalProcessor
    from training.model.views import TextEntity

Rows = npt.NDArray[np.int64]
QUADRUPLE_COLUMNS = [
    "query_id", "domain", "split", "instance_id", "category", "reference_id", "reference_box", "reference_mask_uri",
    "reference_mask_sha256", "modification_text", "target_ids",
]  # fmt: skip


class Batch(NamedTuple):
    """One worker's part of a global batch.

    Attributes:
        reference_tokens: frozen tokens of the references, float32 [b, N, D].
        target_tokens: frozen tokens of the part's distinct targets, float32 [u, N, D].
        target_index: which of them each query has, int64 [b].
        input_ids, attention_mask: texts padded to the longest of the part, int64 [b, L].
        patch_mask: 1 where the region touches a patch, float32 [b, N].
        modulate: whether any query of the global batch has a region.
        total: rows of the global batch.
    """

    reference_tokens: Tensor
    target_tokens: Tensor
    target_index: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    patch_mask: Tensor
    modulate: bool
    total: int


@dataclass(frozen=True)
class QuerySet:
    """Quadruples of one split, row-aligned arrays."""

    reference_rows: Rows
    """Row of the reference (as the model sees it) in the store, [n]."""
    target_rows: Rows
    """Row of the primary target in the store, [n]."""
    input_ids: npt.NDArray[np.int32]
    """Word pieces padded to the longest text of the set, [n, L]."""
    text_lengths: npt.NDArray[np.int32]
    """Word pieces of each text, [n]."""
    patch_masks: npt.NDArray[np.bool_]
    """Patches that the region touches, [n, N]."""

    def __len__(self) -> int:
        return len(self.reference_rows)

    def texts(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of some rows, int64 [b, L], L the longest of them."""
        lengths = torch.from_numpy(self.text_lengths[rows])
        longest = int(lengths.max()) if len(rows) else 1
        input_ids = torch.from_numpy(self.input_ids[rows, :longest]).long()
        return input_ids, (torch.arange(longest) < lengths[:, None]).long()

    def regions(self, rows: Rows) -> Tensor:
        """Patch masks of some rows, float32 [b, N]."""
        return torch.from_numpy(self.patch_masks[rows]).float()


@dataclass(frozen=True)
class Sampler:
    """The order of training as a pure function of the epoch: it resumes anywhere by being asked for that epoch.

    Every row is seen exactly once per epoch. A group's rows are permuted and cut into `ceil(rows / batch_size)` global
    batches whose sizes differ by at most one, so that no batch is much smaller than the others (the number of
    negatives stays even). Each worker takes its contiguous share of every batch.

    Where queries of an instance keep together, its rows are dealt in runs of up to `together`, drawn anew in every
    epoch, and the runs are permuted: the others of a run are the hardest negatives, the same object in another context.
    """

    groups: Rows
    """The group of each row, [n]. A batch holds rows of one group; all rows alike mix freely."""
    batch_size: int
    seed: int
    instances: Rows | None = None
    """The instance of each row, [n]; needed where `together` exceeds one."""
    together: int = 1
    """Queries of one instance that follow each other."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch."""
        _, counts = np.unique(self.groups, return_counts=True)
        return int(sum(-(-counts // self.batch_size)))

    def batches(self, epoch: int) -> list[Rows]:
        """The global batches of an epoch (from 0) in their order, the same on every worker."""
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        batches: list[Rows] = []
        for group in np.unique(self.groups):
            rows = self._order(generator, np.flatnonzero(self.groups == group))
            count = -(-len(rows) // self.batch_size)
            batches += [rows[slice(*share(len(rows), i, count))] for i in range(count)]
        return [batches[i] for i in generator.permutation(len(batches))]

    def _order(self, generator: np.random.Generator, rows: Rows) -> Rows:
        rows = generator.permutation(rows)
        if self.together == 1:
            return rows
        if self.instances is None:
            raise ValueError("together exceeds one: which instance each row shows has to be given")
        by_instance = rows[np.argsort(self.instances[rows], kind="stable")]
        owner = self.instances[by_instance]
        first = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
        within = np.arange(len(rows)) - np.repeat(first, np.diff(np.append(first, len(rows))))
        run = np.cumsum(within % self.together == 0) - 1
        place = generator.permutation(run[-1] + 1)[run]
        return by_instance[np.argsort(place, kind="stable")]


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


def load_queries(
    quadruples: pa.Table, sizes: dict[str, tuple[int, int]], store: FeatureStore, processor: AdaFocalProcessor
) -> QuerySet:
    """Quadruples as a set: texts tokenised, regions turned into patch masks, images looked up in the store.

    Args:
        quadruples: rows of the `quadruples` table.
        sizes: image_id → (width, height) of the upright image, pixels.
        store: the feature store; where the processor shows a view of the references, joined with the store of those.
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
