"""Models: the tiny model's cache, published sizes, a local hub, and errors that name their remedy."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils import logging as transformers_logging

from benchlib import machine
from benchlib.serving.model import model_errors, models, random_models
from benchlib.serving.model.models import ModelError, choose_model, load_diffusers, tiny_folder

CPU = torch.device("cpu")


def digest(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def python(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_tiny_is_a_complete_sdxl_pipeline():
    pipe = load_diffusers("tiny", device=CPU, dtype=torch.float32)
    assert type(pipe).__name__ == "StableDiffusionXLPipeline"
    assert pipe.vae_scale_factor == 8
    assert pipe.unet.config.addition_embed_type == "text_time"
    assert pipe.scheduler.config.timestep_spacing == "leading"
    assert pipe.scheduler.config.steps_offset == 1
    assert 1e6 < sum(p.numel() for p in pipe.unet.parameters()) < 1e7


@pytest.mark.parametrize(
    "text", ["a cat", "日本の灯台 🐱", "\u0000\u200d\u0301", "Ünïcödé ЖЩ", "Zalgo t̷̢e̸x̵t"]
)
def test_tiny_tokenizers_know_every_byte_of_any_text(text):
    pipe = load_diffusers("tiny", device=CPU, dtype=torch.float32)
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1
        assert tokenizer.unk_token_id not in ids[1:-1]
        assert "".join(tokenizer.decode(ids, skip_special_tokens=True).split()) == "".join(
            tokenizer.backend_tokenizer.normalizer.normalize_str(text).split()
        )


def test_two_processes_may_build_tiny_at_once_and_agree(tmp_path):
    code = "from benchlib.serving.model.models import tiny_folder; print(tiny_folder())"
    builders = [python(code, BENCHLIB_CACHE=str(tmp_path)) for _ in range(2)]
    for builder in builders:
        out, err = builder.communicate(timeout=120)
        assert builder.returncode == 0, err
        assert out.strip() == str(next(tmp_path.iterdir()))
    [only] = tmp_path.iterdir()  # no half-written folder is left beside it
    assert digest(only) == digest(tiny_folder())


def test_the_seed_decides_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCHLIB_CACHE", str(tmp_path))
    first, second = digest(tiny_folder(0)), digest(tiny_folder(1))
    assert {name for name in first if first[name] != second[name]} >= {
        "unet/diffusion_pytorch_model.safetensors"
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fewer_bits_round_the_same_random_weights(dtype):
    cpu = torch.device("cpu")
    exact, rounded = (
        random_models.with_random_weights(lambda: torch.nn.Linear(64, 64), "key", cpu, d)
        for d in (torch.float32, dtype)
    )
    assert rounded.weight.dtype == dtype
    assert torch.equal(exact.weight.to(dtype), rounded.weight)


def test_full_size_has_the_published_numbers_of_parameters():
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with init_empty_weights():
        networks = {
            "unet": UNet2DConditionModel(**models.SDXL["unet"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**models.SDXL["text_encoder"])),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**models.SDXL["text_encoder_2"])
            ),
            "vae": AutoencoderKL(**models.SDXL["vae"]),
        }
    counts = {
        name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()
    }
    published = {
        "unet": 2_567_463_684,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "vae": 83_653_863,
    }
    assert counts == published
    assert sum(published.values()) == models.SDXL_PARAMS == 3_468_837_867


def test_auto_takes_sdxl_on_cuda_and_says_why():
    assert choose_model("auto", torch.device("cuda"))[0] == "sdxl"
    name, reason = choose_model("auto", CPU)
    assert name == "tiny"
    assert "no CUDA GPU" in reason
    assert choose_model("a/b", CPU) == ("a/b", "chosen by name")


# -- models from elsewhere -------------------------------------------------------------------------


def test_a_diffusers_folder_loads(tmp_path):
    folder = shutil.copytree(tiny_folder(), tmp_path / "mine")
    pipe = load_diffusers(str(folder), device=CPU, dtype=torch.bfloat16)
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.bfloat16


@pytest.fixture
def hub_cache(tmp_path):
    """A hub cache that holds `someone/small-sdxl`, as after a download."""
    repository = tmp_path / "hub" / "models--someone--small-sdxl"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny_folder(), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return tmp_path / "hub"


LOAD = """
import time, torch
from benchlib.serving.model.models import ModelError, load_diffusers
for model, dtype in MODELS:
    started = time.monotonic()
    try:
        pipe = load_diffusers(model, device=torch.device("cpu"), dtype=getattr(torch, dtype))
        print("loaded", type(pipe).__name__)
    except ModelError as error:
        print("ModelError", time.monotonic() - started, error)
"""


def load_elsewhere(*models, **environment):
    """What a process says of each model and dtype, a line each: it reads the hub's address once."""
    code = LOAD.replace("MODELS", repr(models))
    out, err = python(code, **{"HF_HUB_OFFLINE": "0"} | environment).communicate(timeout=120)
    lines = out.splitlines()
    assert len(lines) == len(models), err
    return lines


def test_with_a_hub_that_refuses_connections_cached_models_load_and_others_are_reported(hub_cache):
    cached = "someone/small-sdxl"
    *loaded, refused = load_elsewhere(
        (cached, "float32"), (cached, "float16"), ("someone/other", "bfloat16"),
        HF_HUB_CACHE=str(hub_cache), HF_ENDPOINT="http://127.0.0.1:9",
    )  # fmt: skip
    assert loaded == ["loaded StableDiffusionXLPipeline"] * 2
    kind, seconds, message = refused.split(" ", 2)
    assert kind == "ModelError"
    assert float(seconds) < 5
    assert "someone/other" in message
    assert "model='tiny'" in message


def test_a_hub_that_never_answers_is_given_five_seconds(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        [out] = load_elsewhere(
            ("someone/other", "bfloat16"), HF_HUB_CACHE=str(tmp_path), HF_ENDPOINT=endpoint
        )
    kind, seconds, message = out.split(" ", 2)
    assert kind == "ModelError"
    assert 4 < float(seconds) < 15
    assert "can't be reached" in message


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nothing", "'nothing' is none of"),
        ("./nowhere", "there is no folder './nowhere'"),
        ("/a/b/c", "there is no folder"),
        ("missing.safetensors", "there is no file"),
        ("someone/uncached", "not cached and the hub can't be reached"),
    ],
)
def test_a_model_that_is_not_there_is_named(model, words):
    with pytest.raises(ModelError, match=f"^model: .*{words}"):
        load_diffusers(model, device=CPU, dtype=torch.bfloat16)


def test_a_folder_that_is_no_sdxl_pipeline_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_diffusers(str(tmp_path), device=CPU, dtype=torch.float32)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ModelError, match="holds a FluxPipeline"):
        load_diffusers(str(tmp_path), device=CPU, dtype=torch.float32)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="can't be read"):
        load_diffusers(str(tmp_path), device=CPU, dtype=torch.float32)


def test_a_load_that_fails_gives_the_progress_bars_back(tmp_path, monkeypatch):
    """The tiny model loads without progress bars, the next model with them."""
    monkeypatch.setattr(models, "tiny_folder", lambda seed: tmp_path)  # noqa: ARG005
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_diffusers("tiny", device=CPU, dtype=torch.float32)
    assert diffusers_logging.is_progress_bar_enabled()
    assert transformers_logging.is_progress_bar_enabled()


def test_a_damaged_weights_file_is_named(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not at all")
    with pytest.raises(ModelError, match="no safetensors file"):
        load_diffusers(str(tmp_path / "broken.safetensors"), device=CPU, dtype=torch.float32)
    folder = shutil.copytree(tiny_folder(), tmp_path / "mine")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"12")
    with pytest.raises(ModelError, match="no safetensors file"):
        load_diffusers(str(folder), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("model", ["sdxl-random", "sdxl"])
def test_too_little_memory_is_reported_before_anything_is_loaded(model, monkeypatch):
    monkeypatch.setattr(model_errors, "free_memory_gib", lambda _: 1.0)
    started = time.monotonic()
    with pytest.raises(
        ModelError, match=r"need 12\.9 GiB in float32 and cpu has 1\.0 GiB free.*dtype='bfloat16'"
    ):
        load_diffusers(model, device=CPU, dtype=torch.float32)
    assert time.monotonic() - started < 2


def test_a_containers_limit_is_reported_before_anything_is_loaded(monkeypatch, tmp_path):
    for name, content in {"memory.max": 2**30, "memory.current": 2**29, "memory.stat": ""}.items():
        (tmp_path / name).write_text(str(content))
    monkeypatch.setattr(machine, "cgroup_folders", lambda *_: [tmp_path])
    with pytest.raises(ModelError, match=r"need 12\.9 GiB in float32 and cpu has 0\.5 GiB free"):
        load_diffusers("sdxl-random", device=CPU, dtype=torch.float32)
