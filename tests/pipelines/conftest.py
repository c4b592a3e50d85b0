"""Photos made up for the tests of the stages."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

PhotoFolder = Callable[..., Path]


def picture(seed: int, side: int = 64) -> Image.Image:
    """A few blobs and bars on a plain ground; different seeds look different."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, side, 2).tolist()
        w, h = rng.integers(side // 8, side // 2, 2).tolist()
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> PhotoFolder:
    """Makes `<root>/<domain>/<instance>/<n>.jpg` with a box for each photo."""

    def make(domains: tuple[str, ...] = ("toys", "cups"), instances: int = 8, images: int = 5) -> Path:
        root = tmp_path_factory.mktemp("photos")
        boxes: list[tuple[object, ...]] = []
        seed = 0
        for domain in domains:
            for instance in range(instances):
                folder = root / domain / f"thing-{instance:02d}"
                folder.mkdir(parents=True)
                for n in range(images):
                    seed += 1
                    picture(seed).save(folder / f"{n}.jpg")
                    path = (folder / f"{n}.jpg").relative_to(root)
                    boxes.append((path.as_posix(), 8, 8, 20 + 4 * n, 16, "test"))
        with (root / "boxes.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("image_path", "x", "y", "w", "h", "box_source"), *boxes])
        return root

    return make


@pytest.fixture(scope="module")
def module_travels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray's workers get the classes of the test's module by value: they cannot import it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)
