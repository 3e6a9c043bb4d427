"""How exactly a long simulation shows a figure: the error from its own finite length.

Pure functions on arrays. Ignorant of servers and of how the latencies were simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.special import logit as logit_of

from benchlib.study.intervals import t_quantile
from benchlib.study.services import Floats

SEGMENTS = 40
WARM_UP_SHARE = 0.05
"""The first share of a simulated queue is left out, because it starts empty."""
LONG_WAIT = 4.0
"""The exponential law of long waits is used from so many mean services on."""
LEAST_LATE = 0.1
"""Without a late request in the segments, their spread says nothing: the share may be off by this
many late requests a segment."""

MORE_LATE = (2, 4, 8)
"""How many times as many late requests lower limits have, whose error is also looked at."""
FURTHEST = 2.0
"""A percentile is moved by at most so much on the scale of logits: from 95 % to 99.3 %, or 72 %."""
BRACKET = 0.25
FINE = 1e-4
SLOPE_STEP = 0.2

MOST_EXPONENT = 500
"""A larger exponent is near the end of what a float holds."""


@dataclass(frozen=True)
class Control:
    """A queue with the same arrivals as a simulated one, of which mean and tail are known.

    `wait_s` are its waits in seconds, in the order of arrival, and `mean_s` is their true mean.
    Waits above LONG_WAIT times `service_s` exceed w seconds with the chance factor exp(-decay w).
    """

    wait_s: Floats
    mean_s: float
    service_s: float
    decay: float
    factor: float

    @classmethod
    def poisson(
        cls, wait_s: Floats, rate: float, possible_s: Floats, chances: Floats | None = None
    ) -> Control:
        """The queue with Poisson arrivals at `rate`, whose services are `possible_s`.

        `chances` are those of each service; None means that all are as likely. The services must
        leave the queue time to spare. Mean: Pollaczek & Khinchine. Tail: the asymptote
        of Cramer & Lundberg, see Asmussen, "Applied Probability and Queues" (2003).
        """
        # 1) The mean
        if chances is None:
            chances = np.full(len(possible_s), 1 / len(possible_s))
        service_s = float(chances @ possible_s)
        square = float(chances @ possible_s**2)
        spare = 1 - rate * service_s
        mean_s = rate * square / (2 * spare)

        # 2) The decay is where rate (E exp(decay S) - 1) = decay: Newton's steps from above
        largest = MOST_EXPONENT / float(possible_s.max())
        decay = min(4 * spare / (rate * square), largest)
        for _ in range(MOST_EXPONENT):  # each step lowers the exponent by about 1
            grown = np.exp(decay * possible_s)
            value = rate * (float(chances @ grown) - 1) - decay
            slope = rate * float(chances @ (possible_s * grown)) - 1
            step = value / slope
            decay -= step
            if abs(step) < 1e-9 * decay:
                break
        return cls(wait_s, mean_s, service_s, decay, spare / slope)

    def exceeded_by(self, share: float) -> float | None:
        """The wait in seconds that this share exceeds; None where it is not long."""
        if not 0 < share < self.factor:
            return None
        wait_s = math.log(self.factor / share) / self.decay
        return wait_s if wait_s > LONG_WAIT * self.service_s else None


@dataclass(frozen=True)
class Simulation:
    """The simulated latencies of one long queue in seconds, in the order of arrival.

    With a `control`, figures are moved by what the control's own error foretells. The regression is
    over the means of SEGMENTS segments, and the standard error is that of batch means. Sources:
    Nelson, "Control variate remedies", Operations Research 38 (1990); Glynn & Szechtman, "Some new
    perspectives on the method of control variates" (2002).
    """

    latency_s: Floats
    control: Control | None = None

    def percentile(self, q: float) -> tuple[float, float]:
        """The percentile `q` of the latencies in seconds, and its standard error.

        It is the value below which the share `q` lies, once the control has moved that share. So
        the search is over the values: a share that is moved at one value alone would be too far
        off where the simulated queue was much longer or shorter than is usual. The slope of the
        shares turns their error into seconds. Source: Hsu & Nelson, "Control variates for
        quantile estimation", Management Science 36 (1990).
        """
        if self.control is None:
            return self._quantile(q), 0.0

        def off(logit: float) -> float:
            """How far the moved share below a simulated percentile is from `q`."""
            share, _, _ = self._share(self._quantile(float(expit(logit))))
            return share - q

        # 1) The simulated percentile that the control moves to `q`; the nearest one, since the
        #    shares of the very longest latencies are moved without sense
        start = float(logit_of(q))
        direction = -1 if off(start) > 0 else 1
        reached = start
        while off(reached) * direction < 0:
            if abs(reached - start) > FURTHEST:
                return self._quantile(q), math.inf
            reached += direction * BRACKET
        middle = start
        if reached != start:
            middle = brentq(off, reached - direction * BRACKET, reached, xtol=FINE)
        point = self._quantile(float(expit(middle)))

        # 2) The error of the share there. On the scale of logits, the moved shares rise as fast as
        #    the simulated ones; they are too rough to show a slope themselves
        _, error = self.share_within(point)
        low_s, high_s = (
            self._quantile(float(expit(middle + d))) for d in (-SLOPE_STEP, SLOPE_STEP)
        )
        of_logit = error / (q * (1 - q))
        return point, of_logit * (high_s - low_s) / (2 * SLOPE_STEP)

    def mean(self) -> tuple[float, float]:
        """The mean latency in seconds, and its standard error."""
        return self._adjusted(self._segments(self.latency_s).mean(axis=1), None)

    def share_within(self, limit_s: float) -> tuple[float, float]:
        """The share of latencies of at most `limit_s`, from 0 to 1, and its standard error.

        Few late requests come in few bursts, whose spread is then seen badly. But a rare event is
        never known better than a frequent one, as a share of itself. So the error is at least that
        of lower limits, in proportion to the share of late requests.
        """
        share, error, late = self._share(limit_s)
        for times in MORE_LATE:
            if times * late > 0.5:
                break
            _, other_error, other_late = self._share(self._quantile(1 - times * late))
            if other_late > 0:
                error = max(error, other_error * late / other_late)
        length = len(self.latency_s) // SEGMENTS
        least_error = LEAST_LATE / length if late < SEGMENTS / length else 0.0
        return share, max(error, least_error)

    def _share(self, limit_s: float) -> tuple[float, float, float]:
        """The share within `limit_s`, its error by this limit alone, and the share of the late.

        The control moves the first, and not the last.
        """
        of_segments = (self._segments(self.latency_s) <= limit_s).mean(axis=1)
        late = 1 - float(of_segments.mean())
        share, error = self._adjusted(of_segments, late)
        return min(1.0, max(0.0, share)), error, late

    def _adjusted(self, of_segments: Floats, late: float | None) -> tuple[float, float]:
        """The segments' mean, moved by the control, and its standard error.

        `late` is the share of late requests, where the segments hold shares.
        """
        n = len(of_segments)
        point = float(of_segments.mean())
        residuals = of_segments - point
        freedom = n - 1
        columns = self._controls(late)
        if columns:
            errors = np.stack(columns, axis=1)  # of the control's segments, true less simulated
            centred = errors - errors.mean(axis=0)
            slopes = np.linalg.lstsq(centred, -residuals, rcond=None)[0]
            point += float(errors.mean(axis=0) @ slopes)
            residuals = residuals + centred @ slopes
            freedom -= len(columns)
        variance = float(residuals @ residuals) / freedom
        for_t = t_quantile(0.975, freedom) / 1.96
        return point, for_t * math.sqrt(variance / n)

    def _controls(self, late: float | None) -> list[Floats]:
        """What the control's truth exceeds each segment by: in its mean, and in its tail."""
        control = self.control
        if control is None:
            return []
        waits_s = self._segments(control.wait_s)
        columns = [1 - waits_s.mean(axis=1) / control.mean_s]
        limit_s = control.exceeded_by(late) if late is not None else None
        if late is not None and limit_s is not None:
            over = (waits_s > limit_s).mean(axis=1)
            columns.append(1 - over / late)
        return columns

    def _quantile(self, q: float) -> float:
        place = min(max(q, 0.0), 1.0) * (len(self._ordered) - 1)
        return float(self._ordered[round(place)])

    @cached_property
    def _ordered(self) -> Floats:
        start = int(WARM_UP_SHARE * len(self.latency_s))
        return np.sort(self.latency_s[start:])

    def _segments(self, values: Floats) -> Floats:
        start = int(WARM_UP_SHARE * len(values))
        length = (len(values) - start) // SEGMENTS
        rows: Floats = values[start : start + SEGMENTS * length].reshape(SEGMENTS, length)
        return rows
