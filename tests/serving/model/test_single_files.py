"""Single files: stock's image, or words that say what the file is and what to do."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, StableDiffusionXLPipeline
from huggingface_hub import constants

from benchlib.serving.model import single_files
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.single_files import PLAYGROUND_HUB_ID, SDXL_HUB_ID

from .small_models import (
    SMALL,
    change_json,
    load,
    original_weights,
    our_pixels,
    put_into_hub_cache,
    save,
    small_pipeline,
    stock_pixels,
)

MEAN, DEVIATION = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]


@pytest.fixture(scope="module")
def model():
    return small_pipeline()


@pytest.fixture(scope="module")
def weights(model):
    return original_weights(model)


@pytest.fixture(scope="module")
def base(model, tmp_path_factory):
    """The folder of the model whose configuration single files take."""
    folder = tmp_path_factory.mktemp("base") / "sdxl"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def playground(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("playground") / "playground"
    shutil.copytree(base, folder)
    change_json(
        folder / "vae/config.json", latents_mean=MEAN, latents_std=DEVIATION, scaling_factor=0.5
    )
    name = "EDMDPMSolverMultistepScheduler"
    change_json(folder / "model_index.json", scheduler=["diffusers", name])
    (folder / "scheduler/scheduler_config.json").write_text(
        f'{{"_class_name": "{name}", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}}'
    )
    return folder


@pytest.fixture(autouse=True)
def cache(base, tmp_path, monkeypatch):
    """A hub cache with the base model's configuration alone."""
    cache = tmp_path / "hub"
    put_into_hub_cache(cache, SDXL_HUB_ID, base)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))


def stock(path, **options):
    return StableDiffusionXLPipeline.from_single_file(path, local_files_only=True, **options)


# The warning is the stock call's own.
@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_whole_file_gives_the_stock_image(base, weights, tmp_path, dtype):
    path = save(weights, tmp_path / "whole.safetensors")
    pipe = load(path, dtype=dtype)
    assert pipe.spec["checkpoint"] == "an SDXL checkpoint"
    theirs = stock(path, config=str(base), dtype=getattr(torch, dtype))
    np.testing.assert_array_equal(our_pixels(pipe), stock_pixels(theirs))


def test_a_cached_file_of_the_hub_is_found(cache, weights, tmp_path):
    (tmp_path / "repository").mkdir()
    path = save(weights, tmp_path / "repository/whole.safetensors")
    put_into_hub_cache(cache, "some/merge", tmp_path / "repository", with_weights=True)
    np.testing.assert_array_equal(
        our_pixels(load("some/merge/whole.safetensors")), our_pixels(load(path))
    )
    with pytest.raises(ModelError, match="'some/merge' is not cached and the hub can't be reached"):
        load("some/merge/other.safetensors")


@pytest.mark.parametrize("known_to", ["the hub's cache", "us alone"])
def test_playground_v2_5_gives_the_stock_image(
    cache, playground, weights, tmp_path, monkeypatch, known_to
):
    """diffusers tells it by its keys, and takes another scheduler and other numbers of the VAE."""
    marks = {"edm_mean": torch.tensor(MEAN), "edm_std": torch.tensor(DEVIATION)}
    marks = {key: value.view(1, 4, 1, 1) for key, value in marks.items()}
    path = save(weights | marks, tmp_path / "playground.safetensors")
    if known_to == "us alone":
        monkeypatch.setattr(single_files, "SDXL", SMALL)
        pipe = load(path)
        put_into_hub_cache(cache, PLAYGROUND_HUB_ID, playground)
    else:
        put_into_hub_cache(cache, PLAYGROUND_HUB_ID, playground)
        pipe = load(path)
    theirs = stock(path)
    assert type(pipe.diffusers.scheduler) is type(theirs.scheduler)
    assert pipe.spec["checkpoint"] == "a Playground v2.5 checkpoint"
    np.testing.assert_array_equal(our_pixels(pipe), stock_pixels(theirs))


@pytest.mark.usefixtures("empty_cache")
def test_without_a_cached_configuration_ours_and_any_models_vocabulary_serve(
    base, weights, tmp_path, monkeypatch
):
    """The file lies beside the folder `tokenizer` of another model."""
    monkeypatch.setattr(single_files, "SDXL", SMALL)
    path = save(weights, tmp_path / "whole.safetensors")
    with pytest.raises(
        ModelError, match=r"(?s)neither configuration nor.*put the folder tokenizer"
    ):
        load(path)
    shutil.copytree(base / "tokenizer", tmp_path / "tokenizer")
    theirs = stock(path, config=str(base), dtype=torch.float32)
    np.testing.assert_array_equal(our_pixels(load(path)), stock_pixels(theirs))


# -- what a file predicts --------------------------------------------------------------------------

ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("keys", "metadata", "options", "words"),
    [
        (["v_pred", "ztsnr"], None, ZERO_SNR, "by its keys v_pred and ztsnr"),
        (["v_pred"], None, {}, "v, by its key v_pred"),
        (
            [],
            {"modelspec.prediction_type": "v"},
            {},
            "by modelspec.prediction_type in its metadata",
        ),
        ([], {"modelspec.predict_key": "v"}, {}, "by modelspec.predict_key in its metadata"),
    ],
    ids=["noobai", "v", "kohya", "comfyui"],
)
def test_a_file_that_predicts_v_is_known_by_its_marks(
    base, weights, tmp_path, keys, metadata, options, words
):
    """Stock takes it for one that predicts noise; here stock is told what it is."""
    marks = {key: torch.tensor([]) for key in keys}
    path = save(weights | marks, tmp_path / "v.safetensors", metadata=metadata)
    pipe = load(path)
    theirs = stock(path, config=str(base), dtype=torch.float32)
    theirs.scheduler = type(theirs.scheduler).from_config(
        theirs.scheduler.config, prediction_type="v_prediction", **options
    )
    assert words in pipe.spec["predicts"]
    np.testing.assert_array_equal(our_pixels(pipe), stock_pixels(theirs))


def test_a_file_that_predicts_noise_by_its_metadata_stays_as_it_is(weights, tmp_path):
    metadata = {"modelspec.prediction_type": "epsilon"}
    pipe = load(save(weights, tmp_path / "noise.safetensors", metadata=metadata))
    assert pipe.diffusers.scheduler.config.prediction_type == "epsilon"


def test_cosxl_takes_the_noise_levels_of_its_file(base, weights, tmp_path):
    marks = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
    path = save(weights | marks, tmp_path / "cosxl.safetensors")
    pipe = load(path)
    theirs = stock(path, config=str(base), dtype=torch.float32)
    theirs.scheduler = EDMEulerScheduler(
        sigma_max=120.0,
        sigma_min=torch.tensor(0.002).item(),
        sigma_data=1.0,
        sigma_schedule="exponential",
        prediction_type="v_prediction",
    )
    assert "noise levels 0.002 to 120" in pipe.spec["predicts"]
    np.testing.assert_array_equal(our_pixels(pipe), stock_pixels(theirs))


# -- number formats --------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float16, torch.float8_e4m3fn])
def test_weights_in_fewer_bits_are_rounded_as_by_stock(base, weights, tmp_path, stored):
    path = save(weights, tmp_path / "few-bits.safetensors", dtype=stored)
    theirs = stock(path, config=str(base), dtype=torch.float32)
    np.testing.assert_array_equal(our_pixels(load(path)), stock_pixels(theirs))


@pytest.mark.parametrize(
    "unet",
    [
        {
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [1, [1, 2], [2, 2]],
            "reverse_transformer_layers_per_block": [[2, 1, 3], [1, 1, 2], 1],
        },
        {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, 1, 2]},
        {"transformer_layers_per_block": [1, 2, 1]},
    ],
    ids=["as SSD-1B", "as Vega", "other layers"],
)
def test_a_unet_with_other_layers_is_laid_out_by_the_names_in_its_file(tmp_path, unet):
    model = small_pipeline(seed=4, unet=unet)
    path = save(original_weights(model), tmp_path / "smaller.safetensors")
    np.testing.assert_array_equal(our_pixels(load(path)), stock_pixels(model))


# -- refused ---------------------------------------------------------------------------------------


def test_a_unet_with_other_resnets_in_one_file_is_refused_with_both_sizes(weights, tmp_path):
    """Koala, for example, has fewer of them: their names do not say in which block they are."""
    last = "model.diffusion_model.output_blocks.8."
    weights = {key: value for key, value in weights.items() if not key.startswith(last)}
    with pytest.raises(ModelError, match=r"whose UNet has [\d,]+ parameters in place of"):
        load(save(weights, tmp_path / "small.safetensors"))


def test_a_file_that_lacks_some_weights_is_refused(weights, tmp_path):
    some = {
        key: value for key, value in weights.items() if "first_stage_model.decoder.up." not in key
    }
    with pytest.raises(ModelError, match=r"whose VAE has .* so a part is missing"):
        load(save(some, tmp_path / "lacking.safetensors"))


@pytest.mark.parametrize("part", ["resblocks.1.", "text_projection"])
def test_a_text_encoder_that_lacks_some_weights_is_refused(weights, tmp_path, part):
    """Without the projection, stock makes an image of whatever lies in memory."""
    some = {key: value for key, value in weights.items() if part not in key}
    with pytest.raises(ModelError, match=r"lacks .*weights"):
        load(save(some, tmp_path / "lacking.safetensors"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not at all", "no safetensors file"),
        (b"", "no safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>Log in</html>", "is a web page"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, content, words):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        load(path)


def test_a_cut_file_is_named_with_its_bytes(weights, tmp_path):
    path = save(weights, tmp_path / "whole.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    size = f"{len(whole) // 2:,} of {len(whole):,}"
    with pytest.raises(ModelError, match=f"is cut: it has {size} bytes; download it again"):
        load(path)


def test_an_address_is_no_name():
    with pytest.raises(ModelError, match=r"is an address; .*owner/name/file\.safetensors"):
        load("https://example.org/model.safetensors")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.ckpt", "is a pickle, which can run code"),
        ("model.pt", "is a pickle"),
        ("model.SAFETENSORS", "in small letters; rename it"),
        ("model.gguf", "files of the kind '.gguf' are not read"),
        ("model", "files of the kind 'model' are not read"),
        ("model_index.json", "is a list of a model's parts; give its folder"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"0")
    with pytest.raises(ModelError, match=words):
        load(tmp_path / name)
