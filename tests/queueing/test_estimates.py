"""Estimates against simulated servers whose truth is known, and against planted faults."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchlib.load.workload import Workload
from benchlib.queueing.confirming import confirmation
from benchlib.queueing.estimates import Calibration, Prediction, calibrate, foretell
from benchmarks.planted_lanes import Fault
from tests.queueing.simulated_runs import GAP_S, SIZE, TIMES, simulated_run

POLICIES = ("serial", "dynamic", "continuous")
RATES = {"serial": 0.75, "dynamic": 1.2, "continuous": 1.2}


@pytest.fixture(scope="module", params=POLICIES)
def batching(request):
    return request.param


def calibrated_run(batching, requests=60, seed=0):
    return simulated_run(batching, rate=RATES[batching], requests=requests, seed=seed)


@cache
def calibrated(batching, requests=60, seed=0):
    return calibrate(calibrated_run(batching, requests, seed))


def test_a_run_of_sixty_images_is_explained(batching):
    run = simulated_run(batching, rate=RATES[batching], requests=60)
    calibration = calibrated(batching)
    assert calibration.status == "stands", calibration
    assert calibration.images == 60
    replayed = calibration.replay(run)
    assert replayed["residual_s"].abs().median() < 0.05 * replayed["measured_s"].mean()


def test_the_gap_is_told_apart_from_what_follows_the_lane(batching):
    lane = calibrated(batching, 200).lane
    calls = 22 if batching == "serial" else 1  # serial's gap is that of a whole image
    assert lane.gap_s == pytest.approx(calls * GAP_S, rel=0.3)
    assert lane.after_s.mean() == pytest.approx(0.02, rel=0.3)


def test_sixty_images_foretell_what_ten_thousand_requests_took(batching):
    rate = RATES[batching]
    calibration = calibrated(batching, seed=1)
    truth = simulated_run(batching, rate=rate, requests=10_000, seed=2).requests["latency_s"]
    foretold = calibration.predict(rate, slo="p95 < 3 s")
    # Ten thousand dependent latencies have errors of their own.
    assert foretold.p50_s == pytest.approx(truth.quantile(0.5), rel=0.1)
    assert foretold.p95_s == pytest.approx(truth.quantile(0.95), rel=0.15)
    assert foretold.in_time == pytest.approx((truth <= 3).mean(), abs=0.03)
    low, high = foretold.p95_s_interval
    assert low < foretold.p95_s < high


def test_the_capacity_keeps_the_promise_and_a_little_more_does_not(batching):
    calibration = calibrated(batching)
    found = calibration.capacity("p95 < 3 s")
    low, high = found.interval
    assert low < found.rate < high
    assert (high - low) / found.rate <= 0.05
    assert calibration.predict(0.97 * found.rate, "p95 < 3 s").in_time > 0.95
    assert calibration.predict(1.03 * found.rate, "p95 < 3 s").in_time < 0.95


@pytest.mark.parametrize("seed", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_promise_for_999_of_1000_requests_has_an_interval_of_use(seed):
    found = calibrated("continuous", seed=seed).capacity("p99.9 < 3 s")
    low, high = found.interval
    assert 0.03 < (high - low) / found.rate < 0.1
    assert low < 0.732 < high  # of 300,000 requests at 0.73/s, 99.901 % came in time


def planted(fault, requests):
    """Relative durations with a noise of 1 %, and a fault."""
    random = np.random.default_rng(3)
    factors = np.exp(0.01 * random.standard_normal(requests))
    if fault == "pause":
        factors[40] += 3
    elif fault == "slow spell":
        factors[40 : 40 + requests // 10] *= 1.3
    elif fault == "drift":
        factors *= np.linspace(1, 1.15, requests)
    return factors


@pytest.mark.parametrize("fault", ["pause", "slow spell", "drift"])
def test_services_that_are_not_alike_are_noticed(batching, fault):
    # A tenth of a short run is two batches, which chance may well bring together.
    requests = 80 if batching == "serial" else 240
    factors = planted(fault, requests)
    run = simulated_run(batching, rate=RATES[batching], requests=requests, factors=factors)
    calibration = calibrate(run)
    assert calibration.status in ("widened", "refused")
    assert calibration.breaches


def test_another_policy_than_the_named_one_is_noticed():
    run = simulated_run("serial", rate=0.75, requests=80, policy="dynamic")
    assert calibrate(run).status != "stands"


def test_a_server_without_timings_is_foretold_from_requests_that_found_it_empty():
    run = simulated_run("serial", rate=0.4, requests=200, timed=False)
    calibration = calibrate(run)
    assert calibration.status != "refused", calibration
    timed = calibrate(simulated_run("serial", rate=0.4, requests=200))
    by_latencies = calibration.capacity("p95 < 3 s")
    assert by_latencies.rate == pytest.approx(timed.capacity("p95 < 3 s").rate, rel=0.05)


def test_a_server_of_several_lanes_without_timings_is_refused():
    run = simulated_run("continuous", rate=2.0, requests=200, timed=False)
    calibration = calibrate(run)
    assert calibration.status == "refused"
    assert calibration.capacity("p95 < 3 s").rate is None


def test_a_light_run_gives_the_services_and_a_loaded_one_shows_whether_they_hold():
    light = simulated_run("serial", rate=0.15, requests=60, timed=False, seed=3)
    loaded = simulated_run("serial", rate=0.75, requests=80, timed=False, seed=4)
    calibration = calibrate([light, loaded])
    assert calibration.status != "refused", calibration
    assert 20 <= calibration.images < 140  # those that found the server empty
    timed = calibrated("serial", 200)
    by_latencies = calibration.capacity("p95 < 3 s")
    # The way to the client counts as the lane's time, too, so the capacity is a little too low.
    assert 0.93 < by_latencies.rate / timed.capacity("p95 < 3 s").rate < 1


def test_a_light_run_does_not_hide_that_a_foreign_server_has_several_lanes():
    light = simulated_run("continuous", rate=0.15, requests=60, timed=False, seed=3)
    loaded = simulated_run("continuous", rate=1.5, requests=100, timed=False, seed=4)
    assert calibrate([light, loaded]).status == "refused"


def test_noise_that_images_share_widens_the_interval():
    assert calibrated("serial").inflation < calibrated("dynamic").inflation


def test_a_rate_that_may_overload_the_server_has_no_interval():
    run = simulated_run("serial", rate=0.75, requests=20, noise="lognormal 30 %")
    calibration = calibrate(run)
    prediction = calibration.predict(0.97 * calibration.most_images_per_s, "p95 < 60 s")
    assert prediction.stable
    assert prediction.p95_s_interval is None
    assert prediction.in_time_interval is None


def test_few_images_are_refused_in_words():
    calibration = calibrate(simulated_run("serial", rate=0.75, requests=12))
    assert calibration.status == "refused"
    assert "20 are needed" in str(calibration)
    assert calibration.predict(0.5).p95_s is None
    assert "12 images" in str(calibration.capacity("p95 < 3 s"))


def test_a_promise_that_single_images_break_has_no_capacity():
    found = calibrate(simulated_run("serial", rate=0.5, requests=40)).capacity("p95 < 0.1 s")
    assert found.rate is None
    assert "to itself" in found.note


def test_an_overload_has_no_steady_state():
    calibration = calibrate(simulated_run("serial", rate=0.5, requests=40))
    prediction = calibration.predict(10.0)
    assert not prediction.stable
    assert prediction.p95_s is None


def test_runs_of_different_servers_are_refused():
    one = simulated_run("serial", rate=0.5, requests=30)
    other = simulated_run("dynamic", rate=0.5, requests=30)
    with pytest.raises(ValueError, match="differ in batching"):
        calibrate([one, other])


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_bad_rate_is_named(rate):
    calibration = calibrate(simulated_run("serial", rate=0.5, requests=30))
    with pytest.raises(ValueError, match="rate must be"):
        calibration.predict(rate)


def test_step_times_alone_foretell_a_plan(batching):
    from benchlib.serving.engine.step_times import StepTimesBySize

    spec = {
        "batching": batching,
        "max_batch_size": 8,
        "max_wait_ms": 5.0,
        "step_times": StepTimesBySize({SIZE: TIMES}).to_spec(),
        "showcase": {"width": 1024, "height": 1024, "num_inference_steps": 20},
    }
    plan = foretell(spec, [0.78, 0.79, 0.8])
    assert plan.service_s == pytest.approx(0.79)
    assert plan.status == "widened"
    measured = calibrated(batching, 200)
    low, high = plan.capacity("p95 < 3 s").interval
    assert low < measured.capacity("p95 < 3 s").rate < high


@pytest.mark.parametrize(
    ("own", "workload", "rows"),
    [
        ({}, None, 2),
        ({"guidance_scale": 0.0}, None, 1),
        ({"guidance_scale": 0.0}, Workload(guidance_scale=5.0), 2),
        ({}, Workload(guidance_scale=1), 1),
    ],
)
def test_images_without_guidance_take_a_row_each(own, workload, rows):
    from benchlib.serving.engine.step_times import StepTimesBySize

    spec = {
        "batching": "continuous",
        "max_batch_size": 8,
        "max_wait_ms": 5.0,
        "step_times": StepTimesBySize({SIZE: TIMES}).to_spec(),
        "showcase": {"width": 1024, "height": 1024, "num_inference_steps": 4} | own,
    }
    assert foretell(spec, [0.3, 0.31], workload).lane.work.rows.tolist() == [rows]


def test_shared_steps_that_no_run_showed_widen_the_estimate():
    run = simulated_run("continuous", rate=0.1, requests=60)
    (breach,) = calibrate(run).breaches
    assert "shared steps" in breach.words
    seen = simulated_run("continuous", rate=1.2, requests=60)
    assert calibrate(seen).status == "stands"
    assert calibrate([run, seen]).status == "stands", "one of the runs shows them"


def test_runs_between_which_the_machine_changed_widen_the_estimate(batching):
    rate = RATES[batching]
    before = simulated_run(batching, rate=rate, requests=60)
    factors = 1.06 * np.exp(0.01 * np.random.default_rng(5).standard_normal(60))
    after = simulated_run(batching, rate=rate, requests=60, factors=factors, seed=1)
    assert calibrate(before).status == "stands"
    together = calibrate([before, after])
    assert together.status == "widened"
    assert any("one run than in another" in breach.words for breach in together.breaches)


def changed(run, **columns):
    """The run with other values in these columns, in every row."""
    return replace(run, requests=run.requests.assign(**columns))


BAD_COLUMNS = [
    ({"phase": "warmup"}, "warm-up"),
    ({"latency_s": np.nan}, "latency_s"),
    ({"scheduled_s": np.nan}, "scheduled_s"),
    ({"denoise_s": -1.0}, "denoise_s"),
    ({"denoise_s": np.inf}, "denoise_s"),
    ({"num_inference_steps": 0}, "num_inference_steps"),
]


@pytest.mark.parametrize(("columns", "named"), BAD_COLUMNS)
def test_rows_that_can_not_be_are_refused_by_name(batching, columns, named):
    run = simulated_run(batching, rate=RATES[batching], requests=30)
    with pytest.raises(ValueError, match=named):
        calibrate(changed(run, **columns))


@pytest.mark.parametrize("shared", ["dynamic", "continuous"])
def test_a_missing_batch_size_is_refused_where_requests_share_steps(shared):
    run = simulated_run(shared, rate=RATES[shared], requests=30)
    with pytest.raises(ValueError, match="batch_size"):
        calibrate(changed(run, batch_size=np.nan))


def test_a_run_that_is_given_twice_is_refused(batching):
    run = simulated_run(batching, rate=RATES[batching], requests=30)
    with pytest.raises(ValueError, match="twice"):
        calibrate([run, run])


def test_a_tiny_rate_has_no_waits_and_a_tinier_one_is_refused(batching):
    calibration = calibrated(batching)
    foretold = calibration.predict(1e-6)
    assert foretold.mean_s == pytest.approx(calibration.service_s, rel=0.02)
    for rate in (1e-9, "1", None, True):
        with pytest.raises(ValueError, match="rate must be"):
            calibration.predict(rate)


def test_users_are_a_whole_number_that_the_simulation_holds(batching):
    for users in (0, -1, 2.5, 100_000):
        with pytest.raises(ValueError, match="users must be"):
            calibrated(batching).user_throughput(users)


def test_a_promise_that_is_no_text_is_refused(batching):
    with pytest.raises(ValueError, match="slo"):
        calibrated(batching).capacity(None)


def test_a_run_without_a_rate_confirms_nothing(batching):
    run = simulated_run(batching, rate=RATES[batching], requests=30)
    run.record["spec"]["arrivals"] = {"kind": "closed_loop", "users": 2}
    with pytest.raises(ValueError, match="no rate"):
        confirmation(calibrated(batching), run, slo="p95 < 3 s")


def without_header(run, number):
    """The run, as if so many of its answers had lost their `Server-Timing`."""
    requests = run.requests.copy()
    lost = requests.index[5 : 5 + number]
    times = ["queue_s", "encode_s", "denoise_s", "decode_s", "total_s", "batch_size"]
    requests.loc[lost, times] = np.nan
    return replace(run, requests=requests)


def test_a_lost_header_costs_one_image_and_is_told(batching):
    run = simulated_run(batching, rate=RATES[batching], requests=60)
    calibration = calibrate(without_header(run, 1))
    assert calibration.status == "widened"
    assert "1 of 60 images came without Server-Timing, and count as" in str(calibration)
    whole = calibrated(batching)
    assert calibration.service_s == pytest.approx(whole.service_s, rel=0.02)
    promise = f"p95 < {6 * whole.service_s:.3f} s"
    assert calibration.capacity(promise).rate == pytest.approx(
        whole.capacity(promise).rate, rel=0.05
    )


def test_many_lost_headers_leave_the_latencies_alone():
    run = simulated_run("serial", rate=0.2, requests=60)
    calibration = calibrate(without_header(run, 20))
    assert "20 of 60 images came without Server-Timing, so latencies alone" in str(calibration)


def test_a_run_that_failed_is_named():
    run = simulated_run("serial", rate=0.75, requests=60)
    failed = replace(run, record=run.record | {"status": "failed", "error": "the server is gone"})
    calibration = calibrate(failed)
    assert calibration.status == "widened"
    assert "1 run failed, and what was measured before counts" in str(calibration)
    assert calibration.service_s == calibrated("serial").service_s


def test_more_load_leaves_no_shorter_latency_open(monkeypatch):
    """A curve's interval near the highest rate is wide, yet its low end never falls."""
    intervals = {1.0: (1.0, 2.0), 2.0: (1.5, 9.0), 3.0: (0.2, 99.0), 4.0: None}
    shares = {1.0: (0.9, 1.0), 2.0: (0.2, 0.5), 3.0: (0.0, 0.8), 4.0: None}

    def predict(_self, rate, _slo=None):
        ends = {"p95_s_interval": intervals[rate], "in_time_interval": shares[rate]}
        return Prediction(rate, True, **ends)

    monkeypatch.setattr(Calibration, "predict", predict)
    curve = calibrated("serial").curve([3.0, 1.0, 2.0, 4.0]).set_index("rate")
    assert curve["p95_s_interval"].to_dict() == intervals | {3.0: (1.5, 99.0)}
    assert curve["in_time_interval"].to_dict() == shares | {3.0: (0.0, 0.5)}
    assert curve["goodput_images_per_s_interval"][3.0] == (0.0, 1.5)


def test_a_curve_of_one_number_is_refused_in_words():
    with pytest.raises(ValueError, match=r"rates: 0.5 is no list; give \[0.5, 1.0\]"):
        calibrated("serial").curve(0.5)


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), "fast", None])
def test_a_rate_that_can_not_be_is_refused_in_words(rate):
    with pytest.raises(ValueError, match="rate"):
        calibrated("serial").predict(rate)


@pytest.mark.parametrize("name", ["showcase", "max_batch_size", "max_wait_ms"])
def test_a_spec_without_a_field_names_it(name):
    spec = {
        "batching": "continuous",
        "showcase": {"width": 64, "height": 64, "num_inference_steps": 8},
        "max_batch_size": 8,
        "max_wait_ms": 5.0,
    }
    del spec[name]
    with pytest.raises(ValueError, match=f"spec has no {name}; it must be a server's spec"):
        foretell(spec, [1.0])


def test_a_run_whose_spec_names_no_server_is_one_lane():
    run = simulated_run("serial", rate=0.75, requests=60)
    spec = {name: value for name, value in run.spec.items() if name != "target"}
    calibration = calibrate(replace(run, record=run.record | {"spec": spec}))
    assert calibration.service_s == calibrated("serial").service_s


@pytest.mark.parametrize("times", [50, 1e6])
def test_a_very_safe_promise_is_kept_by_nearly_all(batching, times):
    calibration = calibrated(batching)
    rate = 0.5 * calibration.most_images_per_s
    foretold = calibration.predict(rate, f"p95 < {times * calibration.service_s:.3f} s")
    low, high = foretold.in_time_interval
    assert (foretold.in_time, high) == (1.0, 1.0)
    assert 0.999 < low < 1
    assert foretold.goodput_images_per_s_interval == pytest.approx((low * rate, rate))


TIMES_OF_SERVER = ["queue_s", "encode_s", "denoise_s", "decode_s", "total_s", "batch_size"]


def unanswered(run, which):
    """The run, as if these of its requests, by place, had not ended when it did."""
    requests = run.requests.copy()
    lost = requests.index[which]
    unknown = ["done_s", "latency_s", "http_status", *TIMES_OF_SERVER]
    requests.loc[lost, unknown] = np.nan
    requests.loc[lost, "error"] = "censored: the run was cut"
    return replace(run, requests=requests)


def failing(run, which):
    """The run, as if these of its requests, by place, had got an error at once."""
    requests = run.requests.copy()
    lost = requests.index[which]
    requests.loc[lost, TIMES_OF_SERVER] = np.nan
    requests.loc[lost, "done_s"] = requests.loc[lost, "sent_s"] + 0.01
    requests.loc[lost, "error"] = "503: the queue is full"
    return replace(run, requests=requests)


def test_requests_that_were_cut_off_are_told(batching):
    run = calibrated_run(batching)
    last_s = run.requests["sent_s"].max()
    late = np.flatnonzero(run.requests["done_s"] > last_s)
    calibration = calibrate(unanswered(run, late))
    assert calibration.status == "widened"
    (words,) = calibration.remarks
    assert words.startswith(f"{len(late)} of 60 requests had no answer yet when the run ended")
    assert words in str(calibration)
    assert "arrivals fits. " in str(calibration), "it widens nothing"


def test_requests_that_wait_in_vain_leave_no_estimate(batching):
    calibration = calibrate(unanswered(calibrated_run(batching), slice(20, 30)))
    assert calibration.status == "refused"
    assert "17 % of the requests got no image" in str(calibration)
    assert calibration.capacity("p95 < 3 s").rate is None


def test_an_overload_that_was_cut_still_shows_the_capacity():
    run = simulated_run("serial", rate=2.0, requests=200)
    sent = run.requests["sent_s"] < 60
    late = np.flatnonzero(run.requests["done_s"][sent] > 60)
    cut = unanswered(replace(run, requests=run.requests[sent]), late)
    calibration = calibrate(cut)
    assert len(late) > 20
    assert f"{len(late)} of {sent.sum()} requests had no answer yet" in str(calibration)
    found = calibration.capacity("p95 < 3 s")
    assert found.rate == pytest.approx(
        calibrated("serial", 200).capacity("p95 < 3 s").rate, rel=0.02
    )


@pytest.mark.parametrize("timed", [True, False])
def test_few_errors_widen_the_estimate_by_their_share(timed):
    run = simulated_run("serial", rate=0.2, requests=60, timed=timed)
    calibration = calibrate(failing(run, [5, 25, 45]))
    assert "3 of 60 requests failed" in str(calibration)
    assert calibration.status == "widened"
    assert calibration.service_share >= 3 / 60
    many = calibrate(failing(run, slice(5, 10)))
    assert many.status == "refused"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("interrupted", "1 run was interrupted, and what was measured before counts"),
        ("running", "1 run did not end: it still goes on, or was killed, and what was"),
    ],
)
def test_a_run_that_was_cut_still_answers_and_says_so(status, words):
    run = calibrated_run("dynamic")
    calibration = calibrate(replace(run, record=run.record | {"status": status}))
    assert words in str(calibration)
    found = calibration.capacity("p95 < 3 s")
    assert words in found.note
    assert found.rate == calibrated("dynamic").capacity("p95 < 3 s").rate


@pytest.mark.parametrize("shared", ["dynamic", "continuous"])
def test_a_server_of_batches_of_one_needs_no_shared_steps(shared):
    run = simulated_run(shared, rate=0.6, requests=60, fault=Fault(batch_size=1))
    target = run.spec["target"] | {"max_batch_size": 1}
    spec = run.spec | {"target": target}
    calibration = calibrate(replace(run, record=run.record | {"spec": spec}))
    assert calibration.status == "stands", calibration


@pytest.mark.parametrize(("images", "words"), [(1, "1 image shows too"), (2, "2 images show too")])
def test_too_few_images_are_counted_in_grammar(images, words):
    assert words in str(calibrate(simulated_run("serial", rate=0.75, requests=images)))


def test_a_promise_that_the_slowest_images_break_says_so():
    run = simulated_run("serial", rate=0.5, requests=60, noise="lognormal 30 %")
    calibration = calibrate(run)
    found = calibration.capacity(f"p99 < {1.05 * calibration.service_s:.3f} s")
    assert found.rate is None
    assert "more than 1 % of the requests take longer even if they have the server" in found.note


def test_an_overloaded_run_foretells_what_a_loaded_one_does(batching):
    usual = calibrated(batching, 200)
    run = simulated_run(batching, rate=20 * usual.most_images_per_s, requests=150, seed=3)
    calibration = calibrate(run)
    assert calibration.status == "stands", calibration
    assert calibration.service_s == pytest.approx(usual.service_s, rel=0.02)
    found = calibration.capacity("p95 < 3 s")
    assert found.rate == pytest.approx(usual.capacity("p95 < 3 s").rate, rel=0.02)
