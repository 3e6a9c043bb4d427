"""Settings tried for real on the tiny model: what the frame says of each, also of one that fails."""

import math

import pytest

from benchlib import decide, load_study, try_settings, usable_recipes

pytestmark = pytest.mark.usefixtures("idle_machine")

SETTINGS = [("baseline", "serial"), ("vae-tiling", "serial"), ("baseline", "swift")]


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    return *try_settings(
        "tiny", SETTINGS, users=(2,), images=2, num_inference_steps=2, results=results, device="cpu"
    ), results


def test_each_setting_has_a_row(tried):
    frame, runs, results = tried
    assert frame["setting"].tolist() == [
        "baseline, serial",
        "vae-tiling, serial",
        "baseline, swift",
    ]
    assert [run.path for run in load_study(results / "settings").runs] == [run.path for run in runs]
    baseline, tiling, _ = frame.to_dict("records")
    for row in (baseline, tiling):
        assert row["images_per_s"] > 0
        assert row["image_s"] > 0
        assert row["start_s"] > row["image_s"] / 2
        assert row["memory_of"] == "process RSS"
        assert 0.1 < row["memory_gib"] < 100
        assert [len(latencies_s) > 0 for latencies_s in row["latencies_s"]] == [True]
        assert (row["error"], row["runs"], row["image_s_interval"]) == (None, 1, None)
    assert (baseline["exact"], tiling["exact"]) == (True, False)
    assert (baseline["psnr_db"], baseline["ssim"]) == (math.inf, pytest.approx(1.0))
    assert 10 < tiling["psnr_db"] < 60
    assert tiling["ssim"] < 0.999
    served = {(run.spec["target"]["recipe"], run.spec["target"]["batching"]) for run in runs}
    assert served >= {("baseline", "serial"), ("vae-tiling", "serial")}


def test_a_setting_that_fails_says_why_and_is_not_chosen(tried):
    frame, _, _ = tried
    swift = frame.to_dict("records")[2]
    assert (swift["images_per_s"], swift["memory_gib"], swift["latencies_s"]) == (None, None, [])
    assert "batching" in swift["error"]
    decision = decide(frame, slo="p95 < 600 s", memory_limit_gib=1000.0, exact_only=True)
    assert (decision.best, decision.runner_up) == ("baseline, serial", None)


def test_what_is_not_usable_is_left_out_with_its_reason(capsys):
    assert usable_recipes(["baseline", "bf16+vae-bf16", "vae-slicing"], device="cpu") == [
        "baseline",
        "vae-slicing",
    ]
    assert (
        "left out: recipe: 'vae-bf16' can't be used: the VAE is in bfloat16 already"
        in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="'warp' is not known"):
        usable_recipes(["warp"], device="cpu")
