"""Each notebook's form, and the first one executed as a stranger does it: by plain papermill, from another folder."""

import ast
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pandas as pd
import pytest
from PIL import Image

from benchlib import load_study

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = {"latency_over_time", "latency_distribution", "latency_parts", "load_curve", "memory_over_time"}


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
        assert len(cell.source.splitlines()) <= 8, cell.source
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef}, cell.source


def test_it_opens_with_a_question(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert "?" in first.source


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The quickstart after papermill, run in an empty folder; and the folder of its results."""
    here, results = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("results")
    options = ["-p", "model", "tiny", "-p", "users", "2", "-p", "duration_s", "4", "-p", "results_dir"]
    command = [BIN / "papermill", ROOT / "notebooks/01_quickstart.ipynb", "executed.ipynb", *options, results]
    began_s = time.monotonic()
    ran = subprocess.run(command, cwd=here, capture_output=True, text=True)
    print(f"papermill took {time.monotonic() - began_s:.1f} s")
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in here.iterdir()] == ["executed.ipynb"]
    return here / "executed.ipynb", results / "quickstart"


def test_papermill_runs_it_without_an_error_or_a_warning(executed):
    for cell in code_cells(nbformat.read(executed[0], as_version=4)):
        assert cell.execution_count is not None
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text


def test_its_run_is_the_one_that_was_asked_for(executed):
    run, *others = load_study(executed[1]).runs
    assert [other.spec["arrivals"]["users"] for other in others] == [1, 2, 4]
    assert (run.record["status"], run.record["error"]) == ("finished", None)
    assert (run.spec["target"]["model"], run.spec["arrivals"]["users"], run.spec["duration_s"]) == ("tiny", 2, 4)
    assert run.requests["error"].isna().all()
    assert run.summary()["valid"]
    assert len(run.telemetry) > 5
    assert pd.read_csv(executed[1] / "summary.csv")["run"].tolist() == [one.record["run"] for one in [run, *others]]


def test_its_figures_are_pictures_that_say_what_they_show(executed):
    folder = executed[1] / "figures"
    assert {path.name for path in folder.iterdir()} == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    for name in FIGURES:
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 600
            assert len(picture.convert("RGB").getcolors(2**24)) > 50, "not an empty page"
            assert picture.text["Title"].startswith("tiny model, not SDXL")
            assert len(picture.text["Description"]) > 80
        svg = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert svg.tag.endswith("}svg")
        assert len(list(svg.iter("{http://www.w3.org/2000/svg}path"))) > 20


class Images(HTMLParser):
    """The attributes of every <img> that it was fed."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.found.append(dict(attrs))


def test_each_picture_of_the_web_page_has_a_text_for_those_who_do_not_see_it(executed):
    command = [BIN / "jupyter", "nbconvert", "--to", "html", "--log-level", "ERROR", executed[0]]
    subprocess.run(command, check=True)
    page = Images()
    page.feed(executed[0].with_suffix(".html").read_text(encoding="utf-8"))
    assert len(page.found) == len(FIGURES) + 1, "the plots, and the image that was made"
    for image in page.found:
        assert image["src"].startswith("data:image/png;base64,"), "the page needs no other file"
        assert "No description" not in image["alt"], "nbconvert's own words where a cell gives none"
        assert len(image["alt"]) > 20
