"""Made-up outcomes of simulated days: a peak at 14:00 that three cards do not bear."""

from typing import Any

import numpy as np

from benchlib.questions.scale.outcomes import DayOutlook, FleetDays

WINDOW_S = 900.0
WINDOWS = 96
DAYS = 6
HOURS = (np.arange(WINDOWS) + 0.5) / 4
RATES = 3.0 + 2.5 * np.cos(2 * np.pi * (HOURS - 14) / 24)
IMAGES = np.full(DAYS, RATES.sum() * WINDOW_S)


def make_fleet(
    least: int,
    most: int | None = None,
    *,
    target: float | None = None,
    broken: tuple[float, float] = (0.0, 0.0),
    sometimes: tuple[float, float] = (0.0, 0.0),
    card_hours: float | None = None,
) -> FleetDays:
    """A fleet that breaks the promise in the hours `broken` on all days, in `sometimes` on one."""
    in_time = np.full((DAYS, WINDOWS), 0.99)
    in_time[:, (broken[0] <= HOURS) & (broken[1] > HOURS)] = 0.4
    in_time[0, (sometimes[0] <= HOURS) & (sometimes[1] > HOURS)] = 0.9
    hours = 24.0 * least if card_hours is None else card_hours
    varied = 0 if card_hours is None else np.linspace(-0.02, 0.02, DAYS)
    return FleetDays(
        least=least,
        most=most or least,
        target_ongoing=target,
        q=0.95,
        in_time=in_time,
        broken_h=(in_time < 0.95).sum(axis=1) / 4,
        card_hours=hours * (1 + varied) * np.ones(DAYS),
        images=IMAGES,
        late=np.full(DAYS, 0.01),
        cards=np.full(WINDOWS, float(most or least)),
    )


FIXED = (
    make_fleet(2, broken=(8, 21)),
    make_fleet(3, broken=(13, 15), sometimes=(12, 13)),
    make_fleet(4),
)
SCALED = (
    make_fleet(2, 4, target=1.0, card_hours=88.0),
    make_fleet(2, 4, target=2.0, card_hours=68.0, sometimes=(9, 10)),
    make_fleet(2, 4, target=4.0, card_hours=60.0, broken=(9, 13)),
)
FIELDS: dict[str, Any] = {
    "slo": "p95 < 10 s",
    "q": 0.95,
    "limit_s": 10.0,
    "day": "A day of 3 requests/s in the mean, and 5.5 at 14:00",
    "requests": float(IMAGES[0]),
    "window_s": WINDOW_S,
    "rates": RATES,
    "fixed": FIXED,
    "scaled": SCALED,
    "failing": make_fleet(4, broken=(14, 14.5)),
    "refusal": None,
    "server": "tiny; baseline, continuous",
    "is_tiny": True,
    "card": None,
    "images": 60,
    "image_s": 0.7,
    "source": "a run made now",
    "remarks": (),
    "startup_s": 12.5,
    "restart_s": 12.5,
    "startup_is_measured": True,
    "mtbf_h": None,
    "price_per_hour": None,
}


def make_outlook(**changes: Any) -> DayOutlook:
    return DayOutlook(**FIELDS | changes)
