"""A kill of each kind at a random moment: the counts must hold, whatever the moment.

`make chaos` has many of each.
"""

import pytest

from benchmarks import kills

from .load.conftest import FakeServerProcess

pytestmark = pytest.mark.usefixtures("idle_machine")


@pytest.mark.parametrize("kind", kills.KINDS)
def test_what_was_finished_outlives_a_kill(kind, tmp_path):
    figures = kills.KINDS[kind](tmp_path, kills=1, seed=0)
    assert [figure for figure in figures if figure.passed is not True] == []


def test_a_lost_row_and_a_made_up_one_are_seen(tmp_path):
    server = FakeServerProcess()
    run = kills.twenty_requests(server.url, tmp_path)
    seen = kills.requests_seen(server.url)
    server.close()

    def broken(seen, at_least=20):
        figures = kills.judge_rows("child", [run], seen, at_least=at_least, in_flight=0)
        return [figure.name for figure in figures if figure.passed is False]

    assert broken(seen) == []
    assert broken(seen, at_least=21) == ["rows that were told of and are not there"]
    assert broken({*seen, "lost"}) == ["requests at a kill, without a row"]
    assert broken(set()) == ["rows of an answer that the server does not know"]


def test_a_lost_run_and_a_changed_one_are_seen(tmp_path):
    server = FakeServerProcess()
    kills.finish_sweep(server.url, tmp_path)
    server.close()
    frames = kills.frames_without_times(tmp_path)
    assert len(frames) == kills.RUNS_OF_A_SWEEP
    assert kills.same_frames(frames, dict(frames))
    first, *others = frames
    assert not kills.same_frames(frames, {key: frames[key] for key in others})
    assert not kills.same_frames(frames, frames | {first: frames[first].iloc[1:]})
