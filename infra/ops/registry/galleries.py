"""Galleries that travel with a registered model: their images' vectors, so that it ranks them by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.base.errors import OacirError

if TYPE_CHECKING:
    import torch

    from infra.base.versions import Version
    from pipelines.retrieval.engine import Gallery, TokenSource
    from training.model.adafocal import AdaFocalModel
    from training.model.processing import AdaFocalProcessor

INDEX, VECTORS = "galleries.json", "vectors"
SAID = ("name", "image_ids", "instance_ids", "sha256", "dataset_hash")
"""Of a gallery in the index."""


@dataclass(frozen=True)
class Encoded:
    """A gallery whose images are encoded.

    Attributes:
        name: what it is asked for by: all, a split, or domain/split.
        image_ids: in order.
        instance_ids: of each.
        sha256: of each image's bytes; a query never finds its own reference.
        dataset_hash: content hash of the benchmark that it is of.
        vectors: float32 [T, M, d].
    """

    name: str
    image_ids: list[str]
    instance_ids: list[str]
    sha256: list[str]
    dataset_hash: str
    vectors: torch.Tensor

    @property
    def gallery(self) -> Gallery:
        """As the engine takes it."""
        from pipelines.retrieval.engine import Gallery

        return Gallery(self.name, self.image_ids, self.instance_ids)


def encode(
    model: AdaFocalModel,
    processor: AdaFocalProcessor,
    source: TokenSource,
    dataset: Version,
    names: Sequence[str],
) -> list[Encoded]:
    """The galleries of a benchmark, their vectors computed.

    Raises:
        VersionError: there is no gallery of a name.
    """
    import torch

    from pipelines.retrieval.engine import Encoder
    from pipelines.retrieval.query import select_gallery

    encoder = Encoder(model, processor, source)
    images = dataset.table("images", ["image_id", "sha256"]).to_pylist()
    sha256 = {row["image_id"]: row["sha256"] for row in images}
    found = []
    for name in names:
        gallery, _ = select_gallery(dataset, name)
        found.append(
            Encoded(
                name,
                gallery.image_ids,
                gallery.instance_ids,
                [sha256[i] for i in gallery.image_ids],
                dataset.manifest.content_hash,
                torch.cat(list(encoder.targets(gallery.image_ids))).cpu(),
            )
        )
    return found


def write(folder: Path, galleries: Sequence[Encoded]) -> None:
    """Write galleries into a folder: safetensors and JSON."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    index = []
    for number, gallery in enumerate(galleries):
        file = f"{number:03d}.safetensors"
        save_file({VECTORS: gallery.vectors.contiguous()}, str(folder / file))
        index.append({"file": file, **{name: getattr(gallery, name) for name in SAID}})
    (folder / INDEX).write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")


def read(folder: Path) -> dict[str, Encoded]:
    """Galleries of a folder by name; none where it holds none.

    Raises:
        OacirError: vectors are missing or do not fit their index.
    """
    from safetensors.torch import load_file

    if not (folder / INDEX).is_file():
        return {}
    found: dict[str, Encoded] = {}
    for entry in json.loads((folder / INDEX).read_text(encoding="utf-8")):
        file = folder / entry.pop("file")
        vectors = load_file(str(file))[VECTORS]
        if len(vectors) != len(entry["image_ids"]):
            raise OacirError(
                f"{file}: {len(vectors)} vectors for {len(entry['image_ids'])} images; register again"
            )
        found[entry["name"]] = Encoded(**entry, vectors=vectors)
    return found
