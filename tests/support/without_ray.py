"""Stages in this process: what a Ray task does to each part, one after the other, without a session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from ray import cloudpickle

from pipelines import stages


def run_stages_here(patch: pytest.MonkeyPatch) -> None:
    """Let `stages.run_stages` work in this process; stages travel as they would to a worker, pickled."""

    def stream(
        chain: Sequence[stages.Stage],
        version_url: str,
        pending: Sequence[int],
        records: Mapping[str, Mapping[int, stages.PartRecord]],
        workers: int | None,
        label: str,
    ) -> Iterator[dict[str, Any]]:
        travelled = cloudpickle.loads(cloudpickle.dumps(list(chain)))
        for stage in travelled:
            stages.prepare(stage, version_url)
        for part in pending:
            made = []
            try:
                for stage in travelled:
                    if part not in records[stage.name]:
                        made.append(stages.run_part(stage, version_url, part).model_dump_json())
            except stages.OacirError as error:
                yield {"part": part, "records": made, "deaths": 0, "error": str(error), "trace": ""}
            else:
                yield {"part": part, "records": made, "deaths": 0, "error": "", "trace": ""}

    patch.setattr(stages, "_stream", stream)
