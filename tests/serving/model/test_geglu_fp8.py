"""The kernel that rounds the gated product to fp8, on Triton's interpreter, beside plain float64."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed; the kernel is tried on a GPU")

CODE = """
import torch
from benchlib.serving.model.geglu_fp8 import _geglu_into, LARGEST, LEAST, _empty

generator = torch.Generator().manual_seed(0)
for rows, width in ((3, 8), (5, 20), (4, 640)):
    projected = torch.randn(rows, 2 * width, generator=generator).bfloat16()
    projected[0] = 0.0  # a row of zeros, as of an empty prompt
    projected[1] *= 100.0
    rounded, scales = _empty(projected)
    rounded.view(torch.uint8).fill_(127)  # NaN in e4m3fn
    scales.fill_(torch.nan)
    _geglu_into(projected, rounded, scales)

    value, gate = projected.double().chunk(2, dim=-1)
    exact = value * torch.nn.functional.gelu(gate)
    wanted = exact.abs().amax(1, keepdim=True).clamp(min=LEAST) / LARGEST
    assert (scales.double() / wanted - 1).abs().max() < 1e-5, (scales, wanted)
    found = rounded.float().double() * scales.double()
    assert torch.isfinite(found).all()
    # e4m3 has 3 bits after the point, so a number is off by 1/16 of itself, or half the least step.
    allowed = exact.abs() / 16 * 1.001 + wanted * 2**-10
    assert ((found - exact).abs() <= allowed).all(), ((found - exact).abs() - allowed).max()
    assert (rounded[0].float() == 0).all()
print("all rows are right")
"""


def test_the_kernel_agrees_with_float64_on_poisoned_outputs():
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.stdout.strip() == "all rows are right", ran.stderr[-2000:]
