"""Each notebook's form, and one execution of each as by a stranger: plain papermill, another folder."""

import ast
import json
import re
import signal
import subprocess
import sys
import time
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import nbformat
import pandas as pd
import psutil
import pytest
from nbconvert import HTMLExporter
from PIL import Image

from benchlib import load_study

pytestmark = pytest.mark.timeout(1200)  # other work on the machine may slow a notebook down
ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The parameters that make each notebook a matter of seconds, and the figures that it then draws, or
# else says why it can't: so few images carry few claims.
RUNS = {
    "01_quickstart": (
        {"users": 2, "users_tried": [1, 2], "duration_s": 3},
        {
            "latency_over_time",
            "latency_distribution",
            "latency_parts",
            "load_curve",
            "machine_over_time",
            "memory_over_time",
        },
    ),
    "02_time_and_memory": (
        {"budget_min": 0.5, "images": 40},
        {"stage_stack", "cost_line", "against_pixels", "memory_bars", "arithmetic", "memory_trend"},
    ),
    "03_load": (
        {"users": [1, 2], "budget_min": 0.5},
        {"load_curve", "queue_share", "stages_by_load", "hockey_stick", "goodput"},
    ),
    "04_batching": (
        {"budget_min": 0.6, "requests": 8, "repeat": 2},
        {"step_time_curve", "gantts", "latency_cdf", "gain", "frontier"},
    ),
    "05_settings": (
        {"users": [2], "budget_min": 0.4, "loras": {"style": "random"}},
        {"ladder", "picture_grid", "decision", "costs"},
    ),
    "06_compare": ({"budget_min": 0.1}, {"forest", "nights"}),
    "07_scale": (
        {"budget_min": 0.4, "mean_rate": 0.2, "max_cards": 2, "target_ongoing": [2]},
        {"promise_over_day", "cost_against_promise"},
    ),
}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_committed_as_it_was_written_and_not_as_it_was_run(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3", "papermill runs none without"
    for cell in code_cells(notebook):
        assert (cell.outputs, cell.execution_count) == ([], None)


def test_its_parameters_are_in_one_cell(notebook):
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    names = [target.id for line in ast.parse(cell.source).body for target in line.targets]
    assert {"model", "profile", "results_dir"} <= set(names)
    assert code_cells(notebook)[0] is cell, "what comes before it can't be chosen"


def test_it_is_short_and_holds_no_program(notebook):
    for cell in code_cells(notebook):
        # The parameters have a line each, however many they are.
        if "parameters" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 8, cell.source
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef}, cell.source


def test_it_opens_with_a_question(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert "?" in first.source


def test_each_links_the_next_one():
    for path, following in pairwise(NOTEBOOKS):
        cells = nbformat.read(path, as_version=4).cells
        title = nbformat.read(following, as_version=4).metadata.title
        *_, last = [cell.source for cell in cells if cell.cell_type == "markdown"]
        assert last.endswith(f"\n\nThe next notebook: [{title}]({following.name})")


class Executed(NamedTuple):
    """A notebook that papermill ran in an empty folder, with its results and its figures' names."""

    path: Path
    results: Path
    figures: set[str]

    def without_figure(self):
        """The sentences of the cells that had too little to draw."""
        cells = code_cells(nbformat.read(self.path, as_version=4))
        shown = [output.get("data", {}) for cell in cells for output in cell.outputs]
        html = ["".join(data.get("text/html", "")) for data in shown]
        return [text for text in html if "There is no figure, as " in text]


@pytest.fixture(scope="module")
def execute(tmp_path_factory):
    """Executes the notebook of a name, once for all tests."""

    @cache
    def executed(name):
        here, results = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("results")
        options, figures = RUNS[name]
        command = [
            BIN / "papermill",
            ROOT / f"notebooks/{name}.ipynb",
            f"{name}.ipynb",
            "--no-progress-bar",
        ]
        command += ["-y", json.dumps(options | {"model": "tiny", "results_dir": str(results)})]
        began_s = time.monotonic()
        ran = subprocess.run(command, cwd=here, capture_output=True, text=True)
        print(f"papermill took {time.monotonic() - began_s:.1f} s")
        assert ran.returncode == 0, ran.stderr
        assert [path.name for path in here.iterdir()] == [f"{name}.ipynb"]
        return Executed(here / f"{name}.ipynb", results, figures)

    return executed


@pytest.fixture(params=[path.stem for path in NOTEBOOKS])
def executed(request, execute):
    return execute(request.param)


def test_papermill_runs_it_without_an_error_or_a_warning(executed):
    for cell in code_cells(nbformat.read(executed.path, as_version=4)):
        assert cell.execution_count is not None
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text


def test_it_ends_with_an_answer_in_words(executed):
    cells = nbformat.read(executed.path, as_version=4).cells
    *_, last = [place for place, cell in enumerate(cells) if cell.cell_type == "markdown"]
    assert cells[last].source.startswith("## The answer")
    outputs = [output for cell in cells[last + 1 :] for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert len(text.split()) > 12
    assert re.search(r"\d", text), "from the run's own figures"


def test_an_interrupted_notebook_answers_from_what_was_measured(tmp_path):
    """As by the stop button: the kernel gets the signal, and papermill goes on."""
    results = tmp_path / "results"
    options = {"model": "tiny", "sizes": [64], "steps": [1, 2], "budget_min": 60}
    options |= {"images": 100_000, "results_dir": str(results)}
    command = [BIN / "papermill", ROOT / "notebooks/02_time_and_memory.ipynb", "out.ipynb"]
    command += ["--no-progress-bar", "-y", json.dumps(options)]
    with (tmp_path / "stderr").open("wb") as stderr:
        papermill = subprocess.Popen(command, cwd=tmp_path, stderr=stderr)

        # 1) Interrupt it while it makes image after image in search of a leak.
        def watched():
            return [
                rows for rows in results.glob("*/*-watch/requests.jsonl") if rows.stat().st_size
            ]

        while not watched() and papermill.poll() is None:
            time.sleep(0.1)
        children = psutil.Process(papermill.pid).children(recursive=True)
        (kernel,) = [child for child in children if "ipykernel_launcher" in child.cmdline()]
        kernel.send_signal(signal.SIGINT)
        papermill.wait()
    assert papermill.returncode == 0, (tmp_path / "stderr").read_text()

    # 2) The answer uses what there is.
    cells = code_cells(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    assert "watch: interrupted: the answer uses what was measured" in texts[-2]
    assert texts[-1].startswith("The largest image, 64x64 with 2 steps, takes ")
    statuses = [run.record["status"] for run in load_study(results / "time_and_memory").runs]
    assert statuses == ["finished", "interrupted"]


def test_the_quickstarts_run_is_the_one_that_was_asked_for(execute):
    study = execute("01_quickstart").results / "quickstart"
    run, *others = load_study(study).runs
    assert [other.spec["arrivals"]["users"] for other in others] == [1, 2]
    assert (run.record["status"], run.record["error"]) == ("finished", None)
    assert (run.spec["target"]["model"], run.spec["arrivals"]["users"], run.spec["duration_s"]) == (
        "tiny",
        2,
        3,
    )
    assert run.requests["error"].isna().all()
    summary = run.summary()
    # On a machine that is busy with other work, no image may begin in the 3 s that count.
    why_not = "no request was scheduled in the measuring window"
    assert summary["invalid_reason"] == (None if summary["requests"] else why_not)
    assert summary["ok"] == summary["requests"]
    assert summary["valid"] == (summary["requests"] > 0)
    assert len(run.requests) >= 2, "one of each user at least"
    assert run.telemetry["rss_gib"].notna().any()
    assert pd.read_csv(study / "summary.csv")["run"].tolist() == [
        one.record["run"] for one in [run, *others]
    ]


def test_its_figures_are_pictures_that_say_what_they_show(executed):
    pictures = list(executed.results.glob("*/figures/*"))
    names = {path.stem for path in pictures}
    assert names <= executed.figures
    assert len(names) + len(executed.without_figure()) == len(executed.figures)
    assert {path.name for path in pictures} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    for path in pictures:
        if path.suffix == ".svg":
            svg = ElementTree.parse(path).getroot()
            assert svg.tag.endswith("}svg")
            assert len(list(svg.iter("{http://www.w3.org/2000/svg}path"))) > 20
            continue
        with Image.open(path) as picture:
            assert min(picture.size) > 500
            assert len(picture.convert("RGB").getcolors(2**24)) > 50, "not an empty page"
            assert picture.text["Title"].startswith("tiny model, not SDXL")
            assert len(picture.text["Description"]) > 80


class Images(HTMLParser):
    """The attributes of every <img> in the page that it was fed."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.found.append(dict(attrs))


def test_each_picture_of_the_web_page_has_a_text_for_those_who_do_not_see_it(executed):
    page = Images()
    page.feed(HTMLExporter().from_filename(str(executed.path))[0])
    made = executed.path.read_text().count("bl.plots.picture(")
    drawn = len(executed.figures) - len(executed.without_figure())
    assert len(page.found) == drawn + made, "the plots, and the image that was made"
    for image in page.found:
        assert image["src"].startswith("data:image/png;base64,"), "the page needs no other file"
        assert "No description" not in image["alt"], "nbconvert's own words where a cell gives none"
        assert len(image["alt"]) > 20
