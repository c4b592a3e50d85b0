"""Where a worker keeps the frozen tokens: on its GPU, in pinned host memory, or mapped from the local disk."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import torch

from infra.base.errors import OacirError

if TYPE_CHECKING:
    from training.features import FeatureStore

Place = Literal["device", "pinned", "mapped"]
DEVICE_SHARE, HOST_SHARE = 0.5, 0.5
"""Of the free memory, what the tokens may take: the step needs the rest of the GPU, files the rest of the host."""
log = logging.getLogger(__name__)


def choose(size_bytes: int, device_free: int, host_free: int, workers_on_host: int) -> Place:
    """The fastest place that the tokens fit in.

    Args:
        size_bytes: of the tokens.
        device_free: free bytes of this worker's GPU; 0 without one.
        host_free: available bytes of the host.
        workers_on_host: workers on it, each of which would pin its own copy.
    """
    if not device_free:
        return "mapped"  # host memory is what the model computes in: the page cache holds them once for all workers
    if size_bytes <= DEVICE_SHARE * device_free:
        return "device"
    return "pinned" if size_bytes * workers_on_host <= HOST_SHARE * host_free else "mapped"


def place(
    store: FeatureStore, device: torch.device, wanted: Literal["auto", Place], workers_on_host: int
) -> FeatureStore:
    """The store with its tokens where the recipe wants them.

    Args:
        store: as it was opened, mapped.
        device: where the worker trains.
        wanted: `scaling.features_in`.
        workers_on_host: workers on this host.

    Raises:
        OacirError: the place is not there, or the tokens do not fit in it.
    """
    gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if gpu else 0
    host = host_available()
    chosen = choose(store.size_bytes, free, host, workers_on_host) if wanted == "auto" else wanted
    told = f"scaling.features_in = {wanted}: the tokens take {store.size_bytes / 2**30:.1f} GiB"
    if chosen != "mapped" and not gpu:
        raise OacirError(
            f"{told}, {chosen} needs a GPU; set scaling.use_gpu, or features_in to auto or mapped"
        )
    if chosen == "device" and store.size_bytes > free:
        raise OacirError(
            f"{told}, {free / 2**30:.1f} GiB of the GPU are free; set features_in to pinned or mapped"
        )
    if chosen == "pinned" and store.size_bytes * workers_on_host > host:
        raise OacirError(
            f"{told} in each of {workers_on_host} workers, {host / 2**30:.1f} GiB are available; set features_in to"
            " mapped"
        )
    log.info("tokens of %s: %.1f GiB, %s", store.version.url, store.size_bytes / 2**30, chosen)
    return store.placed(device, chosen)


def host_available() -> int:
    """Bytes of this machine's memory that can be taken without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)
