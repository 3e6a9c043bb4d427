"""Finds and makes the folders of results, checks their names, and locks a study for one writer.

Knows the results folder, a study's lock, and how a file is replaced as a whole. Ignorant of what
the files hold.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_STAMP = "%Y%m%d-%H%M%S"
_STAMP_LETTERS = 15
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def results_dir(path: str | os.PathLike[str] | None = None) -> Path:
    """The folder that studies go under; it need not exist.

    It is the first of these that is given or found: `path`; BENCHLIB_RESULTS; `results` beside
    benchlib's pyproject.toml at or above the working folder; ./results.
    """
    chosen = path or os.environ.get("BENCHLIB_RESULTS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if _is_ours(folder / "pyproject.toml"):
            return folder / "results"
    return here / "results"


def _is_ours(pyproject: Path) -> bool:
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):  # there is none, or somebody else's that is not even TOML
        return False
    return bool(project.get("name") == "benchlib")


def run_words(spec: Mapping[str, Any], *, digits: int = 3) -> str:
    """A run's name after its time: the label, else "closed-4" for a closed loop of 4 users.

    A rate has so many `digits`: three for a person; more where loads must be told apart.
    """
    if spec["label"]:
        label: str = spec["label"]
        return label
    arrivals = spec["arrivals"]
    words = [arrivals["kind"].split("_")[0]]
    for value in arrivals.values():
        if isinstance(value, int | float):
            words.append(f"{value:.{max(digits, len(str(int(value))))}g}")
            break
    return "-".join(words)


def make_run_folder(results: Path, study: str, spec: Mapping[str, Any]) -> tuple[Path, datetime]:
    """Makes results/<study>/<run>/ and returns it with the moment of its creation.

    The name is the UTC time and `run_words(spec)`, with a number where another run has that name.
    The moment is after that of every run there: if the clock was set back, it is the next second
    after the newest run. Raises ValueError as `check_names` does.
    """
    check_names(study, spec)
    created = _next_moment(results / study, datetime.now(UTC))
    first = f"{created:{_STAMP}}-{run_words(spec)}"
    folder = results / study / first
    number = 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder, created
        except FileExistsError:
            number += 1
            folder = results / study / f"{first}-{number}"


def _next_moment(study: Path, now: datetime) -> datetime:
    """`now`, or the second after the newest run in `study` if that was made later than `now`."""
    entries = study.iterdir() if study.is_dir() else ()
    moments = [_read_stamp(entry.name) for entry in entries]
    newest = max((moment for moment in moments if moment), default=now)
    if newest <= now:
        return now
    return newest + timedelta(seconds=1)


def _read_stamp(name: str) -> datetime | None:
    """The moment with which a run's name begins; None for any other folder."""
    try:
        moment = datetime.strptime(name[:_STAMP_LETTERS], _STAMP)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC)


def run_folders(study: Path) -> list[Path]:
    """The folders of a study's runs, by name, without those that a kill left empty."""
    folders = []
    for entry in sorted(study.iterdir()):
        rows = entry / "requests.jsonl"
        has_rows = rows.exists() and rows.stat().st_size > 0
        if has_rows or (entry / "run.json").exists():
            folders.append(entry)
    return folders


def check_names(study: str, spec: Mapping[str, Any]) -> None:
    """Raises ValueError where `study` or the name of a run of `spec` is not a safe file name."""
    _check_name("study", study)
    _check_name("label", run_words(spec))


def _check_name(field: str, name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{field} names a folder, so it takes letters, digits, '.', '_' and '-', "
            f"a letter or digit first, 80 at most: {name!r} does not fit"
        )


@contextmanager
def lock_study(results: Path, study: str) -> Iterator[Path]:
    """Makes results/<study>/ and yields it while this process alone may write runs there.

    The kernel frees the lock when the process ends, however it ends; the file stays. Raises
    RuntimeError that names the process which holds the lock. Raises ValueError for a study that is
    not a safe file name.
    """
    _check_name("study", study)
    folder = results / study
    folder.mkdir(parents=True, exist_ok=True)
    # The pid has a file of its own: an older filelock empties the lock's file while it tries.
    pid_path = folder / ".lock.pid"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"study {study!r} in {results} is being written by process {_read_pid(pid_path)}: "
            "wait for it, end it, or name another study"
        ) from None
    try:
        pid_path.write_text(str(os.getpid()))
        for left in folder.glob(".summary.csv.*"):  # by a writer that was killed
            left.unlink(missing_ok=True)
        yield folder
    finally:
        pid_path.unlink(missing_ok=True)
        lock.release()


def _read_pid(path: Path) -> str:
    try:
        return path.read_text() or "(just starting)"
    except FileNotFoundError:  # it has just taken the lock, or just freed it
        return "(just starting)"


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with the path of a new file beside `path`, then renames that file to `path`."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
