"""`replicas=` and `address=`: what they may be, checked before anything starts.

Ignorant of Ray, and of how many GPUs there are.
"""

from __future__ import annotations


def check_replicas(model: object, replicas: object, address: str | None) -> None:
    """Raise ValueError, which names the argument at fault and the fix."""
    # 1) How many
    is_number = isinstance(replicas, int) and not isinstance(replicas, bool)
    if is_number and replicas < 1:  # type: ignore[operator]
        raise ValueError(f"replicas: {replicas} is too few; give 1 or more, 'auto' or None")
    if not is_number and replicas not in ("auto", None):
        raise ValueError(f"replicas: {replicas!r} is no number; give one, 'auto' or None")
    if replicas is not None and not isinstance(model, str):
        raise ValueError(
            "replicas: each loads the model in a process of its own, so give the model's name "
            "instead of a loaded pipeline"
        )

    # 2) Where
    if address is None:
        return
    if replicas is None:
        raise ValueError("address: it is for replicas; give replicas, too")
    if address == "local":
        raise ValueError("address: 'local' would begin another Ray; leave address out for that")
    if "://" in address:
        raise ValueError(
            f"address: {address!r} is for Ray's client, which is not enough; run on a machine of "
            "the cluster and give 'auto', or its head as in 10.0.0.1:6379"
        )
