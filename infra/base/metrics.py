"""Figures of this process as Prometheus metrics: Ray collects them and serves them on each node."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Kind = Literal["Gauge", "Counter", "Histogram"]


class Metrics:
    """Series of one prefix. Where Ray serves none (it was installed without its `default` extra) they go nowhere.

    Args:
        prefix: of the names; Ray puts `ray_` before it, and `_total` behind counters.
        help: name → what it is; there are no others.
        tags: of every series.
        more: names of tags that are given with the value.
    """

    def __init__(
        self, prefix: str, help: Mapping[str, str], tags: Mapping[str, str], more: Sequence[str] = ()
    ) -> None:
        self.prefix, self.help, self.tags, self.more = prefix, help, dict(tags), tuple(more)
        self._made: dict[str, Any] = {}

    def set(self, name: str, value: float) -> None:
        """A gauge's new value."""
        self._metric("Gauge", name).set(value)

    def add(self, name: str, count: float, **tags: str) -> None:
        """So many more of a counter."""
        if count:
            self._metric("Counter", name).inc(count, tags=tags)

    def observe(self, name: str, value: float, bounds: Sequence[float]) -> None:
        """One value of a histogram; `bounds` are those of the first call."""
        self._metric("Histogram", name, boundaries=list(bounds)).observe(value)

    def _metric(self, kind: Kind, name: str, **options: Any) -> Any:
        if name not in self._made:
            import ray.util.metrics

            make = getattr(ray.util.metrics, kind)
            keys = (*self.tags, *self.more)
            self._made[name] = make(self.prefix + name, self.help[name], tag_keys=keys, **options)
            self._made[name].set_default_tags(self.tags)
        return self._made[name]


def served() -> bool:
    """Whether this process is in a Ray session; without one nobody would read the figures."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()
