"""The benchmark of single kernels, and its kernels on Triton's interpreter beside plain float32."""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import kernel_tries

ROOT = Path(__file__).parents[1]
# Triton 3.9.0's interpreter multiplies the bits of bf16, so 16 bits are float16 here.
CODE = """
import torch
from torch.nn.functional import conv2d
from benchmarks import tried_kernels
from benchmarks.tried_kernels import convolution_into

generator = torch.Generator().manual_seed(0)

def draw(*shape):
    return torch.randn(*shape, generator=generator)

tried_kernels.TALL = 32
half, fp8 = torch.float16, torch.float8_e4m3fn
for side, channels, columns, kind in ((16, 32, 32, half), (32, 48, 40, half), (8, 32, 16, fp8)):
    image = draw(2, side, side, channels).to(kind)
    weight = draw(columns, 3, 3, channels).to(kind)
    scales, bias = draw(columns).abs(), draw(columns).half()
    answer = torch.full((2, side, side, columns), torch.nan, dtype=torch.float16)
    options = dict(wide=32, deep=32, warps=4, stages=2)
    convolution_into(answer, image, weight.flatten(1), scales, bias, **options)
    plain = conv2d(image.float().permute(0, 3, 1, 2), weight.float().permute(0, 3, 1, 2), padding=1)
    wanted = plain.permute(0, 2, 3, 1) * scales + bias.float()
    assert (answer.float() - wanted).norm() < 4e-3 * wanted.norm(), (side, kind)
print("all numbers are right")
"""


def test_the_tried_kernels_agree_with_float32_on_poisoned_outputs():
    pytest.importorskip("triton", reason="Triton is not installed; the kernels are tried on a GPU")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.stdout.strip() == "all numbers are right", ran.stderr[-2000:]


def test_every_section_measures_plain_torch_on_a_cpu(tmp_path):
    lines = tmp_path / "lines.jsonl"
    for name in kernel_tries.SECTIONS:
        assert kernel_tries.main([str(lines), "--quick", "--section", name]) == 0
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {line["section"] for line in found} == set(kernel_tries.SECTIONS)
    for line in found:
        assert line["median_us"] > 0, line
        assert line["error"] < (0.04 if "fp8" in line["section"] else 0.005), line


def test_a_variant_that_fails_or_leaves_a_number_out_costs_itself_alone(tmp_path):
    options = argparse.Namespace(lines=tmp_path / "lines", quick=True, rounds=1, budget=60.0)
    tries = kernel_tries.Tries(options)

    def fails(_inputs):
        raise RuntimeError("no such kernel")

    def forgets(inputs):
        return inputs["answer"]

    kernel_tries.race(
        tries,
        "section",
        "case",
        lambda: {"x": torch.ones(2, 2), "answer": tries.full(2, 2)},
        {"fails": fails, "forgets": forgets, "right": lambda inputs: inputs["x"]},
        reference=lambda inputs: inputs["x"],
    )
    found = {}
    for line in (tmp_path / "lines").read_text().splitlines():
        figures = json.loads(line)
        found[figures.pop("variant")] = figures
    assert found["fails"]["left_out"] == "RuntimeError: no such kernel"
    assert math.isnan(found["forgets"]["error"])
    assert found["right"]["error"] == 0.0
