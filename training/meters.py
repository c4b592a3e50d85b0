"""What training costs: seconds by part of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Parts:
    """Seconds spent by part of the step; on a GPU the parts are what the CPU waits for."""

    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    """Steps done by this process."""

    @property
    def step_s(self) -> float:
        """Seconds of a step on the mean, of what is done in each; 0 before the first."""
        in_each = sum(
            self.seconds.get(part, 0.0) for part in ("data", "forward", "backward", "optimizer", "record")
        )
        return in_each / self.steps if self.steps else 0.0

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the block's duration to a part."""
        began = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began
