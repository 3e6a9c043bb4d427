"""The table of models, samplers and LoRAs: a few of its cases for real, and its page."""

import pytest

from benchlib.serving.scheduler_names import SCHEDULERS
from benchmarks import compatibility
from benchmarks.compatibility import (
    BETTER,
    EQUAL,
    PAGE,
    REFUSED,
    WRONG,
    Case,
    all_cases,
    judged,
    name_of,
    page,
)


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """The benchmark's own surroundings, undone afterwards."""
    monkeypatch.setattr(compatibility.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(compatibility.single_files, "SDXL", compatibility.small.SMALL)
    compatibility.small.put_into_hub_cache(
        tmp_path, compatibility.SDXL_HUB_ID, compatibility.base_folder()
    )


def test_there_are_more_than_sixty_cases_and_each_sampler_is_one():
    cases = all_cases()
    assert len(cases) == len(set(cases)) > 60
    assert {case.sampler for case in cases} - {None} == set(SCHEDULERS)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.usefixtures("quiet")
def test_a_few_cases_are_as_the_page_says():
    expected = {
        Case("folder", "dpmpp-2m-karras"): EQUAL,
        Case("file, v"): BETTER,
        Case("inpainting file"): REFUSED,
        Case("tiny", None, "peft", "fused"): EQUAL,
    }
    found = {case: verdict for case, verdict, _ in judged(list(expected), "float32", "cpu")}
    assert found == expected


def test_the_page_has_every_case_and_no_wrong_one():
    written = PAGE.read_text()
    for case in all_cases():
        assert f"| {' | '.join(name_of(case))} |" in written
    assert WRONG not in written
    assert REFUSED in written


def test_a_page_shows_the_words_of_a_refusal():
    verdicts = dict.fromkeys(compatibility.DTYPES, (REFUSED, "model: it is no model"))
    made = page({Case("cut file"): verdicts})
    assert "| cut file | its own |  | refused | refused | refused |" in made
    assert "| cut file | model: it is no model |" in made
