"""The three studies that notebook 06 measures: order and length of the runs, and their end."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchlib.questions.compare import measure
from benchlib.serving import server
from benchlib.serving.model import loading
from benchlib.study.store import Run

IMAGE_S = 0.5


class FakeServers:
    """Servers and runs that take no time."""

    def __init__(self, made: SimpleNamespace) -> None:
        self.made = made
        self.serving: dict[str, dict[str, Any]] = {}
        self.stopped: list[str] = []
        self.runs: list[tuple[str, int, dict[str, Any]]] = []
        self.interrupted_at: int | None = None

    def load_pipeline(self, model: str, **options: Any) -> SimpleNamespace:
        self.loading = options
        timings = SimpleNamespace(total_s=IMAGE_S)
        spec = {"showcase": {"width": 1024, "height": 1024, "num_inference_steps": 20}}
        generate = lambda request: SimpleNamespace(timings=timings, of=(model, request))  # noqa: E731
        return SimpleNamespace(spec=spec, generate=generate)

    def serve(self, _: Any, *, name: str, **options: Any) -> SimpleNamespace:
        self.serving[name] = options
        return SimpleNamespace(name=name, stop=lambda: self.stopped.append(name))

    def run_load(
        self, target: Any, *_: Any, study: str, seed: int, results: Path, **options: Any
    ) -> Run:
        assert target.name == study or study == "compare-warm-up"
        self.runs.append((study, seed, options))
        if len(self.runs) == self.interrupted_at:
            raise KeyboardInterrupt
        return Run(*self.made.run([IMAGE_S]), results / study / f"run-{seed}")


@pytest.fixture
def fake(made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> FakeServers:
    servers = FakeServers(made)
    monkeypatch.setattr(loading, "load_pipeline", servers.load_pipeline)
    monkeypatch.setattr(server, "serve", servers.serve)
    monkeypatch.setattr(measure, "run_load", servers.run_load)
    return servers


NAMES = ["compare-first", "compare-again", "compare-slower"]


def test_three_studies_take_turns_after_a_run_that_is_not_compared(
    fake: FakeServers, tmp_path: Path
) -> None:
    studies = measure.measure_examples("tiny", budget_min=1, repeat=2, results=tmp_path)
    assert [study.path for study in studies] == [tmp_path / name for name in NAMES]
    assert [len(study.runs) for study in studies] == [2, 2, 2]
    in_order = [(name, 0) for name in NAMES] + [(name, 1) for name in (*NAMES[1:], NAMES[0])]
    turns = [("compare-warm-up", 0), *in_order]
    assert [run[:2] for run in fake.runs] == turns
    alike = {"batching": "serial", "sizes": [(64, 64)]}
    slower = alike | {"batch_buckets": (16,)}
    assert fake.serving == dict(zip(NAMES, (alike, alike, slower), strict=True))
    assert fake.loading == {"device": "cpu"}
    assert fake.stopped == NAMES


@pytest.mark.parametrize(
    ("budget_min", "turns", "duration_s"),
    [(1e-9, 1, 2 * IMAGE_S), (0.3, 2, 5 * IMAGE_S), (0.6, 4, 5 * IMAGE_S), (30, 8, 75)],
)
def test_as_many_turns_are_made_as_fit(
    fake: FakeServers, tmp_path: Path, budget_min: float, turns: int, duration_s: float
) -> None:
    """The budget's clock stands still: these runs take no time, so each turn gets what it asks for."""
    studies = measure.measure_examples("sdxl", budget_min=budget_min, results=tmp_path)
    assert [len(study.runs) for study in studies] == [turns] * 3
    for *_, options in fake.runs[1:]:
        assert options["duration_s"] >= 0.98 * duration_s
        assert options["warmup_s"] == IMAGE_S
    assert fake.loading == {}


def test_an_interrupt_keeps_the_whole_turns(fake: FakeServers, tmp_path: Path) -> None:
    fake.interrupted_at = 6
    studies = measure.measure_examples("tiny", budget_min=1, results=tmp_path)
    assert [len(study.runs) for study in studies] == [1, 1, 1]
    assert fake.stopped == NAMES


def test_an_interrupt_in_the_first_turn_leaves_nothing(fake: FakeServers, tmp_path: Path) -> None:
    fake.interrupted_at = 3
    with pytest.raises(RuntimeError, match="nothing can be compared"):
        measure.measure_examples("tiny", budget_min=1, results=tmp_path)
    assert fake.stopped == NAMES


def test_the_servers_are_stopped_also_where_a_run_fails(
    fake: FakeServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Run:
        raise RuntimeError("no generator")

    monkeypatch.setattr(measure, "run_load", fail)
    with pytest.raises(RuntimeError, match="no generator"):
        measure.measure_examples("tiny", budget_min=1, results=tmp_path)
    assert len(fake.stopped) == 3
