"""A trace of a few steps: what the CPU and the GPU of worker 0 do in them, for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from infra.base import storage
from training.job import PROFILE_FOLDER
from training.tracking import TrackingSection


class Trace:
    """A context around the steps; it traces those that the recipe names, and costs nothing without them.

    Step n is `ProfilerStep#n` in the trace.

    Args:
        section: `profile_from` and `profile_steps`.
        run_url: below which the trace lies.
        start: steps that are done; a training that goes on behind the traced ones does not trace again.
        active: whether this worker traces.
    """

    def __init__(self, section: TrackingSection, run_url: str, start: int, active: bool) -> None:
        self.run_url, self.steps = run_url, section.profile_steps or 0
        self.first, self._last = section.profile_from, start
        # the step before the first one warms the profiler up
        active = active and self.steps > 0 and start <= self.first - 2
        self._profile: Any = self._make(start) if active else None

    def _make(self, start: int) -> Any:
        from torch.profiler import ProfilerActivity, profile, schedule

        kinds = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(ProfilerActivity.CUDA)
        found: Any = profile(
            activities=kinds,
            schedule=schedule(wait=self.first - 1, warmup=1, active=self.steps, repeat=1),
            on_trace_ready=self._write,
        )
        # the trace's own counter begins at 0: a training that goes on would give its steps other names
        found.step_num = start + 1
        found.current_action = found.schedule(found.step_num)
        return found

    def __enter__(self) -> Trace:
        if self._profile is not None:
            self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def active(self) -> bool:
        """Whether it still waits for its steps, or is in their midst."""
        return self._profile is not None

    def step(self, step: int) -> None:
        """Say that a step is done."""
        if self._profile is not None:
            self._last = step
            self._profile.step()
            if step >= self.first + self.steps - 1:
                self._stop()

    def _stop(self) -> None:
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.__exit__(None, None, None)

    def _write(self, profile: Any) -> None:
        name = f"steps-{self.first}-{self._last}.json.gz"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            profile.export_chrome_trace(str(file))
            storage.send(file, storage.join(self.run_url, PROFILE_FOLDER, name))
