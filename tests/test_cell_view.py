"""What objects show of themselves in a notebook's cell: a short line, and a table that is escaped."""

from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import benchlib
from benchlib.cell_view import LONGEST_LINE, MOST_ROWS, CellView, ShownInCell
from benchlib.questions.capacity.search import Capacity
from benchlib.questions.compare.judge import compare, compare_studies
from benchlib.questions.settings.judge import decide
from benchlib.queueing.estimates import PredictedCapacity, Prediction, calibrate
from benchlib.study.store import Run, Study
from tests.queueing.simulated_runs import simulated_run

EVIL = '<script>alert("x")</script> & more'


class Shown(HTMLParser):
    """The text of an object's HTML, and its table's cells; the tags must be closed in order."""

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(thing._repr_html_())
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002
        self.open.append(tag)
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data

    @property
    def named(self) -> dict[str, str]:
        """The values of a table of two columns."""
        return {row[0]: row[1] for row in self.rows}


def assert_short(thing: Any) -> None:
    text = repr(thing)
    assert text.startswith(f"<{type(thing).__name__}: ")
    assert "\n" not in text
    assert len(text) <= LONGEST_LINE + 40, "a line or two"
    assert " object at 0x" not in text


def a_run(made: SimpleNamespace, latency_s: list[float], **changes: Any) -> Run:
    record, requests, telemetry = made.run(latency_s)
    telemetry = telemetry.assign(rss_gib=0.9)
    return Run(record | changes, requests, telemetry, Path("results/quickstart/run"))


# ---- the helper


def test_the_answer_comes_first_and_all_is_escaped() -> None:
    view = CellView(f"{EVIL}\nsecond line", [(EVIL, "1")], ("what", EVIL), link='http://a/"b')

    class Thing(ShownInCell):
        def _view(self) -> CellView:
            return view

    shown = Shown(Thing())
    assert "script" not in shown.tags
    assert shown.words[:2] == [EVIL, "second line"]
    assert shown.rows == [["what", EVIL], [EVIL, "1"]]
    assert 'href="http://a/&quot;b"' in view.to_html()
    assert repr(Thing()) == f"<Thing: {EVIL} second line>"


def test_a_long_answer_is_cut_and_long_tables_say_what_they_leave_out() -> None:
    rows = [(str(number), "x") for number in range(MOST_ROWS + 5)]
    view = CellView("many words " * 100, rows, left_out=1000)
    assert len(view.line) <= LONGEST_LINE
    assert view.line.endswith(" ...")
    assert view.to_html().count("<tr>") == MOST_ROWS
    assert "and 1,005 more" in view.to_html()


def test_what_has_words_alone_shows_them() -> None:
    class Answer(ShownInCell):
        def __str__(self) -> str:
            return "It works.\nThe rest follows."

    assert repr(Answer()) == "<Answer: It works. The rest follows.>"
    assert Shown(Answer()).words == ["It works.", "The rest follows."]


# ---- runs and studies


def test_a_run_shows_what_its_users_saw(made: SimpleNamespace) -> None:
    run = a_run(made, [0.5] * 40)
    assert_short(run)
    shown = Shown(run)
    assert shown.words[0] == ("closed-4: 9 images/s; half of the requests took at most 0.5 s")
    assert shown.named["requests"] == "40 requests, each got an image"
    assert shown.named["memory of the process, at most"] == "0.9 GiB"
    assert shown.named["valid"] == "yes"
    assert shown.named["server"] == "tiny float32 cpu"


def test_a_run_that_is_not_valid_says_so_first(made: SimpleNamespace) -> None:
    run = a_run(made, [0.5] * 5, status="failed", error=EVIL)
    assert_short(run)
    shown = Shown(run)
    assert shown.words[0].startswith(f"closed-4: not valid, as the run failed: {EVIL}; ")
    assert shown.named["valid"] == f"no: the run failed: {EVIL}"
    assert "script" not in shown.tags


def test_a_run_without_a_request_shows_that(made: SimpleNamespace) -> None:
    for run in (a_run(made, []), a_run(made, [], status="running", outcome=None)):
        assert_short(run)
        assert "no request was sent" in Shown(run).words[0]


def test_a_run_of_somebodys_server_shows_its_address(made: SimpleNamespace) -> None:
    unknown = dict.fromkeys(("model", "dtype", "device"))
    record = made.record(target={"url": "http://theirs:1", **unknown})
    run = a_run(made, [0.5] * 3, spec=record["spec"])
    assert Shown(run).named["server"] == "http://theirs:1"


def test_a_study_has_a_row_for_each_run(made: SimpleNamespace) -> None:
    study = Study(Path("results/load"), (a_run(made, [0.5] * 40), a_run(made, [])))
    assert_short(study)
    assert repr(study) == "<Study: study load: 2 runs, 1 valid>"
    shown = Shown(study)
    assert shown.rows[0] == ["run", "requests", "images/s", "p50, s", "p95, s", "GiB", "valid"]
    assert shown.rows[1] == ["closed-4", "40", "9", "0.5", "0.5", "0.9", "yes"]
    assert shown.rows[2][-1].startswith("no: ")


def test_a_study_of_many_runs_and_one_of_none_are_short(made: SimpleNamespace) -> None:
    run = a_run(made, [0.5] * 40)
    many = Study(Path("results/load"), (run,) * 300)
    assert repr(many) == "<Study: study load: 300 runs, all valid>"
    assert "and 280 more" in Shown(many).text
    none = Study(Path("results/load"), ())
    assert repr(none) == "<Study: study load: 0 runs>"
    assert Shown(none).rows == []


# ---- what is served


def test_a_pipeline_and_a_server_say_what_they_are(tiny: Any) -> None:
    assert_short(tiny)
    shown = Shown(tiny)
    assert shown.words[0].startswith("tiny on cpu, 0.0")
    assert shown.named["usual image"].endswith(" pixels, 8 steps")
    with benchlib.serve(tiny, name="shown", batching="serial") as server:
        assert_short(server)
        shown = Shown(server)
        assert shown.words[0] == f"shown: tiny on cpu at {server.url}"
        assert f"{server.url}/docs" in shown.words
        assert shown.named["batching"].startswith("serial")
    assert_short(server)
    assert Shown(server).text == "shown: stopped; start() starts it"


def test_what_was_made_shows_its_times(tiny: Any) -> None:
    request = benchlib.GenerateRequest(
        prompt=EVIL, num_inference_steps=2, width=64, height=64, seed=1
    )
    one = tiny.generate(request)
    assert_short(one)
    shown = Shown(one)
    assert shown.words[0].startswith("1 image in ")
    assert [row[0] for row in shown.rows] == ["encode", "denoise", "decode", "more"]
    assert repr(tiny.generate([request, request])).startswith("<GenerateResult: 2 images in ")


# ---- answers


def test_a_capacity_shows_its_trials() -> None:
    found = Capacity(
        2.0, (2.0, 4.0), ((1.0, "met"), (4.0, "missed")), "as narrow as requested", "p95 < 2 s"
    )
    assert_short(found)
    shown = Shown(found)
    assert shown.words[0] == "The capacity within p95 < 2 s is 2 to 4 images/s."
    assert shown.rows == [["trial at images/s", "the promise is"], ["1", "met"], ["4", "missed"]]
    spent = Capacity(None, (None, None), (), "the budget is spent")
    assert_short(spent)
    assert "is not shown" in Shown(spent).words[0]


def test_a_calibration_and_what_it_foretells() -> None:
    calibration = calibrate(simulated_run("serial", rate=0.75, requests=60, seed=0))
    assert_short(calibration)
    assert Shown(calibration).named["images"] == "60"
    prediction = calibration.predict(0.5, "p95 < 3 s")
    assert_short(prediction)
    shown = Shown(prediction)
    assert shown.words[0].startswith("at 0.5 requests/s: 95 % of the images should come within ")
    assert "share within the promise" in shown.named
    capacity = calibration.capacity("p95 < 3 s")
    assert_short(capacity)
    assert Shown(capacity).words[0].startswith("The server keeps p95 < 3 s up to ")


def test_what_could_not_be_foretold_says_so() -> None:
    assert repr(Prediction(9.0, stable=False)) == (
        "<Prediction: at 9 requests/s: the server can't keep up>"
    )
    assert "refused" in repr(Prediction(1.0, stable=True))
    refused = PredictedCapacity(None, None, "p95 < 2 s", 3, "refused", "too few images")
    assert Shown(refused).words == ["The capacity within p95 < 2 s is not shown: too few images."]


def test_a_decision_shows_the_settings_and_not_its_frame(setting: SimpleNamespace) -> None:
    decision = decide(
        setting.frame(
            setting.row("baseline", 5.0), setting.row("bf16", 8.0, memory_gib=3.0, confirmed=True)
        ),
        memory_limit_gib=4.0,
    )
    assert_short(decision)
    shown = Shown(decision)
    assert shown.words[0].startswith("Run bf16, serial: it keeps p95 < 2 s up to 8.00 images/s")
    assert [row[0] for row in shown.rows[1:]] == ["bf16, serial", "baseline, serial"]
    nothing = decide(setting.frame(setting.row("baseline", None, error=EVIL)), memory_limit_gib=4.0)
    assert_short(nothing)
    shown = Shown(nothing)
    assert shown.words[0] == f"None of the settings can be run: {EVIL}."
    assert "script" not in shown.tags


def test_a_comparison_shows_the_verdict_of_each_figure(made: SimpleNamespace) -> None:
    first = [a_run(made, [0.5 + 0.001 * n] * 40) for n in range(3)]
    later = [a_run(made, [0.8 + 0.001 * n] * 40) for n in range(3)]
    comparison = compare(first, later)
    assert_short(comparison)
    assert repr(comparison) == f"<Comparison: b compared with a: {comparison.verdict}>"
    shown = Shown(comparison)
    assert shown.rows[0][:2] == ["figure", "verdict"]
    assert {row[0] for row in shown.rows[1:]} >= {"median latency", "throughput", "memory"}
    invalid = compare(first, [a_run(made, [])] * 3)
    assert_short(invalid)
    assert "invalid" in Shown(invalid).words[0]

    studies = [
        Study(Path("results/before"), tuple(first)),
        Study(Path("results/after"), tuple(later)),
    ]
    nights = compare_studies(studies)
    assert_short(nights)
    shown = Shown(nights)
    assert shown.words[0] == f"after against before: {nights.verdict}"
    assert any(row[0] == "median latency, closed-4" for row in shown.rows)

    broken = Study(Path("results/broken"), (a_run(made, []),) * 3)
    nights = compare_studies([studies[0], broken])
    assert_short(nights)
    assert Shown(nights).words[0] == "broken against before: invalid"


def test_every_class_of_the_list_shows_itself() -> None:
    """A generated repr would print whole frames, and every class must fit a line."""
    for name in ("Run", "Study", "Server", "Calibration"):
        kind = getattr(benchlib, name)
        assert issubclass(kind, ShownInCell)
        assert kind.__repr__ is ShownInCell.__repr__, name


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_a_run_that_did_not_end_still_shows_itself(made: SimpleNamespace, status: str) -> None:
    run = a_run(made, [0.5] * 3, status=status)
    assert_short(run)
    assert "not valid" in repr(run)
