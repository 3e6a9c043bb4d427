"""Times single kernels on the shapes of full-size SDXL: what could be quicker, beside what runs now.

    python -m benchmarks.kernel_tries tries.jsonl              # on a GPU: below 150 seconds
    python -m benchmarks.kernel_tries tries.jsonl --quick      # on a CPU: small shapes, plain torch

| section | question |
|---|---|
| geglu-fp8 | our kernel of GELU, gate and rounding, beside inductor's |
| rows-fp8 | our kernel of add, layer norm and rounding, beside inductor's |
| norm-rows | our kernel of add and layer norm in bf16, beside inductor's |
| geglu-product | a product that computes GELU and gate by itself, beside cuBLAS and inductor's pass |
| sum-product | a product that adds to the residual in place, and a norm, beside a norm that adds |
| convolution | 3x3 in fp8 by cuDNN, beside cuDNN's in bf16 |
| own-convolution | the same by our kernel |
| attention | cuDNN's in fp8 beside its bf16 |
| scaled-mm | fp8 linears with a scale for each row, and with one scale, beside bf16 |
| rows | our kernels of rows, in bf16 and fp8, by a program's rows and warps |
| text | our kernel of attention to the text, beside cuDNN's and flash attention |
| counters | cuDNN's attention in a graph, with its memsets and with kernels in their place |
| image-attention | a plain Triton kernel of attention to the image, beside cuDNN's |

The variants of a shape run in turns, as CUDA graphs. A graph calls its variant with several sets of
inputs, which together exceed the cache. In the last four sections it calls its variant 40 times with
one set: in a step, too, the kernel before has just written what the next one reads.

Each variant is compared with plain float32 on the same rounded inputs first; its answer is NaN
before. Each figure is a line of JSON as soon as it is measured. A variant that fails leaves a line
that says why, and the others go on. Each section has a process of its own, since a bad address ends
a process's use of the card.

With TRITON_INTERPRET=1, `--quick` runs our kernels of the last four sections as well, on Triton's
interpreter. cuDNN's fp8 needs `pip install nvidia-cudnn-frontend`. Knows the shapes. Ignorant of the pipeline.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
CACHE_BYTES = 200e6  # four times an H100's L2
CALLS = 40  # of a graph that has one set of inputs
FLAGS = {"conv_1x1_as_mm": True, "epilogue_fusion": False}  # as our pipeline compiles
Inputs = dict[str, Tensor]
Call = Callable[[Inputs], Any]


class Tries:
    """The file of the figures, and the time that is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path: Path = options.lines
        self.quick: bool = options.quick
        self.device = "cpu" if self.quick else "cuda"
        interprets = os.environ.get("TRITON_INTERPRET") == "1"
        self.has_kernels = interprets or not self.quick
        # Triton's interpreter multiplies no bf16, and cuts numbers off to it
        self.kind = torch.float16 if interprets else torch.bfloat16
        self.rounds = 2 if self.quick else options.rounds
        self.end_s = time.monotonic() + options.budget
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, section: str, case: str, variant: str, **figures: Any) -> None:
        line = {"section": section, "case": case, "variant": variant} | figures
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        words = [f"{name} {_short(value)}" for name, value in figures.items()]
        print(f"{section}, {case}, {variant}: {', '.join(words)}", flush=True)

    @contextmanager
    def trying(self, section: str, case: str, variant: str) -> Iterator[None]:
        """Leaves out what fails, with a line that says why."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a compiler or a kernel raises
            words = f"{type(error).__name__}: {str(error).strip()[:400]}"
            self.write(section, case, variant, left_out=words)

    def random(self, *shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=self.device) * std

    def drawn(self, *shape: int) -> Tensor:
        """Random numbers of 16 bits."""
        return self.random(*shape).to(self.kind)

    def full(self, *shape: int, kind: torch.dtype | None = None) -> Tensor:
        """A tensor for an answer, poisoned with NaN; of 16 bits if `kind` is None."""
        return torch.full(shape, torch.nan, device=self.device).to(kind or self.kind)


def race(
    tries: Tries,
    section: str,
    case: str,
    make: Callable[[], Inputs],
    variants: dict[str, Call],
    *,
    reference: Call,
    flops: float = 0.0,
    moved_bytes: float = 0.0,
    one_set: bool = False,
) -> None:
    """Checks each variant against `reference`, and times them in turns.

    `make` draws a set of inputs. A variant returns its answer, or numbers and the scales of their
    rows. The reference may return fewer rows. `flops` and `moved_bytes` are those of one call. With
    `one_set`, a variant gets the same inputs in each of a graph's calls.
    """
    # 1) Draw the inputs
    if _is_late(tries, section, case):
        return
    sets = [make()]
    if one_set:
        sets *= _calls(tries)
    else:
        of_a_set = sum(tensor.nbytes for tensor in sets[0].values())
        more = 1 if tries.quick else min(7, max(1, round(CACHE_BYTES / of_a_set)))
        sets += [make() for _ in range(more)]
    wanted = reference(sets[0])

    # 2) Check and record each variant
    replays: dict[str, Callable[[], None]] = {}
    errors: dict[str, float] = {}
    for name, call in variants.items():
        with tries.trying(section, case, name):
            errors[name] = _error(call(sets[0]), wanted)
            replays[name] = _recorded([partial(call, inputs) for inputs in sets], tries)

    # 3) Time them in turns, and write
    for name, figures in _in_turns(replays, len(sets), tries).items():
        figures["error"] = errors[name]
        if flops:
            figures["tflops"] = flops / figures["median_us"] / 1e6
        if moved_bytes:
            figures["gb_s"] = moved_bytes / figures["median_us"] / 1e3
        tries.write(section, case, name, **figures)


def _is_late(tries: Tries, section: str, case: str) -> bool:
    """Whether no time is left; a line says so."""
    late = time.monotonic() > tries.end_s
    if late:
        tries.write(section, case, "all", left_out="no time is left")
    return late


def _in_turns(
    replays: dict[str, Callable[[], None]], calls: int, tries: Tries
) -> dict[str, dict[str, float]]:
    """The time of one of a replay's `calls`, by variant: its median, least and most."""
    times_us: dict[str, list[float]] = {name: [] for name in replays}
    for number in range(tries.rounds):
        order = list(replays) if number % 2 == 0 else list(reversed(replays))
        for name in order:
            times_us[name].append(_timed_us(replays[name], tries) / calls)
    return {
        name: {
            "median_us": statistics.median(found),
            "least_us": min(found),
            "most_us": max(found),
        }
        for name, found in times_us.items()
    }


def _error(answer: Any, wanted: Tensor) -> float:
    """The norm of the difference over the norm of what is wanted; NaN if a number is missing."""
    if isinstance(answer, tuple):
        numbers, scales, *_ = answer
        answer = numbers.float() * scales
    part = answer[: len(wanted)].float()
    return float((part - wanted).norm() / wanted.norm())


def _calls(tries: Tries) -> int:
    """How often a graph calls a variant with one set of inputs."""
    return 2 if tries.quick else CALLS


def _recorded(calls: Sequence[Callable[[], Any]], tries: Tries) -> Callable[[], None]:
    """One launch of all calls."""

    def run() -> None:
        for call in calls:
            call()

    if tries.device == "cpu":
        return run
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def _timed_us(replay: Callable[[], None], tries: Tries) -> float:
    if tries.device == "cpu":
        began_s = time.perf_counter()
        replay()
        return (time.perf_counter() - began_s) * 1e6
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    replay()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) * 1e3


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- GELU and gate ---------------------------------------------------------------------------------


def _gate(projected: Tensor) -> Tensor:
    value, gate = projected.chunk(2, dim=-1)
    return value * gelu(gate)


def _gate_and_round(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """GEGLU, and torchao's rounding with a scale for each row."""
    return _rounded(_gate(inputs["projected"]))


def geglu_fp8(tries: Tries) -> None:
    """Our kernel that rounds, beside inductor's. Bound: 4 bytes read and 1 written a number."""
    shapes = ((65536, 2560), (16384, 5120), (8192, 2560), (2048, 5120))
    if tries.quick:
        shapes = ((16, 640),)
    variants: dict[str, Call] = {"plain": _gate_and_round}
    if not tries.quick:
        from benchlib.serving.model.geglu_fp8 import _geglu_into

        def ours(warps: int | None, inputs: Inputs) -> tuple[Tensor, Tensor]:
            places = inputs["rounded"], inputs["scales"]
            _geglu_into(inputs["projected"], *places, warps=warps)
            return places

        compiled = torch.compile(_gate_and_round, dynamic=False, options=FLAGS)
        variants = {"inductor": compiled, "ours": partial(ours, None)}
        variants |= {f"ours, {warps} warps": partial(ours, warps) for warps in (2, 4, 8, 16)}
    for rows, width in shapes:

        def make(rows: int = rows, width: int = width) -> Inputs:
            return {
                "projected": tries.random(rows, 2 * width).bfloat16(),
                "rounded": tries.full(rows, width, kind=FP8),
                "scales": tries.full(rows, 1, kind=torch.float32),
            }

        race(
            tries,
            "geglu-fp8",
            f"{rows}x{width}",
            make,
            variants,
            reference=lambda inputs: _gate(inputs["projected"].float()),
            moved_bytes=rows * (5.0 * width + 4),
        )


def _norm_and_round(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """A residual's sum, and its layer norm as torchao rounds it."""
    total = inputs["x"] + inputs["more"]
    normed = layer_norm(total, total.shape[1:], inputs["weight"], inputs["bias"])
    return (*_rounded(normed), total)


def _rounded(product: Tensor) -> tuple[Tensor, Tensor]:
    """torchao's rounding with a scale for each row."""
    most = product.abs().amax(1, keepdim=True).float().clamp(min=1e-6)
    scales = most / LARGEST
    return (product.float() / scales).clamp(-LARGEST, LARGEST).to(FP8), scales


def _normed_sum(inputs: Inputs) -> Tensor:
    """What the kernels that add and norm should compute, in float32."""
    return _normed_in_float32((inputs["x"] + inputs["more"]).float(), inputs)


def _normed_in_float32(total: Tensor, inputs: Inputs) -> Tensor:
    affine = inputs["weight"].float(), inputs["bias"].float()
    return layer_norm(total, total.shape[1:], *affine)


def rows_fp8(tries: Tries) -> None:
    """Add, norm and round: 4 bytes read and 3 written a number. And rounding alone: 2 and 1."""
    shapes = ((65536, 640), (16384, 1280), (2048, 1280))
    if tries.quick:
        shapes = ((16, 640),)
    normed: dict[str, Call] = {"plain": _norm_and_round}
    rounded: dict[str, Call] = {"plain": lambda inputs: _rounded(inputs["x"])}
    if not tries.quick:
        from benchlib.serving.model.rows_fp8 import _rows_into

        def ours_normed(inputs: Inputs) -> tuple[Tensor, Tensor]:
            places = inputs["rounded"], inputs["scales"]
            norm = inputs["weight"], inputs["bias"], 1e-5
            more = {"more": inputs["more"], "total": inputs["total"]}
            _rows_into(inputs["x"], *places, norm=norm, **more)
            return places

        def ours_rounded(inputs: Inputs) -> tuple[Tensor, Tensor]:
            places = inputs["rounded"], inputs["scales"]
            _rows_into(inputs["x"], *places)
            return places

        compiled = torch.compile(_norm_and_round, dynamic=False, options=FLAGS)
        normed = {"inductor": compiled, "ours": ours_normed}
        plain = torch.compile(rounded["plain"], dynamic=False, options=FLAGS)
        rounded = {"inductor": plain, "ours": ours_rounded}

    for rows, width in shapes:
        numbers = float(rows * width)
        make = partial(_rows, tries, rows, width)
        case = f"{rows}x{width}"
        add = {"reference": _normed_sum, "moved_bytes": 7 * numbers}
        race(tries, "rows-fp8", f"add, norm, round {case}", make, normed, **add)
        alone = {"reference": lambda inputs: inputs["x"].float(), "moved_bytes": 3 * numbers}
        race(tries, "rows-fp8", f"round {case}", make, rounded, **alone)


def _rows(tries: Tries, rows: int, width: int) -> Inputs:
    return {
        "x": tries.drawn(rows, width),
        "more": tries.drawn(rows, width),
        "weight": tries.drawn(width),
        "bias": tries.drawn(width),
        "total": tries.full(rows, width),
        "rounded": tries.full(rows, width, kind=FP8),
        "scales": tries.full(rows, 1, kind=torch.float32),
    }


def norm_rows(tries: Tries) -> None:
    """Add and norm in bf16: 4 bytes read and 4 written a number."""
    shapes = ((65536, 640), (16384, 1280), (8192, 640), (2048, 1280))
    if tries.quick:
        shapes = ((16, 640),)

    def plain(inputs: Inputs) -> tuple[Tensor, Tensor]:
        total = inputs["x"] + inputs["more"]
        return layer_norm(total, total.shape[1:], inputs["weight"], inputs["bias"]), total

    variants: dict[str, Call] = {"plain": lambda inputs: plain(inputs)[0]}
    if not tries.quick:
        from benchlib.serving.model.norm_rows import norm_rows_into

        def ours(inputs: Inputs) -> Tensor:
            norm = inputs["weight"], inputs["bias"], 1e-5
            more = {"more": inputs["more"], "total": inputs["total"]}
            norm_rows_into(inputs["normed"], inputs["x"], norm, **more)
            return inputs["normed"]

        compiled = torch.compile(plain, dynamic=False, options=FLAGS)
        variants = {"inductor": lambda inputs: compiled(inputs)[0], "ours": ours}
    for rows, width in shapes:

        def make(rows: int = rows, width: int = width) -> Inputs:
            return _rows(tries, rows, width) | {"normed": tries.full(rows, width)}

        case = f"add, norm {rows}x{width}"
        add = {"reference": _normed_sum, "moved_bytes": 8.0 * rows * width}
        race(tries, "norm-rows", case, make, variants, **add)


def geglu_product(tries: Tries) -> None:
    """A product with GEGLU in its own kernel, beside cuBLAS and a pass of inductor's."""
    shapes = (
        (65536, 640, 2560),
        (16384, 1280, 5120),
        (8192, 640, 2560),
        (2048, 1280, 5120),
        (2048, 640, 2560),
        (512, 1280, 5120),
    )
    if tries.quick:
        shapes = ((16, 64, 64),)

    def product(inputs: Inputs) -> Tensor:
        return linear(inputs["tokens"], inputs["weight"], inputs["bias"])

    def both(inputs: Inputs) -> Tensor:
        return _gate(product(inputs))

    def make(rows: int, depth: int, width: int) -> Inputs:
        return {
            "tokens": tries.random(rows, depth).bfloat16(),
            "weight": tries.random(2 * width, depth, std=depth**-0.5).bfloat16(),
            "bias": tries.random(2 * width).bfloat16(),
            "gated": tries.full(rows, width),
        }

    def plain(inputs: Inputs) -> Tensor:
        tokens, weight, bias = (inputs[name].float() for name in ("tokens", "weight", "bias"))
        return _gate(linear(tokens[:4096], weight, bias))

    variants: dict[str, Call] = {"plain": both}
    if not tries.quick:
        compiled = torch.compile(both, dynamic=False, options=FLAGS)
        variants = {"cuBLAS and inductor": compiled}
        # The shape of a tile: columns, depth, warps, stages, and programs on a processor
        for tile in ((128, 64, 8, 3, 1), (128, 64, 8, 4, 1), (64, 64, 4, 3, 2)):
            variants[f"ours {tile}"] = partial(_own_product, tile)
    for rows, depth, width in shapes:
        race(
            tries,
            "geglu-product",
            f"{rows}x{depth}x{width}",
            partial(make, rows, depth, width),
            variants,
            reference=plain,
            flops=4.0 * rows * depth * width,
        )
        if not tries.quick:
            _product_alone(tries, f"{rows}x{depth}x{width}", partial(make, rows, depth, width))


def _own_product(tile: tuple[int, ...], inputs: Inputs) -> Tensor:
    from benchlib.serving.model.geglu_product import geglu_product_into

    names = ("wide", "deep", "warps", "stages", "per_processor")
    geglu_product_into(
        inputs["gated"],
        inputs["tokens"],
        inputs["weight"],
        inputs["bias"],
        **dict(zip(names, tile, strict=True)),
    )
    return inputs["gated"]


def _product_alone(tries: Tries, case: str, make: Callable[[], Inputs]) -> None:
    """cuBLAS's product without the gate: what a fused kernel has to come near."""

    def product(inputs: Inputs) -> Tensor:
        return linear(inputs["tokens"], inputs["weight"], inputs["bias"])

    def plain(inputs: Inputs) -> Tensor:
        tokens, weight, bias = (inputs[name].float() for name in ("tokens", "weight", "bias"))
        return linear(tokens[:4096], weight, bias)

    rows, depth, width = (int(number) for number in case.split("x"))
    flops = 4.0 * rows * depth * width
    variants: dict[str, Call] = {"cuBLAS": product}
    race(tries, "product", case, make, variants, reference=plain, flops=flops)


def sum_product(tries: Tries) -> None:
    """The last product of an attention or a feed-forward, the residual's sum, and the next norm."""
    # 1) Rows, depth and width of eight guided images, and of one
    shapes = (
        (16384, 1280, 1280),
        (16384, 5120, 1280),
        (65536, 640, 640),
        (65536, 2560, 640),
        (2048, 1280, 1280),
        (2048, 5120, 1280),
        (8192, 640, 640),
        (8192, 2560, 640),
    )
    if tries.quick:
        shapes = ((16, 64, 64),)

    def make(rows: int, depth: int, width: int) -> Inputs:
        shift = tries.random(width).bfloat16()
        parts = _rows(tries, rows, width)
        return {
            "tokens": tries.random(rows, depth).bfloat16(),
            "product": tries.random(width, depth, std=depth**-0.5).bfloat16(),
            "shift": shift,
            **parts,
            "normed": tries.full(rows, width),
            "stream": parts["x"].clone(),
            "owed": shift.float(),
        }

    def wanted(inputs: Inputs) -> Tensor:
        tokens, product, shift = (inputs[name].float() for name in ("tokens", "product", "shift"))
        total = linear(tokens[:4096], product, shift) + inputs["x"][:4096].float()
        weight, bias = inputs["weight"].float(), inputs["bias"].float()
        return layer_norm(total, total.shape[1:], weight, bias)

    # 2) A norm that adds, and cuBLAS that adds in place before a norm that adds the bias for itself
    variants: dict[str, Call] = {"plain": _plain_sum}
    if not tries.quick:
        variants = {"cuBLAS, add and norm": _summed_by_the_norm}
        variants["cuBLAS in place, norm"] = _summed_in_place
    for rows, depth, width in shapes:
        case = f"{rows}x{depth}x{width}"
        flops = 2.0 * rows * depth * width
        draw = partial(make, rows, depth, width)
        race(tries, "sum-product", case, draw, variants, reference=wanted, flops=flops)


def _plain_sum(inputs: Inputs) -> Tensor:
    total = linear(inputs["tokens"], inputs["product"], inputs["shift"]) + inputs["x"]
    return layer_norm(total, total.shape[1:], inputs["weight"], inputs["bias"])


def _summed_by_the_norm(inputs: Inputs) -> Tensor:
    from benchlib.serving.model.norm_rows import norm_rows_into

    more = linear(inputs["tokens"], inputs["product"], inputs["shift"])
    norm = inputs["weight"], inputs["bias"], 1e-5
    norm_rows_into(inputs["normed"], inputs["x"], norm, more=more, total=inputs["total"])
    return inputs["normed"]


def _summed_in_place(inputs: Inputs) -> Tensor:
    """The first call has the other variants' answer; each one adds to the same stream."""
    from benchlib.serving.model.norm_rows import norm_rows_into
    from benchlib.serving.model.summed_products import add_product_

    add_product_(inputs["stream"], inputs["tokens"], inputs["product"])
    norm = inputs["weight"], inputs["bias"], 1e-5
    norm_rows_into(inputs["normed"], inputs["stream"], norm, owed=inputs["owed"])
    return inputs["normed"]


# -- convolutions ----------------------------------------------------------------------------------


def convolution(section: str, tries: Tries) -> None:
    """Padded 3x3 convolutions of the UNet, in fp8 and in bf16: cuDNN's, or ours beside cuDNN's."""
    # Rows, pixels of a side, channels of the input and of the answer
    shapes = (
        (16, 128, 320, 320),
        (16, 64, 640, 640),
        (16, 32, 1280, 1280),
        (16, 32, 2560, 1280),
        (16, 64, 1920, 640),
        (2, 32, 1280, 1280),
    )
    if tries.quick:
        shapes = ((2, 8, 16, 16),)
    for rows, side, channels, columns in shapes:
        case = f"{rows}x{side}x{side}x{channels} to {columns}"
        make = partial(_image, tries, rows, side, channels, columns)
        variants: dict[str, Call] = {"cuDNN bf16": _cudnn_bf16}
        if section == "own-convolution" and not tries.quick:
            deep = 128 if channels % 128 == 0 else 64
            for tile in ((256, deep, 8, 3, 1), (128, 64, 4, 4, 2)):
                variants[f"ours fp8 {tile}"] = partial(_own_convolution, "", tile)
            tile = (256, 64, 8, 3, 1)
            variants[f"ours bf16 {tile}"] = partial(_own_convolution, "_bf16", tile)
        elif not tries.quick:
            with tries.trying(section, case, "cuDNN fp8"):
                variants |= _cudnn_fp8_plans(make())
        race(
            tries,
            section,
            case,
            make,
            variants,
            reference=_plain_convolution,
            flops=18.0 * rows * side**2 * channels * columns,
        )


def _image(tries: Tries, rows: int, side: int, channels: int, columns: int) -> Inputs:
    """Channels lie innermost. One scale, a power of two, makes both formats compute the same."""
    image = tries.random(rows, side, side, channels).to(FP8)
    weight = tries.random(columns, 3, 3, channels).to(FP8)
    scale = 2.0 ** -round(0.5 * (9 * channels)).bit_length()
    return {
        "image": image,
        "weight": weight,
        "scale": torch.full((1, 1, 1, 1), scale, device=tries.device),
        "scales": torch.full((columns,), scale, device=tries.device),
        "ones": torch.ones(columns, device=tries.device),
        "bias": torch.zeros(columns, device=tries.device).bfloat16(),
        "image_bf16": image.bfloat16(),
        "weight_bf16": weight.bfloat16() * scale,
        "answer": tries.full(rows, side, side, columns),
    }


def _as_image(tensor: Tensor) -> Tensor:
    """(n, h, w, channels) as torch's (n, channels, h, w) in channels-last."""
    return tensor.permute(0, 3, 1, 2)


def _plain_convolution(inputs: Inputs) -> Tensor:
    image, weight = (_as_image(inputs[name].float()) for name in ("image_bf16", "weight_bf16"))
    return conv2d(image[:1], weight, padding=1).permute(0, 2, 3, 1)


def _cudnn_bf16(inputs: Inputs) -> Tensor:
    image, weight = (_as_image(inputs[name]) for name in ("image_bf16", "weight_bf16"))
    return conv2d(image, weight, inputs["bias"], padding=1).permute(0, 2, 3, 1)


def _own_convolution(kind: str, tile: tuple[int, ...], inputs: Inputs) -> Tensor:
    from benchlib.serving.model.convolution_kernel import convolution_into

    convolution_into(
        inputs["answer"],
        inputs[f"image{kind}"],
        inputs[f"weight{kind}"].flatten(1),
        inputs["ones" if kind else "scales"],
        inputs["bias"],
        tile=tile,
    )
    return inputs["answer"]


# -- cuDNN's graphs --------------------------------------------------------------------------------

_HANDLES: list[Any] = []


def _cudnn() -> tuple[Any, Any]:
    """cuDNN's frontend, and a handle that follows torch's stream."""
    import cudnn

    if not _HANDLES:
        _HANDLES.append(cudnn.create_handle())
    cudnn.set_stream(handle=_HANDLES[0], stream=torch.cuda.current_stream().cuda_stream)
    return cudnn, _HANDLES[0]


def _graph() -> Any:
    cudnn, handle = _cudnn()
    kinds = cudnn.data_type
    return cudnn.pygraph(
        io_data_type=kinds.FP8_E4M3,
        intermediate_data_type=kinds.FLOAT,
        compute_data_type=kinds.FLOAT,
        handle=handle,
    )


def _operand(graph: Any, tensor: Tensor) -> Any:
    """A graph's tensor with the shape, strides and format of a torch tensor."""
    kinds = _cudnn()[0].data_type
    of = {FP8: kinds.FP8_E4M3, torch.bfloat16: kinds.BFLOAT16, torch.float32: kinds.FLOAT}
    return graph.tensor(
        dim=list(tensor.shape), stride=list(tensor.stride()), data_type=of[tensor.dtype]
    )


def _planned(graph: Any) -> None:
    modes = _cudnn()[0].heur_mode
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([modes.A, modes.FALLBACK])
    graph.check_support()


def _cudnn_fp8_plans(inputs: Inputs, most: int = 3) -> dict[str, Call]:
    """The first plans of cuDNN's heuristics, each as a variant."""
    # 1) The graph
    kinds = _cudnn()[0].data_type
    graph = _graph()
    image, weight = (_operand(graph, _as_image(inputs[name])) for name in ("image", "weight"))
    scale = _operand(graph, inputs["scale"])
    sums = graph.conv_fprop(
        image=image, weight=weight, padding=[1, 1], stride=[1, 1], dilation=[1, 1]
    )
    sums.set_data_type(kinds.FLOAT)
    answer = graph.mul(sums, scale)
    answer.set_output(True).set_data_type(kinds.BFLOAT16)
    answer.set_dim(list(_as_image(inputs["answer"]).shape))
    answer.set_stride(list(_as_image(inputs["answer"]).stride()))
    _planned(graph)

    # 2) Its plans
    def call(number: int, workspace: Tensor, inputs: Inputs) -> Tensor:
        handle = _cudnn()[1]
        pack = {image: _as_bytes(inputs["image"]), weight: _as_bytes(inputs["weight"])}
        pack |= {scale: inputs["scale"], answer: inputs["answer"]}
        graph.execute_plan_at_index(pack, workspace, number, handle)
        return inputs["answer"]

    variants: dict[str, Call] = {}
    for number in range(graph.get_execution_plan_count()):
        try:
            graph.build_plan_at_index(number)
        except Exception as error:  # noqa: BLE001 - a plan may not suit the card
            print("cuDNN's plan", number, str(error)[:200], flush=True)
            continue
        needed = max(1, graph.get_workspace_size_plan_at_index(number))
        workspace = torch.empty(needed, device="cuda", dtype=torch.uint8)
        name = f"cuDNN fp8 {graph.get_plan_name_at_index(number)}"
        variants[name] = partial(call, number, workspace)
        if len(variants) == most:
            break
    return variants


def _as_bytes(tensor: Tensor) -> Tensor:
    """The same memory: the frontend asks for an address, and not each version knows fp8."""
    return tensor.view(torch.uint8)


def attention(tries: Tries) -> None:
    """Attention of heads of 64 in fp8 and in bf16."""
    shapes = ((16, 4096, 10), (16, 1024, 20), (2, 4096, 10), (2, 1024, 20))
    if tries.quick:
        shapes = ((2, 16, 2),)
    for rows, tokens, heads in shapes:
        case = f"{rows}x{tokens}x{heads}"
        make = partial(_heads, tries, rows, tokens, heads)
        variants: dict[str, Call] = {"cuDNN bf16": _attention_bf16}
        if not tries.quick:
            for kind in (torch.bfloat16, FP8):
                name = f"cuDNN fp8, answer {str(kind).removeprefix('torch.')}"
                with tries.trying("attention", case, name):
                    variants[name] = _attention_fp8(make(), kind)
        race(
            tries,
            "attention",
            case,
            make,
            variants,
            reference=_plain_attention,
            flops=4.0 * rows * heads * tokens**2 * 64,
        )


def _heads(tries: Tries, rows: int, tokens: int, heads: int) -> Inputs:
    """Q, K and V are (rows, tokens, heads * 64), as products leave them."""
    inputs = {}
    for name in ("query", "key", "value"):
        inputs[name] = tries.random(rows, tokens, heads * 64).to(FP8)
        inputs[f"{name}_bf16"] = inputs[name].bfloat16()
    inputs["answer_bf16"] = tries.full(rows, tokens, heads * 64)
    inputs["answer_fp8"] = tries.full(rows, tokens, heads * 64, kind=FP8)
    one = torch.ones(1, 1, 1, 1, device=tries.device)
    # Shares are at most 1, so 256 of them fit below fp8's 448
    for name, size in (("one", 1.0), ("shares_up", 256.0), ("shares_down", 1 / 256)):
        inputs[name] = one * size
    inputs["most_share"] = torch.zeros_like(one)
    inputs["most_answer"] = torch.zeros_like(one)
    return inputs


def _by_head(tensor: Tensor) -> Tensor:
    return tensor.unflatten(-1, (-1, 64)).transpose(1, 2)


def _attention_bf16(inputs: Inputs) -> Tensor:
    names = ("query_bf16", "key_bf16", "value_bf16")
    query, key, value = (_by_head(inputs[name]) for name in names)
    if not query.is_cuda:
        return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _plain_attention(inputs: Inputs) -> Tensor:
    return _exact_attention(inputs[name] for name in ("query", "key", "value"))


def _exact_attention(operands: Iterable[Tensor]) -> Tensor:
    """Attention of the first row, in float32."""
    query, key, value = (_by_head(part[:1].float()) for part in operands)
    scores = query @ key.transpose(2, 3) / 8.0
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def _attention_fp8(inputs: Inputs, kind: torch.dtype) -> Call:
    """cuDNN's attention with scales of one, since the inputs are drawn in fp8."""
    # 1) The graph
    graph = _graph()
    kinds = _cudnn()[0].data_type
    place = "answer_fp8" if kind == FP8 else "answer_bf16"
    names = ("query", "key", "value")
    operands = [_operand(graph, _by_head(inputs[name])) for name in names]
    scalars = ("one", "one", "one", "shares_down", "shares_up", "one")
    scales = [_operand(graph, inputs[name]) for name in scalars]
    arguments = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
    answer, _, most_share, most_answer = graph.sdpa_fp8(
        **dict(zip(("q", "k", "v"), operands, strict=True)),
        **dict(zip(arguments, scales, strict=True)),
        attn_scale=0.125,
        generate_stats=False,
    )
    like = _by_head(inputs[place])
    answer.set_output(True).set_dim(list(like.shape)).set_stride(list(like.stride()))
    answer.set_data_type(kinds.FP8_E4M3 if kind == FP8 else kinds.BFLOAT16)
    for most in (most_share, most_answer):
        most.set_output(True).set_dim([1, 1, 1, 1]).set_stride([1, 1, 1, 1])
        most.set_data_type(kinds.FLOAT)
    _planned(graph)
    graph.build_plans()
    workspace = torch.empty(max(1, graph.get_workspace_size()), device="cuda", dtype=torch.uint8)

    # 2) A call
    def call(inputs: Inputs) -> Tensor:
        handle = _cudnn()[1]
        pack = {
            operand: _as_bytes(inputs[name]) for operand, name in zip(operands, names, strict=True)
        }
        pack |= {scale: inputs[name] for scale, name in zip(scales, scalars, strict=True)}
        pack |= {most_share: inputs["most_share"], most_answer: inputs["most_answer"]}
        pack[answer] = _as_bytes(inputs[place])
        graph.execute(pack, workspace, handle)
        return inputs[place]

    return call


# -- linears ---------------------------------------------------------------------------------------


def scaled_mm(tries: Tries) -> None:
    """fp8 linears of the UNet by the form of their scales."""
    shapes = (
        (16384, 1280, 10240),
        (16384, 1280, 1280),
        (16384, 5120, 1280),
        (65536, 640, 5120),
        (65536, 640, 640),
        (65536, 2560, 640),
        (2048, 1280, 10240),
        (2048, 1280, 1280),
    )
    if tries.quick:
        shapes = ((16, 64, 64),)
    bf16: dict[str, Call] = {
        "bf16": lambda inputs: linear(inputs["tokens_bf16"], inputs["weight_bf16"], inputs["bias"])
    }
    fp8: dict[str, Call] = {
        "fp8, rows": partial(_scaled, "rows", True),
        "fp8, one scale": partial(_scaled, "one", True),
        "fp8, one scale, exact sums": partial(_scaled, "one", False),
    }
    for rows, depth, columns in shapes:
        race(
            tries,
            "scaled-mm",
            f"{rows}x{depth}x{columns}",
            partial(_linear, tries, rows, depth, columns),
            bf16 if tries.quick else bf16 | fp8,
            reference=lambda inputs: linear(
                inputs["tokens_bf16"][:4096].float(),
                inputs["weight_bf16"].float(),
                inputs["bias"].float(),
            ),
            flops=2.0 * rows * depth * columns,
        )


def _linear(tries: Tries, rows: int, depth: int, columns: int) -> Inputs:
    """A linear whose numbers both formats hold; its scale is a power of two."""
    tokens = tries.random(rows, depth).to(FP8)
    weight = tries.random(columns, depth).to(FP8)
    scale = 2.0 ** -round(0.5 * depth).bit_length()
    return {
        "tokens": tokens,
        "weight": weight,
        "bias": tries.random(columns).bfloat16(),
        "tokens_bf16": tokens.bfloat16(),
        "weight_bf16": weight.bfloat16() * scale,
        "rows_left": torch.ones(rows, 1, device=tries.device),
        "rows_right": torch.full((1, columns), scale, device=tries.device),
        "one_left": torch.tensor(1.0, device=tries.device),
        "one_right": torch.tensor(scale, device=tries.device),
    }


def _scaled(form: str, fast: bool, inputs: Inputs) -> Tensor:
    return torch._scaled_mm(
        inputs["tokens"],
        inputs["weight"].t(),
        scale_a=inputs[f"{form}_left"],
        scale_b=inputs[f"{form}_right"],
        bias=inputs["bias"],
        out_dtype=torch.bfloat16,
        use_fast_accum=fast,
    )


# -- rows, by a program's rows and warps -----------------------------------------------------------

ROWS_AND_WARPS = ((2, 1), (1, 1), (1, 4), (2, 2))  # the first is what the package has


def rows_by_program(tries: Tries) -> None:
    """The kernels of rows, each by a program's rows and warps. A kernel is compiled for each."""
    # 1) What a kernel computes, which bytes of a number it moves, and how it is called
    kinds: tuple[tuple[str, float, Call, Call], ...] = (
        ("bf16, add, norm", 8, _normed_sum, partial(_normed_by, ("more", "total"))),
        ("bf16, add what is owed, norm", 4, _normed_owed, partial(_normed_by, ("owed",))),
        ("fp8, add, norm, round", 7, _normed_sum, partial(_rounded_by, True, True)),
        ("fp8, norm, round", 3, _normed_alone, partial(_rounded_by, True, False)),
        ("fp8, round", 3, _as_drawn, partial(_rounded_by, False, False)),
    )
    shapes = ((2048, 1280), (8192, 640), (16384, 1280), (65536, 640))
    if tries.quick:
        shapes = ((3, 640),)

    # 2) Each of them by shape
    for rows, width in shapes:

        def make(rows: int = rows, width: int = width) -> Inputs:
            inputs = _rows(tries, rows, width) | {"normed": tries.full(rows, width)}
            return inputs | {"owed": tries.random(width)}

        for name, of_a_number, reference, ours in kinds:
            variants: dict[str, Call] = {"plain": reference}
            if tries.has_kernels:
                variants = {_program(of): partial(_by_program, of, ours) for of in ROWS_AND_WARPS}
            case = f"{name} {rows}x{width}"
            moved = {"moved_bytes": of_a_number * rows * width}
            race(tries, "rows", case, make, variants, reference=reference, one_set=True, **moved)


def _program(rows_and_warps: tuple[int, int]) -> str:
    return "rows {}, warps {}".format(*rows_and_warps)


def _by_program(rows_and_warps: tuple[int, int], call: Call, inputs: Inputs) -> Any:
    """Calls a kernel of rows with these rows and warps of a program."""
    from benchlib.serving.model import norm_rows as in_bf16
    from benchlib.serving.model import rows_fp8 as in_fp8

    with ExitStack() as stack:
        for module in (in_bf16, in_fp8):
            chosen = mock.patch.object(module, "rows_and_warps", return_value=rows_and_warps)
            stack.enter_context(chosen)
        return call(inputs)


def _normed_by(names: tuple[str, ...], inputs: Inputs) -> Tensor:
    """Norms by our kernel, with these of the inputs."""
    from benchlib.serving.model.norm_rows import norm_rows_into

    norm = inputs["weight"], inputs["bias"], 1e-5
    norm_rows_into(inputs["normed"], inputs["x"], norm, **{name: inputs[name] for name in names})
    return inputs["normed"]


def _rounded_by(norms: bool, adds: bool, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Rounds by our kernel; it norms and adds before, if asked."""
    from benchlib.serving.model.rows_fp8 import _rows_into

    places = inputs["rounded"], inputs["scales"]
    norm = (inputs["weight"], inputs["bias"], 1e-5) if norms else None
    more = {"more": inputs["more"], "total": inputs["total"]} if adds else {}
    _rows_into(inputs["x"], *places, norm=norm, **more)
    return places


def _normed_owed(inputs: Inputs) -> Tensor:
    return _normed_in_float32(inputs["x"].float() + inputs["owed"], inputs)


def _normed_alone(inputs: Inputs) -> Tensor:
    return _normed_in_float32(inputs["x"].float(), inputs)


def _as_drawn(inputs: Inputs) -> Tensor:
    return inputs["x"].float()


# -- attention in bf16, as a step calls it ---------------------------------------------------------


def _seen(tries: Tries, rows: int, heads: int, tokens: int, keys: int = 0) -> Inputs:
    """Queries, keys and values as one product leaves them, side by side.

    `keys` are those of a text: then the queries are a tensor of their own.
    """
    features = heads * 64
    answer = {"answer": tries.full(rows, tokens, features)}
    if not keys:
        return answer | {"joined": tries.drawn(rows, tokens, 3 * features)}
    query = tries.drawn(rows, tokens, features)
    return answer | {"query": query, "joined": tries.drawn(rows, keys, 2 * features)}


def _operands(inputs: Inputs) -> tuple[Tensor, ...]:
    """The query, key and value: (rows, tokens, features) each."""
    if "query" in inputs:
        return inputs["query"], *inputs["joined"].chunk(2, dim=-1)
    return inputs["joined"].chunk(3, dim=-1)


def _attended_by(backend: SDPBackend, inputs: Inputs) -> Tensor:
    query, key, value = (_by_head(part) for part in _operands(inputs))
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _attended_in_float32(inputs: Inputs) -> Tensor:
    return _exact_attention(_operands(inputs))


def _library_attention(tries: Tries) -> dict[str, Call]:
    """SDPA's kernels by name."""
    if tries.quick:
        return {"plain": partial(_attended_by, SDPBackend.MATH)}
    return {
        "cuDNN": partial(_attended_by, SDPBackend.CUDNN_ATTENTION),
        "flash": partial(_attended_by, SDPBackend.FLASH_ATTENTION),
    }


# Rows, heads and tokens of one guided image, and of eight
HEADS = ((2, 20, 1024), (2, 10, 4096), (16, 20, 1024), (16, 10, 4096))
SMALL_HEADS = ((2, 2, 128),)
TEXT = 77  # keys


def text(tries: Tries) -> None:
    """Attention to the text by our kernel, beside SDPA's."""

    def ours(inputs: Inputs) -> Tensor:
        from benchlib.serving.model.text_attention_kernel import text_attention_into

        heads = inputs["answer"].shape[-1] // 64
        text_attention_into(inputs["answer"], *_operands(inputs), heads=heads)
        return inputs["answer"]

    variants = _library_attention(tries) | ({"ours": ours} if tries.has_kernels else {})
    for rows, heads, tokens in SMALL_HEADS if tries.quick else HEADS:
        race(
            tries,
            "text",
            f"{rows}x{heads}x{tokens}, {TEXT} keys",
            partial(_seen, tries, rows, heads, tokens, TEXT),
            variants,
            reference=_attended_in_float32,
            flops=4.0 * rows * heads * tokens * TEXT * 64,
            one_set=True,
        )


def image_attention(tries: Tries) -> None:
    """Attention to the image by a plain Triton kernel, beside SDPA's."""

    def tried(inputs: Inputs) -> Tensor:
        from benchmarks.tried_kernels import image_attention_into

        image_attention_into(inputs["answer"], inputs["joined"])
        return inputs["answer"]

    variants = _library_attention(tries) | ({"Triton": tried} if tries.has_kernels else {})
    for rows, heads, tokens in SMALL_HEADS if tries.quick else HEADS:
        race(
            tries,
            "image-attention",
            f"{rows}x{heads}x{tokens}",
            partial(_seen, tries, rows, heads, tokens),
            variants,
            reference=_attended_in_float32,
            flops=4.0 * rows * heads * tokens**2 * 64,
            one_set=True,
        )


def counters(tries: Tries) -> None:
    """cuDNN's attention in a graph: the counter that it clears before each call, in two forms."""
    attend = next(iter(_library_attention(tries).values()))
    shapes = ((2, 20, 1024, 0), (2, 10, 4096, 0), (2, 20, 1024, TEXT), (2, 10, 4096, TEXT))
    if tries.quick:
        shapes = ((2, 2, 128, 0), (2, 2, 128, TEXT))
    for rows, heads, tokens, keys in shapes:
        # 1) Record the same calls twice, and edit one recording
        case = f"{rows}x{heads}x{tokens}" + (f", {keys} keys" if keys else "")
        if _is_late(tries, "counters", case):
            continue
        inputs = _seen(tries, rows, heads, tokens, keys)
        forms: dict[str, tuple[Callable[[], None], Tensor, int]] = {}
        for name, edits in (("as recorded", False), ("memsets to kernels", True)):
            with tries.trying("counters", case, name):
                forms[name] = _recorded_answer(partial(attend, inputs), edits, tries)

        if "as recorded" not in forms:
            continue

        # 2) Compare the answers, which were poisoned before the last replay
        wanted = _attended_in_float32(inputs)
        _, first, _ = forms["as recorded"]
        findings = {
            name: {
                "error": _error(answer, wanted),
                "replaced_memsets": replaced,
                "equals_recorded": torch.equal(answer, first),
            }
            for name, (_, answer, replaced) in forms.items()
        }

        # 3) Time them in turns
        replays = {name: replay for name, (replay, _, _) in forms.items()}
        for name, figures in _in_turns(replays, _calls(tries), tries).items():
            tries.write("counters", case, name, **figures, **findings[name])


def _recorded_answer(
    call: Callable[[], Tensor], edits: bool, tries: Tries
) -> tuple[Callable[[], None], Tensor, int]:
    """A launch of many calls, the answer of the last, and how many memsets became kernels.

    The answer is poisoned before it is written by a launch.
    """
    from benchlib.serving.model.graph_memsets import memsets_to_kernels

    # 1) Call: the preparations of a first call can't be recorded
    calls = _calls(tries)
    answer = call()
    if tries.device == "cpu":
        return _recorded([call] * calls, tries), answer, 0
    call()
    torch.cuda.synchronize()

    # 2) Record
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        for _ in range(calls):
            answer = call()
    replaced = memsets_to_kernels(graph) if edits else 0
    graph.instantiate()

    # 3) Launch
    answer.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, answer, replaced


SECTIONS: dict[str, Callable[[Tries], None]] = {
    "geglu-fp8": geglu_fp8,
    "rows-fp8": rows_fp8,
    "norm-rows": norm_rows,
    "convolution": partial(convolution, "convolution"),
    "own-convolution": partial(convolution, "own-convolution"),
    "attention": attention,
    "scaled-mm": scaled_mm,
    "geglu-product": geglu_product,
    "sum-product": sum_product,
    "text": text,
    "counters": counters,
    "image-attention": image_attention,
    "rows": rows_by_program,
}

# Imported before a section's time begins: diffusers takes seconds
MODULES = {
    "rows": "benchlib.serving.model.rows_fp8",
    "rows-fp8": "benchlib.serving.model.rows_fp8",
    "text": "benchlib.serving.model.text_attention_kernel",
    "image-attention": "benchmarks.tried_kernels",
    "counters": "benchlib.serving.model.graph_memsets",
}


def main(arguments: list[str] | None = None) -> int:
    # 1) Read the options
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lines", type=Path, help="the file that gets a line for each figure")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="all if not given")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=140.0, help="seconds")
    parser.add_argument("--quick", action="store_true", help="small shapes, on a CPU")
    parser.add_argument("--at-word", action="store_true", help="measure when a line comes in")
    options = parser.parse_args(arguments)
    sections = options.section or list(SECTIONS)
    if not (options.quick or torch.cuda.is_available()):
        parser.error("torch sees no GPU; --quick tries small shapes on a CPU")
    if len(sections) > 1:
        return in_processes(sections, options)

    # 2) Measure the one section
    if options.at_word and not options.quick and sections[0] in MODULES:
        import_module(MODULES[sections[0]])
    if options.at_word:
        options.budget = float(sys.stdin.readline())
    tries = Tries(options)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    if tries.device == "cuda":
        tries.write(sections[0], "machine", torch.cuda.get_device_name(), torch=torch.__version__)
    with tries.trying(sections[0], "all", "all"), torch.no_grad():
        SECTIONS[sections[0]](tries)
    return 0


def in_processes(sections: Sequence[str], options: argparse.Namespace) -> int:
    """Runs each section in a process. All of them import at once, and measure one by one."""
    end_s = time.monotonic() + options.budget
    command = [sys.executable, "-m", "benchmarks.kernel_tries", str(options.lines), "--at-word"]
    command += [f"--rounds={options.rounds}", *(["--quick"] if options.quick else [])]
    with ExitStack() as stack:
        processes = {}
        for name in sections:
            process = subprocess.Popen(
                [*command, f"--section={name}"], stdin=subprocess.PIPE, text=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes[name] = process
        for name, process in processes.items():
            left_s = max(1.0, end_s - time.monotonic())
            try:
                process.communicate(f"{left_s}\n", timeout=left_s + 10)
            except subprocess.TimeoutExpired:
                process.kill()
            print(f"{name}: ended with {process.wait()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
