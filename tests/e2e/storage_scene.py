"""What the storage drills share: a collection, what undisturbed builds make of it, what lies on S3 and on disk."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from drilling import ROOT, Build, photos, recipe

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

if TYPE_CHECKING:
    from s3_front import Front

PACKAGES = ("infra", "pipelines", "training", "tuning")
NO_CHECKS = {
    "infra/base/s3_failures.py": (
        "    if md5(data) != etag(answer):\n", "    if False:\n"
    ),
}  # fmt: skip
IN_PLACE = {
    "infra/base/storage.py": (
        "        _write(temporary, data)\n        temporary.replace(target)\n", "        _write(target, data)\n"
    ),
}  # fmt: skip
PAGE_BYTES = 4096


@dataclass
class Scene:
    """A collection on S3 and the same on disk, and what undisturbed builds make of it."""

    folder: Path
    store: str
    """Endpoint of the store itself."""
    cloud_recipe: Path
    local_recipe: Path
    whole: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    calls: int = 0
    """Calls of an undisturbed build."""
    keys: frozenset[str] = frozenset()
    """What it stores, relative to its root."""
    pages_bytes: int = 0
    """What an undisturbed build takes on disk, in whole pages."""

    def undisturbed(self, where: str) -> dict[str, Any]:
        """The outcome of a build that nothing disturbs; built once."""
        if where not in self.whole:
            if where == "s3":
                with front(self.store) as clean:
                    build = self.on_s3("whole", clean)
                    self.whole[where] = build.run()
                    self.calls, self.keys = clean.came, frozenset(relative(clean.puts(), "whole"))
            else:
                build = Build(self.local_recipe, self.folder / "whole")
                self.whole[where] = build.run()
                self.pages_bytes = pages(self.folder / "whole")
            self.seconds[where] = build.seconds
        return self.whole[where]

    def on_s3(self, name: str, way: Front, planted: Sequence[str] = (), **variables: str) -> Build:
        """A build whose root, photos and state are on S3, behind a front."""
        return Build(self.cloud_recipe, f"s3://drill/{name}", planted, AWS_ENDPOINT_URL=way.url, **variables)


@contextmanager
def scene(folder: Path, instances: int) -> Iterator[Scene]:
    """A store with a collection in it; the environment of this process points to it."""
    from s3_server import s3_bucket

    with s3_bucket("drill") as bucket:
        collection = photos(folder / "photos", instances)
        store = os.environ["AWS_ENDPOINT_URL"]
        for file in sorted(p for p in collection.rglob("*") if p.is_file()):
            client().put_object(
                Bucket="drill", Key=f"photos/{file.relative_to(collection)}", Body=file.read_bytes()
            )
        yield Scene(
            folder,
            store,
            recipe(folder, "cloud", f"{bucket}/photos", images_per_part=8),
            recipe(folder, "local", collection, images_per_part=8),
        )


def client() -> Any:
    import boto3

    return boto3.client("s3")


def front(store: str, seed: int = 0, **shares: float) -> Any:
    from s3_front import Faults, front_of

    return front_of(store, seed, Faults(**shares))


def stored(root: str) -> frozenset[str]:
    """What lies below a root of the bucket."""
    pages = client().get_paginator("list_objects_v2").paginate(Bucket="drill", Prefix=f"{root}/")
    return frozenset(o["Key"].removeprefix(f"{root}/") for page in pages for o in page.get("Contents", []))


def relative(paths: Any, root: str) -> list[str]:
    """Paths of calls, below a root of the bucket."""
    return [unquote(path).removeprefix(f"/drill/{root}/") for path in paths]


def pages(root: Path) -> int:
    """Bytes of all files in whole pages."""
    return sum(-(-p.stat().st_size // PAGE_BYTES) * PAGE_BYTES for p in root.rglob("*") if p.is_file())


def unreadable(root: Path) -> Iterator[Path]:
    """Files that count although they are not whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in root.rglob("*.*"):
        if not path.is_file() or path.name.endswith(".tmp"):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".parquet":
                pq.read_table(path, use_threads=False)
        except (ValueError, OSError, pa.ArrowInvalid):
            yield path


@contextmanager
def planted(mistakes: dict[str, tuple[str, str]]) -> Iterator[dict[str, str]]:
    """The environment of a command whose code is a copy of this one with these texts replaced, in its workers too."""
    with tempfile.TemporaryDirectory(prefix="oacir-planted-") as copy:
        for package in PACKAGES:
            shutil.copytree(
                ROOT / package, Path(copy) / package, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name, (old, new) in mistakes.items():
            text = (Path(copy) / name).read_text()
            if text.count(old) != 1:
                raise RuntimeError(f"{name} holds {text.count(old)} times what is to be replaced: {old!r}")
            (Path(copy) / name).write_text(text.replace(old, new))
        with chdir(copy):  # Ray's workers look into the driver's folder first
            yield {"PYTHONPATH": copy}
