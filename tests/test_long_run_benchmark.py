"""benchmarks/long_run.py: the runs of ten minutes beside a capacity, read again."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.long_run import Row, measure, tell

RUNS = Path(__file__).parents[1] / "results/reference-h200/ten-minutes"


@pytest.mark.parametrize("share", ["0.95", "1.1"])
def test_ten_minutes_on_a_gpu_went_as_sixty_images_foretold(share, capsys):
    rows = {row.name: row for row in tell(RUNS / f"at-{share}")}
    printed = capsys.readouterr().out
    assert ": confirmed" in printed
    assert rows["mean, s"].measured == pytest.approx(rows["mean, s"].simulated, rel=0.04)
    assert rows["p95, s"].measured == pytest.approx(rows["p95, s"].simulated, rel=0.06)
    # Arrivals as harsh as these are rare, at either rate.
    low, _, high = rows["p95, s"].by_chance
    assert low < high < rows["p95, s"].measured
    assert rows["p95, s"].rarity < 0.01


def test_a_row_says_how_many_runs_are_as_bad():
    row = Row("p95, s", 4.39, 4.18, (2.1, 2.5, 3.34), 0.001)
    assert str(row) == "| p95, s | 4.39 | 4.18 | 2.5 (2.1 to 3.34) | 0.1% |"


@pytest.mark.slow
def test_the_tiny_model_is_measured_and_read(tmp_path):
    results = tmp_path / "long"
    measure(results, model="tiny", recipe="baseline", share=0.5, seconds=10)
    rows = tell(results)
    assert [row.name for row in rows] == ["mean, s", "p95, s", "in time"]
    assert np.isfinite([row.measured for row in rows]).all()
