"""The plots of several studies: what is drawn of each table, their words, and empty tables."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from benchlib import plots
from benchlib.questions.compare.plots import MOST

COLUMNS = ["study", "load", "figure", "a", "b", "ratio", "low", "high", "verdict", "note"]
VERDICTS = {
    "worse": (1.3, "slower"),
    "same": (1.0, "no difference beyond 5 %"),
    "open": (1.04, "inconclusive"),
}


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    numbers = dict.fromkeys(["a", "b", "ratio", "low", "high"], float)
    return pd.DataFrame([*rows], columns=COLUMNS).astype(numbers)


def line(case: str = "worse", **changes: Any) -> dict[str, Any]:
    ratio, verdict = VERDICTS[case]
    plain = {
        "study": "night-2",
        "load": "closed-4",
        "figure": "latency_p95_s",
        "ratio": ratio,
        "verdict": verdict,
    }
    return plain | {"low": ratio - 0.02, "high": ratio + 0.03} | changes


def many(nights: int, loads: int = 1) -> pd.DataFrame:
    return table(
        *(
            line(
                "same" if night < 20 else "worse",
                study=f"night-{night}",
                load=f"closed-{load}",
                figure=figure,
            )
            for night in range(1, nights)
            for load in range(loads)
            for figure in ("latency_p95_s", "memory")
        )
    )


def texts(ax: Axes) -> str:
    return "\n".join([ax.get_title("left"), *(text.get_text() for text in ax.texts)]).replace(
        "\u00a0", " "
    )


def middles(ax: Axes, axis: int) -> list[float]:
    """Where the marks stand that have bars."""
    return [float(bar.lines[0].get_xydata()[0][axis]) for bar in ax.containers]  # type: ignore[attr-defined]


def test_a_forest_has_a_line_per_figure_with_its_interval_and_verdict(
    made: SimpleNamespace,
) -> None:
    drawn = table(line(), line("same", figure="memory"), line("open", figure="latency_p50_s"))
    ax = plots.forest(table=drawn, record=made.record(), against="night-1")
    assert middles(ax, 0) == [1.3, 1.0, 1.04]
    (bar,) = ax.containers[0].lines[2]  # type: ignore[attr-defined]
    assert bar.get_segments()[0][:, 0].tolist() == pytest.approx([1.28, 1.33])
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "p95 latency",
        "memory",
        "median latency",
    ]
    assert "1.3 times: slower" in texts(ax)
    assert "no difference beyond 5 %" in texts(ax)
    assert " ".join(texts(ax).split()).startswith(
        "tiny model, not SDXL: night-2 is worse than night-1 in 1 of 3"
    )
    assert "p95 latency 1.30 times (1.28 to 1.33), slower" in ax.get_label()
    assert "against night-1" in str(ax.get_label())


def test_lines_of_several_loads_are_told_apart(made: SimpleNamespace) -> None:
    drawn = table(line(), line(load="closed-8", low=None, high=None))
    ax = plots.forest(table=drawn, record=made.record(), against="night-1")
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "closed-4, p95 latency",
        "closed-8, p95 latency",
    ]
    assert "no interval" in str(ax.get_label())


def test_of_more_lines_than_can_be_read_the_furthest_are_drawn(made: SimpleNamespace) -> None:
    ax = plots.forest(table=many(10_000 // 2), record=made.record(), against="night-0")
    assert set(middles(ax, 0)) == {1.3}
    assert len(ax.containers) == MOST
    assert f"the {MOST} of 9998" in texts(ax)


def test_nights_are_a_line_per_load_from_one_on(made: SimpleNamespace) -> None:
    ax = plots.nights(
        table=table(line("same", study="b"), line(study="c"), line(study="c", figure="memory")),
        record=made.record(),
        studies=["a", "b", "c"],
        changes={"b": (), "c": ("torch: 2.12 -> 2.13", "numpy: 1 -> 2")},
    )
    assert [ax.lines[1].get_xdata().tolist(), ax.lines[1].get_ydata().tolist()] == [
        [0, 1, 2],
        [1, 1.0, 1.3],
    ]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    assert "torch: 2.12 -> 2.13 and 1 more" in texts(ax)
    assert "p95 latency of c against a: 1.30 times (1.28 to 1.33), slower" in " ".join(
        texts(ax).split()
    )
    assert "Packages changed before c." in str(ax.get_label())


def test_nights_show_the_median_where_no_study_has_a_95th_percentile(made: SimpleNamespace) -> None:
    unknown = line(study="b", ratio=None, low=None, high=None)
    drawn = table(unknown, line(study="b", figure="latency_p50_s"))
    ax = plots.nights(table=drawn, record=made.record(), studies=["a", "b"])
    assert "median latency of b against a: 1.30 times" in " ".join(texts(ax).split())
    assert ax.get_ylabel() == "median latency,\ntimes that of a"


def test_what_straddles_one_is_not_said_to_differ(made: SimpleNamespace) -> None:
    drawn = table(line("open", low=0.9, high=1.2))
    ax = plots.nights(table=drawn, record=made.record(), studies=["night-1", "night-2"])
    assert "not shown to differ" in " ".join(texts(ax).split())


def test_a_year_of_nights_stays_readable(made: SimpleNamespace) -> None:
    studies = [f"night-{night}" for night in range(365)]
    changes = dict.fromkeys(studies[1:], ("torch: 1 -> 2",))
    drawn = many(365, loads=3)
    ax = plots.nights(table=drawn, record=made.record(), studies=studies, changes=changes)
    assert len(ax.get_xticks()) <= 12
    assert "torch: 1" not in texts(ax)


def test_the_last_night_may_lack_the_figure(made: SimpleNamespace) -> None:
    ax = plots.nights(
        table=table(line()), record=made.record(), studies=["night-1", "night-2", "night-3"]
    )
    said = " ".join(texts(ax).split())
    assert (
        "night-3 against night-1: not known; of night-2, the last that has it: 1.30 times" in said
    )


@pytest.mark.parametrize("rows", [[], [line(ratio=None, low=None, high=None)]])
def test_without_a_ratio_there_is_no_plot(
    made: SimpleNamespace, rows: list[dict[str, Any]]
) -> None:
    for ax in (
        plots.forest(table=table(*rows), record=made.record(), against="night-1"),
        plots.nights(table=table(*rows), record=made.record(), studies=["night-1", "night-2"]),
    ):
        assert "no data" in texts(ax)


# -- the time in the model


def test_each_figure_of_a_forest_has_its_own_band(made: SimpleNamespace) -> None:
    drawn = table(line("same", figure="service_s"), line("open", figure="latency_p50_s"))
    ax = plots.forest(table=drawn, record=made.record(), against="night-1")
    bands = [drawn for drawn in ax.collections if isinstance(drawn, PolyCollection)]
    ends = [band.get_datalim(ax.transData).intervalx for band in bands]
    assert np.array(ends) == pytest.approx(np.array([[1 / 1.02, 1.02], [1 / 1.05, 1.05]]))
    assert "band: within 2 or 5 %" in ax.get_xlabel()
    ax = plots.forest(table=drawn, record=made.record(), against="night-1", min_effect=0.1)
    assert "band: within 10 %" in ax.get_xlabel()


def test_where_nothing_is_worse_a_forest_speaks_of_the_time_in_the_model(
    made: SimpleNamespace,
) -> None:
    service = line("same", figure="service_s", verdict="no difference beyond 2 %")
    ax = plots.forest(table=table(service, line("open")), record=made.record(), against="night-1")
    assert (
        "night-2 is no different from night-1 in time in the model of one image: 1.00 times (0.98 to 1.03)"
        in " ".join(texts(ax).split())
    )
    ax = plots.forest(table=table(service, line()), record=made.record(), against="night-1")
    assert "night-2 is worse than night-1 in 1 of 2 figures, most in p95" in " ".join(
        texts(ax).split()
    )
    both = table(service, service | {"load": "closed-8", "ratio": 1.04, "verdict": "inconclusive"})
    ax = plots.forest(table=both, record=made.record(), against="night-1")
    assert "not shown to differ from night-1 in 1 of 2 figures, most in closed-8, time" in " ".join(
        texts(ax).split()
    )


def test_nights_show_the_time_in_the_model_first(made: SimpleNamespace) -> None:
    drawn = table(line("same", figure="service_s"), line())
    ax = plots.nights(table=drawn, record=made.record(), studies=["night-1", "night-2"])
    assert ax.get_ylabel() == "time in the model of one image,\ntimes that of night-1"
    assert "band: within 2 %" in ax.get_xlabel()


# -- ratio axes


def test_a_half_is_as_far_from_one_as_a_double(made: SimpleNamespace) -> None:
    drawn = table(line("same", ratio=0.5, low=0.45, high=0.55), line(ratio=2.0, low=1.9, high=2.1))
    forest = plots.forest(table=drawn, record=made.record(), against="night-1")
    across = [forest.transData.transform((ratio, 0))[0] for ratio in (0.5, 1, 2)]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1])
    studies = ["night-1", "night-2"]
    nights = plots.nights(table=drawn, record=made.record(), studies=studies)
    up = [nights.transData.transform((0, ratio))[1] for ratio in (0.5, 1, 2)]
    assert up[1] - up[0] == pytest.approx(up[2] - up[1])
    for ticks in (forest.get_xticks(), nights.get_yticks()):
        assert {0.5, 1, 2} <= set(ticks)


@pytest.mark.parametrize(
    ("figures", "ends"),
    [
        (["latency_p95_s"], {"← better", "worse →"}),
        (["latency_p95_s", "memory"], {"← better", "worse →"}),
        (["throughput_images_per_s"], {"← worse", "better →"}),
        (
            ["latency_p95_s", "throughput_images_per_s"],
            {"← better (throughput: worse)", "worse (throughput: better) →"},
        ),
    ],
)
def test_the_ends_of_a_forest_say_which_side_is_better(
    made: SimpleNamespace, figures: list[str], ends: set[str]
) -> None:
    drawn = table(*[line(figure=figure) for figure in figures])
    ax = plots.forest(table=drawn, record=made.record(), against="night-1")
    assert ends <= {text.get_text() for text in ax.texts}


def test_nights_say_which_side_is_better(made: SimpleNamespace) -> None:
    for figure, above in (("latency_p95_s", "worse"), ("throughput_images_per_s", "better")):
        drawn = table(line(figure=figure))
        ax = plots.nights(
            table=drawn, record=made.record(), studies=["night-1", "night-2"], metric=figure
        )
        assert f"↑ {above}" in texts(ax)


def test_a_forest_of_many_studies_names_only_the_worse_ones(made: SimpleNamespace) -> None:
    lines = [line("same", study="night-1"), line("same", study="night-2")]
    worse = line("worse", study="night-3")
    ax = plots.forest(table=table(*lines, worse), record=made.record(), against="night-0")
    assert "night-3 is worse than night-0 in 1 of 3 figures" in texts(ax).replace("\n", " ")
