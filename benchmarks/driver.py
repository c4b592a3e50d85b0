"""What the driver of a build holds and computes for each image and instance: the part that more workers do not divide.

python -m benchmarks.driver

Each step runs at two sizes, in a process of its own each time; the difference of their peak memory and CPU seconds over
the difference of the sizes is what one more image or instance costs.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import write_result

IMAGES_OF_INSTANCE = 12


def main() -> None:
    """Measure and write results/driver.json."""
    rows = [
        _step("list an image_folder", "image", _folder, 10_000, 100_000),
        _step("list a collection with tables of labels", "image", _tables, 100_000, 1_000_000),
        _step("deal instances to splits", "instance", _deal, 20_000, 200_000),
        _step("find near-duplicate hashes", "image", _near, 100_000, 400_000),
    ]
    path = write_result("driver", {"command": "python -m benchmarks.driver", "steps": rows})
    for row in rows:
        print(row)
    print(f"written to {path}")


def _step(what: str, unit: str, work: Callable[[int], float], small: int, large: int) -> dict[str, Any]:
    (memory, seconds), (more_memory, more_seconds) = (_apart(work, n) for n in (small, large))
    return {
        "step": what,
        "per": unit,
        "sizes": [small, large],
        "bytes_each": round((more_memory - memory) / (large - small)),
        "microseconds_each": round((more_seconds - seconds) / (large - small) * 1e6, 2),
    }


def _apart(work: Callable[[int], float], size: int) -> tuple[int, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, size))


def _measured(work: Callable[[int], float], size: int) -> tuple[int, float]:
    """Peak bytes of this process, and CPU seconds of the work."""
    work(100)  # imports what it needs
    seconds = work(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, seconds


def _timed(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _folder(images: int) -> float:
    from pipelines.sources.image_folder import ImageFolder, ImageFolderConfig

    with tempfile.TemporaryDirectory() as root:
        for number in range(images):
            owner = Path(root, "shoes", f"{number // IMAGES_OF_INSTANCE:07d}")
            if number % IMAGES_OF_INSTANCE == 0:
                owner.mkdir(parents=True)
            (owner / f"{number % IMAGES_OF_INSTANCE:02d}.jpg").touch()
        source = ImageFolder(ImageFolderConfig(root=root))
        return _timed(lambda: sum(map(len, source.listing())))


def _tables(images: int) -> float:
    import pyarrow as pa

    from pipelines.sources.tables import REFUSED, TabledSource, refusals

    numbers = range(images)

    class Labels(TabledSource):
        name, layout = "labels", ""

        def look(self) -> Any:
            return pa.table({"path": [], "size_bytes": [], "mark": []})

        def read(self, files: Any) -> Any:  # noqa: ARG002 - nothing lies there
            owners = (f"shoes/{n // IMAGES_OF_INSTANCE:07d}" for n in numbers)
            found = {
                "image_id": pa.array((f"shoes/{n:09d}.jpg" for n in numbers), pa.string()),
                "domain": pa.repeat("shoes", images),
                "instance_id": pa.array(owners, pa.string()),
                "category": pa.repeat("shoes", images),
                "uri": pa.array((f"shards/{n >> 14:05d}.tar#bytes={n}+60000" for n in numbers), pa.string()),
                "size_bytes": pa.array(numbers, pa.int64()),
                "mark": pa.array((f"{n:032x}" for n in numbers), pa.string()),
            }
            none = pa.array([], pa.string())
            return pa.table(found), refusals(none, "no_identity", "").cast(REFUSED)

    return _timed(lambda: sum(map(len, Labels("labels").listing())))


def _deal(instances: int) -> float:
    from pipelines.annotate import deal
    from pipelines.config import SplitOptions

    group = {"domain": "shoes", "category": "shoes", "found": 12, "images": 12, "pairs": 16, "boxed": 16}
    names = (f"shoes/{n:07d}" for n in range(instances))
    groups = [
        {**group, "instance_id": name, "state": "valid" if n % 10 else "reserve"}
        for n, name in enumerate(names)
    ]
    return _timed(lambda: deal(groups, [], SplitOptions(), 0.2, 0))


def _near(images: int) -> float:
    from pipelines.duplicates import Sightings, candidates

    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, images, dtype=np.uint64)
    owners = np.arange(images) // IMAGES_OF_INSTANCE
    sightings = Sightings(hashes, owners, owners % 4, np.ones(images, np.bool_))
    return _timed(lambda: candidates(sightings, 8))


if __name__ == "__main__":
    main()
