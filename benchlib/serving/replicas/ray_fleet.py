"""From `replicas=` and `address=` to a fleet: how many replicas, on what, with how many threads.

Knows what the arguments of `serve` mean for Ray. Ignorant of how Ray starts replicas
(ray_launcher.py) and calls them (ray_replica.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Literal

from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.replicas.fleet import Fleet
from benchlib.serving.replicas.ray_deployment import ReplicaPlan
from benchlib.serving.replicas.ray_launcher import DEPLOYMENT, RayLauncher, count_gpus
from benchlib.serving.replicas.ray_replica import RayReplica
from benchlib.serving.replicas.ray_session import is_ray_running, require_ray

log = logging.getLogger(__name__)

Replicas = int | Literal["auto"]


def make_ray_fleet(
    model: str,
    options: EngineOptions,
    load_options: Mapping[str, Any],
    *,
    replicas: Replicas,
    address: str | None = None,
) -> Fleet:
    """A fleet of `replicas` engines in processes of Ray Serve, each on a GPU of its own.

    "auto" is every GPU, or one replica on the CPU where there is none. `address` is that of a Ray
    that runs, None for one of our own. Nothing is started before the fleet is.

    Raises ImportError if Ray is missing, ValueError for a bad argument or too few GPUs, and for
    "auto" what `RaySession.enter` raises.
    """
    require_ray()
    device = load_options.get("device", "auto")
    check_device(device)

    # 1) How many, and on what
    gpus = 0
    if device != "cpu":
        gpus = visible_gpus(address)
    on_gpu = gpus > 0 or device == "cuda"
    if replicas != "auto":
        count = replicas
    else:
        count = max(gpus, 1)
        if not on_gpu:
            log.warning("replicas: there is no GPU, so 'auto' is one replica, on the CPU")
    if on_gpu and address is None and count > gpus:
        raise ValueError(
            f"replicas: {count} need a GPU each, and there are {gpus}; give {gpus} or 'auto', "
            "or device='cpu'"
        )
    if on_gpu and address is not None and count > gpus:
        log.warning(
            "replicas: %d need a GPU each, and the cluster has %d; the others wait until it grows",
            count,
            gpus,
        )

    recipe = str(load_options.get("recipe"))
    if on_gpu and count > 1 and "cudnn-tuned" in recipe:
        log.warning(
            "recipe: with cudnn-tuned each replica chooses its own kernels, so a seed's bytes may "
            "differ between replicas; leave it out for equal bytes"
        )

    # 2) What each is
    threads = None
    if address is None:
        threads = threads_for(count)
    plan = ReplicaPlan(model, options, dict(load_options), threads)
    launcher = RayLauncher(plan, count, address=address, on_gpu=on_gpu)
    return Fleet(
        [
            RayReplica(str(number), application, DEPLOYMENT, launcher)
            for number, application in enumerate(launcher.applications)
        ],
        options,
    )


def check_device(device: str) -> None:
    """Raise ValueError for a single GPU: Ray gives each replica its own."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"device: with replicas it is 'auto', 'cuda' or 'cpu', not {device!r}; "
            "CUDA_VISIBLE_DEVICES says which GPUs there are"
        )


def visible_gpus(address: str | None) -> int:
    """The GPUs that replicas may have."""
    if address is not None or is_ray_running():
        return count_gpus(address)
    import torch

    return torch.cuda.device_count()


def threads_for(replicas: int) -> int | None:
    """The CPU threads of each of `replicas` on this machine; None if the environment says it."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // replicas)
