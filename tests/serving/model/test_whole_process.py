"""What a load says if it, or another thread's load beside it, left traces in the process."""

import pytest
import torch
from accelerate import init_empty_weights

from benchlib.serving.model import loading
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.torch_thread import on_torch_thread

load_model = loading.load_model


def test_a_load_alone_leaves_the_process_whole():
    load_pipeline("tiny", device="cpu").close()  # a warning would be an error
    assert on_torch_thread(torch.get_default_dtype) == torch.float32
    assert not torch.nn.Linear(1, 1).weight.is_meta


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
