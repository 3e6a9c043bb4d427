"""The time in the model by kind of work: which images count, and as what."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from benchlib.study.equal_work import seconds_by_work


def found(made: SimpleNamespace, *changes: dict[str, Any]) -> list[list[float]]:
    """The services of each kind, of a request for each of `changes`."""
    rows = [made.row(index, **change) for index, change in enumerate(changes)]
    return [of_kind.tolist() for of_kind in seconds_by_work(made.requests(rows)).values()]


def test_images_of_unlike_work_are_kinds_of_their_own(made: SimpleNamespace) -> None:
    unlike = [
        {"num_inference_steps": 9},
        {"width": 64},
        {"height": 64},
        {"guidance_scale": 1.0},
        {"batch_size": 1.5},
    ]
    changes = [{"service_s": 0.4}, *({"service_s": 0.5} | change for change in unlike)]
    assert found(made, *changes, {"service_s": 0.6}) == [[0.4, 0.6], *[[0.5]] * 5]
    (name,) = seconds_by_work(made.requests([made.row()]))
    assert name == "steps 8 width 128 height 128 guided True batch 1.0"


def test_prompt_seed_and_strength_of_guidance_are_no_work(made: SimpleNamespace) -> None:
    changes = [{"prompt": "a cat"}, {"seed": 99}, {"guidance_scale": 3.0}]
    assert found(made, {}, *changes) == [[0.4] * 4]


def test_only_images_of_the_window_count(made: SimpleNamespace) -> None:
    bad = [
        {"phase": "warmup"},
        {"error": "503: the queue is full"},
        {"done_s": None},
        {"service_s": 0.0},
    ]
    assert found(made, *bad, {"service_s": 0.7}) == [[0.7]]


def test_they_come_in_the_order_of_time(made: SimpleNamespace) -> None:
    later, sooner = {"service_s": 0.6, "scheduled_s": 9.0}, {"service_s": 0.5, "scheduled_s": 8.0}
    assert found(made, later, sooner) == [[0.5, 0.6]]


def test_the_stages_stand_in_for_a_time_that_is_not_sent(made: SimpleNamespace) -> None:
    assert found(made, {"service_s": None})[0] == pytest.approx([0.05 + 0.25 + 0.1])
    assert found(made, {"service_s": None, "decode_s": None}) == []
    assert found(made, {"service_s": math.nan, "encode_s": None, "denoise_s": None}) == []


def test_images_that_one_batch_made_together_count_once(made: SimpleNamespace) -> None:
    together = {"service_s": 0.5, "batch_size": 2.0}
    assert found(made, together, together, {"service_s": 0.6, "batch_size": 2.0}) == [[0.5, 0.6]]
    assert found(made, {"service_s": 0.5}, {"service_s": 0.5}) == [[0.5, 0.5]]


def test_what_a_server_was_left_to_choose_is_alike(made: SimpleNamespace) -> None:
    nothing = dict.fromkeys(("num_inference_steps", "width", "height", "guidance_scale"))
    assert found(made, nothing, nothing) == [[0.4, 0.4]]


def test_a_server_that_sends_nothing_has_none(made: SimpleNamespace) -> None:
    nothing = dict.fromkeys(("service_s", "encode_s", "denoise_s", "decode_s", "batch_size"))
    assert found(made, nothing) == []
    assert seconds_by_work(made.requests([])) == {}
