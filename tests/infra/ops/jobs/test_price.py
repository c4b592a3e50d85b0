from __future__ import annotations

import pytest

from infra.base.config import load_recipe
from infra.ops.jobs.config import PricesSection
from infra.ops.jobs.price import Need, cost, estimate, need
from pipelines.config import BuildRecipe
from training.config import TrainRecipe

PRICES = PricesSection(cpu_hour=0.05, gpu_hour=4.0)


def test_what_a_recipe_reserves() -> None:
    words = [("scaling.workers", "8"), ("scaling.use_gpu", "true"), ("scaling.cpus_per_worker", "6")]
    recipe = load_recipe(TrainRecipe, "tiny", words)
    assert need("train", recipe) == Need(8, 6, 1)
    assert str(need("train", recipe)) == "8 workers of 6 CPU and 1 GPU, 48 CPU and 8 GPU in all"
    assert need("embed", recipe) == Need(None, 1, 1)
    assert need("build", load_recipe(BuildRecipe, "world", [("workers", "3")])) == Need(3, 1, 0)
    assert str(need("build", load_recipe(BuildRecipe, "world"))) == (
        "a worker of 1 CPU for each that the cluster has room for"
    )
    assert need("report", recipe) == Need(1)


@pytest.mark.parametrize(
    ("needed", "hours", "workers", "prices", "money"),
    [
        (Need(8, 6, 1), 2.5, None, PRICES, 8 * 2.5 * (6 * 0.05 + 4.0)),
        (Need(8, 6, 1), 2.5, None, PricesSection(gpu_hour=4.0), 80.0),
        (Need(4), 10, None, PRICES, 2.0),
        (Need(None, 1, 1), 0.5, 4, PRICES, 0.5 * 4 * 4.05),
        (Need(None, 1, 1), 0.5, None, PRICES, None),
        (Need(8, 6, 1), None, 8, PRICES, None),
        (Need(8, 6, 1), 2.5, 8, PricesSection(cpu_hour=0.05), None),
        (Need(4), 10, None, PricesSection(gpu_hour=4.0), None),
    ],
)
def test_money(
    needed: Need, hours: float | None, workers: int | None, prices: PricesSection, money: float | None
) -> None:
    assert cost(needed, hours, workers, prices) == (money if money is None else pytest.approx(money))


def test_a_dry_run_that_cannot_tell_says_why() -> None:
    told = estimate(["build", "--config", "nowhere.yaml"], 60)
    assert told.hours is None
    assert told.message.startswith(
        "not told: its dry run here ended with 2: oacir: error: --config nowhere.yaml"
    )
    assert "took longer than 0 s" in estimate(["build"], 0.01).message
