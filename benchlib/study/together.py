"""Several runs of a study together: their requests, their table, and what they say of a promise.

Knows the summary of each run. Ignorant of files (store.py), and of how a figure is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from benchlib.cell_view import CellView, ShownInCell
from benchlib.rows import ROW_DTYPES

if TYPE_CHECKING:
    import pandas as pd

    from benchlib.study.store import Run


@dataclass(frozen=True, repr=False)
class Study(ShownInCell):
    """Runs of one study, oldest first: all, or one sweep's. `path` is the study's folder."""

    path: Path
    runs: tuple[Run, ...]

    @cached_property
    def requests(self) -> pd.DataFrame:
        """Every run's requests, with the run's name in a first column `run`."""
        import pandas as pd

        dtypes = {"run": "string"} | ROW_DTYPES
        if not self.runs:
            return pd.DataFrame(columns=list(dtypes)).astype(dtypes)
        frames = [run.requests.assign(run=run.record["run"]) for run in self.runs]
        together = pd.concat(frames, ignore_index=True)
        return together[list(dtypes)].astype({"run": "string"})

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row for each run: see `summary_table.table_row`."""
        import pandas as pd

        from benchlib.study.summary_table import table_row

        return pd.DataFrame([table_row(run) for run in self.runs])

    def judge(self, slo: str) -> pd.DataFrame:
        """`summary` with what each run says of a promise such as "p95 < 2 s".

        `verdict`: see Slo.judge. `goodput_images_per_s`: the images within the promised time, per
        second.
        """
        import pandas as pd

        from benchlib.study.latency import latencies
        from benchlib.study.slo import Slo, goodput

        goal = Slo.parse(slo)
        verdicts = []
        in_time = []
        for run in self.runs:
            verdicts.append(goal.judge(latencies(run.requests)))
            in_time.append(goodput(run.requests, run.record, latency_s=goal.latency_s))
        per_s = pd.Series(in_time, dtype=float)
        return self.summary.assign(verdict=verdicts, goodput_images_per_s=per_s)

    def _view(self) -> CellView:
        from benchlib.study.run_views import view_of_study

        return view_of_study(self)
