"""How exactly a long simulation shows a figure: the error from its own finite length.

Pure functions on arrays. Ignorant of servers and of how the latencies were simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from benchlib.study.intervals import t_quantile
from benchlib.study.services import Floats

SEGMENTS = 40
WARM_UP_SHARE = 0.05
"""The first share of a simulated queue is left out, because it starts empty."""


@dataclass(frozen=True)
class Simulation:
    """The simulated latencies of one long queue, in the order of arrival, with a control.

    `control_s` are the waits of a queue with the same arrivals and one constant service, whose mean
    `control_mean_s` is known; None where the arrivals are not Poisson.
    """

    latency_s: Floats
    control_s: Floats | None
    control_mean_s: float

    def percentile(self, q: float) -> tuple[float, float]:
        """The percentile `q` of the latencies in seconds, and its standard error."""
        segments = self._segments(self.latency_s)
        settled = self._settled(self.latency_s)
        of_segments = np.quantile(segments, q, axis=1)
        point = float(np.quantile(settled, q))
        return self._adjusted(point, of_segments)

    def mean(self) -> tuple[float, float]:
        """The mean latency in seconds, and its standard error."""
        segments = self._segments(self.latency_s)
        of_segments = segments.mean(axis=1)
        point = float(of_segments.mean())
        return self._adjusted(point, of_segments)

    def share_within(self, limit_s: float) -> tuple[float, float]:
        """The share of latencies of at most `limit_s`, from 0 to 1, and its standard error."""
        segments = self._segments(self.latency_s)
        of_segments = (segments <= limit_s).mean(axis=1)
        point = float(of_segments.mean())
        share, error = self._adjusted(point, of_segments)
        return min(1.0, max(0.0, share)), error

    def _adjusted(self, point: float, of_segments: Floats) -> tuple[float, float]:
        """`point` moved by what the control's own error foretells, and the error that remains.

        The regression is over the segments' means. Sources: Lavenberg & Welch, Management Science
        27 (1981); Glynn & Szechtman, "Some new perspectives on the method of control variates"
        (2002). The standard error is that of batch means.
        """
        n = len(of_segments)
        residuals = of_segments - of_segments.mean()
        freedom = n - 1
        if self.control_s is not None:
            controls = self._segments(self.control_s).mean(axis=1)
            centred = controls - controls.mean()
            square = float(centred @ centred)
            if square > 0:
                slope = float(centred @ residuals) / square
                point += slope * (self.control_mean_s - float(controls.mean()))
                residuals = residuals - slope * centred
                freedom = n - 2
        variance = float(residuals @ residuals) / freedom
        error = math.sqrt(variance / n)
        for_t = t_quantile(0.975, freedom) / 1.96
        return point, for_t * error

    def _settled(self, values: Floats) -> Floats:
        start = int(WARM_UP_SHARE * len(values))
        return values[start:]

    def _segments(self, values: Floats) -> Floats:
        settled = self._settled(values)
        length = len(settled) // SEGMENTS
        whole = settled[: SEGMENTS * length]
        rows: Floats = whole.reshape(SEGMENTS, length)
        return rows
