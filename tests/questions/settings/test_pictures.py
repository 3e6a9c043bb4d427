"""Which pictures are taken for a setting, how many, and when it stops; without any model."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchlib import picture_prompts
from benchlib.questions.settings import comparing, pictures
from benchlib.questions.settings.learned_metrics import LearnedMetrics
from benchlib.questions.settings.pictures import own_prompts, pictures_needed, take_pictures
from benchlib.serving.schemas import GenerateRequest
from benchlib.study.picture_quality import PAIRS_NEEDED

PROMPTS = [f"prompt {number}" for number in range(20)]


class Camera:
    """Makes noise by the seed, in `took_s` by its own clock; `fault` may change the pixels."""

    def __init__(self, took_s=1.0, fault=lambda pixels, seed: pixels):  # noqa: ARG005
        self.took_s, self.fault, self.clock_s, self.made = took_s, fault, 0.0, []

    def __call__(self, prompt, seed):
        self.clock_s += self.took_s
        self.made.append((prompt, seed))
        pixels = np.random.default_rng(seed).integers(0, 256, (200, 240, 3), dtype=np.uint8)
        return Image.fromarray(self.fault(pixels, seed)), self.took_s


@pytest.fixture
def camera(monkeypatch):
    one = Camera()
    monkeypatch.setattr(pictures, "time", SimpleNamespace(monotonic=lambda: one.clock_s))
    return one


def test_our_own_prompts_are_64_different_ones_that_a_server_takes():
    prompts = own_prompts()
    assert len(set(prompts)) == len(prompts) == 64
    for prompt in prompts:
        assert GenerateRequest(prompt=prompt).prompt == prompt
        assert len(prompt.split()) < 20, "CLIP reads 77 tokens"


def test_quick_has_as_many_prompts_as_a_verdict_needs(tmp_path, capsys):
    assert picture_prompts() == own_prompts()
    assert "64 prompts show whether a setting changes the picture" in capsys.readouterr().out
    assert picture_prompts(profile="quick") == own_prompts()[:PAIRS_NEEDED]
    capsys.readouterr()
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa chair\n\n  une théière \n", encoding="utf-8")
    assert picture_prompts(path, profile="quick") == ("a chair", "une théière")
    assert "too few for a verdict on pictures: it needs 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"), [("\n \n", "there is no prompt in"), ("a\nb\na\n", "'a' is twice in")]
)
def test_a_bad_file_of_prompts_is_named(tmp_path, content, words):
    path = tmp_path / "prompts.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^prompts: .*{words}"):
        picture_prompts(path)


def test_an_exact_recipe_needs_few_pictures_and_another_all():
    assert pictures_needed(PROMPTS, exact=True) == PAIRS_NEEDED
    assert pictures_needed(PROMPTS, exact=False) == 20
    assert pictures_needed(PROMPTS[:3], exact=True) == 3


def test_equal_prompts_and_seeds_make_pairs(camera):
    baseline = take_pictures(camera, PROMPTS, timed=3)
    assert camera.made == [(prompt, number) for number, prompt in enumerate(PROMPTS, 1)]
    assert len(baseline.images) == len(baseline.pairs) == 20
    assert baseline.times_s == (1.0, 1.0, 1.0)
    assert all(pair.identical for pair in baseline.pairs)

    camera.fault = lambda pixels, seed: pixels // 2 if seed == 5 else pixels
    other = take_pictures(camera, PROMPTS, timed=3, baseline=baseline)
    assert [pair.seed for pair in other.pairs if not pair.identical] == [5]
    assert other.pairs[4].prompt == "prompt 4"
    assert other.images == ()
    assert other.pairs[4].picture.shape == (133, 160, 3)


def test_the_timed_images_are_made_before_any_is_compared(camera, monkeypatch):
    compared = []
    real = comparing.compare_pair

    def watched(*images, **fields):
        compared.append(len(camera.made))
        return real(*images, **fields)

    monkeypatch.setattr(comparing, "compare_pair", watched)
    take_pictures(camera, PROMPTS[:6], timed=4)
    assert compared == [4, 4, 4, 4, 6, 6]


def test_a_limit_stops_early_and_never_before_the_timed_images(camera):
    baseline = take_pictures(camera, PROMPTS, timed=3, limit_s=12.5)
    assert len(baseline.pairs) == 12
    other = take_pictures(camera, PROMPTS, timed=3, limit_s=9.0, baseline=baseline)
    assert len(other.pairs) == 9
    none_left = take_pictures(camera, PROMPTS, timed=3, limit_s=0.0, baseline=baseline)
    assert (len(none_left.pairs), len(none_left.times_s)) == (3, 3)
    endless = take_pictures(camera, PROMPTS, timed=3, baseline=baseline)
    assert len(endless.pairs) == 12, "the baseline has no more"


def test_comparing_takes_part_of_the_limit(camera, monkeypatch):
    def slow(reference, image, **fields):
        camera.clock_s += 2.0
        return real(reference, image, **fields)

    real = comparing.compare_pair
    monkeypatch.setattr(comparing, "compare_pair", slow)
    album = take_pictures(camera, PROMPTS, timed=2, limit_s=15.0)
    assert len(album.pairs) == 5
    assert camera.clock_s == 15.0


def test_more_images_may_be_timed_than_there_are_prompts(camera):
    album = take_pictures(camera, PROMPTS[:2], timed=5)
    asked, seeds = zip(*camera.made, strict=True)
    assert asked == ("prompt 0", "prompt 1", "prompt 0", "prompt 1", "prompt 0")
    assert seeds == (1, 2, 3, 4, 5)
    assert (len(album.times_s), len(album.pairs)) == (5, 2)


def test_learned_metrics_compare_what_differs(camera):
    baseline = take_pictures(camera, PROMPTS[:2], timed=1)
    camera.fault = lambda pixels, seed: pixels // 2 if seed == 2 else pixels
    learned = LearnedMetrics(
        lpips=lambda before, after: float(before.mean() - after.mean()),
        clip_score=lambda image, prompt: float(image.mean()) + len(prompt),
        left_out=(),
    )
    same, other = take_pictures(
        camera, PROMPTS[:2], timed=1, baseline=baseline, learned=learned
    ).pairs
    assert (same.lpips, same.clip_change) == (0.0, 0.0)
    assert other.lpips == pytest.approx(64, abs=1)
    assert other.clip_change == pytest.approx(-64, abs=1)
