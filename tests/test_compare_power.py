"""A few cells of benchmarks/compare_power.py, with fixed seeds."""

import pytest

from benchmarks.compare_power import CAUGHT_FROM, SHAPES, cell, in_text, verdicts

PLAIN = ("1 %", 20, 4)
SHIFTED = ("1 %, and runs shift by 1 %", 20, 1)


def test_twenty_images_in_four_runs_show_3_percent() -> None:
    line = cell(PLAIN, range(60))
    assert line["broken"] == []
    assert [line[name] for name in ("false alarms", "3 %", "5 %", "10 %", "wrong")] == [
        0,
        1,
        1,
        1,
        0,
    ]
    assert in_text(line) == "| 1 % | 20 | 4 | 0.0 % | 100.0 % | 100.0 % | 100.0 % | 0.0 % | 3 % |"


@pytest.mark.parametrize("case", [case for case in CAUGHT_FROM if case[2] < 4])
def test_what_can_not_be_shown_is_inconclusive_and_not_wrong(case: tuple[str, int, int]) -> None:
    shape, images, runs = case
    alike = verdicts(shape, images, runs, 0.0, range(60))
    assert alike["slower"] + alike["faster"] <= 3
    slower = verdicts(shape, images, runs, 0.03, range(60))
    assert slower["faster"] + slower["no difference"] <= 3


def test_a_limit_that_is_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CAUGHT_FROM, SHIFTED, 0.03)
    assert cell(SHIFTED, range(40))["broken"] == ["3 %", "5 %"]


def test_every_shape_has_cells_of_20_images_in_1_2_and_4_runs() -> None:
    asked = {(shape, 20, runs) for shape in SHAPES for runs in (1, 2, 4)}
    assert asked <= CAUGHT_FROM.keys()
