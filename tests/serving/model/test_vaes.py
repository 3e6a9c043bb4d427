"""VAEs: `vae=` gives the image of a stock pipeline that holds that VAE."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionXLPipeline
from huggingface_hub import constants

from benchlib.serving import standalone
from benchlib.serving.model import single_files
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.single_files import SDXL_HUB_ID
from benchlib.serving.server import serve
from benchlib.serving.standalone import Settings

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

PREFIX = "first_stage_model."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    small_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other():
    """Another model, whose VAE takes the place of the base's."""
    return small_pipeline(seed=1)


@pytest.fixture(scope="module")
def wanted(base, other):
    return stock_pixels(stock_with(base, other.vae))


def stock_with(base, vae):
    return StableDiffusionXLPipeline.from_pretrained(base, vae=vae)


def original_keys(model, prefix=""):
    own = {key: weight for key, weight in original_weights(model).items() if key.startswith(PREFIX)}
    return {prefix + key.removeprefix(PREFIX): weight for key, weight in own.items()}


def as_file(keys):
    def write(model, folder):
        return save(keys(model), folder / "vae.safetensors")

    return write


def as_folder(variant=None):
    def write(model, folder):
        model.vae.save_pretrained(folder / "alone", variant=variant)
        return folder / "alone"

    return write


def as_whole_folder(model, folder):
    model.save_pretrained(folder / "whole")
    return folder / "whole"


@pytest.mark.parametrize(
    "write",
    [
        as_file(lambda model: model.vae.state_dict()),
        as_file(lambda model: original_keys(model) | {"loss.logvar": torch.zeros(1)}),
        as_file(lambda model: original_keys(model, PREFIX)),
        as_file(original_weights),
        as_folder(),
        as_folder("fp16"),
        as_whole_folder,
    ],
    ids=["diffusers", "original", "prefix", "whole file", "folder", "variant", "whole folder"],
)
def test_each_way_to_publish_a_vae_gives_the_stock_image(base, other, wanted, tmp_path, write):
    path = write(other, tmp_path)
    pipe = load(base, vae=str(path))
    assert pipe.spec["vae"] == str(path)
    assert pipe.spec["unet"] is None
    np.testing.assert_array_equal(our_pixels(pipe), wanted)


def test_a_single_file_takes_another_vae_also_in_place_of_none(
    base, other, wanted, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    put_into_hub_cache(tmp_path / "hub", SDXL_HUB_ID, base)
    monkeypatch.setattr(single_files, "SDXL", SMALL)
    weights = original_weights(small_pipeline())
    without = {key: weight for key, weight in weights.items() if not key.startswith(PREFIX)}
    vae = save(other.vae.state_dict(), tmp_path / "vae.safetensors")
    for name, held in (("whole", weights), ("without", without)):
        file = save(held, tmp_path / f"{name}.safetensors")
        np.testing.assert_array_equal(our_pixels(load(file, vae=str(vae))), wanted)
    with pytest.raises(ModelError, match="without its VAE; give one as vae="):
        load(tmp_path / "without.safetensors")


@pytest.mark.parametrize("source", ["someone/vae", "someone/vae/sdxl_vae.safetensors"])
def test_a_cached_vae_of_the_hub_is_found(base, other, wanted, tmp_path, monkeypatch, source):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    other.vae.save_pretrained(tmp_path / "repository")
    save(other.vae.state_dict(), tmp_path / "repository/sdxl_vae.safetensors")
    put_into_hub_cache(tmp_path / "hub", "someone/vae", tmp_path / "repository", with_weights=True)
    np.testing.assert_array_equal(our_pixels(load(base, vae=source)), wanted)


@pytest.mark.parametrize(
    ("name", "upcast", "dtype"),
    [
        ("sdxl-vae-fp16-fix.safetensors", None, "float16"),
        ("sdxl_vae.safetensors", None, "float32"),
        ("fixed", False, "float16"),
        ("plain", True, "float32"),
    ],
)
def test_a_vae_that_was_changed_for_float16_decodes_in_it(
    base, other, tmp_path, name, upcast, dtype
):
    path = tmp_path / name
    if upcast is None:
        save(other.vae.state_dict(), path)
    else:
        other.vae.save_pretrained(path)
        change_json(path / "config.json", force_upcast=upcast)
    pipe = load(base, vae=str(path), dtype="float16")
    assert pipe.spec["networks"]["vae"]["dtype"] == dtype
    assert pipe.spec["networks"]["unet"]["dtype"] == "float16"


@pytest.mark.parametrize("levels", [2, 5])
def test_a_vae_of_another_scale_makes_images_of_the_right_size(base, tmp_path, levels):
    config = SMALL["vae"] | {
        "block_out_channels": [32] * levels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    vae = AutoencoderKL(**config).eval()
    vae.save_pretrained(tmp_path / "vae")
    pipe = load(base, vae=str(tmp_path / "vae"))
    pixels = our_pixels(pipe, width=96, height=64)
    assert pixels.shape == (64, 96, 3)
    np.testing.assert_array_equal(pixels, stock_pixels(stock_with(base, vae), width=96, height=64))


def test_a_tiny_autoencoder_gives_the_stock_image(base, tmp_path):
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8)
    ).eval()
    vae.save_pretrained(tmp_path / "tiny")
    pipe = load(base, vae=str(tmp_path / "tiny"))
    np.testing.assert_array_equal(our_pixels(pipe), stock_pixels(stock_with(base, vae)))


# -- refused ---------------------------------------------------------------------------------------


def a_unet(folder):
    names = ["conv_in", "time_embedding.linear_1", "add_embedding.linear_1"]
    weights = {f"{name}.weight": torch.zeros(2, 4, 3, 3) for name in names}
    return save(weights, folder / "unet.safetensors")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: "nowhere.safetensors", "there is no 'nowhere.safetensors'"),
        (a_unet, "UNet of an SDXL alone; give the VAE"),
        (lambda folder: folder, "is no VAE's folder"),
        (lambda _: "someone/vae", "not cached and the hub can't be reached"),
    ],
    ids=["missing", "unet", "folder", "hub"],
)  # fmt: skip
def test_what_is_no_vae_is_named(base, tmp_path, make, words):
    with pytest.raises(ModelError, match=rf"^\w+: .*{words}"):
        load(base, vae=str(make(tmp_path)))


@pytest.mark.parametrize(
    "change", [{"scaling_factor": 0.18215}, {"latents_mean": [1.0] * 4, "latents_std": [2.0] * 4}]
)
def test_a_vae_for_latents_of_another_scale_is_refused(base, other, tmp_path, change):
    other.vae.save_pretrained(tmp_path / "vae")
    change_json(tmp_path / "vae/config.json", **change)
    with pytest.raises(ModelError, match=rf"^vae: .*has the {next(iter(change))} .*wrong colours"):
        load(base, vae=str(tmp_path / "vae"))


def test_a_vae_of_other_layers_or_channels_is_refused(base, tmp_path):
    wide = AutoencoderKL(**SMALL["vae"] | {"latent_channels": 16})
    path = save(wide.state_dict(), tmp_path / "wide.safetensors")
    with pytest.raises(ModelError, match=r"^vae: .*parameters, and this model's VAE"):
        load(base, vae=str(path))
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(ModelError, match="UNet answers 4 channels, and its VAE decodes 16"):
        load(base, vae=str(tmp_path / "wide"))


def test_a_file_does_not_replace_a_vae_of_another_class(base, other, tmp_path):
    model = stock_with(base, AutoencoderTiny())
    model.save_pretrained(tmp_path / "model")
    path = save(other.vae.state_dict(), tmp_path / "vae.safetensors")
    with pytest.raises(ModelError, match="own VAE is a AutoencoderTiny"):
        load(tmp_path / "model", vae=str(path))


# -- where it is named -----------------------------------------------------------------------------


def test_a_server_takes_it_and_says_so(base, other, tmp_path):
    path = save(other.vae.state_dict(), tmp_path / "vae.safetensors")
    options = {"device": "cpu", "torch_threads": 1}
    with serve(str(base), vae=str(path), sizes=[(64, 64)], **options) as server:
        assert server.spec["vae"] == str(path)
        assert json.dumps(server.spec)


def test_the_environment_names_it_and_the_start_lines_too(
    base, other, tmp_path, monkeypatch, caplog
):
    path = save(other.vae.state_dict(), tmp_path / "vae.safetensors")
    monkeypatch.setenv("BENCHLIB_VAE", str(path))
    monkeypatch.setattr(standalone, "Engine", lambda load, _: load)
    monkeypatch.setattr(standalone, "_log_cost", lambda _: None)
    monkeypatch.setattr(standalone.log, "propagate", True)
    monkeypatch.setattr(standalone.log.parent, "propagate", True)
    with caplog.at_level("INFO", "uvicorn.error"):
        standalone.engine_from(Settings(model=str(base), device="cpu", torch_threads=1))()
    assert f"Its VAE is {path}." in caplog.messages
