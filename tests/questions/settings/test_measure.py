"""Settings tried for real on the tiny model: the frame, also of a setting that fails."""

import gc
import math
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchlib import Point, decide, load_study, sweeps, try_settings, usable_recipes
from benchlib.questions.settings import measure, pictures
from benchlib.questions.settings.judge import NO_TIME
from benchlib.questions.settings.measure import BASELINE, Case, plan_serving
from benchlib.questions.settings.pictures import own_prompts
from benchlib.serving.model import loading
from benchlib.study.store import Run, Study

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
        assert row["start_s"] > 0
        assert row["memory_of"] == "process RSS"
        assert 0.1 < row["memory_gib"] < 100
        assert [len(latencies_s) > 0 for latencies_s in row["latencies_s"]] == [True]
        assert (row["error"], row["runs"], row["image_s_interval"]) == (None, 1, None)
    assert (baseline["exact"], tiling["exact"]) == (True, False)
    assert (baseline["psnr_db"], baseline["ssim"]) == (math.inf, pytest.approx(1.0))
    assert 10 < tiling["psnr_db"] < 60
    assert tiling["ssim"] < 0.999
    assert 0.01 < tiling["flip"] < 1
    assert (baseline["pictures"], tiling["pictures"]) == ("same", "changed")
    assert (tiling["picture_pairs"], tiling["identical_pairs"]) == (8, 0)
    low, high = tiling["ssim_interval"]
    assert low < tiling["ssim"] < high
    seeds = [(pair.prompt, pair.seed) for pair in tiling["pairs"]]
    assert seeds == [(prompt, n) for n, prompt in enumerate(own_prompts()[:8], 1)]
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


class FakeWorld:
    """A clock, and models and servers that take time by it and nothing else.

    The recipe "fused-qkv" loads slowly; "vae-bf16" can't be loaded.
    """

    def __init__(self, made):
        self.made = made
        self.clock_s = 0.0
        self.served = []

    def load_pipeline(self, model, *, recipe, device):  # noqa: ARG002 - as the real one is called
        if recipe == "vae-bf16":
            raise RuntimeError("no such kernel")
        self.clock_s += 60.0 if recipe == "fused-qkv" else 2.0
        spec = {"showcase": {"width": 64, "height": 64, "num_inference_steps": 2}}
        return SimpleNamespace(spec=spec, generate=self.generate, close=lambda: None)

    def generate(self, request):
        self.clock_s += 0.5
        pixels = np.full((16, 16, 3), request.seed, dtype=np.uint8)
        return SimpleNamespace(
            images=[Image.fromarray(pixels)], timings=SimpleNamespace(total_s=0.5)
        )

    def sweep(self, points, *, study, results, resume, repeat=1, budget_min=None):
        assert not resume
        end_s = math.inf if budget_min is None else self.clock_s + 60 * budget_min
        runs = []
        for fields in [*points] * repeat:
            point = Point(**fields)
            point.plan("http://localhost")  # refuses what can't be measured
            run_s = point.warmup_s + point.duration_s
            if self.clock_s + run_s > end_s:
                break
            self.clock_s += run_s
            self.served.append(run_s)
            target = {"model": "tiny", **point.load, **point.serve}
            record, *frames = self.made.run([0.5] * 30, point=point.to_dict(), target=target)
            runs.append(Run(record, *frames, Path(results) / study / f"run-{len(runs)}"))
        return Study(Path(results) / study, tuple(runs))


@pytest.fixture
def world(made, monkeypatch):
    fake = FakeWorld(made)
    clock = SimpleNamespace(monotonic=lambda: fake.clock_s)
    monkeypatch.setattr(measure, "time", clock)
    monkeypatch.setattr(pictures, "time", clock)
    monkeypatch.setattr(loading, "load_pipeline", fake.load_pipeline)
    monkeypatch.setattr(measure, "sweep", fake.sweep)
    return fake


MANY = [
    (recipe, "continuous") for recipe in (BASELINE, "channels-last", "fused-qkv", "vae-slicing")
]


@pytest.mark.parametrize("budget_min", [1e-9, 0.01, 0.1, 0.5, 1, 2, 4, 7, 15, 60, None])
def test_any_budget_ends_in_rows_of_what_there_was_time_for(world, tmp_path, capsys, budget_min):
    frame, runs = try_settings(
        "tiny", MANY, users=(3, 6), budget_min=budget_min, repeat=5, results=tmp_path
    )
    assert len(frame) == 2 * len(MANY)
    assert len(runs) > 0, "without a run there is no record and no figure"
    assert frame["image_s"].iloc[0] == 0.5
    assert frame["images_per_s"].iloc[0] > 0
    measured = frame["error"].isna()
    assert set(frame["error"][~measured]) <= {NO_TIME}
    assert frame["images_per_s"].notna().tolist() == measured.tolist()
    printed = capsys.readouterr().out
    assert measured.all() == ("the budget has no room for" not in printed)
    for row in frame[~measured].to_dict("records"):
        alone_left_out = f"{row['recipe']}: not tried, the budget has no room for it"
        assert alone_left_out in printed or row["setting"] in printed
    decision = decide(frame, slo="p95 < 2 s", memory_limit_gib=4.0)
    assert decision.best is not None
    settings_measured = measured.groupby(frame["setting"]).any()
    assert ("Not measured, for want of time" in str(decision)) == (not settings_measured.all())
    # What can't be interrupted comes on top: the baseline, one slow recipe, and one run.
    if budget_min is not None:
        assert world.clock_s <= 60 * budget_min + 5.0 + 64.0 + max(world.served)


def test_servers_get_their_part_of_a_budget_and_the_slow_recipe_does_not_eat_it(world, tmp_path):
    frame, runs = try_settings("tiny", MANY, budget_min=7, repeat=5, results=tmp_path)
    assert sum(world.served) > 0.25 * 7 * 60
    assert frame["runs"].min() == len(runs) / len(MANY)


def test_all_prompts_are_for_what_changes_the_algorithm_and_a_budget_stops_early(world, tmp_path):
    prompts = [f"prompt {number}" for number in range(30)]
    settings = [(recipe, "serial") for recipe in (BASELINE, "channels-last", "vae-tiling")]
    options = {"images": 3, "prompts": prompts, "duration_s": 5.0, "results": tmp_path}
    frame, _ = try_settings("tiny", settings, **options)
    assert frame["picture_pairs"].tolist() == [30, 8, 30]
    assert frame["identical_pairs"].tolist() == [30, 8, 30]
    assert frame["pictures"].tolist() == ["same"] * 3
    began_s = world.clock_s
    frame, _ = try_settings("tiny", settings, budget_min=1.0, **options)
    # 0.4 of 60 s for three recipes are 8 s of pictures each, and a picture takes 0.5 s.
    assert frame["picture_pairs"].tolist()[:2] == [16, 8]
    assert world.clock_s - began_s <= 65.0
    frame, _ = try_settings("tiny", settings, budget_min=0.1, **options)
    assert frame["pictures_reason"].tolist()[0] == "it is the baseline"
    assert frame["pictures"].tolist()[1] in ("not shown", None)


def test_a_recipe_that_fails_leaves_the_others_measured(world, tmp_path):
    settings = [(BASELINE, "serial"), ("vae-bf16", "serial"), ("channels-last", "serial")]
    frame, _ = try_settings("tiny", settings, results=tmp_path, duration_s=10.0)
    assert frame["error"].tolist() == [None, "RuntimeError: no such kernel", None]
    assert frame["images_per_s"].notna().tolist() == [True, False, True]
    assert sum(world.served) == pytest.approx(2 * (10.0 + 1.5))


def test_a_budget_has_fewer_repetitions_before_it_has_fewer_cases(capsys):
    alone = {BASELINE: {"start_s": 10.0, "image_s": 0.1}, "bf16": {"start_s": 10.0, "image_s": 0.1}}
    cases = [Case(BASELINE, "serial", 3), Case(BASELINE, "serial", 6), Case("bf16", "serial", 3)]
    round_s = 2 * 10.0 + 3 * (1.0 + 1.0)  # two recipes are loaded, each run has a warm-up
    for time_s, repeat, kept in (
        (5.1 * round_s, 5, 3),
        (2.1 * round_s, 2, 3),
        (0.7 * round_s, 1, 2),
    ):
        plan = plan_serving(cases, alone, time_s=time_s / sweeps.LOADED_SHARE, repeat=5)
        assert (plan.repeat, [*plan.durations_s]) == (repeat, cases[:kept])
    assert "no room for all loads of: bf16, serial" in capsys.readouterr().out
    forced = plan_serving(cases, alone, time_s=-20.0, repeat=5)
    assert (forced.durations_s, forced.repeat, forced.limit_s) == ({cases[0]: 1.0}, 1, None)


def test_memory_that_a_later_run_does_not_know_is_left_out(made):
    known, unknown = (made.run([0.5] * 100) for _ in range(2))
    unknown[2]["rss_gib"] = None
    runs = [Run(*parts, Path("run")) for parts in (known, unknown)]
    assert [run.summary()["rss_peak_gib"] is None for run in runs] == [False, True]
    figures = measure._serving_figures(runs)
    assert figures["memory_gib"] == runs[0].summary()["rss_peak_gib"]
    assert figures["memory_of"] == "process RSS"
    assert measure._serving_figures(runs[1:])["memory_gib"] is None


def test_one_model_at_a_time_is_in_memory(monkeypatch):
    load, loaded = loading.load_pipeline, []

    def watched(*arguments, **options):
        assert [one() for one in loaded] == [None] * len(loaded), "the one before is still there"
        pipe = load(*arguments, **options)
        loaded.extend(weakref.ref(part) for part in (pipe, pipe.diffusers.unet))
        return pipe

    monkeypatch.setattr(loading, "load_pipeline", watched)
    gc.disable()  # else it might come by in time by chance
    try:
        measure._try_alone(
            "tiny",
            [BASELINE, "channels-last", "vae-slicing"],
            end_s=math.inf,
            images=1,
            device="cpu",
            steps=1,
            prompts=["a chair"],
            pictures_s=math.inf,
        )
    finally:
        gc.enable()
    assert len(loaded) == 6
