"""Small SDXL models for tests: folders, files in the original key layout, and a hub cache."""

import json
import re
import shutil

import numpy as np
import torch
from safetensors.torch import save_file

from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.random_models import TINY, assemble
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest

# Unlike those of "tiny", the two text encoders differ in width: by width diffusers tells them apart.
SMALL = {part: dict(config) for part, config in TINY.items()}
SMALL["text_encoder"] |= {"num_hidden_layers": 2}
SMALL["text_encoder_2"] |= {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "projection_dim": 96,
}
SMALL["unet"] |= {
    "cross_attention_dim": 160,
    "projection_class_embeddings_input_dim": 288,
    "block_out_channels": [32, 32, 64],
    "attention_head_dim": [2, 2, 4],
    "transformer_layers_per_block": [1, 1, 1],
}


def small_pipeline(seed=0, **changes):
    """A stock pipeline of a few hundred thousand weights; `changes` by part."""
    config = {part: dict(SMALL[part]) | changes.get(part, {}) for part in SMALL}
    return assemble(config, torch.device("cpu"), torch.float32, seed)


def change_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def request(**changes):
    fields = {"prompt": "a lighthouse", "num_inference_steps": 3, "width": 64, "height": 64}
    return GenerateRequest(**fields | {"seed": 1, "guidance_scale": 5.0} | changes)


def stock_pixels(pipe, **changes):
    """The pixels of the stock call of a stock pipeline."""
    wanted = request(**changes)
    pipe.set_progress_bar_config(disable=True)
    image = on_torch_thread(
        pipe,
        wanted.prompt,
        negative_prompt=wanted.negative_prompt,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        width=wanted.width,
        height=wanted.height,
        generator=torch.Generator("cpu").manual_seed(wanted.seed),
    ).images[0]
    return np.asarray(image)


def load(path, **options):
    """Our pipeline. Its threads are those of the other tests, which compare bits."""
    return load_pipeline(str(path), **{"device": "cpu", "torch_threads": 1} | options)


def our_pixels(pipe, **changes):
    return np.asarray(pipe.generate(request(**changes)).images[0])


# -- the original key layout -----------------------------------------------------------------------

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_MID = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}


def _unet_key(key):
    for ours, theirs in _TOP.items():
        if key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    if match := re.match(r"mid_block\.(\w+\.\d)\.(.*)", key):
        return f"middle_block.{_MID[match[1]]}.{_inner(match[2])}"
    side, level, kind, number, rest = re.match(
        r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", key
    ).groups()
    first = 3 * int(level)
    if kind == "downsamplers":
        return f"input_blocks.{first + 3}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":  # after attention, or at once where a level has none
        return f"output_blocks.{first + 2}.2.{rest}"
    place = first + int(number) + (1 if side == "down" else 0)
    block = "input_blocks" if side == "down" else "output_blocks"
    return f"{block}.{place}.{int(kind == 'attentions')}.{_inner(rest)}"


def _inner(rest):
    name, _, tail = rest.partition(".")
    return f"{_RESNET[name]}.{tail}" if name in _RESNET else rest


def unet_keys(weights):
    """A UNet's weights by their original names, without the prefix."""
    return {_unet_key(key): value for key, value in weights.items()}


def _vae_keys(weights, levels=4):
    renamed = {}
    attention = {
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }
    for key, value in weights.items():
        new = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", new)
        new = re.sub(
            r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", new
        )
        new = re.sub(
            r"up_blocks\.(\d)\.upsamplers\.0\.",
            lambda m: f"up.{levels - 1 - int(m[1])}.upsample.",
            new,
        )
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0." in new:
            value = value[:, :, None, None] if value.ndim == 2 else value
            head, _, tail = new.partition("mid_block.attentions.0.")
            for ours, theirs in attention.items():
                tail = re.sub(rf"^{re.escape(ours)}\.", f"{theirs}.", tail)
            new = f"{head}mid.attn_1.{tail}"
        renamed[new] = value
    return renamed


_OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm": "ln_",
    ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.",
    ".self_attn.": ".attn.",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_ln_": "ln_final",
}


def _open_clip_keys(weights):
    renamed = {}
    for key, value in weights.items():
        if key == "text_projection.weight":
            renamed["text_projection"] = value.T
            continue
        new = key.removeprefix("text_model.")
        for ours, theirs in _OPEN_CLIP.items():
            new = new.replace(ours, theirs)
        renamed[new] = value
    for key in [key for key in renamed if ".q_proj." in key]:
        parts = [renamed.pop(key.replace(".q_proj.", f".{one}_proj.")) for one in "qkv"]
        renamed[key.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return renamed


def _clip_keys(weights):
    return {
        f"text_model.{key.removeprefix('text_model.')}": value for key, value in weights.items()
    }


def original_weights(pipe):
    """All weights of a pipeline by the names of the original single-file layout."""
    parts = {
        "model.diffusion_model.": unet_keys(pipe.unet.state_dict()),
        "first_stage_model.": _vae_keys(pipe.vae.state_dict()),
        "conditioner.embedders.0.transformer.": _clip_keys(pipe.text_encoder.state_dict()),
        "conditioner.embedders.1.model.": _open_clip_keys(pipe.text_encoder_2.state_dict()),
    }
    return {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}


def save(weights, path, dtype=None, metadata=None):
    """Write a .safetensors file; returns its path."""
    kept = {key: value.to(dtype).contiguous().clone() for key, value in weights.items()}
    save_file(kept, path, metadata=metadata)
    return path


# -- the hub's cache -------------------------------------------------------------------------------


def put_into_hub_cache(cache, hub_id, folder, *, with_weights=False):
    """Put a folder, by default without its weights, where the hub's cache has `hub_id`."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    commit = "0" * 40
    passed_over = [] if with_weights else ["*.safetensors"]
    shutil.copytree(
        folder,
        repository / "snapshots" / commit,
        ignore=shutil.ignore_patterns(*passed_over),
    )
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
