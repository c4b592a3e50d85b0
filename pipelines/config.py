"""The recipe of a build: source, limits, thresholds per domain, sampling, split, annotator, galleries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from infra.base import storage
from infra.base.config import Config, Name, recipe_hash
from pipelines.annotators.chat.options import EXECUTION_ONLY as CHAT_EXECUTION_ONLY
from pipelines.annotators.chat.options import ChatOptions
from pipelines.annotators.chat.prompts import prompts_hash
from pipelines.annotators.good4cir.options import Good4cirOptions
from pipelines.annotators.good4cir.questions import prompts_hash as good4cir_prompts_hash
from pipelines.annotators.people.options import PeopleOptions
from pipelines.grounding import EXECUTION_ONLY as GROUNDING_EXECUTION_ONLY
from pipelines.grounding import GroundingOptions
from pipelines.images import ImageLimits
from pipelines.sources.deepfashion2 import DeepFashion2Config
from pipelines.sources.hf_rows import HuggingFaceConfig
from pipelines.sources.image_folder import ImageFolderConfig
from pipelines.sources.landmarks import LandmarksConfig
from pipelines.sources.products10k import Products10KConfig
from pipelines.sources.stanford_cars import StanfordCarsConfig
from pipelines.sources.webdataset import WebDatasetConfig
from pipelines.sources.world import WorldSourceConfig
from pipelines.variants import VariantOptions

AnnotatorKind = Literal["plain", "world", "chat", "good4cir"]
ASKING = ("chat", "good4cir")
"""Annotators that ask a chat model."""
EXECUTION_ONLY: dict[str, Any] = {
    "workers": True, "images_per_part": True, "encoder": {"gpus"}, "chat": set(CHAT_EXECUTION_ONLY),
    "grounding": set(GROUNDING_EXECUTION_ONLY), "people": {"reviews"},
}  # fmt: skip
"""Options that change how a build runs, never what it makes."""


class DomainThresholds(Config):
    """Thresholds of one domain (METHODS section 1). They belong to the pair (domain, descriptor)."""

    tau_valid: int = Field(ge=2)
    """Fewest images of an instance; below, it is reserved for the galleries."""
    tau_high: float = Field(gt=-1.0, le=1.0)
    """A pair with a larger cosine is too similar."""
    tau_centric: float = Field(gt=-1.0, le=1.0)
    """A larger cosine to an image of the same instance counts towards tau_count."""
    tau_count: int = Field(ge=1)
    """An image that is that close to so many others of its instance is class-centric and dropped."""
    max_words: int = Field(30, ge=1)
    """Most words of a modification text."""


class Thresholds(Config):
    """Thresholds per domain, for one kind of descriptor."""

    calibrated_for: Literal["offline", "model"] = "offline"
    """What their cosines speak of: the offline descriptor, or the image model that encoder.model names."""
    default: DomainThresholds
    """For every domain that is not named."""
    domains: dict[str, DomainThresholds] = Field(default_factory=dict)
    """Domain → its thresholds."""

    def of(self, domain: str) -> DomainThresholds:
        """The thresholds of a domain."""
        return self.domains.get(domain, self.default)


class EncoderOptions(Config):
    """What images are compared with."""

    model: str | None = None
    """A Hugging Face image model (Hub id or local folder); null = the offline colour-and-gradient descriptor."""
    gpus: float = Field(0.0, ge=0.0)
    """GPUs that each worker of the model holds; 0 = CPU."""


class SplitOptions(Config):
    """How instances are dealt to train, dev and test."""

    test_share: float = Field(0.21, gt=0.0, lt=1.0)
    """Share of a domain's pairs whose instances are the test split (the paper's 79:21)."""
    dev_share: float = Field(0.05, ge=0.0, lt=1.0)
    """Share of a domain's training instances that are held out for choosing checkpoints."""


class DuplicateOptions(Config):
    """When two photos of different instances are near-duplicates: both must agree. None may lie in two splits."""

    max_bits: int = Field(8, ge=0, le=16)
    """Most bits in which their 64-bit perceptual hashes differ; saved anew, scaled or brightened differ in up to 6."""
    min_cosine: float = Field(0.9, gt=-1.0, lt=1.0)
    """Least cosine of their descriptors; belongs to the descriptor as the thresholds do."""


class GalleryOptions(Config):
    """What is added to the galleries."""

    distractors_per_domain: int = Field(1000, ge=0)
    """Most images of instances without queries in a domain's gallery, matched to the queries' categories."""
    domains: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Domain → most distractors of its galleries, where not distractors_per_domain."""
    choice: Literal["random", "hardest"] = "random"
    """Which candidates of a category enter: drawn by seed, or those most like a reference or target of the gallery."""
    dev_share: float = Field(0.2, ge=0.0, lt=1.0)
    """Share of the instances without queries that go to the dev galleries instead, as many distractors at most."""

    def most(self, domain: str) -> int:
        """Most distractors of a domain's gallery."""
        return self.domains.get(domain, self.distractors_per_domain)


class BuildRecipe(Config):
    """Photos → benchmark."""

    name: Name = "benchmark"
    """Name of the dataset version."""
    source: Annotated[
        ImageFolderConfig
        | WorldSourceConfig
        | DeepFashion2Config
        | StanfordCarsConfig
        | Products10KConfig
        | LandmarksConfig
        | WebDatasetConfig
        | HuggingFaceConfig,
        Field(discriminator="kind"),
    ]
    """Where the photos come from."""
    seed: int = 0
    """Of pair sampling, split, texts and galleries."""
    limits: ImageLimits = Field(default_factory=ImageLimits)
    """What an image may measure."""
    seconds_per_record: float | None = Field(60.0, gt=0.0)
    """Longest that reading, decoding or describing an image, or annotating a pair, may take before it is rejected
    (timeout) and the build goes on; null = no limit."""
    encoder: EncoderOptions = Field(default_factory=EncoderOptions)
    """What images are compared with."""
    variants: VariantOptions = Field(default_factory=VariantOptions)
    """Whether a group that shows an object in several variants (a car model in its colours) is split into instances."""
    thresholds: Thresholds
    """When images and pairs teach nothing; they belong to the descriptor."""
    max_pairs_per_instance: int = Field(60, ge=1)
    """Most ordered pairs of an instance; a seeded sample of the good ones."""
    duplicates: DuplicateOptions = Field(default_factory=DuplicateOptions)
    """What counts as the same photo in two instances."""
    split: SplitOptions = Field(default_factory=SplitOptions)
    """Train, dev and test."""
    annotator: Literal["auto", "plain", "world", "chat", "good4cir"] = "auto"
    """Who writes the texts; auto = the world's oracle for the world, else the plain one."""
    grounding: GroundingOptions | None = None
    """The detector that finds boxes of photos whose source has none; null = such a photo is no reference."""
    chat: ChatOptions | None = Field(None, validate_default=True)
    """The server and model of annotator = chat or good4cir."""
    good4cir: Good4cirOptions | None = Field(None, validate_default=True)
    """How annotator = good4cir lists photos and puts texts together; null = its defaults."""
    people: PeopleOptions | None = None
    """What is made of the decisions of people (`oacir review`); null = they are not applied."""
    gallery: GalleryOptions = Field(default_factory=GalleryOptions)
    """What is added to the galleries."""
    update: str | None = None
    """An earlier version of this benchmark (path, URL or name/key): its images are not opened again, its pairs not
    annotated again, its instances keep their split; null builds everything."""
    images_per_part: int = Field(256, ge=1)
    """Work is cut into parts of whole instances with at least so many images (in a large collection up to 1024); a kill
    loses the parts in flight."""
    workers: int | None = Field(None, ge=1)
    """Parallel workers; null = one per CPU of the Ray session."""

    @field_validator("thresholds")
    @classmethod
    def _belong_to_the_descriptor(cls, thresholds: Thresholds, info: ValidationInfo) -> Thresholds:
        encoder = info.data.get("encoder")
        wanted = "model" if encoder and encoder.model else "offline"
        if encoder and thresholds.calibrated_for != wanted:
            raise ValueError(
                f"thresholds calibrated for '{thresholds.calibrated_for}' say nothing of encoder.model ="
                f" {encoder.model or 'null'}; set thresholds made for it and thresholds.calibrated_for = {wanted}"
            )
        return thresholds

    @field_validator("variants")
    @classmethod
    def _can_read_labels(cls, variants: VariantOptions, info: ValidationInfo) -> VariantOptions:
        encoder = info.data.get("encoder")
        if variants.by == "labels" and encoder is not None and encoder.model is None:
            raise ValueError(
                "by labels asks an image model with a text side; set encoder.model, or by to colour or cluster"
            )
        return variants

    @field_validator("annotator")
    @classmethod
    def _knows_the_source(cls, annotator: str, info: ValidationInfo) -> str:
        source = info.data.get("source")
        if annotator == "world" and source is not None and source.kind != "world":
            raise ValueError(
                "the world's oracle knows only rendered scenes, whose exact truth it reads; for"
                f" source.kind = {source.kind} set annotator to plain or auto"
            )
        return annotator

    @field_validator("chat")
    @classmethod
    def _is_asked_for(cls, chat: ChatOptions | None, info: ValidationInfo) -> ChatOptions | None:
        annotator = info.data.get("annotator")
        if annotator in ASKING and chat is None:
            raise ValueError(f"annotator = {annotator} needs chat.base_url and chat.model")
        if chat is not None and annotator in ("auto", "plain", "world"):
            raise ValueError(f"has no effect with annotator = {annotator}; set annotator to chat or good4cir")
        return chat

    @field_validator("good4cir")
    @classmethod
    def _is_the_annotator(
        cls, options: Good4cirOptions | None, info: ValidationInfo
    ) -> Good4cirOptions | None:
        annotator = info.data.get("annotator")
        if annotator == "good4cir":
            return options or Good4cirOptions()
        if options is not None and annotator is not None:
            raise ValueError(f"has no effect with annotator = {annotator}; set annotator to good4cir")
        return options

    def asked_as(self) -> dict[str, Any] | None:
        """What a chat model's texts hang on, of the options; None without one."""
        if self.chat is None:
            return None
        asked = self.chat.model_dump(mode="json", exclude=set(CHAT_EXECUTION_ONLY))
        return asked | ({"good4cir": self.good4cir.model_dump(mode="json")} if self.good4cir else {})

    def grounded_as(self) -> dict[str, Any] | None:
        """What boxes hang on, of the detector's options; None without one."""
        return self.grounding.model_dump(exclude=set(GROUNDING_EXECUTION_ONLY)) if self.grounding else None

    def prompts(self) -> str | None:
        """Hash of the prompts that a chat model is asked with; None without one."""
        if self.chat is None:
            return None
        return good4cir_prompts_hash() if self.annotator == "good4cir" else prompts_hash()

    def key(self, fingerprint: str, *others: str) -> str:
        """The key of the version this recipe makes of an input with that fingerprint.

        Args:
            fingerprint: the source's.
            others: content hashes of the version that it updates, since splits depend on it, and of what people said;
                of each where there is one.
        """
        data = self.model_dump(mode="json", exclude=EXECUTION_ONLY | {"update": True})
        if "root" in data["source"]:
            data["source"]["root"] = storage.absolute(data["source"]["root"])
        for section in ("grounding", "good4cir", "people"):
            if data[section] is None:
                del data[section]
        if data["chat"] is None:  # a recipe that has none keeps the key it had before there was one
            del data["chat"]
        else:
            data["chat"]["prompts"] = self.prompts()
        return recipe_hash(data, fingerprint, *others)
