"""The memory of a model that an engine has loaded itself: what the collector does, and when.

Ignorant of what the model is, and of where it is used.
"""

from __future__ import annotations

import gc


def hide_from_collector() -> None:
    """Hide all objects from the collector: a full collection would block every answer for 0.2 s."""
    gc.collect()
    gc.freeze()


def free_memory(*, of_device: bool) -> None:
    """Free what nothing refers to any more, on the device too if that is wanted."""
    import torch

    gc.unfreeze()
    gc.collect()
    if of_device:
        torch.cuda.empty_cache()
