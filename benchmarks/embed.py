"""Images a second from bytes to a feature store on disk, against the bare forward of the tower in the same run.

python -m benchmarks.embed [--preset scaled] [--images 256] [--threads 2]
python -m benchmarks.embed --device cuda --preset vit_g --images 4096 --batch 128

What is timed is what a worker of `oacir embed` runs (`pipelines/encoding.py`): read, check the hash, decode, tower,
pack, hash and write shards. The bare forward computes as many batches of pixels that lie ready on the device. Weights
are random; Ray, DeepSpeed and Arrow are not needed. `scaled` is a tower small enough for a CPU and large enough that
decoding is a few percent of its work, as it is for ViT-G.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import write_result
from benchmarks.volume_photos import draw, plan
from infra.base import storage
from infra.base.errors import OacirError
from pipelines.encoding import Shard, TowerEncoder, make_shards, tower_in
from training.model.auto import random_model
from training.model.config import AdaFocalConfig, preset
from training.model.processing import AdaFocalProcessor, train_wordpiece
from training.stored import Dtype, Precision, row_bytes

SCALED: dict[str, Any] = {
    "vision_config.hidden_size": 384, "vision_config.num_attention_heads": 6, "vision_config.num_hidden_layers": 12,
    "vision_config.intermediate_size": 1536, "qformer.num_hidden_layers": 2,
}  # fmt: skip
SETTINGS = (
    "device", "preset", "images", "batch", "images_per_shard", "dtype", "precision", "threads", "decode_threads",
    "rounds",
)  # fmt: skip
H200_PEAK_TFLOPS = 989.0
"""bfloat16, dense, as NVIDIA states it."""


class Photo(NamedTuple):
    """A JPEG on disk."""

    path: str
    sha256: str


def make_photos(folder: Path, count: int) -> list[Photo]:
    """Distinct JPEGs of 512 px."""
    jpegs = (data for instance in plan(count, seed=0) for data, _ in draw(instance, seed=0))
    photos = []
    for number, data in enumerate(jpegs):
        path = folder / f"{number:05d}.jpg"
        path.write_bytes(data)
        photos.append(Photo(str(path), hashlib.sha256(data).hexdigest()))
    return photos


def opener() -> tuple[str, Callable[[Photo], Any]]:
    """What opens a photo, and its name: oacir's own where what it needs is installed (pydantic, Arrow)."""
    try:
        from training.images import open_image
    except ImportError:
        return "pillow alone", _open_plainly
    return "training.images.open_image", lambda photo: open_image(photo.path, photo.sha256)


def _open_plainly(photo: Photo) -> Any:
    from PIL import Image

    data = storage.read_bytes(photo.path)
    if hashlib.sha256(data).hexdigest() != photo.sha256:
        raise OacirError(f"{photo.path}: changed while it was measured")
    return Image.open(io.BytesIO(data)).convert("RGB")


def configuration(name: str) -> AdaFocalConfig:
    """A preset, or the scaled tower."""
    return preset("vit_g", **SCALED) if name == "scaled" else preset(name)


class Rate(NamedTuple):
    """Of one way in one round."""

    images_per_s: float
    cpu_ms: float
    """Processor time of this process for an image; rates alone say little on a busy machine."""


class Bench:
    """One tower and its photos, measured end to end and bare."""

    def __init__(self, options: argparse.Namespace, photos: list[Photo], folder: Path) -> None:
        self.options, self.folder = options, folder
        self.device = torch.device(options.device)
        self.config = configuration(options.preset)
        self.photos = list(itertools.islice(itertools.cycle(photos), options.images))
        processor = AdaFocalProcessor.for_model(self.config, train_wordpiece(["a photo"], 30))
        self.opener, open_photo = opener()
        self.pixels: Callable[[Photo], Tensor] = lambda photo: processor.pixels([open_photo(photo)])[0]
        model = random_model(self.config, seed=0)
        self.encode = tower_in(model, options.precision, self.device)
        self.row_bytes = row_bytes(
            self.config.num_image_tokens, self.config.vision_config.hidden_size, options.dtype
        )
        self.encoder: TowerEncoder[Photo] = TowerEncoder(
            self.encode,
            self.pixels,
            side=self.config.image_size,
            row_bytes=self.row_bytes,
            dtype=options.dtype,
            device=self.device,
            batch_size=options.batch,
            threads=options.decode_threads,
        )
        self.ready = torch.stack([self.pixels(photo) for photo in self.photos[: options.batch]]).to(
            self.device
        )

    def decode_s(self) -> float:
        """Seconds to read and decode one photo in one thread alone."""
        some = self.photos[:64]
        began = time.perf_counter()
        for photo in some:
            self.pixels(photo)
        return (time.perf_counter() - began) / len(some)

    def flops(self) -> int:
        """Of one image through the tower; a multiply-add is two."""
        # fused attention is counted on some devices only
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            self.encode(self.ready[:1])
        return int(counter.get_total_flops())

    def bare(self) -> Rate:
        """The tower alone, on pixels that lie ready."""
        self._settle()
        began, busy = time.perf_counter(), time.process_time()
        with torch.no_grad():
            for start in range(0, len(self.photos), self.options.batch):
                self.encode(self.ready[: len(self.photos) - start])
        self._settle()
        return self._rate(began, busy)

    def end_to_end(self) -> Rate:
        """From files to shards that lie on disk, whole and hashed."""
        size = self.options.images_per_shard
        lists = [self.photos[i : i + size] for i in range(0, len(self.photos), size)]
        began, busy = time.perf_counter(), time.process_time()
        made = list(make_shards(self.encoder, [self._shard(n, items) for n, items in enumerate(lists)]))
        rate = self._rate(began, busy)
        assert [m.error for m in made] == [""] * len(lists), made
        for number, items in enumerate(lists):
            file = self.folder / f"{number}.bin"
            assert file.stat().st_size == len(items) * self.row_bytes
            file.unlink()
        return rate

    def _rate(self, began: float, busy: float) -> Rate:
        count = len(self.photos)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - busy
        return Rate(count / seconds, cpu_s / count * 1e3)

    def _shard(self, number: int, items: list[Photo]) -> Shard[Photo]:
        def data(rows: Tensor) -> memoryview:
            return rows.numpy().data.cast("B")

        def write(whole: memoryview) -> None:
            storage.write_bytes(str(self.folder / f"{number}.bin"), whole)

        return Shard(number, items, [item.path for item in items], data, write)

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Both ways in turns, after a few batches that do not count; the ratio of each pair, and its median."""
    whole = bench.photos
    bench.photos = whole[: 2 * bench.options.batch]
    bench.bare(), bench.end_to_end()
    bench.photos = whole
    gc.collect()
    bare, whole_way, ratios = list[Rate](), list[Rate](), list[float]()
    for _ in range(rounds):
        before, found, after = bench.bare(), bench.end_to_end(), bench.bare()
        # the machine may get faster or slower meanwhile
        rate = 2 / (1 / before.images_per_s + 1 / after.images_per_s)
        bare.append(Rate(rate, (before.cpu_ms + after.cpu_ms) / 2))
        whole_way.append(found)
        ratios.append(found.images_per_s / rate)
        print(f"bare {bare[-1]}   end to end {found}   ratio {ratios[-1]:.3f}")
    return {
        "bare_images_per_s": round(statistics.median(r.images_per_s for r in bare), 2),
        "end_to_end_images_per_s": round(statistics.median(r.images_per_s for r in whole_way), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "bare_cpu_ms": round(statistics.median(r.cpu_ms for r in bare), 2),
        "end_to_end_cpu_ms": round(statistics.median(r.cpu_ms for r in whole_way), 2),
    }


def on_gpu(bench: Bench, found: dict[str, Any], flops: int, peak_tflops: float) -> dict[str, Any]:
    """What the card did of what it can."""
    per_image = flops / (peak_tflops * 1e12)
    return {
        "gpu": torch.cuda.get_device_name(bench.device),
        "peak_tflops": peak_tflops,
        "mfu_bare": round(found["bare_images_per_s"] * per_image, 4),
        "mfu_end_to_end": round(found["end_to_end_images_per_s"] * per_image, 4),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated(bench.device) / 2**30, 2),
        "minutes_for_oacirr": round(39_495 / found["end_to_end_images_per_s"] / 60, 2),
    }


def read_options() -> argparse.Namespace:
    """The command line, what was left out filled in for the device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=("tiny", "scaled", "vit_l", "vit_g"))
    parser.add_argument("--images", type=int, help="of each round; default 256, on a GPU 4096")
    parser.add_argument("--distinct", type=int, default=512, help="JPEGs that are drawn; shown in turns")
    parser.add_argument("--batch", type=int, help="images per forward; default 16, on a GPU 128")
    parser.add_argument("--images-per-shard", type=int, help="default 64, on a GPU 512")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16", help="of the stored tokens")
    parser.add_argument("--precision", choices=get_args(Precision), help="default float32, on a GPU bfloat16")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--decode-threads", type=int, help="default 1, on a GPU 8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak-tflops", type=float, default=H200_PEAK_TFLOPS, help="of the card in bfloat16")
    parser.add_argument("--folder", type=Path, help="where shards are written; default a temporary folder")
    options = parser.parse_args()
    gpu = options.device == "cuda"
    options.preset = options.preset or ("vit_g" if gpu else "scaled")
    options.images = options.images or (4096 if gpu else 256)
    options.batch = options.batch or (128 if gpu else 16)
    options.images_per_shard = options.images_per_shard or (512 if gpu else 64)
    options.precision = options.precision or ("bfloat16" if gpu else "float32")
    options.decode_threads = options.decode_threads or (8 if gpu else 1)
    return options


def main() -> None:
    """Measure, print, and write results/embed.json, or embed_gpu.json on a GPU."""
    options = read_options()
    torch.set_num_threads(options.threads)
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        folder = Path(place)
        photos = make_photos(folder, min(options.distinct, options.images))
        jpeg_bytes = round(statistics.mean(Path(photo.path).stat().st_size for photo in photos))
        bench = Bench(options, photos, folder)
        flops, decode_s = bench.flops(), bench.decode_s()
        found = measure(bench, options.rounds)
    load.append(os.getloadavg()[0])
    setting = {name: getattr(options, name) for name in SETTINGS}
    result = {
        "command": " ".join(["python -m benchmarks.embed", *sys.argv[1:]]),
        "setting": setting
        | {
            "decoder": bench.opener,
            "jpeg_bytes": jpeg_bytes,
            "load_average": [round(value, 2) for value in load],
        },
        "gflop_per_image": round(flops / 1e9, 2),
        "decode_ms": round(decode_s * 1e3, 2),
        "decode_share_of_tower": round(decode_s * found["bare_images_per_s"], 4),
        "store_bytes_per_image": bench.row_bytes,
        **found,
    }
    if options.device == "cuda":
        result |= on_gpu(bench, found, flops, options.peak_tflops)
    for name, value in result.items():
        print(f"{name}: {value}")
    print(f"written to {write_result('embed_gpu' if options.device == 'cuda' else 'embed', result)}")


if __name__ == "__main__":
    main()
