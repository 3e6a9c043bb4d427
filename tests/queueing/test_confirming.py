"""A run that had no part in an estimate confirms it, or does not; on servers of known behaviour."""

from dataclasses import replace

import numpy as np
import pytest

from benchlib.load.arrivals import OpenLoop
from benchlib.queueing.confirming import confirmation, typical_seed
from benchlib.queueing.estimates import calibrate
from tests.queueing.simulated_runs import simulated_run

SLO = "p95 < 3 s"
RATES = {"serial": 0.6, "dynamic": 1.1, "continuous": 1.1}


@pytest.fixture(scope="module", params=RATES)
def batching(request):
    return request.param


@pytest.fixture(scope="module")
def calibration(batching):
    return calibrate(simulated_run(batching, rate=RATES[batching], requests=60, seed=1))


def test_another_run_of_the_same_server_confirms(batching, calibration):
    run = simulated_run(batching, rate=1.05 * RATES[batching], requests=90, seed=2)
    judged = confirmation(calibration, run, slo=SLO)
    assert judged.verdict == "confirmed", judged
    assert (judged.images, judged.rate) == (90, 1.05 * RATES[batching])
    low, high = judged.foretold_promised_s
    assert low <= judged.promised_s <= high
    assert judged.typical_off < 0.05
    assert judged.run is run
    assert str(judged).endswith("/s: confirmed")


def test_a_slower_server_does_not(batching, calibration):
    factors = 1.2 * np.exp(0.01 * np.random.default_rng(3).standard_normal(90))
    run = simulated_run(batching, rate=RATES[batching], requests=90, seed=2, factors=factors)
    judged = confirmation(calibration, run, slo=SLO)
    assert judged.verdict == "not confirmed"
    assert "were foretold" in judged.reason


def test_few_images_are_too_short(batching, calibration):
    run = simulated_run(batching, rate=RATES[batching], requests=12, seed=2)
    judged = confirmation(calibration, run, slo=SLO)
    assert (judged.verdict, judged.reason) == ("too short", "20 images are needed")


def test_noise_that_hides_a_slower_server_is_too_short():
    noisy = calibrate(simulated_run("serial", rate=0.6, requests=60, noise=0.5, seed=1))
    wide = replace(noisy, refusal=None, service_share=0.05)
    judged = confirmation(
        wide, simulated_run("serial", rate=0.6, requests=25, noise=0.5, seed=2), slo=SLO
    )
    assert judged.verdict in ("too short", "confirmed")
    if judged.verdict == "too short":
        assert "10 % slower" in judged.reason


def test_an_invalid_run_and_a_refused_estimate_judge_nothing(calibration):
    run = simulated_run("serial", rate=0.6, requests=60, seed=2)
    failed = replace(run, record=run.record | {"status": "failed", "error": "no room"})
    judged = confirmation(calibration, failed, slo=SLO)
    assert (judged.verdict, judged.reason) == ("not judged", "the run failed: no room")
    refused = replace(calibration, refusal="12 images show too little")
    assert confirmation(refused, run, slo=SLO).verdict == "not judged"


def test_a_typical_run_is_about_as_harsh_as_the_long_run(calibration):
    capacity = calibration.capacity(SLO).rate
    arrivals = OpenLoop(1.1 * capacity)
    seed = typical_seed(calibration, arrivals, 60, slo=SLO, first=3)
    assert 3 <= seed < 23
    assert typical_seed(calibration, arrivals, 60, slo=SLO, first=3) == seed


def test_a_run_that_lost_many_requests_judges_nothing(calibration):
    run = simulated_run("serial", rate=0.6, requests=60, seed=2)
    requests = run.requests.copy()
    requests.loc[10:29, "error"] = "503: the queue is full"
    judged = confirmation(calibration, replace(run, requests=requests), slo=SLO)
    assert (judged.verdict, judged.reason) == ("not judged", "33 % of its requests got no image")


def test_an_overload_has_typical_arrivals_too(calibration):
    arrivals = OpenLoop(20 * calibration.most_images_per_s)
    seeds = {typical_seed(calibration, arrivals, n, slo=SLO) for n in (40, 80)}
    assert seeds <= set(range(20))
