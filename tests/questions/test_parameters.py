"""The parameters of each notebook: what is accepted, and what is said of a bad value."""

import ast
import os
from pathlib import Path

import nbformat
import papermill.translators
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import benchlib as bl
from benchlib.questions.parameters import COMMON, MODELS, NOTEBOOKS

ROOT = Path(__file__).parents[2]
ACCEPTED = {
    "model": "tiny",
    "profile": "quick",
    "results_dir": None,
    "budget_min": None,
    "users": 4,
    "users_tried": [1, 2],
    "duration_s": None,
    "sizes": [64, 128],
    "steps": [2, 4],
    "images": 300,
    "rates": None,
    "slo": None,
    "batching": "continuous",
    "recipe": "baseline",
    "requests": 20,
    "repeat": 3,
    "fewer_steps": [8, 4],
    "loras": {"style": "random"},
    "exact_only": False,
    "target_rate": 1.0,
    "memory_limit_gib": None,
    "price_per_hour": None,
    "prompts": None,
    "studies": None,
    "gate": False,
    "min_effect": 0.05,
    "allow": [],
    "trace": None,
    "mean_rate": None,
    "peak_hour": 14,
    "peak_factor": 2.0,
    "min_cards": None,
    "max_cards": 8,
    "target_ongoing": [1, 2],
    "upscale_delay_s": 30,
    "downscale_delay_s": 600,
    "startup_s": None,
    "restart_s": 60,
    "mtbf_h": None,
    "replicas": 1,
}
REFUSED = {
    "model": ["", 3, None, "tinny", "./none", "no/such/folder", "none.safetensors"],
    "profile": ["quik", None],
    "results_dir": ["", 3, __file__, "/proc/x"],
    "budget_min": [0, -1, "3", float("nan"), float("inf"), True],
    "users": [0, 1.5, "4", 10**400, True, None],
    "users_tried": [[], [1, 0], [2, 2], ["1"], "4", "[1, 2]", "(1, 2)", None],
    "duration_s": [0, "20"],
    "sizes": [[], [100], [32], [4096], [64.0], "512", "[64, 128]"],
    "steps": [[], [0], [151], [2, "4"]],
    "images": [0, 1.0, None],
    "rates": [[], [0], [-1], "[1, 2]"],
    "slo": ["fast", "p95 < 0 s", 2],
    "batching": ["parallel", None],
    "recipe": ["", None, 3],
    "requests": [0, "20"],
    "repeat": [0, None],
    "fewer_steps": [["4"], [0], [150], [4, 4], None],
    "loras": [
        "style",
        ["style"],
        {"a.b": "random"},
        {"style": 3},
        {"style": ""},
        {"style": "/no/file"},
    ],
    "exact_only": ["yes", 1, None],
    "target_rate": [0, None],
    "memory_limit_gib": [0, "24"],
    "price_per_hour": [-1, "1.5"],
    "prompts": ["", "no-such-file.txt", 3, ["a chair", "a house"], os.devnull],
    "studies": [["results/no-such-study"], "[results/a, results/b]", [3]],
    "gate": ["true", 0],
    "min_effect": [0, True, 5, 1.01],
    "allow": ["machines", ["machine", "memory"], None],
    "trace": ["", "no-such-file.csv", 3, __file__, os.devnull],
    "mean_rate": [0, "2", float("inf")],
    "peak_hour": [-1, 25, None, "14"],
    "peak_factor": [0.5, 11, None],
    "min_cards": [0, 257, 1.5],
    "max_cards": [0, 257, "4"],
    "target_ongoing": [[], 0, [2, 2], ["2"], None],
    "upscale_delay_s": [-1, None],
    "downscale_delay_s": [-1, "600"],
    "startup_s": [-1, "60"],
    "restart_s": [-1, True],
    "mtbf_h": [0, "100"],
    "replicas": [0, 1.5, None],
}
CASES = [
    (notebook, name, value)
    for notebook, own in NOTEBOOKS.items()
    for name in COMMON | own
    for value in REFUSED[name]
]


def accepted(notebook):
    return {name: ACCEPTED[name] for name in COMMON | NOTEBOOKS[notebook]}


def test_every_notebook_has_its_table():
    stems = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert list(NOTEBOOKS) == stems


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_usual_values_are_accepted(notebook):
    given = accepted(notebook)
    chosen = vars(bl.check_parameters(notebook, **given))
    lists = {"users": [4]} if notebook in ("03_load", "05_settings") else {}
    assert chosen == given | lists


@pytest.mark.parametrize(("notebook", "name", "value"), CASES)
def test_a_bad_value_is_refused_in_words_that_name_the_parameter(notebook, name, value):
    with pytest.raises(ValueError, match=rf"^{name}(\[\d\])? must ") as caught:
        bl.check_parameters(notebook, **accepted(notebook) | {name: value})
    assert "got " in str(caught.value) or "is a file" in str(caught.value)


def test_a_single_value_becomes_a_list_of_one():
    given = accepted("03_load") | {"users": 4, "rates": 1.5}
    chosen = bl.check_parameters("03_load", **given)
    assert (chosen.users, chosen.rates) == ([4], [1.5])


def test_texts_from_papermill_get_the_way_to_write_them():
    with pytest.raises(ValueError, match="papermill: -p users 4, not -r users 4"):
        bl.check_parameters("03_load", **accepted("03_load") | {"users": "4"})
    with pytest.raises(ValueError, match=r"papermill takes lists by -y '\{users: \[...\]\}'"):
        bl.check_parameters("03_load", **accepted("03_load") | {"users": "[1, 2]"})


def test_a_promise_is_about_a_percentile_that_the_plot_has():
    given = accepted("03_load") | {"slo": "p97 < 2 s"}
    with pytest.raises(ValueError, match="slo must be about one of p50, p90, p95, p99, "):
        bl.check_parameters("03_load", **given)
    assert bl.check_parameters("05_settings", **accepted("05_settings") | {"slo": "p97 < 2 s"})


def test_a_file_of_prompts_has_each_once_and_is_text(tmp_path):
    path = tmp_path / "prompts.txt"
    given = accepted("05_settings") | {"prompts": str(path)}
    for content, words in (
        (b"a chair\n\na chair\n", "must have each prompt once, got 'a chair' twice"),
        (b"\n  \n", "must have a prompt a line, got the empty file"),
        (b"\xff\xfea", "must be a text file in UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^prompts {words}"):
            bl.check_parameters("05_settings", **given)
    path.write_text("a chair\n\n une théière\n", encoding="utf-8")
    assert bl.check_parameters("05_settings", **given).prompts == str(path)


def test_a_wrong_notebook_or_set_of_parameters_is_named():
    with pytest.raises(ValueError, match="notebook must be one of 01_quickstart, "):
        bl.check_parameters("load")
    given = accepted("03_load")
    with pytest.raises(
        ValueError, match=r"^notebook 03_load has no parameter 'user': did you mean"
    ):
        bl.check_parameters("03_load", **given | {"user": 3})
    with pytest.raises(ValueError, match=r"^notebook 03_load has no parameter 'x': it has model, "):
        bl.check_parameters("03_load", **given | {"x": 3})
    del given["slo"]
    with pytest.raises(ValueError, match="notebook 03_load needs the parameter slo"):
        bl.check_parameters("03_load", **given)


def test_a_value_above_1_is_no_share_but_per_cent():
    with pytest.raises(ValueError, match=r"at most 1, got 5: 5 % is 0\.05$"):
        bl.check_parameters("06_compare", **accepted("06_compare") | {"min_effect": 5})


def test_the_usual_folder_of_results_is_checked_where_none_is_given(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCHLIB_RESULTS", "/proc/x")
    with pytest.raises(ValueError, match=r"^BENCHLIB_RESULTS must be a folder to write to, got"):
        bl.check_parameters("04_batching", **accepted("04_batching"))
    given = accepted("04_batching") | {"results_dir": str(tmp_path / "new" / "one")}
    assert bl.check_parameters("04_batching", **given)
    assert (tmp_path / "new" / "one").is_dir()


def test_the_models_with_a_name_are_those_that_can_be_loaded(tmp_path):
    source = (ROOT / "benchlib/serving/model/loading.py").read_text()
    assert ", ".join(f'"{model}"' for model in MODELS) in source
    for model in (*MODELS, "owner/name", str(tmp_path)):
        assert bl.check_parameters("04_batching", **accepted("04_batching") | {"model": model})


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """An IPython shell without a history on disk, as a kernel has one."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    yield shell
    InteractiveShell.clear_instance()


def ran(shell, *cells):
    """The error of the last cell, run as a notebook runs it."""
    for cell in cells:
        result = shell.run_cell(cell, store_history=True)
    return result.error_in_exec


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_misspelt_name_from_papermill_is_refused_with_the_nearest_one(shell, notebook):
    parameters, check = first_cells(notebook)
    injected = papermill.translators.translate_parameters("python3", "python", {"modell": "tiny"})
    error = ran(shell, parameters, injected, check)
    assert isinstance(error, ValueError)
    assert str(error).startswith(
        f"notebook {notebook} has no parameter 'modell': did you mean 'model'?"
    )
    # In JupyterLab, the cell is mended and run again; later cells have names of their own.
    assert ran(shell, parameters, injected.replace("modell", "model"), check) is None
    assert ran(shell, parameters, "minutes = 5", check) is None


def first_cells(notebook):
    """The sources of a notebook's first two code cells: the parameters and their check."""
    cells = nbformat.read(ROOT / f"notebooks/{notebook}.ipynb", as_version=4).cells
    parameters, check, *_ = [cell for cell in cells if cell.cell_type == "code"]
    assert "parameters" in parameters.metadata.tags
    return parameters.source, check.source


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_checks_all_its_parameters_in_its_first_cell(notebook):
    parameters, check = first_cells(notebook)
    targets = [target.id for line in ast.parse(parameters).body for target in line.targets]
    (call,) = [node for node in ast.walk(ast.parse(check)) if isinstance(node, ast.Call)]
    assert call.args[0].value == notebook
    assert {keyword.arg: keyword.value.id for keyword in call.keywords} == {
        name: name for name in targets
    }


@pytest.mark.parametrize(("notebook", "name", "value"), CASES)
def test_a_notebook_stops_at_a_bad_parameter_before_it_does_anything(notebook, name, value):
    parameters, check = first_cells(notebook)
    cells = {}
    exec(parameters, cells)
    cells[name] = value
    with pytest.raises(ValueError, match=rf"^{name}(\[\d\])? must "):
        exec(check, cells)


def test_more_users_than_can_be_foretold_are_refused():
    given = accepted("03_load") | {"users": [4, 2001]}
    with pytest.raises(ValueError, match=r"^users\[1\] must be a whole number from 1 to 2000"):
        bl.check_parameters("03_load", **given)
