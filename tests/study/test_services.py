"""Services of a run's images, on frames small enough to check by hand."""

import numpy as np
import pandas as pd
import pytest

from benchlib.rows import ROW_DTYPES
from benchlib.study.services import (
    Losses,
    are_timed,
    found_on_arrival,
    losses,
    one_lane_services,
    services,
)


def frame(**columns):
    length = len(columns["sent_s"])
    nothing = [None] * length
    columns = {"phase": ["measure"] * length, "http_status": [200] * length} | columns
    return pd.DataFrame(
        {
            name: pd.Series(columns.get(name, nothing), dtype=kind)
            for name, kind in ROW_DTYPES.items()
        }
    )


PARTS = {
    "queue_s": [0.0, 0.5],
    "wait_s": [0.0, 0.1],
    "encode_s": [0.1, 0.1],
    "denoise_s": [1.0, 2.0],
    "decode_s": [0.2, 0.2],
    "image_s": [0.0, 0.0],
    "total_s": [1.3, 2.9],
}


def test_work_is_the_stages_and_what_is_left_passes_outside():
    images = services(frame(sent_s=[0.0, 1.0], done_s=[1.5, 4.0], **PARTS))
    assert are_timed(images)
    assert list(images["work_s"]) == pytest.approx([1.3, 2.3])
    assert list(images["outside_s"]) == pytest.approx([0.2, 0.1])


def test_images_come_in_the_order_of_sending_and_failures_are_left_out():
    requests = frame(sent_s=[3.0, 1.0, 2.0], done_s=[4.0, 2.0, 2.5], error=[None, None, "no image"])
    images = services(requests)
    assert list(images.index) == [1, 0]
    assert losses(requests).lost_share == pytest.approx(1 / 3)


def test_a_request_finds_those_that_came_earlier_and_have_no_answer():
    arrived_s = np.array([0.0, 1.0, 2.0, 6.0])
    done_s = np.array([3.0, 2.0, 5.0, 7.0])  # the second one leaves just when the third comes
    assert list(found_on_arrival(arrived_s, done_s)) == [0, 1, 1, 0]


def test_only_a_request_that_found_nobody_shows_its_service():
    images = services(frame(sent_s=[0.0, 1.0, 5.0], done_s=[2.0, 4.0, 6.5]))
    assert not are_timed(images)
    seconds = one_lane_services(images)
    assert seconds.tolist()[0] == 2.0
    assert np.isnan(seconds.tolist()[1])
    assert seconds.tolist()[2] == 1.5


def test_a_request_without_guidance_takes_one_row():
    images = services(
        frame(sent_s=[0.0, 1.0, 2.0], done_s=[1.0, 2.0, 3.0], guidance_scale=[1.0, 7.5, None])
    )
    assert list(images["rows"]) == [1, 2, 2]


def test_a_request_that_got_no_image_was_found_all_the_same():
    requests = frame(
        sent_s=[0.0, 1.0, 4.0, 5.0],
        done_s=[1.5, 3.0, None, 6.0],
        error=["503", None, "censored: cut", None],
    )
    assert list(services(requests)["found"]) == [1, 1]


def test_nothing_sent_has_no_losses():
    assert losses(frame(sent_s=[])) == Losses(sent=0, failed=0, overdue=0, cut=0)
    assert losses(frame(sent_s=[])).lost_share == 0.0


@pytest.mark.parametrize(
    ("end_s", "overdue", "cut"),
    [(None, 0, 2), (12.0, 0, 2), (13.5, 1, 1), (20.0, 2, 0)],
)
def test_a_request_without_an_answer_is_overdue_or_was_cut(end_s, overdue, cut):
    # The longest image took 2 s, and requests wait since 9 and 11 s.
    requests = frame(
        sent_s=[0.0, 1.0, 9.0, 11.0, None],
        done_s=[2.0, 1.5, None, None, None],
        error=[None, "503: the queue is full", "censored: cut", "censored: cut", "never sent"],
    )
    found = losses(requests, end_s)
    assert found == Losses(sent=4, failed=1, overdue=overdue, cut=cut)
    assert found.lost_share == (1 + overdue) / 4
