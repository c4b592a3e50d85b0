"""How far the place of an answer lies from the right one (MMLandmarks). Pure numpy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

EARTH_RADIUS_KM = 6371.0088
"""Mean radius."""
SCALES_KM = (1.0, 25.0, 200.0, 750.0, 2500.0)
"""Street, city, region, country, continent."""


def distance_km(here: ArrayLike, there: ArrayLike) -> NDArray[np.float64]:
    """Great-circle distances between places, km.

    Args:
        here, there: latitude and longitude in degrees, [..., 2].

    Raises:
        ValueError: a latitude is outside -90..90, or a value is not finite.
    """
    first, second = np.asarray(here, float), np.asarray(there, float)
    for places in (first, second):
        if not np.isfinite(places).all() or (np.abs(places[..., 0]) > 90).any():
            raise ValueError("a place is (latitude -90..90, longitude) in degrees")
    (lat1, lon1), (lat2, lon2) = (np.moveaxis(np.radians(p), -1, 0) for p in (first, second))
    # The haversine form: the cosine one loses all digits for places close together.
    half = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    result: NDArray[np.float64] = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half, 0.0, 1.0)))
    return result


def within_km(distances: ArrayLike, scales: Iterable[float] = SCALES_KM) -> dict[float, float]:
    """Share of answers at most so far from the right place, percent, for every distance.

    Raises:
        ValueError: there is no answer.
    """
    array = np.asarray(distances, float)
    if not array.size:
        raise ValueError("no answer to measure")
    return {scale: 100.0 * float(np.mean(array <= scale)) for scale in scales}
