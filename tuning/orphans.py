"""Gives back what a killed trial's workers had reserved.

Ray Train's controller makes a placement group for them, and Ray keeps that until the whole job ends (ray#54305). Ray
Train's own cleaner asks the dashboard which controllers are alive; a local session has none, and the next trial would
wait for its resources for ever.
"""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


def remove() -> int:
    """Remove the placement groups of actors that are dead; how many there were."""
    import ray
    from ray._private.state import state  # no public call says who made a group
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    removed = 0
    for raw in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(raw)
        gone = group.state == PlacementGroupTableData.REMOVED
        # what the driver made has no creating actor, and Ray counts that as one that is dead
        of_actor = not ray.ActorID(group.creator_actor_id).is_nil()
        if not gone and of_actor and group.creator_actor_dead and not group.is_detached:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            removed += 1
    if removed:
        log.info("gave back the resources of %d lost trainings", removed)
    return removed
