"""The door's options: their bounds by device, their texts, and a key that reaches none of these."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchlib.__main__ import main
from benchlib.serving.door_options import DoorOptions
from benchlib.serving.engine.options import in_words
from benchlib.serving.server import serve
from benchlib.serving.standalone import Settings

FULL = 1024 * 1024
VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
KEYS = st.text(VISIBLE).map("k3y#{}".format)  # no word of the options
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEY = "k3y-of-this-test"


@pytest.mark.parametrize(
    ("device", "pixel_steps"),
    [
        ("cpu", FULL * 50),
        ("cpu", 512 * 512 * 20 * 10),
        ("mps", FULL * 50 * 10),
        ("cuda", FULL * 50 * 10),
        ("cuda:1", 2048 * 2048 * 150),
    ],
)
def test_what_people_ask_for_is_below_the_default_bound(device, pixel_steps):
    assert DoorOptions().bounds_on(device).max_pixel_steps >= pixel_steps


def test_no_ten_of_the_largest_images_are_taken_by_default():
    for device in ("cpu", "mps", "cuda"):
        assert DoorOptions().bounds_on(device).max_pixel_steps < 2048 * 2048 * 150 * 10


def test_the_bounds_are_told_in_words():
    words = DoorOptions(max_per_client=3).bounds_on("cuda").in_words()
    assert words == (
        "A request may have 1,048,576,000 pixel steps: 1,000 steps of 1024x1024. "
        "It is refused if it would wait over 600 s. A client may have 3 images inside."
    )
    none = DoorOptions(max_pixel_steps=None, max_queue_s=None).bounds_on("cpu")
    assert none.in_words().startswith("No bound is set")


def test_the_environment_says_auto_none_and_numbers(monkeypatch):
    said = {
        "MAX_PIXEL_STEPS": "none", "MAX_QUEUE_S": "12.5", "MAX_PER_CLIENT": "none",
        "API_KEY": KEY, "ACCESS_LOG": "true", "DEADLINE_S": "none",
    }  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(f"BENCHLIB_{name}", value)
    door = Settings().door_options()
    assert door == DoorOptions(max_pixel_steps=None, max_queue_s=12.5, api_key=KEY, access_log=True)
    assert door.key == KEY
    assert Settings(max_pixel_steps="auto").door_options().max_pixel_steps == "auto"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("max_pixel_steps", 0, "above 0"),
        ("max_pixel_steps", 1.5, "whole number"),
        ("max_pixel_steps", "much", "above 0"),
        ("max_pixel_steps", True, "above 0"),
        ("max_queue_s", -1, "above 0"),
        ("max_queue_s", float("inf"), "above 0"),
        ("max_per_client", 0, "greater than or equal to 1"),
        ("api_key", "", "visible ASCII"),
        ("api_key", "two words", "visible ASCII"),
        ("api_key", 5, "visible ASCII"),
        ("ssl_keyfile", "key.pem", "give ssl_certfile too"),
        ("access_log", "perhaps", "valid boolean"),
    ],
)
def test_a_bad_option_is_named_with_its_fix(option, value, words):
    with pytest.raises(ValueError, match=words):
        serve("tiny", **{option: value})


@UNHURRIED
@given(KEYS)
def test_a_key_is_in_no_text(key):
    door = DoorOptions(api_key=key)
    assert door.key == key
    shown = [repr(door), str(door), door.model_dump_json(), repr(Settings(api_key=key))]
    shown.append(str(door.add_to({"device": "cpu"}, {})))
    for bad in (key + " and a space", key + "\n"):
        with pytest.raises(ValidationError) as caught:
            DoorOptions(api_key=bad)
        shown += [str(caught.value), in_words(caught.value)]
        with pytest.raises(ValueError, match="api_key") as refused:
            serve("tiny", api_key=bad)
        shown.append(str(refused.value))
    with pytest.raises(ValidationError) as caught:  # a fault of two fields, not of one
        Settings(api_key=key, ssl_keyfile="key.pem")
    shown += [str(caught.value), in_words(caught.value)]
    assert not [text for text in shown if key in text or repr(key)[1:-1] in text]


def test_the_command_line_has_a_switch_for_the_log_and_no_option_for_the_key(monkeypatch, capsys):
    given_settings = []
    monkeypatch.setattr(
        "benchlib.serving.standalone.serve_alone",
        lambda settings, **_: given_settings.append(settings) or 0,
    )
    assert main(["serve", "--access-log", "--max-pixel-steps", "none", "--max-queue-s", "9"]) == 0
    monkeypatch.setenv("BENCHLIB_ACCESS_LOG", "1")
    assert main(["serve", "--no-access-log"]) == 0
    first, second = given_settings
    assert (first.access_log, first.max_pixel_steps, first.max_queue_s) == (True, None, 9.0)
    assert not second.access_log
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--api-key", KEY])
    capsys.readouterr()
