"""SDXL's full architecture on the CPU: minutes and gigabytes, so `make slow` only."""

import os
import re
import subprocess
import sys

import psutil
import pytest

CODE = """
import benchlib as bl
pipe = bl.load_pipeline("sdxl-random", device="cpu", dtype="bfloat16")
peak_gib = pipe.peak_memory().rss_gib
spec = pipe.spec
result = pipe.generate(bl.GenerateRequest(prompt="a", num_inference_steps=1, width=64, height=64, seed=1))
print(spec["model_params"], spec["weights_gib"], spec["memory_before_load_gib"], peak_gib, result.images[0].size)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    psutil.virtual_memory().available < 9 * 2**30, reason="needs 9 GiB of free memory"
)
def test_sdxl_random_loads_in_place_and_makes_an_image():
    run = subprocess.run(
        [sys.executable, "-c", CODE], env=os.environ, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    params, weights, before, peak, size = re.fullmatch(
        r"(\S+) (\S+) (\S+) (\S+) (\(.+\))\n", run.stdout
    ).groups()
    assert int(params) == 3_468_837_867
    assert float(weights) == pytest.approx(3_468_837_867 * 2 / 2**30)
    assert float(peak) - float(before) < 1.1 * float(weights)
    assert size == "(64, 64)"
    print(
        f"peak of loading: {(float(peak) - float(before)) / float(weights):.3f}x the weights' bytes"
    )
