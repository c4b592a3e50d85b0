"""A registered model as others call it: MLflow's pyfunc over the exported model, with nothing but this package."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

from infra.base import storage
from infra.base.errors import OacirError, RecipeError

if TYPE_CHECKING:
    from PIL import Image

    from pipelines.retrieval.engine import Floats

MODEL, GALLERIES = "model", "galleries"
"""Names of the artifacts."""
ROWS_AT_ONCE = 32


def signature() -> ModelSignature:
    """What goes in and comes out.

    Of `image` (bytes) and `image_url` (a path or s3:// URL) a row has one; `box` is x1, y1, x2, y2 in pixels of the
    upright image and may be left away; `text` says what changes; `category` is needed where the model's texts name the
    object. `encode` is query, or target for the vectors of gallery images; a `gallery` that came with the model is
    ranked, its `top_k` best are told.
    """
    optional: dict[str, Any] = {"required": False}
    inputs = [
        ColSpec(DataType.binary, "image", **optional),
        ColSpec(DataType.string, "image_url", **optional),
        ColSpec(Array(DataType.double), "box", **optional),
        ColSpec(DataType.string, "text", **optional),
        ColSpec(DataType.string, "category", **optional),
    ]
    outputs = [
        ColSpec(Array(DataType.float), "embedding", **optional),
        ColSpec(Array(DataType.float), "beta", **optional),
        ColSpec(Array(DataType.string), "image_ids", **optional),
        ColSpec(Array(DataType.string), "instance_ids", **optional),
        ColSpec(Array(DataType.float), "scores", **optional),
        ColSpec(Array(Array(DataType.float)), "targets", **optional),
    ]
    params = [
        ParamSpec("encode", DataType.string, "query"),
        ParamSpec("gallery", DataType.string, ""),
        ParamSpec("top_k", DataType.long, 10),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema(params))


def input_example() -> pd.DataFrame:
    """One query: a grey picture, a box on it, a sentence."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (128, 128, 128)).save(stream, "PNG")
    row = {
        "image": stream.getvalue(),
        "box": [8.0, 8.0, 40.0, 40.0],
        "text": "Place it on a wooden table.",
        "category": "object",
    }
    return pd.DataFrame([row])


@dataclass(frozen=True)
class Row:
    """One row of the input, its image decoded."""

    image: Image.Image
    sha256: str
    box: tuple[float, float, float, float] | None
    text: str
    category: str | None


class Retriever(PythonModel):
    """Loads model and galleries once; answers in batches."""

    def load_context(self, context: Any) -> None:
        """Read what lies beside this code."""
        import torch

        from infra.ops.registry import galleries
        from infra.ops.registry.packaging import TOKENS
        from pipelines.retrieval.engine import Encoder
        from pipelines.retrieval.inputs import ImageTokens
        from training.export import open_model

        model, self.processor = open_model(context.artifacts[MODEL])
        model.to("cuda" if torch.cuda.is_available() else "cpu")  # tokens are made where the model is by now
        types = [context.model_config[name] for name in TOKENS]
        self.tokens = ImageTokens(model, self.processor, {}, *types)
        self.encoder = Encoder(model, self.processor, self.tokens)
        folder = context.artifacts.get(GALLERIES)
        self.galleries = {} if folder is None else galleries.read(Path(folder))

    def predict(
        self,
        context: Any,  # noqa: ARG002  (MLflow passes it)
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Answer every row; see `signature`.

        Raises:
            OacirError: an image cannot be read, a box leaves it, or no such gallery; with the row.
        """
        asked = params or {}
        encode, name = str(asked.get("encode") or "query"), str(asked.get("gallery") or "")
        if encode not in ("query", "target"):
            raise RecipeError([f"encode is {encode!r}; allowed are query and target"])
        top_k = int(asked.get("top_k", 10))
        if top_k < 1:
            raise RecipeError([f"top_k is {top_k}; it counts images from 1"])
        if name and name not in self.galleries:
            known = ", ".join(sorted(self.galleries)) or "none"
            raise RecipeError([f"gallery {name!r} did not come with this model; those that did: {known}"])
        records = [{str(k): v for k, v in row.items()} for row in model_input.to_dict("records")]
        answers: list[dict[str, Any]] = []
        for start in range(0, len(records), ROWS_AT_ONCE):
            rows = [_row(start + i, r) for i, r in enumerate(records[start : start + ROWS_AT_ONCE])]
            if encode == "target":
                answers += self._targets(rows)
            else:
                answers += self._queries(start, rows, name, top_k)
        return pd.DataFrame(answers, index=model_input.index)

    def _targets(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        import torch

        with torch.inference_mode():
            tokens = self.tokens.of_images([row.image for row in rows])
            vectors = self.encoder.model.encode_target(tokens.to(self.encoder.device)).float().cpu()
        return [{"targets": vector.tolist()} for vector in vectors.reshape(len(rows), -1, vectors.shape[-1])]

    def _queries(self, start: int, rows: Sequence[Row], name: str, top_k: int) -> list[dict[str, Any]]:
        import torch

        self._check(start, rows)
        inputs = self.processor(
            [row.image for row in rows],
            [row.text for row in rows],
            [row.box for row in rows],
            [row.category for row in rows],
            [None] * len(rows),
        )
        with torch.inference_mode():
            parts = (self.tokens.of_pixels(inputs.pixels), *inputs[1:])
            output = self.encoder.model.encode_query(*(part.to(self.encoder.device) for part in parts))
            vectors = output.embedding.float().cpu()
        marked = inputs.patch_mask.any(dim=1).tolist()
        betas = [None] * len(rows) if output.beta is None else output.beta.float().tolist()
        answers = [
            {"embedding": vector, "beta": beta if used else None}
            for vector, beta, used in zip(vectors.tolist(), betas, marked, strict=True)
        ]
        if name:
            for answer, ranked in zip(answers, self._ranked(vectors, rows, name, top_k), strict=True):
                answer |= ranked
        return answers

    def _ranked(self, vectors: Any, rows: Sequence[Row], name: str, top_k: int) -> list[dict[str, Any]]:
        from pipelines.retrieval.engine import score, top

        encoded = self.galleries[name]
        scores: Floats = score(self.encoder.model.score, vectors, encoded.vectors)
        of_bytes = dict(zip(encoded.sha256, encoded.image_ids, strict=True))
        gallery = encoded.gallery
        columns, best = top(scores, gallery, [of_bytes.get(row.sha256) for row in rows], top_k)
        return [
            {
                "image_ids": [gallery.image_ids[c] for c in found],
                "instance_ids": [gallery.instance_ids[c] for c in found],
                "scores": values,
            }
            for found, values in zip(columns, best, strict=True)
        ]

    def _check(self, start: int, rows: Sequence[Row]) -> None:
        """What the model was trained to be told has to be there."""
        for number, row in enumerate(rows, start):
            if not row.text.strip():
                raise RecipeError([f"row {number}: text is empty; say in a sentence what should change"])
            if self.processor.text_entity == "named" and not row.category:
                raise RecipeError([f"row {number}: category is missing; this model's texts name the object"])
            if self.processor.reference_view != "full" and row.box is None:
                raise RecipeError([f"row {number}: box is missing; this model needs it"])


def _row(number: int, record: Mapping[str, Any]) -> Row:
    from pipelines.images import ImageLimits, ImageRejected, decode
    from pipelines.retrieval.query import parse_box

    data, url = record.get("image"), _text(record.get("image_url"))
    data = bytes(data) if isinstance(data, bytes | bytearray) else None
    if (data is None) == (not url):
        raise RecipeError([f"row {number}: give the image's bytes in image or where it lies in image_url"])
    if data is None:
        try:
            data = storage.read_bytes(storage.absolute(url))
        except OacirError as error:
            raise OacirError(f"row {number}: image_url {error}") from error
    try:
        image = decode(data, ImageLimits(min_side_px=1)).image
    except ImageRejected as error:
        raise OacirError(f"row {number}: image cannot be read: {error.reason} ({error.detail})") from error
    box = record.get("box")
    numbers = None if box is None or isinstance(box, float) else [float(v) for v in box]
    region = None if not numbers else parse_box(",".join(map(str, numbers)), image.size)
    return Row(
        image,
        hashlib.sha256(data).hexdigest(),
        region,
        _text(record.get("text")),
        _text(record.get("category")) or None,
    )


def _text(value: Any) -> str:
    """A text column's value; what is missing came as None or NaN."""
    return value if isinstance(value, str) else ""
