"""When requests are due: the same seed gives the same moments; rates, bursts, and refusals."""

import json
import math
import statistics
from itertools import pairwise

import pytest

from benchlib.load import arrivals
from benchlib.load.arrivals import ClosedLoop, OpenLoop, Ramp, Trace

KINDS = [
    ClosedLoop(4, 0.5),
    OpenLoop(2.5, "gamma", burstiness=4, max_in_flight=9),
    Ramp(1, 10, over_s=30, stairs=10),
    Ramp(0.5, 4, over_s=30, of="rate"),
    Trace([0, 0.25], [{"prompt": "a", "width": 64}, {}]),
    Trace((1.0,)),
]


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_arrivals_travel(kind):
    written = kind.to_dict()
    assert json.loads(json.dumps(written)) == written
    assert arrivals.from_dict(written) == kind


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="kind"):
        arrivals.from_dict({"kind": "flood"})


@pytest.mark.parametrize(
    ("loop", "spread"),
    [
        (OpenLoop(20), 1.0),
        (OpenLoop(20, "constant"), 0.0),
        (OpenLoop(20, "gamma", burstiness=4), 2.0),
        (OpenLoop(20, "gamma", burstiness=0.25), 0.5),
        (OpenLoop(20, "gamma"), 1.0),
    ],
)
def test_an_open_loop_keeps_its_rate_and_its_spread(loop, spread):
    times_s = loop.schedule(500, seed=1)
    assert times_s == loop.schedule(500, seed=1)
    assert (times_s != loop.schedule(500, seed=2)) == (spread > 0)
    assert loop.schedule(10, seed=1) == [due_s for due_s in times_s if due_s < 10]
    gaps_s = [after - before for before, after in pairwise(times_s)]
    assert min(gaps_s) >= 0
    # Five standard errors, each from the gamma law's moments.
    assert len(times_s) == pytest.approx(10_000, abs=5 * spread * 100 + 1)
    assert statistics.stdev(gaps_s) * 20 == pytest.approx(spread, rel=0.15, abs=1e-9)


def test_constant_arrivals_do_not_drift():
    assert OpenLoop(10, "constant").schedule(10_000, 0)[-1] == 9999.9


@pytest.mark.parametrize("stairs", [None, 4])
@pytest.mark.parametrize(("start", "end"), [(10, 40), (40, 10), (0, 40)])
def test_a_ramp_of_rate_follows_its_line(start, end, stairs):
    ramp = Ramp(start, end, over_s=100, of="rate", stairs=stairs)
    times_s = ramp.schedule(200, seed=5)
    assert times_s == sorted(times_s)
    for from_s in range(0, 200, 25):
        if from_s >= 100:
            rate = end
        elif stairs:
            rate = start + (end - start) * (from_s // 25) / 3
        else:
            rate = start + (end - start) * (from_s + 12.5) / 100
        counted = sum(from_s <= due_s < from_s + 25 for due_s in times_s)
        assert counted == pytest.approx(rate * 25, abs=5 * math.sqrt(rate * 25))


def test_a_ramp_down_to_nothing_ends():
    assert max(Ramp(50, 0, over_s=2, of="rate").times(seed=0)) < 2


def test_users_of_a_ramp_come_and_go_one_by_one():
    forever = math.inf
    assert Ramp(1, 3, over_s=10).spans() == [(0, forever), (5, forever), (10, forever)]
    assert Ramp(3, 1, over_s=10).spans() == [(0, forever), (0, 10), (0, 5)]
    assert Ramp(0, 4, over_s=10, stairs=2).spans() == [(5, forever)] * 4
    assert Ramp(2, 2, over_s=10).spans() == [(0, forever)] * 2
    comes_s = [comes for comes, _ in Ramp(1, 10, over_s=100, stairs=10).spans()]
    assert comes_s == [10 * step for step in range(10)]


@pytest.mark.parametrize("kind", [ClosedLoop(1), Ramp(1, 2, over_s=3)])
def test_users_have_no_schedule(kind):
    with pytest.raises(ValueError, match="no schedule"):
        kind.schedule(10, 0)


@pytest.mark.parametrize(
    ("make", "fields", "named"),
    [
        (ClosedLoop, {"users": 0}, "users"), (ClosedLoop, {"users": True}, "users"),
        (ClosedLoop, {"users": 1.0}, "users"), (ClosedLoop, {"users": 1, "think_time_s": -1}, "think_time_s"),
        (ClosedLoop, {"users": 1, "think_time_s": float("nan")}, "think_time_s"),
        (ClosedLoop, {"users": 10**400}, "users"), (OpenLoop, {"rate": 10**400}, "rate"),
        (OpenLoop, {"rate": 0}, "rate"), (OpenLoop, {"rate": math.inf}, "rate"),
        (OpenLoop, {"rate": 1, "arrivals": "even"}, "arrivals"), (OpenLoop, {"rate": 1, "burstiness": 2}, "burstiness"),
        (OpenLoop, {"rate": 1, "arrivals": "gamma", "burstiness": 0}, "burstiness"),
        (OpenLoop, {"rate": 1, "max_in_flight": 0}, "max_in_flight"),
        (OpenLoop, {"rate": 1, "max_in_flight": 20_000}, "max_in_flight"),
        (Ramp, {"start": 1.5, "end": 2, "over_s": 1}, "start"), (Ramp, {"start": 0, "end": 0, "over_s": 1}, "start"),
        (Ramp, {"start": 1, "end": -2, "over_s": 1}, "end"), (Ramp, {"start": 1, "end": 2, "over_s": 0}, "over_s"),
        (Ramp, {"start": 1, "end": 2, "over_s": 1, "of": "steps"}, "of"),
        (Ramp, {"start": 1, "end": 2, "over_s": 1, "stairs": 1}, "stairs"),
        (Trace, {"times_s": []}, "times_s"), (Trace, {"times_s": [-1]}, "times_s"),
        (Trace, {"times_s": [2, 1]}, r"times_s\[1\]"), (Trace, {"times_s": [1], "requests": []}, "requests"),
        (Trace, {"times_s": [1], "requests": [{"width": 0}]}, r"requests\[0\]: width"),
        (Trace, {"times_s": [1], "requests": [{"size": 64}]}, r"requests\[0\]: 'size'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(make, fields, named):
    with pytest.raises(ValueError, match=named):
        make(**fields)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "own.csv",
            "\ufefftime_s,prompt,num_inference_steps,width,guidance_scale,who\n0.5,a cat,4,,1.5,me\n2,,,64,,\n",
        ),
        (
            "own.jsonl",
            '{"time_s": 0.5, "prompt": "a cat", "num_inference_steps": 4, "guidance_scale": 1.5}\n\n'
            '{"time_s": 2, "width": 64, "height": null, "who": "me"}\n',
        ),
    ],
)
def test_a_trace_from_a_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    first = {"prompt": "a cat", "num_inference_steps": 4, "guidance_scale": 1.5}
    assert Trace.from_file(path) == Trace([0.5, 2], [first, {"width": 64}])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.txt", "0.5\n"), ("own.csv", "prompt\na\n"), ("own.csv", "time_s\nsoon\n"), ("own.csv", "time_s\n"),
        ("own.csv", "time_s,width\n1,wide\n"), ("own.csv", "time_s,width\n1,0\n"), ("own.jsonl", "[1]\n"),
        ("own.jsonl", '{"time_s": 2}\n{"time_s": 1}\n'), ("own.jsonl", '{"time_s": 2, "prompt": 5}\n'),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        Trace.from_file(tmp_path / name)
