"""Loads and images beside another thread's loads, and what a load says of traces in the process."""

import threading

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import StableDiffusionXLPipeline

from benchlib.serving.model import loading, whole_process
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.torch_thread import on_torch_thread

from .small_models import load, our_pixels, small_pipeline

load_model = loading.load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("small") / "small"
    small_pipeline().save_pretrained(made)
    return made


@pytest.mark.parametrize("sampler", [None, "euler-a", "dpmpp-2m-sde", "lcm", "unipc"])
def test_an_image_is_the_same_while_torchs_default_dtype_is_another(folder, sampler):
    """As while a user's thread loads a model in 16 bits: the default is that of all threads."""
    changes = {"scheduler": sampler, "guidance_scale": 7.3, "num_inference_steps": 4}
    wanted = our_pixels(load(folder), **changes)
    pipe = load(folder)
    torch.set_default_dtype(torch.float16)
    try:
        pixels = our_pixels(pipe, **changes)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(pixels, wanted)


def test_our_loads_and_anothers_leave_each_other_alone(folder):
    register = torch.nn.Module.register_parameter
    wanted = our_pixels(load(folder))
    stopped = threading.Event()
    theirs = []

    def load_often():
        while not stopped.is_set():
            theirs.append(StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.bfloat16))

    user = threading.Thread(target=load_often)
    user.start()
    try:
        for _ in range(4):
            pipe = load(folder)
            np.testing.assert_array_equal(our_pixels(pipe), wanted)
            pipe.close()
    finally:
        stopped.set()
        user.join()
    assert len(theirs) > 1
    assert {theirs[-1].unet.dtype, theirs[-1].text_encoder.dtype} == {torch.bfloat16}
    assert torch.nn.Module.register_parameter is register
    assert torch.get_default_dtype() == torch.float32


def test_a_load_alone_leaves_the_process_whole():
    load_pipeline("tiny", device="cpu").close()  # a warning would be an error
    assert on_torch_thread(torch.get_default_dtype) == torch.float32
    assert not torch.nn.Linear(1, 1).weight.is_meta


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(whole_process, "SETTLE_S", 0.1)


def test_a_change_that_a_load_beside_puts_right_is_not_told():
    """Its thread is still loading when our load ends."""
    with whole_process.warned_of_traces():
        torch.set_default_dtype(torch.float16)
        threading.Timer(0.1, torch.set_default_dtype, [torch.float32]).start()
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.usefixtures("impatient")
def test_a_default_dtype_that_was_left_is_told(monkeypatch):
    def load(*arguments, **options):
        loaded = load_model(*arguments, **options)
        torch.set_default_dtype(torch.float16)
        return loaded

    monkeypatch.setattr(loading, "load_model", load)
    try:
        with pytest.warns(
            RuntimeWarning, match=r"is torch.float16, and it was torch.float32.*set_"
        ):
            load_pipeline("tiny", device="cpu").close()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("impatient")
def test_modules_that_get_no_memory_any_more_are_told(monkeypatch):
    patched = init_empty_weights()

    def load(*arguments, **options):
        loaded = load_model(*arguments, **options)
        patched.__enter__()
        return loaded

    monkeypatch.setattr(loading, "load_model", load)
    try:
        with pytest.warns(RuntimeWarning, match="makes new modules without memory"):
            load_pipeline("tiny", device="cpu").close()
    finally:
        patched.__exit__(None, None, None)


@pytest.mark.usefixtures("impatient")
def test_a_lora_that_lost_its_numbers_is_told():
    """peft's layers are torch's modules, and another load has patched those."""
    patched = init_empty_weights()
    patched.__enter__()
    try:
        with (
            pytest.warns(RuntimeWarning, match="makes new modules without memory"),
            pytest.raises(ModelError, match=r"^loras: a: .* without its numbers, as if another"),
        ):
            load_pipeline("tiny", device="cpu", torch_threads=1, loras={"a": "random"})
    finally:
        patched.__exit__(None, None, None)
