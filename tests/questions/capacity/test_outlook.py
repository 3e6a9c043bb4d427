"""The foretold answer in words: each verdict of a run, each status of an estimate."""

from types import SimpleNamespace

import pytest

from benchlib.questions.capacity.outlook import Outlook
from tests.questions.capacity.made_outlook import FIELDS, USERS

UP_TO = (
    "On this machine SDXL (sdxl-random; baseline, continuous) {verb} p95 < 2 s "
    "up to 1.31 images/s (1.27 to 1.35), foretold from 60 images and "
)
KEEPS = UP_TO.format(verb="keeps")
SHOULD_KEEP = UP_TO.format(verb="should keep")


def judged(verdict, reason="", *, rate=1.25, in_time=0.98, foretold=(0.94, 1.0)):
    return SimpleNamespace(
        rate=rate,
        images=95,
        verdict=verdict,
        reason=reason,
        in_time=in_time,
        foretold_in_time=foretold,
    )


def lines(**changes):
    return Outlook(**FIELDS | changes).lines()


CONFIRMED = judged("confirmed")
BROKEN = judged("confirmed", rate=1.45, in_time=0.4, foretold=(0.4, 0.4))
SLOWER = judged("not confirmed", "images took 3 s in the mean, and 1 to 2 s were foretold")
SHORT = judged("too short", "20 images are needed")


@pytest.mark.parametrize(
    ("confirmations", "up_to", "words"),
    [
        (
            [CONFIRMED],
            KEEPS,
            "confirmed by 95 images at 1.25/s (98 % in time, 94 to 100 % foretold).",
        ),
        (
            [CONFIRMED, BROKEN],
            KEEPS,
            "confirmed by 95 images at 1.25/s (98 % in time, 94 to 100 % foretold) "
            "and 95 images at 1.45/s (40 % in time, 40 % foretold).",
        ),
        (
            [SHORT],
            SHOULD_KEEP,
            "confirmed by no run: 95 images at 1.25/s: too short, 20 images are needed.",
        ),
        ([], SHOULD_KEEP, "confirmed by no run: there was no time for one."),
    ],
)
def test_the_capacity_names_the_runs_that_confirm_it(confirmations, up_to, words):
    first, *_ = lines(confirmations=tuple(confirmations))
    assert first == up_to + words


def test_nothing_is_claimed_that_the_runs_contradict():
    assert lines(confirmations=(SLOWER, SHORT)) == [
        "How many images/s SDXL (sdxl-random; baseline, continuous) makes within p95 < 2 s on this "
        "machine is not shown: the runs contradict what was foretold from 60 images, "
        "1.31 images/s (1.27 to 1.35). 95 images at 1.25/s: images took 3 s in the mean, and "
        "1 to 2 s were foretold."
    ]


def test_a_run_that_differs_from_one_that_confirms_is_named():
    _, doubt, *_ = lines(confirmations=(CONFIRMED, SLOWER))
    assert doubt.startswith("95 images at 1.25/s did not confirm it: images took 3 s in the mean")


def test_an_earlier_estimate_that_failed_is_named():
    first, doubt, *_ = lines(confirmations=(CONFIRMED,), former=(SLOWER,))
    assert "and confirmed by" in first
    assert doubt.startswith("An earlier estimate failed: 95 images at 1.25/s: images took 3 s")


def test_users_and_the_highest_throughput_have_a_sentence_each():
    _, most, users = lines()
    assert most == "It makes at most 2.02 images/s, whatever the latency."
    assert users == (
        "It keeps p95 < 2 s with up to 2 users at a time; "
        "4 users get 1.9 images/s, each in 2.1 s (foretold)."
    )
    _, _, none = lines(users=USERS[2:])
    assert none.startswith("With 4 users at a time it breaks p95 < 2 s; ")
    assert len(lines(users=USERS[:0])) == 2


def test_a_wider_interval_has_its_reasons():
    _, wider, *_ = lines(breaches=("images became 5 % slower", "a pause", "a third reason"))
    assert wider == ("The estimate is widened: images became 5 % slower; a pause.")


def test_the_tiny_model_is_not_taken_for_sdxl():
    first, *_ = lines(is_tiny=True, server="tiny; baseline, serial")
    assert first.startswith("On this machine the tiny model, not SDXL (tiny; baseline, serial) ")


def test_an_estimate_from_images_made_alone_says_so():
    first, *_ = lines(is_loaded=False, images=5)
    assert "foretold from 5 images made alone, before any load, and confirmed by no run" in first


def test_an_interrupt_is_why_no_run_confirms():
    first, *_ = lines(interrupted=True)
    assert first == f"{SHOULD_KEEP}confirmed by no run: measuring was interrupted."


def test_a_promise_that_no_rate_keeps():
    first, *_ = lines(rate=None, interval=None, image_s=2.5)
    assert first.endswith(
        "keeps p95 < 2 s at no rate: an image that has the server to itself takes 2.5 s."
    )
    first, *_ = lines(rate=None, interval=None)
    assert first.endswith(
        "at no rate: more than 5 % of the images take longer "
        "even if they have the server to themselves."
    )


def test_a_refusal_is_all_that_is_said():
    assert lines(refusal="another process was busy") == [
        "No capacity is foretold for SDXL (sdxl-random; baseline, continuous): "
        "another process was busy."
    ]


def test_what_the_runs_lack_is_told_though_it_widens_nothing():
    remark = "4 of 60 requests had no answer yet when the run ended, and count for nothing"
    said = lines(remarks=(remark,))
    assert f"{remark}." in said
    assert not any("widened" in line for line in said)


def test_one_user_gets_and_two_users_get():
    one = lines(users=USERS[:1])[-1]
    assert "; 1 user gets 1.5 images/s, each in 0.66 s (foretold)." in one
    assert "; 2 users get 1.8 images/s" in lines(users=USERS[:2])[-1]
