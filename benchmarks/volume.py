"""Building a benchmark of 20,000 and of 200,000 distinct JPEGs: images a second, peak memory, bytes read.

python -m benchmarks.volume [--folder FOLDER] [--sizes 20000 200000]

`oacir build` runs as a process of its own over each size, all its processes watched. In the same run a bare loop in one
thread does to a sample of the same files what collecting needs (read, decode, measure, hash, describe), without Ray,
tables, hashes of bytes or threads; the build is held against that loop × cores. Before each of them the files are put
out of the page cache, so that all begin alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import FamilyMemory, write_result
from benchmarks.volume_photos import drawn, first, make

SAMPLE, WARM_UP = 4000, 200
GOAL_GIB, GOAL_GROWTH, GOAL_RATIO = 4.0, 1.1, 0.8
SEED = 0
# About as many queries per image as the release has (1.3); thresholds as in photos.yaml, for the same descriptor.
RECIPE: dict[str, Any] = {
    "name": "volume",
    "source": {"kind": "image_folder", "root": ""},
    "thresholds": {"default": {"tau_valid": 4, "tau_high": 0.72, "tau_centric": 0.72, "tau_count": 3}},
    "max_pairs_per_instance": 16,
}


def main() -> None:
    """Draw the images if they do not lie there, measure, and write results/volume.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "oacir-volume")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--result", default="volume", help="name of the file below results/")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(json.dumps(bare_loop(options.bare.read_text().split("\n"))))
        return
    largest = max(options.sizes)
    there = max(largest, drawn(options.folder))
    whole = make(options.folder, there, SEED)
    roots = {n: first(options.folder, n, SEED) if n < there else whole for n in options.sizes}
    paths = {n: image_paths(root) for n, root in roots.items()}
    cores = len(os.sched_getaffinity(0))
    load = [round(v, 2) for v in os.getloadavg()]
    before = bare(paths[largest], cores)
    builds = {}
    for n, root in roots.items():
        builds[n] = measure_build(options.folder, root, paths[n])
        print(n, builds[n], flush=True)
    after = bare(paths[largest], cores)
    one = (before["one_process_images_per_s"] + after["one_process_images_per_s"]) / 2
    sizes = sorted(builds)
    peaks = [builds[n]["peak_pss_gib"] for n in sizes]
    result = {
        "command": " ".join(["python -m benchmarks.volume", *_said(sys.argv[1:])]),
        "load_average_before": load,
        "cores": cores,
        "bare_loop": {
            "includes": "read, decode (reduced where the size allows), measure, phash, describe in batches of 32",
            "sample": min(SAMPLE, len(paths[largest])),
            "before": before,
            "after": after,
        },
        "builds": [builds[n] for n in sizes],
        "collect_over_bare_loop_times_cores": {
            str(n): round(builds[n]["collect_and_filter_images_per_s"] / (one * cores), 3) for n in sizes
        },
        "cpu_ms_an_image": {
            "build": cpu_ms_an_image(builds[sizes[0]], builds[sizes[-1]]),
            "bare_loop": round(
                sum(b["one_process_cpu_share"] / b["one_process_images_per_s"] for b in (before, after))
                / 2
                * 1e3,
                3,
            ),
        },
        "peak_growth": round(peaks[-1] / peaks[0], 3),
        # what a run reads beside images (libraries, tables) and how it grows: 1.0 and a little is one read of each
        "bytes_read_per_byte_of_images": reads_per_byte(builds[sizes[0]], builds[sizes[-1]]),
        "goals": {"peak_pss_gib": GOAL_GIB, "peak_growth": GOAL_GROWTH, "ratio": GOAL_RATIO},
    }
    print(json.dumps(result, indent=1))
    print(f"written to {write_result(options.result, result)}")


def _said(arguments: Sequence[str]) -> list[str]:
    """The options without the place of the images, which is this machine's own."""
    kept = list(arguments)
    if "--folder" in kept:
        del kept[kept.index("--folder") : kept.index("--folder") + 2]
    return kept


def image_paths(root: Path) -> list[str]:
    """The files of the images below a root, as boxes.csv names them."""
    lines = (root / "boxes.csv").read_text().splitlines()[1:]
    return [str(root / line.split(",", 1)[0]) for line in lines]


def uncache(paths: Sequence[str]) -> None:
    """Put files out of the page cache; those that are still to be written first go to the disk."""
    os.sync()
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def bare(paths: Sequence[str], cores: int) -> dict[str, float]:
    """The bare loop over an even sample, cold: in one process, then in one per core at a time (their sum)."""
    sample = [paths[i * len(paths) // SAMPLE] for i in range(SAMPLE)] if len(paths) > SAMPLE else list(paths)
    uncache(sample)
    (one,) = _processes([sample])
    uncache(sample)
    shares = _processes([sample[i::cores] for i in range(cores)])
    return {
        "one_process_images_per_s": round(one["images_per_s"], 1),
        "one_process_cpu_share": round(one["cpu_share"], 3),
        "a_process_per_core_images_per_s": round(sum(s["images_per_s"] for s in shares), 1),
    }


def _processes(samples: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    running = []
    with tempfile.TemporaryDirectory() as folder:
        for number, sample in enumerate(samples):
            names = Path(folder) / str(number)
            names.write_text("\n".join(sample))
            command = [sys.executable, "-m", "benchmarks.volume", "--bare", str(names)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        answers = [process.communicate()[0] for process in running]
    return [json.loads(answer) for answer in answers]


def bare_loop(paths: Sequence[str]) -> dict[str, float]:
    """What collecting needs of each image and nothing else, in this thread; the first images only warm up."""
    from pipelines.collected import IMAGES_AT_ONCE, WORKING_SIDE_PX
    from pipelines.descriptors import OfflineDescriber, phash
    from pipelines.images import ImageLimits, decode
    from pipelines.measures import measure

    limits, describer = ImageLimits(), OfflineDescriber()
    box = (64.0, 64.0, 192.0, 192.0)

    def work(some: Sequence[str]) -> None:
        waiting = []
        for path in some:
            image = decode(Path(path).read_bytes(), limits, target_px=WORKING_SIDE_PX).image
            measure(image, box)
            phash(image)
            waiting.append(image)
            if len(waiting) == IMAGES_AT_ONCE:
                describer.describe(waiting)
                waiting = []
        describer.describe(waiting)

    warm = min(WARM_UP, len(paths) // 4)
    work(paths[:warm])
    began, busy = time.perf_counter(), time.process_time()
    work(paths[warm:])
    seconds = time.perf_counter() - began
    return {
        "images_per_s": (len(paths) - warm) / seconds,
        "cpu_share": (time.process_time() - busy) / seconds,
    }


def measure_build(place: Path, root: Path, paths: Sequence[str]) -> dict[str, Any]:
    """`oacir build` over a root, from cold files, in a folder that is deleted afterwards."""
    size_bytes = sum(Path(p).stat().st_size for p in paths)
    with tempfile.TemporaryDirectory(dir=place) as out, FamilyMemory(every_s=1.0) as memory:
        recipe = Path(out) / "volume.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE | {"source": RECIPE["source"] | {"root": str(root)}}))
        command = [sys.executable, "-m", "infra.cli", "build", "--config", str(recipe)]
        uncache(paths)
        began = time.time()
        done = subprocess.run(
            [*command, "--root", f"{out}/data", "--json"],
            env=memory.environment(),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seconds = time.time() - began
        said = json.loads(done.stdout)
        version = Path(said["location"])
        listed, filtered = (version / "_work/listed.json").stat().st_mtime, last_change(version, "filter")
        manifest = json.loads((version / "manifest.json").read_text())
        stored = sum(f.stat().st_size for f in version.rglob("*") if f.is_file())
        files = sum(f.is_file() for f in version.rglob("*"))
        parts = json.loads((version / "_work/listed.json").read_text())["parts"]
        manifest_bytes = (version / "manifest.json").stat().st_size
    accounts = {a["entity"]: a for a in manifest["accounts"]["collect"]}
    if accounts["images"]["kept"] != len(paths):
        sys.exit(f"not all images were kept: {accounts['images']}")
    return {
        "images": len(paths),
        "image_bytes": size_bytes,
        "instances": manifest["accounts"]["filter"][1]["taken_in"],
        "parts": parts,
        "seconds": round(seconds, 1),
        "listing_seconds": round(listed - began, 1),
        "collect_and_filter_seconds": round(filtered - listed, 1),
        "collect_and_filter_images_per_s": round(len(paths) / (filtered - listed), 1),
        "collect_and_filter_cpu_seconds": round(memory.cpu_seconds(filtered) - memory.cpu_seconds(listed), 1),
        "load_average_after": round(os.getloadavg()[0], 2),
        "rest_seconds": round(began + seconds - filtered, 1),
        "worker_seconds": manifest["seconds"],
        "peak_pss_gib": round(memory.peak_bytes / 2**30, 3),
        "peak_pss_mib_of": {role: round(b / 2**20, 1) for role, b in sorted(memory.at_peak.items())},
        "read_bytes_of": {role: memory.read_bytes(role) for role in ("driver", "workers")},
        "version_bytes": stored,
        "version_files": files,
        "manifest_files": len(manifest["files"]),
        "manifest_entry_bytes": round(manifest_bytes / len(manifest["files"]), 1),
        "queries": manifest["accounts"]["annotate"][0]["kept"],
        "near_duplicate_pairs": manifest["figures"]["near_duplicates"]["pairs"],
        "content_hash": manifest["content_hash"],
    }


def cpu_ms_an_image(small: Mapping[str, Any], large: Mapping[str, Any]) -> float:
    """Processor time of all processes for an image by which the larger build exceeds the smaller one, in ms.

    Without what every build spends on starting Ray, and, unlike rates, little changed by what else the machine does.
    """
    more = large["collect_and_filter_cpu_seconds"] - small["collect_and_filter_cpu_seconds"]
    return round(more / max(1, large["images"] - small["images"]) * 1e3, 3)


def reads_per_byte(small: Mapping[str, Any], large: Mapping[str, Any]) -> float:
    """Bytes that the workers of the larger build read beyond those of the smaller, per byte of image beyond."""
    more = large["read_bytes_of"]["workers"] - small["read_bytes_of"]["workers"]
    return round(more / max(1, large["image_bytes"] - small["image_bytes"]), 3)


def last_change(version: Path, stage: str) -> float:
    """When the last part of a stage was done."""
    return max(f.stat().st_mtime for f in (version / "_accounts" / stage).iterdir())


if __name__ == "__main__":
    main()
