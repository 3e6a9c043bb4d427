"""Folders: each variant and each kind of shards loads as by stock, or is refused in words."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from huggingface_hub import constants

from benchlib.serving.model import models
from benchlib.serving.model.model_errors import ModelError

from .fake_hub import fake_hub
from .small_models import (
    change_json,
    load,
    original_weights,
    our_pixels,
    put_into_hub_cache,
    save,
    small_pipeline,
    stock_pixels,
)

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
DTYPES = ("float32", "float16", "bfloat16")
# The warning is the stock call's own.
pytestmark = pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def model():
    return small_pipeline()


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """Folders by name: plain, and "fp16" alone, each whole and in shards."""
    root = tmp_path_factory.mktemp("folders")
    model.save_pretrained(root / "plain")
    model.save_pretrained(root / "plain in shards", max_shard_size="400KB")
    rounded = StableDiffusionXLPipeline.from_pretrained(root / "plain", dtype=torch.float16)
    rounded.save_pretrained(root / "fp16", variant="fp16")
    rounded.save_pretrained(root / "fp16 in shards", variant="fp16", max_shard_size="200KB")
    return root


def copy(made, name, tmp_path):
    return shutil.copytree(made / name, tmp_path / "model")


def both(folder, dtype, variant):
    """Our pixels and stock's."""
    theirs = StableDiffusionXLPipeline.from_pretrained(
        folder, dtype=getattr(torch, dtype), variant=variant
    )
    pipe = load(folder, dtype=dtype)
    assert pipe.spec["variant"] == variant
    return our_pixels(pipe), stock_pixels(theirs)


@pytest.mark.parametrize("name", ["fp16", "fp16 in shards"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_only_in_fp16_load_in_any_type(made, name, dtype):
    if name == "fp16 in shards":
        assert len(list((made / name / "unet").glob("*.fp16-0*"))) > 1
    np.testing.assert_array_equal(*both(made / name, dtype, "fp16"))


def test_plain_shards_load(made):
    np.testing.assert_array_equal(*both(made / "plain in shards", "float32", None))


def test_the_older_names_of_sharded_variants_load(made, tmp_path):
    """Shards are named by their index, so model-00001-of-00002.fp16 loads as well."""
    folder = copy(made, "fp16 in shards", tmp_path)
    for index in folder.glob("*/*.index.fp16.json"):
        content = json.loads(index.read_text())
        for name in set(content["weight_map"].values()):
            older = re.sub(r"\.fp16(-\d+-of-\d+)", r"\1.fp16", name)
            (index.parent / name).rename(index.parent / older)
            for key, shard in content["weight_map"].items():
                if shard == name:
                    content["weight_map"][key] = older
        index.write_text(json.dumps(content))
    assert list((folder / "unet").glob("*-of-*.fp16.safetensors"))
    np.testing.assert_array_equal(
        our_pixels(load(folder)), our_pixels(load(made / "fp16 in shards"))
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_variant_unet_with_plain_rest_loads(made, tmp_path, dtype):
    folder = copy(made, "plain", tmp_path)
    shutil.rmtree(folder / "unet")
    shutil.copytree(made / "fp16" / "unet", folder / "unet")
    np.testing.assert_array_equal(*both(folder, dtype, "fp16"))


@pytest.mark.parametrize(("dtype", "variant"), [("float32", None), ("float16", "fp16")])
def test_where_both_are_there_the_type_decides(made, tmp_path, dtype, variant):
    folder = copy(made, "plain", tmp_path)
    for name in NETWORKS:
        for file in (made / "fp16" / name).glob("*.safetensors"):
            shutil.copy(file, folder / name)
    np.testing.assert_array_equal(*both(folder, dtype, variant))


@pytest.mark.parametrize("variant", ["bf16", "ema", "non-ema"])
def test_other_variants_load(model, tmp_path, variant):
    model.save_pretrained(tmp_path / "it", variant=variant)
    np.testing.assert_array_equal(*both(tmp_path / "it", "float32", variant))


def test_networks_that_share_no_variant_are_named(made, model, tmp_path):
    folder = copy(made, "fp16", tmp_path)
    shutil.rmtree(folder / "vae")
    model.vae.save_pretrained(folder / "vae", variant="ema")
    with pytest.raises(ModelError, match=r"share no variant \(unet has fp16; vae has ema"):
        load(folder)


def test_a_stale_index_beside_a_whole_file_is_passed_over(made, tmp_path):
    """A folder that was saved in shards, and then whole. Stock raises FileNotFoundError there."""
    folder = copy(made, "plain", tmp_path)
    for index in (made / "plain in shards").glob("*/*.index.json"):
        shutil.copy(index, folder / index.parent.name)
    with pytest.raises(FileNotFoundError):
        StableDiffusionXLPipeline.from_pretrained(folder)
    np.testing.assert_array_equal(our_pixels(load(folder)), our_pixels(load(made / "plain")))


def test_a_missing_shard_is_named(made, tmp_path):
    folder = copy(made, "plain in shards", tmp_path)
    shard = sorted((folder / "unet").glob("*-of-*"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"unet lacks {shard.name}, which its index names"):
        load(folder)


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ("diffusion_pytorch_model.bin", "vae has only diffusion_pytorch_model.bin, a pickle"),
        ("model.onnx", r"vae holds no \.safetensors weights"),
    ],
)
def test_weights_in_another_format_are_named(made, tmp_path, left, words):
    folder = copy(made, "plain", tmp_path)
    (folder / "vae/diffusion_pytorch_model.safetensors").rename(folder / "vae" / left)
    with pytest.raises(ModelError, match=words):
        load(folder)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda folder, made: shutil.copytree(made / "plain", folder / "inner"), "give the folder .*inner"),
        (lambda folder, made: shutil.copytree(made / "plain/unet", folder, dirs_exist_ok=True), "as unet="),
        (lambda folder, _: (folder / "adapter_config.json").write_text("{}"), "loras="),
        (lambda folder, _: save({"lora_a.lora_up.weight": torch.zeros(2)}, folder / "x.safetensors"),
         "it has x.safetensors, which is a LoRA"),
        (lambda folder, _: (folder / "notes.txt").write_text(""), "give the folder that has one"),
    ],
    ids=["deeper", "unet", "adapter", "file", "none"],
)  # fmt: skip
def test_a_folder_without_an_index_says_what_to_give(made, tmp_path, build, words):
    folder = tmp_path / "it"
    folder.mkdir()
    build(folder, made)
    with pytest.raises(ModelError, match=f"no model_index.json; .*{words}"):
        load(folder)


def test_a_class_that_is_not_installed_is_named(made, tmp_path):
    folder = copy(made, "plain", tmp_path)
    change_json(folder / "model_index.json", scheduler=["diffusers", "NoSuchScheduler"])
    with pytest.raises(ModelError, match=r"can't be loaded: .*NoSuchScheduler"):
        load(folder)


# -- the hub ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp16", "fp16 in shards", "plain"])
def test_a_cached_hub_model_loads_in_whatever_variant(made, tmp_path, monkeypatch, name):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    put_into_hub_cache(tmp_path, "someone/small-sdxl", made / name, with_weights=True)
    np.testing.assert_array_equal(
        our_pixels(load("someone/small-sdxl")), our_pixels(load(made / name))
    )


def test_a_cached_configuration_alone_is_no_cached_model(made, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    put_into_hub_cache(tmp_path, "someone/small-sdxl", made / "plain")
    with pytest.raises(ModelError, match="not cached and the hub can't be reached"):
        load("someone/small-sdxl")


@pytest.mark.parametrize(
    ("files", "dtype", "variant"),
    [
        (["diffusion_pytorch_model.safetensors"], torch.float16, None),
        (["diffusion_pytorch_model.fp16.safetensors"], torch.float32, "fp16"),
        (["model.safetensors", "model.fp16.safetensors"], torch.float16, "fp16"),
        (["model.safetensors", "model.fp16.safetensors"], torch.bfloat16, None),
        (["model.bf16-00001-of-00002.safetensors"], torch.bfloat16, "bf16"),
        (["model.bf16.safetensors", "model.fp16.safetensors"], torch.bfloat16, "bf16"),
        (["model-00001-of-00002.fp16.safetensors", "model.ema.safetensors"], torch.float32, "fp16"),
        (["model.non-ema.safetensors"], torch.float32, "non-ema"),
        (["model.bin"], torch.float32, None),
    ],
)
def test_the_variant_to_download_is_chosen_by_names(files, dtype, variant):
    names = {f"unet/{name}" for name in files} | {"vae/model.safetensors", "README.md"}
    assert models._variant_on_hub(names, "unet", dtype) == variant


LOAD = """
import hashlib, json, sys
from tests.serving.model.small_models import load, our_pixels

for model, dtype, unet in json.loads(sys.argv[1]):
    pipe = load(model, dtype=dtype, unet=unet)
    digest = hashlib.sha256(our_pixels(pipe).tobytes()).hexdigest()
    print(json.dumps([pipe.spec["variant"], digest]), flush=True)
"""


def test_models_and_unets_are_downloaded_in_the_variant_that_is_there(made, tmp_path):
    """The hub's client reads its address once, so it runs in a process of its own."""
    small_pipeline(seed=1).unet.save_pretrained(tmp_path / "unet")
    repositories = {
        "some/fp16": made / "fp16 in shards",
        "some/plain": made / "plain",
        "some/unet": tmp_path / "unet",
    }
    wanted = [
        ("some/fp16", "float32", None, "fp16"),
        ("some/plain", "float32", "some/unet", None),
    ]
    asked = json.dumps([case[:3] for case in wanted])
    with fake_hub(repositories) as (url, downloaded):
        given = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "hub")}
        answer = subprocess.run(
            [sys.executable, "-c", LOAD, asked],
            env=os.environ | given,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    assert len(lines) == 2, answer.stderr
    for (model, dtype, unet, variant), (told, digest) in zip(wanted, lines, strict=True):
        own = unet and str(repositories[unet])
        here = our_pixels(load(repositories[model], dtype=dtype, unet=own))
        assert told == variant
        assert digest == hashlib.sha256(here.tobytes()).hexdigest()
    assert "unet/diffusion_pytorch_model.safetensors" not in downloaded, "another took its place"


# -- what else is there ----------------------------------------------------------------------------


def test_a_file_that_is_overwritten_leaves_the_loaded_model_as_it_was(made, tmp_path):
    """Weights in the file's own type are mapped by the loaders, so we copy them."""
    folder = copy(made, "plain", tmp_path)
    pipe = load(folder)
    before = our_pixels(pipe)
    for file in folder.glob("*/*.safetensors"):
        with file.open("r+b") as opened:  # in place: the same file, other bytes
            size = file.stat().st_size
            opened.seek(size // 2)
            opened.write(bytes(size - size // 2))
    np.testing.assert_array_equal(our_pixels(pipe), before)


@pytest.mark.parametrize(("levels", "scale"), [(1, 1), (2, 2), (3, 4), (5, 16)])
def test_a_vae_of_another_scale_gives_the_stock_image(made, tmp_path, levels, scale):
    folder = copy(made, "plain", tmp_path)
    shutil.rmtree(folder / "vae")
    AutoencoderKL(
        block_out_channels=[16] * levels,
        norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    ).save_pretrained(folder / "vae")
    theirs = StableDiffusionXLPipeline.from_pretrained(folder)
    pipe = load(folder)
    ours = our_pixels(pipe, width=96, height=64)
    assert ours.shape == (64, 96, 3)
    np.testing.assert_array_equal(ours, stock_pixels(theirs, width=96, height=64))
    assert pipe.spec["size_multiple"] == max(8, scale)
    if scale > 8:
        with pytest.raises(ValueError, match=r"width: 72 is no multiple of 16.*take 64"):
            our_pixels(pipe, width=72)


def test_original_keys_cover_all_weights(model):
    """So that the tests of single files compare whole models."""
    networks = [model.unet, model.vae, model.text_encoder, model.text_encoder_2]
    params = sum(p.numel() for network in networks for p in network.parameters())
    assert sum(value.numel() for value in original_weights(model).values()) == params
