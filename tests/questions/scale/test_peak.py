"""A real run at the peak's load, judged by simulations of its very arrivals."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchlib import calibrate
from benchlib.budget import Budget
from benchlib.questions.scale import measure
from benchlib.questions.scale.measure import confirm_at_peak
from benchlib.questions.scale.peak import judge_peak
from benchlib.queueing.day import DayCurve
from tests.questions.scale.made_days import FIXED, make_outlook
from tests.queueing.simulated_runs import simulated_run


@pytest.fixture(scope="module", params=["serial", "continuous"])
def calibration(request):
    return calibrate(simulated_run(request.param, rate=0.9, requests=100))


def test_a_run_that_goes_as_foretold_confirms_and_a_slower_server_does_not(calibration):
    batching = getattr(calibration.lane, "batching", "serial")
    run = simulated_run(batching, rate=0.8, requests=60, seed=5)
    peak = judge_peak(calibration, run, replicas=1, slo="p95 < 3 s")
    assert (peak.verdict, peak.images, peak.replicas) == ("confirmed", 60, 1)
    assert peak.foretold_s[0] <= peak.promised_s <= peak.foretold_s[1]
    assert "1 real card made 60 images at 0.8/s: confirmed (" in str(peak)
    assert "foretold (99 %)" in peak._repr_html_()

    slow = simulated_run(batching, rate=0.8, requests=60, seed=5, factors=np.full(60, 1.5))
    late = judge_peak(calibration, slow, replicas=1, slo="p95 < 3 s")
    assert late.verdict == "not confirmed"
    as_two = judge_peak(calibration, run, replicas=2, slo="p95 < 3 s")
    assert as_two.foretold_s[1] < peak.foretold_s[1], "two cards would have been sooner"


def test_a_few_images_say_nothing(calibration):
    batching = getattr(calibration.lane, "batching", "serial")
    run = simulated_run(batching, rate=0.8, requests=10)
    peak = judge_peak(calibration, run, replicas=1, slo="p95 < 3 s")
    assert str(peak) == "1 real card made 10 images at 0.8/s: too short"


def test_nothing_is_run_where_nothing_can_be_confirmed():
    earlier = SimpleNamespace(server=None, pipe=None, budget=None)
    assert confirm_at_peak(earlier, make_outlook(), None) is None
    assert confirm_at_peak(earlier, make_outlook(fixed=FIXED[:1]), None) is None
    with pytest.raises(ValueError, match=r"^replicas"):
        confirm_at_peak(earlier, make_outlook(), None, replicas=0)


@pytest.mark.parametrize("replicas", [1, 2])
def test_each_real_card_gets_its_share_of_the_peak(calibration, replicas, monkeypatch, tmp_path):
    day = DayCurve(1.6, peak_factor=2.0)
    sent = {}

    def run_at(name, rate, server, *_, **__):
        sent.update(name=name, rate=rate, server=server.name)
        batching = getattr(calibration.lane, "batching", "serial")
        return simulated_run(batching, rate=rate, requests=40)

    def server_named(name, **options):
        return SimpleNamespace(name=name, stop=lambda: stopped.append(name), options=options)

    stopped: list[str] = []
    monkeypatch.setattr(measure, "_run_at", run_at)
    monkeypatch.setattr("benchlib.serving.server.serve", server_named)
    card = SimpleNamespace(
        calibration=calibration,
        slo="p95 < 3 s",
        steps=20,
        record={"spec": {"target": {"model": "sdxl", "recipe": "bf16", "batching": "serial"}}},
        server=server_named("one card"),
        pipe="a pipe",
        budget=Budget(None, results=tmp_path),
    )
    peak = confirm_at_peak(card, make_outlook(), day, replicas=replicas)
    assert (peak.replicas, peak.images) == (replicas, 40)
    assert sent["name"] == measure.CONFIRM
    assert sent["rate"] == pytest.approx(replicas * 3.2 / 4), "four cards are enough"
    assert sent["server"] == ("one card" if replicas == 1 else "sdxl")
    assert set(stopped) == {"one card", sent["server"]}
