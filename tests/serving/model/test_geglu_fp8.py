"""The kernel that rounds the gated product to fp8, on Triton's interpreter, beside plain float64."""

from .interpreted import run_on_interpreter

# Triton 3.9.0's interpreter rounds to fp8 without a carry: 7.99 becomes 4. So the kernel writes
# float32 here, and the last rounding is torch's.
CODE = """
import torch
from benchlib.serving.model.geglu_fp8 import _geglu_into, LARGEST, LEAST, _empty

generator = torch.Generator().manual_seed(0)
for rows, width in ((3, 8), (5, 20), (4, 640)):
    projected = torch.randn(rows, 2 * width, generator=generator).bfloat16()
    projected[0] = 0.0  # a row of zeros, as of an empty prompt
    projected[1] *= 100.0
    rounded, scales = _empty(projected)
    assert (rounded.dtype, rounded.shape, scales.shape) == (torch.float8_e4m3fn, (rows, width), (rows, 1))
    scaled = torch.full((rows, width), torch.nan)
    scales.fill_(torch.nan)
    _geglu_into(projected, scaled, scales)

    value, gate = projected.double().chunk(2, dim=-1)
    exact = value * torch.nn.functional.gelu(gate)
    wanted = exact.abs().amax(1, keepdim=True).clamp(min=LEAST) / LARGEST
    assert (scales.double() / wanted - 1).abs().max() < 1e-5, (scales, wanted)
    # float32's erf leaves 1 + erf(x) with an error of 1e-7 of 1, far below a step of fp8.
    assert ((scaled.double() * wanted - exact).abs() <= 1e-4 * exact.abs() + 1e-3 * wanted).all()
    assert scaled.abs().max() <= LARGEST
    found = scaled.to(torch.float8_e4m3fn).double() * scales.double()
    assert ((found - exact).abs() <= exact.abs() / 15 + wanted * 2**-9).all()
    assert (scaled[0] == 0).all()
print("all rows are right")
"""


def test_the_kernel_agrees_with_float64_on_poisoned_outputs():
    run_on_interpreter(CODE, "all rows are right")
