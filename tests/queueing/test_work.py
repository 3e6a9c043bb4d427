"""What requests ask for: the work of images, and of all that a workload may send."""

import numpy as np
import pandas as pd
import pytest

from benchlib.load.workload import Workload
from benchlib.queueing.work import POPULATION, AskedWork, population, sizes_of, work_of

SIZES = [(512, 512), (1024, 1024)]


def asked(steps):
    steps = np.asarray(steps)
    return AskedWork(steps, np.full(len(steps), 2), np.zeros(len(steps), dtype=int))


def test_work_names_sizes_by_their_place():
    images = pd.DataFrame(
        {
            "width": [1024, 512],
            "height": [1024, 512],
            "calls": [20, 4],
            "rows": [2, 1],
        }
    )
    assert sizes_of([images]) == SIZES
    work = work_of(images, SIZES)
    assert list(work.size) == [1, 0]
    assert list(work.steps) == [20, 4]
    assert list(work.rows) == [2, 1]


def test_each_choice_comes_as_often_as_it_is_likely():
    workload = Workload(width=1024, height=1024, num_inference_steps={10: 3, 20: 1})
    found = population(workload.to_dict(), asked([10, 20]), [(1024, 1024)], {})
    assert len(found) == POPULATION
    assert (found.steps == 10).mean() == pytest.approx(0.75)
    assert (found.rows == 2).all()


def test_choices_of_two_fields_are_independent():
    workload = Workload(
        width=1024, height=1024, num_inference_steps=[10, 20], guidance_scale=[1.0, 7.5]
    )
    found = population(workload.to_dict(), asked([10, 20]), [(1024, 1024)], {})
    both = (found.steps == 10) & (found.rows == 1)
    assert both.mean() == pytest.approx(0.25)


def test_a_mix_of_samplers_counts_their_calls_of_the_unet():
    workload = Workload(
        width=1024, height=1024, num_inference_steps=10, scheduler={"heun": 1, None: 3}
    )
    own = asked([10, 19])
    found = population(workload.to_dict(), own, [(1024, 1024)], {"guided_rows": 1})
    assert dict(zip(*np.unique(found.steps, return_counts=True), strict=True)) == {
        10: 0.75 * POPULATION,
        19: 0.25 * POPULATION,
    }
    assert (found.rows == 1).all()


def test_equal_work_is_one_request():
    own = asked([20, 20, 20])
    assert own.is_equal
    workload = Workload(width=1024, height=1024, num_inference_steps=20)
    assert len(population(workload.to_dict(), own, [(1024, 1024)], {})) == 1


@pytest.mark.parametrize("workload", [None, Workload(num_inference_steps=[10, 20])])
def test_without_a_named_size_the_images_stand_for_all(workload):
    own = asked([10, 20, 20])
    plain = None if workload is None else workload.to_dict()
    assert population(plain, own, [(1024, 1024)], {}) is own


def test_a_size_that_no_image_had_has_no_cost():
    own = asked([10, 20])
    workload = Workload(width=[512, 1024], height=1024, num_inference_steps=[10, 20])
    assert population(workload.to_dict(), own, [(1024, 1024)], {}) is own
