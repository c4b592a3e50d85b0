"""Distances between places whose distance is known, and what always holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.place_metrics import EARTH_RADIUS_KM, SCALES_KM, distance_km, within_km

PLACES = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


def test_known_distances() -> None:
    quarter = EARTH_RADIUS_KM * math.pi / 2
    assert distance_km([0, 0], [90, 0]) == pytest.approx(quarter)
    assert distance_km([0, 0], [0, 180]) == pytest.approx(2 * quarter)
    assert distance_km([0, 179.5], [0, -179.5]) == pytest.approx(quarter / 90)  # over the date line
    paris, berlin = [48.8566, 2.3522], [52.52, 13.405]
    assert distance_km(paris, berlin) == pytest.approx(877.5, abs=1)
    # a metre apart: the cosine form would give 0
    assert distance_km([48.0, 2.0], [48.00001, 2.0]) == pytest.approx(0.001112, rel=1e-3)


@given(PLACES, PLACES)
def test_as_the_angle_between_two_vectors(here: tuple[float, float], there: tuple[float, float]) -> None:
    def vector(place: tuple[float, float]) -> list[float]:
        lat, lon = map(math.radians, place)
        return [math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)]

    a, b = np.array(vector(here)), np.array(vector(there))
    angle = math.atan2(float(np.linalg.norm(np.cross(a, b))), float(a @ b))
    assert distance_km(here, there) == pytest.approx(EARTH_RADIUS_KM * angle, abs=0.2)
    assert distance_km(there, here) == pytest.approx(distance_km(here, there))


def test_shares() -> None:
    shares = within_km([0.5, 1.0, 30, 3000])
    assert shares == {1.0: 50, 25.0: 50, 200.0: 75, 750.0: 75, 2500.0: 75}
    assert [shares[s] for s in SCALES_KM] == sorted(shares.values())


def test_what_is_no_place_is_refused() -> None:
    with pytest.raises(ValueError, match="degrees"):
        distance_km([91, 0], [0, 0])
    with pytest.raises(ValueError, match="degrees"):
        distance_km([0, 0], [float("nan"), 0])
    with pytest.raises(ValueError, match="no answer"):
        within_km([])
