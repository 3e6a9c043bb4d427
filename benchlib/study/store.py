"""How runs are kept: results/<study>/<run>/ with run.json, requests.jsonl and two Parquet files.

Knows a run's files and their format. Ignorant of what the figures mean (summary.py), of where
results lie (folders.py) and of who writes the rows. Another process appends to requests.jsonl, one
line with one write per request.

A process that is killed at any moment leaves whole files or none: each is written aside and
renamed, run.json last. A run is finished only when run.json says so. The files survive SIGKILL
without an fsync, but perhaps not a loss of power.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from errno import ENOSPC
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchlib.cell_view import CellView, ShownInCell
from benchlib.rows import ROW_DTYPES
from benchlib.study.folders import make_run_folder, run_folders, write_aside
from benchlib.study.record_shape import check_shape
from benchlib.study.together import Study as Study
from benchlib.telemetry import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

    from benchlib.study.plots_of_run import PlotsOfRun

FORMAT_VERSION = 1
SPARE_BYTES = 2**17
_ENDS = ("finished", "interrupted", "failed")
_FORMER_COLUMNS = {"request_class"}  # rows of older results have them; they are passed over


def create_run(results: Path, study: str, record: dict[str, Any]) -> RunFolder:
    """Makes results/<study>/<run>/ and its run.json with status "running".

    `record` holds `spec`, `machine`, `packages` and `git`; this function adds the rest. Raises
    ValueError for a study or label that is not a safe file name.
    """
    folder, created = make_run_folder(results, study, record["spec"])
    head = {"format_version": FORMAT_VERSION, "study": study, "run": folder.name}
    head |= {"status": "running", "error": None}
    started = {"started_at": created.isoformat()}
    run = RunFolder(folder, head | started | record | head | {"outcome": None})
    run.rows_path.touch()
    run.spare_path.write_bytes(bytes(SPARE_BYTES))
    run.write_record()
    return run


@dataclass
class RunFolder:
    """A run being written. `path` is its folder, `record` what run.json holds."""

    path: Path
    record: dict[str, Any]

    @property
    def rows_path(self) -> Path:
        """requests.jsonl, to which the sender of the requests appends its rows."""
        return self.path / "requests.jsonl"

    @property
    def spare_path(self) -> Path:
        """Room for the record of a run that fills the disk; it goes when the run ends."""
        return self.path / ".spare"

    def finish(
        self,
        status: str,
        outcome: dict[str, Any] | None,
        telemetry: pd.DataFrame,
        error: str | None = None,
    ) -> Run:
        """Writes both Parquet files, then run.json with `status` of _ENDS; returns the run.

        The outcome gets what other processes took in the window, as a figure has only the record.
        Raises OSError where the files can't be written, as on a full disk. Then the record says so,
        and the rows are still in requests.jsonl.
        """
        from benchlib.study.busy import other_work_of

        if status not in _ENDS:
            raise ValueError(f"status must be one of {', '.join(_ENDS)}, not {status!r}")
        requests = read_rows(self.rows_path)
        self.record |= {"status": status, "error": error, "outcome": outcome}
        if outcome is not None:
            self.record["outcome"] = outcome | other_work_of(self.record, telemetry)
        try:
            write_aside(self.path / "requests.parquet", requests.to_parquet)
            write_aside(self.path / "telemetry.parquet", telemetry.to_parquet)
        except OSError as failure:
            reason = "the disk was full" if failure.errno == ENOSPC else str(failure)
            kept = f"its rows up to then are in {self.rows_path.name}"
            self.record |= {"status": "failed", "error": f"{reason}; {kept}"}
            raise
        finally:
            self.spare_path.unlink(missing_ok=True)
            self.write_record()
        return Run(self.record, requests, telemetry, self.path)

    def write_record(self) -> None:
        text = json.dumps(self.record, indent=2, ensure_ascii=False, allow_nan=False)
        data = f"{text}\n".encode()
        write_aside(self.path / "run.json", lambda path: path.write_bytes(data))


@dataclass(frozen=True, repr=False)
class Run(ShownInCell):
    """A run as read back: `record` is run.json, `requests` has ROW_DTYPES, `telemetry` samples."""

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
        """The study's folder of figures; the first plot that is saved makes it."""
        return self.path.parent / "figures"

    @property
    def plot(self) -> PlotsOfRun:
        """The run's plots, shown at once: run.plot.latency_over_time()."""
        from benchlib.study.plots_of_run import PlotsOfRun

        return PlotsOfRun(self)

    def summary(self) -> pd.Series:
        """The run's figures, computed once: see `summary.summarise`."""
        return self._summary.copy()

    def checks(self) -> pd.DataFrame:
        """Whether the measurement agrees with itself: see `validity.checks`."""
        from benchlib.study.validity import checks

        return checks(self.record, self.requests, self.telemetry)

    @cached_property
    def _summary(self) -> pd.Series:
        from benchlib.study.summary import summarise

        return summarise(self.record, self.requests, self.telemetry)

    def _view(self) -> CellView:
        from benchlib.study.run_views import view_of_run

        return view_of_run(self)


def load_run(path: str | os.PathLike[str]) -> Run:
    """Reads one run's folder.

    A run that is going on, or was killed, has the status "running" and its rows so far. Where a
    Parquet file is damaged, a warning says so: the rows come from requests.jsonl, and there is no
    telemetry. Raises ValueError that names the folder where it holds no run, is damaged, or has a
    newer format.
    """
    folder = Path(path)
    try:
        record = _read_record(folder)
        requests = _read_requests(folder)
        telemetry = _read_telemetry(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} can't be read as a run: {error}") from error
    return Run(record, requests, telemetry, folder)


def _read_requests(folder: Path) -> pd.DataFrame:
    """The run's requests: from requests.parquet, else from the lines that it was made of."""
    import pandas as pd

    path = folder / "requests.parquet"
    lines = folder / "requests.jsonl"
    if path.exists():
        try:
            columns = pd.read_parquet(path).reindex(columns=list(ROW_DTYPES))
            return columns.astype(ROW_DTYPES)
        except (OSError, ValueError, TypeError) as error:
            if not lines.exists():
                raise
            warnings.warn(f"{path} is damaged, so {lines.name} is read: {error}", stacklevel=3)
    return read_rows(lines)


def _read_telemetry(folder: Path) -> pd.DataFrame:
    """The run's samples; none where their file is missing or damaged."""
    import pandas as pd

    path = folder / "telemetry.parquet"
    nothing = pd.DataFrame(columns=list(COLUMNS), dtype="float64")
    if not path.exists():
        return nothing
    try:
        samples = pd.read_parquet(path)
        return samples.astype(dict.fromkeys(samples.columns, "float64"))
    except (OSError, ValueError, TypeError) as error:
        warnings.warn(f"{path} is damaged, so there is no telemetry: {error}", stacklevel=3)
        return nothing


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its run.json is damaged: {error}") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if not isinstance(version, int):
        raise ValueError("its run.json lacks format_version")
    if version > FORMAT_VERSION:
        raise ValueError(f"its format {version} is newer than {FORMAT_VERSION}: upgrade benchlib")
    check_shape(record)
    return record


def load_study(path: str | os.PathLike[str]) -> Study:
    """Reads every run in results/<study>.

    A run that can't be read is left out, with a warning that names it. Raises ValueError where no
    run is left.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"path: {folder} is not a folder; pass results/<study>")
    runs = []
    for entry in run_folders(folder):
        try:
            runs.append(load_run(entry))
        except ValueError as error:
            warnings.warn(f"left out of the study: {error}", stacklevel=2)
    if not runs:
        raise ValueError(f"path: {folder} holds no run that can be read; pass results/<study>")
    runs.sort(key=lambda run: str(run.record["started_at"]))
    return Study(folder, tuple(runs))


def read_records(study: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Each run's folder and its run.json, oldest first; [] where there is no such study."""
    records, _ = scan_records(study)
    return records


def scan_records(study: Path) -> tuple[list[tuple[Path, dict[str, Any]]], dict[str, str]]:
    """What `read_records` returns, and the reason for each run that can't be read, by its name."""
    records = []
    reasons = {}
    for entry in run_folders(study) if study.is_dir() else []:
        try:
            records.append((entry, _read_record(entry)))
        except (OSError, ValueError) as error:
            reasons[entry.name] = str(error)
    records.sort(key=lambda found: str(found[1]["started_at"]))
    return records, reasons


def read_rows(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads requests.jsonl into ROW_DTYPES, in the file's order.

    A last line that was cut short by a kill is dropped: its write never returned. Any other damaged
    line raises ValueError with its number.
    """
    import pandas as pd

    lines = Path(path).read_bytes().split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            unknown = row.keys() - ROW_DTYPES.keys() - _FORMER_COLUMNS
        except (ValueError, AttributeError, RecursionError) as error:
            if number == len(lines):  # after the last newline: nothing, or the torn line
                break
            raise ValueError(f"{path}, line {number} is damaged: {error}") from error
        if unknown:
            names = ", ".join(sorted(unknown))
            raise ValueError(f"{path}, line {number} has unknown fields: {names}")
        rows.append(row)
    columns = {}
    for name, dtype in ROW_DTYPES.items():
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pd.Series(values, dtype=dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}: a value of {name} is damaged: {error}") from error
    return pd.DataFrame(columns)
