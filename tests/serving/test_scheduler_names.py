"""The table of samplers: docs show it as it is, and diffusers has each class."""

import re
from pathlib import Path

import diffusers
import pytest
from pydantic import ValidationError

from benchlib.serving.engine.options import in_words
from benchlib.serving.model.random_models import SDXL
from benchlib.serving.model.schedulers import build_scheduler
from benchlib.serving.model.solvers import find_solver
from benchlib.serving.scheduler_names import SCHEDULERS, check_scheduler, count_unet_calls
from benchlib.serving.standalone import Settings

PAGE = Path(__file__).parents[2] / "docs/samplers.md"


def in_docs(name):
    """The line of docs/samplers.md that `name` should have."""
    named = SCHEDULERS[name]
    changes = ", ".join(f"`{option}={value!r}`" for option, value in named.changes.items())
    base = diffusers.EulerDiscreteScheduler().config
    shared = "yes" if find_solver(build_scheduler(name, base)) is not None else ""
    return f"| `{name}` | `{named.class_name}` | {changes} | {shared} |".replace("  ", " ")


def test_the_docs_show_the_table():
    rows = [
        line for line in PAGE.read_text().splitlines() if re.match(r"\| `[\w-]+` \| `\w+` ", line)
    ]
    assert rows == [in_docs(name) for name in SCHEDULERS]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_calls_of_the_unet_are_counted_as_the_scheduler_lays_them_out(name):
    scheduler = build_scheduler(
        name, diffusers.EulerDiscreteScheduler.from_config(SDXL["scheduler"]).config
    )
    class_name = SCHEDULERS[name].class_name
    for steps in (4, 5, 20):
        scheduler.set_timesteps(steps)
        assert count_unet_calls(steps, class_name) == len(scheduler.timesteps)
    assert count_unet_calls(20, None) == 20


def test_the_first_steps_of_pndm_take_four_calls_unless_they_are_skipped():
    scheduler = build_scheduler("pndm", diffusers.EulerDiscreteScheduler().config)
    for steps in (4, 5, 20):
        scheduler.set_timesteps(steps)
        counted = count_unet_calls(steps, "PNDMScheduler", skips_prk_steps=False)
        assert counted == len(scheduler.timesteps) == steps + 9


def test_an_unknown_name_is_answered_with_all_names():
    with pytest.raises(ValueError, match="'Euler' is not known; use one of euler, ") as raised:
        check_scheduler("Euler")
    assert all(name in str(raised.value) for name in SCHEDULERS)
    assert [check_scheduler(name) for name in SCHEDULERS] == list(SCHEDULERS)


def test_the_environment_names_a_sampler(monkeypatch):
    assert Settings().scheduler is None
    monkeypatch.setenv("BENCHLIB_SCHEDULER", "dpmpp-2m-karras")
    assert Settings().scheduler == "dpmpp-2m-karras"
    with pytest.raises(ValidationError) as raised:
        Settings(scheduler="dpm++")
    assert in_words(raised.value).startswith(
        "scheduler: Value error, 'dpm++' is not known; use one"
    )
