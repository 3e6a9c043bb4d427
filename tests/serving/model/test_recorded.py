"""Recordings on the CPU: a replay reads the same tensors, and overwrites the same answers."""

import copy
import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils import _pytree

from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.recipes import RECIPES
from benchlib.serving.model.recorded import RecordedEncoder, RecordedUNet
from benchlib.serving.schemas import GenerateRequest

from .small_models import small_pipeline


class Replayer:
    """Records the call in place of CUDA's launches.

    As CUDA's graphs that share their memory, a replay spoils the answers of the others. Only those
    of the recording right before it last: they were still in use when it was made.
    """

    def __init__(self):
        self.latest = None
        self.answers = []
        self.replays = []

    def record(self, call):
        answer = call()
        tensors = [tensor for tensor in _pytree.tree_leaves(answer) if torch.is_tensor(tensor)]
        number = len(self.answers)
        self.answers.append(tensors)
        self.replays.append(0)

        def replay():
            for other, spoiled in enumerate(self.answers):
                if other not in (number - 1, number):
                    for tensor in spoiled:
                        tensor.fill_(torch.nan)
            self.replays[number] += 1
            new = _pytree.tree_leaves(call())
            for place, tensor in zip(tensors, new, strict=True):
                place.copy_(tensor)

        for tensor in tensors:
            tensor.fill_(torch.nan)
        return SimpleNamespace(replay=replay), answer


def request(**changes):
    usual = {
        "prompt": "a lighthouse",
        "num_inference_steps": 4,
        "width": 64,
        "height": 64,
        "seed": 1,
    }
    return GenerateRequest(**usual | changes)


def pixels(pipe, *requests):
    return np.stack([np.asarray(image) for image in pipe.generate(list(requests)).images])


def recorded(pipe):
    other = copy.copy(pipe)
    other._unet = RecordedUNet(pipe._unet, Replayer())
    return other


def with_recorded_encoders(pipe, recorder):
    other = copy.copy(pipe)
    other.adapters = copy.copy(pipe.adapters)
    other.adapters.pipe = copy.copy(pipe.adapters.pipe)
    other.adapters.record_texts(recorder)
    return other


@pytest.mark.parametrize("recipe", ["baseline", "text-once"])
def test_a_recording_is_replayed_for_each_input_of_its_shape(tiny, recipe):
    pipe = recorded(load_pipeline("tiny", device="cpu", recipe=recipe))
    first = [request(seed=1), request(seed=2, prompt="a harbour")]
    second = [request(seed=3, guidance_scale=1.0, width=128)]
    third = [request(seed=4, prompt="a forest"), request(seed=5)]
    for batch in (first, second, first[::-1], third, second):
        assert (pixels(pipe, *batch) == pixels(tiny, *batch)).all()
    assert len(pipe._unet._recorded) == 2


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_a_scheduler_may_keep_an_answer_that_the_next_call_overwrites(tiny, guidance_scale):
    """Without guidance PNDM gets the UNet's own answer, and reads it again in later steps."""
    asked = request(scheduler="pndm", guidance_scale=guidance_scale, num_inference_steps=6)
    assert (pixels(recorded(tiny), asked) == pixels(tiny, asked)).all()


def test_what_a_batch_needs_once_is_replayed_once():
    pipe = recorded(load_pipeline("tiny", device="cpu", recipe="text-once"))
    pixels(pipe, request())
    pixels(pipe, request(prompt="another"))
    conditions, step = pipe._unet._recorder.replays
    assert (conditions, step) == (2, 8)


def test_another_shape_in_between_makes_it_new(tiny):
    pipe = recorded(load_pipeline("tiny", device="cpu", recipe="text-once"))

    def in_turn(of):
        one, two = of.encode([request()]), of.encode([request(width=128, prompt="a lake")])
        for _ in range(4):
            of.step(one)
            of.step(two)
        return [np.asarray(of.decode(works)[0]) for works in (one, two)]

    for found, expected in zip(in_turn(pipe), in_turn(tiny), strict=True):
        assert (found == expected).all()


def test_a_recording_reads_the_guidance_of_an_lcm(tmp_path):
    small_pipeline(unet={"time_cond_proj_dim": 16}).save_pretrained(tmp_path / "lcm")
    lcm = load_pipeline(str(tmp_path / "lcm"), device="cpu", torch_threads=1)
    pipe = recorded(lcm)
    assert lcm.spec["guided_rows"] == 1
    for scale in (1.0, 8.0, 1.0):
        asked = request(guidance_scale=scale)
        assert (pixels(pipe, asked) == pixels(lcm, asked)).all()
    assert len(pipe._unet._recorded) == 1


def test_recorded_encoders_give_the_bits_of_a_text_by_itself(tiny):
    pipe = with_recorded_encoders(tiny, Replayer())
    for batch in ([request(negative_prompt="rain")], [request(), request(prompt="a harbour")]):
        works, alone = pipe.encode(batch), [tiny.encode([one])[0] for one in batch]
        for work, expected in zip(works, alone, strict=True):
            assert torch.equal(work.text, expected.text)
            assert torch.equal(work.pooled, expected.pooled)


@pytest.mark.parametrize("recipe", ["baseline", "text-once"])
def test_prompts_between_the_steps_change_nothing_though_all_share_their_memory(tiny, recipe):
    pipe = recorded(load_pipeline("tiny", device="cpu", recipe=recipe))
    pipe = with_recorded_encoders(pipe, pipe._unet._recorder)
    asked = [request(negative_prompt="rain")]
    works = pipe.encode(asked)
    for prompt in ("a lake", "a bridge", "a lake", "a bridge"):
        pipe.step(works)
        pipe.encode([request(prompt=prompt)])
    assert (np.asarray(pipe.decode(works)[0]) == pixels(tiny, *asked)[0]).all()


class FakeGraphs:
    """CUDA's graphs in place of torch's. They note which pool each one was given."""

    def __init__(self):
        self.given = []

    def CUDAGraph(self):  # noqa: N802 - torch's name
        return SimpleNamespace(pool=lambda: "the first one's pool", replay=lambda: None)

    @contextmanager
    def graph(self, graph, *, pool, capture_error_mode):  # noqa: ARG002
        self.given.append(pool)
        yield


def test_a_pipeline_has_one_pool_and_no_stream_for_all_of_its_graphs(monkeypatch):
    fakes = FakeGraphs()
    for name in ("CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(fakes, name))
    monkeypatch.setattr(torch.cuda, "Stream", None)  # each would keep 33 MiB
    for name in ("text-graphs", "cuda-graphs"):
        everywhere = dataclasses.replace(RECIPES[name], why_not=lambda *_: None)
        monkeypatch.setitem(RECIPES, name, everywhere)
    pipe = load_pipeline("tiny", device="cpu", recipe="text-once+text-graphs+cuda-graphs")
    pixels(pipe, request())
    pixels(pipe, request(width=128))
    # Two encoders; for each of two shapes, what a batch needs once and a step
    assert fakes.given == [None] + ["the first one's pool"] * 5


def test_an_encoder_that_an_adapter_changes_is_not_recorded():
    adapters = load_pipeline("tiny", device="cpu", loras={"style": "random"}).adapters
    changed = [one.network for one in adapters._networks]
    encoders = {name: getattr(adapters.pipe, name) for name in ("text_encoder", "text_encoder_2")}
    adapters.record_texts(Replayer())
    for name, encoder in encoders.items():
        is_recorded = isinstance(getattr(adapters.pipe, name), RecordedEncoder)
        assert is_recorded == (encoder not in changed), name
