"""The first imports: the same answers as without our replacements, which end with the block."""

import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers.utils.import_utils import define_import_structure

from benchlib.serving.model.first_imports import fewer_looks, within

COUNTED = """
import importlib.metadata, inspect, os
looks, usual_lstat = [], os.lstat
def lstat(*args, **kwargs):
    looks.append(args)
    return usual_lstat(*args, **kwargs)
os.lstat = lstat
usual = inspect.getmodule, importlib.metadata.packages_distributions
import benchlib
benchlib.load_pipeline
assert (inspect.getmodule, importlib.metadata.packages_distributions) == usual
import transformers.utils.import_utils as import_utils
assert import_utils.define_import_structure.__module__ == import_utils.__name__
assert "clip.modeling_clip" in import_utils.sys.modules["transformers.models"]._modules
print(len(looks))
"""


def test_imports_resolve_few_paths_and_restore_what_they_replaced():
    printed = subprocess.run(
        [sys.executable, "-c", COUNTED], capture_output=True, check=True
    ).stdout
    assert int(printed) < 5000  # without the replacement 37,366


def test_the_folder_of_models_has_what_transformers_finds_in_it():
    folder = Path(transformers.__file__).parent / "models"
    whole = define_import_structure(folder, prefix="models")
    found = define_import_structure(str(folder / "__init__.py"))
    assert within("models", whole) == found


def frames():
    """Frames of a function here, of one in the standard library, and of code without a file."""
    here = inspect.currentframe()
    library = frame_of_inspect()
    without: dict = {"inspect": inspect, "__name__": __name__}
    exec("frame = inspect.currentframe()", without)
    return here, library, without["frame"]


def frame_of_inspect():
    """A frame of `inspect` itself: what it calls back sees it."""
    seen = []

    def look(_member):
        seen.append(sys._getframe(1))
        return False

    inspect.getmembers(inspect, look)
    return seen[0]


def test_a_frame_has_the_module_that_inspect_finds():
    asked = [*frames(), inspect, subprocess.run, Path]
    usual = [inspect.getmodule(one) for one in asked]
    assert usual[:3] == [sys.modules[__name__], inspect, None]
    with fewer_looks():
        assert [inspect.getmodule(one) for one in asked] == usual


def test_packages_are_listed_once_and_each_asker_has_a_list_of_its_own():
    usual = importlib.metadata.packages_distributions()
    with fewer_looks():
        first = importlib.metadata.packages_distributions()
        assert first == usual
        first.clear()
        assert importlib.metadata.packages_distributions() == usual


def test_blocks_of_two_threads_that_overlap_leave_nothing_replaced():
    usual = inspect.getmodule, importlib.metadata.packages_distributions
    first, second = fewer_looks(), fewer_looks()
    first.__enter__()
    second.__enter__()
    assert inspect.getmodule is not usual[0]
    first.__exit__(None, None, None)
    assert inspect.getmodule is not usual[0]
    second.__exit__(None, None, None)
    assert (inspect.getmodule, importlib.metadata.packages_distributions) == usual


def test_a_block_that_fails_leaves_nothing_replaced_and_another_may_follow():
    usual = inspect.getmodule
    for _ in range(2):
        with pytest.raises(ImportError, match="halfway"), fewer_looks():
            raise ImportError("halfway")
        assert inspect.getmodule is usual
