"""What goes along with a job: this package's code and named files, without caches, secrets or anything too large."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from infra.base.errors import OacirError, RecipeError

CODE = ("infra", "pipelines", "training", "tuning")
"""The folders that a command runs from."""
CACHES = (
    ".git", "__pycache__", "*.pyc", ".venv", "venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis",
    ".import_linter_cache", ".ipynb_checkpoints", "node_modules", "*.egg-info", "mlruns", "oacir-data", ".DS_Store",
)  # fmt: skip
SECRETS = (
    ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.ppk", "id_rsa*", "id_dsa*", "id_ecdsa*",
    "id_ed25519*", ".netrc", "_netrc", ".pypirc", ".git-credentials", ".htpasswd", "credentials", "credentials.*",
    "auth_token", "kubeconfig", "*.kubeconfig", "service_account*.json", "secrets.*", ".aws", ".ssh", ".gnupg", ".kube",
    ".docker", ".azure", ".gcloud",
)  # fmt: skip
"""Names of files and folders that hold secrets. A python module may be called so, too: its content alone counts."""
SECRET_CONTENT = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{34}\b"
)
"""Private keys, AWS access keys, tokens of the Hugging Face Hub."""
MIB = 1 << 20
LARGEST_NAMED = 3
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the archive, so that equal files make an equal archive."""


@dataclass(frozen=True)
class Package:
    """What goes along."""

    files: Mapping[str, Path]
    """Path in the job's working directory → the file here."""
    made: Mapping[str, bytes] = field(default_factory=dict)
    """Files that are made for the job."""
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Reason (cache, secret, link) → what stays here."""

    @property
    def size_bytes(self) -> int:
        """Before it is compressed."""
        return sum(path.stat().st_size for path in self.files.values()) + sum(map(len, self.made.values()))

    def content_hash(self) -> str:
        """Sixteen hex digits over paths and bytes of the files; what is made for the job is not among them."""
        found = hashlib.sha256()
        for name in sorted(self.files):
            data = hashlib.sha256(self.files[name].read_bytes()).hexdigest()
            found.update(f"{name}\0{data}\n".encode())
        return found.hexdigest()[:16]


def collect(code: Path, include: Iterable[str], folder: Path) -> Package:
    """The package's code below `code`, and what is named below `folder`.

    Raises:
        RecipeError: a named path is absent, leads out of the folder, or would lie where the code lies.
        OacirError: a file holds a private key or an access key.
    """
    files: dict[str, Path] = {}
    left: dict[str, list[str]] = {}
    for part in CODE:
        _take(code / part, code, files, left)
    problems = []
    for name in include:
        path = Path(os.path.normpath(folder / name))
        inside = path.is_relative_to(folder) and path.resolve().is_relative_to(folder.resolve())
        if Path(name).is_absolute() or not inside:
            problems.append(
                f"include {name}: leads out of the working directory {folder}; name what lies below"
            )
        elif not path.exists():
            problems.append(f"include {name}: there is no such file or folder in {folder}")
        elif path != folder and path.relative_to(folder).parts[0] in CODE:
            if (code / path.relative_to(folder)) != path:
                problems.append(
                    f"include {name}: lies where this package's own code lies in the job; rename it"
                )
        else:
            _take(path, folder, files, left)
    if problems:
        raise RecipeError(problems)
    for name, path in files.items():
        if SECRET_CONTENT.search(path.read_bytes()):
            raise OacirError(
                f"{path}: holds a private key or an access key, so {name} is not sent; take it out"
            )
    return Package(files, left_out={reason: tuple(names) for reason, names in left.items()})


def require_limit(package: Package, limit_mib: float) -> None:
    """Refuse what is too large, and name the largest.

    Raises:
        OacirError: it is larger than `limit_mib`.
    """
    size = package.size_bytes
    if size <= limit_mib * MIB:
        return
    largest = sorted(package.files.items(), key=lambda item: -item[1].stat().st_size)[:LARGEST_NAMED]
    named = ", ".join(f"{name} {path.stat().st_size / MIB:,.1f} MiB" for name, path in largest)
    raise OacirError(
        f"{size / MIB:,.1f} MiB would go along, limit_mib allows {limit_mib:g}; the largest: {named}; put data on S3"
        " and include less, or raise --limit_mib"
    )


def write(package: Package, archive: Path) -> None:
    """A zip file; equal for equal contents."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name in sorted({*package.files, *package.made}):
            data = package.made[name] if name in package.made else package.files[name].read_bytes()
            info = zipfile.ZipInfo(name, EPOCH)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(info, data)


def _take(path: Path, base: Path, files: dict[str, Path], left: dict[str, list[str]]) -> None:
    for file, reason in _walk(path, base.resolve()):
        name = file.relative_to(base).as_posix()
        if reason:
            left.setdefault(reason, []).append(name)
        else:
            files[name] = file


def _walk(path: Path, base: Path) -> Iterator[tuple[Path, str]]:
    """Files below a path with "", and what stays with the reason; folders that stay are not entered."""
    if any(fnmatch(path.name, pattern) for pattern in CACHES):
        yield path, "cache"
    elif path.suffix != ".py" and any(fnmatch(path.name.lower(), pattern) for pattern in SECRETS):
        yield path, "secret"
    elif path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(base)):
        yield path, "link"
    elif path.is_dir():
        for inner in sorted(path.iterdir()):
            yield from _walk(inner, base)
    elif path.is_file():
        yield path, ""
    else:
        yield path, "no file"
