"""Rows and calls of the UNet: by the guidance and sampler of a request, and by its server's model."""

import pandas as pd

import benchlib as bl
from benchlib.queueing.unet_work import images_of, with_unet_work
from tests.queueing.simulated_runs import simulated_run

ASKED = pd.DataFrame(
    {
        "num_inference_steps": pd.array([10, 10, 10, None], dtype="Int64"),
        "guidance_scale": [7.5, 1.0, None, 0.0],
        "scheduler": pd.array(["heun", "lcm", None, None], dtype="string"),
    }
)


def work(spec):
    found = with_unet_work(ASKED, spec)
    return list(found["rows"]), list(found["calls"])


def test_most_models_take_two_rows_with_guidance_and_a_call_for_a_step():
    assert work({}) == ([2, 1, 2, 1], [19, 10, 10, 1])
    assert work({"guided_rows": 2, "scheduler_class": "EulerDiscreteScheduler"}) == work({})


def test_a_unet_that_reads_the_guidance_takes_one_row():
    assert work({"guided_rows": 1}) == ([1, 1, 1, 1], [19, 10, 10, 1])


def test_the_servers_own_sampler_counts_where_a_request_names_none():
    heun = {"scheduler_class": "HeunDiscreteScheduler"}
    assert work(heun) == ([2, 1, 2, 1], [19, 10, 19, 1])


def test_the_first_steps_of_pndm_count_unless_the_server_skips_them():
    pndm = {"scheduler_class": "PNDMScheduler"}
    assert work(pndm)[1] == [19, 10, 11, 2]
    assert work(pndm | {"skips_prk_steps": True})[1] == [19, 10, 11, 2]
    assert work(pndm | {"skips_prk_steps": False})[1] == [19, 10, 19, 10]


def test_requests_may_lack_guidance_and_samplers():
    found = with_unet_work(ASKED[["num_inference_steps"]], {})
    assert list(found["rows"]) == [2, 2, 2, 2]
    assert list(found["calls"]) == [10, 10, 10, 1]


def test_the_images_of_a_run_have_the_work_of_its_server():
    run = simulated_run("continuous", rate=1.0, requests=20)
    usual = images_of(run)
    run.spec["target"]["scheduler_class"] = "HeunDiscreteScheduler"
    twice = images_of(run)
    assert list(twice["calls"]) == list(2 * usual["num_inference_steps"] - 1)


def test_twice_as_many_calls_of_half_the_time_foretell_the_same():
    """A request of a two-call sampler takes the time of its calls, not of its steps."""
    size = {"width": 64, "height": 64}
    times = {"encode_s": {"1": 0.0}, "decode_s": {"1": 0.0}, "step_s": {"1": 1.0, "2": 1.0}}
    spec = {
        "batching": "continuous",
        "max_batch_size": 8,
        "max_wait_ms": 0.0,
        "step_times": {"64x64": times},
        "showcase": size | {"num_inference_steps": 10},
    }
    euler = bl.foretell(spec, [10.0])
    heun = bl.foretell(spec, [10.0], workload=bl.Workload(**size, scheduler="heun"))
    assert euler.lane.work.steps.tolist() == [10]
    assert heun.lane.work.steps.tolist() == [19]
    assert heun.service_s == euler.service_s
