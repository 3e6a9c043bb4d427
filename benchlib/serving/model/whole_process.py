"""Whether the process is whole after a load: what libraries change for all threads while they load.

diffusers, transformers and accelerate set torch's default dtype, and patch torch's modules, for the
time of a load. Two loads at once, ours and one of a user's thread, may undo that in the wrong order.

Knows these traces. Ignorant of which thread left them: it can only say what it sees.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CAUSE = "as if another thread had loaded a model at the same time; load one after the other"


@contextmanager
def warned_of_traces() -> Iterator[None]:
    """Warns after the block if it left torch's defaults changed. Call it on the loading thread."""
    before = torch.get_default_dtype()
    yield
    after = torch.get_default_dtype()
    if after != before:
        warnings.warn(
            f"since this load torch's default dtype is {after}, and it was {before}, {_CAUSE}; "
            f"torch.set_default_dtype({before}) puts it right",
            RuntimeWarning,
            stacklevel=3,
        )
    if torch.nn.Linear(1, 1).weight.is_meta:
        warnings.warn(
            f"since this load torch makes new modules without memory, {_CAUSE}; "
            "restart the process before you make modules of your own",
            RuntimeWarning,
            stacklevel=3,
        )
