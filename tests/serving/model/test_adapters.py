"""LoRA adapters: the images of fresh stock pipelines, whatever was on before; and what is refused."""

import shutil
from functools import cache

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from benchlib.serving.model.adapters import LoraPlan
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.models import load_diffusers
from benchlib.serving.model.optimisations import graphs_made
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest
from tests.serving.model.small_models import load, small_pipeline

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
WITH_CONVOLUTIONS = (
    *ATTENTION,
    "proj_in",
    "ff.net.2",
    "conv1",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
)
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def stock():
    pipe = load_diffusers("tiny", device=torch.device("cpu"), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def networks():
    pipe = stock()
    return {name: getattr(pipe, name) for name in ("unet", "text_encoder", "text_encoder_2")}


def matrices(network, ends, *, seed, rank=4):
    """(module's name, down, up) of random weights, which change the image much."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in networks()[network].named_modules():
        if name.endswith(ends) and isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            weight = module.weight
            down = torch.randn((rank, *weight.shape[1:]), generator=generator)
            up = torch.randn((len(weight), rank, *[1] * (weight.ndim - 2)), generator=generator)
            yield name, down / weight[0].numel() ** 0.5, up * 0.3


def peft_format(network, ends, *, seed, rank=4):
    tensors = {}
    for name, down, up in matrices(network, ends, seed=seed, rank=rank):
        tensors[f"{network}.{name}.lora_A.weight"] = down
        tensors[f"{network}.{name}.lora_B.weight"] = up
    return tensors


def diffusers_format(network, ends, *, seed):
    tensors = {}
    for name, down, up in matrices(network, ends, seed=seed):
        tensors[f"{network}.{name}.lora.down.weight"] = down
        tensors[f"{network}.{name}.lora.up.weight"] = up
    return tensors


def kohya_format(seed, *, alpha=2.0):
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    tensors = {}
    for network, prefix in prefixes.items():
        ends = WITH_CONVOLUTIONS if network == "unet" else TEXT
        for name, down, up in matrices(network, ends, seed=seed):
            if network == "text_encoder" and not name.startswith("text_model."):
                name = f"text_model.{name}"  # as older transformers did
            key = f"{prefix}_{name.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = down
            tensors[f"{key}.lora_up.weight"] = up
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def with_magnitudes(tensors):
    """A DoRA in peft's format."""
    magnitudes = {}
    for key in tensors:
        if key.endswith(".lora_B.weight"):
            name = key.removeprefix("unet.").removesuffix(".lora_B.weight")
            weight = networks()["unet"].get_submodule(name).weight
            own = weight.norm(dim=1) * 1.1
            magnitudes[key.replace("lora_B", "lora_magnitude_vector")] = own
    return tensors | magnitudes


FILES = {
    "peft": lambda: peft_format("unet", ATTENTION, seed=1),
    "diffusers": lambda: diffusers_format("unet", ATTENTION, seed=2),
    "kohya, LoCon, text encoders, alpha": lambda: kohya_format(3),
    "text encoders": lambda: (
        peft_format("text_encoder", TEXT, seed=4) | peft_format("text_encoder_2", TEXT, seed=4)
    ),
    "convolutions": lambda: peft_format("unet", WITH_CONVOLUTIONS, seed=5, rank=8),
    "DoRA": lambda: with_magnitudes(peft_format("unet", ATTENTION, seed=6)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    paths = {}
    for number, (kind, make) in enumerate(FILES.items()):
        paths[kind] = str(folder / f"{number}.safetensors")
        save_file({key: tensor.contiguous() for key, tensor in make().items()}, paths[kind])
    return paths


def request(lora=None, *, seed=7, prompt="a lighthouse", negative_prompt=None):
    return GenerateRequest(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=2,
        width=64,
        height=64,
        seed=seed,
        lora=lora,
    )


def stock_image(pipe, asked):
    """The image of the stock call, with as many threads: sums of other parts round otherwise."""
    return on_torch_thread(
        pipe,
        asked.prompt,
        negative_prompt=asked.negative_prompt,
        num_inference_steps=asked.num_inference_steps,
        guidance_scale=asked.guidance_scale,
        width=asked.width,
        height=asked.height,
        generator=torch.Generator().manual_seed(asked.seed),
    ).images[0]


def fresh_image(path, scale, asked):
    """The image of a stock pipeline that has done nothing else; each is made once."""
    return _fresh_image(path, scale, asked.model_dump_json(exclude={"lora"}))


@cache
def _fresh_image(path, scale, written):
    asked = GenerateRequest.model_validate_json(written)
    pipe = stock()
    if path is not None:
        pipe.load_lora_weights(path, adapter_name="only")
        pipe.set_adapters("only", scale)
    return stock_image(pipe, asked)


def same(one, other):
    return one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kind", FILES)
def test_the_image_of_each_format_is_the_stock_pipelines(files, kind):
    pipe = load_pipeline("tiny", device="cpu", loras={"style": files[kind]})
    for scale in (1.0, -0.5):
        asked = request(f"style:{scale}", negative_prompt="blur")
        assert same(pipe.generate(asked).images[0], fresh_image(files[kind], scale, asked))


def equal_to_fresh(pipe, files, lora, kind, *, seed=7):
    scale = float(lora.partition(":")[2] or 1) if lora else 0.0
    asked = request(lora, seed=seed)
    return same(
        pipe.generate(asked).images[0],
        fresh_image(files[kind] if lora else None, scale, asked),
    )


def test_a_file_that_is_overwritten_leaves_its_adapter_as_it_was(files, tmp_path):
    """peft's layers would compute with the mapped file."""
    path = shutil.copy(files["kohya, LoCon, text encoders, alpha"], tmp_path / "style.safetensors")
    pipe = load_pipeline("tiny", device="cpu", loras={"style": path})
    before = pipe.generate(request("style")).images[0]
    size = path.stat().st_size
    with path.open("r+b") as opened:
        opened.seek(size // 2)
        opened.write(bytes(size - size // 2))
    assert same(pipe.generate(request("style")).images[0], before)


def test_switching_leaves_nothing_behind(files):
    """Each image is a fresh stock pipeline's, whatever was on before; and pipe.diffusers is stock."""
    text = "kohya, LoCon, text encoders, alpha"
    pipe = load_pipeline("tiny", device="cpu", loras={"a": files[text], "b": files["DoRA"]})
    usual = stock_image(stock(), request())
    for lora in ("a", "b:0.5", None, "a:0", "a:-1", None, "b:0", "a"):
        kind = text if lora and lora[0] == "a" else "DoRA"
        assert equal_to_fresh(pipe, files, lora, kind), lora
        assert same(stock_image(pipe.diffusers, request()), usual), lora
    assert pipe.adapters.lora == "a"
    assert pipe.spec["loras"] == ["a", "b"]


def test_the_stock_pipeline_takes_adapters_of_its_own(files):
    pipe = load_pipeline("tiny", device="cpu", loras={"a": files["peft"]})
    before = pipe.generate(request("a")).images[0]
    own = pipe.diffusers
    own.load_lora_weights(files["diffusers"], adapter_name="own")
    assert same(stock_image(own, request()), fresh_image(files["diffusers"], 1.0, request()))
    assert same(pipe.generate(request("a")).images[0], before)
    assert same(pipe.generate(request()).images[0], stock_image(stock(), request()))


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_it_is_the_stock_pipelines_image_in_16_bits(files, dtype):
    kind = "kohya, LoCon, text encoders, alpha"
    pipe = load_pipeline("tiny", device="cpu", dtype=dtype, loras={"a": files[kind]})
    fresh = load_diffusers("tiny", device=torch.device("cpu"), dtype=getattr(torch, dtype))
    fresh.set_progress_bar_config(disable=True)
    fresh.load_lora_weights(files[kind], adapter_name="only")
    fresh.set_adapters("only", 0.8)
    image = pipe.generate(request("a:0.8")).images[0]
    assert same(image, stock_image(fresh, request()))


def test_a_few_step_adapter_goes_with_its_sampler(files):
    pipe = load_pipeline("tiny", device="cpu", loras={"lcm": files["convolutions"]})
    fresh = stock()
    fresh.scheduler = LCMScheduler.from_config(fresh.scheduler.config)
    fresh.load_lora_weights(files["convolutions"], adapter_name="only")
    fast = {"num_inference_steps": 4, "guidance_scale": 0.0, "scheduler": "lcm"}
    asked = request("lcm").model_copy(update=fast)
    assert same(pipe.generate(asked).images[0], stock_image(fresh, asked))


def peft_layers(*modules):
    return [
        one for module in modules for one in module.modules() if isinstance(one, BaseTunerLayer)
    ]


def test_a_fused_adapter_is_free_afterwards(files):
    """The layers are those without any adapter, and so is the arithmetic of a step."""
    kind = "kohya, LoCon, text encoders, alpha"
    pipe = load_pipeline("tiny", device="cpu", loras={"a": files[kind]}, fuse="a:0.8")
    fresh = stock()
    fresh.load_lora_weights(files[kind], adapter_name="only")
    fresh.fuse_lora(lora_scale=0.8, adapter_names=["only"])
    fresh.unload_lora_weights()
    image = pipe.generate(request()).images[0]
    assert same(image, stock_image(fresh, request()))
    assert same(image, stock_image(pipe.diffusers, request()))
    own = pipe.diffusers
    assert not peft_layers(pipe._unet, own.unet, own.text_encoder, own.text_encoder_2)
    plain = load_pipeline("tiny", device="cpu")
    assert [type(one) for one in pipe._unet.modules()] == [
        type(one) for one in plain._unet.modules()
    ]
    assert pipe.spec["fused_loras"] == {"a": 0.8}
    assert pipe.spec["loras"] == []
    with pytest.raises(ValueError, match="there is no adapter 'a', because this model has none"):
        pipe.generate(request("a"))


def test_fused_and_by_request_go_together(files):
    pipe = load_pipeline(
        "tiny",
        device="cpu",
        loras={"a": files["peft"], "b": files["diffusers"], "c": files["convolutions"]},
        fuse="a:0.5+b",
    )
    fresh = stock()
    for kind, scale in (("peft", 0.5), ("diffusers", 1.0)):
        fresh.load_lora_weights(files[kind], adapter_name="only")
        fresh.fuse_lora(lora_scale=scale, adapter_names=["only"])
        fresh.unload_lora_weights()
    assert same(pipe.generate(request()).images[0], stock_image(fresh, request()))
    fresh.load_lora_weights(files["convolutions"], adapter_name="only")
    assert same(pipe.generate(request("c")).images[0], stock_image(fresh, request("c")))


@pytest.mark.parametrize(
    "recipe", ["channels-last", "bf16", "vae-slicing+channels-last", "phased-upsampling"]
)
def test_a_recipe_goes_with_adapters(files, recipe):
    """In channels-last torch sums in another order, so the image is only near the stock's."""
    pipe = load_pipeline("tiny", device="cpu", recipe=recipe, loras={"a": files["convolutions"]})
    plain = load_pipeline("tiny", device="cpu", recipe=recipe)
    with_a, without, usual = (
        pipe.generate(request("a")).images[0],
        pipe.generate(request()).images[0],
        plain.generate(request()).images[0],
    )
    assert same(without, usual)
    assert not same(with_a, without)


def test_a_batch_has_one_adapter(files):
    pipe = load_pipeline("tiny", device="cpu", loras={"a": files["peft"], "b": files["DoRA"]})
    asked = [request("a", seed=1), request("a", seed=2, prompt="a cat on a table")]
    together = pipe.generate(asked).images
    for one, image in zip(asked, together, strict=True):
        alone = fresh_image(files["peft"], 1.0, one)
        difference = torch.tensor(list(image.tobytes())) - torch.tensor(list(alone.tobytes()))
        assert difference.abs().max() <= 1
    with pytest.raises(ValueError, match="of one width, height and lora"):
        pipe.generate([request("a"), request("b")])
    with pytest.raises(ValueError, match="there is no adapter 'c'; there are a, b"):
        pipe.generate(request("c"))


def test_random_adapters_need_no_file():
    pipe = load_pipeline("tiny", device="cpu", loras={"a": "random", "b": "random-4"})
    images = [pipe.generate(request(lora)).images[0] for lora in (None, "a", "b", "a")]
    assert same(images[1], images[3])
    assert len({image.tobytes() for image in images}) == 3
    assert 0 < pipe.adapters.measure_switch_s() < 60


# ---- what is refused


def renamed(tensors, **changes):
    for old, new in changes.items():
        tensors = {key.replace(old, new): tensor for key, tensor in tensors.items()}
    return tensors


def halved(tensors):
    """The LoRA of a model with half the features."""
    return {key: tensor[:, ::2].contiguous() for key, tensor in tensors.items() if "lora_A" in key}


def two_ranks(tensors):
    first = next(key for key in tensors if "lora_A" in key)
    return tensors | {first: tensors[first][:2].contiguous()}


def broken(tensors):
    first = next(iter(tensors))
    return tensors | {first: tensors[first] * torch.nan}


def small(name):
    return {name: torch.ones(2, 2)}


BAD_FILES = {
    "LoHa": (lambda: small("lora_unet_x.hada_w1_a"), "is a LoHa of LyCORIS .* merge it into"),
    "LoKr": (lambda: small("lora_unet_x.lokr_w1"), "is a LoKr of LyCORIS"),
    "kohya's DoRA": (lambda: small("lora_unet_x.dora_scale"), "a DoRA in kohya's format"),
    "Flux": (lambda: small("lora_unet_double_blocks_0.lora_down.weight"), "a LoRA for Flux"),
    "SD3": (lambda: small("transformer.x.lora_A.weight"), "give one for SDXL"),
    "peft's own": (lambda: small("base_model.model.x.lora_A.weight"), "save_lora_weights"),
    "a checkpoint": (lambda: small("model.diffusion_model.x"), "give it as the model"),
    "a VAE": (lambda: small("decoder.conv_in.weight"), "is no LoRA"),
    "no network": (lambda: small("down_blocks.0.to_q.lora_A.weight"), "to which network"),
    "another base": (
        lambda: renamed(peft_format("unet", ATTENTION, seed=1), down_blocks="other_blocks"),
        "which this model lacks: it was made for another base model",
    ),
    "other features": (
        lambda: halved(peft_format("unet", ATTENTION, seed=1)),
        "has 32 features at unet.* and this model 64",
    ),
    "two ranks": (lambda: two_ranks(peft_format("unet", ATTENTION, seed=1)), "ranks 2 and 4"),
    "NaN": (
        lambda: broken(peft_format("unet", ATTENTION, seed=1)),
        "has weights that are NaN or infinite .unet",
    ),
    "half of it": (lambda: small("lora_unet_x.lora_down.weight"), "can't be read as a LoRA"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_stock_can_not_read_whole_is_refused(tmp_path, kind):
    make, words = BAD_FILES[kind]
    path = tmp_path / "bad.safetensors"
    save_file(make(), path)
    fuse = "style" if kind == "two ranks" else None
    with pytest.raises(ModelError, match=f"(?s)loras: style: .*{words}") as refusal:
        load_pipeline("tiny", device="cpu", loras={"style": str(path)}, fuse=fuse)
    assert str(path) in str(refusal.value)


def trained(folder, **config):
    """A file as diffusers writes it, whose metadata has peft's configuration of the training."""
    weights = peft_format("unet", ATTENTION, seed=5)
    own = {key.removeprefix("unet."): tensor for key, tensor in weights.items()}
    if config.get("lora_bias"):
        ups = [(key, up) for key, up in own.items() if "lora_B" in key]
        own |= {key.replace("weight", "bias"): up[:, 0].clone() for key, up in ups}
    options = {"r": 4, "lora_alpha": 4, "target_modules": list(ATTENTION)} | config
    StableDiffusionXLPipeline.save_lora_weights(
        folder, unet_lora_layers=own, unet_lora_adapter_metadata=options
    )
    return folder


def test_an_adapter_that_was_trained_with_dropout_gives_one_image(tmp_path):
    """After stock's load its dropout is on: each call gives another image."""
    path = trained(tmp_path, lora_dropout=0.5)
    pipe = load_pipeline("tiny", device="cpu", loras={"style": str(path)})
    theirs = stock()
    theirs.load_lora_weights(path, adapter_name="x")
    assert not same(stock_image(theirs, request()), stock_image(theirs, request()))
    theirs.unet.eval()
    wanted = stock_image(theirs, request())
    assert same(pipe.generate(request("style")).images[0], wanted)
    assert same(pipe.generate(request("style")).images[0], wanted)


def test_an_adapter_whose_training_changed_the_base_is_refused(tmp_path):
    path = trained(tmp_path, init_lora_weights="pissa_niter_4")
    with pytest.raises(ModelError, match=r"loras: style: .* from 'pissa_niter_4', .*; convert it"):
        load_pipeline("tiny", device="cpu", loras={"style": str(path)})


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # peft says it of its own
def test_an_adapter_with_biases_is_taken_by_request_alone(tmp_path, monkeypatch):
    path = trained(tmp_path, lora_bias=True)
    pipe = load_pipeline("tiny", device="cpu", loras={"style": str(path)})
    wanted = fresh_image(path, 1.0, request())
    assert same(pipe.generate(request("style")).images[0], wanted)
    with pytest.raises(
        ModelError, match=r"loras: style: .* can't be fused .*; leave it out of fuse"
    ):
        load_pipeline("tiny", device="cpu", loras={"style": str(path)}, fuse="style")
    make_plan_swap(monkeypatch)
    with pytest.raises(ModelError, match=r"adds a bias, .* leave the recipe out"):
        load_pipeline("tiny", device="cpu", loras={"style": str(path)})


def test_a_missing_or_broken_file_is_refused(tmp_path):
    def refusal(source):
        with pytest.raises(ModelError) as error:
            load_pipeline("tiny", device="cpu", loras={"style": source})
        return str(error.value)

    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors here")
    assert "is no safetensors file" in refusal(str(broken))
    assert "no file or folder" in refusal(str(tmp_path / "missing.safetensors"))
    assert "no file or folder" in refusal("nothing")
    (tmp_path / "folder").mkdir()
    assert "it has none" in refusal(str(tmp_path / "folder"))
    assert "no rank" in refusal("random-x")
    assert "can't be reached" in refusal("owner/name")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loras": {"a.b": "random"}}, "loras: 'a.b' can't name an adapter"),
        ({"loras": {"none": "random"}}, "loras: 'none' can't name"),
        ({"loras": {"a": "random"}, "fuse": "b"}, "fuse: there is no adapter 'b' in loras"),
        ({"loras": {"a": "random"}, "fuse": "a+a:2"}, "fuse: 'a' is there twice"),
        ({"loras": {"a": "random"}, "fuse": "a:x"}, "fuse: 'x' is no scale"),
        ({"loras": {"a": "random"}, "recipe": "fused-qkv"}, "'fused-qkv'.* ignore adapters"),
    ],
)
def test_bad_arguments_are_refused(options, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        load_pipeline("tiny", device="cpu", **options)


def test_fused_projections_take_an_adapter_that_is_fused_before(files):
    """After `fuse_qkv_projections` stock diffusers ignores adapters; ours are fused before it."""
    kind = "peft"
    pipe = load_pipeline(
        "tiny", device="cpu", recipe="fused-qkv", loras={"a": files[kind]}, fuse="a"
    )
    usual = load_pipeline("tiny", device="cpu", loras={"a": files[kind]}, fuse="a")
    image = torch.tensor(list(pipe.generate(request()).images[0].tobytes()))
    wanted = torch.tensor(list(usual.generate(request()).images[0].tobytes()))
    assert (image - wanted).abs().max() <= 1


# ---- the slot of a compiled or recorded UNet


def make_plan_swap(monkeypatch):
    """Adapters take turns in a slot, as in a compiled UNet."""
    usual = LoraPlan.__init__

    def swapping(self, *arguments):
        usual(self, *arguments)
        self.swaps = True

    monkeypatch.setattr(LoraPlan, "__init__", swapping)


def test_a_slot_takes_adapters_in_turn_and_keeps_its_modules(files, monkeypatch):
    """What a compiled UNet would do, without the minutes of compiling it."""
    make_plan_swap(monkeypatch)
    text = "kohya, LoCon, text encoders, alpha"
    loras = {"a": files[text], "b": files["convolutions"]}  # ranks 4 and 8
    pipe = load_pipeline("tiny", device="cpu", loras=loras)
    parameters = {name: one.data_ptr() for name, one in pipe._unet.named_parameters()}
    modules = [id(one) for one in pipe._unet.modules()]
    for lora in ("a", "b:0.5", None, "a:-1"):
        kind = text if lora and lora[0] == "a" else "convolutions"
        asked = request(lora)
        scale = float(lora.partition(":")[2] or 1) if lora else 0.0
        fresh = fresh_image(files[kind] if lora else None, scale, asked)
        image = pipe.generate(asked).images[0]
        difference = torch.tensor(list(image.tobytes())) - torch.tensor(list(fresh.tobytes()))
        assert difference.abs().max() <= 1, lora
        assert parameters == {name: one.data_ptr() for name, one in pipe._unet.named_parameters()}
        assert modules == [id(one) for one in pipe._unet.modules()]
    assert same(stock_image(pipe.diffusers, request()), stock_image(stock(), request()))
    with pytest.raises(ModelError, match=r"is a DoRA, which a compiled .* fuse it \(fuse='d'\)"):
        load_pipeline("tiny", device="cpu", loras={"d": files["DoRA"]})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's own
def test_a_compiled_unet_swaps_adapters_without_compiling_again(files):
    loras = {"a": files["peft"], "b": files["convolutions"]}
    pipe = load_pipeline("tiny", device="cpu", recipe="compile-regional", loras=loras)
    pipe.generate(request("a"))
    made = graphs_made()
    for lora, kind in (("b:0.5", "convolutions"), (None, "peft"), ("a", "peft")):
        scale = float(lora.partition(":")[2] or 1) if lora else 0.0
        fresh = fresh_image(files[kind] if lora else None, scale, request(lora))
        image = pipe.generate(request(lora)).images[0]
        difference = torch.tensor(list(image.tobytes())) - torch.tensor(list(fresh.tobytes()))
        assert difference.abs().max() <= 2, lora
    assert graphs_made() == made


def test_a_few_step_adapter_goes_with_its_sampler_and_a_model_that_is_a_variant(tmp_path):
    # 1) A model whose weights are all of the variant fp16, and an adapter for it
    model = small_pipeline()
    model.to(dtype=torch.float16).save_pretrained(tmp_path / "model", variant="fp16")
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, module in model.unet.named_modules():
        if name.endswith(ATTENTION):
            for part, shape in (("A", (4, module.in_features)), ("B", (module.out_features, 4))):
                key = f"unet.{name}.lora_{part}.weight"
                tensors[key] = 0.1 * torch.randn(shape, generator=generator)
    file = tmp_path / "lcm.safetensors"
    save_file(tensors, file)

    # 2) The image is stock's
    pipe = load(tmp_path / "model", loras={"lcm": str(file)})
    assert pipe.spec["variant"] == "fp16"
    fresh = StableDiffusionXLPipeline.from_pretrained(
        tmp_path / "model", variant="fp16", dtype=torch.float32
    )
    fresh.set_progress_bar_config(disable=True)
    fresh.scheduler = LCMScheduler.from_config(fresh.scheduler.config)
    plain = request().model_copy(update={"guidance_scale": 0.0, "scheduler": "lcm"})
    without = stock_image(fresh, plain)
    fresh.load_lora_weights(file, adapter_name="only")
    image = pipe.generate(plain.model_copy(update={"lora": "lcm"})).images[0]
    assert same(image, stock_image(fresh, plain))
    assert not same(image, without)
    assert same(pipe.generate(plain).images[0], without)
