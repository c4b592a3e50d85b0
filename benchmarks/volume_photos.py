"""Distinct JPEGs by the hundred thousand, drawn from a seed, as an `image_folder` of instances with boxes.

python -m benchmarks.volume_photos FOLDER --images 200000 --seed 0

An instance is a drawn scene and a drawn object; its images show both at other places, sizes and brightness, under
grain that gives the files the size of photos, with the image's number stamped into a corner: no two are equal. The same
seed gives the same files however many processes draw them; a second run draws what is missing.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SIDE_PX, QUALITY = 512, 85
SCENE_PX, TILE_PX, GRAIN_LEVELS, GRAINS = 768, 200, 29, 8
FEWEST, MOST = 5, 20
"""Images of an instance."""
DOMAINS = ("bags", "chairs", "lamps", "shoes")
INSTANCES_AT_ONCE = 64
MARK_BITS, MARK_CELL_PX = 36, 6
NICENESS = 10
DESCRIBED = {"side_px": SIDE_PX, "quality": QUALITY, "form": 1}


class Instance(NamedTuple):
    """A run of images of one object."""

    number: int
    first: int
    """Number of its first image."""
    images: int

    @property
    def folder(self) -> str:
        """Where it lies below the root."""
        return f"{DOMAINS[self.number % len(DOMAINS)]}/{self.number:07d}"


def plan(images: int, seed: int) -> Iterator[Instance]:
    """The instances of so many images; those of fewer images are the first of these, but for the last one's size."""
    sizes = np.random.default_rng([seed, 0])
    number = first = 0
    while first < images:
        size = min(int(sizes.integers(FEWEST, MOST + 1)), images - first)
        yield Instance(number, first, size)
        number, first = number + 1, first + size


def draw(instance: Instance, seed: int, side_px: int = SIDE_PX) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """The JPEGs of an instance, each with the box x, y, w, h of the object in pixels."""
    rng = np.random.default_rng([seed, 1, instance.number])
    scene, (thing, outline) = _scene(rng), _thing(rng)
    for offset in range(instance.images):
        cut = int(rng.integers(SCENE_PX // 2, SCENE_PX))
        x, y = (int(v) for v in rng.integers(0, SCENE_PX - cut + 1, 2))
        view = scene.resize((side_px, side_px), Image.Resampling.BILINEAR, (x, y, x + cut, y + cut))
        if rng.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        gain = rng.uniform(0.55, 1.3, 3) if rng.random() < 0.3 else np.full(3, rng.uniform(0.55, 1.3))
        view = view.point([min(255, int(level * g)) for g in gain for level in range(256)])
        size = int(side_px * rng.uniform(0.2, 0.6))
        left, top = (int(v) for v in rng.integers(0, side_px - size + 1, 2))
        view.paste(thing.resize((size, size)), (left, top), outline.resize((size, size)))
        view = ImageChops.add(view, _grain(seed, int(rng.integers(GRAINS)), side_px), 1, -(GRAIN_LEVELS // 2))
        _stamp(view, instance.first + offset)
        stream = io.BytesIO()
        view.save(stream, "JPEG", quality=QUALITY)
        yield stream.getvalue(), (left, top, size, size)


def _scene(rng: np.random.Generator) -> Image.Image:
    """A ground of soft colours with a coarse and a fine pattern, and shapes before it."""
    ground = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    ground = ground.resize((SCENE_PX, SCENE_PX), Image.Resampling.BICUBIC)
    for cells, strength in ((24, 0.25), (96, 0.15)):
        pattern = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        ground = Image.blend(ground, pattern.resize(ground.size, Image.Resampling.BILINEAR), strength)
    _shapes(rng, ImageDraw.Draw(ground), SCENE_PX, int(rng.integers(8, 20)), SCENE_PX // 3)
    return ground


def _thing(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """An object and where it covers its square."""
    image = Image.new("RGB", (TILE_PX, TILE_PX), tuple(int(v) for v in rng.integers(0, 256, 3)))
    _shapes(rng, ImageDraw.Draw(image), TILE_PX, 9, TILE_PX // 2)
    outline = Image.new("L", (TILE_PX, TILE_PX), 0)
    corners = [
        (TILE_PX / 2 * (1 + r * np.cos(a)), TILE_PX / 2 * (1 + r * np.sin(a)))
        for a, r in zip(np.linspace(0, 2 * np.pi, 12, endpoint=False), rng.uniform(0.6, 1.0, 12), strict=True)
    ]
    ImageDraw.Draw(outline).polygon(corners, fill=255)
    return image, outline


def _shapes(rng: np.random.Generator, pen: ImageDraw.ImageDraw, side: int, count: int, largest: int) -> None:
    for _ in range(count):
        x, y = (int(v) for v in rng.integers(-largest // 4, side, 2))
        w, h = (int(v) for v in rng.integers(largest // 8, largest, 2))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        kind = rng.integers(3)
        if kind == 0:
            pen.ellipse((x, y, x + w, y + h), fill=colour)
        elif kind == 1:
            pen.rectangle((x, y, x + w, y + h), fill=colour)
        else:
            pen.line((x, y, x + w, y + h), fill=colour, width=2 + w // 16)


@cache
def _grain(seed: int, number: int, side_px: int) -> Image.Image:
    rng = np.random.default_rng([seed, 2, number])
    return Image.fromarray(rng.integers(0, GRAIN_LEVELS, (side_px, side_px, 3), dtype=np.uint8))


def _stamp(image: Image.Image, number: int) -> None:
    """The number as black and white squares: survives the encoding, so that pixels differ and not bytes alone."""
    pen, columns = ImageDraw.Draw(image), MARK_BITS // 4
    for bit in range(MARK_BITS):
        y, x = (v * MARK_CELL_PX for v in divmod(bit, columns))
        shade = (255, 255, 255) if number >> bit & 1 else (0, 0, 0)
        pen.rectangle((x, y, x + MARK_CELL_PX - 1, y + MARK_CELL_PX - 1), fill=shade)


def make(folder: Path, images: int, seed: int, processes: int | None = None) -> Path:
    """The root of so many images, drawn where they do not lie yet.

    Args:
        folder: where `photos/` and the notes of what is drawn go.
        images: how many.
        seed: of everything.
        processes: that draw at a time, as nicely as `nice -n 10`; none = one per core.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = folder / "about.json"
    wanted = {"images": images, "seed": seed, **DESCRIBED}
    if about.exists() and json.loads(about.read_text()) != wanted:
        sys.exit(f"{folder}: holds other images ({about.read_text().strip()}); choose another folder")
    about.write_text(json.dumps(wanted) + "\n")
    root = folder / "photos"
    if (root / "boxes.csv").exists():
        return root
    instances = list(plan(images, seed))
    chunks = [instances[i : i + INSTANCES_AT_ONCE] for i in range(0, len(instances), INSTANCES_AT_ONCE)]
    work = [(folder, number, chunk, seed) for number, chunk in enumerate(chunks)]
    began, count = time.monotonic(), 0
    with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count(), os.nice, (NICENESS,)) as pool:
        for done, more in enumerate(pool.imap_unordered(_chunk, work), start=1):
            count += more
            if done % 20 == 0 or done == len(chunks):
                rate = count / (time.monotonic() - began)
                print(f"drawn: {done} of {len(chunks)} chunks, {rate:.0f} images/s", flush=True)
    _write_boxes(root, (json.loads(_note(folder, n).read_text()) for n in range(len(chunks))))
    return root


def drawn(folder: Path) -> int:
    """For how many images `make` was asked there; 0 where it was not."""
    about = folder / "about.json"
    return int(json.loads(about.read_text())["images"]) if about.exists() else 0


def first(folder: Path, images: int, seed: int) -> Path:
    """The root of the first so many images of what `make` has drawn, as hard links."""
    root, source = folder / f"first-{images}", folder / "photos"
    if (root / "boxes.csv").exists():
        return root
    names = set()
    for instance in plan(images, seed):
        (root / instance.folder).mkdir(parents=True, exist_ok=True)
        for offset in range(instance.images):
            name = _name(instance, offset)
            names.add(name)
            if not (root / name).exists():
                os.link(source / name, root / name)
    chunks = range(instance.number // INSTANCES_AT_ONCE + 1)
    notes = (json.loads(_note(folder, n).read_text()) for n in chunks)
    _write_boxes(root, ([row for row in rows if row[0] in names] for rows in notes))
    return root


def _chunk(work: tuple[Path, int, Sequence[Instance], int]) -> int:
    """Draw some instances; how many images were drawn, none where they lie there."""
    folder, number, instances, seed = work
    note = _note(folder, number)
    if note.exists():
        return 0
    boxes = []
    for instance in instances:
        (folder / "photos" / instance.folder).mkdir(parents=True, exist_ok=True)
        for offset, (data, box) in enumerate(draw(instance, seed)):
            name = _name(instance, offset)
            (folder / "photos" / name).write_bytes(data)
            boxes.append((name, *box))
    note.parent.mkdir(exist_ok=True)
    whole = note.with_suffix(".tmp")
    whole.write_text(json.dumps(boxes))
    whole.replace(note)
    return len(boxes)


def _name(instance: Instance, offset: int) -> str:
    return f"{instance.folder}/{offset:02d}.jpg"


def _note(folder: Path, number: int) -> Path:
    return folder / "drawn" / f"{number:05d}.json"


def _write_boxes(root: Path, rows: Iterator[list[list[object]]]) -> None:
    whole = root / "boxes.csv.tmp"
    with whole.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_path", "x", "y", "w", "h"])
        for some in rows:
            writer.writerows(some)
    whole.replace(root / "boxes.csv")


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int)
    options = parser.parse_args()
    print(make(options.folder, options.images, options.seed, options.processes))


if __name__ == "__main__":
    main()
