"""Rendering: place, objects, weather and light put together; the exact box of the anchored object's visible part."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from pipelines.world.config import WorldConfig
from pipelines.world.looks import aspect_of, draw_object, look_of
from pipelines.world.places import PLACES, STUDIO, paint_place
from pipelines.world.scenes import STUDIO_PLACE, Placement, SceneSpec

Box = tuple[float, float, float, float]
COLUMNS = {"left": 0.26, "middle": 0.5, "right": 0.74}
ROWS = {"near": 0.96, "far": 0.52}
"""Where the object's foot stands, as a fraction of the image side."""
SIZE = {"near": 0.46, "far": 0.42}
"""Side of a square of the object's area, as a fraction of the image side."""
LARGEST = {"near": 0.5, "far": 0.46}
"""Most height and width, as a fraction of the image side."""
STUDIO_SIZE = 0.6
STUDIO_LARGEST = 0.86
ON_OBJECTS = 0.12
"""Share of the tint of light and the veil of weather that reaches the objects; the ground gets all of it."""
TINT: dict[str, tuple[float, float, float]] = {
    "daylight": (1.0, 1.0, 1.0),
    "sunset": (1.08, 0.84, 0.66),
    "night": (0.46, 0.52, 0.74),
    "lamplight": (1.04, 0.88, 0.62),
    "neon": (0.74, 0.7, 1.04),
    "dim": (0.56, 0.56, 0.6),
}


@dataclass(frozen=True)
class Picture:
    """A rendered scene."""

    image: Image.Image
    """RGB, `image_size_px` on each side."""
    box: Box
    """x1, y1, x2, y2 in pixels, half-open: the visible part of the anchored object."""


def paint(config: WorldConfig, spec: SceneSpec) -> Picture:
    """Render one scene; the same options and spec give the same pixels."""
    size = config.image_size_px * config.supersampling
    rng = random.Random(spec.noise_key)
    context = spec.context
    is_studio = context.place == STUDIO_PLACE
    image = paint_place(STUDIO if is_studio else PLACES[spec.domain][context.place], size, rng)
    anchor = Placement(spec.instance_index, context.position, context.distance, context.pose)
    covered = Image.new("L", (size, size), 0)
    visible: Image.Image | None = None
    for placement in sorted((anchor, *spec.companions), key=_depth):
        cut, corner = _cut_out(config, spec, placement, size, rng, is_studio)
        if not is_studio:
            _drop_shadow(image, cut, corner)
        image.paste(cut, corner, cut)
        covered.paste(255, corner, cut.getchannel("A"))
        if placement is anchor:
            visible = Image.new("L", (size, size), 0)
            visible.paste(cut.getchannel("A"), corner)
        elif visible is not None:
            visible.paste(0, corner, cut.getchannel("A"))
    if visible is None:
        raise AssertionError("the anchor is always among the placements")
    if spec.jitter:
        shift = round(spec.jitter * size) or 1
        image, visible, covered = (ImageChops.offset(i, shift, 0) for i in (image, visible, covered))
    pixels: np.ndarray = np.asarray(image.reduce(config.supersampling), dtype=np.float32)
    ground = np.float32(1) - np.asarray(covered.reduce(config.supersampling), dtype=np.float32)[
        ..., None
    ] / np.float32(255)
    strength = np.float32(ON_OBJECTS) + np.float32(1 - ON_OBJECTS) * ground  # [H, W, 1]
    pixels = _weather(pixels, context.weather, strength, rng)
    pixels = pixels * (
        np.float32(1) + strength * (np.asarray(TINT[context.light], dtype=np.float32) - np.float32(1))
    )
    pixels += np.float32(rng.uniform(-3, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    bounds = visible.point([0] * 128 + [255] * 128).getbbox() or (0, 0, size, size)
    x1, y1, x2, y2 = (edge / config.supersampling for edge in bounds)
    return Picture(image, (x1, y1, x2, y2))


def _depth(placement: Placement) -> tuple[bool, str]:
    return placement.distance == "near", placement.position


def _cut_out(
    config: WorldConfig, spec: SceneSpec, placement: Placement, size: int, rng: random.Random, is_studio: bool
) -> tuple[Image.Image, tuple[int, int]]:
    look = look_of(config.seed, spec.domain, placement.index, config.palette_family)
    aspect = aspect_of(spec.domain, look)
    side = (STUDIO_SIZE if is_studio else SIZE[placement.distance]) * rng.uniform(0.96, 1.04)
    largest = STUDIO_LARGEST if is_studio else LARGEST[placement.distance]
    height = min(side / aspect**0.5, largest, largest / aspect)
    # heights in steps of 1/48 of the image, so that the cache of drawn objects is hit
    cut = draw_object(spec.domain, look, max(4, round(height * 48) * size // 48))
    if placement.pose == "left":
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif placement.pose == "lying":
        cut = cut.transpose(Image.Transpose.ROTATE_90)
    elif placement.pose == "tilted":
        cut = cut.rotate(10 * rng.choice((-1, 1)), resample=Image.Resampling.BILINEAR, expand=True)
    x = COLUMNS[placement.position] + rng.uniform(-0.03, 0.03)
    foot = 0.93 if is_studio else ROWS[placement.distance] + rng.uniform(-0.02, 0.02)
    left = round(x * size - cut.width / 2)
    left = min(max(left, -cut.width // 6), size - cut.width + cut.width // 6)
    return cut, (left, round(foot * size - cut.height))


def _drop_shadow(image: Image.Image, cut: Image.Image, corner: tuple[int, int]) -> None:
    thick = max(2, image.width // 40)
    foot = corner[1] + cut.height
    area = (corner[0], foot - thick, corner[0] + cut.width, foot + thick)
    patch = image.crop(area)
    mask = Image.new("L", patch.size, 0)
    ImageDraw.Draw(mask).ellipse([0, 0, patch.width - 1, patch.height - 1], fill=110)
    image.paste((20, 20, 26), area[:2], mask)


def _weather(pixels: np.ndarray, weather: str, strength: np.ndarray, rng: random.Random) -> np.ndarray:
    if weather == "clear":
        return pixels
    size = pixels.shape[0]
    if weather == "fog":
        return pixels + (np.float32(214) - pixels) * _fog(size) * strength
    fall = Image.new("L", (size, size), 0)
    pen = ImageDraw.Draw(fall)
    if weather == "rain":
        for _ in range(70):
            x, y = rng.uniform(0, 1.1) * size, rng.uniform(-0.1, 1) * size
            pen.line([x, y, x - size * 0.03, y + size * 0.1], fill=150)
        grey = pixels.mean(axis=2, keepdims=True)
        wet = (pixels * np.float32(0.6) + grey * np.float32(0.4)) * np.float32(0.75)
        pixels = pixels + (wet - pixels) * strength
    else:
        for _ in range(90):
            x, y, r = rng.uniform(0, 1) * size, rng.uniform(0, 1) * size, rng.uniform(0.006, 0.014) * size
            pen.ellipse([x - r, y - r, x + r, y + r], fill=255)
        pixels = pixels + (np.float32(248) - pixels) * _snow(size) * strength
    cover = (
        np.asarray(fall, dtype=np.float32)[..., None]
        / np.float32(255)
        * (np.float32(0.4) + np.float32(0.6) * strength)
    )
    return pixels + (np.float32(244) - pixels) * cover


@lru_cache(maxsize=8)
def _fog(size: int) -> np.ndarray:
    return np.linspace(0.62, 0.25, size, dtype=np.float32)[:, None, None]


@lru_cache(maxsize=8)
def _snow(size: int) -> np.ndarray:
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    return (np.float32(0.12) + np.float32(0.3) * (ramp > 0.86) + np.float32(0.1) * (ramp > 0.6))[
        :, None, None
    ]
