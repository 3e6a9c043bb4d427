"""Measures one night for nightly.sh, and says which nights it is compared with.

Knows the night's options, how its runs are measured, and whether they are valid. Ignorant of how
nights are compared: the notebook 06_compare does that.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchlib.load.arrivals import ClosedLoop
from benchlib.load.bounds import check_number
from benchlib.printing import print_line
from benchlib.run import Point
from benchlib.study.folders import results_dir
from benchlib.study.store import Study, load_study
from benchlib.study.wording import agreeing, counted

NIGHTS = 14
"""At most this many nights are compared, the newest ones."""

BAD_INPUT = 2
"""The exit status for an option that is refused: no run was made."""


@dataclass(frozen=True)
class NightOptions:
    """What nightly.sh is told by the environment, checked."""

    night: str
    model: str
    users: int
    duration_s: float
    repeat: int
    results: Path


def read_night_options(given: Mapping[str, str]) -> NightOptions:
    """Returns the options in `given`, the environment that nightly.sh fills up.

    Raises ValueError that names the option, what it must be, and what it is. The folder of results
    is made, and must be one to write to.
    """
    night = given["NIGHT"]
    if not re.fullmatch(r"20\d\d-\d\d-\d\d", night):
        raise ValueError(f"NIGHT must be a date such as 2026-11-20, got {night!r}")
    users = _number(given, "USERS", whole=True)
    duration_s = _number(given, "DURATION_S")
    repeat = _number(given, "REPEAT", whole=True)
    results = results_dir()
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        words = f"BENCHLIB_RESULTS must be a folder to write to, got '{results}'"
        raise ValueError(f"{words}: {error.strerror}") from error
    if not os.access(results, os.W_OK):
        raise ValueError(f"BENCHLIB_RESULTS must be a folder to write to, got '{results}'")
    return NightOptions(night, given["MODEL"], int(users), duration_s, int(repeat), results)


def _number(given: Mapping[str, str], name: str, *, whole: bool = False) -> float:
    """Returns the number that the option `name` gives, which must be above 0."""
    text = given[name]
    number: float | str
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = text  # which is refused below, in words that name the option
    if whole:
        check_number(name, number, 1, whole=True)
    else:
        check_number(name, number, 0, above=True)
    return float(number)


def make_night(options: NightOptions) -> int:
    """Measures the night and returns 0, or 1 if a run of it is not valid.

    Runs that are valid already are kept as they are, and the others are measured again. Returns
    BAD_INPUT for a model that can't be loaded: then no run is written, so that none is invalid.
    """
    from benchlib.serving.model.loading import load_pipeline
    from benchlib.serving.model.models import ModelError
    from benchlib.serving.server import serve
    from benchlib.sweeps import sweep

    try:
        pipe = load_pipeline(options.model)
    except ModelError as error:
        print_line(f"MODEL can't be loaded: {error}", sys.stderr)
        return BAD_INPUT
    with serve(pipe, name="night") as server:
        point = Point(
            ClosedLoop(options.users),
            target=server,
            duration_s=options.duration_s,
            warmup_s=options.duration_s / 10,
        )
        study = sweep(
            [point],
            study=options.night,
            repeat=options.repeat,
            results=options.results,
            invalid_again=True,
        )
    fault = night_fault(study)
    if fault is None:
        return 0
    print_line(fault, sys.stderr)
    return 1


def night_fault(study: Study) -> str | None:
    """Returns how many runs of a night are valid, why the others are not, and what to do.

    Returns None if all runs are valid.
    """
    reasons = []
    for run in study.runs:
        summary = run.summary()
        if not summary["valid"]:
            reasons.append(str(summary["invalid_reason"]))
    if not reasons:
        return None
    night = study.path.name
    valid = len(study.runs) - len(reasons)
    why = "; ".join(dict.fromkeys(reasons))
    runs = counted(len(study.runs), "run")
    return (
        f"{night} is invalid, {valid} of {runs} {agreeing(valid, 'is', 'are')} valid: {why}. "
        f"With the same options, NIGHT={night} ./nightly.sh measures the others again"
    )


def nights_to_compare(options: NightOptions) -> list[Path]:
    """Returns the folders of at most NIGHTS nights, from the first valid one to this night.

    Returns [] if no earlier night is valid. Prints the nights that are passed over. Raises
    ValueError that says what to do if this night is not valid, or is of another machine, model or
    load than the first valid one. Nights between these two that differ so are passed over.
    """
    from benchlib.questions.compare.judge import comparison_fault, study_fault

    # 1) The newest nights, this one included.
    dated = [folder for folder in options.results.glob("20??-??-??") if folder.is_dir()]
    so_far = [folder for folder in dated if folder.name <= options.night]
    folders = sorted(so_far)[-NIGHTS:]

    # 2) The reason why a night can't be compared.
    reasons = {}
    studies = {}
    for folder in folders:
        try:
            studies[folder] = load_study(folder)
            reasons[folder] = study_fault(studies[folder])
        except ValueError as error:
            reasons[folder] = str(error)
    this_night = options.results / options.night
    if this_night not in reasons:
        raise ValueError(f"{options.night} is not compared, as nothing was measured")
    if reasons[this_night] is not None:
        raise ValueError(
            f"{options.night} is not compared, as it is invalid: {reasons[this_night]}. "
            f"If these runs had other options, remove {this_night} and measure the night again"
        )

    # 3) From the baseline on.
    valid = [folder for folder in folders if reasons[folder] is None]
    baseline = valid[0]
    fault = comparison_fault(studies[baseline], studies[this_night])
    if fault is not None:
        raise ValueError(
            f"{options.night} is not compared with {baseline.name}: {fault}. If this is meant, "
            f"move the older nights out of {options.results}: then this night is the first"
        )
    for folder in valid:
        reasons[folder] = comparison_fault(studies[baseline], studies[folder])
    readable = []
    for folder in folders:
        if reasons[folder] is None:
            readable.append(folder)
        else:
            print_line(f"{folder.name} is passed over: {reasons[folder]}", sys.stderr)
    if len(readable) < 2:
        print_line("this is the first valid night: nothing to compare with", sys.stderr)
        return []
    return readable


def run_command(command: str) -> int:
    """Runs `measure`, or prints the parameters of 06_compare for `compare`, or nothing."""
    try:
        options = read_night_options(os.environ)
    except ValueError as error:
        print_line(error, sys.stderr)
        return BAD_INPUT
    if command == "measure":
        return make_night(options)
    try:
        nights = [str(folder) for folder in nights_to_compare(options)]
    except ValueError as error:
        print_line(error, sys.stderr)
        return 1
    if nights:
        print(json.dumps({"studies": nights, "gate": True}))  # noqa: T201 - it must not be lost
    return 0


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1]))
