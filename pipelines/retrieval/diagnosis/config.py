"""The recipe of a diagnosis."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from infra.base.config import Config, Name


class DiagnoseRecipe(Config):
    """Mistakes of one model, or of two side by side on the same queries."""

    name: Name = "diagnosis"
    """Name of the page: reports/<name>.html under the root, unless --out names a place."""
    evaluations: Annotated[list[str], Field(min_length=1, max_length=2)]
    """One or two evaluations of the same galleries (path or URL, name/key, or name: the newest of it)."""
    labels: list[str] | None = None
    """What the page calls the models; null takes the evaluations' names."""
    title: str = "Where the models go wrong"
    """Heading of the page."""
    queries: Annotated[int, Field(ge=0, le=300)] = 40
    """Queries shown side by side, those first on which the two differ most; none with one evaluation."""
    hardest: Annotated[int, Field(ge=0, le=100)] = 10
    """Hardest queries shown."""
    attention_queries: Annotated[int, Field(ge=0)] = 200
    """Queries of which the attention is measured, drawn by seed evenly over the domains; 0 measures none."""
    encode_batch_size: Annotated[int, Field(gt=0)] = 64
    """Queries per forward while the attention is measured."""
    seed: int = 0
    """Of the draw and of the intervals."""
    page_bytes: Annotated[int, Field(ge=200_000)] = 8_000_000
    """Largest size of the page; thumbnails shrink to fit, down to 48 px."""

    @model_validator(mode="after")
    def _one_label_each(self) -> Self:
        names = self.labels
        if names is not None and (len(names) != len(self.evaluations) or len(set(names)) != len(names)):
            raise ValueError(f"{names} for {len(self.evaluations)} evaluations; give each a label of its own")
        return self
