"""What a build of 100 million images takes, computed from the results of volume, filter, driver and reads.

python -m benchmarks.scaling          # prints the tables of docs/scaling.md

Every line is measured here (M), assumed (A) or computed from others (C).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.machine import RESULTS

IMAGES = 100_000_000
MACHINES, CORES_OF_MACHINE, DOLLARS_OF_MACHINE_HOUR = 16, 16, 0.714
IMAGES_PER_PART = 20_000
GET_DOLLARS, PUT_DOLLARS, GB_MONTH_DOLLARS = 0.4e-6, 5e-6, 0.023
GETS_PER_PREFIX_S = 5500
FIRST_BYTE_S = 0.03
GIB = 2**30


class Line(NamedTuple):
    """A line of a table: what, how much, and where the number comes from."""

    what: str
    value: str
    source: str


def lines(
    volume: Mapping[str, Any],
    near: Mapping[str, Any],
    driver: Sequence[Mapping[str, Any]],
    reads: Mapping[str, Mapping[str, float]],
) -> list[Line]:
    """The arithmetic.

    Args:
        volume: results/volume.json.
        near: the largest row of near_duplicates in results/filter.json.
        driver: the steps of results/driver.json.
        reads: cpu_ms_a_read of results/reads.json.
    """
    from pipelines.collect import READ_AHEAD

    large = max(volume["builds"], key=lambda b: b["images"])
    n, cores = large["images"], volume["cores"]
    image_bytes = large["image_bytes"] / n
    local = large["collect_and_filter_images_per_s"] / cores
    get_ms = reads["s3"]["cpu_ms"] - reads["local"]["cpu_ms"]
    rate = 1 / (1 / local + get_ms / 1e3)
    other = sum(large["worker_seconds"][s] for s in ("annotate", "candidates", "gallery")) / n
    parts = -(-IMAGES // IMAGES_PER_PART)
    per_part = large["version_files"] / large["parts"]
    published = large["manifest_files"] / large["parts"]
    total_cores = MACHINES * CORES_OF_MACHINE
    collect_h = IMAGES / rate / 3600
    other_h = IMAGES * other / 3600
    hours = (collect_h + other_h) / total_cores
    stored = large["version_bytes"] / n * IMAGES
    gets = total_cores * rate
    near_s = near["seconds"] * _work(IMAGES, near["max_bits"]) / _work(near["hashes"], near["max_bits"])
    instances = IMAGES * large["instances"] / n
    money = f"${hours * MACHINES * DOLLARS_OF_MACHINE_HOUR:,.0f}"
    files, entries = parts * per_part, parts * published
    manifest_mb = entries * large["manifest_entry_bytes"] / 1e6
    prefixes = -(-gets // GETS_PER_PREFIX_S)
    hour = f"${DOLLARS_OF_MACHINE_HOUR} a machine and hour (A)"
    return [
        Line("bytes of an image", f"{image_bytes / 1e3:.1f} kB", f"M, {n:,} JPEGs of 512 px"),
        Line(
            "collect + filter, a core",
            f"{local:.0f} images/s",
            "M from local files, end to end after the listing",
        ),
        Line("processor time of a GET", f"{get_ms:.2f} ms", "M, above that of a local read"),
        Line(
            "collect + filter from S3, a core", f"{rate:.0f} images/s", "C, if nothing of a GET is waited for"
        ),
        Line(
            "annotate, candidates, galleries", f"{other * 1e3:.2f} ms an image", "M, seconds of the workers"
        ),
        Line(
            "cores", f"{total_cores}", f"A: {MACHINES} machines of {CORES_OF_MACHINE}, a core as fast as here"
        ),
        Line("collect + filter", f"{collect_h:,.0f} core hours", "C"),
        Line("the stages after", f"{other_h:,.0f} core hours", "C"),
        Line("on these machines", f"{hours:.1f} h, {money}", f"C, {hour}"),
        Line("read from S3", f"{IMAGES * image_bytes / 1e12:.1f} TB", "C, each image once (M)"),
        Line(
            "GET requests",
            f"{IMAGES / 1e6:,.0f} million, ${IMAGES * GET_DOLLARS:,.0f}",
            "C, one an image, in a shard too; $0.0004 a thousand (A)",
        ),
        Line(
            "GETs a second", f"{gets:,.0f}", f"C; {GETS_PER_PREFIX_S:,} a prefix (A): {prefixes:.0f} prefixes"
        ),
        Line("network of a machine", f"{CORES_OF_MACHINE * rate * image_bytes * 8 / 1e9:.1f} Gbit/s", "C"),
        Line(
            "reads in flight, a core",
            f"{rate * FIRST_BYTE_S:.1f}",
            f"C at {FIRST_BYTE_S * 1e3:.0f} ms a GET (A); the code reads {READ_AHEAD} ahead",
        ),
        Line("shuffled between workers", "0 bytes", "by design: a part holds whole instances"),
        Line(
            "written",
            f"{stored / 1e9:,.0f} GB, ${stored / 1e9 * GB_MONTH_DOLLARS:,.0f} a month",
            f"C from {large['version_bytes'] / n:,.0f} bytes an image (M); ${GB_MONTH_DOLLARS} a GB and month (A)",
        ),
        Line("parts", f"{parts:,}", f"C at {IMAGES_PER_PART:,} images each (A: `images_per_part`)"),
        Line("files", f"{files:,.0f}, ${files * PUT_DOLLARS:.2f} of PUTs", f"C, {per_part:.1f} a part (M)"),
        Line(
            "manifest",
            f"{entries:,.0f} entries, {manifest_mb:.0f} MB",
            f"C, {published:.1f} a part, {large['manifest_entry_bytes']:.0f} bytes each (M)",
        ),
        Line(
            "instances", f"{instances / 1e6:.1f} million", f"C, {n / large['instances']:.1f} images each (M)"
        ),
        Line(
            "a pass over near-duplicates, one core",
            f"{near_s / 3600:,.0f} h",
            f"C from {near['seconds']:.0f} s for {near['hashes']:,} hashes (M) by the count of comparisons",
        ),
        Line(
            "the same, cut over these cores",
            f"{near_s / 3600 / total_cores:.1f} h",
            "C; not built, see below",
        ),
        *(_held(step, {"image": IMAGES, "instance": round(instances)}[step["per"]]) for step in driver),
    ]


def _held(step: Mapping[str, Any], count: int) -> Line:
    """What the driver holds in a step, and how long it takes where that grows with the count alone."""
    size, us = step["bytes_each"], step["microseconds_each"]
    spent = "" if "hashes" in step["step"] else f", {count * us / 1e6 / 60:.0f} min"
    return Line(
        f"driver: {step['step']}",
        f"{count * size / 1e9:.0f} GB{spent}",
        f"C from {size} bytes and {us} µs an {step['per']} (M)",
    )


def _work(hashes: int, max_bits: int) -> float:
    from pipelines.duplicates import best_bands, work

    return work(hashes, max_bits, best_bands(hashes, max_bits))


def table(rows: Sequence[Line]) -> str:
    """The lines as Markdown."""
    return "\n".join(["| what | how much | from |", "|---|---|---|", *(f"| {' | '.join(r)} |" for r in rows)])


def measured() -> list[Line]:
    """The lines over the committed results."""
    names = ("volume", "filter", "driver", "reads")
    volume, near, driver, reads = (json.loads((RESULTS / f"{name}.json").read_text()) for name in names)
    most = max(near["near_duplicates"], key=lambda row: row["hashes"])
    return lines(volume, most, driver["steps"], reads["cpu_ms_a_read"])


def main() -> None:
    """Print the table."""
    print(table(measured()))


if __name__ == "__main__":
    main()
