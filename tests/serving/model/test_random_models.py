"""Random models: their layout is made without memory, and no other thread's modules are touched."""

import threading

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from benchlib.serving.model.random_models import TINY, with_random_weights

CPU = torch.device("cpu")


def test_a_module_that_another_thread_makes_meanwhile_is_real():
    made = []

    def build():
        network = torch.nn.Linear(3, 2)
        assert network.weight.is_meta
        other = threading.Thread(target=lambda: made.append(torch.nn.Linear(3, 2)))
        other.start()
        other.join()
        return network

    network = with_random_weights(build, "key", CPU, torch.float16)
    assert (network.weight.device, network.weight.dtype) == (CPU, torch.float16)
    [theirs] = made
    assert (theirs.weight.device, theirs.weight.dtype) == (CPU, torch.float32)
    assert theirs.weight.abs().sum() > 0


def test_the_numbers_of_clips_positions_are_its_own():
    config = CLIPTextConfig(**TINY["text_encoder"])
    network = with_random_weights(lambda: CLIPTextModel(config), "key", CPU, torch.float32)
    mine = dict(network.named_buffers())
    for name, buffer in CLIPTextModel(config).named_buffers():
        assert torch.equal(mine[name], buffer)
        assert mine[name].dtype == buffer.dtype
    assert network.state_dict().keys() == CLIPTextModel(config).state_dict().keys()
