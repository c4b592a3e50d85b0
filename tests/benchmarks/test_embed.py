"""The benchmark of embedding runs where only torch, transformers, numpy and pillow are, and says what it did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import sys
from pathlib import Path
for name in sys.argv[1].split(",") if sys.argv[1] else ():
    sys.modules[name] = None
from benchmarks import embed, machine
machine.RESULTS = Path(sys.argv[2])
sys.argv[1:] = sys.argv[3:]
embed.main()
"""


@pytest.mark.parametrize(
    ("without", "decoder"),
    [("", "training.images.open_image"), ("ray,deepspeed,pyarrow,pydantic,mlflow", "pillow alone")],
)
def test_the_benchmark_runs_with_and_without_what_a_gpu_machine_lacks(
    without: str, decoder: str, tmp_path: Path
) -> None:
    options = (
        "--preset tiny --images 11 --batch 4 --images-per-shard 5 --rounds 1 --decode-threads 2 --dtype int8"
    )
    command = [sys.executable, "-c", RUN, without, str(tmp_path), *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "embed.json").read_text())
    assert found["setting"]["decoder"] == decoder
    assert found["store_bytes_per_image"] == 257 * (128 + 4)
    # 16 x 16 patches and a class token through one block: projections, attention, MLP, patches
    products = 257 * (4 * 128 * 128 + 2 * 128 * 256) + 2 * 257 * 257 * 128 + 256 * 128 * 48
    assert found["gflop_per_image"] == pytest.approx(2 * products / 1e9, abs=0.006)
    assert found["ratio"] == pytest.approx(
        found["end_to_end_images_per_s"] / found["bare_images_per_s"], rel=1e-2
    )
    assert found["machine"]["versions"]["torch"]
