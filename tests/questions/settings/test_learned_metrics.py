"""The CLIP score by small random weights in a made-up cache, and what is said of missing ones."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from benchlib.questions.settings.learned_metrics import CLIP, find_learned_metrics

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of CLIP in an empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path / f"models--{CLIP.replace('/', '--')}"


def fill(cache, tiny):
    """Puts a CLIP of 16 channels there, as after a download."""
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    folder = cache / "snapshots" / ("0" * 40)
    layers = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = layers | {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513}
    vision = layers | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    tiny.diffusers.tokenizer.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": side,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.mark.usefixtures("cache")
def test_what_is_not_there_is_left_out_in_words_and_never_downloaded():
    metrics = find_learned_metrics()
    assert metrics.clip_score is None
    (words,) = [words for words in metrics.left_out if "CLIP" in words]
    assert words == (
        f"the CLIP score is left out, as {CLIP} is not in the hub's cache: hf download {CLIP}"
    )


def test_the_clip_score_is_of_an_image_and_its_prompt(cache, tiny):
    fill(cache, tiny)
    metrics = find_learned_metrics()
    assert not [words for words in metrics.left_out if "CLIP" in words]
    scores = [metrics.clip_score(IMAGE, prompt) for prompt in ("a chair", "a house", "x" * 500)]
    assert len({*scores}) == 3
    assert all(-100 <= score <= 100 for score in scores)
    assert metrics.clip_score(IMAGE, "a chair") == scores[0]
    assert metrics.clip_score(255 - IMAGE, "a chair") != scores[0]


def test_a_download_that_broke_off_is_left_out(cache, tiny):
    folder = fill(cache, tiny)
    (folder / "model.safetensors").unlink()
    metrics = find_learned_metrics()
    assert metrics.clip_score is None
    assert any("is not in the hub's cache" in words for words in metrics.left_out)


@pytest.mark.parametrize("missing", ["torchmetrics", "torchvision"])
@pytest.mark.usefixtures("cache")
def test_lpips_without_its_packages_says_what_to_install(monkeypatch, missing):
    def found(name):
        return None if name == missing else object()

    monkeypatch.setattr("importlib.util.find_spec", found)
    metrics = find_learned_metrics()
    assert metrics.lpips is None
    assert f"LPIPS is left out, as {missing} is not installed: pip install" in metrics.left_out[0]
