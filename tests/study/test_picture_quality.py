"""The verdict on pictures, on planted differences whose answer is known."""

import math

import numpy as np
import pytest

from benchlib.study.picture_quality import (
    PAIRS_NEEDED,
    Pair,
    compare_pair,
    judge_pictures,
    picture_columns,
)

SIDE = 64


def scene(number):
    """A picture with gradients, edges and some grain, another for each number."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = random.uniform(3, 12, 3)
    colours = [0.5 + 0.3 * np.sin(wave * x + number) * np.cos(wave * y) for wave in waves]
    picture = np.stack(colours, axis=-1)
    top, left = random.integers(8, 32, 2)
    picture[top : top + 16, left : left + 20] = random.uniform(0.1, 0.9, 3)
    picture += random.normal(0, 0.03, picture.shape)
    return (255 * np.clip(picture, 0, 1)).round().astype(np.uint8)


def noisy(picture, levels, seed=0):
    noise = np.random.default_rng(seed).normal(0, levels, picture.shape)
    return np.clip(picture + noise.round(), 0, 255).astype(np.uint8)


def judged(change, pairs=16):
    """The quality of scenes that `change(picture, number)` made anew."""
    made = []
    for number in range(pairs):
        picture = scene(number)
        image = change(picture, number)
        made.append(compare_pair(picture, image, prompt=f"scene {number}", seed=number))
    return judge_pictures(made)


def test_equal_pictures_are_the_same():
    quality = judged(lambda picture, _: picture.copy())
    assert (quality.verdict, quality.identical, quality.worst) == ("same", 16, None)
    assert str(quality) == "same: 16 of 16 pairs identical"
    assert quality.means["psnr_db"] == math.inf
    assert quality.intervals["psnr_db"] is None
    assert (quality.means["ssim"], quality.intervals["flip"]) == (1.0, (0.0, 0.0))


def test_more_noise_is_farther_away_in_every_metric_and_changes_the_verdict():
    levels = (0.5, 1, 2, 5, 10, 30)
    found = [judged(lambda picture, number, of=of: noisy(picture, of, number), 8) for of in levels]
    for metric, sign in (("psnr_db", -1), ("ssim", -1), ("flip", 1)):
        means = [sign * quality.means[metric] for quality in found]
        assert means == sorted(means), metric
    verdicts = [quality.verdict for quality in found]
    assert verdicts[:2] == ["indistinguishable"] * 2
    assert verdicts[-3:] == ["changed"] * 3
    assert "SSIM 0.99" in str(found[0])
    assert "within the limits of SSIM and FLIP" in found[0].reason


def test_a_shifted_picture_is_changed():
    quality = judged(lambda picture, _: np.roll(picture, 2, axis=1))
    assert quality.verdict == "changed"
    assert quality.reason.startswith("visibly different: 16 of 16 pairs")


def test_a_tint_that_ssim_hardly_sees_is_changed_by_flip():
    def tinted(picture, _):
        warmer = picture // 2 + np.array([100, 90, 70])
        return warmer.astype(np.uint8)

    made = []
    for number in range(16):
        picture = scene(number) // 2 + 90
        image = tinted(scene(number), number)
        made.append(compare_pair(picture, image, prompt="a tint", seed=number))
    quality = judge_pictures(made)
    assert quality.intervals["ssim"][0] > 0.99
    assert quality.intervals["flip"][0] > 0.103
    assert quality.verdict == "changed"


def test_one_prompt_of_many_that_breaks_is_named():
    def one_breaks(picture, number):
        return scene(999) if number == 41 else picture.copy()

    quality = judged(one_breaks, pairs=64)
    assert (quality.verdict, quality.identical, quality.worst.seed) == ("changed", 63, 41)
    assert quality.reason == "visibly different: 1 of 64 pairs, most 'scene 41'"
    low, high = quality.intervals["ssim"]
    assert low < quality.means["ssim"] < high


def pair(ssim=1.0, flip=0.0, **changes):
    fields = {"prompt": "a chair", "seed": 1, "identical": False, "psnr_db": 50.0}
    return Pair(**fields | {"ssim": ssim, "flip": flip} | changes)


def test_the_limits_of_the_mean_and_of_one_pair():
    def verdict(pairs):
        return judge_pictures(pairs).verdict

    assert verdict([pair(0.991, 0.102)] * 8) == "indistinguishable"
    assert verdict([pair(0.989, 0.0)] * 8) == "changed"
    assert verdict([pair(1.0, 0.104)] * 8) == "changed"
    assert verdict([pair(0.999, 0.0)] * 63 + [pair(0.949, 0.0)]) == "changed"
    assert verdict([pair(0.999, 0.0)] * 63 + [pair(0.951, 0.0)]) == "indistinguishable"
    assert verdict([pair(1.0, 0.01)] * 63 + [pair(1.0, 0.139)]) == "changed"


def test_an_interval_around_its_limit_shows_nothing():
    quality = judge_pictures([pair(0.96), *[pair(0.999)] * 7])
    low, high = quality.intervals["ssim"]
    assert low < 0.99 < high
    assert quality.verdict == "not shown"
    assert "the interval of SSIM holds its limit, so add prompts" in quality.reason


def test_too_few_pairs_have_no_verdict_and_no_interval():
    few = judge_pictures([pair(0.2, 0.9)] * (PAIRS_NEEDED - 1))
    assert (few.verdict, few.reason) == ("not shown", "7 pairs; a verdict needs 8")
    assert (few.means["ssim"], few.intervals["ssim"]) == (pytest.approx(0.2), None)


def test_psnr_is_of_the_pairs_that_differ():
    same = pair(identical=True, psnr_db=math.inf)
    quality = judge_pictures([same] * 6 + [pair(0.999, psnr_db=40.0)] * 10)
    assert quality.means["psnr_db"] == 40.0
    assert quality.intervals["psnr_db"] == (40.0, 40.0)
    assert quality.identical == 6
    assert "6 of 16 pairs identical" in str(quality)
    assert "PSNR 40 dB (40 to 40)" in str(quality)
    few = judge_pictures([same] * 12 + [pair(0.999, psnr_db=40.0)] * 4)
    assert (few.means["psnr_db"], few.intervals["psnr_db"]) == (40.0, None)


def test_without_flip_nothing_is_called_indistinguishable(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # noqa: ARG005
    quality = judged(lambda picture, number: noisy(picture, 1, number), 8)
    assert (quality.verdict, quality.means["flip"]) == ("not shown", None)
    assert "pip install flip-evaluator" in quality.reason
    assert judged(lambda picture, _: np.roll(picture, 2, axis=1), 8).verdict == "changed"
    assert judged(lambda picture, _: picture.copy(), 8).verdict == "same"


def test_learned_metrics_are_summed_up_where_they_are_known():
    quality = judge_pictures([pair(0.999, lpips=0.01, clip_change=-0.2)] * 8)
    assert quality.means["lpips"] == pytest.approx(0.01)
    assert quality.intervals["clip_change"] == pytest.approx((-0.2, -0.2))
    assert judge_pictures([pair(0.999)] * 8).means["lpips"] is None


def test_the_columns_of_a_row():
    columns = picture_columns([pair(0.999, 0.01)] * 8)
    assert columns["pictures"] == "indistinguishable"
    assert (columns["picture_pairs"], columns["identical_pairs"]) == (8, 0)
    assert columns["flip_interval"] == (0.01, 0.01)
    assert len(columns["pairs"]) == 8
    nothing = picture_columns(None)
    assert nothing.keys() == columns.keys()
    assert set(nothing.values()) == {None}
