"""Options of the procedural world: sizes, counts and how often the hard cases occur."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from infra.base.config import Config

Domain = Literal["fashion", "car", "product", "landmark"]
DOMAINS: tuple[Domain, ...] = ("fashion", "car", "product", "landmark")


class WorldConfig(Config):
    """A world of instances and scenes; the same options give the same bytes anywhere."""

    seed: int = 0
    """Everything is derived from it: looks, contexts, pixels."""
    domains: tuple[Domain, ...] = Field(DOMAINS, min_length=1)
    """Which of the four domains to make."""
    image_size_px: int = Field(112, ge=32, le=1024)
    """Side of the square images."""
    instances_per_domain: int = Field(350, ge=2, le=1_000_000)
    """Instances (distinct looks) of each domain, those of the reserve included."""
    scenes_per_instance: int = Field(5, ge=1, le=6)
    """Ordinary scenes of an instance; each at another place, so at most one per place of the domain."""
    places_per_instance: int | None = Field(None, ge=1, le=6)
    """Its scenes lie at so many places instead, those at one place under another light or in other company. Texts then
    state everything that differs of place, light and company, and nothing else: what they leave unsaid stays as on the
    reference, which has to be looked at outside the box too. null: each at another place, one more change stated."""
    varied_company: bool = False
    """With places_per_instance: a scene has from no foreign object to `companions` of them, and texts say how many."""
    palette_family: int = Field(1, ge=1, le=6)
    """So many instances in a row share their palette and differ in shape; with more than 1 the first foreign object in
    a scene is of the anchored one's family. 1: every instance has its own."""
    reserve_fraction: float = Field(0.1, ge=0.0, le=1.0)
    """Share of instances that get only `reserve_scenes` scenes and end up as distractors in the galleries."""
    reserve_scenes: int = Field(2, ge=1, le=6)
    """Ordinary scenes of an instance of the reserve."""
    companions: int = Field(2, ge=0, le=2)
    """Foreign objects in a scene: other instances of the same domain, as large as the anchored one."""
    near_duplicate_fraction: float = Field(0.03, ge=0.0, le=1.0)
    """Share of ordinary scenes that are photographed a second time with a tiny jitter."""
    class_centric_fraction: float = Field(0.03, ge=0.0, le=1.0)
    """Share of instances that also have a set of catalogue-like views that look alike."""
    class_centric_views: int = Field(4, ge=1, le=20)
    """Catalogue-like views in such a set."""
    supersampling: int = Field(2, ge=1, le=4)
    """Shapes are drawn this many times larger and averaged down, which smooths their edges."""
    jpeg_quality: int = Field(90, ge=50, le=100)
    """Quality of the JPEG files."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.varied_company and self.places_per_instance is None:
            raise ValueError("varied_company is said by texts that name all changes; set places_per_instance")
        return self
