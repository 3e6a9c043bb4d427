"""The Server-Timing header, written and read: of our own server and of any other."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchlib.rows import Call, make_row
from benchlib.server_timing import PARTS, parse_server_timing, write_server_timing

# Other work may slow the machine down.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOKEN = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True)
QUOTED = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]))
METRIC = st.fixed_dictionaries({}, optional={"dur": st.floats(0, 1e9).map(repr), "desc": QUOTED})


@UNHURRIED
@given(
    st.dictionaries(TOKEN, METRIC),
    st.sampled_from([",", ", ", " ,  "]),
    st.sampled_from([";", "; ", " ;"]),
)
def test_what_was_written_is_read(metrics, comma, semicolon):
    def quote(text):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    entries = []
    for name, parameters in metrics.items():
        written = [
            f"{key}={text if key == 'dur' else quote(text)}" for key, text in parameters.items()
        ]
        entries.append(semicolon.join([name, *written]))
    assert parse_server_timing(comma.join(entries)) == metrics


@pytest.mark.parametrize(
    ("header", "read"),
    [
        ("total;dur=12.5", {"total": {"dur": "12.5"}}),
        (
            'cache;desc="Cache Read, slow";DUR=23.2 , db',
            {"cache": {"desc": "Cache Read, slow", "dur": "23.2"}, "db": {}},
        ),
        ("miss, a;dur=1, a;dur=2", {"miss": {}, "a": {"dur": "1"}}),
        ('a;desc="open, b;dur=1', {"a": {"desc": "open, b;dur=1"}}),
        ("", {}),
    ],
)
def test_headers_of_other_servers(header, read):
    assert parse_server_timing(header) == read


def test_the_header_that_is_written_is_read():
    parts_s = {part: number / 8 for number, part in enumerate(PARTS)} | {"total": 2.5}
    header = write_server_timing(parts_s, 1.5)
    assert header.startswith("queue;dur=0.000000, wait;dur=125.000000, ")
    assert header.endswith(', total;dur=2500.000000, batch;desc="1.5"')
    call = Call(0, "x", {}, due_s=0.0)
    row = make_row(call, started_s=0.0, warmup_s=0.0, server_timing=header)
    assert {part: row[f"{part}_s"] for part in parts_s} == parts_s
    assert row["batch_size"] == 1.5
    assert write_server_timing({"total": 0.001}) == "total;dur=1.000000"
    told = write_server_timing({"total": 0.001}, replica="1", retries=2)
    assert told == 'total;dur=1.000000, replica;desc="1", retry;desc="2"'
    with pytest.raises(ValueError, match=r"the parts are queue, .* not wait, sleep"):
        write_server_timing({"wait": 1.0, "sleep": 1.0})
