"""Remembers what things cost on this machine for a case: a start, a compilation, an image.

Knows the file <results>/costs.json, and what a machine and its GPUs are called. Ignorant of budgets
and plans (budget.py), and of what a cost's name stands for.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import Any

from benchlib import machine
from benchlib.load.bounds import check_number
from benchlib.printing import print_line
from benchlib.study.folders import results_dir, write_aside

FILE_NAME = "costs.json"
KEPT = 5
"""How many of the latest times are kept of each cost; their median counts.

One slow start among five, such as the first after a reboot, does not move the median.
"""
_FORMAT = {"benchlib_costs": 1}


class Costs:
    """The costs of one case on this machine, in seconds, kept in <results>/costs.json.

    `case` says what the costs belong to: the model, recipe, device, size and so on. Costs of
    another case or machine are never used. A file that can't be read or is not ours is left as it
    is: a sentence says so, and the costs of this process alone count.
    """

    def __init__(self, results: str | os.PathLike[str] | None, case: Iterable[object]) -> None:
        self.path = results_dir(results) / FILE_NAME
        self.key = "; ".join([machine_name(), *map(str, case)])
        self._warned = False
        self._own = self._read().get(self.key, {})

    def median_s(self, name: str) -> float | None:
        """The median of the latest seconds recorded under `name`; None where there are none."""
        latest = self._own.get(name)
        return statistics.median(latest) if latest else None

    def record(self, name: str, seconds: float) -> None:
        """Keeps `seconds` as the latest cost of `name`, also for later processes."""
        latest = [*self._own.get(name, []), seconds]
        self._own[name] = latest[-KEPT:]
        # Another process may have written its own case since this one read the file.
        whole = self._read() | {self.key: self._own}
        if self._warned:
            return
        text = json.dumps(_FORMAT | {"costs_s": whole}, indent=1)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(self.path, lambda aside: aside.write_text(text, encoding="utf-8"))
        except OSError as error:
            self._warn(f"can't be written ({error})")

    def _read(self) -> dict[str, dict[str, list[float]]]:
        """The file's costs by case and name; none where it is absent, damaged or not ours."""
        try:
            return _checked(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._warn(f"can't be read ({error})")
            return {}

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            print_line(
                f"{self.path} {reason}. Plans start from rough guesses instead. "
                "Remove the file to have costs remembered again.",
            )


def _checked(content: Any) -> dict[str, dict[str, list[float]]]:
    """The costs in a file's content. Raises ValueError where it is not as `record` writes it."""
    is_ours = isinstance(content, dict) and _FORMAT.items() <= content.items()
    costs = content.get("costs_s") if is_ours else None
    if not isinstance(costs, dict):
        raise ValueError("it was not written by this version of benchlib")
    checked = {}
    for key, by_name in costs.items():
        if not isinstance(by_name, dict):
            raise ValueError(f"{key}: {by_name!r} must be an object")
        checked[key] = {name: _seconds(latest) for name, latest in by_name.items()}
    return checked


def _seconds(latest: Any) -> list[float]:
    """A list of seconds. Raises ValueError for anything else."""
    values = latest if isinstance(latest, list) else [latest]
    for value in values:
        check_number("seconds", value, 0)
    return [float(value) for value in values]


@cache
def machine_name() -> str:
    """What this machine is called in the costs: its CPU, cores and GPUs.

    The name is the same before and after this process begins to use CUDA.
    """
    described = machine.describe_machine()
    names = [str(described["cpu"]), f"{described['cores']} cores", *_gpu_names()]
    return ", ".join(names)


def _gpu_names() -> list[str]:
    """The GPUs that NVML sees, each name once; none without a driver, or where they are hidden."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    nvml = import_module("pynvml")
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return sorted({str(nvml.nvmlDeviceGetName(handle)) for handle in handles})
    except nvml.NVMLError:
        return []
