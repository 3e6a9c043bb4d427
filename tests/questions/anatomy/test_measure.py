"""Images made one at a time with the tiny pipeline: their rows, and runs that end early."""

import mmap

import pandas as pd
import pytest
import torch

from benchlib import arithmetic, dissect, dissect_options, load_pipeline, load_run, watch_memory
from benchlib.questions.anatomy.judge import MATMUL, memory_growth
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
    rows = run.requests
    asked = list(zip(rows["width"], rows["num_inference_steps"], strict=True))
    round_trip = [(64, 1), (64, 3), (128, 1), (128, 3)]
    assert asked == round_trip + round_trip[::-1], "every second round backwards"
    assert (rows["phase"] == "measure").all()
    parts_s = rows[[f"{stage}_s" for stage in STAGES]].sum(axis="columns")
    between_s = rows["total_s"] - parts_s
    assert (between_s >= -0.001).all()
    assert between_s.min() < 0.01, "other work may delay an image between its stages, but not all"
    assert (rows[[f"{stage}_peak_gib" for stage in STAGES]] > 0.05).all(axis=None)
    assert len(run.telemetry) == len(rows)
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
    assert found.requests["width"].tolist() == [64]
    told = capsys.readouterr().out
    assert "128x128 does not fit in memory: left out" in told
    assert "1 points, 1 times each" in told


def test_what_is_given_goes_before_the_profile():
    quick = {"sizes": [64, 128, 256], "steps": [2, 4, 8], "repeat": 5, "budget_min": 0.4}
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


def test_of_compiled_networks_the_stock_ones_are_counted(run, monkeypatch):
    def products(_, dtype, n, __):  # in half precision a CPU takes minutes
        return [{"part": MATMUL, "dtype": dtype, "flop": 2 * n**3, "time_s": 1.0}]

    monkeypatch.setattr("benchlib.questions.anatomy.measure._products", products)
    pipe = load_pipeline("tiny", dtype="float16", device="cpu")
    before = arithmetic(pipe, run, size=64, repeat=1)
    monkeypatch.setattr(pipe, "compiled", True)
    assert (arithmetic(pipe, run, size=64, repeat=1)["tflop"] == before["tflop"]).all()
    assert pipe.diffusers.vae.dtype == torch.float16
    assert pipe._vae.dtype == torch.float32


@pytest.mark.parametrize("bad", [{"repeat": 0}, {"sizes": []}, {"steps": []}])
def test_bad_arguments(pipe, tmp_path, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}"):
        dissect(pipe, results=tmp_path, **({"sizes": [64], "steps": [1]} | bad))
