"""Tables as people read them: three digits, and an interval beside its value."""

import math

import pandas as pd
import pytest

import benchlib as bl
from benchlib.study.readable import readable

TABLE = pd.DataFrame(
    {
        "rate": [6.623456, 1234.5678, math.nan],
        "rate_interval": [(6.412345, 6.845678), None, None],
        "requests": [10, 20, 30],
        "ratio": [1.23456, None, 0.5],
        "interval": [(1.1, math.inf), None, (0.456789, 0.512345)],
        "ends_s": [(0.123456, 0.456789), (2.0, 2.0001), ()],
        "verdict": ["faster", None, "slower"],
        "valid": [True, False, True],
    },
    index=["a", "b", "c"],
)


def test_an_interval_stands_beside_its_value():
    shown = readable(TABLE)
    assert list(shown) == ["rate", "requests", "ratio", "ends_s", "verdict", "valid"]
    assert list(shown.index) == ["a", "b", "c"]
    assert list(shown["rate"]) == ["6.62 (6.41 to 6.85)", "1,235", ""]
    assert list(shown["ratio"]) == ["1.23 (1.10 to inf)", "", "0.500 (0.457 to 0.512)"]
    assert list(shown["ends_s"])[:2] == ["0.123 to 0.457", "2"]
    assert list(shown["requests"]) == [10, 20, 30]
    assert list(shown["verdict"]) == ["faster", "", "slower"]
    assert list(shown["valid"]) == [True, False, True]


def test_the_table_itself_stays_unrounded():
    before = TABLE.copy(deep=True)
    readable(TABLE)
    pd.testing.assert_frame_equal(TABLE, before)


def test_a_summary_is_a_column_of_words():
    figures = {"requests": 20, "p50_s": 0.123456, "p50_s_interval": (0.1, 0.2), "reason": None}
    shown = bl.readable(pd.Series(figures, dtype=object, name="value"))
    assert dict(shown) == {"requests": 20, "p50_s": "0.123 (0.100 to 0.200)", "reason": ""}
    assert shown.name == "value"


@pytest.mark.parametrize("table", [pd.DataFrame(), pd.DataFrame({"a": [], "a_interval": []})])
def test_an_empty_table_stays_empty(table):
    assert len(readable(table)) == 0
