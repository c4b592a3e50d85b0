"""Photos as a request carries them: upright, scaled down, as JPEG in a data URL."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections import OrderedDict

from PIL import Image

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.annotators.chat.prompts import Picture
from pipelines.images import ImageLimits, ImageRejected, decode

QUALITY = 90
HELD_BYTES = 64 << 20
"""Encoded photos that stay in memory: those of an instance are asked for again by its next pairs."""
ANY = ImageLimits(min_side_px=1, max_pixels=2**40, max_aspect=2.0**40)
"""What an image may measure was judged when it was collected."""


class Pictures:
    """Encodes photos, from any thread; holds those used last."""

    def __init__(self, side_px: int) -> None:
        self.side_px = side_px
        self._held: OrderedDict[str, str] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def url(self, picture: Picture) -> str:
        """The photo as a data URL.

        Raises:
            OacirError: it is gone, or no longer the one that was collected.
        """
        with self._lock:
            if found := self._held.get(picture.sha256):
                self._held.move_to_end(picture.sha256)
                return found
        made = self._encode(picture)
        with self._lock:
            if picture.sha256 not in self._held:
                self._held[picture.sha256] = made
                self._bytes += len(made)
            while self._bytes > HELD_BYTES and len(self._held) > 1:
                self._bytes -= len(self._held.popitem(last=False)[1])
        return made

    def _encode(self, picture: Picture) -> str:
        data = storage.read_bytes(picture.uri)
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            raise OacirError(f"{picture.uri}: changed since it was collected (another sha256); build again")
        try:
            # a JPEG may be decoded smaller, as long as its shorter side stays above what is sent
            image = decode(data, ANY, target_px=self.side_px).image
        except ImageRejected as error:
            raise OacirError(f"{picture.uri}: cannot be decoded ({error}); build again") from error
        return data_url(image, self.side_px)


def data_url(image: Image.Image, side_px: int) -> str:
    """An RGB image as a JPEG data URL, its longer side at most `side_px`."""
    scale = side_px / max(image.size)
    if scale < 1.0:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
