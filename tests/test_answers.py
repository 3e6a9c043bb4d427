"""The answers that executed notebooks printed, as the page, the command and programs get them."""

import json

import nbformat
import pandas as pd

from benchlib.__main__ import main
from benchlib.answers import read_answer, read_failure
from benchlib.report import QUESTIONS, write_report

from .test_report import measure


def execute(study, *, printed):
    """Leaves a notebook as papermill does, with `printed` beneath its last code cell."""
    study.mkdir(exist_ok=True)
    new = nbformat.v4
    log = new.new_output("stream", name="stdout", text="a plan")
    said = [new.new_output("stream", name="stdout", text=text) for text in printed]
    cells = [
        new.new_code_cell("plan", outputs=[log]),
        new.new_code_cell("print(answer)", outputs=said),
        new.new_markdown_cell("What next"),
    ]
    nbformat.write(new.new_notebook(cells=cells), study / f"01_{study.name}.ipynb")


def test_an_answer_is_what_the_last_code_cell_printed(tmp_path):
    study = tmp_path / "load"
    execute(study, printed=["It serves 3\n", "people.\n"])
    assert read_answer(study) == "It serves 3\npeople."
    execute(study, printed=[])
    assert read_answer(study) is None, "an earlier cell gives no answer"
    (study / "01_load.ipynb").write_text("{")
    assert read_answer(study) is None
    assert read_answer(tmp_path / "nothing") is None


def test_the_report_shows_the_answers_and_keeps_them_for_programs(tmp_path, capsys):
    execute(tmp_path / "load", printed=["It serves <3>\npeople."])
    execute(tmp_path / "quickstart", printed=["It works."])
    row = {"run": "a", "valid": False, "invalid_reason": "late", "latency_p50_s": 0.1 + 0.2}
    pd.DataFrame([row]).to_csv(tmp_path / "load/summary.csv", index=False)
    (tmp_path / "settings").mkdir()
    assert main(["report", "--results", str(tmp_path)]) == 0

    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == ["quickstart: It works.", "load: It serves <3>"]
    assert "It serves &lt;3&gt;" in (tmp_path / "index.html").read_text()
    entries = json.loads((tmp_path / "answers.json").read_text())["answers"]
    assert [entry["answer"] for entry in entries] == ["It works.", "It serves <3>\npeople.", None]
    assert entries[1]["question"] == QUESTIONS["load"]
    assert entries[1]["started_at"] is None
    [run] = entries[1]["runs"]
    assert (run["valid"], run["invalid_reason"]) == (False, "late")
    assert run["latency_p50_s"] == 0.1 + 0.2, "unrounded"
    assert run["latency_p95_s"] is None, "unknown is null"


def test_the_page_and_programs_are_told_that_the_machine_was_busy(tmp_path):
    execute(tmp_path / "load", printed=["It serves 3."])
    reason = "other processes took 1.31 of 2 cores (limit: 0.5)"
    calm = {"run": "a", "valid": True, "invalid_reason": None, "suspect_reason": None}
    busy = calm | {"run": "b", "suspect_reason": reason}
    rows = [calm | {"others_cpu_cores": 0.1}, busy | {"others_cpu_cores": 1.31}]
    measure(tmp_path, "load")
    pd.DataFrame(rows).to_csv(tmp_path / "load/summary.csv", index=False)
    write_report(tmp_path)
    sentence = f"The machine was busy in 1 of 2 runs: {reason} in the busiest."
    assert sentence in (tmp_path / "index.html").read_text()
    [entry] = json.loads((tmp_path / "answers.json").read_text())["answers"]
    assert entry["busy"].startswith(sentence)
    assert [run["suspect_reason"] for run in entry["runs"]] == [None, reason]
    assert [run["others_cpu_cores"] for run in entry["runs"]] == [0.1, 1.31]
    assert entry["runs"][0]["steal_cores"] is None, "an unknown one is null"
    # a table of an older version
    pd.DataFrame([{"run": "a", "valid": True, "invalid_reason": None}]).to_csv(
        tmp_path / "load/summary.csv", index=False
    )
    write_report(tmp_path)
    assert "busy" not in (tmp_path / "index.html").read_text()
    [entry] = json.loads((tmp_path / "answers.json").read_text())["answers"]
    assert entry["busy"] is None


def test_the_error_that_stopped_a_notebook_stands_on_its_card(tmp_path):
    study = tmp_path / "load"
    execute(study, printed=[])
    notebook = nbformat.read(study / "01_load.ipynb", as_version=4)
    error = nbformat.v4.new_output("error", ename="ModelError", evalue="no <such>", traceback=[])
    notebook.cells[0].outputs = [error]
    nbformat.write(notebook, study / "01_load.ipynb")
    assert read_failure(study) == "ModelError: no <such>"
    assert read_failure(tmp_path / "nothing") is None
    write_report(tmp_path)
    assert (
        "The notebook stopped: ModelError: no &lt;such&gt;" in (tmp_path / "index.html").read_text()
    )
