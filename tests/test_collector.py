"""The collector's pause: nested, in several threads, and never against the user's own choice."""

import gc
import subprocess
import sys
import threading
import weakref

import pytest

from benchlib.collector import collector_paused


def test_the_last_block_lets_it_go_on():
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with collector_paused():
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=hold)
    with collector_paused():
        other.start()
        assert inside.wait(10)
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert not gc.isenabled(), "another thread's block still runs"
    leave.set()
    other.join()
    assert gc.isenabled()


def test_what_was_made_is_old_and_is_freed_by_a_full_collection():
    class Cycle:
        def __init__(self):
            self.me = self

    with collector_paused():
        found = weakref.ref(Cycle())
    gc.collect(1)
    assert found() is not None
    gc.collect()
    assert found() is None


def test_what_others_have_frozen_stays_frozen():
    gc.freeze()
    try:
        with collector_paused():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_an_error_lets_it_go_on():
    with pytest.raises(ZeroDivisionError), collector_paused():
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_a_collector_that_the_user_has_switched_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_names_of_a_notebook_are_imported_without_it():
    code = (
        "import gc, sys, benchlib as bl; begun = []\n"
        "gc.callbacks.append(lambda phase, _: begun.append(phase))\n"
        "bl.load_pipeline; assert 'diffusers' in sys.modules\n"
        "print(begun.count('start'), gc.isenabled())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout in ("0 True\n", "1 True\n"), f"a library may collect itself; {ran.stderr}"
