"""How a figure looks: the axis of ratios, and labels beside it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.colors import to_rgb

from benchlib import plots
from benchlib.study import figure
from benchlib.study.store import Run
from tests.test_pictures import contrast

COLOURS = ("ORANGE", "SKY", "GREEN", "YELLOW", "BLUE", "RED", "PURPLE", "GREY")


@pytest.mark.parametrize(
    "limits", [(0.94, 1.24), (0.3, 1.5), (0.05, 3.4), (0.01, 90), (1e-4, 5e4), (0.999, 1.001)]
)
def test_ticks_of_ratios_are_few_and_in_plain_numbers(limits: tuple[float, float]) -> None:
    ax = figure.axes(None)
    ax.set_xlim(*limits)
    figure.ratio_axis(ax, "x", "better", "worse")
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert 3 <= len(names) <= 12
    assert "1" in names
    assert not any("e" in name or "$" in name for name in names)


def test_labels_stand_where_lines_end_also_on_a_logarithmic_axis() -> None:
    ax = figure.axes(None)
    ax.set_ylim(0.1, 10)
    figure.ratio_axis(ax, "y", "better", "worse")
    figure.label_at_right(ax, [(1.0, "in the middle", figure.RED), (0.1, "below", figure.BLUE)])
    heights = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert heights["in the middle"] == pytest.approx(0.5)
    assert heights["below"] == pytest.approx(0)


def test_labels_make_room_for_each_other() -> None:
    ax = figure.axes(None)
    figure.label_at_right(ax, [(0.5, "a", figure.RED), (0.5, "b", figure.BLUE)])
    first, second = (text.get_position()[1] for text in ax.texts)
    assert second - first > 0.03
    assert first + second == pytest.approx(1), "each makes half of the room"


def test_labels_at_the_bottom_stay_beside_the_axes() -> None:
    ax = figure.axes(None)
    figure.label_at_right(ax, [(0.0, "a", figure.RED), (0.0, "b", figure.BLUE)])
    first, second = (text.get_position()[1] for text in ax.texts)
    assert first == pytest.approx(0)
    assert second > 0.03


def test_a_title_breaks_no_name_at_its_hyphen() -> None:
    ax = figure.axes(None)
    title = "compare-slower is worse than compare-first in 3 of 4 figures, " * 2
    for line in figure._wrapped(title, ax).split("\n"):
        assert not line.endswith("-")


@pytest.mark.parametrize("before", range(0, 90, 7))
def test_a_title_breaks_no_interval(before: int) -> None:
    title = (
        f"{'word ' * (before // 5)}cost at 256x256: 0.033 s a step (0.032 to 0.034), plus 0.08 s"
    )
    lines = figure._wrapped(title, figure.axes(None)).replace("\u00a0", " ").split("\n")
    assert any("(0.032 to 0.034)" in line for line in lines)


@pytest.mark.parametrize("name", COLOURS)
def test_words_of_a_colour_and_words_on_it_can_be_read(name: str) -> None:
    colour = getattr(figure, name)
    assert contrast(to_rgb(figure.ink(colour)), to_rgb("white")) >= 4.5
    assert contrast(to_rgb(figure.ink_on(colour)), to_rgb(colour)) >= 4.5
    dark = figure.ink(colour)
    assert contrast(to_rgb(figure.ink_on(dark)), to_rgb(dark)) >= 4.5


NOT_DRAWN = ("Picture", "picture", "save", "show")


@pytest.mark.parametrize("name", [name for name in plots.__all__ if name not in NOT_DRAWN])
def test_a_plot_that_is_called_without_names_shows_the_right_call(name: str) -> None:
    draw = getattr(plots, name)
    with pytest.raises(TypeError, match=rf"; call bl\.plots\.{name}\(\w+=\.\.\..*\)$"):
        draw(object())
    with pytest.raises(TypeError, match=rf"missing .*; call bl\.plots\.{name}\("):
        draw()


def test_a_plot_of_a_run_names_the_shorter_call(made) -> None:
    run = Run(*made.run([1.0, 2.0]), Path("results/quickstart/run"))
    with pytest.raises(TypeError, match=r"or run\.plot\.latency_over_time\(\)$"):
        plots.latency_over_time(run)
    with pytest.raises(TypeError, match=r"record=\.\.\.\)$"):
        plots.load_curve(run)


def test_a_legend_that_would_leave_the_figure_has_fewer_columns() -> None:
    ax = figure.axes(None)
    for name in "abcdef":
        ax.plot([0, 1], label=f"a line of such a long name that three do not fit: {name}")
    wide = figure.legend_above(ax)
    assert ax.get_legend().get_window_extent().width < ax.figure.bbox.width
    for line, name in zip(ax.lines, "abcdef", strict=True):
        line.set_label(name)
    assert figure.legend_above(ax) < wide


def test_small_print_stays_in_the_figure_and_leaves_the_axes_their_width(made) -> None:
    ax = figure.axes(None)
    ax.set_yticks([0], ["a bar whose long name narrows the axes, as names of settings do"])
    busy = "The machine was busy in run 20261127-182710-open-7.2: " + 12 * "so and so much "
    figure.finish(ax, made.record(), "a finding", "Bars.", source="study settings", busy=busy)
    figure.show(ax)
    whole = ax.figure
    whole.draw_without_rendering()
    prints = [text for text in ax.texts if text.get_gid() == "small print"]
    assert len(prints) == 2
    assert all(text.get_window_extent().x1 <= 1.01 * whole.bbox.x1 for text in prints)
    warning, caption = (text.get_window_extent() for text in prints)
    assert not warning.overlaps(caption)
    assert ax.get_window_extent().width > 0.4 * whole.bbox.width


def test_a_server_known_by_its_url_alone_is_said_to_be_unwatched(made) -> None:
    theirs = made.record(target={"model": None, "url": "http://elsewhere:8000"})
    run = Run(theirs, *made.run([1.0, 2.0])[1:], Path("results/mine/run"))
    ax = plots.latency_over_time(requests=run.requests, record=theirs)
    said = "other work on the server's machine is not known"
    assert any(said in text.get_text() for text in ax.texts)
    assert said in run._repr_html_().replace("&#x27;", "'")
    ours = plots.latency_over_time(requests=run.requests, record=made.record())
    assert not any(said in text.get_text() for text in ours.texts)


def test_a_machine_of_unknown_memory_is_named_without_it(made: SimpleNamespace) -> None:
    record = made.record()
    record["machine"] |= {"cpu": None, "memory_gib": None}
    assert figure._hardware(record) == "2 cores"
