"""PSNR and SSIM against values worked out by hand."""

import math

import numpy as np
import pytest

from benchlib.study.likeness import psnr_db, ssim


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
    for measure in (psnr_db, ssim):
        with pytest.raises(ValueError, match=words):
            measure(a, b)


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match="10x10 pixels are too few"):
        ssim(flat(0, side=10), flat(0, side=10))
