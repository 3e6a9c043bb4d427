"""run_load end to end: a real server, a real Locust child, real files; and every way in which a run can end early."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import psutil
import pytest
from jupyter_client.manager import start_new_kernel

import benchlib
from benchlib import ClosedLoop, Workload, load_run, load_study, machine, run_load, telemetry
from benchlib.load.runner import GeneratorError, Progress
from benchlib.progress import progress_line
from benchlib.rows import ROW_DTYPES
from benchlib.serving.connection_limits import ConnectionLimits
from benchlib.serving.door_options import DoorOptions
from benchlib.telemetry import COLUMNS

from .load.conftest import FakeServerProcess, is_gone, read_rows, wait_until

pytestmark = pytest.mark.usefixtures("idle_machine")


@pytest.fixture(scope="module")
def server(tiny):
    with benchlib.serve(tiny, name="test_bench") as server:
        yield server


@pytest.fixture(scope="module")
def run(server, tmp_path_factory):
    """Two users on a real server: six requests after the warm-up."""
    results = tmp_path_factory.mktemp("run")
    return run_load(
        server, ClosedLoop(2), Workload(num_inference_steps=4), requests=6, warmup_s=0.1,
        label="two-users", study="served", results=results, seed=3,
    )  # fmt: skip


def test_both_apis_of_a_server_are_loaded_with_the_same_images(run, server, tmp_path):
    other = run_load(
        server,
        ClosedLoop(2),
        Workload(num_inference_steps=4),
        requests=6,
        results=tmp_path,
        seed=3,
        api="openai",
    )
    assert (other.spec["api"], other.record["point"]["api"]) == ("openai", "openai")
    fields = ["prompt", "seed", "width", "height", "num_inference_steps"]
    both = [
        one.requests.sort_values("index").head(6)[fields].to_dict("records") for one in (run, other)
    ]
    assert both[0] == both[1]
    rows = other.requests
    assert rows["error"].isna().all()
    parts = rows[["queue_s", "wait_s", "encode_s", "denoise_s", "decode_s", "image_s"]]
    assert (parts.sum(axis=1) - rows["total_s"]).abs().max() < 1e-3
    assert (rows["image_s"] > 0).all()
    assert (run.requests["image_s"] == 0).all()
    assert other.summary()["throughput_images_per_s"] > 0


def only_run(study):
    (run,) = load_study(study).runs
    return run


def test_a_run_of_a_server_says_all_of_it(run, tiny):
    record = run.record
    assert record == json.loads((run.path / "run.json").read_text())
    assert (record["format_version"], record["study"], record["run"]) == (
        1,
        "served",
        run.path.name,
    )
    assert (record["status"], record["error"]) == ("finished", None)
    target = dict(run.spec["target"])
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", target.pop("url"))
    assert target.pop("batching") == "continuous"
    assert [target.pop(name) for name in ("max_queue", "max_batch_size", "max_wait_ms")] == [
        64,
        8,
        5.0,
    ]
    assert target.pop("batch_buckets") is None
    assert target.pop("warm_up_s") > 0
    (measured,) = target.pop("step_times").values()
    assert measured["step_s"]["2"] > 0
    # What is in force at the server's door is no part of the pipeline's own spec.
    assert target.pop("on_nonfinite") == "error"
    assert target.pop("limits") == ConnectionLimits().in_force()
    bounds = DoorOptions().bounds_on("cpu")
    for name in ("max_pixel_steps", "max_queue_s", "max_per_client"):
        assert target.pop(name) == getattr(bounds, name)
    assert target == {key: tiny.spec.get(key) for key in target}
    assert target.keys() >= {
        "model",
        "device",
        "dtype",
        "recipe",
        "torch_threads",
        "model_params",
        "weights_gib",
    }
    assert target["memory_before_load_gib"] > 0
    assert run.spec["arrivals"] == {"kind": "closed_loop", "users": 2, "think_time_s": 0.0}
    assert run.spec["workload"]["width"] == tiny.spec["showcase"]["width"]
    times = {"duration_s": None, "max_s": None, "warmup_s": 0.1, "timeout_s": 600.0}
    requested = {"requests": 6, "seed": 3, "label": "two-users", "api": "benchmark"} | times
    requested |= {"most_failed": 0.01, "verify": True}
    assert run.spec.keys() == {"target", "arrivals", "workload"} | requested.keys()
    assert {key: run.spec[key] for key in requested} == requested
    assert record["machine"]["cores"] >= 1
    assert record["packages"]["torch"]
    assert record["git"].keys() == {"commit", "dirty"}
    assert record["conditions"]["load_average_1min"] >= 0
    assert record["torch"]["threads"] == tiny.spec["torch_threads"]
    assert record["torch"]["environment"]["GOMP_SPINCOUNT"] == os.environ["GOMP_SPINCOUNT"]
    assert record["point"]["target"]["model"] == "tiny"
    outcome = record["outcome"]
    assert (outcome["status"], outcome["censored"], outcome["window_start_s"]) == (
        "finished",
        0,
        0.1,
    )
    assert outcome["scheduled"] == outcome["finished"] == len(run.requests)
    assert outcome["others_cpu_cores"] == run.summary()["others_cpu_cores"]
    assert run.telemetry["others_cpu_cores"].dropna().ge(0).all()


def test_a_run_during_which_something_was_compiled_says_so(run, server, tmp_path):
    from torch._dynamo.utils import counters

    def compile_one(_):
        counters["stats"]["unique_graphs"] += 1

    assert run.record["outcome"]["graphs_made"] == 0
    workload = Workload(width=64, height=64, num_inference_steps=2)
    spoilt = run_load(
        server, ClosedLoop(1), workload, requests=2, results=tmp_path, on_progress=compile_one
    )
    graphs = spoilt.record["outcome"]["graphs_made"]
    assert graphs > 0
    assert spoilt.summary()["invalid_reason"].startswith(
        f"the server compiled or recorded {graphs} graphs during the run"
    )


def test_each_image_has_a_row_that_adds_up(run, tiny):
    rows = run.requests
    assert {name: str(dtype) for name, dtype in rows.dtypes.items()} == ROW_DTYPES
    assert (rows["phase"] == "measure").sum() == 6
    assert rows["error"].isna().all()
    assert (rows["http_status"] == 200).all()
    showcase = tiny.spec["showcase"]
    assert (rows["width"] == showcase["width"]).all()
    assert (rows["height"] == showcase["height"]).all()
    assert (rows["num_inference_steps"] == 4).all(), (
        "what the workload says goes before the showcase"
    )
    workload = Workload(num_inference_steps=4).with_defaults(**showcase)
    assert [workload.request(index)["prompt"] for index in rows["index"]] == rows["prompt"].tolist()
    parts = rows[["queue_s", "wait_s", "encode_s", "denoise_s", "decode_s", "image_s"]]
    assert parts.notna().all(axis=None)
    assert parts.sum(axis="columns").tolist() == pytest.approx(
        rows["total_s"].tolist(), rel=0.01, abs=0.001
    )
    assert (rows["total_s"] < rows["latency_s"]).all()
    work_s = rows[["encode_s", "denoise_s", "decode_s"]].sum(axis="columns")
    assert work_s.tolist() == pytest.approx(rows["service_s"].tolist(), rel=0.05, abs=0.005)
    assert rows["batch_size"].between(1, 2).all(), (
        "a mean over steps: two users share them at most in pairs"
    )
    assert (rows["server_peak_gib"] > 0.05).all()


def test_the_server_is_watched_while_it_runs(run):
    telemetry = run.telemetry
    assert tuple(telemetry.columns) == COLUMNS
    assert (telemetry["rss_gib"] > 0.05).all()
    assert telemetry["time_s"].iloc[-1] <= run.record["outcome"]["wall_s"] + 5
    assert run.summary()["server_cpu_cores"] > 0


def test_the_summary_and_the_files_say_the_same(run):
    assert {path.name for path in run.path.iterdir()} == {
        "run.json", "requests.jsonl", "requests.parquet", "telemetry.parquet"
    }  # fmt: skip
    assert {path.name for path in run.path.parent.iterdir()} == {
        "summary.csv",
        ".lock",
        run.path.name,
    }
    again = load_run(run.path)
    assert again.record == run.record
    pd.testing.assert_frame_equal(again.requests, run.requests)
    pd.testing.assert_frame_equal(again.telemetry, run.telemetry)
    summary = run.summary()
    assert (summary["requests"], summary["ok"], summary["valid"]) == (6, 6, True)
    assert 0 < summary["latency_p50_s"] <= summary["latency_max_s"]
    written = pd.read_csv(run.path.parent / "summary.csv").iloc[0]
    assert written["label"] == "two-users"
    for name in ("throughput_images_per_s", "latency_p50_s", "queue_share", "rss_peak_gib"):
        assert written[name] == pytest.approx(summary[name]), name


def test_failures_beyond_the_limit_make_a_run_invalid(fake, tmp_path):
    options = {"requests": 12, "study": "failing", "results": tmp_path}
    half = Workload(prompts={"busy": 0.5, "binary": 0.5})
    strict = run_load(fake.url, ClosedLoop(2), half, **options).summary()
    assert strict["failed"] == 12
    assert 0 < strict["refused"] < 12, "the server says how long it took to refuse them"
    assert (strict["valid"], strict["ok"]) == (False, 0)
    drops = Workload(prompts={"a cat": 0.5, "drop": 0.5})
    lost = run_load(fake.url, ClosedLoop(2), drops, **options).summary()
    assert lost["invalid_reason"].endswith(")")
    assert "of 12 requests failed, and the limit is 1 % (" in lost["invalid_reason"]
    lenient = run_load(fake.url, ClosedLoop(2), drops, most_failed=1.0, **options)
    assert lenient.summary()["valid"]
    assert lenient.spec["most_failed"] == 1.0
    with pytest.raises(ValueError, match="most_failed must be"):
        run_load(fake.url, ClosedLoop(2), most_failed=5, **options)


def test_a_bare_url_is_measured_and_nothing_is_guessed_of_it(fake, tmp_path):
    run = run_load(
        fake.url, ClosedLoop(2), duration_s=0.5, warmup_s=0.2, study="bare", results=tmp_path
    )
    target = dict(run.spec["target"])
    assert target.pop("url") == fake.url
    assert set(target.values()) == {None}
    assert target.keys() >= {
        "model",
        "device",
        "dtype",
        "weights_gib",
        "memory_before_load_gib",
        "showcase",
    }
    assert run.record["torch"] is None
    assert run.telemetry.empty
    assert tuple(run.telemetry.columns) == COLUMNS
    assert run.requests["width"].isna().all(), "the URL's own default"
    assert pd.isna(run.summary()["rss_peak_gib"])
    assert (run.record["outcome"]["window_start_s"], run.record["outcome"]["window_end_s"]) == (
        0.2,
        0.7,
    )
    assert run.path.name.endswith("-closed-2")


def test_a_run_reads_none_of_the_runs_before_it(fake, tmp_path):
    def load_one():
        options = {"requests": 1, "results": tmp_path, "on_progress": lambda _: None}
        return run_load(fake.url, ClosedLoop(1), study="s", **options)

    first = load_one()
    (first.path / "requests.parquet").write_text("it would raise where this is read")
    (first.path / "run.json").write_text("and this")
    second = load_one()
    table = pd.read_csv(tmp_path / "s/summary.csv")
    assert table["run"].tolist() == [first.path.name, second.path.name]


def test_progress_is_plain_lines_where_nobody_watches(fake, tmp_path, monkeypatch, capsys):
    for name in ("JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)
    run_load(fake.url, ClosedLoop(1), requests=3, results=tmp_path)
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert printed
    for line in printed.splitlines():
        ends = r"(, \d+ s left|, waiting for the last answers)?"
        assert re.fullmatch(r"\d+ s: \d+ done(, [\d.]+ images/s)?(, median [\d.]+ s)?" + ends, line)


def test_a_busy_machine_is_said_and_recorded(fake, tmp_path, monkeypatch, capsys):
    busy = {
        "load_average_1min": 9.0,
        "others_cpu_cores": 1.5,
        "warning": "the machine is busy: others take 1.5 cores",
    }
    monkeypatch.setattr(machine, "describe_load", lambda: busy)
    run = run_load(
        fake.url, ClosedLoop(1), requests=1, results=tmp_path, on_progress=lambda _: None
    )
    assert capsys.readouterr().out == f"{busy['warning']}\n"
    assert run.record["conditions"] == busy
    run_load(
        fake.url, ClosedLoop(1), requests=1, repeat=2, results=tmp_path, on_progress=lambda _: None
    )
    assert capsys.readouterr().out == f"{busy['warning']}\n", "once for runs in a row"


def test_progress_is_a_bar_in_a_live_notebook(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JPY_SESSION_NAME", "01_quickstart.ipynb")
    run_load(fake.url, ClosedLoop(1), duration_s=0.2, results=tmp_path)
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert re.search(
        r"100% \S.* \d+ s: \d+ done, [\d.]+ images/s, median 0\.\d+ s, waiting for the last answers",
        errors,
    )


def test_progress_shows_the_figures_that_a_person_watches_for():
    sampler = telemetry.Sampler(os.getpid())
    early = Progress(1.0, 3, 0, None, None, None, None)
    assert progress_line(early, sampler) == "1 s: 3 done"
    sampler._samples += [
        (0.0, 1.5, *[None] * (len(COLUMNS) - 2)),
        (0.2, 1.25, 9.0, 6.5, 8.0, *[None] * 10),
    ]
    late = Progress(61.2, 230, 2, 3.8312, 0.9, 1.2345, 18.6)
    words = "61 s: 230 done, 3.83 images/s, p95 1.23 s, 1.25 GiB, 8.00 GiB on the GPU, 2 errors, 19 s left"
    assert progress_line(late, sampler) == words
    assert "median 0.9 s, " in progress_line(replace(late, p95_latency_s=None), sampler)
    assert progress_line(replace(late, time_left_s=0.0), sampler).endswith(
        "2 errors, waiting for the last answers"
    )


def test_progress_shows_the_memory_of_a_server_of_ours(server, tmp_path, capsys):
    run_load(server, ClosedLoop(2), Workload(num_inference_steps=1), requests=6, results=tmp_path)
    assert re.search(r" done,.* \d\.\d\d GiB", capsys.readouterr().out)


def test_progress_goes_to_whoever_asks_for_it(fake, tmp_path, capsys):
    told = []
    run = run_load(fake.url, ClosedLoop(1), requests=3, results=tmp_path, on_progress=told.append)
    assert (told[-1].done, told[-1].errors, told[-1].time_left_s) == (3, 0, 0.0)
    assert len(run.requests) == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("named", "changed"),
    [
        ("target must be a Server", {"target": 3}),
        ("arrivals must be like", {"arrivals": 4}),
        ("workload must be like", {"workload": "a cat"}),
        ("url", {"target": "localhost:8000"}),
        ("duration_s, requests", {"requests": None}),
        ("requests", {"requests": 0}),
        ("duration_s", {"duration_s": -1}),
        ("max_s", {"max_s": 0}),
        ("warmup_s", {"warmup_s": float("nan")}),
        ("timeout_s", {"timeout_s": 0}),
        ("seed", {"seed": 0.5}),
        ("study", {"study": "../elsewhere"}),
        ("label", {"label": "a/b"}),
        ("label", {"label": 3}),
    ],
)
def test_a_bad_argument_is_named_and_leaves_no_run(tmp_path, named, changed):
    good = {
        "target": "http://127.0.0.1:9",
        "arrivals": ClosedLoop(1),
        "requests": 1,
        "results": tmp_path,
    }
    with pytest.raises(ValueError, match=named):
        run_load(**good | changed)
    assert list(tmp_path.iterdir()) == []


def test_results_go_where_the_argument_the_environment_or_the_project_says(
    fake, tmp_path, monkeypatch
):
    def folder(**options):
        return run_load(
            fake.url, ClosedLoop(1), requests=1, study="s", **options
        ).path.parent.parent

    (tmp_path / "project/notebooks").mkdir(parents=True)
    (tmp_path / "project/pyproject.toml").write_text('[project]\nname = "benchlib"\n')
    monkeypatch.chdir(tmp_path / "project/notebooks")
    monkeypatch.setenv("BENCHLIB_RESULTS", str(tmp_path / "environment"))
    assert folder(results=tmp_path / "argument") == tmp_path / "argument"
    assert folder() == tmp_path / "environment"
    monkeypatch.delenv("BENCHLIB_RESULTS")
    assert folder() == tmp_path / "project/results"


def test_a_server_that_stops_is_rows_with_errors_and_no_hang(tiny, tmp_path):
    with benchlib.serve(tiny, name="test_bench_stops", batching="serial") as server:

        def stop_after_some(progress):
            if progress.done:
                server.stop()

        run = run_load(
            server, ClosedLoop(4, think_time_s=0.05), Workload(width=64, height=64, num_inference_steps=4),
            requests=200, max_s=120, results=tmp_path, on_progress=stop_after_some,
        )  # fmt: skip
    assert len(run.requests) == 200
    failed = run.requests["error"].notna()
    assert 0 < failed.sum() < 200
    assert (
        run.requests["error"][failed]
        .str.contains("refused|closed|reset", case=False, regex=True)
        .all()
    )
    assert (run.summary()["ok"], run.summary()["failed"]) == (200 - failed.sum(), failed.sum())


def test_a_generator_that_dies_raises_and_its_rows_are_kept(fake, tmp_path):
    def kill_after_some(progress):
        if progress.done:
            for child in psutil.Process().children():
                if "benchlib.load.child" in child.cmdline():
                    child.kill()

    with pytest.raises(GeneratorError, match="code -9"):
        run_load(
            fake.url,
            ClosedLoop(1),
            duration_s=60,
            study="s",
            results=tmp_path,
            on_progress=kill_after_some,
        )
    run = only_run(tmp_path / "s")
    assert run.record["status"] == "failed"
    assert run.record["error"].startswith("GeneratorError: the load generator ended with code -9")
    assert run.record["outcome"] is None
    assert len(run.requests) == len(read_rows(run.path / "requests.jsonl")) > 0
    assert pd.read_csv(tmp_path / "s/summary.csv")["status"].tolist() == ["failed"]


PARENT = """
import sys
from benchlib import ClosedLoop, OpenLoop, Workload, run_load
arrivals, url, results = sys.argv[1:]
run_load(url, eval(arrivals), Workload(["a cat", "hang"]), duration_s=60, study="s", results=results)
"""


@pytest.fixture(params=["ClosedLoop(2)", "OpenLoop(500, max_in_flight=2)"])
def running(tmp_path, request):
    """A process of its own group inside run_load, images made and two in flight; its child; its server; its study."""
    server = FakeServerProcess(service_s=0.02)
    command = [sys.executable, "-c", PARENT, request.param, server.url, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        # Each user, or all that may be in flight, ends with a prompt that hangs: the server then gets no more.
        wait_until(
            lambda: sum(request["body"]["prompt"] == "hang" for request in server.seen()) == 2,
            within_s=60,
        )
        children = [
            child.pid
            for child in psutil.Process(process.pid).children()
            if "benchlib" in str(child.cmdline())
        ]
        yield process, *children, server, tmp_path / "s"
        if process.poll() is None:
            process.kill()
    server.close()


def assert_the_rows_are_kept(run, server, why):
    """A row for each request that the server saw, two of them cut off, and for those that were held back."""
    sent = run.requests[run.requests["sent_s"].notna()]
    assert len(sent) == len(server.seen())
    assert sent["error"].dropna().tolist() == [why] * 2
    held = run.requests[run.requests["sent_s"].isna()]
    assert (held["error"] == why).all()
    assert held.empty == (run.spec["arrivals"]["kind"] == "closed_loop")


def test_an_interrupt_ends_the_child_and_keeps_the_rows(running):
    process, child_pid, server, study = running
    assert only_run(study).record["status"] == "running"
    os.killpg(process.pid, signal.SIGINT)  # as Jupyter and terminals do
    wait_until(lambda: is_gone(child_pid), within_s=30)
    assert b"its rows are kept in" in process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGINT, (
        "as of any script that is interrupted: 130 in a shell"
    )
    run = only_run(study)
    assert (run.record["status"], run.record["error"]) == ("interrupted", None)
    assert run.record["outcome"]["status"] == "interrupted", (
        "the child ended by itself, it was not killed"
    )
    assert_the_rows_are_kept(run, server, "censored: interrupted")
    assert run.summary()["invalid_reason"] == "the run was interrupted"
    assert (study / "summary.csv").exists()


class Kernel:
    """A real notebook's kernel, which runs cells and gets the stop button's signal."""

    def __init__(self, folder):
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder))

    def run(self, code, stop=lambda: False):
        """The reply's status and what the cell printed; it is interrupted once `stop()` is true."""
        request = self.client.execute(code)
        stopped = False
        printed = ""
        while True:
            if not stopped and stop():
                stopped = True
                self.manager.interrupt_kernel()
            try:
                message = self.client.get_iopub_msg(timeout=0.1)
            except queue.Empty:
                assert self.manager.is_alive()
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            printed += content.get("text", "")
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                break
        reply = self.client.get_shell_msg(timeout=60)
        return reply["content"]["status"], printed

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(tmp_path):
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.close()


def test_an_interrupted_cell_leaves_its_name_bound_to_what_was_measured(kernel, fake, tmp_path):
    def has_rows(study):
        def check():
            return any(path.stat().st_size for path in tmp_path.glob(f"{study}/*/requests.jsonl"))

        return check

    options = f"duration_s=600, study='one', results={str(tmp_path)!r}"
    load = f"bl.run_load({fake.url!r}, bl.ClosedLoop(2), {options})"
    assert kernel.run("import benchlib as bl; run = 'an older run'") == ("ok", "")

    # 1) A run
    status, printed = kernel.run(f"run = {load}", stop=has_rows("one"))
    assert status == "ok", "the cells below go on with it"
    assert "closed-2: interrupted: the answer uses what was measured" in printed
    status, printed = kernel.run("print(run.record['status'], len(run.requests)); run.plot")
    assert status == "ok"
    words, count = printed.split()
    assert words == "interrupted"
    assert int(count) > 0

    # 2) A sweep of two points: the second is not begun.
    points = f"[bl.Point(bl.ClosedLoop(n), target={fake.url!r}, duration_s=600) for n in (1, 2)]"
    sweep = f"study = bl.sweep({points}, study='many', results={str(tmp_path)!r})"
    status, _ = kernel.run(sweep, stop=has_rows("many"))
    assert status == "ok"
    _, printed = kernel.run("print([run.record['status'] for run in study.runs])")
    assert printed.strip() == "['interrupted']"

    # 3) A search, in its first trial
    search = (
        f"bl.find_capacity({fake.url!r}, trial_s=600, study='trials', results={str(tmp_path)!r})"
    )
    status, _ = kernel.run(f"found = {search}", stop=has_rows("trials"))
    assert status == "ok"
    _, printed = kernel.run("print(found.note, [run.record['status'] for run in found.runs])")
    assert printed.strip() == "it was interrupted ['interrupted']"

    # 4) In a block of a budget, the block ends.
    block = "budget = bl.Budget(30)\nwith budget.measuring('mine'):\n"
    block += f"    {load.replace('one', 'block')}\n    print('not reached')"
    status, printed = kernel.run(block, stop=has_rows("block"))
    assert status == "ok"
    assert "mine: interrupted" in printed
    assert "not reached" not in printed
    assert kernel.run("print(budget.interrupted)") == ("ok", "True\n")


def test_a_killed_process_leaves_its_rows_to_be_read(running):
    process, child_pid, server, study = running
    process.kill()
    wait_until(lambda: is_gone(child_pid), within_s=30)
    run = only_run(study)
    assert run.record["status"] == "running"
    assert_the_rows_are_kept(run, server, "censored: the process that started the run has died")
    assert run.telemetry.empty
    assert (
        run.summary()["invalid_reason"]
        == "the run is still going on, or was killed before it ended"
    )
