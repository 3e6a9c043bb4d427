"""The ends of a simulated share: what the finite length of a simulation leaves open.

Knows simulations and odds. Ignorant of lanes, of promises, and of other services (estimates.py).
"""

from __future__ import annotations

import math

from benchlib.study.intervals import Estimates
from benchlib.study.simulated import Simulation

RULE_OF_THREE = 3.0
RARE = 1e-3
"""Below this share, the spread of an event may say too little of how often it happens."""
NEAREST = 1e-5
"""A share nearer to 0 or 1 is more than a simulation can show."""


def logit(share: float) -> float:
    """The logarithm of the odds; a share of 0 or 1 counts as one that is just off."""
    inside = min(max(share, NEAREST), 1 - NEAREST)
    return math.log(inside / (1 - inside))


def share_of(log_odds: float) -> float:
    """The share with these odds; one that is off by less than a simulation can show is 0 or 1."""
    if abs(log_odds) > 11:
        return 0.0 if log_odds < 0 else 1.0
    return 1 / (1 + math.exp(-log_odds))


def simulated_share(simulation: Simulation, limit_s: float) -> tuple[float, float, float]:
    """The share of latencies of at most `limit_s`, and the ends of its interval of 95 %.

    The ends follow from the standard error. A rare event may be seen too seldom to have one. Then
    the rule of three holds: of n requests of which none is late, 3/n may be late in truth. It is for
    independent requests, and those of one busy spell are late together. So n is their effective
    number. Source: Hanley & Lippman-Hand, "If nothing goes wrong, is everything all right?
    Interpreting zero numerators", JAMA 249 (1983).
    """
    share, error = simulation.share_within(limit_s)
    low = share - 1.96 * error
    high = share + 1.96 * error
    if min(share, 1 - share) < RARE:
        latency_s = simulation.latency_s
        unseen = RULE_OF_THREE / Estimates(latency_s).effective_number()
        if 1 - share < unseen:
            low = min(low, 1 - unseen)
        if share < unseen:
            high = max(high, unseen)
    return share, max(0.0, low), min(1.0, high)
