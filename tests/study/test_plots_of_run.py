"""The plots of a run, shown at once: the same pictures as by their functions, saved on request."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchlib import plots
from benchlib.study import machine_over_time, run_plots
from benchlib.study.figure import Picture
from benchlib.study.plots_of_run import PlotsOfRun
from benchlib.study.store import Run

PLOTS = [name for name in vars(PlotsOfRun) if not name.startswith("_")]


@pytest.fixture
def run(made: SimpleNamespace) -> Run:
    record, requests, telemetry = made.run([0.5] * 40)
    return Run(record, requests, telemetry, Path("results/quickstart/run"))


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_needs_no_path_and_a_cell_shows_it(run: Run, name: str, tmp_path: Path) -> None:
    picture = getattr(run.plot, name)()
    assert isinstance(picture, Picture)
    assert picture._repr_html_().startswith("<img width=")
    assert picture.alt.startswith("tiny model, not SDXL: ")
    assert not list(tmp_path.iterdir())


def test_with_a_path_the_picture_is_saved_too(run: Run, tmp_path: Path) -> None:
    picture = run.plot.latency_over_time(tmp_path / "figures" / "mine")
    assert (tmp_path / "figures/mine.png").read_bytes() == picture.png
    assert (tmp_path / "figures/mine.svg").exists()


def test_a_run_without_a_request_has_a_picture_that_says_so(made: SimpleNamespace) -> None:
    record, requests, telemetry = made.run([])
    run = Run(record, requests, telemetry, Path("results/quickstart/run"))
    assert "no request was sent" in run.plot.latency_over_time().alt


def test_a_run_has_every_plot_of_one_run(run: Run) -> None:
    drawn = {
        name
        for module in (run_plots, machine_over_time)
        for name, plot in vars(module).items()
        if name in plots.__all__ and getattr(plot, "__module__", "") == module.__name__
    }
    assert drawn == set(PLOTS)
    assert repr(run.plot).startswith("<the plots of a run: latency_over_time(), ")
