"""The learning rate over a run: it rises in a straight line, then falls like half a cosine, or stays.

A schedule knows only which share of the run is done, so that a run limited by minutes and one limited by steps end at
the same rate, and a resumed run needs nothing but its step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleKind = Literal["cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Factor on every group's own learning rate."""

    kind: ScheduleKind = "cosine"
    """What follows the warm-up."""
    warmup: float = 0.05
    """Share of the run in which the rate rises."""
    n_steps: int
    """Steps of the whole run: the first step is not made at a rate of 0."""

    def rate(self, share: float) -> float:
        """Return the factor, 0 to 1, for the step that begins when `share` of the run is done.

        Examples
        --------
        >>> Schedule(warmup=0.1, n_steps=100).rate(1.0)
        0.0
        """
        if share < self.warmup or self.kind == "constant":
            return min(1.0, (share + 1 / self.n_steps) / max(self.warmup, 1 / self.n_steps))
        done = (share - self.warmup) / (1 - self.warmup)
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, done))
