"""A trained model → a folder that MLflow loads: models-from-code, safetensors, JSON; never a pickle."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from infra.base.errors import OacirError, VersionError
from infra.ops.registry import galleries
from infra.ops.registry.galleries import Encoded

if TYPE_CHECKING:
    from training.stored import Dtype, Precision

CODE = "model_code.py"
CARD = "MODEL_CARD.md"
META = "oacir"
"""Key of our metadata in a model's MLmodel file."""
PINNED = (
    "fsspec", "jinja2", "mlflow", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "PyYAML", "safetensors",
    "tokenizers", "torch", "transformers",
)  # fmt: skip
"""What loading and asking a model imports, beside this package."""
ARTIFACTS, EXPORT = "artifacts", "export"
"""Folder of what the code reads, and in it of the trained model."""
TOKENS = ("token_dtype", "token_precision")
"""Of a model's configuration in MLflow."""
NO_PART = ("README.md", CARD)
"""Files that are no part of what a model is: texts about it."""
_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".skops")


@dataclass(frozen=True)
class Packed:
    """A model folder and what is known of it.

    Attributes:
        folder: with MLmodel in it.
        model_hash: of weights, settings, galleries, code and signature: equal for equal models.
        schema_hash: of the signature alone.
        size_bytes: of all files.
        origin: name/key of the run and hashes of what it was made of, as texts.
        tokens: type of the stored tokens that it reads, and its tower's arithmetic.
    """

    folder: Path
    model_hash: str
    schema_hash: str
    size_bytes: int
    origin: dict[str, str]
    tokens: tuple[Dtype, Precision]

    @property
    def export(self) -> Path:
        """The folder of the trained model in it."""
        return self.folder / ARTIFACTS / EXPORT

    @property
    def tags(self) -> dict[str, str]:
        """Of the registered version."""
        return {
            "oacir.model_hash": self.model_hash,
            "oacir.schema_hash": self.schema_hash,
            "oacir.size_bytes": str(self.size_bytes),
            **{f"oacir.{name}": value for name, value in self.origin.items()},
        }


def pack(
    export: Path,
    encoded: Sequence[Encoded],
    origin: Mapping[str, str],
    card: str,
    tokens: tuple[Dtype, Precision],
    folder: Path,
    package: str | None = None,
) -> Packed:
    """Write the model into `folder`, which must not be there.

    Args:
        export: of the trained model (safetensors, JSON).
        encoded: galleries that go with it.
        origin: run and hashes that it comes from.
        card: the model card.
        tokens: type of the stored tokens that the model reads, and its tower's arithmetic.
        folder: where to.
        package: how pip installs this package; None pins its version.

    Raises:
        OacirError: the export holds pickled files.
    """
    from mlflow.pyfunc import save_model

    from infra.ops.registry.retriever import GALLERIES, MODEL, input_example, signature

    refuse_pickles(export)
    with tempfile.TemporaryDirectory(prefix="oacir-galleries-") as name:
        named = export  # MLflow keeps the folder's name, which is no part of the model
        if export.name != EXPORT:
            named = Path(name) / EXPORT
            shutil.copytree(export, named)
        artifacts = {MODEL: str(named)}
        if encoded:
            galleries.write(Path(name) / GALLERIES, encoded)
            artifacts[GALLERIES] = str(Path(name) / GALLERIES)
        save_model(
            path=str(folder),
            python_model=str(Path(__file__).with_name(CODE)),
            artifacts=artifacts,
            signature=signature(),
            input_example=input_example(),
            pip_requirements=requirements(package),
            model_config=dict(zip(TOKENS, tokens, strict=True)),
            metadata={META: dict(origin)},
        )
    (folder / CARD).write_text(card, encoding="utf-8")
    refuse_pickles(folder)
    return read(folder)


def read(folder: Path) -> Packed:
    """What a model folder is, its hashes computed from its bytes.

    Raises:
        VersionError: it is no model that `oacir register` made.
    """
    from mlflow.models import Model

    if not (folder / "MLmodel").is_file():
        raise VersionError(f"{folder}: no MLmodel file; it is no model of MLflow")
    model = Model.load(str(folder))
    if model.signature is None or META not in (model.metadata or {}):
        raise VersionError(f"{folder}: was not made by `oacir register`; register its run with it")
    schema = json.dumps(model.signature.to_dict(), sort_keys=True)
    schema_hash = hashlib.sha256(schema.encode()).hexdigest()
    config = model.flavors["python_function"].get("config", {})
    lines = [f"schema {schema_hash}", *(f"{name} {config[name]}" for name in TOKENS)]
    parts = [folder / CODE, *_files(folder / ARTIFACTS)]
    for file in parts:
        if file.name not in NO_PART:
            lines.append(f"{file.relative_to(folder).as_posix()} {_sha256(file)}")
    return Packed(
        folder,
        hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        schema_hash,
        sum(file.stat().st_size for file in _files(folder)),
        {str(k): str(v) for k, v in model.metadata[META].items()},
        (config[TOKENS[0]], config[TOKENS[1]]),
    )


def refuse_pickles(folder: Path) -> None:
    """Whatever is unpickled runs as code; so a model folder may hold none, neither by name nor by content.

    Raises:
        OacirError: naming the first such file.
    """
    for file in _files(folder):
        with file.open("rb") as stream:
            head = stream.read(2)
        pickled = head[:1] == b"\x80" and head[1:2] in {b"\2", b"\3", b"\4", b"\5"}
        zipped = head == b"PK"
        if pickled or zipped or file.suffix in _PICKLED:
            raise OacirError(
                f"{file}: is or may be a pickle, which runs code when it is loaded; a registered model holds"
                " safetensors and JSON alone: take the file away, or `oacir convert` the model"
            )


def requirements(package: str | None = None) -> list[str]:
    """What pip installs for a registered model: the very versions of here, without local marks such as +cpu."""
    own = f"oacir=={metadata.version('oacir')}"
    return [package or own, *(f"{name}=={metadata.version(name).partition('+')[0]}" for name in PINNED)]


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and "__pycache__" not in p.parts)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
