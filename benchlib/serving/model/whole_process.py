"""Whether the process is whole after a load: what libraries change for all threads while they load.

diffusers, transformers and accelerate set torch's default dtype, and patch torch's modules, for the
time of a load. Two loads at once may undo that in the wrong order. Our own loads of folders change
nothing (filled_networks.py); those of single files and of LoRAs still use the libraries' loaders.

Knows these traces. Ignorant of which thread left them: it can only say what it sees.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SETTLE_S = 3.0
"""A load that is still running puts its own changes right. Those that stay longer are traces."""
_PAUSE_S = 0.02
_CAUSE = "as if another thread had loaded a model at the same time; load one after the other"


@contextmanager
def warned_of_traces() -> Iterator[None]:
    """Warns after the block if it left torch's defaults changed. Call it on the loading thread."""
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        _warn(before)


def _warn(before: torch.dtype) -> None:
    left = _traces(before)
    settled_s = time.monotonic() + SETTLE_S
    while left and time.monotonic() < settled_s:
        time.sleep(_PAUSE_S)
        now = _traces(before)
        left = {kind: words for kind, words in left.items() if kind in now}
    for words in left.values():
        warnings.warn(words, RuntimeWarning, stacklevel=5)


def _traces(before: torch.dtype) -> dict[str, str]:
    """What is changed now, in words by its kind. `before` is the default dtype before the load."""
    found = {}
    default = torch.get_default_dtype()
    # Before, another load may have been running: float32 is then no change.
    if default not in (before, torch.float32):
        found["dtype"] = (
            f"since this load torch's default dtype is {default}, and it was {before}, {_CAUSE}; "
            f"torch.set_default_dtype({before}) puts it right"
        )
    if torch.nn.Linear(1, 1).weight.is_meta:
        found["modules"] = (
            f"since this load torch makes new modules without memory, {_CAUSE}; "
            "restart the process before you make modules of your own"
        )
    return found
