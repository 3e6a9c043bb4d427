"""The plot of a run's machine: its panels, its words, and what is left out."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.axes import Axes

from benchlib import plots
from benchlib.study.machine_over_time import MOST_BINS, average_of, images_per_s, under_way


def panels(ax: Axes) -> list[str]:
    return [panel.get_ylabel() for panel in ax.figure.axes[1:]]


def title(ax: Axes) -> str:
    return ax.get_title("left").replace("\u00a0", " ").replace("\n", " ")


def test_a_gpu_has_its_work_power_clock_and_temperature(made: SimpleNamespace) -> None:
    record, requests, _ = made.run([0.5] * 100)
    telemetry = made.telemetry(60, gpu=True).assign(others_cpu_cores=np.nan)
    ax = plots.machine_over_time(telemetry=telemetry, requests=requests, record=record)
    assert panels(ax) == ["images/s", "requests", "cores", "%", "W", "MHz", "°C"]
    measured = telemetry[telemetry["time_s"].between(3.0, 13.0)]
    watts = f"{measured['gpu_power_w'].mean():.0f} W on average"
    assert watts in title(ax)
    assert "at most 56.8 °C, clock 1,980 MHz" in title(ax)
    bottom = ax.figure.axes[-1]
    assert bottom.get_xlabel().endswith("not sampled: CPU of all other processes")
    assert all(panel.get_ylim()[0] == 0 for panel in ax.figure.axes[1:])
    assert "temperature of the GPU: " in str(ax.get_label())


def test_what_was_not_sampled_is_left_out_in_words(made: SimpleNamespace) -> None:
    record, requests, _ = made.run([0.5] * 100)
    telemetry = made.telemetry(60).assign(others_cpu_cores=np.nan)
    ax = plots.machine_over_time(telemetry=telemetry, requests=requests, record=record)
    assert panels(ax) == ["images/s", "requests", "cores"]
    assert "not sampled: CPU of all other processes, the GPU" in ax.figure.axes[-1].get_xlabel()
    assert "the server's process took 1.6 cores on average" in title(ax)
    older = telemetry.drop(columns=["others_cpu_cores", "steal_cores"])
    assert panels(plots.machine_over_time(telemetry=older, requests=requests, record=record))
    part = made.telemetry(60, gpu=True).assign(gpu_power_w=np.nan, others_cpu_cores=0.5)
    ax = plots.machine_over_time(telemetry=part, requests=requests, record=record)
    assert ax.figure.axes[-1].get_xlabel().endswith("not sampled: power of the GPU")
    assert " W " not in title(ax)


def test_few_images_and_few_samples_claim_nothing(made: SimpleNamespace) -> None:
    record, requests, _ = made.run([0.5] * 4)
    few = made.telemetry(4, gpu=True).assign(time_s=[3.0, 3.1, 3.2, 3.3])
    ax = plots.machine_over_time(telemetry=few, requests=requests, record=record)
    assert panels(ax)[0] == "requests", "4 images are no rate"
    assert "on average" not in title(ax)
    assert "4 requests; the machine was hardly sampled" in title(ax)
    words = [panel.get_title("left") for panel in ax.figure.axes[1:]]
    assert sum("too few samples for an average" in said for said in words) == 6


def test_without_rows_and_samples_there_is_no_figure(made: SimpleNamespace) -> None:
    nothing = made.requests([])
    ax = plots.machine_over_time(
        telemetry=made.telemetry(0), requests=nothing, record=made.record()
    )
    assert "nothing was sampled" in str(ax.get_label())
    assert plots.show(ax).png is None


def test_images_per_second_add_up_to_the_images() -> None:
    done_s = np.linspace(0.01, 99.9, 1000)
    edges, rates = images_per_s(done_s, 100.0)
    assert len(edges) == MOST_BINS + 1
    assert (rates[:-1] * np.diff(edges)).sum() == pytest.approx(1000)
    edges, rates = images_per_s(np.array([1.0, 2, 3, 4, 5]), 10.0)
    assert rates.tolist() == [0.5, 0.5], "five images are one stretch"


def test_requests_under_way_never_exceed_the_users(made: SimpleNamespace) -> None:
    requests = made.requests(made.simulate(200, failed=0.1, censored=2))
    end_s = float(requests["done_s"].max()) + 1
    x, counts = under_way(requests.assign(sent_s=requests["scheduled_s"]), end_s)
    assert counts.max() == 4
    assert counts.min() == 0
    assert (np.diff(x) >= 0).all()


def test_the_average_of_a_stair_holds_its_area() -> None:
    stair = np.array([0.0, 1.0, 1.5, 4.0]), np.array([4.0, 0.0, 2.0, 0.0])
    edges, heights = average_of(stair, 2)
    assert edges.tolist() == [0.0, 2.0, 4.0]
    assert heights.tolist() == [2.5, 2.0, 2.0], "4 x 1 + 2 x 0.5, and 2 x 2, each in 2 s"
