"""One kill of the training drill; `make drills` runs ten."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def drill_train() -> ModuleType:
    spec = importlib.util.spec_from_file_location("drill_train", Path(__file__).with_name("drill_train.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["drill_train"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_killed_driver_resumes_to_the_same_losses(drill_train: ModuleType, tmp_path: Path) -> None:
    result = drill_train.drill(kills=1, seed=1, steps=24, victim="driver", identities=24, folder=tmp_path)
    assert result.steps_once
    assert result.same_losses
    assert result.same_content
    assert 0 < result.kills[0].resumed_at < 24
    assert result.largest_share <= drill_train.MOST_REDONE
