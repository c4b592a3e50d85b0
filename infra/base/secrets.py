"""Secrets: from the environment or a file that its owner alone can read; never shown, never written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from infra.base.errors import OacirError

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_secret(variable: str, file: str | None) -> SecretStr | None:
    """A secret that a recipe names the place of.

    Args:
        variable: environment variable; counts where no file is named.
        file: path of a file that holds nothing else.

    Returns:
        The secret, or None where no file is named and the variable is unset or empty.

    Raises:
        OacirError: the file is not there, is empty, or others may read it.
    """
    if file is None:
        value = os.environ.get(variable, "").strip()
        return SecretStr(value) if value else None
    path = Path(file).expanduser()
    try:
        mode = path.stat().st_mode
        text = path.read_text().strip()
    except OSError as error:
        raise OacirError(f"{path}: the key cannot be read ({error.strerror or error})") from error
    if mode & OTHERS:
        raise OacirError(
            f"{path}: others may read this key (mode {stat.S_IMODE(mode):04o}); chmod 600 {path}"
        )
    if not text:
        raise OacirError(f"{path}: holds no key")
    return SecretStr(text)


def require_no_password(recipe: Mapping[str, Any], kept: str) -> None:
    """Refuse a recipe with a password in a URL: it would be written down.

    Args:
        recipe: as plain values.
        kept: where it would be, for the message.

    Raises:
        OacirError: naming the key, not the value.
    """
    for key, text in texts_of(recipe):
        if "://" in text and "@" in text and urlsplit(text).password:
            raise OacirError(
                f"{key}: holds a password, which would be kept in {kept}; take it out and give it by the environment"
            )


def texts_of(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a tree, with its dotted key below `key`."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from texts_of(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_of(inner, key)
