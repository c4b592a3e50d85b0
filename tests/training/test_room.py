from __future__ import annotations

import socket

import pytest

from infra.base.errors import OacirError
from training.config import ScalingSection
from training.room import answering, needs, require_workers_fit, room, room_now


def test_a_worker_lies_on_one_node_and_needs_all_of_its_resources_there() -> None:
    needed = needs(ScalingSection(cpus_per_worker=4, use_gpu=True))
    assert needed == {"CPU": 4.0, "GPU": 1.0}
    nodes = [{"CPU": 7.0, "GPU": 4.0}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 64.0}, {"CPU": 16.0, "GPU": 2.0}]
    assert room(nodes, needed) == 1 + 0 + 0 + 2
    assert (
        room([{"CPU": 2.0}], needs(ScalingSection(cpus_per_worker=0.1))) == 20
    )  # 2 / 0.1 is no whole number
    assert room([], needed) == 0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_training_that_the_session_has_no_room_for_is_refused() -> None:
    """Ray Train would wait for ever, and say so to nobody."""
    assert require_workers_fit(ScalingSection(workers=2, cpus_per_worker=0.5)) == 4
    with pytest.raises(OacirError, match=r"scaling\.workers 3: each needs 1 CPU of one machine.*room for 2;"):
        require_workers_fit(ScalingSection(workers=3))
    with pytest.raises(
        OacirError, match=r"^train\.scaling\.workers 3: .*lower train\.scaling\.workers or train\.s"
    ):
        require_workers_fit(ScalingSection(workers=3), "train.")
    with pytest.raises(
        OacirError, match=r"has 2 CPUs and 0 GPUs on 1 machine, room for 0; .*use_gpu to false"
    ):
        require_workers_fit(ScalingSection(workers=1, use_gpu=True))


def test_a_machine_that_went_without_notice_has_no_room() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there, socket.create_server(("127.0.0.1", 0)) as lost:
        ports = [place.getsockname()[1] for place in (there, lost)]
        nodes = [{"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port} for port in ports]
        assert answering(nodes) == nodes
        lost.close()
        assert answering(nodes) == nodes[:1]
    assert answering([]) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_machine_that_is_there_has_room() -> None:
    assert room_now(ScalingSection(workers=4, min_workers=1)) == 2
