"""Checks the parameters of each notebook before anything is loaded or measured.

Knows the parameters of every notebook by name, and the cell in which papermill gives their values.
Ignorant of what a notebook does with them.
"""

from __future__ import annotations

import ast
import math
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchlib.lora import check_lora_name
from benchlib.questions.capacity.load_parts import MOST_USERS
from benchlib.queueing.day import HIGHEST_FACTOR, DayTrace
from benchlib.study.latency import PERCENTILES
from benchlib.study.slo import Slo

INJECTED = "# Parameters"
"""How the cell begins that papermill adds to a notebook."""

MODELS = ("tiny", "sdxl", "sdxl-random", "auto")
"""The models that have a name; any other is a hub id, a folder or a file."""

MOST_CARDS = 256
"""As many cards as are simulated (queueing/cards.py)."""

Check = Callable[[str, Any], Any]
"""Takes a parameter's name and value, and returns the value to use.

Raises ValueError that names the parameter.
"""


def check_parameters(notebook: str, **given: Any) -> SimpleNamespace:
    """Returns the parameters of `notebook` ("03_load"), checked, as attributes of one object.

    If a notebook takes a list, a single value becomes a list of one. In a notebook, the names in
    papermill's own cell are checked, too. Raises ValueError that names the parameter, what it must
    be, and what it is.
    """
    if notebook not in NOTEBOOKS:
        raise ValueError(f"notebook must be one of {', '.join(NOTEBOOKS)}, got {notebook!r}")
    checks = COMMON | NOTEBOOKS[notebook]
    for name in (*given, *_names_from_papermill(_cells_run())):
        if name not in checks:
            raise ValueError(_unknown_words(notebook, name, checks))
    missing = [name for name in checks if name not in given]
    if missing:
        parameters = "parameter" if len(missing) == 1 else "parameters"
        raise ValueError(f"notebook {notebook} needs the {parameters} {', '.join(missing)}")
    checked = {name: checks[name](name, value) for name, value in given.items()}
    return SimpleNamespace(**checked)


def _unknown_words(notebook: str, name: str, known: Iterable[str]) -> str:
    """Returns that `name` is unknown, the nearest known name, and all known names."""
    names = list(known)
    words = f"notebook {notebook} has no parameter {name!r}"
    nearest = get_close_matches(name, names, n=1)
    if nearest:
        words += f": did you mean {nearest[0]!r}? It has {', '.join(names)}"
    else:
        words += f": it has {', '.join(names)}"
    return words


def _cells_run() -> list[str]:
    """Returns the text of each cell that this kernel has run, the present one last.

    Returns [] outside of a notebook.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return [] if shell is None else list(shell.user_ns.get("In", []))


def _names_from_papermill(cells: list[str]) -> list[str]:
    """Returns the names to which papermill's cell gives values.

    papermill adds that cell, which begins with "# Parameters". Without a check, a misspelt name in
    it has no effect. Cells before an earlier check don't count: their names may be mended since.
    """
    names: list[str] = []
    for cell in reversed(cells[:-1]):
        if "check_parameters(" in cell:
            break
        if not cell.startswith(INJECTED):
            continue
        for statement in ast.parse(cell).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def _number(
    low: float, high: float = math.inf, *, whole: bool = False, above: bool = False
) -> Check:
    """Returns a check for a finite number from `low` to `high`; with `above`, not `low` itself."""
    noun = "a whole number" if whole else "a number"
    if above:
        limits = f"above {low:g}"
    elif high == math.inf:
        limits = f"of {low:g} or more"
    else:
        limits = f"from {low:g} to {high:g}"
    kinds = int if whole else (int, float)

    def check(name: str, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(
                f"{name} must be {noun} {limits}, got the text {value!r}: "
                f"write it without quotes (papermill: -p {name} 4, not -r {name} 4)"
            )
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        # `math.isfinite` raises for an int that is too large for a float.
        is_finite = is_number and abs(value) <= sys.float_info.max
        if not is_finite or not low <= value <= high:
            raise ValueError(f"{name} must be {noun} {limits}, got {value!r}")
        if above and value == low:
            raise ValueError(f"{name} must be {noun} {limits}, got {value!r}")
        return value

    return check


def _side(name: str, value: Any) -> Any:
    """Accepts a side of an image in pixels, within the limits of the model and the server."""
    _number(64, 2048, whole=True)(name, value)
    if value % 8:
        raise ValueError(
            f"{name} must be a multiple of 8 pixels, got {value}: take {value // 8 * 8}"
        )
    return value


def _text(name: str, value: Any) -> Any:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a text, got {value!r}")
    return value


def _model(name: str, value: Any) -> Any:
    """Accepts a model's name, a folder or file that exists, or what may be a hub id."""
    _text(name, value)
    path = Path(value).expanduser()
    is_file = value.endswith(".safetensors")
    if value in MODELS or path.is_dir() or (is_file and path.is_file()):
        return value
    if is_file:
        raise ValueError(f"{name} must be a file that exists, got {value!r}")
    is_path = value.startswith((".", "/", "~")) or value.count("/") > 1
    if is_path:
        raise ValueError(f"{name} must be a folder that exists, got {value!r}")
    if "/" not in value:
        choices = ", ".join(MODELS)
        raise ValueError(
            f"{name} must be one of {choices}, a hub id (owner/name), "
            f"a diffusers folder or a .safetensors file, got {value!r}"
        )
    return value


def _share(name: str, value: Any) -> Any:
    """Accepts a share above 0, at most 1."""
    _number(0, above=True)(name, value)
    if value > 1:
        raise ValueError(
            f"{name} must be a share, at most 1, got {value!r}: {value:g} % is {value / 100:g}"
        )
    return value


def _one_of(*choices: str) -> Check:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        return value

    return check


def _yes_or_no(name: str, value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


def _folder_to_write(name: str, value: Any) -> Any:
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise ValueError(f"{name} must be the path of a folder, or None, got {value!r}")
    if Path(value).exists() and not Path(value).is_dir():
        raise ValueError(f"{name} must be the path of a folder, and {str(value)!r} is a file")
    folder = Path(value).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{name} must be a folder to write to, got {str(value)!r}: {error.strerror}"
        ) from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{name} must be a folder to write to, got {str(value)!r}")
    return value


def _results_folder(name: str, value: Any) -> Any:
    """Accepts a folder to write to, or None: then BENCHLIB_RESULTS, if it is set, must be one."""
    usual = os.environ.get("BENCHLIB_RESULTS")
    if value is not None:
        return _folder_to_write(name, value)
    if usual:
        _folder_to_write("BENCHLIB_RESULTS", usual)
    return None


def _folder_to_read(name: str, value: Any) -> Any:
    if not isinstance(value, str | os.PathLike) or not Path(value).is_dir():
        raise ValueError(
            f"{name} must be the path of a folder that exists, such as results/load, got {value!r}"
        )
    return value


def _prompt_file(name: str, value: Any) -> Any:
    """Accepts a text file with a different prompt in each line."""
    is_path = isinstance(value, str | os.PathLike)
    if not is_path or not Path(value).is_file():
        raise ValueError(
            f"{name} must be the path of a text file with a prompt a line, or None, got {value!r}"
        )
    try:
        lines = Path(value).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be a text file in UTF-8, got {str(value)!r}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{name} must have a prompt a line, got the empty file {str(value)!r}")
    for prompt in prompts:
        if prompts.count(prompt) > 1:
            raise ValueError(f"{name} must have each prompt once, got {prompt!r} twice")
    return value


def _day_trace(name: str, value: Any) -> Any:
    """Accepts a file of a day's arrival times."""
    is_path = isinstance(value, str | os.PathLike)
    if not is_path or not Path(value).is_file():
        raise ValueError(
            f"{name} must be the path of a .csv or .jsonl file with a column time_s, or None, "
            f"got {value!r}"
        )
    try:
        DayTrace.from_file(value)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} must be a day's arrivals, got {str(value)!r}: {error}") from error
    return value


def _promise(name: str, value: Any) -> Any:
    """Accepts a promise that Slo.parse can read."""
    if not isinstance(value, str):
        raise ValueError(f'{name} must be a text such as "p95 < 2 s", got {value!r}')
    try:
        Slo.parse(value)
    except ValueError as error:
        raise ValueError(f'{name} must be a text such as "p95 < 2 s", got {value!r}') from error
    return value


def _plotted_promise(name: str, value: Any) -> Any:
    """Accepts a promise about a percentile that every run's summary has."""
    _promise(name, value)
    if Slo.parse(value).q not in PERCENTILES:
        percentiles = ", ".join(f"p{100 * q:g}" for q in PERCENTILES)
        raise ValueError(f"{name} must be about one of {percentiles}, got {value!r}")
    return value


def _list_of(check: Check, *, empty: bool = False) -> Check:
    """Returns a check for a list of different values, each of which `check` accepts.

    One such value becomes a list of one.
    """

    def check_each(name: str, value: Any) -> Any:
        if isinstance(value, str) and value.lstrip().startswith(("[", "(")):
            raise ValueError(
                f"{name} must be a list, got the text {value!r}: "
                f"papermill takes lists by -y '{{{name}: [...]}}' and not by -p or -r, "
                "and makes a text of a tuple"
            )
        if not isinstance(value, list | tuple):
            return [check(name, value)]
        if not value and not empty:
            raise ValueError(f"{name} must have at least one value, got {value!r}")
        checked = [check(f"{name}[{place}]", one) for place, one in enumerate(value)]
        for place, one in enumerate(checked):
            if one in checked[:place]:
                raise ValueError(f"{name} must have each value once, got {one!r} twice")
        return checked

    return check_each


def _loras(name: str, value: Any) -> Any:
    """Accepts a mapping of adapters' names to where they are; None is no adapter."""
    if value is None:
        return {}
    fix = f'{name} must map names to files, such as {{"style": "style.safetensors"}}'
    if not isinstance(value, dict):
        raise ValueError(f"{fix}, got {value!r}")
    for adapter, source in value.items():
        try:
            check_lora_name(adapter)
        except ValueError as error:
            raise ValueError(f"{fix}, got {adapter!r}: {error}") from None
        if not isinstance(source, str) or not source:
            raise ValueError(f"{fix}, got {source!r} for {adapter!r}")
        if source.startswith((".", "/", "~")) and not Path(source).expanduser().exists():
            raise ValueError(f"{fix}, got {source!r}, which does not exist")
    return value


def _or_none(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


_count = _number(1, whole=True)
_positive = _number(0, above=True)

COMMON: dict[str, Check] = {
    "model": _model,
    "profile": _one_of("quick", "full"),
    "results_dir": _results_folder,
    "budget_min": _or_none(_positive),
}
NOTEBOOKS: dict[str, dict[str, Check]] = {
    "01_quickstart": {
        "users": _count,
        "users_tried": _list_of(_count),
        "duration_s": _or_none(_positive),
    },
    "02_time_and_memory": {
        "sizes": _or_none(_list_of(_side)),
        "steps": _or_none(_list_of(_number(1, 150, whole=True))),
        "images": _count,
    },
    "03_load": {
        "users": _list_of(_number(1, MOST_USERS, whole=True)),
        "rates": _or_none(_list_of(_positive)),
        "slo": _or_none(_plotted_promise),
        "batching": _one_of("serial", "dynamic", "continuous"),
        "recipe": _text,
    },
    "04_batching": {
        "rates": _or_none(_list_of(_positive)),
        "requests": _count,
        "repeat": _count,
        "slo": _or_none(_promise),
    },
    "05_settings": {
        "users": _list_of(_count),
        "fewer_steps": _list_of(_number(1, 149, whole=True), empty=True),
        "loras": _loras,
        "exact_only": _yes_or_no,
        "target_rate": _positive,
        "slo": _or_none(_promise),
        "memory_limit_gib": _or_none(_positive),
        "price_per_hour": _or_none(_positive),
        "prompts": _or_none(_prompt_file),
    },
    "06_compare": {
        "studies": _or_none(_list_of(_folder_to_read)),
        "gate": _yes_or_no,
        "min_effect": _or_none(_share),
        "allow": _list_of(_one_of("machine", "model", "workload", "arrivals", "api"), empty=True),
    },
    "07_scale": {
        "slo": _or_none(_promise),
        "batching": _one_of("serial", "dynamic", "continuous"),
        "recipe": _text,
        "trace": _or_none(_day_trace),
        "mean_rate": _or_none(_positive),
        "peak_hour": _number(0, 24),
        "peak_factor": _number(1, HIGHEST_FACTOR),
        "min_cards": _or_none(_number(1, MOST_CARDS, whole=True)),
        "max_cards": _or_none(_number(1, MOST_CARDS, whole=True)),
        "target_ongoing": _list_of(_positive),
        "upscale_delay_s": _number(0),
        "downscale_delay_s": _number(0),
        "startup_s": _or_none(_number(0)),
        "restart_s": _or_none(_number(0)),
        "mtbf_h": _or_none(_positive),
        "price_per_hour": _or_none(_positive),
        "replicas": _count,
    },
}
