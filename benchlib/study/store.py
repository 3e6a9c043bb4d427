"""Where runs live on disk: results/<study>/<run>/ with run.json, requests.jsonl and, at the end, two Parquet files.

Knows the folder's layout, the format of the record and the rows, and which process may write. Ignorant of what the
figures mean (statistics.py) and of who writes the rows: another process appends to requests.jsonl, one line with one
write per request.

A process killed at any moment leaves either whole files or none, since what is written at once is written aside and
renamed into place, run.json last: a run is finished only when run.json says so. That outlives SIGKILL without an fsync;
a loss of power it may not outlive.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchlib.rows import ROW_DTYPES

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1

_FORMER_COLUMNS = {"request_class"}  # older results have them; they are passed over
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def results_dir(path: str | os.PathLike[str] | None = None) -> Path:
    """The folder that studies go under; it need not exist.

    `path`, else BENCHLIB_RESULTS, else `results` beside the nearest pyproject.toml of benchlib at or above the working
    folder, else ./results.
    """
    if chosen := path or os.environ.get("BENCHLIB_RESULTS"):
        return Path(chosen).expanduser().absolute()
    here = Path.cwd()
    return (
        next(
            (folder for folder in (here, *here.parents) if _is_ours(folder / "pyproject.toml")),
            here,
        )
        / "results"
    )


def create_run(results: Path, study: str, record: dict[str, Any]) -> RunFolder:
    """Makes results/<study>/<run>/ and its run.json with status "running".

    `record` holds `spec`, `machine`, `packages` and `git`; the rest of the record is filled in here. The run's name is
    the UTC time and the spec's label, or else its arrivals in two words; a name already taken, also by another process
    at this moment, gets a number. Raises ValueError for a study or label that is no safe file name.
    """
    words = check_names(study, record["spec"])
    now = datetime.now(UTC)
    name = first = f"{now:%Y%m%d-%H%M%S}-{words}"
    number = 1
    while True:
        try:
            (results / study / name).mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
            name = f"{first}-{number}"
    head = {
        "format_version": FORMAT_VERSION,
        "study": study,
        "run": name,
        "status": "running",
        "error": None,
    }
    folder = RunFolder(
        results / study / name,
        {**head, "started_at": now.isoformat(), **record, **head, "outcome": None},
    )
    folder.rows_path.touch()
    folder._write_record()
    return folder


def check_names(study: str, spec: dict[str, Any]) -> str:
    """What a run of `spec` is called behind its time. Raises ValueError where it or `study` is no safe file name."""
    words: str = spec["label"] or _arrivals_words(spec["arrivals"])
    _check_name("study", study)
    _check_name("label", words)
    return words


@contextmanager
def lock_study(results: Path, study: str) -> Iterator[Path]:
    """Holds results/<study>/ (made where it is missing) for the one process that writes runs there, and yields it.

    The kernel frees the lock with the process, however it ends. Raises RuntimeError that names the process which holds
    it, ValueError for a study that is no safe file name.
    """
    _check_name("study", study)
    folder = results / study
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(lock, 20).decode() or "which is just starting"
            os.close(lock)
            raise RuntimeError(
                f"study {study!r} in {results} is being written by process {pid}: wait for it, end it, or name another "
                "study"
            ) from None
        if os.fstat(lock).st_nlink:
            break
        os.close(lock)  # its holder removed the file between our opening and locking it
    try:
        os.truncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        for left in folder.glob(".summary.csv.*"):  # by a writer that was killed
            left.unlink(missing_ok=True)
        yield folder
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


@dataclass
class RunFolder:
    """A run being written. `path` is its folder, `record` what run.json holds."""

    path: Path
    record: dict[str, Any]

    @property
    def rows_path(self) -> Path:
        """requests.jsonl, where whoever sends the requests appends its rows."""
        return self.path / "requests.jsonl"

    def finish(
        self,
        status: str,
        outcome: dict[str, Any] | None,
        telemetry: pd.DataFrame,
        error: str | None = None,
    ) -> Run:
        """Writes both Parquet files, then run.json with `status` ("finished", "interrupted" or "failed")."""
        if status not in ("finished", "interrupted", "failed"):
            raise ValueError(
                f'status must be "finished", "interrupted" or "failed", not {status!r}'
            )
        requests = read_rows(self.rows_path)
        _write_aside(self.path / "requests.parquet", requests.to_parquet)
        _write_aside(self.path / "telemetry.parquet", telemetry.to_parquet)
        self.record = {**self.record, "status": status, "error": error, "outcome": outcome}
        self._write_record()
        return Run(self.record, requests, telemetry, self.path)

    def _write_record(self) -> None:
        text = json.dumps(self.record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        _write_aside(self.path / "run.json", lambda path: path.write_text(text, encoding="utf-8"))


@dataclass(frozen=True)
class Run:
    """A run as read back: `record` is what run.json holds, `requests` has ROW_DTYPES, `telemetry` a row per sample."""

    record: dict[str, Any]
    requests: pd.DataFrame
    telemetry: pd.DataFrame
    path: Path

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.record["spec"]
        return spec

    @property
    def figures(self) -> Path:
        """The study's folder of figures; made by whoever saves the first one."""
        return self.path.parent / "figures"

    def summary(self) -> pd.Series:
        """The run's figures, reckoned once: see summary.summarise."""
        return self._summary.copy()

    def checks(self) -> pd.DataFrame:
        """Whether the measurement agrees with itself: see validity.checks."""
        from benchlib.study.validity import checks

        return checks(self.record, self.requests, self.telemetry)

    @cached_property
    def _summary(self) -> pd.Series:
        from benchlib.study.summary import summarise

        return summarise(self.record, self.requests, self.telemetry)


@dataclass(frozen=True)
class Study:
    """The runs of one study, oldest first."""

    path: Path
    runs: tuple[Run, ...]

    @cached_property
    def requests(self) -> pd.DataFrame:
        """Every run's requests, with the run's name in a first column `run`."""
        import pandas as pd

        frames = [
            run.requests.assign(run=run.record["run"]).astype({"run": "string"})
            for run in self.runs
        ]
        if not frames:
            return pd.DataFrame(columns=["run", *ROW_DTYPES]).astype({"run": "string"} | ROW_DTYPES)
        return pd.concat(frames, ignore_index=True)[["run", *ROW_DTYPES]]

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row a run: its name, start, label, model, what is one value of its arrivals, and summary.summarise."""
        import pandas as pd

        rows = [
            {key: run.record[key] for key in ("run", "started_at", "status")}
            | {"label": run.spec["label"], "model": run.spec["target"]["model"]}
            # A trace's lists are no columns, and its `requests` are not how many there were.
            | {
                name: value
                for name, value in run.spec["arrivals"].items()
                if isinstance(value, str | int | float)
            }
            | run.summary().to_dict()
            for run in self.runs
        ]
        return pd.DataFrame(rows)

    def since(self, moment: str) -> Study:
        """The runs that began at `moment` or later: UTC as datetime.isoformat writes it."""
        return Study(
            self.path, tuple(run for run in self.runs if str(run.record["started_at"]) >= moment)
        )

    def judge(self, slo: str) -> pd.DataFrame:
        """`summary` with what each run says of a promise such as "p95 < 2 s": `verdict` (see Slo.judge) and
        `goodput_images_per_s`, the images that came in its time."""
        import pandas as pd

        from benchlib.study.latency import latencies
        from benchlib.study.slo import Slo, goodput

        goal = Slo.parse(slo)
        in_time = [goodput(run.requests, run.record, latency_s=goal.latency_s) for run in self.runs]
        return self.summary.assign(
            verdict=[goal.judge(latencies(run.requests)) for run in self.runs],
            goodput_images_per_s=pd.Series(in_time, dtype=float),
        )

    def write_summary(self) -> Path:
        """Writes `summary` to summary.csv in the study's folder and returns its path."""
        target = self.path / "summary.csv"
        _write_aside(target, lambda path: self.summary.to_csv(path, index=False))
        return target


def load_run(path: str | os.PathLike[str]) -> Run:
    """Reads one run's folder, also that of a run which is going on or was killed (status "running", rows so far).

    Raises ValueError that names the folder where it holds no run, is damaged, or has a newer format.
    """
    import pandas as pd

    from benchlib.telemetry import COLUMNS

    folder = Path(path)
    try:
        record = json.loads((folder / "run.json").read_bytes())
        version = record["format_version"]
        if version > FORMAT_VERSION:
            raise ValueError(
                f"its format is {version} and this benchlib reads up to {FORMAT_VERSION}: upgrade benchlib"
            )
        requests_path, telemetry_path = folder / "requests.parquet", folder / "telemetry.parquet"
        if requests_path.exists():
            requests = (
                pd.read_parquet(requests_path).reindex(columns=list(ROW_DTYPES)).astype(ROW_DTYPES)
            )
        else:
            requests = read_rows(folder / "requests.jsonl")
        if telemetry_path.exists():
            telemetry = pd.read_parquet(telemetry_path)
        else:
            telemetry = pd.DataFrame(columns=list(COLUMNS), dtype="float64")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} can't be read as a run: {error}") from error
    return Run(record, requests, telemetry, folder)


def load_study(path: str | os.PathLike[str]) -> Study:
    """Reads every run in results/<study>; one that can't be read is left out with a warning that names it.

    Raises ValueError where no run is left.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"path: {folder} is no folder; pass results/<study>")
    runs = []
    for run in sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and entry.name != "figures"
    ):
        rows = run / "requests.jsonl"
        if not (run / "run.json").exists() and not (rows.exists() and rows.stat().st_size):
            continue  # killed while it was being made: there is nothing in it
        try:
            runs.append(load_run(run))
        except ValueError as error:
            warnings.warn(f"left out of the study: {error}", stacklevel=2)
    if not runs:
        raise ValueError(f"path: {folder} holds no run that can be read; pass results/<study>")
    return Study(folder, tuple(sorted(runs, key=lambda run: str(run.record["started_at"]))))


def read_rows(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads requests.jsonl into ROW_DTYPES, in the file's order.

    A last line that was cut short by a kill is dropped: its write never returned. Any other line that is no row raises
    ValueError with its number.
    """
    import pandas as pd

    lines = Path(path).read_bytes().split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            unknown = row.keys() - ROW_DTYPES.keys() - _FORMER_COLUMNS
        except (ValueError, AttributeError) as error:
            if number == len(lines):  # what follows the last newline: nothing, or the torn line
                break
            raise ValueError(f"{path}, line {number} is damaged: {error}") from error
        if unknown:
            raise ValueError(
                f"{path}, line {number} has unknown fields: {', '.join(sorted(unknown))}"
            )
        rows.append(row)
    columns = {name: [row.get(name) for row in rows] for name in ROW_DTYPES}
    return pd.DataFrame(
        {name: pd.Series(columns[name], dtype=dtype) for name, dtype in ROW_DTYPES.items()}
    )


def _write_aside(path: Path, write: Callable[[Path], object]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _check_name(field: str, name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{field} names a folder, so it takes letters, digits, '.', '_' and '-', a letter or digit first, "
            f"80 at most: {name!r} does not fit"
        )


def _arrivals_words(arrivals: dict[str, Any]) -> str:
    """ "closed-4" for a closed loop of 4 users: the kind's first word and its first number."""
    numbers = [f"{value:.9g}" for value in arrivals.values() if isinstance(value, int | float)]
    return "-".join([arrivals["kind"].split("_")[0], *numbers[:1]])


def _is_ours(pyproject: Path) -> bool:
    try:
        return bool(
            tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {}).get("name")
            == "benchlib"
        )
    except (OSError, ValueError):  # none there, or somebody else's that is not even TOML
        return False
