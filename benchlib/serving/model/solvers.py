"""The arithmetic of a denoising step, for many works of one kind of scheduler at once.

Knows the methods of diffusers' most used schedulers, and where those round. A solver reads the
numbers of each step off a scheduler; a configuration that it does not cover has no solver. Ignorant
of networks, works and batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Moment:
    """A step of some works, just after the UNet.

    `sample` and `output` are (works, channels, height, width). Each of `columns` is (works, 1, 1, 1)
    in float32. `noise` is float32, None for a solver without noise. `memory` is what the step before
    left, zeros before the first step.
    """

    sample: Tensor
    output: Tensor
    columns: tuple[Tensor, ...]
    noise: Tensor | None
    memory: Tensor | None


class Solver(Protocol):
    """A method of one configuration. Works of equal solvers may share a step."""

    @property
    def noisy(self) -> bool:
        """Whether each step takes new noise."""
        ...

    @property
    def remembers(self) -> bool:
        """Whether a step leaves a memory for the next one."""
        ...

    def lay_out(self, scheduler: Any) -> list[Tensor]:
        """The columns of each step, as rows (steps,): first the divisor of the UNet's input."""
        ...

    def step(self, at: Moment) -> tuple[Tensor, Tensor | None]:
        """The moved sample and the new memory."""
        ...


def find_solver(scheduler: Any) -> Solver | None:
    """The solver that does as `scheduler` does, or None if there is none."""
    config = scheduler.config
    prediction = config.get("prediction_type")
    if prediction not in ("epsilon", "v_prediction", "sample") or config.get("thresholding"):
        return None
    clip = config.clip_sample_range if config.get("clip_sample") else None
    kind = type(scheduler)
    if kind is DDIMScheduler:
        return ImplicitSolver(prediction, clip)
    if kind is TCDScheduler:
        return ImplicitSolver(prediction, None)  # this scheduler ignores its option to clip
    if kind is LCMScheduler:
        return ConsistencySolver(prediction, clip)
    if kind is DPMSolverMultistepScheduler and _is_second_order(config):
        return MultistepSolver(prediction, noisy=config.algorithm_type == "sde-dpmsolver++")
    if kind is EulerDiscreteScheduler:
        return EulerSolver(prediction, noisy=False)
    if kind is EulerAncestralDiscreteScheduler and prediction != "sample":
        return EulerSolver(prediction, noisy=True)
    return None


def _is_second_order(config: Any) -> bool:
    plain = config.variance_type is None and not config.use_flow_sigmas
    algorithms = ("dpmsolver++", "sde-dpmsolver++")
    return plain and config.solver_order == 2 and config.algorithm_type in algorithms


@dataclass(frozen=True)
class EulerSolver:
    """Euler's method, or with noise its ancestral variant.

    Source: Karras et al., 2022, algorithm 1, without churn; k-diffusion's `sample_euler_ancestral`.
    """

    prediction: Prediction
    noisy: bool
    remembers = False

    def lay_out(self, scheduler: Any) -> list[Tensor]:
        steps = len(scheduler.timesteps)
        sigma = scheduler.sigmas[:steps]
        sigma_next = scheduler.sigmas[1 : steps + 1]
        sigma_up = torch.zeros_like(sigma)
        sigma_down = sigma_next
        if self.noisy:
            sigma_up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
            sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
        length = sigma**2 + 1
        root = length**0.5
        return [root, sigma, sigma_down - sigma, sigma_up, -sigma / root, length]

    def step(self, at: Moment) -> tuple[Tensor, Tensor | None]:
        _, sigma, sigma_change, sigma_up, output_factor, length = at.columns
        sample = at.sample.to(torch.float32)
        if self.prediction == "epsilon":
            original = sample - _left(sigma, at.output)
        elif self.prediction == "sample":
            original = at.output
        else:
            original = _right(at.output, output_factor) + divide(sample, length)
        derivative = divide(sample - original, sigma)
        moved = sample + derivative * sigma_change
        if at.noise is not None:
            moved = moved + _right(at.noise.to(at.output.dtype), sigma_up)
        return moved.to(at.output.dtype), None


@dataclass(frozen=True)
class MultistepSolver:
    """DPM-Solver++ of second order, or with noise its SDE variant. The memory is the last image.

    Source: Lu et al., "DPM-Solver++", 2022, algorithm 2.
    """

    prediction: Prediction
    noisy: bool
    remembers = True

    def lay_out(self, scheduler: Any) -> list[Tensor]:
        # The scheduler computes with numbers, one step at a time. Torch's exponential of a vector
        # may differ from that of a number by a bit.
        steps = [self._lay_out_step(scheduler, i) for i in range(len(scheduler.timesteps))]
        return [torch.stack(numbers) for numbers in zip(*steps, strict=True)]

    def _lay_out_step(self, scheduler: Any, number: int) -> list[Tensor]:
        # 1) From here to the next noise level
        alpha, sigma, log_snr = _noise_level(scheduler.sigmas[number])
        one = torch.ones_like(sigma)
        zero = torch.zeros_like(sigma)
        next_alpha, next_sigma, next_log_snr = _noise_level(scheduler.sigmas[number + 1])
        h = next_log_snr - log_snr
        keep = next_sigma / sigma
        add = -(next_alpha * (torch.exp(-h) - 1.0))
        noise = zero
        if self.noisy:
            keep = keep * torch.exp(-h)
            add = next_alpha * (1 - torch.exp(-2.0 * h))
            noise = next_sigma * torch.sqrt(1.0 - torch.exp(-2 * h))
        if _takes_first_order(scheduler, number):
            return [one, alpha, sigma, keep, add, noise, zero, zero]

        # 2) The weight of the difference from the last image
        last_h = log_snr - _noise_level(scheduler.sigmas[number - 1])[2]
        difference = 1.0 / (last_h / h)
        weight = 0.5 * add
        if scheduler.config.solver_type == "heun":
            weight = next_alpha * ((torch.exp(-h) - 1.0) / h + 1.0)
            if self.noisy:
                weight = next_alpha * ((1.0 - torch.exp(-2.0 * h)) / (-2.0 * h) + 1.0)
        return [one, alpha, sigma, keep, add, noise, difference, weight]

    def step(self, at: Moment) -> tuple[Tensor, Tensor | None]:
        _, alpha, sigma, keep, add, noise_factor, difference, weight = at.columns
        original = _find_original(self.prediction, at.sample, at.output, alpha, sigma)
        memory = at.memory if at.memory is not None else torch.zeros_like(original)
        # At a step of first order, an image that has overflowed must not make NaN of a weight of 0.
        change = torch.where(difference == 0, 0.0, _left(difference, original - memory))
        sample = at.sample.to(torch.float32)
        moved = keep * sample + _left(add, original) + _left(weight, change)
        if at.noise is not None:
            moved = moved + noise_factor * at.noise
        return moved.to(original.dtype), original


def _noise_level(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The share of the image, that of the noise, and half the logarithm of their ratio squared."""
    alpha = 1 / ((sigma**2 + 1) ** 0.5)
    noise = sigma * alpha
    return alpha, noise, torch.log(alpha) - torch.log(noise)


def _takes_first_order(scheduler: Any, number: int) -> bool:
    """Whether the scheduler takes its step `number` by the first-order method."""
    config = scheduler.config
    steps = len(scheduler.timesteps)
    if number == 0:
        return True
    few = config.lower_order_final and steps < 15
    at_last = config.euler_at_final or few or config.final_sigmas_type == "zero"
    return number == steps - 1 and bool(at_last)


@dataclass(frozen=True)
class ImplicitSolver:
    """DDIM, and TCD without noise: both go by the predicted image to the next noise level.

    Source: Song et al., "Denoising Diffusion Implicit Models", 2021, equation 12; Zheng et al.,
    "Trajectory Consistency Distillation", 2024. The stock pipeline sets the `eta` of both to 0.
    """

    prediction: Prediction
    clip: float | None
    noisy = False
    remembers = False

    def lay_out(self, scheduler: Any) -> list[Tensor]:
        alpha, next_alpha = _alphas(scheduler)
        roots = [alpha**0.5, (1 - alpha) ** 0.5, next_alpha**0.5, (1 - next_alpha) ** 0.5]
        return [torch.ones_like(alpha), *roots]

    def step(self, at: Moment) -> tuple[Tensor, Tensor | None]:
        _, alpha, beta, next_alpha, next_beta = at.columns
        original = _find_original(self.prediction, at.sample, at.output, alpha, beta)
        noise = at.output
        if self.prediction == "sample":
            noise = divide(at.sample - _left(alpha, original), beta)
        elif self.prediction == "v_prediction":
            noise = _left(alpha, at.output) + _left(beta, at.sample)
        original = _clip(original, self.clip)
        return _left(next_alpha, original) + _left(next_beta, noise), None


@dataclass(frozen=True)
class ConsistencySolver:
    """LCM: the predicted image, with new noise up to the next noise level.

    Source: Luo et al., "Latent Consistency Models", 2023, algorithm 3.
    """

    prediction: Prediction
    clip: float | None
    noisy = True
    remembers = False

    def lay_out(self, scheduler: Any) -> list[Tensor]:
        alpha, next_alpha = _alphas(scheduler)
        times = scheduler.timesteps.cpu().float()
        scalings = [scheduler.get_scalings_for_boundary_condition_discrete(t) for t in times]
        skip, out = (torch.stack(numbers) for numbers in zip(*scalings, strict=True))
        signal = next_alpha.sqrt()
        noise = (1 - next_alpha).sqrt()
        signal[-1] = 1.0  # after the last step there is no noise
        noise[-1] = 0.0
        roots = [alpha.sqrt(), (1 - alpha).sqrt()]
        return [torch.ones_like(alpha), *roots, skip, out, signal, noise]

    def step(self, at: Moment) -> tuple[Tensor, Tensor | None]:
        _, alpha, beta, skip, out, signal, noise_factor = at.columns
        original = _find_original(self.prediction, at.sample, at.output, alpha, beta)
        original = _clip(original, self.clip)
        # The scheduler's two scalings lie on the device of its timesteps, where torch rounds them.
        denoised = _rounded(out, original) + _rounded(skip, at.sample)
        noise = cast(Tensor, at.noise).to(denoised.dtype)
        return _left(signal, denoised) + _left(noise_factor, noise), None


def _alphas(scheduler: Any) -> tuple[Tensor, Tensor]:
    """The products of alphas at each step and at the next one, both (steps,)."""
    products = scheduler.alphas_cumprod
    times = scheduler.timesteps.cpu()
    if isinstance(scheduler, DDIMScheduler):
        apart = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        next_times = times - apart
    else:
        last = times[-1:] if isinstance(scheduler, LCMScheduler) else torch.zeros_like(times[-1:])
        next_times = torch.cat([times[1:], last])
    next_products = products[next_times.clamp(min=0)]
    next_products = torch.where(next_times >= 0, next_products, scheduler.final_alpha_cumprod)
    return products[times], next_products


def _find_original(
    prediction: Prediction, sample: Tensor, output: Tensor, alpha: Tensor, beta: Tensor
) -> Tensor:
    """The image without noise that the UNet predicts; alpha and beta are the roots."""
    if prediction == "epsilon":
        return divide(sample - _left(beta, output), alpha)
    if prediction == "v_prediction":
        return _left(alpha, sample) - _left(beta, output)
    return output


def _clip(original: Tensor, limit: float | None) -> Tensor:
    return original if limit is None else original.clamp(-limit, limit)


# -- as torch rounds with a tensor without dimensions on the CPU, which is what schedulers hold ------


def divide(numerator: Tensor, divisor: Tensor) -> Tensor:
    """The quotient in the numerator's type. On CUDA torch multiplies by the reciprocal."""
    if numerator.device.type == "cuda":
        return (numerator * divisor.reciprocal()).to(numerator.dtype)
    return (numerator / divisor).to(numerator.dtype)


def _left(factor: Tensor, tensor: Tensor) -> Tensor:
    """The product with a left factor, which torch rounds on the CPU."""
    if tensor.device.type == "cpu":
        return _rounded(factor, tensor)
    return _right(tensor, factor)


def _right(tensor: Tensor, factor: Tensor) -> Tensor:
    """The product with a right factor, which torch does not round."""
    return (tensor * factor).to(tensor.dtype)


def _rounded(factor: Tensor, tensor: Tensor) -> Tensor:
    """The product with a factor that is rounded to the tensor's type."""
    return factor.to(tensor.dtype) * tensor
