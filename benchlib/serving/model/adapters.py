"""LoRA adapters of a pipeline: fused into its weights at load, or switched on by request.

Knows peft's layers and diffusers' loaders of them. Ignorant of files (lora_files.py), of queues and
of who runs with whom. The adapters by request live in copies of the networks that share the stock
pipeline's tensors. So the stock pipeline has no peft layer, and behaves as if there were none.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.utils import logging as transformers_logging

from benchlib.lora import check_lora_name, split_lora, unknown_lora
from benchlib.serving.model.adapter_slot import AdapterSlot
from benchlib.serving.model.lora_files import (
    NETWORKS,
    LoraWeights,
    check_file,
    find_file,
    read_weights,
)
from benchlib.serving.model.memory import own_memory
from benchlib.serving.model.model_errors import ModelError
from benchlib.serving.model.recipes import Recipe, same_tensors
from benchlib.serving.model.recorded import RecordedEncoder, Recorder

SWITCHES = 10
_QUANTISES = "quantises the layers that an adapter would change"
_NO_ADAPTERS = {
    "int8": _QUANTISES,
    "fp8": _QUANTISES,
    "fp8-convolutions": _QUANTISES,
    "fused-qkv": "joins projections that then ignore adapters",
}
"""By recipe: why the UNet can't have adapters by request."""


class LoraPlan:
    """What `loras=` and `fuse=` ask for, checked before a model is loaded.

    `fused` are the adapters to fuse, with their scales; `by_request` are the other ones. Raises
    ValueError, or `ModelError` for a file, and names the remedy.
    """

    def __init__(
        self, loras: Mapping[str, str] | None, fuse: str | None, recipes: Sequence[Recipe]
    ) -> None:
        given = {name: str(source) for name, source in (loras or {}).items()}
        for name in given:
            try:
                check_lora_name(name)
            except ValueError as error:
                raise ValueError(f"loras: {error}") from None
        self.fused = _split_fused(fuse, given)
        self.by_request = [name for name in given if name not in self.fused]
        _check_recipes(self.by_request, recipes)
        # A compiled or recorded UNet must keep its modules.
        self.swaps = any(recipe.sets in ("compiler", "launches") for recipe in recipes)
        self.sources = given
        self._paths = {name: find_file(name, source) for name, source in given.items()}
        for name, path in self._paths.items():
            if path is not None:
                check_file(name, path)

    def read(self, name: str, pipe: Any) -> LoraWeights:
        """The weights of one adapter, checked against a stock pipeline."""
        return read_weights(name, self.sources[name], self._paths[name], pipe)

    def spec(self) -> dict[str, Any]:
        """The adapters for a pipeline's spec: names by request, and fused ones with scales."""
        if not self.sources:
            return {}
        return {
            "loras": list(self.by_request),
            "fused_loras": dict(self.fused),
            "lora_files": dict(self.sources),
        }


def _split_fused(fuse: str | None, given: Mapping[str, str]) -> dict[str, float]:
    """The scale of each adapter in a text such as "style:0.8+face"."""
    fused: dict[str, float] = {}
    for part in (fuse or "").split("+"):
        if not part.strip():
            continue
        try:
            name, scale = split_lora(part.strip())
        except ValueError as error:
            raise ValueError(f"fuse: {error}") from None
        if name not in given:
            known = ", ".join(given) or "none"
            raise ValueError(f"fuse: there is no adapter {name!r} in loras, which has {known}")
        if name in fused:
            raise ValueError(f"fuse: {name!r} is there twice; name it once")
        fused[name] = scale
    return fused


def _check_recipes(by_request: Sequence[str], recipes: Sequence[Recipe]) -> None:
    """Raise ValueError if a recipe can't go together with adapters by request."""
    if not by_request:
        return
    for recipe in recipes:
        reason = _NO_ADAPTERS.get(recipe.name)
        if reason is not None:
            names = "+".join(by_request)
            raise ValueError(
                f"loras: the recipe {recipe.name!r} changes the UNet in a way that excludes "
                f"adapters by request: it {reason}; fuse them (fuse={names!r}), "
                "or leave the recipe out"
            )


def fuse_adapters(pipe: Any, plan: LoraPlan) -> None:
    """Add the adapters to fuse to the weights of a stock pipeline. No layer of peft stays.

    Two adapters are fused one after the other, as two pipelines that are saved in between.
    """
    for name, scale in plan.fused.items():
        weights = plan.read(name, pipe)
        networks = _load(pipe, weights, "fused", NETWORKS)
        try:
            pipe.fuse_lora(components=networks, lora_scale=scale, adapter_names=["fused"])
        except RuntimeError as error:
            raise ModelError(
                f"loras: {name}: {weights.source} can't be fused ({error}); "
                f"leave it out of fuse, and name it by request (lora={name!r})"
            ) from error
        pipe.unload_lora_weights()


class Adapters:
    """The adapters by request of one pipeline: at most one is on at a time.

    `unet` is the UNet that serves, a copy of the stock's; it gets peft's layers. `pipe` is a
    pipeline for `encode_prompt`. Its tokenizers are its own, and so are the text encoders that an
    adapter changes.
    `lora` is what is on: "style", "style:0.8", or None. Called on the torch thread only.
    """

    def __init__(self, stock: Any, unet: Any, plan: LoraPlan | None) -> None:
        # 1) A pipeline with tokenizers of its own. A tokenizer keeps how it pads and cuts, so a user's
        # thread that encodes with the stock pipeline would change that, or end the call with an error
        self.names = tuple(plan.by_request) if plan else ()
        self.lora: str | None = None
        self.pipe = copy.copy(stock)
        for name in ("tokenizer", "tokenizer_2"):
            setattr(self.pipe, name, copy.deepcopy(getattr(stock, name)))
        self._networks: list[_Adapted | AdapterSlot] = []
        # peft puts an adapter's name into the names of modules, where some words have a meaning.
        self._keys = {name: f"adapter{number}" for number, name in enumerate(self.names)}
        if plan is None or not self.names:
            return

        # 2) Copies of the networks that an adapter changes
        while hasattr(unet, "network"):  # a recipe's wrapper
            unet = unet.network
        self.pipe.unet = unet
        read = [plan.read(name, stock) for name in self.names]
        changed = [one for one in NETWORKS if any(weights.of(one) for weights in read)]
        for network in changed:
            if network != "unet":
                setattr(self.pipe, network, same_tensors(getattr(stock, network)))

        # 3) peft's layers in them, all off
        bases = {network: _own_parameters(getattr(self.pipe, network)) for network in changed}
        if plan.swaps and "unet" in bases:
            self._networks.append(self._make_slot(stock, read))
            del bases["unet"]
        for weights in read:
            _load(self.pipe, weights, self._keys[weights.name], bases)
        for network, base in bases.items():
            self._networks.append(_Adapted(getattr(self.pipe, network), base))
        self._switch(None)

    def _make_slot(self, stock: Any, read: Sequence[LoraWeights]) -> AdapterSlot:
        def copy_with(weights: LoraWeights, key: str) -> torch.nn.Module:
            scratch = copy.copy(stock)
            scratch.unet = same_tensors(stock.unet)
            _own_parameters(scratch.unet)
            _load(scratch, weights, key, ["unet"])
            unet: torch.nn.Module = scratch.unet
            return unet

        return AdapterSlot(
            self.pipe.unet,
            [weights for weights in read if weights.of("unet")],
            [self._keys[weights.name] for weights in read if weights.of("unet")],
            copy_with=copy_with,
            load=lambda weights, key: _load(self.pipe, weights, key, ["unet"]),
        )

    def record_texts(self, recorder: Recorder) -> None:
        """Replay the text encoders as CUDA graphs, but those that an adapter changes.

        A graph would keep the adapter that was on when it was recorded.
        """
        adapted = [one.network for one in self._networks if isinstance(one, _Adapted)]
        for name in ("text_encoder", "text_encoder_2"):
            encoder = getattr(self.pipe, name)
            if encoder is not None and encoder not in adapted:
                setattr(self.pipe, name, RecordedEncoder(encoder, recorder))

    def close(self) -> None:
        """Free the adapters' memory, and forget the pipeline."""
        self.pipe = None
        self._networks = []

    def use(self, lora: str | None) -> None:
        """Switch to an adapter with its scale, or to none. Raises ValueError for an unknown one."""
        if lora != self.lora:
            self._switch(lora)

    def _switch(self, lora: str | None) -> None:
        name, scale = (None, 1.0) if lora is None else split_lora(lora)
        if name is not None and name not in self._keys:
            raise ValueError(f"lora: {unknown_lora(lora, {'loras': self.names})}")
        self.lora = "switching"  # after an error halfway, the next call switches again
        for network in self._networks:
            network.switch(self._keys.get(name or ""), scale)
        self.lora = lora

    def measure_switch_s(self) -> float:
        """The seconds of the slowest switch: from none to an adapter, or back.

        The shortest of a few is taken, because other work on the machine only adds time.
        """
        before = self.lora
        slowest_s = 0.0
        for name in self.names:
            for lora, other in ((name, None), (None, name)):
                times_s = []
                for _ in range(SWITCHES):
                    self._switch(other)
                    self._finish()
                    began_s = time.perf_counter()
                    self._switch(lora)
                    self._finish()
                    times_s.append(time.perf_counter() - began_s)
                slowest_s = max(slowest_s, min(times_s))
        self._switch(before)
        return slowest_s

    def _finish(self) -> None:
        """Wait for the device."""
        if self.names and self.pipe.unet.device.type == "cuda":
            torch.cuda.synchronize(self.pipe.unet.device)


class _Adapted:
    """A network with peft's layers, and its own parameters, `base`.

    Stock pipelines leave a network's parameters with `requires_grad` as they were loaded, and
    switch it off once there is an adapter. torch's matrix product depends on it, to the last bit,
    and also where no gradient is computed. So a switch sets it as in a stock pipeline. An adapter's
    own weights have it on, as in a stock pipeline, also while the adapter is off.
    """

    def __init__(
        self, network: torch.nn.Module, base: list[tuple[torch.nn.Parameter, bool]]
    ) -> None:
        self.network = network
        network.requires_grad_(True)
        self._layers: list[Any] = []
        for module in network.modules():
            if isinstance(module, BaseTunerLayer):
                self._layers.append(module)
        self._base = base
        self._frozen: bool | None = None  # whether `base` is as with an adapter

    def switch(self, key: str | None, scale: float) -> None:
        """Switch to peft's adapter `key`; to none, if it is None or not in this network.

        peft's own methods, `set_adapter` and `enable_adapters`, set `requires_grad` of each weight
        of each adapter as well. With 3 adapters in 136 layers they took 23 ms, and this takes 0.6 ms.
        """
        has_key = [key in layer.scaling for layer in self._layers]
        is_on = any(has_key)
        for layer, has in zip(self._layers, has_key, strict=True):
            layer._disable_adapters = not is_on
            if is_on:
                layer._active_adapter = [key]
            if has:
                layer.set_scale(key, scale)
        if self._frozen != is_on:
            for parameter, as_loaded in self._base:
                parameter.requires_grad_(as_loaded and not is_on)
            self._frozen = is_on


def _own_parameters(network: torch.nn.Module) -> list[tuple[torch.nn.Parameter, bool]]:
    """Give a network parameters of its own over the same memory.

    peft changes `requires_grad`, which would reach the stock's network. Returns each parameter, and
    whether it requires gradients.
    """
    base = []
    for module in network.modules():
        for name, shared in list(module.named_parameters(recurse=False)):
            own = torch.nn.Parameter(shared.data, requires_grad=shared.requires_grad)
            setattr(module, name, own)
            base.append((own, own.requires_grad))
    return base


def _load(pipe: Any, weights: LoraWeights, key: str, into: Iterable[str]) -> list[str]:
    """Add peft's layers with `weights` to those networks of a pipeline that are in `into`.

    The stock loaders do it. Returns the networks that got some.
    """
    networks = [network for network in into if weights.of(network)]
    with _no_false_alarms():
        for network in networks:
            options = {
                "network_alphas": weights.alphas,
                "metadata": weights.metadata,
                "adapter_name": key,
                "_pipeline": pipe,
                "low_cpu_mem_usage": True,
            }
            tensors = dict(weights.tensors)
            module = getattr(pipe, network)
            try:
                if network == "unet":
                    pipe.load_lora_into_unet(tensors, unet=module, **options)
                else:
                    pipe.load_lora_into_text_encoder(
                        tensors, text_encoder=module, prefix=network, **options
                    )
            except RuntimeError as error:
                if "meta" not in str(error):
                    raise
                raise _lost(weights) from error
            if any(parameter.is_meta for parameter in module.parameters()):
                raise _lost(weights)
            module.eval()  # peft's layers come in training, where an adapter's dropout is on
            own_memory(module)
    return networks


def _lost(weights: LoraWeights) -> ModelError:
    """peft's layers get no memory while another thread's load has patched torch's modules."""
    return ModelError(
        f"loras: {weights.name}: {weights.source} was loaded without its numbers, as if another "
        "thread loaded a model at the same time; load one after the other, in a new process if it "
        "happens again"
    )


@contextmanager
def _no_false_alarms() -> Iterator[None]:
    """Hides transformers' report that a text encoder's weights are new, which they are not.

    peft's warning of a second adapter is hidden as well.
    """
    warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
    level = transformers_logging.get_verbosity()
    showing = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if showing:
            transformers_logging.enable_progress_bar()
