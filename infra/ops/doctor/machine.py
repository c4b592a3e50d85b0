"""What is looked at on this machine: python, packages, GPUs, disk, shared memory, room for a feature store."""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from infra.base.ray_session import has_gpu
from infra.base.storage import absolute, is_s3
from infra.ops.doctor.finding import Finding

GIB = 1 << 30
DISK_FAULT_GIB, DISK_WARNING_GIB = 2, 20
STORE_SHARE = 0.3
"""Ray takes this share of the memory for its object store, and lays it into shared memory."""
MOST_STORE_BYTES = 200 * GIB


def python(version: str | None = None) -> Finding:
    """The interpreter against what the package needs."""
    from packaging.specifiers import SpecifierSet

    found = version or platform.python_version()
    needed = metadata.metadata("oacir")["Requires-Python"] or ""
    if found in SpecifierSet(needed):
        return Finding("python", "ok", found)
    return Finding(
        "python", "fault", f"{found}, and {needed} is needed", "make an environment of another python"
    )


def packages(requirements: Iterable[str] | None = None) -> Finding:
    """Every package that this one requires: there, and new enough."""
    from packaging.requirements import Requirement

    named = metadata.requires("oacir") or [] if requirements is None else requirements
    required = [Requirement(line) for line in named if "extra ==" not in line]
    absent, other = [], []
    for one in required:
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            absent.append(one.name)
            continue
        if not one.specifier.contains(version, prereleases=True):
            other.append(f"{one.name} {version} instead of {one.specifier}")
    if absent or other:
        text = "; ".join(([f"missing: {', '.join(absent)}"] if absent else []) + other)
        return Finding("packages", "fault", text, "pip install --constraint constraints.txt .")
    return Finding("packages", "ok", f"{len(required)} required, all there")


def cuda(needed: bool) -> Finding:
    """Whether torch computes on each GPU, and has NCCL.

    Args:
        needed: whether a machine without a GPU is a fault.
    """
    import torch

    if not torch.cuda.is_available():
        if has_gpu():
            built = torch.version.cuda
            why = (
                f"torch {torch.__version__} is built for CUDA {built}"
                if built
                else f"torch {torch.__version__} has no CUDA"
            )
            return Finding(
                "cuda",
                "fault",
                f"there is a GPU, and {why}",
                "install the build that fits the driver (nvidia-smi)",
            )
        if needed:
            return Finding(
                "cuda", "fault", "no GPU here", "run it on a machine with one, or leave --gpu away"
            )
        return Finding("cuda", "ok", "no GPU, and none asked for (--gpu true)")
    count = torch.cuda.device_count()
    for number in range(count):  # a driver that is too old shows at the first kernel
        if torch.ones(8, device=f"cuda:{number}").sum().item() != 8:
            return Finding("cuda", "fault", f"GPU {number} computes wrongly", "take it out of service")
    names = sorted({torch.cuda.get_device_name(number) for number in range(count)})
    text = f"{count} × {', '.join(names)}, CUDA {torch.version.cuda}"
    if not torch.distributed.is_nccl_available():
        return Finding("cuda", "fault", f"{text}, torch without NCCL", "install a build of torch with NCCL")
    nccl: Any = torch.cuda.nccl  # untyped
    return Finding("cuda", "ok", f"{text}, NCCL {'.'.join(map(str, nccl.version()))}")


def disk(root: str, free: dict[str, int] | None = None) -> Finding:
    """Free space where Ray spills and features are kept for a while, and below a local root.

    Args:
        root: URL; one on S3 takes no disk.
        free: folder → free bytes, instead of asking.
    """
    found = {place: shutil.disk_usage(place).free for place in _places(root)} if free is None else free
    place, least = min(found.items(), key=lambda item: item[1])
    text = ", ".join(f"{place}: {size / GIB:,.1f} GiB free" for place, size in found.items())
    if least < DISK_FAULT_GIB * GIB:
        return Finding("disk", "fault", text, f"make room in {place}, {DISK_WARNING_GIB} GiB or more")
    if least < DISK_WARNING_GIB * GIB:
        return Finding("disk", "warning", text, f"Ray spills into {place} when memory is short; make room")
    return Finding("disk", "ok", text)


def shared_memory(size: int | None = None, memory: int | None = None) -> Finding:
    """Room of /dev/shm for Ray's object store.

    Args:
        size: of /dev/shm in bytes, instead of asking.
        memory: of the machine in bytes, instead of asking.
    """
    folder = Path("/dev/shm")
    if size is None and not folder.is_dir():
        return Finding(
            "shm", "warning", "no /dev/shm: Ray's object store lies on the disk", "mount a tmpfs there"
        )
    found = shutil.disk_usage(folder).total if size is None else size
    whole = psutil.virtual_memory().total if memory is None else memory
    wanted = min(STORE_SHARE * whole, MOST_STORE_BYTES)
    text = f"{found / GIB:,.1f} GiB in /dev/shm, {wanted / GIB:,.1f} GiB for Ray's object store"
    if found < wanted:
        fix = f"give the container more (docker run --shm-size={wanted / GIB:.0f}g, a memory volume in Kubernetes)"
        return Finding("shm", "warning", text, fix)
    return Finding("shm", "ok", text)


def feature_room(images: int, bytes_each: int, root: str, free: int | None = None) -> Finding:
    """Whether the feature store of so many images fits: below a local root, or where a worker fetches it to from S3.

    Args:
        images: how many.
        bytes_each: of an image's tokens.
        root: URL of what is kept.
        free: bytes free, instead of asking.
    """
    needed = images * bytes_each
    place = _places(root)[-1]
    left = shutil.disk_usage(place).free if free is None else free
    what = "kept" if not is_s3(root) else "fetched to by each machine that trains"
    text = f"{images:,} images × {bytes_each / 1e6:,.2f} MB = {needed / GIB:,.1f} GiB"
    text += f", {what} in {place}: {left / GIB:,.1f} GiB free"
    if needed > left:
        fix = "make room, or store less of each (--embed.dtype int8)"
        return Finding("features", "fault", text, fix)
    return Finding("features", "ok", text)


def _places(root: str) -> list[str]:
    """The temporary folder and, of a local root, the nearest folder that exists."""
    places = [tempfile.gettempdir()]
    if not is_s3(root):
        nearest = Path(absolute(root))
        while not nearest.exists():
            nearest = nearest.parent
        places.append(str(nearest))
    return list(dict.fromkeys(places))


def images_named(text: str) -> int | None:
    """A number as people write it (1,000,000), else None: then it names a benchmark."""
    return int(text.replace(",", "").replace("_", "")) if re.fullmatch(r"\d[\d,_]*", text) else None
