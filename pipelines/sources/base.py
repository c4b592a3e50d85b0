"""What every source of photos offers: its listing, what it refuses, and a fingerprint of its input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


class Source(Protocol):
    """A collection of photos, grouped by instance, before any of them is opened.

    Every entry of the collection is in exactly one of `listing` and `rejects`.
    """

    @property
    def name(self) -> str:
        """A short name for logs and provenance."""
        ...

    def listing(self) -> Iterator[pa.Table]:
        """Tables of `records.LISTING`, in pieces; sorted by (domain, instance_id, image_id) over the whole stream.

        Boxes are in pixels of the image as it is stored; `images.upright_box` turns them once the orientation is known.

        Raises:
            OacirError: the collection does not have the form that the source reads.
        """
        ...

    def rejects(self) -> Iterator[dict[str, Any]]:
        """Rows of `records.REJECTS` (stage collect, entity images) for entries that can be no image, in key order."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 (hex) over what identifies the input: equal for an unchanged input, part of the version's key."""
        ...
