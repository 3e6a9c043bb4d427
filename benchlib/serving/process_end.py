"""How a process that serves ends in time: SIGTERM, and work that can't be interrupted.

Knows signals, timers and exit statuses. Ignorant of HTTP, of engines, and of what the work is. The
end of a process whose engine has broken is last_words.py.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from benchlib.printing import flush_or_drop

NOT_STARTED = 1
"""The exit status of a server that could not start."""
# As shells count them.
ENDED_BY_SIGINT = 128 + signal.SIGINT
ENDED_BY_SIGTERM = 128 + signal.SIGTERM
# Once everybody has an answer, a step or a load has this long to end by itself. Together with what
# comes before it, the stop takes at most a second more than `drain_s`.
UNFINISHED_S = 0.25
LAST_SECOND_S = 0.8
REPLICAS_END_S = 20.0
"""The processes of replicas may take this long besides."""


@contextmanager
def in_time(seconds: float = UNFINISHED_S) -> Iterator[None]:
    """End this process if the block takes longer than `seconds` after a signal to uvicorn.

    Python can't interrupt a step, a decode or a load. The status is that of a stop in order: 0
    after SIGINT, else the end by SIGTERM. Outside the main thread this does nothing: there the
    process is not the server's.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    server = getattr(handler, "__self__", None)  # uvicorn.Server handles signals in the main thread
    received: list[int] = getattr(server, "_captured_signals", [])
    if not in_main_thread or not received:
        yield
        return

    def leave() -> None:
        if signal.SIGINT in received:
            os._exit(0)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, handler)


def end_at_once() -> None:
    """End this process as after a second Ctrl+C. A step that goes on would crash Python's own end."""
    flush_or_drop(sys.stdout)
    flush_or_drop(sys.stderr)
    os._exit(ENDED_BY_SIGINT)


class SigtermEndsScript:
    """SIGTERM ends a script like `sys.exit`, so that it stops its servers in order.

    Python's own answer to SIGTERM is the end of the process, without an answer to anybody.
    `longest_s()` says how long the servers may take. After that, and LAST_SECOND_S more, the process
    ends whatever it does. A second SIGTERM ends it at once.
    """

    def __init__(self, longest_s: Callable[[], float]) -> None:
        self._longest_s = longest_s

    def begin(self) -> None:
        """From now on. Does nothing outside the main thread, or if the script has a handler."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._exit)

    def end(self) -> None:
        """Python's own answer again."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == self._exit:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _exit(self, _number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        seconds = self._longest_s() + LAST_SECOND_S
        timer = threading.Timer(seconds, os._exit, (ENDED_BY_SIGTERM,))
        timer.daemon = True
        timer.start()
        raise SystemExit(ENDED_BY_SIGTERM)
