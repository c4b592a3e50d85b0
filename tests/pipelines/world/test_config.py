"""The world's options: bounds, and built without heavy imports."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.world.config import WorldConfig
from pipelines.world.places import PLACES


@pytest.mark.parametrize(
    "options",
    [
        {"instances_per_domain": 1},
        {"scenes_per_instance": 7},
        {"companions": 3},
        {"near_duplicate_fraction": 1.5},
        {"domains": ("boats",)},
        {"domains": ()},
        {"image_size": 64},
    ],
)
def test_options_outside_their_bounds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        WorldConfig(**options)


def test_the_most_scenes_an_instance_may_have_is_the_number_of_places() -> None:
    for places in PLACES.values():
        WorldConfig(scenes_per_instance=len(places), reserve_scenes=len(places))
        with pytest.raises(ValidationError):
            WorldConfig(scenes_per_instance=len(places) + 1)


def test_building_the_options_imports_neither_numpy_nor_torch() -> None:
    code = (
        "import sys; from pipelines.world.config import WorldConfig; WorldConfig();"
        "print([m for m in ('numpy', 'torch', 'PIL', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
