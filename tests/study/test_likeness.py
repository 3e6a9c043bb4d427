"""PSNR, SSIM and FLIP against values worked out by hand."""

import math

import numpy as np
import pytest

from benchlib.study.likeness import flip, psnr_db, ssim, why_no_flip


def flat(level, side=16, dtype=np.uint8):
    return np.full((side, side, 3), level, dtype=dtype)


NOISE = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def test_equal_images_are_as_near_as_can_be():
    assert psnr_db(NOISE, NOISE) == math.inf
    assert ssim(NOISE, NOISE) == pytest.approx(1.0)


def test_one_level_off_everywhere_is_48_db():
    # The mean squared error is 1: 10 log10(255**2 / 1) = 48.1308.
    assert psnr_db(flat(100), flat(101)) == pytest.approx(48.1308, abs=1e-4)
    assert psnr_db(flat(0), flat(255)) == 0.0
    assert psnr_db(flat(0.5, dtype=float), flat(0.6, dtype=float)) == pytest.approx(20.0)


def test_no_wrap_around_below_zero():
    assert (
        psnr_db(flat(0), flat(1)) == psnr_db(flat(1), flat(0)) == pytest.approx(48.1308, abs=1e-4)
    )


def test_flat_images_differ_in_luminance_alone():
    # (2 x 0.2 x 0.4 + 0.0001) / (0.04 + 0.16 + 0.0001), the rest is C2 / C2.
    expected = 0.1601 / 0.2001
    assert ssim(flat(0.2, dtype=float), flat(0.4, dtype=float)) == pytest.approx(expected)
    assert ssim(flat(51), flat(102)) == pytest.approx(expected)


def test_one_window_worked_out_by_hand():
    # 11 x 11 pixels hold one window: its weighted moments, summed in plain loops.
    a, b = NOISE[:11, :11] / 255, NOISE[20:31, 10:21] / 255
    weight = {
        (y, x): math.exp(-((y - 5) ** 2 + (x - 5) ** 2) / 4.5) for y in range(11) for x in range(11)
    }
    total, found = sum(weight.values()), []
    for c in range(3):

        def mean(values, c=c):
            return sum(w * values(y, x, c) for (y, x), w in weight.items()) / total

        ma, mb = mean(lambda *i: a[i]), mean(lambda *i: b[i])
        va, vb = mean(lambda *i: a[i] ** 2) - ma**2, mean(lambda *i: b[i] ** 2) - mb**2
        cov = mean(lambda *i: a[i] * b[i]) - ma * mb
        c1, c2 = 1e-4, 9e-4
        found.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    assert ssim(a, b) == pytest.approx(sum(found) / 3, abs=1e-12)


def test_a_negative_image_is_unlike():
    assert ssim(NOISE, 255 - NOISE) < -0.5
    noisy = np.clip(NOISE + np.random.default_rng(2).normal(0, 20, NOISE.shape), 0, 255).astype(
        np.uint8
    )
    assert 0.8 < ssim(NOISE, noisy) < 1
    assert ssim(NOISE, noisy) == pytest.approx(ssim(noisy, NOISE))


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (flat(0)[..., 0], flat(0), r"a: its shape is \(16, 16\)"),
        (flat(0), flat(0)[..., :1], r"b: its shape is \(16, 16, 1\)"),
        (flat(0), flat(0, side=17), "two of one size"),
        (flat(0), flat(0, dtype=float), "two of one size and kind"),
        (flat(2, dtype=float), flat(0, dtype=float), r"must lie in \[0, 1\]"),
        (flat(np.nan, dtype=float), flat(0, dtype=float), r"must lie in \[0, 1\]"),
    ],
)
def test_what_is_no_pair_of_images_is_refused(a, b, words):
    for measure in (psnr_db, ssim, flip):
        with pytest.raises(ValueError, match=words):
            measure(a, b)


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match="10x10 pixels are too few"):
        ssim(flat(0, side=10), flat(0, side=10))


def of_lightness(level):
    """CIELAB's lightness of a grey level, from the definitions of sRGB and CIE 1976."""
    share = level / 255
    linear = share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
    return 116 * linear ** (1 / 3) - 16


@pytest.mark.parametrize(("a", "b"), [(100, 101), (128, 130), (118, 124), (200, 205)])
def test_flip_of_an_even_change_of_lightness_worked_out_by_hand(a, b):
    # Without edges, FLIP is 0.95 (d / 0.4 dmax)**0.7 in its lower part; dmax is from green to blue.
    # 203.3 is that distance in its own colour space: 55.4 of lightness and 147.9 of hue.
    change = abs(of_lightness(b) - of_lightness(a))
    expected = 0.95 * change**0.7 / (0.4 * 203.3**0.7)
    assert flip(flat(a, side=64), flat(b, side=64)) == pytest.approx(expected, rel=1e-3)


def test_the_limits_of_flip_are_two_point_three_and_three_and_a_half_units_of_lightness():
    for change, limit in ((2.3, 0.103), (3.5, 0.138)):
        assert 0.95 * change**0.7 / (0.4 * 203.3**0.7) == pytest.approx(limit, abs=6e-4)


def test_flip_is_0_of_equal_images_and_grows_with_noise(capfd):
    assert flip(NOISE, NOISE) == 0.0
    noise = np.random.default_rng(3)
    found = []
    for levels in (1, 5, 20):
        noisy = np.clip(NOISE + noise.normal(0, levels, NOISE.shape), 0, 255).astype(np.uint8)
        found.append(flip(NOISE, noisy))
    assert 0 < found[0] < found[1] < found[2] < 1
    assert flip(NOISE / 255, NOISE / 255) == 0.0
    assert capfd.readouterr() == ("", "")


def test_flip_that_is_not_installed_says_what_to_install(monkeypatch):
    assert why_no_flip() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # noqa: ARG005
    assert "pip install flip-evaluator" in why_no_flip()
