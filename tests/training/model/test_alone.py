"""The model room without the rest of the stack: a GPU machine needs torch, transformers, numpy and pillow alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# scipy and pandas are not in it: torch and transformers import them where they are installed
ABSENT = ("ray", "deepspeed", "pyarrow", "mlflow", "pydantic", "s3fs", "skimage")
PROGRAM = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])
sys.meta_path.insert(0, Absent())
import training.model.auto, training.model.convert, training.losses, training.scoring, training.metrics
print(sorted(training.model.auto.MODELS))
"""


def test_the_model_room_imports_without_the_rest_of_the_stack() -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", PROGRAM.format(absent=set(ABSENT))]
    done = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "['adafocal', 'sprc']"
