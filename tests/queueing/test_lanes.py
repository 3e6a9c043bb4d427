"""The random numbers of a simulated lane."""

import numpy as np
import pytest

from benchlib.queueing.lanes import Draws


def test_arrivals_have_exactly_the_rate_asked_for():
    """Also where the seed's gaps are 0.45 % too long in all."""
    arrived_s = Draws.of(400_000, seed=20_261_127).arrived_s(2.0)
    assert arrived_s[-1] == pytest.approx(200_000)
    assert np.diff(arrived_s).std() == pytest.approx(0.5, rel=0.01)


def test_the_first_draws_of_many_have_the_rate_too():
    draws = Draws.of(10_000, seed=1).first(2_000)
    assert draws.arrived_s(4.0)[-1] == pytest.approx(500)
