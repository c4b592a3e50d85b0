"""Recipes of evaluation, single queries and reports."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infra.base.config import Config, Name, recipe_hash
from pipelines.retrieval.foreign.config import ForeignSection
from pipelines.retrieval.robustness.config import PerturbSection

Positive = Annotated[int, Field(gt=0)]


class EvaluateRecipe(Config):
    """A model ranks the galleries of a benchmark's split."""

    name: Name = "evaluation"
    """Name of the evaluation; the report shows it as the model's name."""
    model: str
    """A run (path or URL, name/key, or name: the newest of it), or a directory of an exported model."""
    dataset: str = "world"
    """The benchmark: a path or URL of a version, name/key, or name (the newest of it)."""
    features: str | None = None
    """The feature store of the dataset's images; null finds the one of this model and dataset under the root."""
    split: Literal["dev", "test"] = "test"
    """Which queries and galleries."""
    top_k: Annotated[int, Field(ge=10, le=1000)] = 50
    """Candidates kept per query in the table of rankings."""
    encode_batch_size: Positive = 256
    """Images or queries per forward."""
    queries_per_chunk: Positive = 256
    """Queries ranked at a time; only memory depends on it, never a rank."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 1000
    """Resamples for the 95 % intervals."""
    blind_references: Positive = 4
    """Foreign references (or texts) over which the blind baselines average."""
    seed: int = 0
    """Seed of the bootstrap and of the draws of the blind baselines."""
    foreign: ForeignSection | None = None
    """How a model that is not ours is asked: `--model` is then a folder or name of a CLIP, SigLIP, BLIP-2 or Qwen-VL
    embedding model of Hugging Face; null takes a model of this package."""
    perturb: PerturbSection = Field(default_factory=PerturbSection)
    """What is changed about the queries, to measure robustness; the galleries stay as they are."""

    def identity(self, *content_hashes: str) -> str:
        """The key of an evaluation: equal for recipes that give equal figures on these contents."""
        places = {"name", "model", "dataset", "features", "encode_batch_size", "queries_per_chunk"}
        asked = self.model_dump(mode="json", exclude={*places, "perturb", "foreign"})
        if self.foreign is not None:
            asked["foreign"] = self.foreign.model_dump(mode="json")
        if changed := self.perturb.stated():
            asked["perturb"] = changed
        return recipe_hash(asked, *content_hashes)


class AnswerRecipe(Config):
    """Answers to the queries whose targets a server keeps (CIRR test1, CIRCO test)."""

    name: Name = "answers"
    """Name of the files' folder: answers/<name>-<benchmark> under the root, unless --out names a place."""
    model: str
    """A run (path or URL, name/key, or name: the newest of it), or a directory of an exported model."""
    dataset: str = "cirr"
    """An import of the benchmark with its hidden split: a path or URL of a version, name/key, or name."""
    features: str | None = None
    """The feature store of the dataset's images; null finds the one of this model and dataset under the root."""
    encode_batch_size: Positive = 256
    """Images or queries per forward."""
    foreign: ForeignSection | None = None
    """How a model that is not ours is asked, see evaluate; null takes a model of this package."""
    workers: Positive = 1
    """Ray workers that encode and search a part of the gallery each; 1 does it in this process; equal answers."""


class QueryRecipe(Config):
    """One image, one box, one sentence."""

    model: str
    """A run (path or URL, name/key, or name: the newest of it), or a directory of an exported model."""
    dataset: str = "world"
    """The benchmark whose images are searched: a path or URL of a version, name/key, or name."""
    features: str | None = None
    """The feature store of the dataset's images; null finds it under the root, and without one encodes the images."""
    gallery: str = "test"
    """What is searched: all (every image), a split (test, dev), or one gallery (domain/split)."""
    image: str
    """Path or URL of the reference image."""
    box: str | None = None
    """The object's box, x1,y1,x2,y2 in pixels of the upright image; null asks without a box (no modulation)."""
    mask: str | None = None
    """Path or URL of the object's mask, in place of the box: a PNG of the upright image's size, not 0 inside; null asks
    with the box."""
    text: str
    """What should change, in one sentence."""
    category: str | None = None
    """What the object is called; needed for a model whose texts name it, null for any other."""
    top_k: Annotated[int, Field(ge=1, le=1000)] = 10
    """How many images to return."""
    picture: str | None = None
    """Where to write a PNG of the query and its answer; null writes none."""
    encode_batch_size: Positive = 256
    """Images per forward."""

    @model_validator(mode="after")
    def _one_region(self) -> Self:
        if self.box is not None and self.mask is not None:
            raise ValueError("box and mask mark the same object; give one of them")
        return self


class ReportRecipe(Config):
    """One page over any number of evaluations."""

    page: Literal["comparison", "leaderboard"] = "comparison"
    """comparison: evaluations of the same galleries in detail; leaderboard: any evaluations, a sorted table for each
    benchmark, with Markdown and CSV beside the page."""
    name: Name | None = None
    """Name of the page: reports/<name>.html under the root, unless --out names a place; null takes report, or
    leaderboard."""
    evaluations: list[str] = Field(default=[])
    """Evaluations (path or URL, name/key, or name: the newest of it), in the order of the page. A comparison needs one
    or more; a leaderboard without any takes every one under the root."""
    labels: list[str] | None = None
    """What the page calls the models, in the order of the evaluations; null takes the evaluations' names. One label
    given several times names seeds of one model, which are then compared as such."""
    title: str = "Object-anchored composed image retrieval"
    """Heading of the page."""
    queries: Annotated[int, Field(ge=0, le=100)] = 20
    """Queries shown with their rankings, drawn by seed over the domains."""
    seed: int = 0
    """Seed of the draw."""
    attention: bool = True
    """Load the models and show where they looked, with β and without."""
    page_bytes: Annotated[int, Field(ge=200_000)] = 5_000_000
    """Largest size of the page; thumbnails shrink to fit, down to 48 px."""

    @property
    def called(self) -> str:
        """The page's name."""
        return self.name or {"comparison": "report", "leaderboard": "leaderboard"}[self.page]

    @model_validator(mode="after")
    def _something_to_compare(self) -> Self:
        if self.page == "comparison" and not self.evaluations:
            raise ValueError(
                "a comparison needs evaluations; name one or more, or ask for --page leaderboard"
            )
        return self

    @model_validator(mode="after")
    def _one_label_each(self) -> Self:
        if self.labels is not None and len(self.labels) != len(self.evaluations):
            raise ValueError(
                f"{len(self.labels)} labels for {len(self.evaluations)} evaluations; give one for each"
            )
        return self
