"""UNets: `unet=` gives the image of a stock pipeline that holds that UNet."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
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
    request,
    save,
    small_pipeline,
    stock_pixels,
    unet_keys,
)

PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    small_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other():
    """Another model, whose UNet takes the place of the base's."""
    return small_pipeline(seed=1)


@pytest.fixture(scope="module")
def lcm():
    return small_pipeline(seed=2, unet={"time_cond_proj_dim": 16}).unet


def stock_with(base, unet):
    return StableDiffusionXLPipeline.from_pretrained(base, unet=unet)


def as_file(keys):
    def write(model, folder):
        return save(keys(model), folder / "unet.safetensors")

    return write


def with_prefix(model):
    return {PREFIX + key: value for key, value in unet_keys(model.unet.state_dict()).items()}


def as_folder(variant=None):
    def write(model, folder):
        model.unet.save_pretrained(folder / "alone", variant=variant)
        return folder / "alone"

    return write


def as_whole_folder(model, folder):
    model.save_pretrained(folder / "whole")
    return folder / "whole"


@pytest.mark.parametrize(
    "write",
    [
        as_file(lambda model: model.unet.state_dict()),
        as_file(lambda model: unet_keys(model.unet.state_dict())),
        as_file(with_prefix),
        as_file(original_weights),
        as_folder(),
        as_folder("fp16"),
        as_whole_folder,
    ],
    ids=["diffusers", "original", "prefix", "whole file", "folder", "variant", "whole folder"],
)
def test_each_way_to_publish_a_unet_gives_the_stock_image(base, other, tmp_path, write):
    path = write(other, tmp_path)
    pipe = load(base, unet=str(path))
    assert pipe.spec["unet"] == str(path)
    assert pipe.spec["model"] == str(base)
    np.testing.assert_array_equal(our_pixels(pipe), stock_pixels(stock_with(base, other.unet)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_unet_is_cast_to_the_models_type(base, other, tmp_path, dtype):
    path = save(other.unet.state_dict(), tmp_path / "unet.safetensors")
    pipe = load(base, unet=str(path), dtype=dtype)
    rounded = UNet2DConditionModel.from_config(other.unet.config)
    rounded.load_state_dict(other.unet.state_dict())
    theirs = pipe.diffusers
    theirs.unet = rounded.to(getattr(torch, dtype)).eval()
    [ours] = pipe.encode([request()])
    pipe.step([ours])
    theirs.set_progress_bar_config(disable=True)
    latents = theirs(
        "a lighthouse", num_inference_steps=3, width=64, height=64, guidance_scale=5.0,
        generator=torch.Generator().manual_seed(1), output_type="latent",
    ).images  # fmt: skip
    while not ours.finished:
        pipe.step([ours])
    assert torch.equal(ours.latents, latents)


@pytest.mark.parametrize("keys", [dict, unet_keys], ids=["diffusers", "original"])
def test_keys_of_others_beside_a_unet_are_passed_over(base, other, tmp_path, keys):
    weights = keys(other.unet.state_dict())
    foreign = {"optimizer.step": torch.zeros(3), "text_projection": torch.zeros(3, 3)}
    pipe = load(base, unet=str(save(weights | foreign, tmp_path / "unet.safetensors")))
    np.testing.assert_array_equal(our_pixels(pipe), stock_pixels(stock_with(base, other.unet)))


def test_the_base_models_own_unet_is_not_needed(base, other, tmp_path):
    """A folder whose UNet was left out of the download has its configuration alone."""
    folder = shutil.copytree(base, tmp_path / "base")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    path = save(other.unet.state_dict(), tmp_path / "unet.safetensors")
    np.testing.assert_array_equal(
        our_pixels(load(folder, unet=str(path))), our_pixels(load(base, unet=str(path)))
    )


def test_a_single_file_takes_another_unet(base, other, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    put_into_hub_cache(tmp_path / "hub", SDXL_HUB_ID, base)
    monkeypatch.setattr(single_files, "SDXL", SMALL)
    whole = save(original_weights(small_pipeline()), tmp_path / "whole.safetensors")
    path = save(other.unet.state_dict(), tmp_path / "unet.safetensors")
    np.testing.assert_array_equal(
        our_pixels(load(whole, unet=str(path))), stock_pixels(stock_with(base, other.unet))
    )


@pytest.mark.parametrize(
    "source", ["someone/few-steps", "someone/few-steps/unet_4step.safetensors"]
)
def test_a_cached_unet_of_the_hub_is_found(base, other, tmp_path, monkeypatch, source):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    other.unet.save_pretrained(tmp_path / "repository")
    save(other.unet.state_dict(), tmp_path / "repository/unet_4step.safetensors")
    put_into_hub_cache(
        tmp_path / "hub", "someone/few-steps", tmp_path / "repository", with_weights=True
    )
    pipe = load(base, unet=source)
    np.testing.assert_array_equal(our_pixels(pipe), stock_pixels(stock_with(base, other.unet)))


@pytest.mark.parametrize(
    ("name", "marks", "prediction", "words"),
    [
        (
            "lightning_1step_unet_x0",
            [],
            "sample",
            "the image itself, by x0 in the name of its UNet",
        ),
        ("lightning_4step_unet", [], "epsilon", None),
        ("unet", ["v_pred"], "v_prediction", "v, by its key v_pred"),
    ],
)
def test_what_a_unet_predicts_is_known_by_its_name_or_marks(
    base, other, tmp_path, name, marks, prediction, words
):
    weights = other.unet.state_dict() | {key: torch.tensor([]) for key in marks}
    pipe = load(base, unet=str(save(weights, tmp_path / f"{name}.safetensors")))
    assert pipe.spec["predicts"] == words
    theirs = stock_with(base, other.unet)
    spacing = "trailing" if prediction == "sample" else "leading"
    theirs.scheduler = type(theirs.scheduler).from_config(
        theirs.scheduler.config, prediction_type=prediction, timestep_spacing=spacing
    )
    np.testing.assert_array_equal(our_pixels(pipe), stock_pixels(theirs))


# -- guidance as an input (LCM) --------------------------------------------------------------------


def lcm_file(lcm, folder):
    return save(lcm.state_dict(), folder / "lcm.safetensors")


def lcm_folder(lcm, folder):
    lcm.save_pretrained(folder / "lcm")
    return folder / "lcm"


def test_a_unet_in_a_whole_model_predicts_as_the_scheduler_beside_it(base, other, tmp_path):
    """Taken for noise, what it predicts would give noise."""
    shutil.copytree(base, tmp_path / "v")
    other.unet.save_pretrained(tmp_path / "v/unet")
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    change_json(tmp_path / "v/scheduler/scheduler_config.json", **config)
    theirs = stock_with(base, other.unet)
    own = theirs.scheduler
    theirs.scheduler = type(own).from_config(own.config, **config)
    wanted = stock_pixels(theirs)
    for place in ("v", "v/unet"):
        pipe = load(base, unet=str(tmp_path / place))
        assert pipe.spec["predicts"] == "v_prediction, by the scheduler beside its UNet"
        np.testing.assert_array_equal(our_pixels(pipe), wanted)


@pytest.mark.parametrize("write", [lcm_file, lcm_folder])
@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 8.0])
def test_an_lcms_unet_reads_the_guidance(base, lcm, tmp_path, write, guidance_scale):
    pipe = load(base, unet=str(write(lcm, tmp_path)))
    theirs = stock_with(base, lcm)
    changes = {"guidance_scale": guidance_scale, "negative_prompt": "rain"}
    np.testing.assert_array_equal(our_pixels(pipe, **changes), stock_pixels(theirs, **changes))
    [work] = pipe.encode([request(**changes)])
    assert not work.guided  # one row of the UNet


def test_an_lcm_in_its_own_sampler_gives_the_stock_image(base, lcm, tmp_path):
    pipe = load(base, unet=str(lcm_file(lcm, tmp_path)), scheduler="lcm")
    theirs = stock_with(base, lcm)
    theirs.scheduler = LCMScheduler.from_config(theirs.scheduler.config)
    changes = {"guidance_scale": 8.0, "num_inference_steps": 4}
    np.testing.assert_array_equal(our_pixels(pipe, **changes), stock_pixels(theirs, **changes))


def test_lcms_of_different_guidance_share_a_batch(base, lcm, tmp_path):
    pipe = load(base, unet=str(lcm_file(lcm, tmp_path)))
    requests = [request(guidance_scale=scale, seed=3) for scale in (1.0, 8.0)]
    together = pipe.generate(requests).images
    for image, one in zip(together, requests, strict=True):
        alone = pipe.generate(one).images[0]
        difference = np.asarray(image).astype(int) - np.asarray(alone)
        assert np.abs(difference).max() <= 1  # a batch sums in another order


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: "nowhere.safetensors", "there is no 'nowhere.safetensors'"),
        (lambda folder: save({"decoder.conv_in.weight": torch.zeros(2)}, folder / "x.safetensors"), "is a VAE alone"),
        (lambda folder: folder, "is no UNet's folder"),
        (lambda _: "someone/few-steps", "not cached and the hub can't be reached"),
        (lambda _: "someone/few-steps/x.safetensors", "not cached and the hub can't be reached"),
    ],
    ids=["missing", "vae", "folder", "hub", "hub file"],
)  # fmt: skip
def test_what_is_no_unet_is_named(base, tmp_path, make, words):
    with pytest.raises(ModelError, match=words):
        load(base, unet=str(make(tmp_path)))


def test_a_unet_of_another_model_is_refused(base, tmp_path):
    larger = small_pipeline(unet={"transformer_layers_per_block": [1, 2, 1]})
    path = save(larger.unet.state_dict(), tmp_path / "larger.safetensors")
    with pytest.raises(ModelError, match=r"^unet: .*parameters, and this model's UNet"):
        load(base, unet=str(path))


def test_a_folder_of_another_network_is_refused(base):
    with pytest.raises(ModelError, match="holds a AutoencoderKL; give the UNet"):
        load(base, unet=str(base / "vae"))


def test_a_unet_with_other_texts_is_refused(base, tmp_path):
    narrow = UNet2DConditionModel(**SMALL["unet"] | {"cross_attention_dim": 96})
    narrow.save_pretrained(tmp_path / "narrow")
    with pytest.raises(ModelError, match="reads texts of width 96"):
        load(base, unet=str(tmp_path / "narrow"))


# -- where it is named -----------------------------------------------------------------------------


def test_a_server_takes_it_and_says_so(base, other, tmp_path, monkeypatch):
    path = save(other.unet.state_dict(), tmp_path / "unet.safetensors")
    with serve(
        str(base), device="cpu", unet=str(path), sizes=[(64, 64)], torch_threads=1
    ) as server:
        assert server.spec["unet"] == str(path)
        assert json.dumps(server.spec)
    monkeypatch.setenv("BENCHLIB_UNET", str(path))
    assert Settings().unet == str(path)


def test_the_start_lines_say_what_was_found(base, other, tmp_path, monkeypatch, caplog):
    weights = other.unet.state_dict() | {"v_pred": torch.tensor([])}
    path = save(weights, tmp_path / "unet.safetensors")
    monkeypatch.setattr(standalone, "Engine", lambda load, _: load)
    monkeypatch.setattr(standalone, "_log_cost", lambda _: None)
    settings = Settings(model=str(base), device="cpu", unet=str(path), torch_threads=1)
    with caplog.at_level("INFO", "uvicorn.error"):
        standalone.engine_from(settings)()
    assert "It predicts v, by its key v_pred." in caplog.messages
    assert f"Its UNet is {path}." in caplog.messages
