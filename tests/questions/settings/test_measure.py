"""Settings tried for real on the tiny model, and planned and interrupted by a fake clock."""

import gc
import math
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchlib import Budget, decide, load_study, settings_to_try, try_settings, usable_recipes
from benchlib.questions.settings import measure, measure_alone, measure_loaded, pictures
from benchlib.questions.settings.judge import BASELINE, NO_TIME, STOPPED
from benchlib.questions.settings.pictures import own_prompts
from benchlib.queueing import estimates
from benchlib.queueing.estimates import PredictedCapacity
from benchlib.run import Writer
from benchlib.serving import server as serving
from benchlib.serving.model import loading
from benchlib.serving.model.memory import PeakMemory
from benchlib.study.store import Run

pytestmark = pytest.mark.usefixtures("idle_machine")

SETTINGS = [("baseline", "serial"), ("vae-tiling", "serial"), ("baseline", "swift")]


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    options = {"images": 2, "num_inference_steps": 2, "duration_s": 2.0, "repeat": 1}
    options |= {"slo": "p95 < 600 s", "results": results, "device": "cpu"}
    return *try_settings("tiny", SETTINGS, users=(2,), **options), results


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
        assert row["capacity_images_per_s"] > 0
        assert row["foretold_images_per_s"] > 0
        assert row["images_per_s_of_2_users"] > 0
        assert row["image_s"] > 0
        assert row["start_s"] > row["compile_s"] == 0.0
        assert row["memory_of"] == "process RSS"
        assert 0.1 < row["memory_gib"] < 100
        assert (row["error"], row["runs"], row["image_s_interval"]) == (None, 1, None)
        assert row["promise"] == "p95 < 600 s"
    assert (baseline["exact"], tiling["exact"]) == (True, False)
    assert (baseline["optimisations"], tiling["optimisations"]) == (0, 1)
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


def test_images_alone_are_kept_as_runs_and_the_best_two_are_loaded(tried):
    frame, runs, _ = tried
    frame = frame.iloc[:2]
    targets = [run.spec["target"] for run in runs]
    assert [target["recipe"] for target in targets[:2]] == ["baseline", "vae-tiling"]
    for run in runs[:2]:
        assert run.spec["label"] == "alone"
        assert (run.requests["phase"] == "measure").sum() >= 8
        assert run.requests["phase"].iloc[0] == "warmup"
        assert run.summary()["latency_mean_s"] > 0
    loaded = {(target["recipe"], target["batching"]) for target in targets[2:]}
    assert loaded == {("baseline", "serial"), ("vae-tiling", "serial")}
    foretold = dict(zip(frame["recipe"], frame["foretold_images_per_s"], strict=True))
    for run in runs[2:]:
        capacity = foretold[run.spec["target"]["recipe"]]
        assert run.spec["arrivals"]["rate"] == pytest.approx(0.8 * capacity)


def test_a_setting_that_fails_says_why_and_is_not_chosen(tried):
    frame, _, _ = tried
    swift = frame.to_dict("records")[2]
    assert (swift["capacity_images_per_s"], swift["memory_gib"]) == (None, None)
    assert "batching" in swift["error"]
    decision = decide(frame, memory_limit_gib=1000.0, exact_only=True)
    assert (decision.best, decision.runner_up) == ("baseline, serial", None)
    assert "baseline, swift failed: ValueError" in str(decision)


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


def test_a_recipe_that_compiles_is_served_serially(monkeypatch, capsys):
    monkeypatch.setattr(measure, "usable_recipes", lambda recipes, device: list(recipes))  # noqa: ARG005
    settings = settings_to_try("full")
    assert len(settings) == 13
    assert settings[:3] == [(BASELINE, way) for way in ("serial", "dynamic", "continuous")]
    compiled = [setting for setting in settings[3:] if setting[1] == "serial"]
    assert [recipe for recipe, _ in compiled] == ["fastest-exact", "fastest", "compile-regional"]
    assert len(settings_to_try("quick")) == 7
    assert "left to the profile full: bf16+cuda-graphs, fastest-exact" in capsys.readouterr().out


LOADS_S = {"fused-qkv": 60.0, "compile-regional": 80.0}


class FakeWorld:
    """A clock, and models, servers and runs that take time by it and nothing else.

    The recipe "vae-bf16" can't be loaded. An image takes 0.5 s, and a server's start 3 s. A
    recipe's capacity is foretold as `capacities` say, else as 1; runs show 0.95 of it within 2 %.
    """

    def __init__(self, made):
        self.made = made
        self.clock_s = 0.0
        self.loaded = []
        self.runs = []
        self.steps = []
        self.capacities = {}
        self.keeps_up_to = {}
        self.loads_s = dict(LOADS_S)
        self.interrupted_by = None

    def budget(self, minutes, results):
        return Budget(minutes, results=results, case=("test",), clock=lambda: self.clock_s)

    def load_pipeline(self, model, *, recipe, device):  # noqa: ARG002 - as the real one is called
        if recipe == "vae-bf16":
            raise RuntimeError("no such kernel")
        self.clock_s += self.loads_s.get(recipe, 2.0)
        self.loaded.append(recipe)
        showcase = {"width": 64, "height": 64, "num_inference_steps": 8}
        spec = {"showcase": showcase, "recipe": recipe, "model": "tiny", "device": "cpu"}

        def generate(request):
            if recipe == self.interrupted_by:
                raise KeyboardInterrupt
            self.clock_s += 0.5
            pixels = np.full((16, 16, 3), request.seed, dtype=np.uint8)
            timings = SimpleNamespace(encode_s=0.1, denoise_s=0.3, decode_s=0.1, total_s=0.5)
            images, memory = [Image.fromarray(pixels)], PeakMemory(rss_gib=1.5)
            return SimpleNamespace(images=images, timings=timings, memory=memory)

        return SimpleNamespace(
            spec=spec,
            generate=generate,
            close=lambda: None,
            compiled=False,
            device=SimpleNamespace(type="cpu"),
            reset_peak_memory=lambda: None,
            peak_memory=lambda: PeakMemory(rss_gib=2.0 if recipe == "bf16" else 1.0),
        )

    def serve(self, pipe, *, batching, name):
        assert name.startswith("settings")
        self.clock_s += 3.0
        return FakeServer(pipe.spec | {"batching": batching})

    def foretell(self, spec, image_s, workload):  # noqa: ARG002 - as the real one is called
        usual = spec["showcase"]["num_inference_steps"]
        fewer = usual / (workload.num_inference_steps or usual)
        return self.calibration(fewer * self.capacities.get(spec["recipe"], 1.0), 0.1)

    def calibration(self, rate, share, images=10):
        def capacity(slo):
            interval = (rate * (1 - share), rate * (1 + share))
            return PredictedCapacity(rate, interval, slo, images, "stands", "it fits")

        throughput = lambda users: (1.5 * rate, users / rate)  # noqa: E731
        return SimpleNamespace(capacity=capacity, user_throughput=throughput)

    def measure(self, writer, point, target):
        point.plan("http://localhost")  # refuses what can't be measured
        self.clock_s += 1.0 + point.warmup_s + point.requests / point.arrivals.rate
        spec = target.spec
        self.runs.append((spec["recipe"], spec["batching"], point.seed, point.requests))
        self.steps.append(point.workload.num_inference_steps)
        record, *frames = self.made.run(
            [self.latency_s(spec, point.arrivals.rate)] * point.requests,
            gap_s=1 / point.arrivals.rate,
            target=spec,
        )
        run = Run(record, *frames, Path(writer.folder) / f"run-{len(self.runs)}")
        writer.runs.append(run)
        return run

    def latency_s(self, spec, rate):
        return 0.5 if rate <= self.keeps_up_to.get(spec["recipe"], 100.0) else 5.0

    def calibrate(self, runs):
        recipe = runs[0].spec["target"]["recipe"]
        images = sum(len(run.requests) for run in runs)
        return self.calibration(0.95 * self.capacities.get(recipe, 1.0), 0.02, images)


class FakeServer:
    def __init__(self, spec):
        self.spec = spec

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def world(made, monkeypatch):
    fake = FakeWorld(made)
    clock = SimpleNamespace(monotonic=lambda: fake.clock_s)
    for module in (measure_alone, pictures):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(loading, "load_pipeline", fake.load_pipeline)
    monkeypatch.setattr(serving, "serve", fake.serve)
    monkeypatch.setattr(estimates, "foretell", fake.foretell)
    monkeypatch.setattr(measure_loaded, "calibrate", fake.calibrate)
    monkeypatch.setattr(Writer, "measure", lambda self, *args: fake.measure(self, *args))
    return fake


def try_all(world, results, recipes, minutes=None, **options):
    budget = world.budget(minutes, results)
    settings = [(recipe, "serial") for recipe in recipes]
    return *try_settings("tiny", settings, budget=budget, results=results, **options), budget


MANY = (BASELINE, "channels-last", "fused-qkv", "compile-regional", "vae-slicing", "bf16")


@pytest.mark.parametrize("minutes", [0.001, 0.2, 0.5, 1, 2, 3, 4, 6, 12, None])
def test_any_budget_is_kept_and_ends_in_an_answer(world, tmp_path, capsys, minutes):
    frame, runs, budget = try_all(world, tmp_path, MANY, minutes)
    assert frame["recipe"].tolist() == list(MANY)
    assert runs[0].spec["target"]["recipe"] == BASELINE
    assert frame["image_s"].iloc[0] == 0.5
    assert frame["promise"].tolist() == ["p95 < 2 s"] * len(MANY)
    measured = frame["error"].isna()
    assert set(frame["error"][~measured]) <= {NO_TIME}
    assert frame["capacity_images_per_s"].notna().tolist() == measured.tolist()
    printed = capsys.readouterr().out
    for recipe in frame["recipe"][~measured]:
        assert f"{recipe} is left out: it needs at least" in printed
    said = str(decide(frame, memory_limit_gib=4.0))
    assert said.startswith("Run ")
    assert ("Not measured, for want of time" in said) == (not measured.all())
    # The baseline is measured in any case; it takes 12.5 s.
    if minutes is not None:
        assert budget.used_s <= max(60 * minutes + max(15.0, 6 * minutes), 15.0)
    if minutes in (12, None):
        assert measured.all()
        assert frame["confirmed"].sum() == 2


def test_the_last_settings_are_left_out_first_and_compiling_comes_last(world, tmp_path):
    frame, _, _ = try_all(world, tmp_path, MANY)
    assert world.loaded[: len(MANY)] == [
        BASELINE, "channels-last", "fused-qkv", "vae-slicing", "bf16", "compile-regional",
    ]  # fmt: skip
    assert frame["error"].isna().all()
    recipes = (BASELINE, *[f"bf16{'+channels-last' * n}" for n in (0, 1)], "vae-slicing")
    frame, _, _ = try_all(world, tmp_path / "other", recipes, 1.5)
    errors = frame["error"].tolist()
    assert errors[:2] == [None, None]
    assert errors[-1] == NO_TIME


def test_a_slow_start_costs_later_settings_and_not_the_budget(world, tmp_path):
    world.loads_s["channels-last"] = 70.0
    frame, _, budget = try_all(world, tmp_path, MANY, 3)
    assert budget.used_s <= 180 + 18
    assert frame["error"].iloc[1] is None
    assert (frame["error"] == NO_TIME).any()


def test_what_was_left_out_is_planned_again_if_time_is_left(world, tmp_path, capsys):
    world.loads_s["compile-regional"] = 3.0
    recipes = (BASELINE, "compile-regional", "channels-last", "bf16")
    frame, _, budget = try_all(world, tmp_path, recipes, 2.6)
    assert "bf16 is left out: it needs" in capsys.readouterr().out
    assert frame["error"].isna().all()
    assert frame["confirmed"].sum() == 2
    assert budget.used_s <= 168.0 + 16.8


def test_costs_are_remembered_for_the_next_plan(world, tmp_path, capsys):
    try_all(world, tmp_path, (BASELINE, "fused-qkv"))
    capsys.readouterr()
    frame, _, _ = try_all(world, tmp_path, (BASELINE, "fused-qkv"), 1)
    assert "fused-qkv is left out: it needs at least 1.1 minutes" in capsys.readouterr().out
    assert frame["error"].tolist() == [None, NO_TIME]


def test_the_best_two_are_confirmed_in_turns_each_near_its_capacity(world, tmp_path):
    world.capacities = {"bf16": 2.0, "vae-slicing": 1.6}
    frame, runs, _ = try_all(world, tmp_path, MANY)
    assert [(recipe, seed) for recipe, _, seed, _ in world.runs] == [
        ("bf16", 0), ("vae-slicing", 0), ("bf16", 1), ("vae-slicing", 1),
    ]  # fmt: skip
    assert len(runs) == len(MANY) + 4
    rows = frame.set_index("recipe")
    assert rows["confirmed"].sum() == 2
    assert rows.loc["bf16", "capacity_images_per_s"] == pytest.approx(1.9)
    assert rows.loc["bf16", "foretold_images_per_s"] == 2.0
    assert rows.loc["bf16", "confirming_images"] == 60
    assert rows.loc["bf16", "confirming_rate"] == pytest.approx(0.8 * 2.0)
    assert rows.loc["channels-last", "capacity_images_per_s"] == 1.0
    assert rows.loc["bf16", "images_per_s_of_3_users"] == 3.0
    decision = decide(frame, memory_limit_gib=4.0)
    assert (decision.best, decision.shown) == ("bf16, serial", True)
    assert decision.times_interval == pytest.approx((1.215, 1.286), abs=0.002)


def test_fewer_steps_are_a_setting_of_their_own_and_change_the_picture(world, tmp_path, capsys):
    recipes = (BASELINE, "baseline in 4 steps", "bf16 in 1 step", "baseline in 8 steps")
    frame, runs, _ = try_all(world, tmp_path, recipes)
    rows = frame.set_index("recipe")
    assert rows["exact"].tolist() == [True, False, False, False]
    assert rows["optimisations"].tolist() == [0, 0, 1, 0]
    alone = [
        run.spec["workload"]["num_inference_steps"] for run in runs if "alone" in run.path.name
    ]
    assert alone == [8, 4, 1]
    assert set(world.steps) == {4, 1}, "each finalist is loaded with its own steps"
    assert world.loaded == [BASELINE, BASELINE, "bf16", "bf16", BASELINE]
    assert rows.loc["baseline in 8 steps", "error"] == (
        "not fewer steps: the baseline itself has 8 steps"
    )
    assert "left out: baseline in 8 steps" in capsys.readouterr().out
    exact = decide(frame, memory_limit_gib=4.0, exact_only=True)
    assert (exact.best, exact.runner_up) == ("baseline, serial", None)


def test_a_share_of_the_steps_says_where_all_of_them_are(world, tmp_path, capsys):
    try_all(world, tmp_path, (BASELINE, "baseline in 4 steps"), steps_share=1 / 8)
    said = "the baseline itself has 1 step, a share of the model's own; the profile full has all"
    assert said in capsys.readouterr().out


def test_fewer_steps_come_after_the_baseline(capsys):
    settings = settings_to_try("quick", "cpu", fewer_steps=[4, 1])
    assert settings[3:5] == [
        ("baseline in 4 steps", "continuous"),
        ("baseline in 1 step", "continuous"),
    ]
    assert "9 settings are tried" in capsys.readouterr().out


def test_a_setting_that_cannot_keep_up_is_loaded_less(world, tmp_path, capsys):
    world.capacities = {"bf16": 2.0}
    world.keeps_up_to = {"bf16": 1.0}
    frame, runs, _ = try_all(world, tmp_path, (BASELINE, "bf16"))
    assert [recipe for recipe, *_ in world.runs] == ["bf16", BASELINE] * 2
    assert "it can't keep up: the next run is at 0.8 images/s" in capsys.readouterr().out
    bf16 = frame.set_index("recipe").loc["bf16"]
    assert (bf16["runs"], bf16["confirming_images"], bf16["confirming_rate"]) == (1, 30, 0.8)
    assert len(runs) == 6, "the run that was too much is kept"


def test_a_setting_that_breaks_its_promise_in_every_run_is_not_recommended(world, tmp_path):
    world.capacities = {"bf16": 2.0}
    world.keeps_up_to = {"bf16": 0.1}
    frame, _, _ = try_all(world, tmp_path, (BASELINE, "bf16"))
    bf16 = frame.set_index("recipe").loc["bf16"]
    assert "came too late at 0.8 images/s, which was foretold to keep" in bf16["broken_promise"]
    assert not bf16["confirmed"]
    assert decide(frame, memory_limit_gib=4.0).best == "baseline, serial"


def test_what_is_ruled_out_is_not_confirmed(world, tmp_path):
    world.capacities = {"bf16": 2.0, "vae-tiling": 1.6, BASELINE: 1.1}
    recipes = (BASELINE, "bf16", "vae-tiling", "vae-slicing")
    try_all(world, tmp_path, recipes, exact_only=True, memory_limit_gib=1.8)
    assert {recipe for recipe, *_ in world.runs} == {BASELINE, "vae-slicing"}


def test_memory_is_the_peak_of_the_images_and_of_the_warm_up(world, tmp_path):
    frame, _, _ = try_all(world, tmp_path, (BASELINE, "bf16"))
    assert frame["memory_gib"].tolist() == [1.5, 2.0]


def test_where_memory_is_too_small_for_both_one_comes_after_the_other(
    world, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(measure_loaded, "available_memory_gib", lambda: 2.5)
    world.capacities = {"bf16": 1.2}
    frame, _, _ = try_all(world, tmp_path, (BASELINE, "bf16"))
    assert [recipe for recipe, *_ in world.runs] == ["bf16", "bf16", BASELINE, BASELINE]
    assert "memory is too small for both settings" in capsys.readouterr().out
    assert frame["confirmed"].all()


def test_an_interrupt_keeps_what_was_measured_and_still_answers(world, tmp_path, capsys):
    world.interrupted_by = "channels-last"
    frame, runs, _ = try_all(world, tmp_path, MANY)
    assert frame["error"].tolist() == [None] + [STOPPED] * 5
    assert len(runs) == 2
    assert runs[1].record["status"] == "interrupted"
    assert "channels-last: interrupted" in capsys.readouterr().out
    said = str(decide(frame, memory_limit_gib=4.0))
    assert said.startswith("Run baseline, serial: it should")
    assert "It is not confirmed under load: measuring was interrupted." in said
    assert "Not measured, as it was interrupted: " in said
    assert "time for it" not in said, "time was not the reason"


def test_an_interrupt_before_anything_was_measured_is_raised(world, tmp_path):
    world.interrupted_by = BASELINE
    with pytest.raises(KeyboardInterrupt, match="before the baseline was measured"):
        try_all(world, tmp_path, MANY)


def test_a_recipe_that_fails_leaves_the_others_measured(world, tmp_path):
    frame, _, _ = try_all(world, tmp_path, (BASELINE, "vae-bf16", "channels-last"))
    assert frame["error"].tolist() == [None, "RuntimeError: no such kernel", None]
    assert frame["capacity_images_per_s"].notna().tolist() == [True, False, True]


def test_all_prompts_are_for_what_changes_the_algorithm_and_a_budget_stops_early(world, tmp_path):
    prompts = [f"prompt {number}" for number in range(30)]
    recipes = (BASELINE, "channels-last", "vae-tiling")
    frame, _, _ = try_all(world, tmp_path, recipes, images=3, prompts=prompts)
    assert frame["picture_pairs"].tolist() == [30, 8, 30]
    assert frame["identical_pairs"].tolist() == [30, 8, 30]
    assert frame["pictures"].tolist() == ["same"] * 3
    frame, _, budget = try_all(world, tmp_path / "b", recipes, 5, images=3, prompts=prompts)
    # A thirtieth of 300 s are 10 s of the baseline's pictures, and a picture takes 0.5 s.
    assert frame["picture_pairs"].tolist() == [20, 8, 20]
    assert budget.used_s <= 330.0


def test_a_bad_promise_is_refused_before_anything_is_loaded(world, tmp_path):
    with pytest.raises(ValueError, match="slo: 'fast'"):
        try_all(world, tmp_path, MANY, slo="fast")
    with pytest.raises(ValueError, match=r"steps_share must be a share .*: 25 % is 0\.25"):
        try_all(world, tmp_path, MANY, steps_share=25)
    assert world.loaded == []


def test_one_model_at_a_time_is_in_memory(monkeypatch, tmp_path):
    load, loaded = loading.load_pipeline, []

    def watched(*arguments, **options):
        assert [one() for one in loaded] == [None] * len(loaded), "the one before is still there"
        pipe = load(*arguments, **options)
        loaded.append(weakref.ref(pipe.diffusers.unet))
        return pipe

    monkeypatch.setattr(loading, "load_pipeline", watched)
    monkeypatch.setattr(measure, "finalists", lambda *_: [])
    recipes = [BASELINE, "channels-last", "vae-slicing"]
    settings = [(recipe, "serial") for recipe in recipes]
    options = {"images": 1, "prompts": ["a chair"], "num_inference_steps": 1, "device": "cpu"}
    gc.disable()  # else it might come by in time by chance
    try:
        try_settings("tiny", settings, results=tmp_path, slo="p95 < 600 s", **options)
    finally:
        gc.enable()
    assert len(loaded) == 3
