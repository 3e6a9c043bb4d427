#!/usr/bin/env bash
# Triton 3.6.0, without a GPU: it compiles for an H100 anywhere, and its own tools show the machine code.
#
# Behaviour: a reciprocal of float32 takes eight instructions of an H100, by `1.0 / x` and by
# `tl.fdiv` alike. Beside the reciprocal itself these are two comparisons, a selection and four
# products, which guard numbers near the ends of the range. `rsqrt(x)` squared takes two in all.
# One would guess: `fdiv`, whose name says fast, or a plain `1.0 / x` under Triton's loose rules, is
# the one instruction that the card has for it.
# Why it matters: GELU at the end of a product needs a reciprocal for each number, while the tensor
# cores wait. Within our kernel the root saves three of the eight; the compiler shares the others.
#
# Output seen (instructions for each number, between reading and writing it):
#   1.0 / x: 8
#   tl.fdiv(1.0, x): 8
#   tl.rsqrt(x) squared: 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --no-deps triton==3.6.0
cat > kernels.py <<'PY'
import triton
import triton.language as tl


@triton.jit
def divided(x, y, N: tl.constexpr):
    places = tl.arange(0, N)
    tl.store(y + places, 1.0 / tl.load(x + places))


@triton.jit
def by_fdiv(x, y, N: tl.constexpr):
    places = tl.arange(0, N)
    tl.store(y + places, tl.fdiv(1.0, tl.load(x + places)))


@triton.jit
def by_root(x, y, N: tl.constexpr):
    places = tl.arange(0, N)
    root = tl.rsqrt(tl.load(x + places))
    tl.store(y + places, root * root)
PY
TRITON_CACHE_DIR="$folder/cache" venv/bin/python 2> log - <<'PY' || { cat log; exit 1; }
import re
import subprocess
import sys
from pathlib import Path

import triton
from kernels import by_fdiv, by_root, divided
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

N, WARPS = 4096, 4
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def instructions(kernel):
    """Instructions on numbers for each number: those that load, store and count places are left out."""
    signature = {"x": "*fp32", "y": "*fp32", "N": "constexpr"}
    source = ASTSource(fn=kernel, signature=signature, constexprs={"N": N})
    options = {"num_warps": WARPS}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    Path("kernel.cubin").write_bytes(compiled.asm["cubin"])
    code = subprocess.run(
        [TOOLS / "nvdisasm", "-c", "kernel.cubin"], capture_output=True, text=True, check=True
    ).stdout
    on_numbers = re.findall(r"\b(?:MUFU|FMUL|FADD|FFMA|FSETP|FSEL)\b", code)
    return len(on_numbers) / (N / WARPS / 32)


changed = False
CASES = (("1.0 / x", divided, 8), ("tl.fdiv(1.0, x)", by_fdiv, 8), ("tl.rsqrt(x) squared", by_root, 2))
for name, kernel, expected in CASES:
    found = instructions(kernel)
    print(f"{name}: {found:g}")
    changed |= found != expected
sys.exit(changed)
PY
