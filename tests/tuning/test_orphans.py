"""What a killed training reserved is given back, and nothing else."""

from __future__ import annotations

import pytest

from tuning import orphans

pytestmark = pytest.mark.ray


def test_only_groups_of_dead_actors_are_removed(ray_session: None) -> None:
    import ray
    from ray.util.placement_group import placement_group, placement_group_table

    @ray.remote(num_cpus=0)
    class Maker:
        def make(self) -> str:
            group = placement_group([{"CPU": 0.1}])
            ray.get(group.ready())
            return str(group.id.hex())

    own = placement_group([{"CPU": 0.1}])
    ray.get(own.ready())
    lives, dies = Maker.remote(), Maker.remote()
    kept, lost = ray.get([lives.make.remote(), dies.make.remote()])
    orphans.remove()
    states = {name: placement_group_table()[name]["state"] for name in (own.id.hex(), kept, lost)}
    assert set(states.values()) == {"CREATED"}

    ray.kill(dies)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(dies.make.remote())
    assert orphans.remove() >= 1  # trainings of other tests may have died meanwhile
    states = {name: placement_group_table()[name]["state"] for name in (own.id.hex(), kept, lost)}
    assert states == {own.id.hex(): "CREATED", kept: "CREATED", lost: "REMOVED"}
    ray.util.remove_placement_group(own)
    ray.kill(lives)
