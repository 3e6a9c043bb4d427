"""Checkpoint kinds: each is told by the names and shapes in a header; no file is needed."""

from pathlib import Path

import pytest

from benchlib.serving.model.checkpoint_kinds import find_kind, require_kind
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.weights_files import Header

UNET = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
}
FIRST = {"conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,)}
SECOND = {"conditioner.embedders.1.model.ln_final.weight": (1280,)}
VAE = {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}
SDXL = UNET | FIRST | SECOND | VAE
EDM = {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)}
OLDER = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)} | VAE


def with_inputs(channels):
    return SDXL | {"model.diffusion_model.input_blocks.0.0.weight": (320, channels, 3, 3)}


def header(shapes, dtype="F16"):
    return Header(Path("it.safetensors"), shapes, dict.fromkeys(shapes, dtype), metadata={})


@pytest.mark.parametrize(
    ("shapes", "words", "holds"),
    [
        (SDXL, "an SDXL checkpoint", "model"),
        (SDXL | {"edm_mean": (1, 4, 1, 1)}, "a Playground v2.5 checkpoint", "model"),
        ({}, "empty", "nothing"),
        # Merges carry keys of other tools, which stock passes over.
        (SDXL | {"cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77)},
         "an SDXL checkpoint", "model"),
        (SDXL | {"cond_stage_model.model.logit_scale": ()}, "an SDXL checkpoint", "model"),
        (SDXL | {"lora_unet_mid_block.alpha": ()}, "an SDXL checkpoint", "model"),
        (SDXL | {"control_model.zero": (1,)}, "an SDXL checkpoint", "model"),
        (SDXL | {"model.diffusion_model.out.2.lora_up.weight": (4, 4)}, "adapter", "nothing"),
        (SDXL | EDM, "a Playground v2.5 checkpoint", "model"),
        (UNET | FIRST | SECOND, "an SDXL checkpoint without its VAE", "unet"),
        (UNET | SECOND | VAE, "an SDXL checkpoint without its first text encoder", "unet"),
        (UNET | VAE, "without its first text encoder and second text encoder", "unet"),
        (UNET, "the UNet of an SDXL alone", "unet"),
        (
            {"input_blocks.0.0.weight": (320, 4, 3, 3), "label_emb.0.0.weight": (1280, 2816)},
            "the UNet of an SDXL alone",
            "unet",
        ),
        (
            {
                "conv_in.weight": (320, 4, 3, 3),
                "time_embedding.linear_1.weight": (1280, 320),
                "add_embedding.linear_1.weight": (1280, 2816),
            },
            "the UNet of an SDXL alone",
            "unet",
        ),
        (with_inputs(9), "an SDXL checkpoint for inpainting", "nothing"),
        (with_inputs(8), "an SDXL checkpoint that edits pictures", "nothing"),
        (
            UNET | VAE | {"conditioner.embedders.0.model.ln_final.weight": (1280,)},
            "an SDXL refiner",
            "nothing",
        ),
        (
            OLDER | {"cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,)},
            "a Stable Diffusion 1 checkpoint",
            "nothing",
        ),
        (
            OLDER | {"cond_stage_model.model.ln_final.weight": (1024,)},
            "a Stable Diffusion 2 checkpoint",
            "nothing",
        ),
        (
            UNET | VAE | {"cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
                          "cond_stage_model.model.ln_final.weight": (1280,)},
            "an SDXL checkpoint whose text encoders are named cond_stage_model.",
            "unet",
        ),
        (
            OLDER | {"model.diffusion_model.label_emb.0.0.weight": (1280, 2048),
                     "cond_stage_model.model.ln_final.weight": (1024,)},
            "a Stable Diffusion 2 checkpoint",  # its unCLIP reads a label, too
            "nothing",
        ),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
            "the UNet of another model than SDXL",
            "nothing",
        ),
        ({"lora_unet_mid_block_1.lora_up.weight": (4, 4)}, "a LoRA", "nothing"),
        ({"unet.mid_block.to_q.lora_A.weight": (4, 4)}, "a LoRA", "nothing"),
        ({"lora_te1_layers_0_mlp_fc1.hada_w1_a": (4, 4)}, "a LoRA or another adapter", "nothing"),
        ({"down_blocks.0.resnets.0.conv1.lokr_w1": (4, 4)}, "another adapter", "nothing"),
        (VAE, "a VAE alone", "vae"),
        ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "a VAE alone", "vae"),
        ({"text_model.embeddings.position_embedding.weight": (77, 768)}, "a text encoder", "nothing"),
        (FIRST | SECOND, "a text encoder alone", "nothing"),
        ({"encoder.block.0.layer.0.SelfAttention.k.weight": (4, 4), "shared.weight": (4, 4)},
         "a text encoder alone", "nothing"),
        (FIRST | SECOND | VAE, "a VAE and text encoders without a UNet", "nothing"),
        (with_inputs(5), "an SDXL checkpoint of another kind: its UNet has 5 input", "nothing"),
        (with_inputs(8) | {"model.diffusion_model.input_blocks.1.0.time_stack.x": (4,)},
         "a Stable Video Diffusion checkpoint", "nothing"),
        ({"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": (4,),
          "text_encoders.clip_l.transformer.text_model.final_layer_norm.weight": (4,),
          "vae.decoder.conv_in.weight": (512, 16, 3, 3)}, "another model (flux-", "nothing"),
        ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "a textual inversion", "nothing"),
        ({"control_model.time_embed.0.weight": (4, 4)}, "a ControlNet", "nothing"),
        ({"controlnet_cond_embedding.conv_in.weight": (4, 4)}, "a ControlNet", "nothing"),
        ({"image_proj.norm.weight": (4,), "ip_adapter.1.to_k_ip.weight": (4, 4)}, "an IP-", "nothing"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (4,)}, "(flux-schnell)", "nothing"),
        ({"joint_blocks.37.x_block.mlp.fc1.weight": (4, 4)}, "(sd35_large)", "nothing"),
        ({"some.weight": (4, 4)}, "no checkpoint that we know; it begins with 'some.weight'", "nothing"),
    ],
)  # fmt: skip
def test_a_file_is_told_by_its_header(shapes, words, holds):
    kind = find_kind(header(shapes))
    assert words in kind.words
    assert kind.holds == holds
    assert kind.remedy or holds == "model"


def test_a_unet_is_wanted_where_a_model_is_and_the_other_way_round():
    with pytest.raises(ModelError, match=r"^model: it\.safetensors is the UNet .* unet=file"):
        require_kind(header(UNET), "model", field="model")
    with pytest.raises(ModelError, match=r"^unet: it\.safetensors is a VAE alone; give the UNet"):
        require_kind(header(VAE), "unet", field="unet")
    assert require_kind(header(SDXL), "unet", field="unet").holds == "model"


@pytest.mark.parametrize(
    ("more", "dtype", "words"),
    [
        ({"model.diffusion_model.out.2.scale_weight": ()}, "F8_E4M3", "scales of their own"),
        ({"model.diffusion_model.out.2.weight.absmax": (4,)}, "U8", "scales of their own"),
        ({}, "U8", r"quantised weights \(U8\)"),
    ],
)
def test_packed_weights_are_refused(more, dtype, words):
    with pytest.raises(ModelError, match=f"it.safetensors holds .*{words}; give the file in 16"):
        require_kind(header(SDXL | more, dtype), "model", field="model")
