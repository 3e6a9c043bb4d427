"""The plots of one run, drawn and shown at once: `run.plot.latency_over_time()`.

Knows which frames of a run each plot takes. Ignorant of how it is drawn (run_plots.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchlib.study import run_plots
from benchlib.study.figure import PathLike, Picture, show
from benchlib.study.machine_over_time import machine_over_time

if TYPE_CHECKING:
    from benchlib.study.store import Run


@dataclass(frozen=True, repr=False)
class PlotsOfRun:
    """Each method draws a plot of the run and returns the picture, which a cell shows.

    With a `path`, the picture is also saved as `path`.png and `path`.svg.
    """

    run: Run

    def __repr__(self) -> str:
        names = [name for name in vars(type(self)) if not name.startswith("_")]
        plots = [f"{name}()" for name in names]
        return f"<the plots of a run: {', '.join(plots)}>"

    def latency_over_time(self, path: PathLike | None = None) -> Picture:
        """Each request's latency at the moment it was made: see `bl.plots.latency_over_time`."""
        run = self.run
        ax = run_plots.latency_over_time(requests=run.requests, record=run.record)
        return show(ax, path)

    def latency_distribution(self, path: PathLike | None = None) -> Picture:
        """How the latencies spread: see `bl.plots.latency_distribution`."""
        run = self.run
        ax = run_plots.latency_distribution(requests=run.requests, record=run.record)
        return show(ax, path)

    def latency_parts(self, path: PathLike | None = None) -> Picture:
        """Where each image's time went: see `bl.plots.latency_parts`."""
        run = self.run
        ax = run_plots.latency_parts(requests=run.requests, record=run.record)
        return show(ax, path)

    def memory_over_time(self, path: PathLike | None = None) -> Picture:
        """Memory of the server over the run: see `bl.plots.memory_over_time`."""
        run = self.run
        ax = run_plots.memory_over_time(
            telemetry=run.telemetry,
            record=run.record,
            requests=run.requests,
        )
        return show(ax, path)

    def machine_over_time(self, path: PathLike | None = None) -> Picture:
        """Images/s, requests under way, CPU and GPU: see `bl.plots.machine_over_time`."""
        run = self.run
        ax = machine_over_time(telemetry=run.telemetry, requests=run.requests, record=run.record)
        return show(ax, path)
