"""Folders as people bring them: odd but whole ones give stock's image, and broken ones are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from benchlib.serving.model import model_folders
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.torch_thread import on_torch_thread

from .small_models import (
    change_json,
    load,
    original_weights,
    our_pixels,
    save,
    small_pipeline,
    stock_pixels,
)

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
FP8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def model():
    return small_pipeline()


@pytest.fixture(scope="module")
def base(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "whole"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "changed")


def rewrite(folder, change, *names, metadata=None):
    """Change the weights of the networks `names`, or of all."""
    for name in names or NETWORKS:
        [path] = (folder / name).glob("*.safetensors")
        save_file(change(load_file(path)), path, metadata=metadata or {"format": "pt"})


def in_8_bits(weights):
    return {key: value.to(FP8) if value.ndim > 1 else value for key, value in weights.items()}


def scaled(weights):
    """As ComfyUI packs: each matrix in 8 bits, with its scale beside it."""
    scales = {}
    for key in [key for key, value in weights.items() if value.ndim > 1]:
        scale = weights[key].abs().max() / 448
        weights[key] = (weights[key] / scale).to(FP8)
        scales[key.replace(".weight", ".scale_weight")] = scale
    return weights | scales


def compiled(weights):
    """As torch.compile names the weights of a network that was saved while compiled."""
    return {f"_orig_mod.{key}": value for key, value in weights.items()}


def set_index(**fields):
    return lambda folder: change_json(folder / "model_index.json", **fields)


# -- whole -----------------------------------------------------------------------------------------


def give_image_encoder(folder):
    """As a pipeline that was saved with an IP-Adapter's encoder."""
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    CLIPImageProcessor().save_pretrained(folder / "feature_extractor")
    set_index(
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )(folder)


def with_other_weights(folder):
    for name in ("unet/model", "text_encoder/diffusion_pytorch_model"):
        save({"other": torch.zeros(3)}, folder / f"{name}.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: rewrite(folder, in_8_bits),
        lambda folder: rewrite(folder, dict, metadata={"modelspec.title": "mine"}),
        set_index(force_zeros_for_empty_prompt=False, add_watermarker=False),
        set_index(safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]),
        give_image_encoder,
        with_other_weights,
        lambda folder: change_json(folder / "unet/config.json", sample_size=[16, 24]),
        lambda folder: change_json(folder / "scheduler/scheduler_config.json", unknown=1),
    ],
    ids=["fp8", "metadata", "no zeros", "checker", "images", "weights", "sides", "option"],
)
def test_an_odd_folder_gives_stocks_image(folder, change):
    change(folder)
    theirs = StableDiffusionXLPipeline.from_pretrained(folder)
    np.testing.assert_array_equal(our_pixels(load(folder)), stock_pixels(theirs))


def test_texts_of_248_tokens_give_stocks_image(tmp_path):
    """As Long-CLIP, in both text encoders."""
    positions = {"max_position_embeddings": 248}
    long = small_pipeline(text_encoder=positions, text_encoder_2=positions)
    long.tokenizer.model_max_length = long.tokenizer_2.model_max_length = 248
    long.save_pretrained(tmp_path)
    changes = {"prompt": "a lighthouse " * 15}
    ours = our_pixels(load(tmp_path), **changes)
    theirs = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    np.testing.assert_array_equal(ours, stock_pixels(theirs, **changes))


@pytest.mark.parametrize("name", ["unet", "vae"])
def test_a_folder_without_a_network_takes_ones_own(base, folder, name):
    theirs = StableDiffusionXLPipeline.from_pretrained(folder)
    set_index(**{name: [None, None]})(folder)
    shutil.rmtree(folder / name)
    with pytest.raises(ModelError, match=f"names no {name}; give one as {name}="):
        load(folder)
    pipe = load(folder, **{name: str(base / name)})
    np.testing.assert_array_equal(our_pixels(pipe), stock_pixels(theirs))


@pytest.mark.parametrize("dtype", [FP8, torch.bfloat16, torch.float64])
def test_a_lora_in_any_type_gives_stocks_image(model, base, tmp_path, dtype):
    tensors = {}
    for name, layer in model.unet.named_modules():
        if name.endswith(".to_q"):
            out, into = layer.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = torch.linspace(-1, 1, 4 * into).view(4, into)
            tensors[f"unet.{name}.lora_B.weight"] = torch.linspace(-1, 1, 4 * out).view(out, 4)
    path = str(save(tensors, tmp_path / "lora.safetensors", dtype))
    theirs = StableDiffusionXLPipeline.from_pretrained(base)
    plain = stock_pixels(theirs)
    theirs.load_lora_weights(path, adapter_name="only")
    wanted = stock_pixels(theirs)
    assert not np.array_equal(wanted, plain)
    np.testing.assert_array_equal(our_pixels(load(base, loras={"only": path}), lora="only"), wanted)


# -- refused ---------------------------------------------------------------------------------------


def link_to_nothing(folder):
    """As the hub's cache looks after its blobs were moved."""
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.unlink()
    path.symlink_to("/nowhere/blob")


def folder_as_file(folder):
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    path.unlink()
    path.mkdir()


def rename_weights(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("model.safetensors"))


def drop_merges(folder):
    """transformers 4 wrote vocab.json and merges.txt."""
    names = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer/vocab.json").write_text(json.dumps(names))
    (folder / "tokenizer/tokenizer.json").unlink()


def give_t5(folder):
    shutil.rmtree(folder / "text_encoder")
    config = T5Config(vocab_size=600, d_model=64, d_ff=64, num_layers=1, num_heads=2, d_kv=32)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    set_index(text_encoder=["transformers", "T5EncoderModel"])(folder)


def more_layers(folder):
    deeper = small_pipeline(unet={"transformer_layers_per_block": [1, 1, 2]})
    deeper.unet.save_pretrained(folder / "deeper")
    weights = "diffusion_pytorch_model.safetensors"
    shutil.copy(folder / "deeper" / weights, folder / "unet" / weights)


def quantised(name):
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return lambda folder: change_json(folder / name / "config.json", quantization_config=method)


def integers(weights):
    return {
        key: value.to(torch.int8) if value.ndim > 1 else value for key, value in weights.items()
    }


def lfs_tokenizer(folder):
    (folder / "tokenizer/tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (link_to_nothing, "unet/.* is a link to /nowhere/blob, which is not there"),
        (folder_as_file, r"vae/.* can't be opened \(Is a directory\)"),
        (rename_weights, "unet holds model.safetensors, and diffusers reads only diff.*rename"),
        (lambda it: rewrite(it, scaled, "unet"), "unet/.* with scales of their own; give .* 16 bits"),
        (lambda it: rewrite(it, scaled, "text_encoder_2"), "text_encoder_2/.* with scales of their"),
        (lambda it: rewrite(it, integers, "unet"), r"unet/.* quantised weights \(I8\)"),
        (quantised("unet"), "Its unet is quantised: give the file in 16 bits"),
        (quantised("text_encoder"), "Its text_encoder is quantised: give the file in 16 bits"),
        (more_layers, r"unet has weights named 'down_blocks.2\S+', for which its config.json has"),
        (drop_merges, "tokenizer holds vocab.json without merges.txt, so texts"),
        (lfs_tokenizer, "tokenizer holds a Git LFS pointer as its tokenizer.json"),
        (lambda it: (it / "text_encoder/config.json").unlink(), "no file .*text_encoder/config.json"),
        (lambda it: (it / "scheduler/scheduler_config.json").unlink(), "no file .*scheduler_config"),
        (give_t5, "has a T5EncoderModel, and SDXL's text encoders are CLIP's"),
        (set_index(text_encoder=None), r"has null for text_encoder; write \[null, null\]"),
        (set_index(scheduler=[None, None]), "names no scheduler; give a whole model"),
        (set_index(feature_extractor=["transformers", "CLIPImageProcessor"]),
         "the CLIPImageProcessor of the folder feature_extractor, which is not there"),
        (set_index(unet=["my_unet", "MyUNet"]), "for unet the MyUNet of its own code 'my_unet'"),
    ],
    ids=["link", "folder", "name", "scaled", "scaled text", "int8", "4 bits", "4-bit text",
         "deeper", "merges", "lfs", "config", "scheduler", "t5", "null", "no scheduler",
         "extractor", "own code"],
)  # fmt: skip
def test_a_broken_folder_is_refused_in_words(folder, change, words):
    change(folder)
    with pytest.raises(ModelError, match=f"^model: .*{words}"):
        load(folder)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_by_other_names_are_refused(folder, name):
    """As many numbers as there should be. transformers would draw others at random."""
    rewrite(folder, compiled, name)
    with pytest.raises(ModelError, match=rf"{name} has no weights named .*some named '_orig_mod\."):
        load(folder)


def test_a_watermark_without_its_package_is_refused(folder, monkeypatch):
    monkeypatch.setattr(model_folders, "is_invisible_watermark_available", lambda: False)
    set_index(add_watermarker=True)(folder)
    with pytest.raises(ModelError, match="pip install invisible-watermark"):
        load(folder)


def test_a_file_with_diffusers_names_behind_the_original_prefix_is_refused(model, tmp_path):
    prefix = "model.diffusion_model."
    weights = original_weights(model)
    others = {key: value for key, value in weights.items() if not key.startswith(prefix)}
    mixed = {prefix + key: value for key, value in model.unet.state_dict().items()}
    path = save(others | mixed, tmp_path / "mixed.safetensors")
    with pytest.raises(ModelError, match=f"diffusers' names behind {prefix}.*as unet="):
        load(path)


def test_older_names_of_attention_load(folder):
    """VAEs that were saved by diffusers before version 0.12 are still about."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    theirs = StableDiffusionXLPipeline.from_pretrained(folder)

    def rename(weights):
        renamed = {}
        for key, value in weights.items():
            for new, old in older.items():
                key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
            renamed[key] = value
        return renamed

    wanted = stock_pixels(theirs)
    rewrite(folder, rename, "vae")
    np.testing.assert_array_equal(our_pixels(load(folder)), wanted)


def test_a_network_that_is_laid_out_leaves_torchs_defaults_alone(folder, monkeypatch):
    """So that a load and a load of another thread leave each other alone."""

    def refuse(*_):
        raise AssertionError("torch's default dtype was set")

    register = torch.nn.Module.register_parameter
    seen = set()

    def watch(*arguments):
        seen.add(torch.nn.Module.register_parameter)
        return register(*arguments)

    on_torch_thread(load, folder).close()  # whatever is set once, is set now
    monkeypatch.setattr(torch, "set_default_dtype", refuse)
    monkeypatch.setattr(torch.nn.Module, "register_parameter", watch)
    load(folder).close()
    assert seen == {watch}
