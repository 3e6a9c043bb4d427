"""Network checks: whether the networks of a pipeline fit each other, as text-to-image needs it.

Knows what the stock call passes from one network to the next. Ignorant of files and requests.
"""

from __future__ import annotations

from typing import Any

from diffusers import ConsistencyDecoderVAE

from benchlib.serving.model.model_errors import ModelError

_PICTURE_INPUTS = ("image_proj", "text_image_proj", "ip_image_proj")
_PURPOSES = {9: "fills in masked pictures", 8: "edits pictures (instruct-pix2pix)"}


def require_fitting_networks(pipe: Any, name: str) -> None:
    """Raises `ModelError`, which names the network at fault, where the stock call would fail."""
    for check in (_missing_weights, _unfit_texts, _unfit_channels, _unfit_conditions):
        words = check(pipe)
        if words is not None:
            raise ModelError(f"model: {name} can't make images from texts: {words}")


def require_runnable_scheduler(scheduler: Any, name: str) -> None:
    """Raises `ModelError` if the stock call can't run the scheduler, as with those of flow models."""
    needed = ("init_noise_sigma", "scale_model_input", "set_timesteps", "step")
    if not all(hasattr(scheduler, attribute) for attribute in needed):
        raise ModelError(
            f"model: {name} has the scheduler {type(scheduler).__name__}, which SDXL's pipeline "
            "can't run; choose another, such as scheduler='euler'"
        )


def _missing_weights(pipe: Any) -> str | None:
    """Weights that a loader found in no file stay on the device "meta"."""
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        network = getattr(pipe, part)
        if network is None:
            continue
        for key, parameter in network.named_parameters():
            if parameter.is_meta:
                return f"its {part} lacks the weights {key!r}; download it again"
    return None


def _text_pairs(pipe: Any) -> list[tuple[Any, Any]]:
    """The tokenizers and text encoders that work together in the stock call.

    It passes over the first of each if that one is null.
    """
    tokenizers = [pipe.tokenizer, pipe.tokenizer_2]
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    if pipe.tokenizer is None:
        tokenizers = tokenizers[1:]
    if pipe.text_encoder is None:
        encoders = encoders[1:]
    return list(zip(tokenizers, encoders, strict=False))


def _unfit_texts(pipe: Any) -> str | None:
    pairs = _text_pairs(pipe)
    if any(tokenizer is None or encoder is None for tokenizer, encoder in pairs):
        return (
            "its second text encoder or that encoder's tokenizer is null, which diffusers can't "
            "do without; give a model that has both"
        )
    if not any(hasattr(encoder, "text_projection") for _, encoder in pairs):
        return (
            "none of its text encoders that has a tokenizer gives the pooled text; "
            "give a model whose second text encoder has a tokenizer"
        )
    for tokenizer, encoder in pairs:
        most = getattr(encoder.config, "max_position_embeddings", None)
        if most is None or not hasattr(encoder.config, "projection_dim"):
            return (
                f"it has a {type(encoder).__name__}, and SDXL's text encoders are CLIP's; "
                "give an SDXL model"
            )
        if tokenizer.model_max_length > most:
            return (
                f"a tokenizer fills texts up to {tokenizer.model_max_length:,} tokens, and its "
                f"text encoder reads {most}; set model_max_length in tokenizer_config.json"
            )
        # On a GPU, a token without an embedding ends all later calls of the process, too.
        known = 1 + max(tokenizer.get_vocab().values())
        embedded = encoder.get_input_embeddings().num_embeddings
        if known > embedded:
            return (
                f"a tokenizer knows {known:,} tokens, and its text encoder has embeddings for "
                f"{embedded:,}; remove the added tokens, or load their embeddings in diffusers by "
                "load_textual_inversion and call save_pretrained"
            )
    lengths = [tokenizer.model_max_length for tokenizer, _ in pairs]
    if len(set(lengths)) > 1:
        return (
            f"its tokenizers fill texts up to {lengths[0]:,} and {lengths[1]:,} tokens, and the "
            "UNet reads both side by side; set one model_max_length in both tokenizer_config.json"
        )
    return None


def _unfit_channels(pipe: Any) -> str | None:
    reads = pipe.unet.config.in_channels
    answers = pipe.unet.config.out_channels
    latents = pipe.vae.config.latent_channels
    if isinstance(pipe.vae, ConsistencyDecoderVAE):
        return (
            "its VAE draws noise at each decoding, so a seed would not fix the image; "
            "give a model with an AutoencoderKL"
        )
    if reads != answers:
        purpose = _PURPOSES.get(reads, "reads more than noise")
        return (
            f"its UNet has {reads} input channels in place of {answers}, so it {purpose}; "
            "give an SDXL text-to-image model"
        )
    if latents != answers:
        return (
            f"its UNet answers {answers} channels, and its VAE decodes {latents}; "
            "give a UNet and a VAE that were made for each other"
        )
    return None


def _unfit_conditions(pipe: Any) -> str | None:
    """The text's width and the length of the sizes' embedding, which the UNet's layers fix."""
    unet = pipe.unet.config
    encoders = [encoder for _, encoder in _text_pairs(pipe)]
    if unet.addition_embed_type != "text_time":
        return "its UNet does not read the image's size, so it is none of SDXL; give an SDXL model"
    reads_pictures = unet.get("encoder_hid_dim_type") in _PICTURE_INPUTS
    if reads_pictures or unet.get("class_embed_type") or unet.get("num_class_embeds"):
        return (
            "its UNet reads more than texts (a picture, or the number of a class); "
            "give an SDXL text-to-image model"
        )
    width = sum(encoder.config.hidden_size for encoder in encoders)
    reads_plain_texts = isinstance(unet.cross_attention_dim, int) and unet.encoder_hid_dim is None
    if reads_plain_texts and unet.cross_attention_dim != width:
        return (
            f"its UNet reads texts of width {unet.cross_attention_dim}, and its text encoders "
            f"write {width}; give a UNet that was made for this model"
        )
    # The stock call takes the first pooled text that it gets; base models' first encoder has none.
    pooling = [encoder for encoder in encoders if hasattr(encoder, "text_projection")]
    pooled = pooling[0].config.projection_dim
    length = 6 * unet.addition_time_embed_dim + pooled
    expected = pipe.unet.add_embedding.linear_1.in_features
    if length != expected:
        return (
            f"its UNet reads {expected} numbers of size and pooled text, and text-to-image gives "
            f"{length}; a refiner is of this kind: give an SDXL base model"
        )
    return None
