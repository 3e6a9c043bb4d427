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
    assert (scales.double() / wanted - 1).abs().max() < 3e-4, (scales, wanted)
    # GELU's error is 2.8e-4 of its size, far below a step of fp8.
    assert ((scaled.double() * wanted - exact).abs() <= 6e-4 * exact.abs() + 1e-3 * wanted).all()
    assert scaled.abs().max() <= LARGEST
    found = scaled.to(torch.float8_e4m3fn).double() * scales.double()
    assert ((found - exact).abs() <= exact.abs() / 15 + wanted * 2**-9).all()
    assert (scaled[0] == 0).all()
print("all rows are right")
"""


def test_the_kernel_agrees_with_float64_on_poisoned_outputs():
    run_on_interpreter(CODE, "all rows are right")


SHARES = """
import torch, triton
import triton.language as tl
from benchlib.serving.model.geglu_fp8 import normal_share

@triton.jit
def shares(gates, found, COUNT: tl.constexpr):
    places = tl.arange(0, COUNT)
    tl.store(found + places, normal_share(tl.load(gates + places)))

gates = torch.linspace(-40.0, 40.0, 2**16)
gates[:8] = torch.tensor([0.0, -0.0, 1e30, -1e30, 1e-30, -1e-30, 300.0, -300.0])
found = torch.full_like(gates, torch.nan)
shares[(1,)](gates, found, COUNT=2**16)
gelu, wanted = (gates.double() * share.double() for share in (found, torch.special.ndtr(gates.double())))
error = (gelu - wanted).abs() / wanted.abs().clamp(min=1e-3)
assert (error <= 2.8e-4).all(), error.max()
assert ((found >= 0) & (found <= 1)).all()
print("all shares are right")
"""


def test_gelu_is_within_a_seventh_of_the_rounding_of_bf16():
    run_on_interpreter(SHARES, "all shares are right")
