"""Options of the procedural world: sizes, counts and how often the hard cases occur."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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
