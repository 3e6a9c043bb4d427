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

    def load_pipeline(self, model: str) -> SimpleNamespace:
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
        return Run(*self.made.run([IMAGE_S]), results / study / f"run-{seed}")


@pytest.fixture
def fake(made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> FakeServers:
    servers = FakeServers(made)
    monkeypatch.setattr(loading, "load_pipeline", servers.load_pipeline)
    monkeypatch.setattr(server, "serve", servers.serve)
    monkeypatch.setattr(measure, "run_load", servers.run_load)
    return servers


def test_three_studies_take_turns_after_a_run_that_is_not_compared(
    fake: FakeServers, tmp_path: Path
) -> None:
    studies = measure.measure_examples("tiny", budget_min=1, repeat=2, results=tmp_path)
    names = ["compare-first", "compare-again", "compare-slower"]
    assert [study.path for study in studies] == [tmp_path / name for name in names]
    assert [len(study.runs) for study in studies] == [2, 2, 2]
    turns = [("compare-warm-up", 0), *((name, seed) for seed in (0, 1) for name in names)]
    assert [run[:2] for run in fake.runs] == turns
    slow = {"batching": "dynamic", "max_wait_ms": 250 * IMAGE_S}
    assert fake.serving == {"compare-first": {}, "compare-again": {}, "compare-slower": slow}
    assert fake.stopped == names


@pytest.mark.parametrize("budget_min", [1e-9, 0.01, 0.4, 30])
def test_a_run_holds_three_images_however_small_the_budget(
    fake: FakeServers, tmp_path: Path, budget_min: float
) -> None:
    measure.measure_examples("sdxl", budget_min=budget_min, results=tmp_path)
    options = fake.runs[-1][2]
    share_s = 60 * budget_min / 12
    assert options["duration_s"] == pytest.approx(max(3 * IMAGE_S, 0.8 * share_s))
    assert options["warmup_s"] == pytest.approx(max(IMAGE_S, 0.2 * share_s))


def test_the_servers_are_stopped_also_where_a_run_fails(
    fake: FakeServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Run:
        raise RuntimeError("no generator")

    monkeypatch.setattr(measure, "run_load", fail)
    with pytest.raises(RuntimeError, match="no generator"):
        measure.measure_examples("tiny", budget_min=1, results=tmp_path)
    assert len(fake.stopped) == 3
