"""The pipeline against the stock pipeline, to the bit; and its times and its memory."""

import copy
import logging
import mmap
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline

from benchlib import machine
from benchlib.serving.model import loading
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.pipeline import SDXLPipeline
from benchlib.serving.model.results import Timings
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest
from tests.serving.model.small_models import our_pixels, stock_pixels
from tests.serving.model.small_models import request as small_request


def stock_image(pipe, request, seed=None):
    """The image of the stock call, with as many threads: sums of other parts round otherwise."""
    stock = pipe.diffusers
    stock.set_progress_bar_config(disable=True)
    return on_torch_thread(
        stock,
        request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        width=request.width,
        height=request.height,
        generator=torch.Generator("cpu").manual_seed(request.seed if seed is None else seed),
    ).images[0]


def pixels(image):
    return np.asarray(image)


def request(**changes):
    return GenerateRequest(
        **{"prompt": "a lighthouse", "num_inference_steps": 4, "width": 64, "height": 64, "seed": 1}
        | changes
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"width": 128, "height": 72},
        {"width": 64, "height": 200},
        {"num_inference_steps": 1},
        {"num_inference_steps": 27},
        {"guidance_scale": 0},
        {"guidance_scale": 1},
        {"guidance_scale": 1.0001},
        {"guidance_scale": 30.0},
        {"negative_prompt": ""},
        {"negative_prompt": "blurry, low quality"},
        {"negative_prompt": "blurry", "guidance_scale": 1},
        {"prompt": " "},
        {"prompt": "x" * 4000},
        {"prompt": "日本の灯台 🐱 \u0000 <|endoftext|> é"},
        {"prompt": "many words " * 40, "negative_prompt": "other words " * 60},
    ],
    ids=lambda changes: " ".join(f"{k}={v!r:.20}" for k, v in changes.items()) or "plain",
)
def test_image_is_bit_identical_to_the_stock_call(tiny, changes):
    ours = tiny.generate(request(**changes)).images[0]
    np.testing.assert_array_equal(pixels(ours), pixels(stock_image(tiny, request(**changes))))


def test_latents_are_bit_identical_to_the_stock_call(tiny):
    """Pixels have 8 bits; the latents before them have 32."""
    [work] = on_torch_thread(tiny.encode, [request()])
    while not work.finished:
        on_torch_thread(tiny.step, [work])
    stock = on_torch_thread(
        tiny.diffusers, "a lighthouse", num_inference_steps=4, guidance_scale=7.5, width=64, height=64,
        generator=torch.Generator().manual_seed(1), output_type="latent",
    ).images  # fmt: skip
    assert torch.equal(work.latents, stock)


def test_the_stock_pipelines_tokenizers_are_not_ours(tiny, monkeypatch):
    """A tokenizer keeps how it pads and cuts, so one that two threads use fails now and then."""
    wanted = request(num_inference_steps=1)
    before = pixels(tiny.generate(wanted).images[0])
    for name in ("tokenizer", "tokenizer_2"):
        theirs = getattr(tiny.diffusers, name)
        theirs("a", padding="max_length", max_length=9, truncation=True)
        np.testing.assert_array_equal(pixels(tiny.generate(wanted).images[0]), before)
        monkeypatch.setitem(tiny.diffusers.__dict__, name, None)
        np.testing.assert_array_equal(pixels(tiny.generate(wanted).images[0]), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_latents_are_bit_identical_on_a_gpu(dtype):
    """On a GPU, torch divides differently by a scalar on the CPU and by a tensor on the GPU."""
    pipe = load_pipeline("tiny", device="cuda", dtype=dtype)
    [work] = pipe.encode([request(num_inference_steps=8)])
    while not work.finished:
        pipe.step([work])
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    stock = pipe.diffusers(
        "a lighthouse", num_inference_steps=8, guidance_scale=7.5, width=64, height=64,
        latents=noise.to("cuda", getattr(torch, dtype)), output_type="latent",
    ).images  # fmt: skip
    assert torch.equal(work.latents, stock)


def test_a_scheduler_that_draws_noise_keeps_the_seeds_meaning(tiny):
    stock = copy.copy(tiny.diffusers)
    stock.scheduler = EulerAncestralDiscreteScheduler.from_config(stock.scheduler.config)
    pipe = SDXLPipeline(stock, spec=tiny.spec)
    np.testing.assert_array_equal(
        pixels(pipe.generate(request()).images[0]), pixels(stock_image(pipe, request()))
    )


# The warning is the stock call's own.
@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
def test_fp16_vae_is_cast_up_in_a_copy_and_the_stock_pipeline_stays_stock():
    pipe = load_pipeline("tiny", dtype="float16", device="cpu")
    result = pipe.generate(request(num_inference_steps=2))
    for _ in range(2):
        assert pipe.diffusers.vae.dtype == torch.float16
        stock = stock_image(pipe, request(num_inference_steps=2))
        np.testing.assert_array_equal(pixels(result.images[0]), pixels(stock))


def test_a_watermark_is_put_into_each_image_as_by_the_stock_call():
    class Watermark:
        def apply_watermark(self, pixels):
            return 0.5 * pixels.flip(-1) - 0.2

    pipe = load_pipeline("tiny", device="cpu", torch_threads=1)
    plain = our_pixels(pipe, seed=1)
    pipe.diffusers.watermark = Watermark()
    marked = stock_pixels(pipe.diffusers, seed=1)
    np.testing.assert_array_equal(our_pixels(pipe, seed=1), marked)
    both = pipe.generate([small_request(seed=1), small_request(seed=2)]).images
    assert np.abs(np.asarray(both[0], int) - marked.astype(int)).max() <= 1
    assert not np.array_equal(plain, marked)


def test_requests_leave_no_trace_on_the_pipeline(tiny):
    before = copy.deepcopy(tiny._pipe.scheduler.__dict__)
    first = tiny.generate(request()).images[0]
    tiny.generate(
        request(num_inference_steps=9, guidance_scale=1, width=128, negative_prompt="x", seed=7)
    )
    np.testing.assert_array_equal(pixels(first), pixels(tiny.generate(request()).images[0]))
    after = tiny._pipe.scheduler.__dict__
    assert before.keys() == after.keys()
    assert all(
        torch.equal(v, after[k]) if isinstance(v, torch.Tensor) else v == after[k]
        for k, v in before.items()
    )


def test_a_mixed_batch_gives_each_request_its_own_image(tiny):
    requests = [
        request(),
        request(seed=2, num_inference_steps=7, negative_prompt=""),
        request(seed=3, guidance_scale=1, num_inference_steps=2),
    ]
    together = tiny.generate(requests)
    for image, one in zip(together.images, requests, strict=True):
        difference = pixels(image).astype(int) - pixels(stock_image(tiny, one)).astype(int)
        # A batch sums float32 in another order, which changes at most one of 255 levels.
        assert np.abs(difference).max() <= 1
    assert len(together.timings.step_s) == 7


def test_a_batch_of_different_sizes_is_refused(tiny):
    with pytest.raises(ValueError, match="all of one width, height and lora"):
        tiny.generate([request(), request(width=128)])
    with pytest.raises(ValueError, match="at least one"):
        tiny.generate([])


def test_without_a_seed_one_is_drawn_and_returned(tiny):
    result = tiny.generate(request(seed=None))
    assert tiny.generate(request(seed=None)).seeds != result.seeds
    np.testing.assert_array_equal(
        pixels(result.images[0]), pixels(tiny.generate(request(seed=result.seeds[0])).images[0])
    )


class SpiedClock:
    """A clock of marks that says what was done, in order. A second lies between two marks."""

    def __init__(self, done):
        self._done = done

    def now(self):
        self._done.append("waited")
        return 0.0

    def mark(self):
        self._done.append("mark")
        return self._done.count("mark")

    def between(self, marks):
        return [float(end - start) for start, end in pairwise(marks)]


def test_the_host_waits_for_a_device_once_an_image(tiny, monkeypatch):
    """Between a prompt and its pixels a wait leaves the device without work."""
    done = []
    monkeypatch.setattr(tiny, "_clock", SpiedClock(done))
    timings = tiny.generate(request(num_inference_steps=3)).timings
    assert done == ["mark"] * 6 + ["waited"]
    assert (timings.encode_s, timings.step_s, timings.decode_s) == (1.0, (1.0, 1.0, 1.0), 1.0)
    assert timings.total_s == 5.0


def test_times_add_up_and_memory_is_named(tiny):
    result = tiny.generate(request(num_inference_steps=5))
    timings = result.timings
    assert len(timings.step_s) == 5
    assert timings.denoise_s == pytest.approx(sum(timings.step_s))
    parts = timings.encode_s + timings.denoise_s + timings.decode_s
    assert 0 < parts <= timings.total_s
    assert result.memory.allocated_gib is None
    assert result.peak_memory_gib == result.memory.rss_gib > tiny.spec["weights_gib"]


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only /proc can reset the peak of the RSS"
)
def test_the_memory_peak_is_of_the_work_alone(tiny):
    # This memory is mapped, because malloc may reuse 1 GiB that it never returned.
    with mmap.mmap(-1, 2**30) as ballast:
        for page in range(0, 2**30, mmap.PAGESIZE):
            ballast[page] = 1
        tiny.generate(request())
        with_ballast_gib = tiny.peak_memory().rss_gib
    assert tiny.generate(request()).peak_memory_gib < with_ballast_gib - 0.9


def test_a_containers_limit_decides_what_fits(tiny, monkeypatch, tmp_path):
    """The machine has enough memory for the image, and the container has not."""
    assert tiny.fits(64, 64)
    for name, content in {"memory.max": 2**30, "memory.current": 2**30, "memory.stat": ""}.items():
        (tmp_path / name).write_text(str(content))
    monkeypatch.setattr(machine, "cgroup_folders", lambda *_: [tmp_path])
    assert not tiny.fits(64, 64)


def test_a_prediction_counts_each_step_as_long_as_the_second(tiny, monkeypatch):
    assert tiny.predict_s(64, 64, 2) > 0
    timings = Timings(encode_s=1.0, denoise_s=9.0, decode_s=3.0, total_s=13.0, step_s=(7.0, 2.0))
    monkeypatch.setattr(tiny, "generate", lambda request: SimpleNamespace(timings=timings))  # noqa: ARG005
    assert tiny.predict_s(64, 64, 20) == 1.0 + 20 * 2.0 + 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "warp"}, "recipe: 'warp'"),
        ({"dtype": "int4"}, "dtype: 'int4'"),
        ({"device": "toaster"}, "device: 'toaster'"),
        ({"device": "cuda:99"}, "device: 'cuda:99'"),
        ({"torch_threads": 0}, "torch_threads: 0"),
    ],
)
def test_a_bad_argument_is_named_with_its_remedy(arguments, message):
    with pytest.raises(ValueError, match=f"{message}.*use"):
        load_pipeline("tiny", **arguments)


def test_the_requested_number_of_threads_computes(tiny):
    """The number also holds where torch has computed before, here to load `tiny`."""
    was = tiny.spec["torch_threads"]
    try:
        for threads in (was + 1, was):
            spec = load_pipeline("tiny", device="cpu", torch_threads=threads).spec
            assert spec["torch_threads"] == threads == on_torch_thread(torch.get_num_threads)
    finally:
        on_torch_thread(torch.set_num_threads, was)


def test_tiny_takes_one_thread_and_other_models_take_those_of_torch(tmp_path, monkeypatch):
    """After "tiny" the number is torch's own again."""
    own = loading._own_threads() + 1  # torch's own may be 1, as that of tiny
    monkeypatch.setattr(loading, "_own_threads", lambda: own)
    tiny = load_pipeline("tiny", device="cpu")
    tiny._pipe.save_pretrained(tmp_path / "mine")
    try:
        assert tiny.spec["torch_threads"] == 1
        mine = load_pipeline(str(tmp_path / "mine"), device="cpu")
        assert mine.spec["torch_threads"] == own == on_torch_thread(torch.get_num_threads)
    finally:
        on_torch_thread(torch.set_num_threads, 1)


@pytest.mark.parametrize(
    ("logger", "words", "shown"),
    [
        (StableDiffusionXLPipeline.__module__, "The following part was truncated: x", False),
        (StableDiffusionXLPipeline.__module__, "something else", True),
        ("transformers.tokenization_utils_base", "Token indices sequence length is 99", False),
    ],
)
def test_the_libraries_do_not_report_each_long_prompt(logger, words, shown):
    record = logging.LogRecord(logger, logging.WARNING, "", 0, words, None, None)
    assert bool(logging.getLogger(logger).filter(record)) == shown


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu"])
def test_pixels_have_arrived_before_they_are_read(monkeypatch, device):
    """Only CUDA's copy is waited for afterwards, so each other device's must block."""
    asked = []
    move = torch.Tensor.to

    def look(tensor, *args, non_blocking=False, **options):
        asked.append((args, non_blocking))
        return move(tensor, *args, non_blocking=non_blocking, **options)

    monkeypatch.setattr(torch.Tensor, "to", look)
    pipe = SimpleNamespace(device=torch.device(device))
    images = SDXLPipeline._pictures(pipe, torch.full((2, 3, 4, 6), 0.2))
    assert [np.asarray(image).tolist() for image in images] == [[[[51] * 3] * 6] * 4] * 2
    assert [blocks for args, blocks in asked if args == ("cpu",)] == [False]
