"""Images → stored tokens at the speed of the tower: the next batches are decoded while it computes, and a shard is
hashed and written while the next one is made.

Needs torch and numpy alone (what decodes an image and what writes a file is passed in), so that a GPU machine without
Ray and Arrow runs what `oacir embed` runs.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from infra.base.errors import OacirError
from training.stored import Dtype, Precision, pack

if TYPE_CHECKING:
    from training.model.adafocal import AdaFocalModel

Item = TypeVar("Item")
AHEAD = 2
"""Batches that are decoded, or being decoded, beside the one in the tower."""


class Encoded(NamedTuple):
    """The rows of one list of images."""

    rows: Tensor
    """uint8 [n, row bytes] in the host's memory; not to be read before `wait`."""
    wait: Callable[[], int | None]
    """Returns when the rows are there: the first image whose tokens are no finite numbers, null without one."""


class _Batch(NamedTuple):
    rows: Tensor
    """Of all images of its list."""
    finite: Tensor
    """Of all images of its list: whether its tokens are finite numbers, bool [n]."""
    start: int
    end: int
    last: bool
    pixels: Tensor
    decoded: list[Future[None]]


class TowerEncoder(Generic[Item]):
    """A frozen tower, and threads that feed it.

    Args:
        encode: pixels [B, 3, S, S] on the device → tokens [B, N, D] (`tower_in`).
        pixels: an image → its pixels, float32 [3, S, S]; called in several threads at once.
        side: S.
        row_bytes: of one image's stored tokens.
        dtype: type of the stored tokens.
        device: of the tower.
        batch_size: images per forward.
        threads: images decoded at once.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        pixels: Callable[[Item], Tensor],
        *,
        side: int,
        row_bytes: int,
        dtype: Dtype,
        device: torch.device,
        batch_size: int,
        threads: int,
    ) -> None:
        self.encode, self.pixels = encode, pixels
        self.side, self.row_bytes, self.dtype = side, row_bytes, dtype
        self.device, self.batch_size = device, batch_size
        self.on_gpu = device.type == "cuda"
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def __call__(self, lists: Iterable[Sequence[Item]]) -> Iterator[Encoded]:
        """The rows of each list of images, in order; decoding goes on over the borders of the lists.

        Raises:
            OacirError: what `pixels` raises of an image.
        """
        waiting: deque[_Batch] = deque()
        try:
            for batch in self._batches(lists):
                waiting.append(batch)
                if len(waiting) > AHEAD:
                    yield from self._step(waiting.popleft())
            while waiting:
                yield from self._step(waiting.popleft())
        finally:
            for batch in waiting:
                for image in batch.decoded:
                    image.cancel()

    def no_rows(self) -> Tensor:
        """What a list without images has."""
        return torch.empty(0, self.row_bytes, dtype=torch.uint8)

    def _batches(self, lists: Iterable[Sequence[Item]]) -> Iterator[_Batch]:
        """All batches in order, their images handed to the threads."""
        free = deque(self._buffer() for _ in range(AHEAD + 1))
        for items in lists:
            rows = torch.empty(len(items), self.row_bytes, dtype=torch.uint8, pin_memory=self.on_gpu)
            finite = torch.empty(len(items), dtype=torch.bool, pin_memory=self.on_gpu)
            for start in range(0, len(items), self.batch_size):
                end = min(start + self.batch_size, len(items))
                # its last reader was the batch AHEAD + 1 before, whose copy to the device is over (`_step`)
                free.rotate(-1)
                pixels = free[-1][: end - start]
                decoded = [
                    self._pool.submit(self._decode, item, place)
                    for item, place in zip(items[start:end], pixels, strict=True)
                ]
                yield _Batch(rows, finite, start, end, end == len(items), pixels, decoded)

    def _buffer(self) -> Tensor:
        return torch.empty(self.batch_size, 3, self.side, self.side, pin_memory=self.on_gpu)

    def _decode(self, item: Item, place: Tensor) -> None:
        place.copy_(self.pixels(item))

    def _step(self, batch: _Batch) -> Iterator[Encoded]:
        """Compute one batch; the rows of its list, if it is their last."""
        for image in batch.decoded:
            image.result()
        pixels = batch.pixels
        if self.on_gpu:
            pixels = pixels.to(self.device, non_blocking=True)
            copied = torch.cuda.current_stream(self.device).record_event()
        with torch.no_grad():
            tokens = self.encode(pixels)
            own = slice(batch.start, batch.end)
            batch.rows[own].copy_(pack(tokens, self.dtype), non_blocking=self.on_gpu)
            batch.finite[own].copy_(tokens.isfinite().flatten(1).all(dim=1), non_blocking=self.on_gpu)
        if self.on_gpu:
            copied.synchronize()  # the buffer is filled again from here on; the tower computes meanwhile
        if batch.last:
            yield Encoded(batch.rows, self._waiter(batch.finite))

    def _waiter(self, finite: Tensor) -> Callable[[], int | None]:
        done = torch.cuda.current_stream(self.device).record_event() if self.on_gpu else None

        def wait() -> int | None:
            if done is not None:
                done.synchronize()
            wrong = (~finite).nonzero()
            return int(wrong[0]) if len(wrong) else None

        return wait


def tower_in(model: AdaFocalModel, precision: Precision, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The model's tower on a device, computing in a precision.

    In bfloat16 its matrix products do, on weights rounded once; what is summed up over the blocks, the LayerNorms and
    the softmax stay float32. The tower of this model is then a rounded one.
    """
    model.to(device)
    if precision == "float32":
        return model.encode_pixels
    for module in model.tower.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)

    def encode(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return model.encode_pixels(pixels)

    return encode


class Shard(NamedTuple, Generic[Item]):
    """One file to be made."""

    number: int
    items: Sequence[Item]
    """Images whose tokens are computed."""
    names: Sequence[str]
    """What they are called in a message."""
    data: Callable[[Tensor], memoryview]
    """Their rows → the bytes of the file; raises OacirError."""
    write: Callable[[memoryview], None]
    """Puts the file where it belongs, whole or not at all; raises OacirError."""


class Made(NamedTuple):
    """What became of a shard."""

    number: int
    sha256: str
    error: str
    """Why there is none; empty where it lies."""


def make_shards(encoder: TowerEncoder[Item], shards: Sequence[Shard[Item]]) -> Iterator[Made]:
    """Make shards in order, each written and hashed while the next one is computed; ends with the first error."""
    encoded = encoder(shard.items for shard in shards)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
        ThreadPoolExecutor(1, thread_name_prefix="hash") as hasher,
    ):
        under_way: Future[Made] | None = None
        for shard in shards:
            try:
                found = next(encoded) if shard.items else Encoded(encoder.no_rows(), _at_once)
            except OacirError as error:
                if under_way is not None:
                    yield under_way.result()
                yield Made(shard.number, "", str(error))
                return
            if under_way is not None:
                yield under_way.result()
            under_way = writer.submit(_finish, shard, found, hasher)
        if under_way is not None:
            yield under_way.result()


def _at_once() -> int | None:
    """Nothing to wait for."""
    return None


def _finish(shard: Shard[Item], found: Encoded, hasher: ThreadPoolExecutor) -> Made:
    wrong = found.wait()
    if wrong is not None:
        told = "its tokens are no finite numbers; check model.weights, or set embed.precision to float32"
        return Made(shard.number, "", f"{shard.names[wrong]}: {told}")
    try:
        data = shard.data(found.rows)
        digest = hasher.submit(
            lambda: hashlib.sha256(data).hexdigest()
        )  # beside the write: both take as long
        shard.write(data)
    except OacirError as error:
        return Made(shard.number, "", str(error))
    return Made(shard.number, digest.result(), "")
