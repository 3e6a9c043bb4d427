"""The cost of a step: the times of each batch and size, measured before the first request.

Knows a pipeline's calls. Ignorant of queues, and of how policies use the times.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, log
from typing import TYPE_CHECKING, Any

from benchlib.other_work import OtherWork
from benchlib.serving.engine.adapter_times import measure_adapters
from benchlib.serving.schemas import GenerateRequest

if TYPE_CHECKING:
    from benchlib.serving.model.denoise import Work
    from benchlib.serving.model.pipeline import SDXLPipeline

Size = tuple[int, int]  # width and height in pixels
REPEATS = 6
ENOUGH_S = 1.0
GAIN = 1.05  # the least gain in images per second for a batch of twice the size
GUIDED = 7.5  # any guidance scale above 1 takes two rows in most models
_CURVES = ("step_s", "encode_s", "decode_s")
_ADAPTER_PARTS = ("switch_s", "lora_ratio")


@dataclass(frozen=True)
class StepTimes:
    """The cost of one size in seconds.

    `step_s` is by rows of the UNet's batch; `encode_s` and `decode_s` are by number of requests.
    `switch_s` is a switch to another adapter, and a step with an adapter takes `lora_ratio` times as
    long as without. `measured` is what they were evened out from, as in a spec: the three curves, and what others
    took meanwhile (see `other_work`). It is None for made-up times and those of older runs.

    Times are interpolated between the measured batches and grow in proportion beyond them. Raises
    ValueError for an empty curve, a batch below 1 or negative seconds.
    """

    step_s: Mapping[int, float]
    encode_s: Mapping[int, float]
    decode_s: Mapping[int, float]
    measured: Mapping[str, Any] | None = None
    switch_s: float = 0.0
    lora_ratio: float = 1.0

    def __post_init__(self) -> None:
        for name in _CURVES:
            curve = getattr(self, name)
            if not curve or min(curve) < 1 or not min(curve.values()) >= 0:
                raise ValueError(
                    f"{name}: {dict(curve)!r} needs an entry; batches start at 1 and seconds at 0"
                )

    def step(self, rows: int, lora: str | None = None) -> float:
        """Seconds of a step with `rows` rows of the UNet, and with an adapter or without."""
        seconds = _interpolate(self.step_s, rows)
        return seconds if lora is None else seconds * self.lora_ratio

    def encode(self, requests: int) -> float:
        """Seconds of encoding `requests` requests at once."""
        return _interpolate(self.encode_s, requests)

    def decode(self, requests: int) -> float:
        """Seconds of decoding `requests` images at once."""
        return _interpolate(self.decode_s, requests)

    def scaled(self, pixels_ratio: float) -> StepTimes:
        """Estimated times of a size with `pixels_ratio` times the pixels; encoding is the same."""
        return StepTimes(
            step_s=_multiplied(self.step_s, pixels_ratio),
            encode_s=self.encode_s,
            decode_s=_multiplied(self.decode_s, pixels_ratio),
            switch_s=self.switch_s,
            lora_ratio=self.lora_ratio,
        )


Times = Callable[[Size], StepTimes]


class StepTimesBySize(dict[Size, StepTimes]):
    """The step times of each measured size.

    Another size gets the times of the nearest measured size, in proportion to the pixels.
    """

    def __missing__(self, size: Size) -> StepTimes:
        def distance(measured: Size) -> float:
            return abs(log(_pixels(size) / _pixels(measured)))

        nearest = min(self, key=distance)
        pixels_ratio = _pixels(size) / _pixels(nearest)
        return self[nearest].scaled(pixels_ratio)

    def to_spec(self) -> dict[str, Any]:
        """The times as JSON-able values, for "step_times" of a server's spec.

        An example is {"64x64": {"step_s": {"1": 0.01, ...}, ..., "measured": {...}}, ...}.
        """
        spec: dict[str, Any] = {}
        for (width, height), times in self.items():
            curves = spec[f"{width}x{height}"] = _curves_to_spec(times)
            if times.measured is not None:
                curves["measured"] = dict(times.measured)
            for part in _ADAPTER_PARTS:
                if getattr(times, part) != getattr(StepTimes, part):
                    curves[part] = getattr(times, part)
        return spec

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> StepTimesBySize:
        """The step times that `to_spec` wrote; older ones have no "measured"."""
        by_size = cls()
        for size, curves in spec.items():
            width, height = size.split("x")
            numbers: dict[str, Any] = {}
            for part in _CURVES:
                numbers[part] = {int(n): seconds for n, seconds in curves[part].items()}
            adapters = {part: curves[part] for part in _ADAPTER_PARTS if part in curves}
            times = StepTimes(**numbers, measured=curves.get("measured"), **adapters)
            by_size[int(width), int(height)] = times
        return by_size


def _curves_to_spec(times: StepTimes | _Curves) -> dict[str, Any]:
    spec = {}
    for part in _CURVES:
        curve = getattr(times, part)
        spec[part] = {str(n): curve[n] for n in sorted(curve)}
    return spec


def measure_step_times(
    pipeline: SDXLPipeline,
    size: Size,
    *,
    max_batch_size: int,
    padded: Callable[[int], int | None],
    tell_rows: Callable[[int], None] = lambda rows: None,  # noqa: ARG005
) -> StepTimes:
    """Measure and return the times of 1, 2, 4, ... guided requests at once.

    If batches are allowed, a single row is measured too. Measuring stops at a batch that does not
    fit, or that makes less than GAIN times the images per second of half the batch: images of one
    step, so that encoding and decoding count, too. Other work on the machine may slow down the
    larger batch alone. So that batch is measured once more before measuring stops.

    `padded(rows)` is the bucket that a batch of `rows` is padded to, or None. Every batch in a
    bucket takes as long as a full one. So each bucket that requests can reach is measured once,
    with as many requests as fit. `tell_rows(rows)` is called before a batch is measured. If a single
    image fails, raises what the pipeline raises.
    """
    import torch

    curves = _Curves(pipeline, size, padded, tell_rows)
    other_work = OtherWork()
    other_work.read()

    # 1) The smallest batches
    rows = curves.guided_rows
    if max_batch_size > 1 and rows > 1:
        curves.measure_single_row()
    curves.measure_batch(1)

    # 2) Larger batches: the powers of two, or the fullest batch of each bucket
    for n in range(2, max_batch_size + 1):
        bucket = padded(rows * n)
        due = n.bit_count() == 1  # a power of two
        if bucket is not None:
            next_bucket = padded(rows * n + rows)
            due = n == max_batch_size or next_bucket != bucket
        if not due:
            continue
        if not pipeline.fits(*size, n):
            break
        try:
            curves.measure_batch(n)
            if bucket is None and not curves.gains(n):
                break
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break

    # 3) Adapters
    switch_s, lora_ratio = measure_adapters(pipeline, size)

    # 4) Even out what other work on the machine has added, and keep what was measured
    return StepTimes(
        step_s=_rising(curves.step_s),
        encode_s=_rising(curves.encode_s),
        decode_s=_rising(curves.decode_s),
        measured=_curves_to_spec(curves) | other_work.read()._asdict(),
        switch_s=switch_s,
        lora_ratio=lora_ratio,
    )


class _Curves:
    """The times of one size, filled batch by batch."""

    def __init__(
        self,
        pipeline: SDXLPipeline,
        size: Size,
        padded: Callable[[int], int | None],
        tell_rows: Callable[[int], None],
    ) -> None:
        self.pipeline = pipeline
        self.size = size
        self.padded = padded
        self.tell_rows = tell_rows
        self.guided_rows: int = pipeline.spec.get("guided_rows", 2)
        self.step_s: dict[int, float] = {}
        self.encode_s: dict[int, float] = {}
        self.decode_s: dict[int, float] = {}

    def gains(self, n: int) -> bool:
        """Whether `n` requests at once gain enough over half as many.

        If they seem not to, other work may have slowed them down. So they are measured once more,
        unless their calls are long: those take the mean of what other work does.
        """
        enough = GAIN * self._images_per_s(n // 2)
        if self._images_per_s(n) < enough and n / self._images_per_s(n) < ENOUGH_S:
            self.measure_batch(n)
        return self._images_per_s(n) >= enough

    def _images_per_s(self, n: int) -> float:
        """How many guided images of one step `n` at once make in a second."""
        step_s = self.step_s[self.guided_rows * n]
        return n / (self.encode_s[n] + step_s + self.decode_s[n])

    def measure_single_row(self) -> None:
        """Measure the steps of one request without guidance."""
        self.tell_rows(1)
        request = self._request(guidance_scale=0.0)
        works = self.pipeline.encode([request])
        self._measure_steps(works, rows=1)

    def measure_batch(self, n: int) -> None:
        """Measure `n` guided requests at once. If they were measured before, the shorter times stay."""
        self.tell_rows(self.guided_rows * n)
        request = self._request(guidance_scale=GUIDED)
        works = self.pipeline.encode([request] * n)

        def encode() -> float:
            return self.pipeline.encode([request] * n)[0].encode_s

        def decode() -> float:
            self.pipeline.decode(works)
            return works[0].decode_s

        self._measure_steps(works, rows=self.guided_rows * n)
        self.encode_s[n] = min(_shortest_s(encode), self.encode_s.get(n, inf))
        self.decode_s[n] = min(_shortest_s(decode), self.decode_s.get(n, inf))

    def _request(self, guidance_scale: float) -> GenerateRequest:
        steps = self.pipeline.schedules.nearest_steps(1 + REPEATS)
        return warm_up_request(self.size, steps=steps, guidance_scale=guidance_scale)

    def _measure_steps(self, works: list[Work], rows: int) -> None:
        bucket = self.padded(rows)

        def step() -> float:
            nonlocal works
            works = _unfinished(self.pipeline, works)
            return self.pipeline.step(works, rows=bucket)

        step_s = _shortest_s(step)
        same_step = {rows}
        if bucket is not None:
            same_step = {self._fewest_rows(rows, bucket), bucket}
        for count in same_step:
            self.step_s[count] = min(step_s, self.step_s.get(count, inf))

    def _fewest_rows(self, rows: int, bucket: int) -> int:
        """The fewest rows that are padded to `bucket`; `rows` is one such number."""
        while rows > 1 and self.padded(rows - 1) == bucket:
            rows -= 1
        return rows


def warm(pipeline: SDXLPipeline, size: Size, rows: int) -> None:
    """Step with `rows` rows until the model is compiled and its CUDA graphs are captured.

    The third step replays the graphs.
    """
    works = pipeline.encode([warm_up_request(size, steps=pipeline.schedules.nearest_steps(3))])
    for _ in range(3):
        works = _unfinished(pipeline, works)
        pipeline.step(works, rows=rows)


def _unfinished(pipeline: SDXLPipeline, works: list[Work]) -> list[Work]:
    """`works`, or new ones if these are finished: some schedulers take few steps only.

    Raises what a scheduler has raised.
    """
    for work in works:
        if work.failure is not None:
            raise work.failure
    if works[0].finished:
        return pipeline.encode([work.request for work in works])
    return works


def warm_up_request(size: Size, steps: int, guidance_scale: float = GUIDED) -> GenerateRequest:
    """A request for an image that nobody wants."""
    width, height = size
    return GenerateRequest(
        prompt="warm-up",
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
    )


def _pixels(size: Size) -> int:
    width, height = size
    return width * height


def _multiplied(curve: Mapping[int, float], factor: float) -> dict[int, float]:
    return {n: seconds * factor for n, seconds in curve.items()}


def _interpolate(curve: Mapping[int, float], n: int) -> float:
    """Seconds at `n`: linear between the measured batches, proportional to `n` beyond the last.

    Warm-up stops where larger batches stop paying. The last slope would mislead, because inside a
    padded bucket it is 0.
    """
    if n in curve:
        return curve[n]
    measured = sorted(curve)
    first = measured[0]
    last = measured[-1]
    if n < first:
        return curve[first]
    if n > last:
        return curve[last] * n / last
    right = bisect_left(measured, n)
    low = measured[right - 1]
    high = measured[right]
    slope = (curve[high] - curve[low]) / (high - low)
    return curve[low] + slope * (n - low)


def _rising(seconds: dict[int, float]) -> dict[int, float]:
    """The curve, lowered so that no batch takes longer than a larger one.

    Other work on the machine makes some measurements too long.
    """
    rising = {}
    shortest_s = inf
    for n in sorted(seconds, reverse=True):
        shortest_s = min(shortest_s, seconds[n])
        rising[n] = shortest_s
    return dict(sorted(rising.items()))


def _shortest_s(call: Callable[[], float]) -> float:
    """The shortest of a few calls, in seconds. Longer calls include other work of the machine.

    A first call is not counted: with a new shape it may take twenty times as long.
    """
    call()
    times_s = [call()]
    while len(times_s) < REPEATS and sum(times_s) < ENOUGH_S:
        times_s.append(call())
    return min(times_s)
