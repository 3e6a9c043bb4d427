"""NaN and infinite numbers: in weights they are refused at load, in an image they are found."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from benchlib.serving.model.finite import places_not_finite, sums_of
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.torch_thread import on_torch_thread

from .small_models import load, request, save, small_pipeline


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "whole"
    small_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "changed")


def change_weights(folder, network, value):
    """Set a number of the network's last weights; returns their name."""
    [path] = (folder / network).glob("*.safetensors")
    weights = load_file(path)
    last = next(key for key in reversed(weights) if key.endswith("weight"))
    weights[last].view(-1)[-1] = value
    save(weights, path, metadata={"format": "pt"})
    return last


@pytest.mark.parametrize("network", ["unet", "vae", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(folder, network, value):
    name = change_weights(folder, network, value)
    with pytest.raises(ModelError, match=f"its {network} has weights .* in float32 ") as raised:
        load(folder)
    assert name in str(raised.value)


def test_weights_that_are_too_large_for_the_dtype_are_refused_in_it_alone(folder):
    change_weights(folder, "unet", 1e6)
    assert load(folder, dtype="bfloat16")
    with pytest.raises(
        ModelError, match="its unet has weights that are NaN or infinite in float16"
    ):
        load(folder, dtype="float16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_image_is_told_apart(dtype):
    latents = torch.full((4, 4, 8, 8), 60.0, dtype=dtype)
    pixels = torch.ones(4, 3, 256, 256, dtype=dtype)
    latents[1, 2, 3, 4] = math.nan
    pixels[1] = math.nan
    pixels[2, 0, 5, 6] = -math.inf
    pixels[2, 0, 6, 6] = math.inf
    found = places_not_finite(sums_of(latents, pixels).tolist())
    assert found == [None, "latents", "pixels", None], "a large sum is finite, too"


def test_decoding_marks_the_image_that_has_no_meaning(tiny):
    def make():
        works = tiny.encode([request(seed=seed) for seed in range(3)])
        while not works[0].finished:
            tiny.step(works)
        works[1].latents = works[1].latents * math.nan
        tiny.decode(works)
        return works

    works = on_torch_thread(make)
    assert [work.not_finite for work in works] == [None, "latents", None]
