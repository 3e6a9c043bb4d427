"""Simulated cards behind one queue: formulas of queueing theory, one lane, failures, an autoscaler."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchlib.queueing.cards import TICK_S, Autoscaler, Failure, ServedByCards, serve_by_cards
from benchlib.queueing.lanes import BatchLane, Draws, SerialLane
from benchlib.queueing.work import AskedWork
from benchlib.serving.engine.step_times import StepTimesBySize
from benchlib.serving.replicas.routing import router_named
from benchlib.study.services import Floats
from benchmarks.planted_lanes import ACTUAL, MAX_BATCH_SIZE, PLANNED, SIZE, TIMES
from benchmarks.simulated_fleet import Asked, open_loop

NUMBER = 300_000
MOST = {"serial": 1.243, "dynamic": 2.285, "continuous": 2.235}
"""The highest throughput of one card of `batch_lane` with 20 steps, images/s."""


def serial_lane(ratios: Any = (1.0,), service_s: float = 1.0, after_s: float = 0.0) -> SerialLane:
    """A lane whose services are `service_s` times each of `ratios`, each as likely."""
    return SerialLane(
        expected_s=np.array([service_s]),
        calls=np.ones(1),
        mean_calls=1.0,
        ratios=np.sort(np.asarray(ratios, dtype=float)),
        gap_s=0.0,
        gap_error_s=0.0,
        after_s=np.array([after_s]),
        cost=lambda asked: np.full(len(asked), service_s),
        sizes=(),
    )


def batch_lane(batching: str, steps: tuple[int, ...] = (20,)) -> BatchLane:
    """A lane of a GPU's step times, whose calls vary by 5 %."""
    ones = np.ones(len(steps), dtype=np.int64)
    return BatchLane(
        batching=batching,
        max_batch_size=MAX_BATCH_SIZE,
        max_wait_s=0.05,
        planned=PLANNED,
        actual=ACTUAL,
        work=AskedWork(steps=np.array(steps, dtype=np.int64), rows=2 * ones, size=0 * ones),
        ratios=np.linspace(0.95, 1.05, 50),
        gap_s=0.0003,
        gap_error_s=0.0,
        after_s=np.zeros(1),
        sizes=(SIZE,),
    )


def erlang_c(cards: int, load: float) -> float:
    """The chance that a request waits where `cards` are loaded by the share `load` (M/M/c)."""
    offered = cards * load
    terms = [offered**k / math.factorial(k) for k in range(cards)]
    last = offered**cards / math.factorial(cards) / (1 - load)
    return last / (sum(terms) + last)


def waits_s(lane: SerialLane, cards: int, load: float) -> Floats:
    """The waits in seconds of a long queue, whose services have the mean 1 s."""
    draws = Draws.of(NUMBER, seed=1)
    served = serve_by_cards(lane, draws.arrived_s(cards * load), draws, cards=cards)
    waits: Floats = served.latency_s - lane.services_s(draws)
    return waits


# ---- known truths


@pytest.mark.parametrize(("cards", "load"), [(1, 0.7), (2, 0.8), (5, 0.9)])
def test_exponential_services_wait_as_erlang_foretold(cards: int, load: float) -> None:
    """M/M/c. Source: Erlang's C formula, in Gross et al., "Fundamentals of Queueing Theory"."""
    shares = (np.arange(20_000) + 0.5) / 20_000
    services = -np.log(1 - shares)
    waited = waits_s(serial_lane(services / services.mean()), cards, load)
    chance = erlang_c(cards, load)
    assert (waited > 1e-9).mean() == pytest.approx(chance, rel=0.02)
    assert waited.mean() == pytest.approx(chance / (cards * (1 - load)), rel=0.06)


def test_equal_services_wait_as_crommelin_foretold() -> None:
    """M/D/c. One card: Pollaczek & Khinchine. Three cards at 0.8: Cosmetatos' approximation."""
    assert waits_s(serial_lane(), 1, 0.8).mean() == pytest.approx(0.8 / (2 * 0.2), rel=0.03)
    cards, load = 3, 0.8
    of_exponential_s = erlang_c(cards, load) / (cards * (1 - load))
    more = (1 - load) * (cards - 1) * (math.sqrt(4 + 5 * cards) - 2) / (16 * load * cards)
    waited = waits_s(serial_lane(), cards, load).mean()
    assert waited == pytest.approx((1 + more) / 2 * of_exponential_s, rel=0.03)


@pytest.mark.parametrize("batching", ["serial", "dynamic", "continuous"])
@pytest.mark.parametrize("steps", [(20,), (10, 20, 50)])
def test_one_card_is_the_lane(batching: str, steps: tuple[int, ...]) -> None:
    lane = batch_lane(batching, steps)
    draws = Draws.of(4000, seed=2)
    rate = 0.75 * MOST[batching] * 20 / np.mean(steps)
    served = serve_by_cards(lane, draws.arrived_s(rate), draws, cards=1)
    np.testing.assert_allclose(served.latency_s, lane.latencies_s(draws, rate), rtol=1e-6)


def test_one_card_in_series_is_the_serial_lane() -> None:
    lane = serial_lane(np.linspace(0.5, 1.5, 100), after_s=0.1)
    draws = Draws.of(20_000, seed=3)
    served = serve_by_cards(lane, draws.arrived_s(0.9), draws, cards=1)
    np.testing.assert_allclose(served.latency_s, lane.latencies_s(draws, 0.9), rtol=1e-9)


# ---- several cards


@pytest.mark.parametrize("batching", ["dynamic", "continuous"])
def test_many_cards_serve_their_share_and_wait_less_than_one(batching: str) -> None:
    lane = batch_lane(batching)
    draws = Draws.of(20_000, seed=4)
    rate = 0.8 * MOST[batching]
    alone = serve_by_cards(lane, draws.arrived_s(rate), draws, cards=1).latency_s
    together = serve_by_cards(lane, draws.arrived_s(4 * rate), draws, cards=4).latency_s
    assert together.mean() < alone.mean()
    assert np.quantile(together, 0.95) < np.quantile(alone, 0.95)
    least_s = lane.service_s * lane.ratios.min() / lane.ratios.mean()
    assert together.min() >= 0.99 * least_s


def test_an_overload_is_worked_off_at_the_highest_throughput_of_all_cards() -> None:
    lane = batch_lane("continuous")
    draws = Draws.of(6000, seed=5)
    most = MOST["continuous"]
    arrived_s = draws.arrived_s(3 * 1.3 * most)
    served = serve_by_cards(lane, arrived_s, draws, cards=3)
    done_s = np.sort(arrived_s + served.latency_s)
    begin, end = 2000, 5500
    throughput = (end - begin) / (done_s[end] - done_s[begin])
    assert throughput == pytest.approx(3 * most, rel=0.04)


@pytest.mark.parametrize(
    ("cards", "load", "steps"), [(2, 0.8, (10, 20, 50)), (4, 0.7, (20,))], ids=["mixed", "equal"]
)
def test_several_cards_wait_as_behind_the_real_router(
    cards: int, load: float, steps: tuple[int, ...]
) -> None:
    """The front and its router, simulated call by call, with the time of handing a request over."""
    lane = replace(batch_lane("continuous", steps), actual=PLANNED, ratios=np.ones(1), gap_s=0.0)
    draws = Draws.of(800, seed=5)
    arrived_s = draws.arrived_s(cards * load * MOST["continuous"] * 20 / float(np.mean(steps)))
    ours_s = serve_by_cards(lane, arrived_s, draws, cards=cards).latency_s
    asked_steps = lane.drawn_work(draws).steps
    requests = [
        Asked(SIZE, 2, int(number), float(at_s))
        for number, at_s in zip(asked_steps, arrived_s, strict=True)
    ]
    spec = {"batching": "continuous", "max_batch_size": MAX_BATCH_SIZE, "max_wait_ms": 50}
    spec |= {"step_times": StepTimesBySize({SIZE: TIMES}).to_spec()}
    open_loop(cards, spec, router_named("foretold"), requests, seed=1)
    real_s = np.array([asked.latency_s for asked in requests])
    assert ours_s.mean() == pytest.approx(real_s.mean(), rel=0.08)
    assert np.quantile(ours_s, 0.95) == pytest.approx(np.quantile(real_s, 0.95), rel=0.08)


def test_a_fixed_number_of_cards_is_paid_for_all_the_time() -> None:
    draws = Draws.of(1000, seed=6)
    served = serve_by_cards(serial_lane(), draws.arrived_s(1.0), draws, cards=3, until_s=2000.0)
    assert len(served.paid) == 2000 / TICK_S
    assert set(served.paid[1:]) == {3}


def test_no_request_is_no_latency() -> None:
    draws = Draws.of(1, seed=0)
    served = serve_by_cards(serial_lane(), np.zeros(0), draws, cards=2, until_s=100.0)
    assert len(served.latency_s) == 0


# ---- failures


@pytest.mark.parametrize("batching", ["serial", "dynamic", "continuous"])
def test_what_a_failed_card_had_inside_is_made_again_by_others(batching: str) -> None:
    lane = batch_lane(batching)
    draws = Draws.of(3000, seed=7)
    arrived_s = draws.arrived_s(2 * 0.7 * MOST[batching])
    moments_s = np.linspace(0.1, 0.8, 7) * arrived_s[-1]
    failures = [Failure(float(at_s), place % 2) for place, at_s in enumerate(moments_s)]
    usual = serve_by_cards(lane, arrived_s, draws, cards=2)
    failed = serve_by_cards(lane, arrived_s, draws, cards=2, restart_s=5.0, failures=failures)
    assert usual.made_again == 0
    assert 1 <= failed.made_again <= 7 * 2 * MAX_BATCH_SIZE
    assert np.isfinite(failed.latency_s).all(), "none is lost"
    assert failed.latency_s.mean() > usual.latency_s.mean()
    before = arrived_s + usual.latency_s < moments_s[0]
    np.testing.assert_array_equal(failed.latency_s[before], usual.latency_s[before])


def test_a_failure_of_the_only_card_delays_by_its_restart() -> None:
    draws = Draws.of(3, seed=8)
    arrived_s = np.array([0.0, 10.0, 40.0])
    served = serve_by_cards(
        serial_lane(), arrived_s, draws, cards=1, restart_s=20.0, failures=[Failure(10.5, 0)]
    )
    np.testing.assert_allclose(served.latency_s, [1.0, 0.5 + 20 + 1, 1.0])
    assert served.made_again == 1


# ---- the autoscaler


def steps_of_load(scaling: Autoscaler, startup_s: float) -> ServedByCards:
    """Half an hour of 0.5 requests/s, one of 4/s, and two of 0.5/s; a service takes 1 s."""
    gaps = [2.0] * 900 + [0.25] * 7200 + [2.0] * 3600
    arrived_s = np.cumsum(gaps)
    draws = Draws.of(len(arrived_s), seed=9)
    return serve_by_cards(
        serial_lane(), arrived_s, draws, cards=scaling, startup_s=startup_s, until_s=9000.0
    )


def test_cards_are_asked_for_after_the_delay_and_given_up_after_the_other() -> None:
    served = steps_of_load(Autoscaler(1, 6, target_ongoing=1.0), startup_s=60.0)
    paid = served.paid
    grows = int(np.flatnonzero(paid > 1)[0]) * TICK_S
    assert 1800 + 30 <= grows <= 1800 + 30 + 3 * TICK_S
    falls = int(np.flatnonzero(paid > 1)[-1]) * TICK_S
    assert 3600 + 600 <= falls <= 3600 + 600 + 6 * TICK_S
    assert paid.max() == 6, "the queue that stood while cards started"
    assert set(paid[:150]) == {1}


def test_a_longer_start_costs_latency_and_a_lower_target_saves_it() -> None:
    quick = steps_of_load(Autoscaler(1, 6), startup_s=0.0).latency_s
    slow = steps_of_load(Autoscaler(1, 6), startup_s=300.0).latency_s
    eager = steps_of_load(Autoscaler(1, 6, target_ongoing=0.5), startup_s=300.0).latency_s
    assert slow.mean() > 2 * quick.mean()
    assert eager.mean() < slow.mean()
    for latency_s in (quick, slow, eager):
        assert np.isfinite(latency_s).all()


def test_equal_bounds_are_a_fixed_number() -> None:
    scaled = steps_of_load(Autoscaler(3, 3), startup_s=10.0)
    gaps = [2.0] * 900 + [0.25] * 7200 + [2.0] * 3600
    draws = Draws.of(len(gaps), seed=9)
    fixed = serve_by_cards(serial_lane(), np.cumsum(gaps), draws, cards=3, until_s=9000.0)
    np.testing.assert_array_equal(scaled.latency_s, fixed.latency_s)


# ---- bad input


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("cards", {"cards": 0}),
        ("cards", {"cards": 1000}),
        ("startup_s", {"startup_s": -1.0}),
        ("restart_s", {"restart_s": math.nan}),
        ("first", {"cards": Autoscaler(2, 4), "first": 1}),
        ("arrived_s", {"arrived_s": np.array([2.0, 1.0])}),
        ("draws", {"arrived_s": np.arange(20.0)}),
    ],
)
def test_bad_input_is_named(words: str, changes: dict[str, Any]) -> None:
    given = {"arrived_s": np.array([1.0, 2.0]), "cards": 2} | changes
    arrived_s = given.pop("arrived_s")
    with pytest.raises(ValueError, match=f"^{words}"):
        serve_by_cards(serial_lane(), arrived_s, Draws.of(5, seed=0), **given)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("least", {"least": 0, "most": 2}),
        ("most", {"least": 3, "most": 2}),
        ("target_ongoing", {"least": 1, "most": 2, "target_ongoing": 0}),
        ("upscale_delay_s", {"least": 1, "most": 2, "upscale_delay_s": -1}),
    ],
)
def test_a_bad_autoscaler_is_named(words: str, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        Autoscaler(**given)
