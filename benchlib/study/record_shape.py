"""The shape of a run's record: which fields of run.json must be there, and of what type.

A record that a hand edited, or that another version wrote, is refused here, by the name of the field
at fault. So everything after it may rely on these fields. Knows fields and types. Ignorant of files
(store.py), and of what the figures mean.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MOST_FAILED = 0.01
"""A run is not valid if more than this share of its requests failed, unless its spec says another.

What a server refuses in an orderly way is no failure: that is how an overload looks.
"""

Finite = Annotated[float, Field(allow_inf_nan=False)]
# A century: no run lasts so long, and no figure can be drawn of times that are near to float's end.
Seconds = Annotated[float, Field(ge=0, le=3.2e9, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class _RecordPart(BaseModel):
    """A part of a record. It may have more fields than are named here."""

    model_config = ConfigDict(extra="allow", strict=True)


class _ArrivalFields(_RecordPart):
    kind: Text
    users: int | None = None
    rate: Finite | None = None
    of: str | None = None


class _TargetFields(_RecordPart):
    model: str | None
    device: str | None
    dtype: str | None
    url: str | None = None
    recipe: str | None = None
    batching: str | None = None
    showcase: dict[str, Any] | None = None
    step_times: dict[str, Any] | None = None


class _SpecFields(_RecordPart):
    arrivals: _ArrivalFields
    target: _TargetFields
    workload: dict[str, Any]
    warmup_s: Seconds
    label: str | None
    most_failed: Annotated[Finite, Field(ge=0, le=1)] | None = None


class _MachineFields(_RecordPart):
    cpu: str | None
    cores: Annotated[int, Field(ge=1)]
    cpu_limit_cores: Annotated[Finite, Field(gt=0)] | None = None
    memory_gib: Finite | None
    gpu: str | None
    gpu_memory_gib: Finite | None
    os: str


class _WorkersFields(_RecordPart):
    lost: list[str]
    clock_error_s: Seconds | None


class _OutcomeFields(_RecordPart):
    window_start_s: Seconds | None = None
    window_end_s: Seconds | None = None
    wall_s: Seconds | None = None
    generator_cpu_cores: Seconds | None = None
    send_lag_p99_s: Finite | None = None
    in_flight_mean: Seconds | None = None
    max_in_flight_hits: int | None = None
    nonfinite_images: Annotated[int, Field(ge=0)] | None = None
    graphs_made: int | None = None
    others_cpu_cores: Finite | None = None
    steal_cores: Finite | None = None
    workers: _WorkersFields | None = None

    @model_validator(mode="after")
    def _check_window(self) -> _OutcomeFields:
        start_s, end_s = self.window_start_s, self.window_end_s
        if start_s is not None and end_s is not None and end_s < start_s:
            raise ValueError(f"the window ends at {end_s} s, before it begins at {start_s} s")
        return self


class _ConditionFields(_RecordPart):
    warning: str | None = None


class _RecordFields(_RecordPart):
    study: Text
    run: Text
    status: Literal["running", "finished", "interrupted", "failed"]
    error: str | None = None
    started_at: Text
    spec: _SpecFields
    machine: _MachineFields
    packages: dict[str, str | None]
    outcome: _OutcomeFields | None
    conditions: _ConditionFields | None = None
    point: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_moment(self) -> _RecordFields:
        datetime.fromisoformat(self.started_at)
        return self


def check_shape(record: Any) -> None:
    """Raises ValueError that names the first field of `record` that is missing or wrong."""
    try:
        _RecordFields.model_validate(record)
    except ValidationError as error:
        first, *others = error.errors()
        field = ".".join(map(str, first["loc"])) or "it"
        if first["type"] == "missing":
            problem = f"its run.json lacks {field}"
        else:
            problem = f"in its run.json, {field}: {first['msg']}"
        more = f" (and {len(others)} more)" if others else ""
        raise ValueError(problem + more) from None
