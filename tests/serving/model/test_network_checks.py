"""Network checks: null text encoders make stock's image, or are refused as stock fails."""

import copy
import json
import shutil

import numpy as np
import pytest
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderTiny,
    ConsistencyDecoderVAE,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from benchlib.serving.model.model_errors import ModelError

from .small_models import SMALL, change_json, load, our_pixels, save, small_pipeline, stock_pixels


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


def make_null(folder, *names):
    for name in names:
        change_json(folder / "model_index.json", **{name: [None, None]})
        shutil.rmtree(folder / name)


def give_unet(folder, **changes):
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel(**SMALL["unet"] | changes).save_pretrained(folder / "unet")


@pytest.mark.parametrize("nulls", [["text_encoder", "tokenizer"], ["text_encoder"]])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_without_the_first_text_encoder_the_image_is_stocks(folder, nulls, guidance_scale):
    make_null(folder, *nulls)
    give_unet(folder, cross_attention_dim=96)
    pipe = load(folder)
    theirs = StableDiffusionXLPipeline.from_pretrained(folder)
    assert list(pipe.spec["networks"]) == ["unet", "text_encoder_2", "vae"]
    changes = {"negative_prompt": "rain", "guidance_scale": guidance_scale}
    np.testing.assert_array_equal(our_pixels(pipe, **changes), stock_pixels(theirs, **changes))


@pytest.mark.parametrize(
    ("nulls", "words"),
    [
        (["text_encoder_2"], "second text encoder or that encoder's tokenizer is null"),
        (["text_encoder_2", "tokenizer_2"], "second text encoder or that encoder's tokenizer"),
        (["tokenizer_2"], "second text encoder or that encoder's tokenizer is null"),
        (["tokenizer"], "gives the pooled text"),
    ],
)
def test_what_stock_cant_do_without_is_refused(folder, nulls, words):
    make_null(folder, *nulls)
    with pytest.raises((TypeError, AttributeError)):
        stock_pixels(StableDiffusionXLPipeline.from_pretrained(folder))
    with pytest.raises(ModelError, match=words):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 9}, "has 9 input channels in place of 4, so it fills in masked pictures"),
        ({"in_channels": 8}, "has 8 input channels in place of 4, so it edits pictures"),
        ({"in_channels": 8, "out_channels": 8}, "answers 8 channels, and its VAE decodes 4"),
        ({"cross_attention_dim": 96}, "reads texts of width 96, and its text encoders write 160"),
        ({"projection_class_embeddings_input_dim": 256}, "reads 256 numbers .* gives 288"),
        ({"addition_embed_type": None}, "does not read the image's size"),
    ],
)
def test_networks_that_do_not_fit_are_refused(folder, changes, words):
    give_unet(folder, **changes)
    with pytest.raises(ModelError, match=f"can't make images from texts: .*{words}"):
        load(folder)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_a_token_without_an_embedding_is_refused(base, folder, name):
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    tokenizer = getattr(pipe, name)
    tokenizer.add_tokens(["<cat-toy>"])
    tokenizer.save_pretrained(folder / name)
    with pytest.raises(ModelError, match=r"knows 515 tokens, .* embeddings for 514; remove"):
        load(folder)


def test_a_token_with_embeddings_gives_stocks_image(base, tmp_path):
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    pairs = ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
    for tokenizer, encoder in pairs:
        tokenizer.add_tokens(["<cat-toy>", "<cat-toy>_1"])  # one embedding of two vectors
        encoder.resize_token_embeddings(len(tokenizer))
    pipe.save_pretrained(tmp_path)
    changes = {"prompt": "a <cat-toy> on a hill"}
    theirs = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    ours = our_pixels(load(tmp_path), **changes)
    np.testing.assert_array_equal(ours, stock_pixels(theirs, **changes))


@pytest.mark.parametrize("width", [96, 24])
def test_a_first_encoder_with_a_projection_gives_the_pooled_text(base, tmp_path, width):
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    config = CLIPTextConfig(**pipe.text_encoder.config.to_dict() | {"projection_dim": width})
    pipe.register_modules(text_encoder=CLIPTextModelWithProjection(config))
    pipe.save_pretrained(tmp_path)
    if width == 24:
        with pytest.raises(ModelError, match=r"reads 288 numbers .* gives 216"):
            load(tmp_path)
        return
    theirs = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    np.testing.assert_array_equal(our_pixels(load(tmp_path)), stock_pixels(theirs))


def test_tokenizers_of_two_lengths_are_refused(folder):
    change_json(folder / "tokenizer_2/tokenizer_config.json", model_max_length=32)
    with pytest.raises(ModelError, match="fill texts up to 77 and 32 tokens"):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"mid_block_type": None},  # Koala has no middle block
        {"transformer_layers_per_block": [1, 2, 1], "layers_per_block": 1},
        {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
         "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
         "block_out_channels": [32, 64], "attention_head_dim": [2, 4],
         "transformer_layers_per_block": [1, 1]},
        {"mid_block_type": "UNetMidBlock2D"},
    ],
    ids=["koala", "ssd", "two levels", "vega"],
)  # fmt: skip
def test_smaller_unets_load_from_a_folder(folder, changes):
    give_unet(folder, **changes)
    pipe = load(folder)
    theirs = StableDiffusionXLPipeline.from_pretrained(folder)
    networks = [theirs.unet, theirs.vae, theirs.text_encoder, theirs.text_encoder_2]
    params = sum(p.numel() for network in networks for p in network.parameters())
    assert pipe.spec["model_params"] == params
    np.testing.assert_array_equal(our_pixels(pipe), stock_pixels(theirs))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("StableDiffusionXLInpaintPipeline", "which fills in a masked part of a picture"),
        ("StableDiffusionXLInstructPix2PixPipeline", "which edits a picture"),
        ("StableDiffusionXLImg2ImgPipeline", "which changes a picture, as SDXL's refiner does"),
        ("KolorsPipeline", "holds a KolorsPipeline, not a"),
        (["pipeline", "MyPipeline"], "a pipeline of its own code, .*'MyPipeline'.*; where its"),
    ],
)
def test_a_pipeline_of_another_class_is_named(folder, name, words):
    change_json(folder / "model_index.json", _class_name=name)
    with pytest.raises(ModelError, match=words):
        load(folder)


def test_an_unknown_sample_size_is_sdxls(folder):
    config = copy.deepcopy(json.loads((folder / "unet/config.json").read_text()))
    (folder / "unet/config.json").write_text(json.dumps(config | {"sample_size": None}))
    assert load(folder).spec["showcase"]["width"] == 1024


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_embed_type": "timestep"}, "reads more than texts"),
        ({"num_class_embeds": 2}, "reads more than texts"),
    ],
)
def test_a_unet_with_more_inputs_is_refused(folder, changes, words):
    give_unet(folder, **changes)
    with pytest.raises(ModelError, match=words):
        load(folder)


def test_a_tokenizer_that_fills_up_too_far_is_refused(folder):
    change_json(folder / "tokenizer/tokenizer_config.json", model_max_length=120)
    with pytest.raises(ModelError, match="up to 120 tokens, and its text encoder reads 77"):
        load(folder)


def test_a_tokenizer_without_vocabulary_is_refused(folder):
    (folder / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(
        ModelError, match=r"tokenizer holds neither tokenizer\.json nor vocab\.json"
    ):
        load(folder)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_missing_weights_are_refused(folder, name):
    """transformers fills them in at random: each load makes other images."""
    [path] = (folder / name).glob("*.safetensors")
    weights = load_file(path)
    last = next(key for key in reversed(weights) if key.endswith("weight"))
    del weights[last]
    save(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"has [\d,]+ of the [\d,]+ weights of its configuration"):
        load(folder)


def test_a_scheduler_of_flow_models_is_refused_and_another_may_be_chosen(folder):
    name = "FlowMatchEulerDiscreteScheduler"
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": name}))
    change_json(folder / "model_index.json", scheduler=["diffusers", name])
    with pytest.raises(ModelError, match=f"has the scheduler {name}, .*scheduler='euler'"):
        load(folder)


@pytest.mark.parametrize(
    "vae",
    [
        AutoencoderTiny(encoder_block_out_channels=[16] * 4, decoder_block_out_channels=[16] * 4),
        AsymmetricAutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            down_block_out_channels=[16] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            up_block_out_channels=[16] * 4,
            norm_num_groups=8,
        ),
    ],
    ids=lambda vae: type(vae).__name__,
)
def test_a_vae_of_another_class_gives_the_stock_image(folder, vae):
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    change_json(folder / "model_index.json", vae=["diffusers", type(vae).__name__])
    theirs = StableDiffusionXLPipeline.from_pretrained(folder)
    np.testing.assert_array_equal(our_pixels(load(folder)), stock_pixels(theirs))


def test_a_vae_that_draws_noise_is_refused(folder):
    shutil.rmtree(folder / "vae")
    ConsistencyDecoderVAE(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        decoder_layers_per_block=1,
        encoder_layers_per_block=1,
    ).save_pretrained(folder / "vae")
    change_json(folder / "model_index.json", vae=["diffusers", "ConsistencyDecoderVAE"])
    with pytest.raises(ModelError, match="draws noise at each decoding"):
        load(folder)
