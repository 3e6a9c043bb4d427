"""The walls between the wings, and what importing the hall costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import benchlib

PACKAGE = Path(benchlib.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
WINGS = {"serving", "load", "study"}
HEAVY = {"torch", "diffusers", "locust", "gevent", "numba"}


def imported(file):
    """The full names of what `file` imports anywhere in it, in functions and for type checkers too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import, which hides what it reaches for"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts_of_ours(file):
    """The wings and the hall's modules that `file` imports."""
    return {name.split(".")[1] for name in imported(file) if name.startswith("benchlib.")}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("benchlib", HEAVY | {"pandas", "numpy", "matplotlib", "uvicorn", "fastapi", "pydantic"}),
        (
            "benchlib.run, benchlib.questions.capacity.measure, benchlib.sweeps",
            HEAVY | {"pandas", "matplotlib", "uvicorn"},
        ),
        ("benchlib.load.runner", HEAVY | {"pandas", "matplotlib", "uvicorn"}),
        ("benchlib.__main__", HEAVY | {"pandas", "matplotlib", "uvicorn"}),
    ],
)
def test_importing_the_hall_leaves_the_heavy_ones_out(module, absent):
    code = f"import json, sys, {module}; print(json.dumps([*sys.modules]))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert not absent & set(json.loads(printed))


def where(file):
    """The parts of a file's path in the package: ("questions", "anatomy", "judge.py")."""
    return file.relative_to(PACKAGE).parts


def test_no_wing_imports_another_or_the_conductor():
    for wing in WINGS:
        files = [file for file in FILES if where(file)[0] == wing]
        assert files
        for file in files:
            known = {
                wing, "rows", "lora", "server_timing", "telemetry", "machine", "cell_view", "other_work",
                "collector", "printing",
            }  # fmt: skip
            assert parts_of_ours(file) <= known, file


def test_load_study_and_what_judges_or_draws_know_no_torch():
    for file in FILES:
        if where(file)[0] in ("load", "study") or file.name in ("judge.py", "plots.py"):
            packages = {name.split(".")[0] for name in imported(file)}
            assert not packages & {"torch", "diffusers", "transformers"}, file


def rooms_of_ours(file):
    """The rooms of `questions` that `file` imports."""
    dotted = [name.split(".") for name in imported(file)]
    return {parts[2] for parts in dotted if parts[:2] == ["benchlib", "questions"]}


def test_no_room_of_the_questions_imports_another():
    rooms = {where(file)[1] for file in FILES if where(file)[0] == "questions"}
    assert rooms >= {"anatomy", "batching", "capacity", "compare", "settings"}
    for file in FILES:
        if where(file)[0] == "questions" and len(where(file)) == 3:
            assert rooms_of_ours(file) <= {where(file)[1]}, file


def test_judges_and_plots_know_only_rows_and_study():
    files = [file for file in FILES if where(file)[0] == "questions"]
    quiet = [file for file in files if file.name in ("judge.py", "plots.py")]
    assert len(quiet) >= 8
    for file in quiet:
        assert parts_of_ours(file) <= {"study", "rows", "questions", "cell_view"}, file


def test_below_the_questions_nobody_knows_them():
    for file in FILES:
        if where(file)[0] in ("serving", "load", "study", "queueing") or file.name in (
            "run.py",
            "sweeps.py",
            "budget.py",
            "costs.py",
            "rows.py",
            "server_timing.py",
            "machine.py",
            "telemetry.py",
            "cell_view.py",
            "printing.py",
            "other_work.py",
        ):
            assert not rooms_of_ours(file), file


def test_only_a_conductor_knows_more_than_one_wing():
    several = {file for file in FILES if len(parts_of_ours(file) & WINGS) > 1}
    halls = {
        "__init__.py",
        "__main__.py",
        "run.py",
        "sweeps.py",
        "budget.py",
        "costs.py",
        "queueing",
    }
    for file in several:
        is_measure = file.stem.split("_")[0] == "measure"  # as measure.py and measure_alone.py
        assert where(file)[0] in halls or is_measure, file


def test_the_maker_of_one_run_knows_nothing_of_many():
    assert not parts_of_ours(PACKAGE / "run.py") & {"questions", "sweeps"}


def test_every_name_that_a_notebook_uses_is_there():
    assert [name for name in benchlib.__all__ if getattr(benchlib, name) is None] == []
    assert dir(benchlib) == sorted(benchlib.__all__)
    assert len(set(benchlib.__all__)) == len(benchlib.__all__)
    files = {file.stem for file in PACKAGE.iterdir()}
    assert files & {*benchlib.__all__} == {"plots"}, "importing it would hide the name"
    assert benchlib.plots.__name__ == "benchlib.plots"


def test_a_name_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(AttributeError) as caught:
        benchlib.run_laod  # noqa: B018 - reading it is what is tested
    assert "'run_laod'" in str(caught.value)
    assert all(name in str(caught.value) for name in benchlib.__all__)
