"""Gains that are foretold from simulated runs whose truth is known, and from curves by hand."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchlib.questions.batching.calibrated import calibrate_policies, foretell_gains
from benchlib.study.store import Run
from benchmarks.planted_lanes import AFTER_S
from tests.queueing.simulated_runs import GAP_S, simulated_run

RATE = 1.1  # an image takes 0.72 s
USERS = 4


def runs_of(batching: str, requests: int) -> Run:
    run: Run = simulated_run(batching, rate=RATE, requests=requests, seed=3)
    return run


def in_closed_loop(run: Run) -> Run:
    """The same images, of users who ask again as soon as they have one."""
    rows = run.requests
    work_s = rows["encode_s"] + rows["denoise_s"] + rows["decode_s"]
    calls = rows["num_inference_steps"] + 2
    left_s = np.cumsum(work_s + calls * GAP_S)
    sent_s = np.concatenate([np.zeros(USERS), left_s[:-USERS] + AFTER_S])
    begun_s = np.concatenate([[0.0], left_s[:-1]])
    total_s = left_s - sent_s + AFTER_S / 2
    queue_s = begun_s - sent_s
    times = {
        "scheduled_s": sent_s,
        "sent_s": sent_s,
        "queue_s": queue_s,
        "wait_s": total_s - queue_s - work_s,
        "total_s": total_s,
        "latency_s": total_s + AFTER_S / 2,
        "done_s": left_s + AFTER_S,
    }
    arrivals = {"kind": "closed_loop", "users": USERS}
    spec = run.record["spec"] | {"arrivals": arrivals}
    return replace(run, record=run.record | {"spec": spec}, requests=rows.assign(**times))


def test_the_gain_of_a_long_run_is_foretold_from_short_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchlib.questions.batching.calibrated.LOADS", ())  # takes seconds
    runs = [runs_of(name, 60) for name in ("serial", "continuous")]
    calibrations = calibrate_policies(runs)
    assert "serial: 60 images measured, " in capsys.readouterr().out
    foretold = foretell_gains(calibrations, serial_images_per_s=1.4, rates=[RATE])
    assert foretold.refusals == {}

    rows = foretold.rows.set_index(["rate", "figure"]).loc[RATE]
    truth = {}
    for name in ("serial", "continuous"):
        latency_s = runs_of(name, 20_000).requests["latency_s"]
        truth[name] = {
            "latency_mean_s": latency_s.mean(),
            "latency_p95_s": latency_s.quantile(0.95),
        }
    for figure, row in rows.iterrows():
        ratio = truth["continuous"][figure] / truth["serial"][figure]
        low, high = row["interval"]
        assert low < row["ratio"] < high
        assert 0.9 * low < ratio < 1.1 * high, "the truth is simulated, too"
        assert (row["verdict"], row["images"]) == ("lower", 120)


def test_a_closed_loop_calibrates_as_well_as_moments_that_do_not_wait() -> None:
    closed = in_closed_loop(runs_of("serial", 60))
    alone = calibrate_policies([closed])["serial"]
    assert alone.status == "stands"
    assert alone.replay(closed)["residual_s"].abs().max() < 0.3
    together = calibrate_policies([closed, runs_of("serial", 60)])["serial"]
    assert (together.status, together.images) == ("stands", 120)
    assert together.service_s == pytest.approx(alone.service_s, rel=0.01)


def test_too_few_images_are_refused_in_words_and_foretell_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchlib.questions.batching.calibrated.LOADS", (0.5,))
    few = calibrate_policies([runs_of("serial", 60), runs_of("dynamic", 8)])
    foretold = foretell_gains(few, serial_images_per_s=1.4)
    assert foretold.rows.empty
    assert foretold.refusal("dynamic") == "8 images show too little; 20 are needed"
    assert foretold.refusal("continuous") is None
    few = calibrate_policies([runs_of("serial", 8), runs_of("dynamic", 60)])
    foretold = foretell_gains(few, serial_images_per_s=1.4)
    assert foretold.rows.empty
    assert foretold.refusal("dynamic") == "of serial, 8 images show too little; 20 are needed"


def test_a_policy_without_an_image_is_left_out() -> None:
    failed = runs_of("dynamic", 8)
    failed.requests["error"] = "503"
    assert set(calibrate_policies([failed, runs_of("serial", 8)])) == {"serial"}
    assert calibrate_policies([]) == {}
    assert foretell_gains({}, serial_images_per_s=1.4).rows.empty


def by_hand(means_s: list[float | None], ends_s: list[Any]) -> Any:
    """A calibration whose curve has these mean latencies; None where it can't keep up."""
    stable = [mean_s is not None for mean_s in means_s]

    def curve(rates: list[float]) -> pd.DataFrame:
        figures = {"mean_s": means_s, "mean_s_interval": ends_s}
        figures |= {"p95_s": means_s, "p95_s_interval": ends_s}
        return pd.DataFrame(
            {"rate": rates, "stable": stable} | figures, index=range(len(rates)), dtype=object
        )

    return SimpleNamespace(images=30, refusal=None, curve=curve)


def foretold_by_hand(monkeypatch: pytest.MonkeyPatch, **curves: Any) -> pd.DataFrame:
    monkeypatch.setattr("benchlib.questions.batching.calibrated.LOADS", ())
    rates = range(1, 1 + len(curves["serial"][0]))
    calibrations = {name: by_hand(*curve) for name, curve in curves.items()}
    rows = foretell_gains(calibrations, serial_images_per_s=9.0, rates=rates).rows
    return rows[rows["figure"] == "latency_mean_s"]


def test_the_ends_add_up_as_squares_of_logarithms(monkeypatch: pytest.MonkeyPatch) -> None:
    serial = [4.0], [(2.0, 12.0)]
    dynamic = [3.0], [(1.5, 6.0)]
    row = foretold_by_hand(monkeypatch, serial=serial, dynamic=dynamic).iloc[0]
    below = np.exp(-np.hypot(np.log(2), np.log(3)))
    above = np.exp(np.hypot(np.log(2), np.log(2)))
    assert row["ratio"] == 0.75
    assert row["interval"] == pytest.approx((0.75 * below, 0.75 * above))
    assert row["verdict"] == "not shown"


def test_serial_is_at_least_as_slow_as_at_lower_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    dynamic = [2.0, 2.0], [(2.0, 2.0), (2.0, 2.0)]
    for wide in ((0.0, 300.0), None):  # it may just keep up, or not
        serial = [4.0, 40.0], [(3.5, 4.5), wide]
        rows = foretold_by_hand(monkeypatch, serial=serial, dynamic=dynamic)
        low, high = rows["interval"].iloc[1]
        assert low == pytest.approx(2.0 / wide[1] if wide else 0.0)
        assert high == pytest.approx(2.0 / 3.5), "the low end of the lower rate, not 0"
    assert rows["verdict"].tolist() == ["lower", "lower"]


def test_where_one_policy_can_not_keep_up_the_other_is_compared_with_its_floor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serial = [4.0, None, None], [(3.0, 5.0), None, None]
    dynamic = [2.0, 2.5, None], [(1.8, 2.2), (2.0, 2.9), None]
    rows = foretold_by_hand(monkeypatch, serial=serial, dynamic=dynamic)
    assert rows["rate"].tolist() == [1, 2], "where neither keeps up there is no ratio"
    assert rows["ratio"].iloc[1] == 0
    assert rows["interval"].iloc[1] == pytest.approx((0.0, 2.9 / 3.0))
    assert rows["verdict"].iloc[1] == "lower"
    rows = foretold_by_hand(monkeypatch, serial=dynamic, dynamic=serial)
    assert rows["ratio"].iloc[1] == np.inf
    assert rows["interval"].iloc[1] == pytest.approx((3.0 / 2.9, np.inf))
    assert rows["verdict"].iloc[1] == "higher"
    unknown = [4.0, 5.0], [(0.0, 9.0), (0.0, 9.0)]
    full = [2.0, None], [(1.8, 2.2), None]
    rows = foretold_by_hand(monkeypatch, serial=unknown, dynamic=full)
    assert rows["verdict"].tolist() == ["not shown", "not shown"]
