"""The end of a process whose engine has ended by an error: its reason, and a status of its own.

Knows exit statuses. Ignorant of HTTP, of why an engine ends (engine.py), and of signals
(process_end.py).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from benchlib.printing import print_line
from benchlib.serving.engine.faults import EngineEnded

if TYPE_CHECKING:
    from typing import Any

    from benchlib.serving.backend import Backend

ENGINE_ENDED = 4
"""The exit status of a server whose engine has ended. uvicorn's own are 0, 1 and 3."""
LAST_WORDS_S = 1.0
"""The time in which everybody inside gets the reason."""


def leave_with(engine: Backend[Any], *, not_loaded: int | None = None) -> None:
    """End this process with ENGINE_ENDED once `engine` has ended by an error. Returns at once.

    The process ends without clean-up: a lost device may hang the destructors of what is on it. It
    ends with the status `not_loaded` if the model can't be loaded, unless that is None.
    """

    def leave() -> None:
        engine.ended.wait()
        error = engine.failure
        status: int | None = None
        if isinstance(error, EngineEnded):
            status = ENGINE_ENDED
            words = str(error)
        elif error is not None:
            status = not_loaded
            words = f"{type(error).__name__}: {error}"
        if status is None:
            return
        time.sleep(LAST_WORDS_S)
        print_line(f"benchlib: {words}", sys.stderr)
        os._exit(status)

    threading.Thread(target=leave, name="benchlib-last-words", daemon=True).start()
