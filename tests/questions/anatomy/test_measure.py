"""Images made one at a time with the tiny pipeline: their rows, and runs that end early."""

import mmap

import pandas as pd
import pytest
import torch

from benchlib import (
    Budget,
    arithmetic,
    dissect,
    dissect_options,
    load_pipeline,
    load_run,
    watch_memory,
)
from benchlib.other_work import Taken
from benchlib.questions.anatomy import measure
from benchlib.questions.anatomy.judge import MATMUL, judge_images, launch_shares, memory_growth
from benchlib.questions.anatomy.rounds import WARM_IMAGES
from benchlib.rows import STAGES

LEAK_BYTES = 100 * mmap.PAGESIZE


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tiny")


@pytest.fixture(scope="module")
def run(pipe, tmp_path_factory):
    return dissect(
        pipe, sizes=[64, 128], steps=[1, 3], repeat=2, results=tmp_path_factory.mktemp("results")
    )


def test_each_image_is_of_what_was_asked_and_its_times_add_up(run):
    rows = run.requests[run.requests["phase"] != "warmup"]
    asked = list(zip(rows["width"], rows["num_inference_steps"], strict=True))
    round_trip = [(64, 1), (64, 3), (128, 1), (128, 3)]
    assert asked == round_trip + round_trip[::-1], "every second round backwards"
    assert (rows["phase"] == "measure").all()
    assert rows["launch_s"].isna().all(), "on a CPU a call returns when its work is done"
    parts_s = rows[[f"{stage}_s" for stage in STAGES]].sum(axis="columns")
    between_s = rows["total_s"] - parts_s
    assert (between_s >= -0.001).all()
    assert between_s.min() < 0.01, "other work may delay an image between its stages, but not all"
    assert (rows[[f"{stage}_peak_gib" for stage in STAGES]] > 0.05).all(axis=None)
    assert len(run.telemetry) == len(run.requests)
    assert load_run(run.path).record["networks"].keys() == {
        "unet",
        "vae",
        "text_encoder",
        "text_encoder_2",
    }


def test_a_size_that_does_not_fit_is_left_out_and_a_budget_allows_fewer_rounds(
    pipe, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(pipe, "fits", lambda width, *_: width < 128)
    found = dissect(
        pipe, sizes=[64, 128], steps=[1], repeat=50, budget_min=0.0001, results=tmp_path
    )
    counted = found.requests[found.requests["phase"] == "measure"]
    assert set(counted["width"]) == {64}
    assert len(counted) < 50
    told = capsys.readouterr().out
    assert "128x128 does not fit in memory: left out" in told
    assert "64x64: 1 step does not fit: it is measured all the same" in told


def test_what_is_given_goes_before_the_profile():
    quick = {"sizes": [64, 128, 256], "steps": [2, 4, 8], "repeat": 5, "budget_min": 1}
    assert dissect_options("quick") == quick
    own = dissect_options("full", sizes=[64], budget_min=2)
    assert own == {"sizes": [64], "steps": [10, 20, 30, 50], "repeat": 10, "budget_min": 2}


def test_where_no_size_fits_that_is_said(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(pipe, "fits", lambda *_: False)
    with pytest.raises(ValueError, match="sizes: none of 64, 128 fits in this machine's memory"):
        dissect(pipe, sizes=[64, 128], steps=[1], budget_min=1, results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_was_measured_before_an_interruption_is_kept(pipe, tmp_path, monkeypatch):
    decode, made = pipe.decode, []

    def interrupted(works):
        made.append(decode(works))
        if len(made) == 5:
            raise KeyboardInterrupt
        return made[-1]

    monkeypatch.setattr(pipe, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        watch_memory(pipe, images=9, steps=1, results=tmp_path)
    (path,) = (tmp_path / "time_and_memory").glob("*/run.json")
    kept = load_run(path.parent)
    assert kept.record["status"] == "interrupted"
    assert len(kept.requests) == 4


def test_a_planted_leak_is_called_one(pipe, tmp_path, monkeypatch):
    decode, hoard = pipe.decode, []

    def leaking(works):
        hoard.append(
            mmap.mmap(-1, LEAK_BYTES)
        )  # not by malloc, which may find as much that it never gave back
        hoard[-1].write(b"x" * LEAK_BYTES)
        return decode(works)

    monkeypatch.setattr(pipe, "decode", leaking)
    growth = memory_growth(
        watch_memory(pipe, images=80, steps=1, results=tmp_path).telemetry
    ).set_index("memory")
    assert growth.loc["rss", "kib_per_image"] == pytest.approx(LEAK_BYTES / 1024, rel=0.2)
    assert growth.loc["rss", "verdict"].startswith("leaks (")


def test_the_arithmetic_is_counted_and_grows_with_the_image(pipe, run):
    shares = {
        size: arithmetic(pipe, run, size=size, repeat=3).set_index("part") for size in (64, 128)
    }
    assert shares[64].index.tolist() == ["UNet step", "VAE decode"]
    calls = pd.read_parquet(run.path / "arithmetic.parquet")
    products = calls[calls["part"] == MATMUL]
    assert set(products["flop"]) == {2 * n**3 for n in (512, 1024, 2048)}
    small, large = (shares[size].loc["VAE decode", "tflop"] for size in (64, 128))
    assert 3.9 < large / small < 4.5, "convolutions grow with the pixels, attention faster"
    assert (shares[128]["share"] > 0).all()
    assert {"others_cpu_cores", "steal_cores"} < set(calls.columns)


def test_other_work_beside_the_images_and_the_arithmetic_is_kept(pipe, run, monkeypatch):
    others = run.telemetry["others_cpu_cores"].dropna()
    assert (others >= 0).all()
    assert run.record["outcome"]["others_cpu_cores"] == run.summary()["others_cpu_cores"]
    monkeypatch.setattr("benchlib.other_work.OtherWork.read", lambda _: Taken(1000.0, None))
    shares = arithmetic(pipe, run, size=64, repeat=6)
    assert shares["share_interval"].isna().all()
    assert shares["disturbed"].str.startswith("other processes took 1,000 of ").all()


def test_of_compiled_networks_the_stock_ones_are_counted(run, monkeypatch):
    def products(_, dtype, n, __):  # in half precision a CPU takes minutes
        return [{"part": MATMUL, "dtype": dtype, "flop": 2 * n**3, "time_s": 1.0}]

    monkeypatch.setattr("benchlib.questions.anatomy.calls._products", products)
    pipe = load_pipeline("tiny", dtype="float16", device="cpu")
    before = arithmetic(pipe, run, size=64, repeat=1)
    monkeypatch.setattr(pipe, "compiled", True)
    assert (arithmetic(pipe, run, size=64, repeat=1)["tflop"] == before["tflop"]).all()
    assert pipe.diffusers.vae.dtype == torch.float16
    assert pipe._vae.dtype == torch.float32


def test_each_size_is_warmed_before_it_counts_and_by_images_that_count_nowhere(run):
    rows = run.requests
    warm = rows[rows["phase"] == "warmup"]
    assert set(warm["width"]) == {64, 128}
    assert (warm["num_inference_steps"] == 1).all(), "the fewest steps that were asked for"
    assert warm["index"].max() < rows[rows["phase"] == "measure"]["index"].min()
    assert (warm.groupby("width").size() <= WARM_IMAGES).all()
    assert run.record["outcome"]["window_start_s"] >= warm["done_s"].max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_on_cuda_it_is_known_how_long_python_takes_to_start_a_step(tmp_path):
    on_gpu = load_pipeline("tiny", device="cuda")
    found = dissect(on_gpu, sizes=[64, 128], steps=[2, 4], repeat=5, results=tmp_path)
    launches = found.requests["launch_s"]
    assert (launches > 0).all()
    assert (launches < found.requests["denoise_s"]).all()
    shares = launch_shares(found.requests)
    assert shares["width"].tolist() == [64, 128]
    assert (shares["share"] > 0.5).all(), "a tiny model's kernels are shorter than their calls"


def test_a_budget_holds_time_for_what_follows_the_images(pipe, tmp_path, capsys):
    budget = Budget(60, results=tmp_path, case=["tiny"])
    run = dissect(pipe, sizes=[64], steps=[1, 2], budget=budget, watch_images=45, results=tmp_path)
    told = capsys.readouterr().out
    for part in ("64x64: 1 and 2 steps", "arithmetic", "memory after small images"):
        assert f"  {part} " in told
    assert len(arithmetic(pipe, run, size=64, repeat=1, budget=budget)) == 2
    assert len(watch_memory(pipe, images=45, budget=budget, results=tmp_path).requests) == 45
    assert Budget(1, results=tmp_path, case=["tiny"]).cost("arithmetic", -1.0) > 0


def test_a_budget_that_is_spent_leaves_the_rest_out_in_words(pipe, run, tmp_path, capsys):
    clock_s = [0.0]
    budget = Budget(1, results=tmp_path, clock=lambda: clock_s[0])
    clock_s[0] = 60.0
    shares = arithmetic(pipe, run, budget=budget)
    watched = watch_memory(pipe, images=300, budget=budget, results=tmp_path)
    assert (len(shares), len(watched.requests), len(watched.telemetry)) == (0, 0, 0)
    told = capsys.readouterr().out
    assert "arithmetic is left out: it needs at least " in told
    assert "memory after small images is left out: it needs at least " in told
    answer = str(judge_images(run, shares=shares, watched=watched))
    assert "Leak: not shown, as it takes at least 40 images." in answer


def test_an_interrupt_ends_the_images_of_a_budget_and_the_answer_has_those_made(
    pipe, tmp_path, monkeypatch, capsys
):
    decode, made = pipe._decode, []

    def interrupted(works):
        if len(made) == 9:
            raise KeyboardInterrupt
        made.append(decode(works))
        return made[-1]

    monkeypatch.setattr(pipe, "_decode", interrupted)
    budget = Budget(5, results=tmp_path)
    monkeypatch.setattr(measure, "WARM_IMAGES", 0)
    run = dissect(pipe, sizes=[64], steps=[1, 2], repeat=50, budget=budget, results=tmp_path)
    assert run.record["status"] == load_run(run.path).record["status"] == "interrupted"
    assert 0 < len(run.requests) < 9
    watched = watch_memory(pipe, images=45, budget=budget, results=tmp_path)
    assert len(watched.requests) == 0, "the budget is spent"
    shares = arithmetic(pipe, run, budget=budget)
    answer = str(judge_images(run, shares=shares, watched=watched))
    assert answer.startswith("The largest image, 64x64 with 2 steps, takes ")
    assert "interrupted: the answer uses what was measured" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [{"repeat": 0}, {"sizes": []}, {"steps": []}])
def test_bad_arguments(pipe, tmp_path, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}"):
        dissect(pipe, results=tmp_path, **({"sizes": [64], "steps": [1]} | bad))
