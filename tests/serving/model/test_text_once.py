"""Texts that are read once a batch: the image keeps its bits, whoever shares the batch."""

import copy

import numpy as np
import pytest
import torch

from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.text_once import TextOnce, read_texts_once
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest

from .small_models import small_pipeline


def request(**changes):
    usual = {
        "prompt": "a lighthouse",
        "num_inference_steps": 3,
        "width": 64,
        "height": 64,
        "seed": 1,
    }
    return GenerateRequest(**usual | changes)


def pixels(pipe, *requests):
    return np.stack([np.asarray(image) for image in pipe.generate(list(requests)).images])


@pytest.fixture(scope="module")
def once():
    return load_pipeline("tiny", device="cpu", recipe="text-once")


def count_projections(pipe):
    """Counts the products of the first cross-attention's keys, as `calls` of the answer."""
    (first, *_) = [
        module for name, module in pipe._unet.named_modules() if name.endswith("attn2.to_k")
    ]
    calls = []
    first.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    "batch",
    [
        [request()],
        [request(guidance_scale=1.0)],
        [request(negative_prompt="rain"), request(seed=2, prompt="a harbour", guidance_scale=1.0)],
        [request(seed=seed, prompt=f"house {seed}") for seed in range(3)],
    ],
    ids=["guided", "unguided", "mixed", "three"],
)
def test_images_keep_their_bits(tiny, once, batch):
    assert (pixels(once, *batch) == pixels(tiny, *batch)).all()


def test_a_text_is_projected_once_for_a_batch():
    pipe = load_pipeline("tiny", device="cpu", recipe="text-once")
    calls = count_projections(pipe)
    pixels(pipe, request(num_inference_steps=6))
    assert len(calls) == 1
    pixels(pipe, request(prompt="another"))
    assert len(calls) == 2


def test_each_request_of_a_busy_server_gets_its_own_text(tiny):
    """Newcomers join between steps, and every batch has other texts."""
    pipe = load_pipeline("tiny", device="cpu", recipe="text-once")
    asked = [
        request(
            prompt=f"house {n}", seed=n, num_inference_steps=2 + n, guidance_scale=5.0 * (n % 2)
        )
        for n in range(5)
    ]
    engine = Engine(pipe, EngineOptions(max_batch_size=4, sizes=[(64, 64)]))
    plain = Engine(tiny, EngineOptions(max_batch_size=4, sizes=[(64, 64)]))
    found = []
    for one in (engine, plain):
        one.start()
        assert one.settled.wait(120)
        jobs = [one.submit(job) for job in asked]
        found.append([np.asarray(job.future.result(60)).astype(int) for job in jobs])
        one.stop()
    for mine, theirs in zip(*found, strict=True):
        assert abs(mine - theirs).max() <= 1, (
            "batches may differ in their rows, and so in a rounding"
        )


def test_two_batches_in_turn_keep_their_texts(once, tiny):
    def in_turn(pipe):
        one, two = (pipe.encode([request(prompt=text)]) for text in ("a tower", "a lake"))
        for _ in range(3):
            pipe.step(one)
            pipe.step(two)
        return torch.cat([one[0].latents, two[0].latents])

    assert torch.equal(on_torch_thread(in_turn, once), on_torch_thread(in_turn, tiny))


def test_an_adapter_changes_the_keys_and_values():
    pipes = [
        load_pipeline("tiny", device="cpu", recipe=recipe, loras={"style": "random"})
        for recipe in ("baseline", "text-once")
    ]
    for lora in (None, "style", "style:0.5", None):
        plain, read_once = (pixels(pipe, request(lora=lora)) for pipe in pipes)
        assert (plain == read_once).all(), lora
    assert (pixels(pipes[1], request(lora="style")) != pixels(pipes[1], request())).any()


@pytest.mark.parametrize("recipe", ["fused-qkv", "channels-last", "bf16+channels-last+fused-qkv"])
def test_it_keeps_the_bits_of_other_recipes(recipe):
    plain = load_pipeline("tiny", device="cpu", recipe=recipe)
    read_once = load_pipeline("tiny", device="cpu", recipe=f"{recipe}+text-once")
    assert isinstance(read_once._unet, TextOnce)
    pair = [request(), request(seed=2, prompt="a harbour")]
    assert (pixels(plain, *pair) == pixels(read_once, *pair)).all()


def test_the_stock_pipeline_is_left_as_it_was(tiny, once):
    asked = {"num_inference_steps": 2, "width": 64, "height": 64, "output_type": "np"}
    images = [
        pipe.diffusers("a", **asked, generator=torch.Generator().manual_seed(1)).images
        for pipe in (tiny, once)
    ]
    assert (images[0] == images[1]).all()


def test_a_unet_that_reads_the_guidance_reads_it_still(tmp_path):
    small_pipeline(unet={"time_cond_proj_dim": 16}).save_pretrained(tmp_path / "lcm")
    pipes = [
        load_pipeline(str(tmp_path / "lcm"), device="cpu", torch_threads=1, recipe=recipe)
        for recipe in ("baseline", "text-once")
    ]
    for scale in (1.0, 8.0):
        plain, read_once = (pixels(pipe, request(guidance_scale=scale)) for pipe in pipes)
        assert (plain == read_once).all()


def test_like_transformers_are_compiled_once():
    """The transformers differ in their share of the text, which the compiled call does not see."""
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    plain, read_once = (
        copy.deepcopy(load_pipeline("tiny", device="cpu", recipe=recipe)._unet)
        for recipe in ("baseline", "text-once")
    )
    made = []
    for unet in (plain, read_once):
        graphs.clear()
        torch.compiler.reset()
        for module in unet.modules():
            if hasattr(module, "transformer_blocks"):
                module._compiled_call_impl = torch.compile(
                    module._call_impl, backend=count, dynamic=False
                )
        with torch.inference_mode():
            features = (unet.network if hasattr(unet, "network") else unet).config
            text = torch.randn(2, 77, features.cross_attention_dim)
            pooled_width = features.projection_class_embeddings_input_dim
            pooled_width -= 6 * features.addition_time_embed_dim
            added = {"text_embeds": torch.randn(2, pooled_width), "time_ids": torch.ones(2, 6)}
            unet(
                torch.randn(2, 4, 8, 8),
                torch.ones(2),
                encoder_hidden_states=text,
                added_cond_kwargs=added,
                return_dict=False,
            )
        made.append(len(graphs))
        torch.compiler.reset()
    assert made[1] == made[0] > 0


def test_blocks_that_read_the_text_in_both_attentions_are_refused_in_words():
    unet = small_pipeline(unet={"only_cross_attention": True}).unet
    with pytest.raises(ValueError, match="'text-once' knows SDXL's transformers only"):
        read_texts_once(unet)
