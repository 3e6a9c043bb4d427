"""The soak's plan, what it judges, and a short soak with every kind of fault."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from benchmarks import held_lines, soak
from benchmarks.figures import Figure
from benchmarks.soak_plan import (
    BENCHMARK,
    BLOCK,
    EACH_FREQUENT,
    FREQUENT,
    IMAGES,
    RARE,
    WRONG,
    Plan,
    shots,
)
from benchmarks.soak_server_process import Held
from benchmarks.soak_users import Seen


def failed(figures):
    return [figure.name for figure in figures if figure.passed is False]


# ---- the plan


def test_a_seed_gives_one_sequence():
    assert Plan(seed=3).first(500) == Plan(seed=3).first(500)
    assert Plan(seed=3).first(500) != Plan(seed=4).first(500)


def test_each_block_holds_the_same_kinds():
    asks = Plan(seed=0).asks()
    blocks = [Counter(ask.kind for ask in islice(asks, BLOCK)) for _ in range(len(RARE))]
    for block in blocks:
        assert all(block[kind] == EACH_FREQUENT for kind in FREQUENT)
        assert sum(block[kind] for kind in set(RARE)) == 1
    assert set().union(*blocks) == {*FREQUENT, *RARE, "plain"}


def test_both_routes_and_each_wrong_body_are_asked():
    asks = Plan(seed=0).first(5 * BLOCK)
    assert {ask.path for ask in asks if ask.kind == "plain"} == {IMAGES, BENCHMARK}
    assert len({ask.body for ask in asks if ask.kind == "bad"}) == len(WRONG)


def test_each_image_has_a_seed_of_its_own():
    seeds = [shot.seed for shot in shots()]
    assert len(set(seeds)) == len(seeds)


# ---- what is judged, by hand


def asked(*, kind="plain", status=200, number=0, **fields):
    ask = next(one for one in Plan(seed=0).asks() if one.kind == kind)
    seen = Seen(replace(ask, number=number), f"serial-{number}", float(number), 0.1, status)
    return replace(seen, **fields)


def line(seen, **fields):
    return {"id": seen.request_id, "path": seen.ask.path, "status": seen.status} | fields


def soaked(seen, record, *, held=None, **counted):
    """A soak by hand; /metrics has `counted`, and else what is right for one image."""
    metrics = dict.fromkeys(
        [
            *(
                ("benchlib_refusals_total", reason)
                for reason in ("queue_full", "loading", "stopping")
            ),
            *(("benchlib_cancellations_total", reason) for reason in ("deadline", "client_gone")),
            ("benchlib_failures_total", ""),
        ],
        0.0,
    )
    metrics["benchlib_images_total", IMAGES] = counted.get("images", 1.0)
    metrics["benchlib_failures_total", ""] = counted.get("failures", 0.0)
    idle = Held(0.5, 8, 12)
    return soak.Soaked("serial", [], seen, held or (idle, idle), record, metrics)


def plain_image(**fields):
    ask = next(one for one in Plan(seed=0).asks() if one.kind == "plain" and one.path == IMAGES)
    return replace(asked(), ask=ask, **fields)


def test_a_soak_without_a_fault_holds():
    seen = plain_image()
    assert failed(soak.judge_counts(soaked([seen], [line(seen)]))) == []


@pytest.mark.parametrize(
    ("fields", "record", "counted", "broken"),
    [
        ({}, [], {"images": 0}, ["ids on one side only, or twice"]),
        ({}, [{}, {}], {"images": 2}, ["ids on one side only, or twice"]),
        (
            {},
            [{"status": 500}],
            {"failures": 1},
            ["ids whose status differs between the sides"],
        ),
        ({}, [{}], {"images": 2}, ["requests that /metrics counts otherwise"]),
        ({"wrong": 1}, [{}], {}, ["answers that are not right"]),
        ({"status": 500}, [{}], {"failures": 1}, ["answers that are not right"]),
    ],
)
def test_each_fault_of_counting_is_seen(fields, record, counted, broken):
    seen = plain_image(**fields)
    lines = [line(seen, **changed) for changed in record]
    assert failed(soak.judge_counts(soaked([seen], lines, **counted))) == broken


def test_who_left_may_be_unread_and_who_stayed_not():
    left = asked(kind="left", status=None, number=7)
    assert failed(soak.judge_counts(soaked([left], [], images=0))) == []
    unanswered = asked(status=None, number=8, problem="ReadError")
    broken = failed(soak.judge_counts(soaked([unanswered], [], images=0)))
    assert broken == ["ids on one side only, or twice", "answers that are not right"]


def test_growth_and_drift_are_seen():
    steady = [asked(number=number) for number in range(100)]
    assert failed(soak.judge_growth(soaked(steady, []))) == []
    grown = (Held(0.5, 8, 12), Held(0.52, 9, 13))
    slower = [replace(seen, took_s=0.1 + 0.001 * seen.at_s) for seen in steady]
    assert failed(soak.judge_growth(soaked(slower, [], held=grown))) == [
        "memory (RSS) gained after the first minute, %",
        "threads gained",
        "open files gained",
        "p50 of the last tenth against the first's, %",
    ]


def test_errors_that_nobody_planted_and_wrong_images_are_seen():
    planted = "RuntimeError: step-error, planted by the soak\n"
    assert failed(soak.judge_process("serial", {"wrong": 0}, planted)) == []
    broken = failed(soak.judge_process("serial", {"wrong": 1}, f"{planted}KeyError: 'x'\n"))
    assert len(broken) == 2


@pytest.mark.timeout(900)
def test_a_short_soak_accounts_for_every_request(tmp_path):
    figures = soak.quick(tmp_path, asks=100, block=25)
    assert failed(figures) == []
    [made] = [figure.value for figure in figures if figure.name == "images made"]
    assert made > 150


# ---- the table and the record


def test_a_broken_line_is_told_and_kept(tmp_path, capsys):
    figures = [
        Figure.once("serial", "images made", 7, low=10),
        Figure.once("serial", "lost", 0, 0, 0),
        Figure.once("serial", "drift, %", 1.5, -5, 5),
        Figure("serial", "left out", [], high=2),
        Figure.once("serial", "seen alone", 3),
    ]
    assert held_lines.report("soak", figures, tmp_path, {"more": 1}) == 1
    told = capsys.readouterr().out
    assert "| serial: images made | at least 10 | 7 | NO |" in told
    assert "| serial: lost | 0 | 0 | yes |" in told
    assert "| serial: drift, % | -5 to 5 | 1.5 | yes |" in told
    assert "| serial: left out | at most 2 | not measured | NO |" in told
    assert "| serial: seen alone |  | 3 |  |" in told
    record = json.loads((tmp_path / "soak.json").read_text())
    assert record["passed"] is False
    assert record["more"] == 1
    assert len(record["figures"]) == 5
    assert held_lines.report("soak", figures[1:3], tmp_path, {}) == 0
