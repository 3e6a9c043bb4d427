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
HEAVY = {"torch", "diffusers", "locust", "gevent"}


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
        ("benchlib.bench, benchlib.search, benchlib.sweeps", HEAVY | {"pandas", "matplotlib", "uvicorn"}),
        ("benchlib.load.runner", HEAVY | {"pandas", "matplotlib", "uvicorn"}),
        ("benchlib.__main__", HEAVY | {"pandas", "matplotlib", "uvicorn"}),
    ],
)
def test_importing_the_hall_leaves_the_heavy_ones_out(module, absent):
    code = f"import json, sys, {module}; print(json.dumps([*sys.modules]))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert not absent & set(json.loads(printed))


def test_no_wing_imports_another_or_the_conductor():
    for wing in WINGS:
        files = [file for file in FILES if file.is_relative_to(PACKAGE / wing)]
        assert files
        for file in files:
            assert parts_of_ours(file) <= {wing, "telemetry"}, file


def test_load_and_study_know_no_torch():
    for file in FILES:
        if file.relative_to(PACKAGE).parts[0] in ("load", "study"):
            assert not {name.split(".")[0] for name in imported(file)} & {"torch", "diffusers", "transformers"}, file


def test_the_conductors_alone_know_more_than_one_wing():
    several = {file.name for file in FILES if len(parts_of_ours(file) & WINGS) > 1}
    assert several == {"anatomy.py", "bench.py", "search.py", "settings.py", "sweeps.py", "__init__.py"}


def test_who_makes_one_run_knows_nothing_of_many():
    assert not parts_of_ours(PACKAGE / "bench.py") & {"search", "sweeps"}


def test_every_name_that_a_notebook_uses_is_there():
    assert [name for name in benchlib.__all__ if getattr(benchlib, name) is None] == []
    assert dir(benchlib) == sorted(benchlib.__all__)
    assert len(set(benchlib.__all__)) == len(benchlib.__all__)
    assert {file.stem for file in PACKAGE.iterdir()} & {*benchlib.__all__} == set(), "importing it would hide the name"
    assert benchlib.plots.__name__ == "benchlib.study.plots"


def test_a_name_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(AttributeError) as caught:
        benchlib.run_laod  # noqa: B018 - reading it is what is tested
    assert "'run_laod'" in str(caught.value)
    assert all(name in str(caught.value) for name in benchlib.__all__)
