"""The names of all plots, and how a figure is shown and saved.

Knows in which room each plot lives. Draws nothing.
"""

from benchlib.questions.anatomy.plots import (
    against_pixels,
    arithmetic_bars,
    cost_line,
    memory_bars,
    memory_trend,
    stage_stack,
)
from benchlib.questions.batching.frontier_plot import frontier
from benchlib.questions.batching.plots import gain, gantts, latency_cdf, step_time_curve
from benchlib.questions.capacity.plots import goodput_curve, hockey_stick, load_curve, queue_share
from benchlib.questions.capacity.stages_by_load import stages_by_load
from benchlib.questions.compare.plots import forest, nights
from benchlib.questions.scale.plots import cost_against_promise, promise_over_day
from benchlib.questions.settings.cost_plot import costs
from benchlib.questions.settings.plots import decision, ladder, picture_grid
from benchlib.study.figure import Picture, picture, save, show
from benchlib.study.machine_over_time import machine_over_time
from benchlib.study.run_plots import (
    latency_distribution,
    latency_over_time,
    latency_parts,
    memory_over_time,
)

__all__ = [
    "Picture",
    "against_pixels",
    "arithmetic_bars",
    "cost_against_promise",
    "cost_line",
    "costs",
    "decision",
    "forest",
    "frontier",
    "gain",
    "gantts",
    "goodput_curve",
    "hockey_stick",
    "ladder",
    "latency_cdf",
    "latency_distribution",
    "latency_over_time",
    "latency_parts",
    "load_curve",
    "machine_over_time",
    "memory_bars",
    "memory_over_time",
    "memory_trend",
    "nights",
    "picture",
    "picture_grid",
    "promise_over_day",
    "queue_share",
    "save",
    "show",
    "stage_stack",
    "stages_by_load",
    "step_time_curve",
]
