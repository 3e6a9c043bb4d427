"""Files of prompts and traces with anything in them: read, or refused by a ValueError that names them."""

import json
import math

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchlib.load.arrivals import Trace, from_dict
from benchlib.load.workload import Workload

CASES = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FIELDS = ["time_s", "prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed"]

# 1) Values: good ones, ones of another kind, and ones that Python's own readers trip over
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 64, 1e308, 10**400, -0.0])
PLAIN = NUMBERS | st.text(max_size=10) | st.none() | st.booleans()
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
GOOD = {"time_s": 0.5, "prompt": "a cat", "width": 64}
ROWS = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON, max_size=4)
ROWS = ROWS.map(lambda odd: GOOD | odd)

# 2) Files: tables and lines of JSON of such values, changed bytes of a good file, and noise
LINES = st.lists((ROWS | JSON).map(json.dumps), max_size=4).map("\n".join).map(str.encode)
CELLS = st.lists(st.lists(PLAIN.map(repr), max_size=4).map(",".join), max_size=4)
TABLES = CELLS.map(lambda rows: "\n".join(["time_s,prompt,width", *rows]))
TABLES = TABLES.map(lambda text: text.encode(errors="replace"))
WHOLE = b'{"time_s": 0.5, "prompt": "a cat"}\n{"time_s": 2, "prompt": "a dog"}\n'
CHANGED = st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 9), st.binary(max_size=4)).map(
    lambda change: WHOLE[: change[0]] + change[2] + WHOLE[change[0] + change[1] :]
)
CONTENTS = LINES | TABLES | CHANGED | st.binary(max_size=60)

DEEP = b'{"time_s": ' + b"[" * 50_000
WIDE = b"time_s,prompt\n1," + b"x" * 200_000
HUGE = b'{"time_s": 1' + b"0" * 400 + b', "prompt": "a"}'
LONE = rb'{"time_s": 1, "prompt": "\ud800"}'


def written(folder, content, ending):
    path = folder / f"odd{ending}"
    path.write_bytes(content)
    return path


def read_or_refused(reader, path):
    """What was read of the file, or None if a ValueError names it."""
    try:
        return reader(path)
    except ValueError as error:
        if str(path) not in str(error):
            raise
        return None


def of_any_content(read):
    """A test of `read(content)` with drawn contents, and with each that once was a fault."""
    test = CASES(given(CONTENTS)(read))
    for content in (DEEP, WIDE, HUGE, LONE, b"time_s,prompt\n1,a\x00b\n"):
        test = example(content)(test)
    return test


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_trace_of_any_content_is_read_or_refused(tmp_path, ending):
    @of_any_content
    def read(content):
        path = written(tmp_path, content, ending)
        trace = read_or_refused(Trace.from_file, path)
        if trace is None:
            return
        assert all(math.isfinite(due_s) and due_s >= 0 for due_s in trace.times_s)
        assert list(trace.times_s) == sorted(trace.times_s)
        assert from_dict(json.loads(json.dumps(trace.to_dict()))) == trace
        json.dumps(trace.to_dict(), ensure_ascii=False).encode()  # it can be kept in UTF-8

    read()


@pytest.mark.parametrize("ending", [".txt", ".csv", ".jsonl"])
def test_prompts_of_any_content_are_read_or_refused(tmp_path, ending):
    @of_any_content
    def read(content):
        path = written(tmp_path, content, ending)
        workload = read_or_refused(lambda path: Workload(prompts=path), path)
        if workload is None:
            return
        assert Workload.from_dict(json.loads(json.dumps(workload.to_dict()))) == workload
        assert workload.request(0)["prompt"]

    read()
